//! Applying a tar archive to a [`Tree`]: a layer with its whiteouts, or a whole root file system.

use std::io::{self, BufRead, Read};

use tar::{Entries, Entry, EntryType};

use crate::cpio::{Attributes, Special};
use crate::packing::{Packing, XZ_MEMORY_KIB};

use super::allowance::{Allowance, content};
use super::error::ImageError;
use super::sparse::{Sparse, SparseHeader};
use super::spool::Spool;
use super::tree::{Body, Kind, MAX_FILE, PathError, Tree, cleaned};

/// Most bytes that one archive may unpack to: far above any enclave's memory, below what fills a disk
/// unnoticed.
pub(crate) const MAX_UNPACKED: u64 = 64 << 30;

/// Most entries that one archive may have.
const MAX_ENTRIES: u64 = 4 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of aufs, which the image specification reserves.
const RESERVED: &[u8] = b".wh..wh.";

/// What an archive is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    /// A layer: whiteouts are honoured, and bodies copied out of the stream.
    Layer,
    /// A whole file system in the file that its tree is over, which is read from its start: nothing is a whiteout, and
    /// bodies stay in the file.
    RootFs,
}

/// Reads a tar archive, packed or not.
pub(crate) fn unpacked<'r, R: BufRead + 'r>(mut reader: R) -> io::Result<Box<dyn Read + 'r>> {
    let packing = Packing::of(reader.fill_buf()?);
    Ok(match packing {
        Some(Packing::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Some(Packing::Zstd) => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        Some(Packing::Xz) => Box::new(lzma_rust2::XzReader::new_mem_limit(
            reader,
            true,
            XZ_MEMORY_KIB,
        )),
        _ => Box::new(reader),
    })
}

/// Applies an unpacked layer and reads it to its end. Adds to `lost` the paths whose extended attributes an initial RAM
/// file system cannot hold.
pub(crate) fn apply<R: Read>(
    name: &str,
    reader: R,
    tree: &mut Tree,
    spool: &mut Spool,
    lost: &mut Lost,
) -> Result<(), ImageError> {
    tree.begin_layer();
    let allowance = Allowance::new();
    let mut archive = tar::Archive::new(allowance.metered(reader.take(MAX_UNPACKED)));
    let applier = Applier {
        name,
        role: Role::Layer,
        tree,
        spool,
        lost,
    };
    let entries = archive.entries().map_err(ImageError::layer(name))?;
    applier.entries(entries, &allowance)?;
    drain(name, archive.into_inner().into_inner())
}

/// What is behind the end of an archive is read too, so that digests cover all of it.
fn drain<R: Read>(name: &str, mut rest: io::Take<R>) -> Result<(), ImageError> {
    io::copy(&mut rest, &mut io::sink()).map_err(ImageError::layer(name))?;
    within(name, &rest)
}

/// Refuses an archive of which [`MAX_UNPACKED`] bytes, or more, were there to be read.
pub(crate) fn within<R>(name: &str, read: &io::Take<R>) -> Result<(), ImageError> {
    if read.limit() > 0 {
        return Ok(());
    }
    Err(ImageError::TooLarge {
        name: name.to_owned(),
        len: MAX_UNPACKED,
        limit: MAX_UNPACKED,
    })
}

/// Puts an archive's entries into a tree.
pub(crate) struct Applier<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: Role,
    pub(crate) tree: &'a mut Tree,
    pub(crate) spool: &'a mut Spool,
    pub(crate) lost: &'a mut Lost,
}

