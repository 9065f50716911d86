//! A file system in memory: names, owners and modes here, file bodies elsewhere.
//!
//! Layers are applied to a [`Tree`] and never to the host's file system, so no path in a layer can reach
//! outside: symbolic links are followed inside the tree, and `..` in a link of either kind stops at its root. `..` in an
//! entry's own path takes out the name before it, whatever that is, as in runtimes; a path that would leave the root is
//! refused. Each name remembers the layer that set it, because a whiteout hides what lower layers put there and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use crate::cpio::{Archive, Attributes, CpioError, Link, Special};
use crate::hashing::CHUNK;

use super::stream::Piece;

/// Symbolic links followed on one path before it is refused, Linux's own limit.
const MAX_LINKS: usize = 40;

/// Longest name in a directory, Linux's own limit (bytes): a kernel that unpacks a longer one leaves the file out.
const MAX_NAME: usize = 255;

/// Longest target of a symbolic link (bytes), with the same reason.
const MAX_TARGET: usize = 4095;

/// Directories inside each other: as many one-letter names as fit half of Linux's `PATH_MAX`, so that the
/// recursions here stay shallow.
const MAX_DEPTH: usize = 1024;

/// Largest file (bytes): a newc archive has 32 bits for its length.
pub(crate) const MAX_FILE: u64 = u32::MAX as u64;

/// Most bytes of all files of an image: far above any enclave's memory, below what fills a disk unnoticed.
const MAX_SPOOL: u64 = 64 << 30;

/// Most memory that the tree itself may take (bytes, estimated): above a million files. A few kilobytes of an archive, packed, stand
/// for millions of directories inside each other.
const MAX_HELD: usize = 256 << 20;

/// What a name and its file take beside their texts (bytes): measured, and rounded up.
const NAME_COST: usize = 160;

/// What a directory takes as soon as it has a name in it (bytes): room for eleven.
const CHILDREN_COST: usize = 480;

/// Index of a node in its tree.
pub(crate) type NodeId = usize;

const ROOT: NodeId = 0;

/// Where a file's body is.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// In memory.
    Bytes(Vec<u8>),
    /// In the spool file.
    Spool {
        /// Where it starts.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// In an archive that is read in place.
    Archive {
        /// The archive.
        file: Arc<File>,
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
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::Spool { len, .. } | Self::Archive { len, .. } | Self::Host { len, .. } => *len,
        }
    }
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Directory,
    File(Body),
    Symlink(Vec<u8>),
    Special(Special),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    node: NodeId,
    /// The layer that set it.
    layer: usize,
}

#[derive(Debug, Clone)]
struct Node {
    attributes: Attributes,
    kind: Kind,
    /// Empty unless it is a directory.
    children: BTreeMap<Vec<u8>, Name>,
}

impl Node {
    fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    fn new(attributes: Attributes, kind: Kind) -> Self {
        Self {
            attributes,
            kind,
            children: BTreeMap::new(),
        }
    }
}

/// Why a path could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("leaves the image by `..` in its path")]
    Parent,
    #[error("names the root, which is no file")]
    Root,
    #[error("has a name of over {MAX_NAME} bytes in its path, which Linux has not")]
    LongName,
    #[error("is a symbolic link to over {MAX_TARGET} bytes, which Linux has not")]
    LongTarget,
    #[error("goes through a file that is no directory")]
    NotDirectory,
    #[error("goes through more than {MAX_LINKS} symbolic links")]
    Loop,
    #[error("is more than {MAX_DEPTH} directories deep")]
    TooDeep,
    #[error("names something that is not there")]
    Missing,
    #[error("links to a directory")]
    DirectoryTarget,
    #[error("is one too many: names, links and directories of an image take at most {} MiB of memory", MAX_HELD >> 20)]
    TooMany,
}

/// What to do about directories that a path goes through and that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absent {
    Make,
    Refuse,
}

/// A file system in memory.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: usize,
    /// Memory that all names and nodes take, those included that were replaced since, and how much they may.
    held: usize,
    limit: usize,
}

impl Tree {
    /// A root directory and nothing in it.
    pub(crate) fn new() -> Self {
        Self::limited(MAX_HELD)
    }

    /// One that takes no more than `limit` bytes of memory.
    fn limited(limit: usize) -> Self {
        Self {
            nodes: vec![Node::new(Attributes::root(0o755), Kind::Directory)],
            layer: 0,
            held: 0,
            limit,
        }
    }

