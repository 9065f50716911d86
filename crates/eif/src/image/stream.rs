//! Readers for archives: hashed on the way, skimmed for their headers, or a piece at a time.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use aws_lc_rs::digest::{Algorithm, Digest};

use crate::hashing::{CHUNK, Chunk, Chunks, HashThread};

/// Hashes what is read through it, on a thread of its own.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: HashThread,
    chunks: Chunks,
    current: Chunk,
    at: usize,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R, algorithm: &'static Algorithm) -> Self {
        Self {
            inner,
            hash: HashThread::start(algorithm),
            chunks: Chunks::default(),
            current: Arc::default(),
            at: 0,
        }
    }

    /// The digest of everything up to the end, which is read first.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.hash.finish()?.all)
    }
}

impl<R: Read> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() {
            let mut buffer = self.chunks.empty();
            let limit = u64::try_from(CHUNK).unwrap_or(u64::MAX);
            self.inner.by_ref().take(limit).read_to_end(&mut buffer)?;
            self.at = 0;
            self.current = self.chunks.share(buffer);
            self.hash.add(Arc::clone(&self.current))?;
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.current.len());
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }
}

/// An archive of which the headers are wanted: what is skipped is not read, and steps cost no system call.
pub(crate) struct Skim<'f> {
    file: &'f File,
    /// What was read last, and where it lies in the file.
    buffer: Vec<u8>,
    buffer_start: u64,
    position: u64,
    len: u64,
}

impl<'f> Skim<'f> {
    /// Headers are 512 bytes, and the next one is rarely in the same page.
    const BUFFER: usize = 4096;

    /// From the start of the file.
    pub(crate) fn new(mut file: &'f File) -> io::Result<Self> {
        Ok(Self {
            len: file.seek(SeekFrom::End(0))?,
            file,
            buffer: Vec::new(),
            buffer_start: 0,
            position: 0,
        })
    }

    /// What of the buffer is at the position and behind it.
    fn buffered(&self) -> &[u8] {
        let step = self.position.checked_sub(self.buffer_start);
        step.and_then(|step| self.buffer.get(usize::try_from(step).ok()?..))
            .unwrap_or_default()
    }
}

impl Read for Skim<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.buffered().is_empty() {
            self.buffer.resize(Self::BUFFER, 0);
            let read = self.file.read_at(&mut self.buffer, self.position);
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            self.buffer_start = self.position;
            read?;
        }
        let read = self.buffered().read(buf)?;
        self.position += u64::try_from(read).unwrap_or(u64::MAX);
        Ok(read)
    }
}

impl Seek for Skim<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => Some(to),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let to = to.ok_or(io::ErrorKind::InvalidInput)?;
        if to > self.len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside an entry",
            ));
        }
        self.position = to;
        Ok(to)
    }
}

/// A part of a file, read without moving the file's position.
pub(crate) struct Piece<'f> {
    pub(crate) file: &'f File,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.len).map_or(buf.len(), |len| len.min(buf.len()));
        if want == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buf[..want], self.offset)?;
        let count = u64::try_from(read).unwrap_or(u64::MAX);
        self.offset += count;
        self.len -= count;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use aws_lc_rs::digest::{SHA256, digest};

    use super::*;

    #[test]
    fn what_was_not_asked_for_is_hashed_too() {
        let data: Vec<u8> = (0..=250).cycle().take(CHUNK * 2 + 7).collect();
        let mut reader = Hashing::new(data.as_slice(), &SHA256);
        let mut head = [0; 300];
        reader.read_exact(&mut head).unwrap();
        assert_eq!(head, data[..300]);
        let found = reader.finish().unwrap();
        assert_eq!(found.as_ref(), digest(&SHA256, &data).as_ref());
    }

    #[test]
    fn skimming_and_pieces_find_what_is_there() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..=250).cycle().take(20_000).collect();
        file.write_all(&data).unwrap();
        let mut skim = Skim::new(&file).unwrap();
        for (step, at) in [(10, 10), (9000, 9020), (-8000, 1030), (5, 1045)] {
            assert_eq!(skim.seek(SeekFrom::Current(step)).unwrap(), at);
            let mut bytes = [0; 10];
            skim.read_exact(&mut bytes).unwrap();
            let at = usize::try_from(at).unwrap();
            assert_eq!(bytes, data[at..at + 10]);
        }
        assert!(skim.seek(SeekFrom::Current(20_000)).is_err());
        let mut piece = Vec::new();
        let (offset, len) = (15_000, 6_000);
        let file = &file;
        Piece { file, offset, len }.read_to_end(&mut piece).unwrap();
        assert_eq!(piece, data[15_000..]);
    }
}