impl Applier<'_> {
    pub(crate) fn entries<R: Read>(
        mut self,
        mut entries: Entries<'_, R>,
        allowance: &Allowance,
    ) -> Result<(), ImageError> {
        let mut count = 0;
        while let Some(entry) = allowance.next(&mut entries) {
            let entry = entry.map_err(ImageError::layer(self.name))?;
            // In a file what nobody wants is not read but stepped over.
            let skipped = match self.role {
                Role::Layer => content(&entry),
                Role::RootFs => 0,
            };
            count += 1;
            if count > MAX_ENTRIES {
                let problem = format!("is one of over {MAX_ENTRIES}");
                return Err(ImageError::entry(self.name, b"", problem));
            }
            self.entry(entry)?;
            allowance.headers(skipped);
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), ImageError> {
        // Records for all that follows, which runtimes do not heed.
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let Extensions { are_lost, sparse } =
            extensions(&mut entry).map_err(ImageError::layer(self.name))?;
        let named = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = named.unwrap_or_else(|| entry.path_bytes().into_owned());
        if matches!(self.role, Role::Layer) && self.whiteout(&path)? {
            return Ok(());
        }
        if are_lost {
            self.lost.note(&path);
        }
        let size = sparse
            .as_ref()
            .map_or_else(|| entry.size(), |sparse| sparse.size);
        if size > MAX_FILE {
            let problem =
                format!("has {size} bytes, a file in an enclave image has at most {MAX_FILE}");
            return Err(ImageError::entry(self.name, &path, problem));
        }
        match sparse {
            Some(sparse) => self.sparse(entry, &path, sparse),
            None => self.plain(entry, &path),
        }
    }

    fn sparse<R: Read>(
        &mut self,
        mut entry: Entry<'_, R>,
        path: &[u8],
        sparse: Sparse,
    ) -> Result<(), ImageError> {
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::Regular | EntryType::Continuous) {
            let problem = "is no file, but has the records of a sparse one";
            return Err(ImageError::entry(self.name, path, problem));
        }
        let failed = ImageError::layer(self.name);
        let attributes = attributes(&entry).map_err(&failed)?;
        let mut body = sparse.expanded(&mut entry).map_err(&failed)?;
        let stored = self.spool.store(&mut body);
        let kind = Kind::File(stored.map_err(ImageError::spool(self.name))?);
        self.check(path, |tree| tree.set(path, attributes, kind))
    }

    fn plain<R: Read>(&mut self, mut entry: Entry<'_, R>, path: &[u8]) -> Result<(), ImageError> {
        let attributes = attributes(&entry).map_err(ImageError::layer(self.name))?;
        let kind = match entry.header().entry_type() {
            EntryType::Directory => {
                return self.check(path, |tree| tree.directory(path, attributes));
            }
            EntryType::Link => {
                let target = self.link_name(&entry, path)?;
                return self.check(path, |tree| tree.link(path, &target));
            }
            EntryType::Symlink => Kind::Symlink(self.link_name(&entry, path)?),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // Archives from before there was a type for directories mark them by a slash at the end of the name.
                if path.ends_with(b"/") && has_no_type(&entry) {
                    return self.check(path, |tree| tree.directory(path, attributes));
                }
                Kind::File(self.body(&mut entry)?)
            }
            other => Kind::Special(self.special(&entry, path, other)?),
        };
        self.check(path, |tree| tree.set(path, attributes, kind))
    }

    fn body<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<Body, ImageError> {
        match self.role {
            Role::RootFs if entry.header().entry_type() != EntryType::GNUSparse => {
                Ok(Body::Archive {
                    offset: entry.raw_file_position(),
                    len: entry.size(),
                })
            }
            _ => self
                .spool
                .store(entry)
                .map_err(ImageError::spool(self.name)),
        }
    }

    /// Whether the path is a whiteout, applied. Its name says so, not its type.
    fn whiteout(&mut self, path: &[u8]) -> Result<bool, ImageError> {
        let path = &self.check(path, |_| cleaned(path))?;
        let start = path
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(start);
        if name == OPAQUE {
            self.check(path, |tree| tree.opaque(parent))?;
        } else if path.split(|b| *b == b'/').any(|c| c.starts_with(RESERVED)) {
            // aufs's own bookkeeping, which means nothing to anyone else.
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(ImageError::entry(
                    self.name,
                    path,
                    "is a whiteout of nothing",
                ));
            }
            let hidden = [parent, hidden].concat();
            self.check(path, |tree| tree.whiteout(&hidden))?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn check<T>(
        &mut self,
        path: &[u8],
        apply: impl FnOnce(&mut Tree) -> Result<T, PathError>,
    ) -> Result<T, ImageError> {
        apply(self.tree).map_err(|error| ImageError::path(self.name, path, error))
    }

    fn link_name<R: Read>(&self, entry: &Entry<'_, R>, path: &[u8]) -> Result<Vec<u8>, ImageError> {
        let target = entry.link_name_bytes().filter(|target| !target.is_empty());
        let target = target.map(|target| target.into_owned());
        target.ok_or_else(|| ImageError::entry(self.name, path, "is a link to nothing"))
    }

    fn special<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        path: &[u8],
        kind: EntryType,
    ) -> Result<Special, ImageError> {
        match kind {
            EntryType::Fifo => return Ok(Special::Fifo),
            EntryType::Char | EntryType::Block => {}
            other => {
                let problem = format!("has the unknown type {:?}", char::from(other.as_byte()));
                return Err(ImageError::entry(self.name, path, problem));
            }
        }
        let failed = ImageError::layer(self.name);
        let major = entry.header().device_major().map_err(&failed)?.unwrap_or(0);
        let minor = entry.header().device_minor().map_err(&failed)?.unwrap_or(0);
        Ok(match kind {
            EntryType::Char => Special::Character { major, minor },
            _ => Special::Block { major, minor },
        })
    }
}

/// Files of which the extended attributes are lost. Their names would take memory as an archive likes it.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) count: u64,
    /// The first name in order.
    pub(crate) first: Option<String>,
}

impl Lost {
    fn note(&mut self, path: &[u8]) {
        self.count += 1;
        let path = String::from_utf8_lossy(path);
        if self.first.as_deref().is_none_or(|first| *path < *first) {
            self.first = Some(path.into_owned());
        }
    }
}

/// What an entry's extended headers say.
struct Extensions {
    /// Attributes that an initial RAM file system cannot hold.
    are_lost: bool,
    sparse: Option<Sparse>,
}

fn extensions<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Extensions> {
    let (mut are_lost, mut sparse) = (false, SparseHeader::default());
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let key = extension.key_bytes();
        are_lost |= key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"LIBARCHIVE.xattr.");
        sparse.note(key, extension.value_bytes())?;
    }
    let sparse = sparse.file()?;
    Ok(Extensions { are_lost, sparse })
}

/// Whether the header is of the oldest kind, which `tar` takes for a file's.
fn has_no_type<R: Read>(entry: &Entry<'_, R>) -> bool {
    entry.header().as_old().linkflag == [0]
}

fn attributes<R: Read>(entry: &Entry<'_, R>) -> io::Result<Attributes> {
    let header = entry.header();
    let id = |value: u64| {
        let message = "owner does not fit 32 bits";
        u32::try_from(value).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, message))
    };
    Ok(Attributes {
        mode: header.mode()? & 0o7777,
        uid: id(header.uid()?)?,
        gid: id(header.gid()?)?,
    })
}
