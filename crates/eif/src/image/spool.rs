//! Bodies of files that came out of archives, one after the other in one temporary file.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use crate::hashing::CHUNK;

use super::stream::Piece;
use super::tree::{Body, MAX_FILE};

/// Most bytes of all files of an image: far above any enclave's memory, below what fills a disk unnoticed.
const MAX_SPOOL: u64 = 64 << 30;

/// Why a body was not stored.
#[derive(Debug)]
pub(crate) enum SpoolError {
    /// It cannot be read, or is too long.
    Body(io::Error),
    /// The temporary file cannot be written.
    File(io::Error),
}

/// The file.
#[derive(Debug)]
pub(crate) struct Spool {
    file: BufWriter<File>,
    len: u64,
    limit: u64,
}

impl Spool {
    pub(crate) fn new(file: File) -> Self {
        Self::limited(file, MAX_SPOOL)
    }

    /// One that takes no more than `limit` bytes.
    pub(crate) fn limited(file: File, limit: u64) -> Self {
        Self {
            file: BufWriter::with_capacity(CHUNK, file),
            len: 0,
            limit,
        }
    }

    /// Makes everything that was stored readable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Appends a body. A few bytes of an archive may stand for a sparse file of any size, so what is written is limited,
    /// not what is read.
    pub(crate) fn store(&mut self, body: &mut dyn Read) -> Result<Body, SpoolError> {
        let offset = self.len;
        let limit = MAX_FILE.min(self.limit.saturating_sub(offset));
        let mut body = Watched {
            inner: body.take(limit + 1),
            has_failed: false,
        };
        let copied = io::copy(&mut body, &mut self.file);
        let len = copied.map_err(|error| match body.has_failed {
            true => SpoolError::Body(error),
            false => SpoolError::File(error),
        })?;
        if len > limit {
            let text =
                format!("a file has more than {limit} bytes, which is all that there is room for");
            return Err(SpoolError::Body(io::Error::other(text)));
        }
        self.len += len;
        Ok(Body::Spool { offset, len })
    }

    pub(crate) fn open(&self, offset: u64, len: u64) -> Piece<'_> {
        let file = self.file.get_ref();
        Piece { file, offset, len }
    }
}

/// Knows whether it was the reader that failed.
struct Watched<R> {
    inner: R,
    has_failed: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf);
        let interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
        self.has_failed = read.as_ref().is_err_and(|error| !interrupted(error));
        read
    }
}
