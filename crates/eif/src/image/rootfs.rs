//! Root file systems that are no container image: a folder of the host or a tar archive.
//!
//! In a folder, whoever owns the top folder is taken for root: a root file system unpacked by an
//! unprivileged user gives the same image as one unpacked by root. All other owners are as on disk.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use crate::cpio::{Attributes, Special};

use super::allowance::Allowance;
use super::error::ImageError;
use super::layer::{Applier, Lost, Role};
use super::stream::Skim;
use super::tree::{Body, Kind, NodeId, Spool, Tree};

/// Reads a folder. Bodies stay where they are and are read when the ramdisk is written.
pub(crate) fn load_folder(folder: &Path) -> Result<Tree, ImageError> {
    let metadata = fs::metadata(folder).map_err(ImageError::file("read", folder))?;
    let owner = (metadata.uid(), metadata.gid());
    let mut loader = Loader {
        tree: Tree::new(),
        owner,
        links: BTreeMap::new(),
    };
    loader.directory(folder, b"", &metadata)?;
    Ok(loader.tree)
}

/// Reads an unpacked tar archive; `path` is what messages call it. Bodies stay where they are.
pub(crate) fn load_tar(
    archive: File,
    path: &Path,
    spool: &mut Spool,
    lost: &mut Lost,
) -> Result<Tree, ImageError> {
    let mut tree = Tree::new();
    let archive = Arc::new(archive);
    let name = path.display().to_string();
    let allowance = Allowance::new();
    let reader = Skim::new(&archive).map_err(ImageError::layer(&name))?;
    let mut headers = tar::Archive::new(allowance.metered(reader));
    let entries = headers
        .entries_with_seek()
        .map_err(ImageError::layer(&name))?;
    let applier = Applier {
        name: &name,
        role: Role::RootFs(&archive),
        tree: &mut tree,
        spool,
        lost,
    };
    applier.entries(entries, &allowance)?;
    Ok(tree)
}

struct Loader {
    tree: Tree,
    owner: (u32, u32),
    /// Files with several names, by device and inode.
    links: BTreeMap<(u64, u64), NodeId>,
}

impl Loader {
    fn directory(
        &mut self,
        host: &Path,
        path: &[u8],
        metadata: &Metadata,
    ) -> Result<(), ImageError> {
        let attributes = self.attributes(metadata);
        let set = self.tree.directory(path, attributes);
        set.map_err(|e| entry_error(host, path, &e.to_string()))?;
        let failed = ImageError::file("read", host);
        let mut names = Vec::new();
        for entry in fs::read_dir(host).map_err(&failed)? {
            names.push(entry.map_err(&failed)?.file_name());
        }
        names.sort();
        for name in names {
            let child = [path, b"/", name.as_bytes()].concat();
            self.entry(&host.join(&name), &child)?;
        }
        Ok(())
    }

    fn entry(&mut self, host: &Path, path: &[u8]) -> Result<(), ImageError> {
        let failed = ImageError::file("read", host);
        let metadata = fs::symlink_metadata(host).map_err(&failed)?;
        let file_type = metadata.file_type();
        if file_type.is_dir() {
            return self.directory(host, path, &metadata);
        }
        let inode = (metadata.dev(), metadata.ino());
        if let Some(node) = self.links.get(&inode) {
            let linked = self.tree.link_node(path, *node);
            return linked.map_err(|e| entry_error(host, path, &e.to_string()));
        }
        let kind = if file_type.is_symlink() {
            let target = fs::read_link(host).map_err(&failed)?;
            Kind::Symlink(target.into_os_string().into_vec())
        } else if file_type.is_file() {
            Kind::File(Body::Host {
                path: host.to_owned(),
                len: metadata.len(),
            })
        } else {
            Kind::Special(special(&metadata))
        };
        let node = self.tree.set(path, self.attributes(&metadata), kind);
        let node = node.map_err(|e| entry_error(host, path, &e.to_string()))?;
        if file_type.is_file() && metadata.nlink() > 1 {
            self.links.insert(inode, node);
        }
        Ok(())
    }

    fn attributes(&self, metadata: &Metadata) -> Attributes {
        let (uid, gid) = (metadata.uid(), metadata.gid());
        Attributes {
            mode: metadata.mode() & 0o7777,
            uid: if uid == self.owner.0 { 0 } else { uid },
            gid: if gid == self.owner.1 { 0 } else { gid },
        }
    }
}

fn special(metadata: &Metadata) -> Special {
    let (major, minor) = device_numbers(metadata.rdev());
    let file_type = metadata.file_type();
    if file_type.is_char_device() {
        Special::Character { major, minor }
    } else if file_type.is_block_device() {
        Special::Block { major, minor }
    } else if file_type.is_socket() {
        Special::Socket
    } else {
        Special::Fifo
    }
}

/// Linux's split of a device number: 12 bits of major and 20 of minor, interleaved.
fn device_numbers(device: u64) -> (u32, u32) {
    let part = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & 0xffff_f000);
    let minor = (device & 0xff) | ((device >> 12) & 0xffff_ff00);
    (part(major), part(minor))
}

fn entry_error(host: &Path, path: &[u8], problem: &str) -> ImageError {
    ImageError::entry(&host.display().to_string(), path, problem)
}
