//! Ramdisks: what a kernel would unpack at boot, unpacked beforehand.
//!
//! A ramdisk is a sequence of members with zero bytes between them, each a newc cpio archive or one packed
//! by gzip, zstd, xz or lz4 (Linux's `Documentation/driver-api/early-userspace/buffer-format.rst`). The
//! output is the same archives unpacked, each starting at a multiple of four as cpio's own alignment needs.

use std::io::{self, BufRead, BufWriter, Read, Write};

use crate::packing::{Limited, is_limit};

pub use crate::packing::Packing;

/// How many bytes at a member's start [`Packing::of`] looks at.
pub const MAGIC_LEN: u64 = 6;

/// Length of a newc entry's header.
pub(crate) const ENTRY_HEADER: usize = 110;

/// Longest path in an archive, `PATH_MAX` of Linux with its NUL.
pub(crate) const MAX_PATH: u64 = 4096;

/// What is gathered before it is written (bytes): headers and names are short and many.
const BUFFER: usize = 64 << 10;

/// Name of the entry that ends an archive.
pub(crate) const TRAILER: &[u8] = b"TRAILER!!!\0";

/// Why a ramdisk was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamdiskError {
    /// A member starts with unknown bytes.
    #[error(
        "the ramdisk has {found:02x?} at offset {offset}, expected a newc cpio archive or one packed by \
         gzip, zstd, xz or lz4; build the image again"
    )]
    Packing {
        /// Offset in the packed data, or in the unpacked data when a packed member does not hold an archive.
        offset: u64,
        /// First bytes.
        found: Vec<u8>,
    },
    /// There is nothing in it.
    #[error("the ramdisk is empty, expected a cpio archive; build the image again")]
    Empty,
    /// An archive's entry is malformed.
    #[error("the archive's entry at offset {offset} has no valid {field}; build the image again")]
    Entry {
        /// Offset of the entry in its archive.
        offset: u64,
        /// What is wrong in it.
        field: &'static str,
    },
    /// The data ends inside a member.
    #[error("the ramdisk is truncated: it ends inside an archive; copy or build the image again")]
    Truncated,
    /// It does not unpack, or cannot be read or written.
    #[error("the ramdisk does not unpack")]
    Io(#[source] io::Error),
    /// It unpacks to more than is allowed.
    #[error(
        "the ramdisk unpacks to more than {limit} bytes; give the enclave more memory or the image less"
    )]
    TooLarge {
        /// The limit.
        limit: u64,
    },
}

/// Unpacks a whole ramdisk into memory.
///
/// # Errors
/// See [`RamdiskError`].
pub fn unpack(mut packed: &[u8], limit: u64) -> Result<Vec<u8>, RamdiskError> {
    let mut out = Vec::new();
    unpack_to(&mut packed, &mut out, limit)?;
    Ok(out)
}

/// Unpacks a whole ramdisk from `reader` into `out` and returns how many bytes that were: a multiple of
/// four, and of no more than `limit`.
///
/// # Errors
/// See [`RamdiskError`]. What was written until then stays written.
pub fn unpack_to<R: BufRead, W: Write>(
    reader: &mut R,
    out: &mut W,
    limit: u64,
) -> Result<u64, RamdiskError> {
    let mut out = Limited::new(BufWriter::with_capacity(BUFFER, out), limit);
    let unpacked = unpack_members(reader, &mut out);
    let flushed = out.flush().map_err(RamdiskError::Io);
    unpacked.and(flushed).map_err(|error| match error {
        RamdiskError::Io(error) if is_limit(&error) => RamdiskError::TooLarge { limit },
        RamdiskError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            RamdiskError::Truncated
        }
        error => error,
    })?;
    Ok(out.written)
}

fn unpack_members<R: BufRead, W: Write>(
    reader: &mut R,
    out: &mut Limited<W>,
) -> Result<(), RamdiskError> {
    let mut reader = Counted {
        inner: reader,
        read: 0,
    };
    let mut members = 0;
    while skip_zeros(&mut reader)? {
        unpack_member(&mut reader, out)?;
        out.pad(4).map_err(RamdiskError::Io)?;
        members += 1;
    }
    match members {
        0 => Err(RamdiskError::Empty),
        _ => Ok(()),
    }
}

