//! Sorted records of which any number takes little memory.
//!
//! A few records are held in memory, which is as fast as can be. With more of them than [`MAX_HELD`] all move into a database
//! in a temporary file, of which a cache of a fixed size is in memory: an image of millions of files is built in no more
//! memory than one of some ten thousand.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{AccessGuard, Database, ReadableTable, StorageError, TableDefinition, WriteTransaction};

/// Most bytes of records, estimated, that are held in memory.
const MAX_HELD: usize = 28 << 20;

/// Most bytes of all records, estimated: over two million files with ordinary names. A few kilobytes of an archive, packed,
/// stand for millions of directories. The database takes up to three times that, and some memory for each of its pages.
const MAX_STORED: usize = 512 << 20;

/// What a record in memory takes beside its key and value (bytes): measured, and rounded up.
const RECORD_COST: usize = 96;

/// What of the database is in memory (bytes).
const CACHE: usize = 16 << 20;

/// Records that are read at a time: many enough that looking for the first of them does not show.
const PAGE: usize = 64;

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

/// A record's key and value.
pub(crate) type Record = (Vec<u8>, Vec<u8>);

/// From which key to which.
pub(crate) type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Why a record could not be stored or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("is one too many: what names, links and directories of an image say takes at most {} MiB", .limit >> 20)]
    Full { limit: usize },
    #[error("cannot be noted in a temporary file: {0}")]
    Database(Box<redb::Error>),
    #[error("was noted in a temporary file that says something else now")]
    Damaged,
}

impl StoreError {
    fn new(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl From<minicbor::decode::Error> for StoreError {
    fn from(_: minicbor::decode::Error) -> Self {
        Self::Damaged
    }
}

/// The records.
#[derive(Debug)]
pub(crate) struct Store {
    /// Where the temporary file will be, which has no name.
    folder: PathBuf,
    held: BTreeMap<Box<[u8]>, Box<[u8]>>,
    stored: Option<Stored>,
    /// Bytes of all records, estimated.
    len: usize,
    max_held: usize,
    limit: usize,
}

/// A database that is never committed: nobody reads it but this process, and its file is gone with it.
struct Stored {
    // Ends before the database that it belongs to.
    transaction: WriteTransaction,
    _database: Database,
}

type Records<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

impl Stored {
    fn records(&self) -> Result<Records<'_>, StoreError> {
        self.transaction
            .open_table(RECORDS)
            .map_err(StoreError::new)
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stored")
    }
}

impl Store {
    /// No records. `folder` is for the temporary file.
    pub(crate) fn new(folder: &Path) -> Self {
        Self::limited(folder, MAX_HELD, MAX_STORED)
    }

    /// One that holds no more than `max_held` bytes in memory and `limit` altogether.
    pub(crate) fn limited(folder: &Path, max_held: usize, limit: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            held: BTreeMap::new(),
            stored: None,
            len: 0,
            max_held,
            limit,
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(match &self.stored {
            None => self.held.get(key).map(|value| value.to_vec()),
            Some(stored) => {
                let records = stored.records()?;
                let value = records.get(key).map_err(StoreError::new)?;
                value.map(|value| value.value().to_vec())
            }
        })
    }

    /// Sets a key's value, in place of what it had.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if self.stored.is_none() && self.len > self.max_held {
            self.stored = Some(self.spill()?);
        }
        let before = match &self.stored {
            None => {
                let before = self.held.insert(key.into(), value.into());
                before.map(|before| cost(key, &before))
            }
            Some(stored) => {
                let mut records = stored.records()?;
                let before = records.insert(key, value).map_err(StoreError::new)?;
                before.map(|before| cost(key, before.value()))
            }
        };
        self.len = self.len + cost(key, value) - before.unwrap_or(0);
        // What is changed stays possible: whiteouts need it, and writing the archive.
        if self.len > self.limit && before.is_none() {
            self.remove(key)?;
            return Err(StoreError::Full { limit: self.limit });
        }
        Ok(())
    }

    /// Takes a key and its value out.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        let before = match &self.stored {
            None => self.held.remove(key).map(|before| cost(key, &before)),
            Some(stored) => {
                let mut records = stored.records()?;
                let before = records.remove(key).map_err(StoreError::new)?;
                before.map(|before| cost(key, before.value()))
            }
        };
        self.len -= before.unwrap_or(0);
        Ok(())
    }

    /// The first records of a range, in order; none when there are none.
    pub(crate) fn first(&self, range: Range<'_>) -> Result<Vec<Record>, StoreError> {
        match &self.stored {
            None => Ok(self.held_in(range).take(PAGE).collect()),
            Some(stored) => {
                let records = stored.records()?;
                let found = records.range::<&[u8]>(range).map_err(StoreError::new)?;
                found.take(PAGE).map(copied).collect()
            }
        }
    }

    /// The last records of a range, the very last one first; none when there are none.
    pub(crate) fn last(&self, range: Range<'_>) -> Result<Vec<Record>, StoreError> {
        match &self.stored {
            None => Ok(self.held_in(range).rev().take(PAGE).collect()),
            Some(stored) => {
                let records = stored.records()?;
                let found = records.range::<&[u8]>(range).map_err(StoreError::new)?;
                found.rev().take(PAGE).map(copied).collect()
            }
        }
    }

    /// The first key of a range that has such a value.
    pub(crate) fn find(
        &self,
        range: Range<'_>,
        is_wanted: impl Fn(&[u8]) -> Result<bool, StoreError>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.stored {
            None => {
                for (key, value) in self.held.range::<[u8], _>(range) {
                    if is_wanted(value)? {
                        return Ok(Some(key.to_vec()));
                    }
                }
            }
            Some(stored) => {
                let records = stored.records()?;
                for found in records.range::<&[u8]>(range).map_err(StoreError::new)? {
                    let (key, value) = found.map_err(StoreError::new)?;
                    if is_wanted(value.value())? {
                        return Ok(Some(key.value().to_vec()));
                    }
                }
            }
        }
        Ok(None)
    }

    fn held_in(&self, range: Range<'_>) -> impl DoubleEndedIterator<Item = Record> {
        let records = self.held.range::<[u8], _>(range);
        records.map(|(key, value)| (key.to_vec(), value.to_vec()))
    }

    /// Moves everything into a new database.
    fn spill(&mut self) -> Result<Stored, StoreError> {
        let file = tempfile::tempfile_in(&self.folder).map_err(StorageError::from);
        let file = FileBackend::new(file.map_err(StoreError::new)?).map_err(StoreError::new)?;
        let mut builder = Database::builder();
        let database = builder.set_cache_size(CACHE).create_with_backend(file);
        let database = database.map_err(StoreError::new)?;
        let stored = Stored {
            transaction: database.begin_write().map_err(StoreError::new)?,
            _database: database,
        };
        let mut records = stored.records()?;
        for (key, value) in &self.held {
            records.insert(&**key, &**value).map_err(StoreError::new)?;
        }
        drop(records);
        self.held.clear();
        Ok(stored)
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    RECORD_COST + key.len() + value.len()
}

