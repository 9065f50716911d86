//! A file system of names: owners and modes here, file bodies elsewhere.
//!
//! Layers are applied to a [`Tree`] and never to the host's file system, so no path in a layer can reach
//! outside: symbolic links are followed inside the tree, and `..` in a link of either kind stops at its root. `..` in an
//! entry's own path takes out the name before it, whatever that is, as in runtimes; a path that would leave the root is
//! refused. Each name remembers the layer that set it, because a whiteout hides what lower layers put there and nothing else.
//!
//! A name's record has its whole path for a key, each component behind a zero byte:
//!
//! ```text
//! \0usr            a directory comes before what is in it,
//! \0usr\0bin       and all that is in it before what follows the directory:
//! \0usr\0bin\0env
//! \0usr-share      zero sorts before whatever a name may have in it
//! \x01 number      a file with several names, which refer to it
//! ```
//!
//! Only directories have anything below them, so a path whose parent is found to be a directory goes through no link, and
//! writing the tree is reading its records in order.

use std::fs::File;
use std::ops::Bound;
use std::path::Path;

use crate::cpio::Attributes;

pub(crate) use super::node::{Body, Kind};
use super::node::{Meaning, Name, Node, Shared};
use super::store::{Range, Record, Store, StoreError};

/// Symbolic links followed on one path before it is refused, Linux's own limit.
const MAX_LINKS: usize = 40;

/// Longest name in a directory, Linux's own limit (bytes): a kernel that unpacks a longer one leaves the file out.
const MAX_NAME: usize = 255;

/// Longest path (bytes), Linux's limit less what comes before it in an image's archive, `rootfs/`.
const MAX_PATH: usize = 4095 - 7;

/// Longest path that is looked at (bytes): one that is written with many dots and slashes may be shorter than it seems.
const MAX_WRITTEN: usize = 16 << 10;

/// Longest target of a symbolic link (bytes), with the same reason.
const MAX_TARGET: usize = 4095;

/// Largest file (bytes): a newc archive has 32 bits for its length.
pub(crate) const MAX_FILE: u64 = u32::MAX as u64;

/// Names that all whiteouts may find and leave, and that all paths through links may go through one by one. An honest layer's
/// whiteouts leave each name once, and a path through links has some ten; a few kilobytes could keep a builder busy for days
/// otherwise, and so for half a minute.
const MAX_EFFORT: u64 = 1 << 25;

/// Bytes of a path, or of a link's target, that count as one more name.
const EFFORT_BYTES: usize = 512;

/// What begins the key of a file with several names: behind all paths.
const SHARED: u8 = 1;

/// What begins the key of a number that a host knows a file by. Its value is the first path of the file.
const NUMBERED: u8 = 2;

/// Key of the root, which has no record. A path's own is one byte longer than the path.
const ROOT: &[u8] = b"";

/// Why a path could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error("leaves the image by `..` in its path")]
    Parent,
    #[error("names the root, which is no file")]
    Root,
    #[error("has a zero byte in its path, which Linux has not")]
    Zero,
    #[error("has a name of over {MAX_NAME} bytes in its path, which Linux has not")]
    LongName,
    #[error("has a path of over {MAX_PATH} bytes, which is all that Linux unpacks into an enclave")]
    LongPath,
    #[error("is a symbolic link to over {MAX_TARGET} bytes, which Linux has not")]
    LongTarget,
    #[error("goes through a file that is no directory")]
    NotDirectory,
    #[error("goes through more than {MAX_LINKS} symbolic links")]
    Loop,
    #[error("names something that is not there")]
    Missing,
    #[error("links to a directory")]
    DirectoryTarget,
    #[error(
        "is one whiteout, or one path through symbolic links, too many: what they go through is read again and again"
    )]
    Effort,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What to do about directories that a path goes through and that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absent {
    Make,
    Refuse,
}

/// A file system of names.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Attributes,
    store: Store,
    /// Files with several names so far.
    shared: u64,
    layer: u32,
    /// Names that were gone through so far.
    effort: u64,
    /// Where bodies are that stayed in their archive.
    archive: Option<File>,
}