fn unpack_member<R: BufRead, W: Write>(
    reader: &mut Counted<R>,
    out: &mut Limited<W>,
) -> Result<(), RamdiskError> {
    let offset = reader.read;
    let mut head = Vec::new();
    reader
        .take(MAGIC_LEN)
        .read_to_end(&mut head)
        .map_err(RamdiskError::Io)?;
    let packing = Packing::of(&head);
    let mut member = Counted {
        inner: head.as_slice().chain(reader),
        read: 0,
    };
    match packing {
        Some(Packing::Newc) => copy_archive(&mut member, out),
        Some(packing) => packing.unpack(&mut member, out).map_err(RamdiskError::Io),
        None => Err(RamdiskError::Packing {
            offset,
            found: head,
        }),
    }
}

/// Copies one archive up to and including its trailer.
fn copy_archive<R: BufRead, W: Write>(
    reader: &mut Counted<R>,
    out: &mut Limited<W>,
) -> Result<(), RamdiskError> {
    loop {
        let offset = reader.read;
        let mut header = [0; ENTRY_HEADER];
        reader.read_exact(&mut header).map_err(RamdiskError::Io)?;
        if Packing::of(&header) != Some(Packing::Newc) {
            return Err(RamdiskError::Entry {
                offset,
                field: "magic",
            });
        }
        let number = |at: usize| hex_field(&header[at..at + 8]);
        let body = number(54).ok_or(RamdiskError::Entry {
            offset,
            field: "file size",
        })?;
        let name = number(94).filter(|len| (1..=MAX_PATH).contains(len));
        let name = name.ok_or(RamdiskError::Entry {
            offset,
            field: "name length",
        })?;
        out.write_all(&header).map_err(RamdiskError::Io)?;
        let name = read_exactly(reader, name)?;
        out.write_all(&name).map_err(RamdiskError::Io)?;
        copy_padding(reader, out)?;
        copy_exactly(reader, out, body)?;
        if name == TRAILER {
            return Ok(());
        }
        copy_padding(reader, out)?;
    }
}

/// Copies what is missing to a multiple of four in the archive.
fn copy_padding<R: BufRead, W: Write>(
    reader: &mut Counted<R>,
    out: &mut Limited<W>,
) -> Result<(), RamdiskError> {
    let missing = reader.read.next_multiple_of(4) - reader.read;
    copy_exactly(reader, out, missing)
}

/// Hands the reader's own buffer to the writer: bodies are most of a ramdisk and pass without a copy.
pub(crate) fn copy_exactly<R: BufRead, W: Write>(
    reader: &mut R,
    out: &mut W,
    len: u64,
) -> Result<(), RamdiskError> {
    let mut left = len;
    while left > 0 {
        let buffer = reader.fill_buf().map_err(RamdiskError::Io)?;
        if buffer.is_empty() {
            return Err(RamdiskError::Truncated);
        }
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        out.write_all(&buffer[..count]).map_err(RamdiskError::Io)?;
        reader.consume(count);
        left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
    }
    Ok(())
}

pub(crate) fn read_exactly<R: BufRead>(reader: &mut R, len: u64) -> Result<Vec<u8>, RamdiskError> {
    let mut bytes = Vec::new();
    copy_exactly(reader, &mut bytes, len)?;
    Ok(bytes)
}

/// Skips the zeros between members; false at the end of the data.
pub(crate) fn skip_zeros<R: BufRead>(reader: &mut R) -> Result<bool, RamdiskError> {
    loop {
        let buffer = reader.fill_buf().map_err(RamdiskError::Io)?;
        if buffer.is_empty() {
            return Ok(false);
        }
        let zeros = buffer.iter().take_while(|b| **b == 0).count();
        let more = zeros < buffer.len();
        reader.consume(zeros);
        if more {
            return Ok(true);
        }
    }
}

/// Eight hexadecimal digits, as Linux reads them.
pub(crate) fn hex_field(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// Counts what was consumed.
#[derive(Debug)]
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.read += u64::try_from(read).unwrap_or(u64::MAX);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.read += u64::try_from(amount).unwrap_or(u64::MAX);
    }
}
