//! What became durable after those who waited for it were told that it had failed.
//!
//! With SQLite memory learns what a change touched from the answer to it. A `COMMIT` that outlives the patience of those who
//! wait, on a disk that stalls, has no such answer. Then the writer, as soon as it finds that the transaction stands after
//! all, leaves here what it touched, and memory reads that before the next request is looked at.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What was touched and nobody was told.
#[derive(Debug, Default)]
pub(crate) struct Late {
    /// Whether memory may lack something: until what was taken has been read.
    any: AtomicBool,
    touched: Mutex<BTreeSet<String>>,
}

impl Late {
    fn touched(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were touched.
    pub(crate) fn add(&self, touched: impl IntoIterator<Item = String>) {
        let mut all = self.touched();
        all.extend(touched);
        self.any.store(!all.is_empty(), Ordering::Release);
    }

    /// Whether there is something to read, or somebody is reading it.
    pub(crate) fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// What there is to read. Until [`Self::settle`] it counts as not read.
    pub(crate) fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.touched())
    }

    /// What was taken is in memory.
    pub(crate) fn settle(&self) {
        let all = self.touched();
        self.any.store(!all.is_empty(), Ordering::Release);
    }
}