    /// Makes room for a name in a directory, and for a link's target if there is one.
    fn hold(&mut self, parent: NodeId, name: &[u8], target: &[u8]) -> Result<(), PathError> {
        let children = match self.nodes[parent].children.is_empty() {
            true => CHILDREN_COST,
            false => 0,
        };
        let held = self.held + children + NAME_COST + name.len() + target.len();
        if held > self.limit {
            return Err(PathError::TooMany);
        }
        self.held = held;
        Ok(())
    }

    /// From here on, entries belong to the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// Sets a directory; one that exists keeps its content.
    pub(crate) fn directory(
        &mut self,
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), PathError> {
        let (parent, name) = match self.place(path, Absent::Make) {
            Err(PathError::Root) => {
                self.nodes[ROOT].attributes = attributes;
                return Ok(());
            }
            place => place?,
        };
        let layer = self.layer;
        let found = self.nodes[parent].children.get_mut(&name);
        let node = found.map(|found| {
            found.layer = layer;
            found.node
        });
        match node.filter(|node| self.nodes[*node].is_directory()) {
            Some(node) => self.nodes[node].attributes = attributes,
            None => {
                self.insert(parent, name, attributes, Kind::Directory)?;
            }
        }
        Ok(())
    }

    /// Sets anything but a directory, in place of whatever had the name.
    pub(crate) fn set(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        kind: Kind,
    ) -> Result<NodeId, PathError> {
        if matches!(&kind, Kind::Symlink(target) if target.len() > MAX_TARGET) {
            return Err(PathError::LongTarget);
        }
        let (parent, name) = self.place(path, Absent::Make)?;
        self.insert(parent, name, attributes, kind)
    }

    /// Gives the file at `target` one more name. `..` in the target stops at the root, which is the image's.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), PathError> {
        let (parent, name) = self.place(&[b"/", target].concat(), Absent::Refuse)?;
        let found = self.nodes[parent]
            .children
            .get(&name)
            .ok_or(PathError::Missing)?
            .node;
        self.link_node(path, found)
    }

    /// Gives a file one more name.
    pub(crate) fn link_node(&mut self, path: &[u8], node: NodeId) -> Result<(), PathError> {
        if self.nodes[node].is_directory() {
            return Err(PathError::DirectoryTarget);
        }
        let (parent, name) = self.place(path, Absent::Make)?;
        self.hold(parent, &name, b"")?;
        let layer = self.layer;
        self.nodes[parent]
            .children
            .insert(name, Name { node, layer });
        Ok(())
    }

    /// Hides what lower layers have at this path.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<(), PathError> {
        let (parent, name) = match self.place(path, Absent::Refuse) {
            Err(PathError::Missing | PathError::NotDirectory) => return Ok(()),
            place => place?,
        };
        let Some(found) = self.nodes[parent].children.get(&name).copied() else {
            return Ok(());
        };
        if self.hide(found) {
            self.nodes[parent].children.remove(&name);
        }
        Ok(())
    }

    /// Hides what lower layers have inside the directory at this path.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<(), PathError> {
        match self.walk(&components(path)?, Absent::Refuse, 0) {
            Err(PathError::Missing | PathError::NotDirectory) => Ok(()),
            directory => {
                self.hide_children(directory?);
                Ok(())
            }
        }
    }

    /// Whether something has this path; the last component is not followed.
    pub(crate) fn exists(&mut self, path: &[u8]) -> bool {
        match self.place(path, Absent::Refuse) {
            Ok((parent, name)) => self.nodes[parent].children.contains_key(&name),
            Err(error) => error == PathError::Root,
        }
    }

    /// Whether the name goes; a directory that holds something of this layer stays without what is older.
    fn hide(&mut self, name: Name) -> bool {
        self.hide_children(name.node);
        name.layer < self.layer && self.nodes[name.node].children.is_empty()
    }

    fn hide_children(&mut self, directory: NodeId) {
        let mut kept = std::mem::take(&mut self.nodes[directory].children);
        kept.retain(|_, name| !self.hide(*name));
        self.nodes[directory].children = kept;
    }

    fn insert(
        &mut self,
        parent: NodeId,
        name: Vec<u8>,
        attributes: Attributes,
        kind: Kind,
    ) -> Result<NodeId, PathError> {
        let target = match &kind {
            Kind::Symlink(target) => target.as_slice(),
            _ => b"",
        };
        self.hold(parent, &name, target)?;
        let node = self.nodes.len();
        self.nodes.push(Node::new(attributes, kind));
        let layer = self.layer;
        self.nodes[parent]
            .children
            .insert(name, Name { node, layer });
        Ok(node)
    }

    /// The directory that a path's last component is in, and that component.
    fn place(&mut self, path: &[u8], absent: Absent) -> Result<(NodeId, Vec<u8>), PathError> {
        let mut components = components(path)?;
        let name = components.pop().ok_or(PathError::Root)?;
        Ok((self.walk(&components, absent, 0)?, name))
    }

    /// Walks directories from the root and follows links.
    fn walk(
        &mut self,
        path: &[Vec<u8>],
        absent: Absent,
        followed: usize,
    ) -> Result<NodeId, PathError> {
        if followed > MAX_LINKS {
            return Err(PathError::Loop);
        }
        let mut stack = vec![ROOT];
        for (position, component) in path.iter().enumerate() {
            let here = stack.last().copied().unwrap_or(ROOT);
            if component == b".." {
                stack.truncate((stack.len() - 1).max(1));
                continue;
            }
            if stack.len() > MAX_DEPTH {
                return Err(PathError::TooDeep);
            }
            let node = self.child(here, component, absent)?;
            match &self.nodes[node].kind {
                Kind::Directory => stack.push(node),
                Kind::Symlink(target) => {
                    let rest = redirect(&path[..position], target, &path[position + 1..]);
                    return self.walk(&rest, absent, followed + 1);
                }
                Kind::File(_) | Kind::Special(_) => return Err(PathError::NotDirectory),
            }
        }
        Ok(stack.last().copied().unwrap_or(ROOT))
    }

    fn child(&mut self, parent: NodeId, name: &[u8], absent: Absent) -> Result<NodeId, PathError> {
        match self.nodes[parent].children.get(name) {
            Some(found) => Ok(found.node),
            None if absent == Absent::Refuse => Err(PathError::Missing),
            None => {
                let attributes = Attributes::root(0o755);
                self.insert(parent, name.to_vec(), attributes, Kind::Directory)
            }
        }
    }
}