type Guard<'a> = AccessGuard<'a, &'static [u8]>;

fn copied(found: Result<(Guard<'_>, Guard<'_>), StorageError>) -> Result<Record, StoreError> {
    let (key, value) = found.map_err(StoreError::new)?;
    Ok((key.value().to_vec(), value.value().to_vec()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(max_held: usize) -> Store {
        Store::limited(&std::env::temp_dir(), max_held, 1 << 20)
    }

    #[test]
    fn a_store_keeps_to_its_limit_and_knows_what_it_holds() {
        let mut store = Store::limited(&std::env::temp_dir(), 0, 2 * RECORD_COST + 4);
        store.put(b"a", b"1").unwrap();
        store.put(b"b", b"2").unwrap();
        store.put(b"b", b"345").unwrap();
        let full = store.put(b"c", b"").unwrap_err();
        assert!(matches!(full, StoreError::Full { .. }), "{full}");
        assert_eq!(store.get(b"c").unwrap(), None);
        store.remove(b"a").unwrap();
        store.remove(b"a").unwrap();
        store.put(b"b", b"6").unwrap();
        store.put(b"c", b"").unwrap();
        assert_eq!(store.get(b"b").unwrap().as_deref(), Some(b"6".as_slice()));
        assert_eq!(store.len, 2 * RECORD_COST + 3);
    }

    #[test]
    fn what_cannot_be_moved_stays() {
        let nowhere = Path::new("/proc/self/no such folder");
        let mut store = Store::limited(nowhere, 1, 1 << 20);
        store.put(b"a", b"1").unwrap();
        for _ in 0..2 {
            let failed = store.put(b"b", b"2").unwrap_err();
            assert!(matches!(failed, StoreError::Database(_)), "{failed}");
            assert_eq!(store.get(b"a").unwrap().as_deref(), Some(b"1".as_slice()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// In memory, in a database and moved from one to the other, records are the same.
        #[test]
        fn records_are_the_same_wherever_they_are(
            orders in prop::collection::vec((prop::collection::vec(0_u8..4, 0..4), any::<Option<u8>>()), 0..200),
            max_held in prop::sample::select(vec![0, 10 * RECORD_COST, usize::MAX]),
            from in prop::collection::vec(0_u8..4, 0..3),
        ) {
            let (mut store, mut model) = (store(max_held), BTreeMap::new());
            for (key, value) in orders {
                match value {
                    Some(value) => {
                        store.put(&key, &[value]).unwrap();
                        model.insert(key, vec![value]);
                    }
                    None => {
                        store.remove(&key).unwrap();
                        model.remove(&key);
                    }
                }
            }
            let range = (Bound::Excluded(from.as_slice()), Bound::Unbounded);
            let expected = model.range::<[u8], _>(range).map(|(k, v)| (k.clone(), v.clone()));
            prop_assert_eq!(store.first(range).unwrap(), expected.clone().take(PAGE).collect::<Vec<_>>());
            let large = |value: &[u8]| Ok(value > [99].as_slice());
            let found = expected.clone().find(|(_, value)| value[0] > 99).map(|(key, _)| key);
            prop_assert_eq!(store.find(range, large).unwrap(), found);
            prop_assert_eq!(store.last(range).unwrap(), expected.rev().take(PAGE).collect::<Vec<_>>());
            let costs = model.iter().map(|(key, value)| cost(key, value));
            prop_assert_eq!(store.len, costs.sum::<usize>());
        }
    }
}
