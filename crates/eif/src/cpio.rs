//! Writes cpio archives in the newc format that Linux unpacks as its initial RAM file system.
//!
//! The bytes depend on the entries alone: inode numbers count up from one, all times are one given value,
//! device numbers of the archive's file system are zero. The caller supplies entries in path order, parents
//! first. Bodies are streamed. The archive is padded to 4096 bytes: some firmware places an initial RAM
//! disk flush against the top of memory, and a whole number of pages keeps clear of its tables.
//!
//! Files with several names share one inode number; the last name carries the data, as the format has it.
//! Extended attributes cannot be represented.

use std::io::{self, Read, Write};

/// The archive's length is a multiple of this many bytes (a page).
pub const ALIGNMENT: u64 = 4096;

/// What a body is copied through (bytes).
const BUFFER: usize = 64 << 10;

/// Padding, as much as there ever is: [`ALIGNMENT`].
const ZEROS: [u8; 4096] = [0; 4096];

const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpioError {
    /// The archive could not be written or a body not be read.
    #[error("cannot write {path} into the archive")]
    Io {
        /// The entry's path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A body has another length than announced.
    #[error(
        "{path} has {found} bytes, {expected} were announced; it changed while it was read, try again"
    )]
    BodyLength {
        /// The entry's path.
        path: String,
        /// Announced.
        expected: u64,
        /// Read.
        found: u64,
    },
    /// A field has no room for its value.
    #[error(
        "{path}: {field} {value} does not fit the archive's 32 bits; leave this file out of the image"
    )]
    Field {
        /// The entry's path.
        path: String,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A path that Linux would not unpack.
    #[error(
        "the path {path:?} is empty, absolute, has a NUL or is longer than 4095 bytes; rename it"
    )]
    Path {
        /// The path.
        path: String,
    },
}

/// Owner and permissions of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits included; the file type is added by the writer.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Attributes {
    /// Root's, with these permissions.
    pub fn root(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
        }
    }
}

/// What a special file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// One name of a file that has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// What [`Archive::reserve_inode`] returned for the file.
    pub inode: u32,
    /// How many names it has.
    pub names: u32,
}

