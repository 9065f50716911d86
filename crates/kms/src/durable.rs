//! Private files that are on disk, whole, before they have their name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Writes a file that must not exist yet, 0600. If it exists it stays as it is.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = write_beside(path, "partial", bytes)?;
    // A hard link fails if the name is taken: of two first starts one wins and both use its key.
    let linked = fs::hard_link(&partial, path);
    fs::remove_file(&partial)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_directory(path)
}

/// Replaces a file, 0600: after a crash it is the old one or the new one. Callers keep each other out.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = write_beside(path, "new", bytes)?;
    fs::rename(&partial, path)?;
    sync_directory(path)
}

/// A private file that is written bit by bit and has its name once it is whole; dropped before, it leaves nothing.
pub(crate) struct NewFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl NewFile {
    /// Begins one; its name must be free.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        Ok(Self {
            file: create_private(&partial)?,
            path: path.to_owned(),
            partial,
        })
    }

    /// On disk under its name, which must still be free.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::hard_link(&self.partial, &self.path)?;
        sync_directory(&self.path)
    }
}

impl io::Write for &NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Whole or not, the file has its own name by now or none.
        let _left = fs::remove_file(&self.partial);
    }
}

/// The content under another name beside the final one, on disk. A name for each purpose: a first start and a tool that replaces do
/// not know of each other.
fn write_beside(path: &Path, extension: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let partial = path.with_extension(extension);
    let mut file = create_private(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(partial)
}

fn create_private(partial: &Path) -> io::Result<File> {
    // Left by a crash.
    if partial.exists() {
        fs::remove_file(partial)?;
    }
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    options.open(partial)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) if directory.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