impl Tree {
    /// A root directory and nothing in it. `folder` is for a temporary file.
    pub(crate) fn new(folder: &Path) -> Self {
        Self::kept_in(Store::new(folder))
    }

    /// One of which some bodies are read in place, from this archive.
    pub(crate) fn over(archive: File, folder: &Path) -> Self {
        Self {
            archive: Some(archive),
            ..Self::new(folder)
        }
    }

    fn kept_in(store: Store) -> Self {
        Self {
            root: Attributes::root(0o755),
            store,
            shared: 0,
            layer: 0,
            effort: 0,
            archive: None,
        }
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
        let key = match self.place(path, Absent::Make) {
            Err(PathError::Root) => {
                self.root = attributes;
                return Ok(());
            }
            place => place?,
        };
        if self.name(&key)?.is_some_and(|name| !name.is_directory()) {
            self.clear(&key)?;
        }
        let kind = Kind::Directory;
        self.put(&key, Meaning::Node(Node { attributes, kind }))
    }

    /// Sets anything but a directory, in place of whatever had the name.
    pub(crate) fn set(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        kind: Kind,
    ) -> Result<(), PathError> {
        if matches!(&kind, Kind::Symlink(target) if target.len() > MAX_TARGET) {
            return Err(PathError::LongTarget);
        }
        let key = self.place(path, Absent::Make)?;
        self.clear(&key)?;
        self.put(&key, Meaning::Node(Node { attributes, kind }))
    }

