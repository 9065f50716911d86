//! A reader with a position of its own over a descriptor that others read too.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Reads a shared file at a private offset, so that several readers, in several threads or processes, do not
/// move each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Positioned<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> Positioned<'a> {
    /// Starts at the beginning of `file`.
    #[must_use]
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::pread(self.file, buffer, self.offset)?;
        self.offset += u64::try_from(count).unwrap_or_default();
        Ok(count)
    }
}

impl Seek for Positioned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.offset.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.offset = moved.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn two_readers_do_not_disturb_each_other() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut first, mut second) = (Positioned::new(&file), Positioned::new(&file));
        let mut bytes = [0; 4];
        first.read_exact(&mut bytes).unwrap();
        second.seek(SeekFrom::End(-4)).unwrap();
        second.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"6789");
        first.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"4567");
        assert!(first.seek(SeekFrom::Current(-9)).is_err());
    }
}
