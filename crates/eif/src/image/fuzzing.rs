//! Entry points for fuzzing: what comes from whoever made a container image. Nothing may panic, and what unpacks becomes a
//! ramdisk that unpacks again.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use crate::format::Architecture;
use crate::ramdisk;

use super::emit::write_tree;
use super::layer::{Lost, apply, unpacked};
use super::oci::Wanted;
use super::spool::Spool;
use super::tree::Tree;
use super::{Archive, load_archive};

/// What one input may unpack to (bytes).
const LIMIT: u64 = 1 << 20;

/// A temporary file with these bytes in it, or none where there is no room.
fn file(bytes: &[u8]) -> Option<File> {
    let mut file = tempfile::tempfile().ok()?;
    file.write_all(bytes).ok().map(|()| file)
}

/// A layer, packed or not, as it comes out of an image.
pub fn layer(bytes: &[u8]) {
    let Some(file) = file(b"") else { return };
    let mut spool = Spool::limited(file, LIMIT);
    let (mut tree, mut lost) = (Tree::new(&std::env::temp_dir()), Lost::default());
    let Ok(reader) = unpacked(BufReader::new(bytes)) else {
        return;
    };
    let applied = apply(
        "layer",
        reader.take(LIMIT),
        &mut tree,
        &mut spool,
        &mut lost,
    );
    if applied.is_ok() && spool.flush().is_ok() {
        check(tree, &spool);
    }
}

/// An archive as a user names it: of an OCI layout, by `docker save`, or a root file system.
pub fn source(bytes: &[u8]) {
    let (Some(archive), Some(spooled)) = (file(bytes), file(b"")) else {
        return;
    };
    let mut spool = Spool::limited(spooled, LIMIT);
    let scratch = &std::env::temp_dir();
    let wanted = Wanted {
        reference: None,
        scratch,
        architecture: Architecture::X86_64,
    };
    let loaded = load_archive(archive, Path::new("archive"), &wanted, &mut spool);
    if let Ok(application) = loaded
        && spool.flush().is_ok()
    {
        check(application.image.tree, &spool);
    }
}

/// A tree can be written, unless a file became too large for the format, and what was written unpacks.
fn check(mut tree: Tree, spool: &Spool) {
    let mut archive = Archive::new(Vec::new(), 0);
    if write_tree(&mut tree, spool, b"rootfs", &mut archive).is_err() {
        return;
    }
    let Ok(written) = archive.finish() else {
        return;
    };
    let limit = u64::MAX;
    assert!(
        ramdisk::unpack(&written, limit).is_ok(),
        "own ramdisk is refused"
    );
}