/// The path to walk where a link is in `before`: `..` may be in it, and stops at the root.
fn redirect(before: &[Vec<u8>], target: &[u8], after: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let base = if target.starts_with(b"/") {
        &[]
    } else {
        before
    };
    let target = split(target).map(<[u8]>::to_vec);
    base.iter()
        .cloned()
        .chain(target)
        .chain(after.iter().cloned())
        .collect()
}

fn split(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/')
        .filter(|c| !c.is_empty() && *c != b".")
}

/// The path with each `..` and the component before it taken out of the text, as runtimes do whatever is there. At the root
/// of an absolute path there is nothing to take out; a relative one would leave the image.
pub(crate) fn cleaned(path: &[u8]) -> Result<Vec<u8>, PathError> {
    Ok(clean_components(path)?.join(&b'/'))
}

fn clean_components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for component in split(path) {
        if component != b".." {
            kept.push(component);
        } else if kept.pop().is_none() && !path.starts_with(b"/") {
            return Err(PathError::Parent);
        }
    }
    Ok(kept)
}

/// A path's components; leading slashes and `.` mean nothing.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, PathError> {
    let components = clean_components(path)?;
    match components.iter().any(|c| c.len() > MAX_NAME) {
        true => Err(PathError::LongName),
        false => Ok(components.into_iter().map(<[u8]>::to_vec).collect()),
    }
}

/// Bodies of files that came out of archives, one after the other in one temporary file.
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
    pub(crate) fn store(&mut self, body: &mut dyn Read) -> io::Result<Body> {
        let offset = self.len;
        let limit = MAX_FILE.min(self.limit.saturating_sub(offset));
        let len = io::copy(&mut body.take(limit + 1), &mut self.file)?;
        if len > limit {
            let text =
                format!("a file has more than {limit} bytes, which is all that there is room for");
            return Err(io::Error::other(text));
        }
        self.len += len;
        Ok(Body::Spool { offset, len })
    }

    fn open(&self, offset: u64, len: u64) -> Piece<'_> {
        let file = self.file.get_ref();
        Piece { file, offset, len }
    }
}

