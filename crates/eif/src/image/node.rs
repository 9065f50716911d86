//! What a name in a [`Tree`](super::tree::Tree) stands for, and how it is kept in a [`Store`](super::store::Store).
//!
//! A record is a CBOR sequence: of fixed order, without lengths or names, since only this process reads it again.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use minicbor::{Decoder, Encoder};

use crate::cpio::{Attributes, Special};

use super::store::StoreError;

/// Where a file's body is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// In the spool file.
    Spool {
        /// Where it starts.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// In the archive that the tree is of, which is read in place.
    Archive {
        /// Where the body starts.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// In a file of the host.
    Host {
        /// The file.
        path: PathBuf,
        /// Its length when it was found.
        len: u64,
    },
}

impl Body {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Spool { len, .. } | Self::Archive { len, .. } | Self::Host { len, .. } => *len,
        }
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Body),
    Symlink(Vec<u8>),
    Special(Special),
}

/// A file of any kind, whatever its names are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// What has this name alone.
    Node(Node),
    /// One of the files with several names, by number.
    Shared(u64),
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// The layer that set it.
    pub(crate) layer: u32,
    pub(crate) meaning: Meaning,
}

/// A file with several names, or one that had several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) names: u32,
    /// How many of the names have been written into an archive, and under which inode number.
    pub(crate) written: u32,
    pub(crate) inode: u32,
    pub(crate) node: Node,
}

const SHARED: u8 = 0;
const DIRECTORY: u8 = 1;
const SPOOL: u8 = 2;
const ARCHIVE: u8 = 3;
const HOST: u8 = 4;
const SYMLINK: u8 = 5;
const CHARACTER: u8 = 6;
const BLOCK: u8 = 7;
const FIFO: u8 = 8;
const SOCKET: u8 = 9;

type Encoding = Result<(), minicbor::encode::Error<Infallible>>;

/// Writing to a vector cannot fail.
fn encoded(encode: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Encoding) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    match encode(&mut Encoder::new(&mut bytes)) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

impl Name {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encoded(|cbor| {
            cbor.u32(self.layer)?;
            match &self.meaning {
                Meaning::Shared(number) => cbor.u8(SHARED)?.u64(*number)?.ok(),
                Meaning::Node(node) => node.encode(cbor),
            }
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut cbor = Decoder::new(bytes);
        let layer = cbor.u32()?;
        let meaning = match cbor.u8()? {
            SHARED => Meaning::Shared(cbor.u64()?),
            tag => Meaning::Node(Node::decode(tag, &mut cbor)?),
        };
        Ok(Self { layer, meaning })
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(
            &self.meaning,
            Meaning::Node(Node {
                kind: Kind::Directory,
                ..
            })
        )
    }
}

impl Shared {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encoded(|cbor| {
            cbor.u32(self.names)?.u32(self.written)?.u32(self.inode)?;
            self.node.encode(cbor)
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut cbor = Decoder::new(bytes);
        Ok(Self {
            names: cbor.u32()?,
            written: cbor.u32()?,
            inode: cbor.u32()?,
            node: {
                let tag = cbor.u8()?;
                Node::decode(tag, &mut cbor)?
            },
        })
    }
}

impl Node {
    fn encode(&self, cbor: &mut Encoder<&mut Vec<u8>>) -> Encoding {
        let Attributes { mode, uid, gid } = self.attributes;
        let tag = match &self.kind {
            Kind::Directory => DIRECTORY,
            Kind::File(Body::Spool { .. }) => SPOOL,
            Kind::File(Body::Archive { .. }) => ARCHIVE,
            Kind::File(Body::Host { .. }) => HOST,
            Kind::Symlink(_) => SYMLINK,
            Kind::Special(Special::Character { .. }) => CHARACTER,
            Kind::Special(Special::Block { .. }) => BLOCK,
            Kind::Special(Special::Fifo) => FIFO,
            Kind::Special(Special::Socket) => SOCKET,
        };
        cbor.u8(tag)?.u32(mode)?.u32(uid)?.u32(gid)?;
        match &self.kind {
            Kind::Directory | Kind::Special(Special::Fifo | Special::Socket) => Ok(()),
            Kind::Symlink(target) => cbor.bytes(target)?.ok(),
            Kind::File(Body::Spool { offset, len } | Body::Archive { offset, len }) => {
                cbor.u64(*offset)?.u64(*len)?.ok()
            }
            Kind::File(Body::Host { path, len }) => {
                cbor.bytes(path.as_os_str().as_bytes())?.u64(*len)?.ok()
            }
            Kind::Special(
                Special::Character { major, minor } | Special::Block { major, minor },
            ) => cbor.u32(*major)?.u32(*minor)?.ok(),
        }
    }

    fn decode(tag: u8, cbor: &mut Decoder<'_>) -> Result<Self, StoreError> {
        let attributes = Attributes {
            mode: cbor.u32()?,
            uid: cbor.u32()?,
            gid: cbor.u32()?,
        };
        let kind = match tag {
            DIRECTORY => Kind::Directory,
            SPOOL => Kind::File(Body::Spool {
                offset: cbor.u64()?,
                len: cbor.u64()?,
            }),
            ARCHIVE => Kind::File(Body::Archive {
                offset: cbor.u64()?,
                len: cbor.u64()?,
            }),
            HOST => Kind::File(Body::Host {
                path: OsString::from_vec(cbor.bytes()?.to_vec()).into(),
                len: cbor.u64()?,
            }),
            SYMLINK => Kind::Symlink(cbor.bytes()?.to_vec()),
            CHARACTER => Kind::Special(Special::Character {
                major: cbor.u32()?,
                minor: cbor.u32()?,
            }),
            BLOCK => Kind::Special(Special::Block {
                major: cbor.u32()?,
                minor: cbor.u32()?,
            }),
            FIFO => Kind::Special(Special::Fifo),
            SOCKET => Kind::Special(Special::Socket),
            _ => return Err(StoreError::Damaged),
        };
        Ok(Self { attributes, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_node_is_found_as_it_was_stored() {
        let (offset, len, major, minor) = (u64::MAX, 1 << 40, 7, u32::MAX);
        let kinds = [
            Kind::Directory,
            Kind::File(Body::Spool { offset, len }),
            Kind::File(Body::Archive { offset, len }),
            Kind::File(Body::Host {
                path: OsString::from_vec(vec![b'/', 0xff]).into(),
                len,
            }),
            Kind::Symlink(b"../\xff".to_vec()),
            Kind::Special(Special::Character { major, minor }),
            Kind::Special(Special::Block { major, minor }),
            Kind::Special(Special::Fifo),
            Kind::Special(Special::Socket),
        ];
        for kind in kinds {
            let attributes = Attributes {
                mode: 0o4755,
                uid: u32::MAX,
                gid: 1,
            };
            let node = Node { attributes, kind };
            let shared = Shared {
                names: 3,
                written: 2,
                inode: u32::MAX,
                node: node.clone(),
            };
            assert_eq!(Shared::decode(&shared.encode()).unwrap(), shared);
            let meaning = Meaning::Node(node);
            let name = Name { layer: 9, meaning };
            assert_eq!(Name::decode(&name.encode()).unwrap(), name);
            let cut = name.encode();
            let damaged = Name::decode(&cut[..cut.len() - 1]);
            assert!(matches!(damaged, Err(StoreError::Damaged)));
        }
        let meaning = Meaning::Shared(u64::MAX);
        let name = Name { layer: 0, meaning };
        assert_eq!(Name::decode(&name.encode()).unwrap(), name);
    }
}
