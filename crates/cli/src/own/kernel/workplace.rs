//! Folders in the cache to make kernels in. A build takes 2 GB, and whoever is killed cannot take them out: the next one does.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tempfile::TempDir;

use crate::failure::{Failure, Outcome};

/// What such folders' names begin with.
const PREFIX: &str = ".work-";

/// A file in each, locked as long as somebody works there; in the cache, while folders come and go. A file, because a network
/// file system keeps locks of directories on one host.
const LOCK: &str = ".lock";

/// The folder.
pub(super) struct Workplace {
    folder: TempDir,
    _lock: io::Result<File>,
}

impl Workplace {
    /// Makes one, and takes out what nobody works in any more. Without locks nothing is taken out.
    pub(super) fn new(root: &Path) -> Outcome<Self> {
        let all = locked(root, File::lock);
        if all.is_ok() {
            let left =
                fs::read_dir(root).map_err(|error| Failure::file(None, "read", root, error))?;
            for left in left.flatten() {
                let is_workplace = left.file_name().as_bytes().starts_with(PREFIX.as_bytes());
                if is_workplace && is_free(&left.path()) {
                    // What cannot be taken out is in nobody's way.
                    let _ = fs::remove_dir_all(left.path());
                }
            }
        }
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(root)?;
        let lock = locked(folder.path(), File::lock);
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn is_free(workplace: &Path) -> bool {
    locked(workplace, |file| Ok(file.try_lock()?)).is_ok()
}

fn locked(folder: &Path, lock: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(LOCK))?;
    lock(&file).map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_taken_out_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        for name in [".work-killed/source", "6.12.0-test"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let first = Workplace::new(root.path()).unwrap();
        assert!(!root.path().join(".work-killed").exists());
        let second = Workplace::new(root.path()).unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        drop((first, second));
        let left = fs::read_dir(root.path()).unwrap().flatten();
        let mut left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, [LOCK, "6.12.0-test"]);
    }
}