    /// Gives the file at `target` one more name. `..` in the target stops at the root, which is the image's.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), PathError> {
        let target = self.place(&[b"/", target].concat(), Absent::Refuse)?;
        let number = self.share(&target)?;
        let key = self.place(path, Absent::Make)?;
        // Counted first: the old name may be the same, or be what makes way for the new one.
        self.count(number, |names| names + 1)?;
        self.clear(&key)?;
        self.put(&key, Meaning::Shared(number))
    }

    /// Sets a file that a host knows by a number, or gives it one more name if it was set before.
    pub(crate) fn set_numbered(
        &mut self,
        path: &[u8],
        number: u128,
        attributes: Attributes,
        kind: Kind,
    ) -> Result<(), PathError> {
        let key = [[NUMBERED].as_slice(), &number.to_be_bytes()].concat();
        match self.store.get(&key)? {
            Some(first) => self.link(path, &first),
            None => {
                self.store.put(&key, path)?;
                self.set(path, attributes, kind)
            }
        }
    }

    /// Hides what lower layers have at this path.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<(), PathError> {
        match self.place(path, Absent::Refuse) {
            Err(PathError::Missing | PathError::NotDirectory) => Ok(()),
            key => self.hide(Bound::Included(&key?)),
        }
    }

    /// Hides what lower layers have inside the directory at this path.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<(), PathError> {
        match self.walk(&components(path)?, Absent::Refuse) {
            Err(PathError::Missing | PathError::NotDirectory) => Ok(()),
            key => self.hide(Bound::Excluded(&key?)),
        }
    }

    /// Whether something has this path; the last component is not followed.
    pub(crate) fn exists(&mut self, path: &[u8]) -> Result<bool, StoreError> {
        match self.place(path, Absent::Refuse) {
            Ok(key) => Ok(self.name(&key)?.is_some()),
            Err(PathError::Store(error)) => Err(error),
            Err(error) => Ok(matches!(error, PathError::Root)),
        }
    }

    /// The first directory behind this path: in it if there is one, else behind all that is in it.
    pub(crate) fn next_directory(&self, path: &[u8]) -> Result<Option<Vec<u8>>, PathError> {
        let after = key(&components(path)?);
        let is_directory = |name: &[u8]| Ok(Name::decode(name)?.is_directory());
        let found = self
            .store
            .find(names(Bound::Excluded(&after)), is_directory)?;
        Ok(found.map(|key| readable(&key)))
    }

    pub(super) fn root(&self) -> Attributes {
        self.root
    }

    /// The archive that the tree is over.
    pub(super) fn archive(&self) -> Option<&File> {
        self.archive.as_ref()
    }

    /// Some of the names behind a key, in order; none at the end.
    pub(super) fn names_behind(&self, key: &[u8]) -> Result<Vec<Record>, StoreError> {
        self.store.first(names(Bound::Excluded(key)))
    }

    /// The file with this number, one more of whose names is being written: the first of them under this inode number.
    pub(super) fn write_shared(
        &mut self,
        number: u64,
        new_inode: impl FnOnce() -> u32,
    ) -> Result<Shared, StoreError> {
        let mut shared = self.shared(number)?;
        // Links to anything else have inode numbers of their own.
        if shared.written == 0 && matches!(shared.node.kind, Kind::File(_)) {
            shared.inode = new_inode();
        }
        shared.written += 1;
        self.store.put(&shared_key(number), &shared.encode())?;
        Ok(shared)
    }

    fn name(&self, key: &[u8]) -> Result<Option<Name>, StoreError> {
        let name = self.store.get(key)?;
        name.map(|name| Name::decode(&name)).transpose()
    }

    fn put(&mut self, key: &[u8], meaning: Meaning) -> Result<(), PathError> {
        let name = key.rsplit(|b| *b == 0).next().unwrap_or_default();
        if name.len() > MAX_NAME {
            return Err(PathError::LongName);
        }
        if key.len() > MAX_PATH + 1 {
            return Err(PathError::LongPath);
        }
        let layer = self.layer;
        Ok(self.store.put(key, &Name { layer, meaning }.encode())?)
    }

    /// Takes out what a name stands for, and all that is below it.
    fn clear(&mut self, key: &[u8]) -> Result<(), StoreError> {
        let Some(name) = self.name(key)? else {
            return Ok(());
        };
        if name.is_directory() {
            let end = behind(key);
            let range = (Bound::Excluded(key), Bound::Excluded(end.as_slice()));
            loop {
                let below = self.store.first(range)?;
                if below.is_empty() {
                    break;
                }
                for (key, name) in below {
                    self.remove(&key, &Name::decode(&name)?)?;
                }
            }
        }
        self.remove(key, &name)
    }

    fn remove(&mut self, key: &[u8], name: &Name) -> Result<(), StoreError> {
        if let Meaning::Shared(number) = name.meaning {
            self.count(number, |names| names.saturating_sub(1))?;
        }
        self.store.remove(key)
    }

    /// Takes out what lower layers have from a path on and below it; a directory that holds something of this layer stays.
    fn hide(&mut self, from: Bound<&[u8]>) -> Result<(), PathError> {
        let (Bound::Included(path) | Bound::Excluded(path)) = from else {
            return Ok(());
        };
        // What is in a directory comes before the directory: from the end.
        let (mut end, mut kept) = (behind(path), Vec::new());
        loop {
            let names = self.store.last((from, Bound::Excluded(&end)))?;
            let Some((first, _)) = names.last() else {
                return Ok(());
            };
            end = first.clone();
            for (key, name) in names {
                let name = Name::decode(&name)?;
                if name.layer < self.layer && !is_below(&kept, &key) {
                    self.remove(&key, &name)?;
                } else {
                    self.make_effort(&key)?;
                    kept = key;
                }
            }
        }
    }

    fn make_effort(&mut self, text: &[u8]) -> Result<(), PathError> {
        self.effort += u64::try_from(1 + text.len() / EFFORT_BYTES).unwrap_or(u64::MAX);
        match self.effort > MAX_EFFORT {
            true => Err(PathError::Effort),
            false => Ok(()),
        }
    }

    /// The number of the file with this name, which may get more of them.
    fn share(&mut self, key: &[u8]) -> Result<u64, PathError> {
        let Name { layer, meaning } = self.name(key)?.ok_or(PathError::Missing)?;
        let node = match meaning {
            Meaning::Shared(number) => return Ok(number),
            Meaning::Node(node) if node.kind == Kind::Directory => {
                return Err(PathError::DirectoryTarget);
            }
            Meaning::Node(node) => node,
        };
        let number = self.shared;
        self.shared += 1;
        let shared = Shared {
            names: 1,
            written: 0,
            inode: 0,
            node,
        };
        self.store.put(&shared_key(number), &shared.encode())?;
        let meaning = Meaning::Shared(number);
        self.store.put(key, &Name { layer, meaning }.encode())?;
        Ok(number)
    }

    fn shared(&self, number: u64) -> Result<Shared, StoreError> {
        let shared = self.store.get(&shared_key(number))?;
        Shared::decode(&shared.ok_or(StoreError::Damaged)?)
    }

    /// Changes the number of names that a file has; one without a name is gone.
    fn count(&mut self, number: u64, change: impl FnOnce(u32) -> u32) -> Result<(), StoreError> {
        let mut shared = self.shared(number)?;
        shared.names = change(shared.names);
        match shared.names {
            0 => self.store.remove(&shared_key(number)),
            _ => self.store.put(&shared_key(number), &shared.encode()),
        }
    }

    /// The key of a path, whose directories are walked; the last component is not followed.
    fn place(&mut self, path: &[u8], absent: Absent) -> Result<Vec<u8>, PathError> {
        let mut components = components(path)?;
        let name = components.pop().ok_or(PathError::Root)?;
        let directory = self.walk(&components, absent)?;
        Ok(child(&directory, name))
    }

    /// Walks directories from the root and follows links.
    fn walk(&mut self, path: &[&[u8]], absent: Absent) -> Result<Vec<u8>, PathError> {
        let direct = key(path);
        if direct == ROOT || self.name(&direct)?.is_some_and(|name| name.is_directory()) {
            return Ok(direct);
        }
        let (mut here, mut followed) = (ROOT.to_vec(), 0);
        let mut ahead: Vec<Vec<u8>> = path.iter().rev().map(|c| c.to_vec()).collect();
        while let Some(component) = ahead.pop() {
            self.make_effort(&here)?;
            if component == b".." {
                here.truncate(here.iter().rposition(|b| *b == 0).unwrap_or(0));
                continue;
            }
            // Of a link's target; a zero would be taken for the end of a name.
            if component.contains(&0) {
                return Err(match absent {
                    Absent::Make => PathError::Zero,
                    Absent::Refuse => PathError::Missing,
                });
            }
            let below = child(&here, &component);
            match self.enter(&below, absent)? {
                Kind::Directory => here = below,
                Kind::Symlink(target) => {
                    self.make_effort(&target)?;
                    followed += 1;
                    if followed > MAX_LINKS {
                        return Err(PathError::Loop);
                    }
                    if target.starts_with(b"/") {
                        here = ROOT.to_vec();
                    }
                    ahead.extend(split(&target).rev().map(<[u8]>::to_vec));
                }
                Kind::File(_) | Kind::Special(_) => return Err(PathError::NotDirectory),
            }
        }
        Ok(here)
    }

    /// What a path goes through here.
    fn enter(&mut self, key: &[u8], absent: Absent) -> Result<Kind, PathError> {
        match self.name(key)?.map(|name| name.meaning) {
            Some(Meaning::Node(node)) => Ok(node.kind),
            Some(Meaning::Shared(number)) => Ok(self.shared(number)?.node.kind),
            None if absent == Absent::Refuse => Err(PathError::Missing),
            None => {
                let (attributes, kind) = (Attributes::root(0o755), Kind::Directory);
                self.put(key, Meaning::Node(Node { attributes, kind }))?;
                Ok(Kind::Directory)
            }
        }
    }
}

