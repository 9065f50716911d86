//! Writing a tree into an archive: its records in order, and the bodies from wherever they are.

use std::fs::File;
use std::io::{self, Read, Write};

use crate::cpio::{Archive, Attributes, CpioError, Link, io_error};

use super::node::{Body, Kind, Meaning, Name, Node, Shared};
use super::spool::Spool;
use super::store::StoreError;
use super::stream::Piece;
use super::tree::{Tree, readable};

/// Writes a tree into an archive, in path order, under a prefix such as `rootfs`.
pub(crate) fn write_tree<W: Write>(
    tree: &mut Tree,
    spool: &Spool,
    prefix: &[u8],
    archive: &mut Archive<W>,
) -> Result<(), CpioError> {
    if !prefix.is_empty() {
        archive.directory(prefix, tree.root())?;
    }
    let mut emitter = Emitter {
        tree,
        spool,
        archive,
    };
    let mut after = Vec::new();
    loop {
        let names = emitter.tree.names_behind(&after);
        let names = names.map_err(|error| unreadable(prefix, error))?;
        for (key, name) in &names {
            let path = [prefix, &readable(key)].concat();
            emitter.name(path.strip_prefix(b"/").unwrap_or(&path), name)?;
        }
        match names.into_iter().next_back() {
            Some((last, _)) => after = last,
            None => return Ok(()),
        }
    }
}

struct Emitter<'t, W> {
    tree: &'t mut Tree,
    spool: &'t Spool,
    archive: &'t mut Archive<W>,
}

impl<W: Write> Emitter<'_, W> {
    fn name(&mut self, path: &[u8], name: &[u8]) -> Result<(), CpioError> {
        let failed = |error| unreadable(path, error);
        match Name::decode(name).map_err(failed)?.meaning {
            Meaning::Node(node) => self.node(path, &node, None),
            Meaning::Shared(number) => {
                let new_inode = || self.archive.reserve_inode();
                let shared = self.tree.write_shared(number, new_inode).map_err(failed)?;
                self.node(path, &shared.node, Some(&shared))
            }
        }
    }

    fn node(
        &mut self,
        path: &[u8],
        Node { attributes, kind }: &Node,
        shared: Option<&Shared>,
    ) -> Result<(), CpioError> {
        let attributes = *attributes;
        match (kind, shared) {
            (Kind::Directory, _) => self.archive.directory(path, attributes),
            (Kind::Symlink(target), _) => self.archive.symlink(path, attributes, target),
            (Kind::Special(special), _) => self.archive.special(path, attributes, *special),
            (Kind::File(body), None) => {
                let inode = self.archive.reserve_inode();
                self.file(path, attributes, Link { inode, names: 1 }, body)
            }
            (Kind::File(body), Some(shared)) => {
                let (inode, names) = (shared.inode, shared.names);
                let link = Link { inode, names };
                match shared.written < names {
                    true => self.archive.link(path, attributes, link),
                    false => self.file(path, attributes, link, body),
                }
            }
        }
    }

    /// The last name of a file, with its body.
    fn file(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        link: Link,
        body: &Body,
    ) -> Result<(), CpioError> {
        let failed = |source| io_error(path, source);
        let len = body.len();
        let mut write =
            |reader: &mut dyn Read| self.archive.last_link(path, attributes, link, len, reader);
        match body {
            Body::Spool { offset, len } => write(&mut self.spool.open(*offset, *len)),
            Body::Archive { offset, len } => {
                let file = self.tree.archive();
                let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
                let (offset, len) = (*offset, *len);
                write(&mut Piece { file, offset, len })
            }
            Body::Host { path: host, .. } => write(&mut File::open(host).map_err(failed)?),
        }
    }
}

fn unreadable(path: &[u8], error: StoreError) -> CpioError {
    io_error(path, io::Error::other(error))
}
