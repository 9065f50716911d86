//! A new file that appears whole or not at all, and is on the disk before it has its name.
//!
//! The disk writes while the processors hash: whenever some megabytes have come together, a thread of its own flushes
//! them. What is left for the flush at the end is little.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use tempfile::NamedTempFile;

/// Bytes that come together before they are flushed.
const BATCH: usize = 32 << 20;

/// Permissions of any new file, before the umask.
const NEW_FILE: u32 = 0o666;

/// A file that is written under a name of no consequence, and gets its own when it is finished.
#[derive(Debug)]
pub struct Draft {
    file: NamedTempFile,
    /// Written since the last flush was asked for.
    unflushed: usize,
    flush: SyncSender<()>,
    flusher: JoinHandle<io::Result<()>>,
}

impl Draft {
    /// An empty file in the folder where the finished one belongs. It has the permissions of any new file.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn beside(finished: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.permissions(Permissions::from_mode(NEW_FILE));
        let file = builder.tempfile_in(folder_of(finished))?;
        let same = file.as_file().try_clone()?;
        let (flush, asked) = sync_channel(1);
        // The kernel tells of a failed write once, to whoever flushes first: the thread keeps that for the end.
        let flusher = thread::spawn(move || asked.iter().try_for_each(|()| same.sync_data()));
        Ok(Self {
            file,
            unflushed: 0,
            flush,
            flusher,
        })
    }

    /// Gives it other permissions: those of the file that it replaces.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        self.file.as_file().set_permissions(permissions)
    }

    /// Gives the finished file its name. The file is on the disk before it has its name, and the name before anybody is
    /// told: an image that was reported is there after a power failure.
    ///
    /// # Errors
    /// It cannot be written to the disk or be renamed; what had the name has it still.
    pub fn publish(self, path: &Path) -> io::Result<()> {
        drop(self.flush);
        let flushed = self.flusher.join();
        flushed.map_err(|_| io::Error::other("the flushing thread panicked"))??;
        let file = self.file;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // A folder that may be written and not read cannot be flushed, and some file systems flush none.
        match File::open(folder_of(path)).and_then(|folder| folder.sync_all()) {
            Err(error) if !cannot_flush(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unflushed += written;
        if self.unflushed >= BATCH {
            self.unflushed = 0;
            // If the thread is busy it gets to these bytes the next time; if it has failed, the end tells.
            let _ = self.flush.try_send(());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn cannot_flush(error: &io::Error) -> bool {
    use ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}
