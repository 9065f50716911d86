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

/// The file, under a name of no consequence.
pub(crate) struct Draft {
    file: NamedTempFile,
    /// Written since the last flush was asked for.
    unflushed: usize,
    flush: SyncSender<()>,
    flusher: JoinHandle<io::Result<()>>,
}

impl Draft {
    /// An empty file in `folder`, which is on the file system where the finished one belongs.
    pub(crate) fn new_in(folder: &Path) -> io::Result<Self> {
        let file = NamedTempFile::new_in(folder)?;
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

    /// Gives the finished file its name and the permissions of any new file. The file is on the disk before it has its name,
    /// and the name before anybody is told: an image that was reported is there after a power failure.
    pub(crate) fn publish(self, path: &Path) -> io::Result<()> {
        drop(self.flush);
        let flushed = self.flusher.join();
        flushed.map_err(|_| io::Error::other("the flushing thread panicked"))??;
        let file = self.file;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
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