/// A newc archive being written.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    position: u64,
    next_inode: u32,
    mtime: u32,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<W> {
    /// Starts an archive whose entries all have the modification time `mtime`, in seconds since 1970.
    pub fn new(out: W, mtime: u32) -> Self {
        Self {
            out,
            position: 0,
            next_inode: 1,
            mtime,
            buffer: Vec::new(),
        }
    }

    /// A directory.
    ///
    /// # Errors
    /// [`CpioError`]; so for all entries.
    pub fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), CpioError> {
        let inode = self.reserve_inode();
        self.entry(
            path,
            S_IFDIR,
            attributes,
            Link { inode, names: 2 },
            (0, 0),
            0,
        )
    }

    /// A regular file with one name, its body read from `body`.
    ///
    /// # Errors
    /// [`CpioError`]; [`CpioError::BodyLength`] when `body` does not yield exactly `len` bytes.
    pub fn file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        len: u64,
        body: &mut dyn Read,
    ) -> Result<(), CpioError> {
        let inode = self.reserve_inode();
        self.last_link(path, attributes, Link { inode, names: 1 }, len, body)
    }

    /// Reserves the inode number of a file with several names, before the first of them is written.
    pub fn reserve_inode(&mut self) -> u32 {
        let inode = self.next_inode;
        self.next_inode = inode.wrapping_add(1);
        inode
    }

    /// A name, not the last, of a file with several.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn link(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        link: Link,
    ) -> Result<(), CpioError> {
        self.entry(path, S_IFREG, attributes, link, (0, 0), 0)
    }

    /// The last name of a file with several, with its body.
    ///
    /// # Errors
    /// As [`Archive::file`].
    pub fn last_link(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        link: Link,
        len: u64,
        body: &mut dyn Read,
    ) -> Result<(), CpioError> {
        self.entry(path, S_IFREG, attributes, link, (0, 0), len)?;
        let found = self.copy(len, body).map_err(|e| io_error(path, e))?;
        if found != len {
            return Err(CpioError::BodyLength {
                path: lossy(path),
                expected: len,
                found,
            });
        }
        self.position += len;
        self.pad(4).map_err(|e| io_error(path, e))
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn symlink(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        target: &[u8],
    ) -> Result<(), CpioError> {
        let inode = self.reserve_inode();
        let len = u64::try_from(target.len()).unwrap_or(u64::MAX);
        self.entry(
            path,
            S_IFLNK,
            attributes,
            Link { inode, names: 1 },
            (0, 0),
            len,
        )?;
        self.write(target)
            .and_then(|()| self.pad(4))
            .map_err(|e| io_error(path, e))
    }

    /// A device, pipe or socket.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn special(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        special: Special,
    ) -> Result<(), CpioError> {
        let inode = self.reserve_inode();
        let (kind, device) = match special {
            Special::Character { major, minor } => (S_IFCHR, (major, minor)),
            Special::Block { major, minor } => (S_IFBLK, (major, minor)),
            Special::Fifo => (S_IFIFO, (0, 0)),
            Special::Socket => (S_IFSOCK, (0, 0)),
        };
        self.entry(path, kind, attributes, Link { inode, names: 1 }, device, 0)
    }

    /// Writes the trailer and the padding and returns the output.
    ///
    /// # Errors
    /// [`CpioError::Io`].
    pub fn finish(mut self) -> Result<W, CpioError> {
        const TRAILER: &[u8] = b"TRAILER!!!";
        self.mtime = 0;
        self.entry(
            TRAILER,
            0,
            Attributes::root(0),
            Link { inode: 0, names: 1 },
            (0, 0),
            0,
        )?;
        self.pad(ALIGNMENT).map_err(|e| io_error(TRAILER, e))?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: u32,
        attributes: Attributes,
        link: Link,
        device: (u32, u32),
        len: u64,
    ) -> Result<(), CpioError> {
        check_path(path)?;
        let len = u32::try_from(len).map_err(|_| CpioError::Field {
            path: lossy(path),
            field: "length",
            value: len,
        })?;
        let Attributes { mode, uid, gid } = attributes;
        let name_len = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let mode = kind | (mode & 0o7777);
        let fields = [
            link.inode, mode, uid, gid, link.names, self.mtime, len, 0, 0, device.0, device.1,
            name_len, 0,
        ];
        let mut bytes = b"070701".to_vec();
        fields.iter().for_each(|field| push_hex(&mut bytes, *field));
        bytes.extend_from_slice(path);
        bytes.push(0);
        self.write(&bytes)
            .and_then(|()| self.pad(4))
            .map_err(|e| io_error(path, e))
    }

    /// Copies a body of `len` bytes and returns how many there are, up to one more.
    fn copy(&mut self, len: u64, body: &mut dyn Read) -> io::Result<u64> {
        self.buffer.resize(BUFFER, 0);
        let mut found = 0;
        while found <= len {
            let want = usize::try_from(len - found + 1).map_or(BUFFER, |want| want.min(BUFFER));
            let read = match body.read(&mut self.buffer[..want]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.out.write_all(&self.buffer[..read])?;
            found += u64::try_from(read).unwrap_or(u64::MAX);
        }
        Ok(found)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn pad(&mut self, align: u64) -> io::Result<()> {
        let end = self.position.next_multiple_of(align);
        let missing = usize::try_from(end - self.position).unwrap_or(ZEROS.len());
        self.out.write_all(&ZEROS[..missing.min(ZEROS.len())])?;
        self.position = end;
        Ok(())
    }
}

/// Eight hexadecimal digits.
fn push_hex(bytes: &mut Vec<u8>, value: u32) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |shift: u32| DIGITS[usize::from((value >> shift).to_le_bytes()[0] & 0xf)];
    bytes.extend((0..8).rev().map(|place| digit(4 * place)));
}

fn check_path(path: &[u8]) -> Result<(), CpioError> {
    let bad = path.is_empty() || path.len() > 4095 || path[0] == b'/' || path.contains(&0);
    if bad {
        return Err(CpioError::Path { path: lossy(path) });
    }
    Ok(())
}

pub(crate) fn io_error(path: &[u8], source: io::Error) -> CpioError {
    CpioError::Io {
        path: lossy(path),
        source,
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