/// A path's key. The components have no zero in them.
fn key(components: &[&[u8]]) -> Vec<u8> {
    let len = components.iter().map(|c| c.len() + 1).sum();
    let mut key = Vec::with_capacity(len);
    for component in components {
        key.push(0);
        key.extend_from_slice(component);
    }
    key
}

fn child(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, name].join(&0)
}

/// The first key behind all that may be below this one.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[1]].concat()
}

fn is_below(key: &[u8], directory: &[u8]) -> bool {
    let rest = key.strip_prefix(directory);
    rest.is_some_and(|rest| rest.starts_with(&[0]))
}

/// All names from one on.
fn names(from: Bound<&[u8]>) -> Range<'_> {
    (from, Bound::Excluded(&[SHARED]))
}

fn shared_key(number: u64) -> [u8; 9] {
    let mut key = [SHARED; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A key as a path with slashes; one before each component.
pub(super) fn readable(key: &[u8]) -> Vec<u8> {
    let slash = |b: &u8| if *b == 0 { b'/' } else { *b };
    key.iter().map(slash).collect()
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/')
        .filter(|c| !c.is_empty() && *c != b".")
}

/// The path with each `..` and the component before it taken out of the text, as runtimes do whatever is there. At the root
/// of an absolute path there is nothing to take out; a relative one would leave the image.
pub(crate) fn cleaned(path: &[u8]) -> Result<Vec<u8>, PathError> {
    Ok(clean_components(path)?.join(&b'/'))
}

fn clean_components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.len() > MAX_WRITTEN {
        return Err(PathError::LongPath);
    }
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
fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let components = clean_components(path)?;
    if components.iter().any(|c| c.contains(&0)) {
        return Err(PathError::Zero);
    }
    match components.iter().any(|c| c.len() > MAX_NAME) {
        true => Err(PathError::LongName),
        false => Ok(components),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::emit::write_tree;
    use super::super::spool::Spool;
    use super::*;
    use crate::cpio::Archive;

    /// A tree that holds `max_held` bytes in memory.
    fn tree(max_held: usize) -> Tree {
        Tree::kept_in(Store::limited(&std::env::temp_dir(), max_held, 64 << 20))
    }

    /// A file of one byte.
    fn file(content: u8) -> Kind {
        let (offset, len) = (content.into(), 1);
        Kind::File(Body::Spool { offset, len })
    }

    fn written(mut tree: Tree) -> Vec<u8> {
        let mut spool = Spool::new(tempfile::tempfile().unwrap());
        let bytes: Vec<u8> = (0..=u8::MAX).collect();
        spool.store(&mut bytes.as_slice()).unwrap();
        spool.flush().unwrap();
        let mut archive = Archive::new(Vec::new(), 0);
        write_tree(&mut tree, &spool, b"rootfs", &mut archive).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn a_tree_keeps_to_its_limit() {
        let mut tree = Tree::kept_in(Store::limited(&std::env::temp_dir(), 0, 400));
        let attributes = Attributes::root(0o644);
        tree.set(b"d/e", attributes, file(0)).unwrap();
        tree.set(b"d/e", attributes, file(0)).unwrap();
        let refused = tree.set(b"l", attributes, Kind::Symlink(vec![b'x'; 200]));
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, PathError::Store(StoreError::Full { .. })),
            "{refused}"
        );
        tree.directory(b"d", attributes).unwrap();
        tree.set(b"f", attributes, file(0)).unwrap();
        let refused = tree.link(b"g", b"f").unwrap_err();
        assert!(
            matches!(refused, PathError::Store(StoreError::Full { .. })),
            "{refused}"
        );
    }

    #[test]
    fn names_that_linux_has_not_are_refused() {
        let mut tree = tree(usize::MAX);
        let attributes = Attributes::root(0o755);
        let mut refused = |path: &[u8]| tree.directory(path, attributes).unwrap_err();
        assert!(matches!(refused(b"a\0b"), PathError::Zero));
        assert!(matches!(refused(&[b'a'; 256]), PathError::LongName));
        assert!(matches!(
            refused(&b"b/../".repeat(4000)),
            PathError::LongPath
        ));
        assert!(matches!(refused(b"../a"), PathError::Parent));
        let deep = b"a/".repeat(2044);
        assert!(matches!(
            refused(&[&deep, b"b".as_slice()].concat()),
            PathError::LongPath
        ));
        let made = [&deep[2..], b"ab".as_slice()].concat();
        assert_eq!(made.len(), MAX_PATH);
        tree.directory(&made, attributes).unwrap();
        // A link's target makes directories too.
        tree.set(b"l", attributes, Kind::Symlink(vec![b'x'; 256]))
            .unwrap();
        let refused = tree.directory(b"l/d", attributes).unwrap_err();
        assert!(matches!(refused, PathError::LongName));
        written(tree);
    }

    /// Hard links to what is no file have been written with inode numbers of their own since there are images.
    #[test]
    fn links_to_links_do_not_move_inode_numbers() {
        let mut tree = tree(usize::MAX);
        let attributes = Attributes::root(0o777);
        tree.set(b"a", attributes, Kind::Symlink(b"x".to_vec()))
            .unwrap();
        tree.link(b"b", b"a").unwrap();
        tree.set(b"c", attributes, file(1)).unwrap();
        tree.link(b"d", b"c").unwrap();
        let archive = written(tree);
        let inode = |name: &str| {
            let name = format!("rootfs/{name}\0");
            let at = archive
                .windows(name.len())
                .position(|w| w == name.as_bytes());
            let header = at.unwrap() - 110;
            String::from_utf8(archive[header + 6..header + 14].to_vec()).unwrap()
        };
        let found = ["a", "b", "c", "d"].map(inode);
        assert_eq!(found, ["00000002", "00000003", "00000004", "00000004"]);
    }

    #[test]
    fn what_makes_no_end_of_effort_is_refused() {
        let mut tree = tree(usize::MAX);
        let attributes = Attributes::root(0o755);
        tree.directory(b"d", attributes).unwrap();
        tree.effort = MAX_EFFORT - 100;
        for number in 0..30 {
            let path = format!("d/{number}");
            tree.set(path.as_bytes(), attributes, file(0)).unwrap();
        }
        for _ in 0..3 {
            tree.opaque(b"d").unwrap();
        }
        assert!(matches!(tree.opaque(b"d").unwrap_err(), PathError::Effort));
        // Each path: the link, its target, and a name and a step back twenty times.
        tree.effort = MAX_EFFORT - 100;
        let target = b"d/../".repeat(20);
        tree.set(b"l", attributes, Kind::Symlink(target)).unwrap();
        tree.set(b"l/a", attributes, file(0)).unwrap();
        tree.set(b"l/b", attributes, file(0)).unwrap();
        let refused = tree.set(b"l/c", attributes, file(0)).unwrap_err();
        assert!(matches!(refused, PathError::Effort), "{refused}");
    }

    /// A zero in a link's target would make a path of two names out of one, through whatever is there.
    #[test]
    fn a_zero_in_a_links_target_leads_nowhere() {
        let mut tree = tree(usize::MAX);
        let attributes = Attributes::root(0o755);
        tree.set(b"a", attributes, Kind::Symlink(b"/".to_vec()))
            .unwrap();
        tree.set(b"l", attributes, Kind::Symlink(b"a\0enclos".to_vec()))
            .unwrap();
        let refused = tree.set(b"l/agent", attributes, file(0)).unwrap_err();
        assert!(matches!(refused, PathError::Zero), "{refused}");
        tree.whiteout(b"l/agent").unwrap();
        assert!(!tree.exists(b"l/agent").unwrap());
    }

    #[test]
    fn directories_are_found_in_order_and_while_more_come() {
        let mut tree = tree(usize::MAX);
        let attributes = Attributes::root(0o755);
        for path in [b"b".as_slice(), b"a-", b"a"] {
            tree.directory(path, attributes).unwrap();
        }
        for number in 0..100 {
            let path = format!("a/{number}");
            tree.set(path.as_bytes(), attributes, file(0)).unwrap();
        }
        let (mut next, mut found) = (Vec::new(), Vec::new());
        while let Some(path) = tree.next_directory(&next).unwrap() {
            if path == b"/a" {
                tree.directory(b"a/in", attributes).unwrap();
            }
            found.push(String::from_utf8(path.clone()).unwrap());
            next = path;
        }
        assert_eq!(found, ["/a", "/a/in", "/a-", "/b"]);
    }

    #[derive(Debug, Clone)]
    enum Order {
        Layer,
        Directory(Vec<u8>),
        File(Vec<u8>),
        Symlink(Vec<u8>, Vec<u8>),
        Link(Vec<u8>, Vec<u8>),
        Whiteout(Vec<u8>),
        Opaque(Vec<u8>),
    }

    fn order() -> impl Strategy<Value = Order> {
        let path = || {
            let name = prop::sample::select(vec!["a", "b", "a\u{1}", ".."]);
            prop::collection::vec(name, 0..4).prop_map(|names| names.join("/").into_bytes())
        };
        prop_oneof![
            Just(Order::Layer),
            path().prop_map(Order::Directory),
            path().prop_map(Order::File),
            path().prop_map(Order::File),
            (path(), path()).prop_map(|(path, target)| Order::Symlink(path, target)),
            path().prop_map(|path| Order::Symlink(path, b"a\0b/..".to_vec())),
            (path(), path()).prop_map(|(path, target)| Order::Link(path, target)),
            path().prop_map(Order::Whiteout),
            path().prop_map(Order::Opaque),
        ]
    }

    /// Whether it was refused.
    fn apply(tree: &mut Tree, number: usize, order: &Order) -> Option<String> {
        let attributes = Attributes::root(0o755);
        let done = match order {
            Order::Layer => {
                tree.begin_layer();
                Ok(())
            }
            Order::Directory(path) => tree.directory(path, attributes),
            Order::File(path) => tree.set(path, attributes, file(u8::try_from(number).unwrap())),
            Order::Symlink(path, target) => {
                tree.set(path, attributes, Kind::Symlink(target.clone()))
            }
            Order::Link(path, target) => tree.link(path, target),
            Order::Whiteout(path) => tree.whiteout(path),
            Order::Opaque(path) => tree.opaque(path),
        };
        done.err().map(|error| error.to_string())
    }

    /// Every name is in a directory, and every file with several names knows how many.
    fn check(tree: &Tree) {
        let mut directories = vec![ROOT.to_vec()];
        let (mut after, mut counted) = (ROOT.to_vec(), BTreeMap::new());
        while let Ok(found) = tree.store.first(names(Bound::Excluded(&after)))
            && !found.is_empty()
        {
            for (key, name) in found {
                let end = key.iter().rposition(|b| *b == 0).unwrap();
                let parent = key[..end].to_vec();
                assert!(directories.contains(&parent), "{key:?} is in no directory");
                assert!(end + 1 < key.len(), "{key:?} has an empty name");
                let name = Name::decode(&name).unwrap();
                match name.meaning {
                    Meaning::Shared(number) => *counted.entry(number).or_insert(0) += 1,
                    Meaning::Node(_) if name.is_directory() => directories.push(key.clone()),
                    Meaning::Node(_) => {}
                }
                after = key;
            }
        }
        for number in 0..tree.shared {
            let stored = tree.store.get(&shared_key(number)).unwrap();
            let names = stored.map(|shared| Shared::decode(&shared).unwrap().names);
            assert_eq!(names, counted.get(&number).copied(), "of {number}");
        }
    }

    proptest! {
        /// Whatever layers do, the tree holds together, and in a database it is the same as in memory.
        #[test]
        fn any_layers_make_a_tree(orders in prop::collection::vec(order(), 0..60)) {
            let (mut held, mut stored) = (tree(usize::MAX), tree(0));
            for (number, order) in orders.iter().enumerate() {
                let refused = apply(&mut held, number, order);
                prop_assert_eq!(&refused, &apply(&mut stored, number, order));
                check(&held);
            }
            let archive = written(held);
            prop_assert_eq!(&archive, &written(stored));
            crate::ramdisk::unpack(&archive, 1 << 30).unwrap();
        }
    }
}
