//! What is in a ramdisk, name by name: what two images are compared by.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread;

use aws_lc_rs::digest::{Context, SHA256};

use crate::ramdisk::{
    ENTRY_HEADER, MAX_PATH, RamdiskError, TRAILER, copy_exactly, hex_field, read_exactly,
    skip_zeros, unpack_to,
};

const TYPE_MASK: u32 = 0o170_000;
const TYPE_REGULAR: u32 = 0o100_000;

/// Most entries that a listing holds: as many as a builder accepts in one layer.
const MAX_ENTRIES: usize = 4 << 20;

/// One file of a ramdisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Type and permissions, as in `stat`.
    pub mode: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u32,
    /// Major and minor number of a device file.
    pub device: (u32, u32),
    /// Length in bytes: of a file's content, of a symbolic link's target.
    pub len: u64,
    /// SHA-256 of the content.
    pub digest: [u8; 32],
}

/// Lists a ramdisk, packed or not, by path. Of several entries with one path the last counts, as it does when
/// Linux unpacks it; names of one file all have its content.
///
/// # Errors
/// See [`RamdiskError`]; `limit` is that of [`unpack_to`].
pub fn list<R: BufRead + Send>(
    reader: &mut R,
    limit: u64,
) -> Result<BTreeMap<Vec<u8>, Entry>, RamdiskError> {
    let (plain, mut sink) = io::pipe().map_err(RamdiskError::Io)?;
    thread::scope(|scope| {
        let unpacking = scope.spawn(move || unpack_to(reader, &mut sink, limit));
        let listed = list_plain(&mut BufReader::with_capacity(256 << 10, plain));
        let panicked = |_| RamdiskError::Io(io::Error::other("the unpacking thread panicked"));
        // Why it did not unpack says more than what its reader made of the half that came.
        match unpacking.join().map_err(panicked)? {
            Err(RamdiskError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => listed,
            Err(error) => Err(error),
            Ok(_) => listed,
        }
    })
}

/// Entries of one archive that share an inode share its content, which only the last of them carries.
type Links = BTreeMap<u32, (Vec<Vec<u8>>, Option<(u64, [u8; 32])>)>;

fn list_plain<R: BufRead>(reader: &mut R) -> Result<BTreeMap<Vec<u8>, Entry>, RamdiskError> {
    let mut entries = BTreeMap::new();
    while skip_zeros(reader)? {
        let mut links = Links::new();
        let mut offset = 0;
        while let Some((name, header)) = next(reader, &mut offset)? {
            let digest = hash(reader, header.entry.len, &mut offset)?;
            let entry = Entry {
                digest,
                ..header.entry
            };
            if header.names > 1 && entry.mode & TYPE_MASK == TYPE_REGULAR {
                let link = links.entry(header.inode).or_default();
                link.0.push(name.clone());
                if entry.len > 0 {
                    link.1 = Some((entry.len, digest));
                }
            }
            entries.insert(name, entry);
            if entries.len() > MAX_ENTRIES {
                return Err(RamdiskError::Entry {
                    offset,
                    field: "place in a list this long",
                });
            }
        }
        for (names, content) in links.into_values() {
            let Some((len, digest)) = content else {
                continue;
            };
            for name in names {
                if let Some(entry) = entries.get_mut(&name) {
                    (entry.len, entry.digest) = (len, digest);
                }
            }
        }
    }
    Ok(entries)
}

struct Header {
    entry: Entry,
    inode: u32,
    names: u32,
}

/// The next entry, up to its body; `None` at the archive's trailer.
fn next<R: BufRead>(
    reader: &mut R,
    offset: &mut u64,
) -> Result<Option<(Vec<u8>, Header)>, RamdiskError> {
    let mut bytes = [0; ENTRY_HEADER];
    reader.read_exact(&mut bytes).map_err(cut_off)?;
    let (header, name_len) = parse(&bytes, *offset)?;
    let mut name = read_exactly(reader, name_len)?;
    *offset += u64::try_from(ENTRY_HEADER).unwrap_or_default() + name_len;
    skip_padding(reader, offset)?;
    if name == TRAILER {
        // A trailer's body would belong to nothing.
        hash(reader, header.entry.len, offset)?;
        return Ok(None);
    }
    name.pop();
    Ok(Some((name, header)))
}

/// The header of the entry at `offset`, and the length of the name that follows, its NUL included.
fn parse(header: &[u8; ENTRY_HEADER], offset: u64) -> Result<(Header, u64), RamdiskError> {
    let field = |index: usize, field| {
        let start = 6 + 8 * index;
        hex_field(&header[start..start + 8])
            .and_then(|value| u32::try_from(value).ok())
            .ok_or(RamdiskError::Entry { offset, field })
    };
    let entry = Entry {
        mode: field(1, "mode")?,
        uid: field(2, "user")?,
        gid: field(3, "group")?,
        mtime: field(5, "time")?,
        len: field(6, "file size")?.into(),
        device: (field(9, "device")?, field(10, "device")?),
        digest: [0; 32],
    };
    let header = Header {
        entry,
        inode: field(0, "inode")?,
        names: field(4, "number of names")?,
    };
    let name_len = u64::from(field(11, "name length")?);
    match (1..=MAX_PATH).contains(&name_len) {
        true => Ok((header, name_len)),
        false => Err(RamdiskError::Entry {
            offset,
            field: "name length",
        }),
    }
}

/// What is written to it is hashed.
struct Hasher(Context);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// SHA-256 of a body, and the padding behind it.
fn hash<R: BufRead>(reader: &mut R, len: u64, offset: &mut u64) -> Result<[u8; 32], RamdiskError> {
    let mut hasher = Hasher(Context::new(&SHA256));
    copy_exactly(reader, &mut hasher, len)?;
    *offset += len;
    skip_padding(reader, offset)?;
    let mut digest = [0; 32];
    digest.copy_from_slice(hasher.0.finish().as_ref());
    Ok(digest)
}

fn skip_padding<R: BufRead>(reader: &mut R, offset: &mut u64) -> Result<(), RamdiskError> {
    let missing = offset.next_multiple_of(4) - *offset;
    io::copy(&mut reader.take(missing), &mut io::sink()).map_err(RamdiskError::Io)?;
    *offset += missing;
    Ok(())
}

fn cut_off(error: io::Error) -> RamdiskError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => RamdiskError::Truncated,
        _ => RamdiskError::Io(error),
    }
}
