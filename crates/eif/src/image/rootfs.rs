//! Root file systems that are no container image: a folder of the host or a tar archive.
//!
//! In a folder, whoever owns the top folder is taken for root: a root file system unpacked by an
//! unprivileged user gives the same image as one unpacked by root. All other owners are as on disk.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::cpio::{Attributes, Special};

use super::allowance::Allowance;
use super::error::ImageError;
use super::layer::{Applier, Lost, Role};
use super::spool::Spool;
use super::stream::Skim;
use super::tree::{Body, Kind, PathError, Tree};

/// Reads a folder. Bodies stay where they are and are read when the ramdisk is written. `scratch` is for temporary files.
pub(crate) fn load_folder(folder: &Path, scratch: &Path) -> Result<Tree, ImageError> {
    let metadata = fs::metadata(folder).map_err(ImageError::file("read", folder))?;
    let mut loader = Loader {
        tree: Tree::new(scratch),
        folder,
        owner: (metadata.uid(), metadata.gid()),
    };
    let attributes = loader.attributes(&metadata);
    let set = loader.tree.directory(b"", attributes);
    set.map_err(|error| refused(folder, b"", error))?;
    // What is found in a directory comes behind it, so the tree says itself what is left to read.
    let mut next = Some(Vec::new());
    while let Some(directory) = next {
        loader.directory(&directory)?;
        next = loader
            .tree
            .next_directory(&directory)
            .map_err(|error| refused(folder, &directory, error))?;
    }
    Ok(loader.tree)
}

/// Reads an unpacked tar archive; `path` is what messages call it. Bodies stay where they are.
pub(crate) fn load_tar(
    archive: File,
    path: &Path,
    spool: &mut Spool,
    lost: &mut Lost,
    scratch: &Path,
) -> Result<Tree, ImageError> {
    let failed = ImageError::file("read", path);
    let mut tree = Tree::over(archive.try_clone().map_err(&failed)?, scratch);
    let name = path.display().to_string();
    let allowance = Allowance::new();
    let reader = Skim::new(&archive).map_err(ImageError::layer(&name))?;
    let mut headers = tar::Archive::new(allowance.metered(reader));
    let entries = headers
        .entries_with_seek()
        .map_err(ImageError::layer(&name))?;
    let applier = Applier {
        name: &name,
        role: Role::RootFs,
        tree: &mut tree,
        spool,
        lost,
    };
    applier.entries(entries, &allowance)?;
    Ok(tree)
}

struct Loader<'a> {
    tree: Tree,
    folder: &'a Path,
    owner: (u32, u32),
}

impl Loader<'_> {
    /// Reads what is in a directory, and not what is in directories in it.
    fn directory(&mut self, path: &[u8]) -> Result<(), ImageError> {
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        let host = &self.folder.join(OsStr::from_bytes(relative));
        let failed = ImageError::file("read", host);
        // It was a directory when it was found; a link would lead out of the folder.
        if !fs::symlink_metadata(host).map_err(&failed)?.is_dir() && !path.is_empty() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        for entry in fs::read_dir(host).map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            let child = [path, b"/", name.as_bytes()].concat();
            self.entry(&host.join(&name), &child)?;
        }
        Ok(())
    }

    fn entry(&mut self, host: &Path, path: &[u8]) -> Result<(), ImageError> {
        let failed = ImageError::file("read", host);
        let metadata = fs::symlink_metadata(host).map_err(&failed)?;
        let file_type = metadata.file_type();
        let attributes = self.attributes(&metadata);
        if file_type.is_dir() {
            let set = self.tree.directory(path, attributes);
            return set.map_err(|error| refused(host, path, error));
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
        let set = match file_type.is_file() && metadata.nlink() > 1 {
            true => {
                let number = u128::from(metadata.dev()) << 64 | u128::from(metadata.ino());
                self.tree.set_numbered(path, number, attributes, kind)
            }
            false => self.tree.set(path, attributes, kind),
        };
        set.map_err(|error| refused(host, path, error))
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

fn refused(host: &Path, path: &[u8], error: PathError) -> ImageError {
    ImageError::path(&host.display().to_string(), path, error)
}