/// Writes a tree into an archive, in path order, under a prefix such as `rootfs`.
pub(crate) fn write_tree<W: Write>(
    tree: &Tree,
    spool: &Spool,
    prefix: &[u8],
    archive: &mut Archive<W>,
) -> Result<(), CpioError> {
    let mut names = vec![0; tree.nodes.len()];
    count_names(tree, ROOT, &mut names);
    let mut emitter = Emitter {
        tree,
        spool,
        archive,
        names,
        links: BTreeMap::new(),
    };
    emitter.node(prefix, ROOT)
}

fn count_names(tree: &Tree, node: NodeId, names: &mut [u32]) {
    names[node] += 1;
    tree.nodes[node]
        .children
        .values()
        .for_each(|name| count_names(tree, name.node, names));
}

struct Emitter<'t, W> {
    tree: &'t Tree,
    spool: &'t Spool,
    archive: &'t mut Archive<W>,
    /// How many names each node has.
    names: Vec<u32>,
    /// Inode number of each file with several names, and how many of them are to come.
    links: BTreeMap<NodeId, (u32, u32)>,
}

impl<W: Write> Emitter<'_, W> {
    fn node(&mut self, path: &[u8], id: NodeId) -> Result<(), CpioError> {
        let Node {
            attributes,
            kind,
            children,
        } = &self.tree.nodes[id];
        match kind {
            Kind::Directory => {
                if !path.is_empty() {
                    self.archive.directory(path, *attributes)?;
                }
                children
                    .iter()
                    .try_for_each(|(name, n)| self.node(&join(path, name), n.node))
            }
            Kind::File(body) => self.file(path, id, *attributes, body),
            Kind::Symlink(target) => self.archive.symlink(path, *attributes, target),
            Kind::Special(special) => self.archive.special(path, *attributes, *special),
        }
    }

    fn file(
        &mut self,
        path: &[u8],
        id: NodeId,
        attributes: Attributes,
        body: &Body,
    ) -> Result<(), CpioError> {
        let names = self.names[id];
        let (inode, left) = match self.links.remove(&id) {
            Some(link) => link,
            None => (self.archive.reserve_inode(), names),
        };
        let left = left - 1;
        if left > 0 {
            self.links.insert(id, (inode, left));
        }
        let link = Link { inode, names };
        if left > 0 {
            return self.archive.link(path, attributes, link);
        }
        let failed = |source| CpioError::Io {
            path: lossy(path),
            source,
        };
        match body {
            Body::Bytes(bytes) => {
                self.archive
                    .last_link(path, attributes, link, body.len(), &mut bytes.as_slice())
            }
            Body::Spool { offset, len } => {
                let mut reader = self.spool.open(*offset, *len);
                self.archive
                    .last_link(path, attributes, link, *len, &mut reader)
            }
            Body::Archive { file, offset, len } => {
                let (offset, len) = (*offset, *len);
                let mut reader = Piece { file, offset, len };
                self.archive
                    .last_link(path, attributes, link, len, &mut reader)
            }
            Body::Host { path: host, len } => {
                let mut reader = File::open(host).map_err(failed)?;
                self.archive
                    .last_link(path, attributes, link, *len, &mut reader)
            }
        }
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        [] => name.to_vec(),
        _ => [path, b"/", name].concat(),
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replaced files count too, which keep their places.
    #[test]
    fn a_tree_keeps_to_its_memory() {
        let file = || Kind::File(Body::Bytes(Vec::new()));
        let attributes = Attributes::root(0o644);
        let cost = NAME_COST + 1;
        let mut tree = Tree::limited(4 * cost + 2 * CHILDREN_COST + 3);
        tree.set(b"d/e", attributes, file()).unwrap();
        tree.set(b"d/e", attributes, file()).unwrap();
        let link = Kind::Symlink(b"1234".to_vec());
        let refused = tree.set(b"l", attributes, link).unwrap_err();
        assert_eq!(refused, PathError::TooMany);
        let node = tree.set(b"f", attributes, file()).unwrap();
        assert_eq!(tree.link_node(b"g", node), Err(PathError::TooMany));
        assert_eq!(tree.directory(b"h", attributes), Err(PathError::TooMany));
        assert_eq!(tree.directory(b"d", attributes), Ok(()), "it is there");
        assert_eq!(
            tree.set(b"x/y/z", attributes, file()),
            Err(PathError::TooMany)
        );
    }
}
