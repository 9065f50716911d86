//! Memory follows the database.
//!
//! Nothing but this module changes the keys, aliases, grants and tags that requests read. After a transaction has touched a
//! key, all there is about it is read again, in one snapshot, and replaces what memory held.
//!
//! With SQLite this process is the only one that changes keys, and it knows what it touched; what became durable after its caller
//! was told that it had failed is read before the next request is looked at. With PostgreSQL other nodes
//! change them too. Therefore a request first waits for an answer to "what is the newest change?" that was *asked
//! after the request had arrived*; if there are newer changes than memory has, they are read. So what any node acknowledged
//! before a request arrives, that request sees. One question serves all requests that wait: those that come while it is
//! under way share the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::crypto::seal::RootKey;
use crate::error::{ApiError, Chain, ErrorKind};
use crate::grants::{Grant, Grants};
use crate::keyring::{Key, Keyring, LoadError};
use crate::store::{Late, News, Store, StoreError, StoredKey, Wanted, Watch};
use crate::tags::TagStore;

/// How memory follows.
#[derive(Debug)]
pub(crate) struct Follower {
    shared: bool,
    /// Number of the last change that memory has.
    seq: AtomicI64,
    /// Requests that came so far.
    arrived: AtomicU64,
    /// How old an answer may be that serves a request; none at all by default.
    staleness: Duration,
    late: Arc<Late>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    watch: Watch,
    /// Requests that the last answer serves, and whether there was one.
    served: u64,
    failed: Option<Arc<StoreError>>,
    /// When the last question that was answered was asked.
    asked: Option<Instant>,
    /// Keys that this process touched and could not read since.
    owed: BTreeSet<String>,
}

impl Follower {
    /// Follows a store from the change of that number on.
    pub(crate) fn new(store: &Store, seq: i64) -> Self {
        Self {
            shared: store.is_shared(),
            seq: AtomicI64::new(seq),
            arrived: AtomicU64::new(0),
            staleness: Duration::ZERO,
            late: store.late(),
            state: Mutex::new(State {
                watch: store.watch(),
                served: 0,
                failed: None,
                asked: None,
                owed: BTreeSet::new(),
            }),
        }
    }

    /// Closes the connection that it follows the store by.
    pub(crate) async fn close(&self) {
        self.state.lock().await.watch.close().await;
    }

    pub(crate) fn with_staleness(self, staleness: Duration) -> Self {
        Self { staleness, ..self }
    }

    /// Number of the last change that memory has.
    pub(crate) fn seq(&self) -> i64 {
        self.seq.load(Ordering::Acquire)
    }
}

/// Keys, aliases, grants and tags: what requests read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub(crate) keys: &'a Keyring,
    pub(crate) grants: &'a Grants,
    pub(crate) tags: &'a TagStore,
    pub(crate) root: &'a RootKey,
}

impl Memory<'_> {
    /// Fills memory when the process starts.
    ///
    /// # Errors
    /// If anything stored cannot be used; nothing is skipped.
    pub(crate) fn load(&self, all: &News) -> Result<(), LoadError> {
        let mut keys = all.keys.iter();
        keys.try_for_each(|(id, stored)| self.put(id, stored, true))
    }

    /// Waits until memory is not older than this moment, or than `--max-staleness` allows.
    pub(crate) async fn catch_up(&self, follower: &Follower) -> Result<(), ApiError> {
        self.catch_up_within(follower, follower.staleness).await
    }

    /// Waits until memory is not older than this moment, whatever is allowed: changes are computed from it.
    pub(crate) async fn catch_up_fully(&self, follower: &Follower) -> Result<(), ApiError> {
        self.catch_up_within(follower, Duration::ZERO).await
    }

    async fn catch_up_within(
        &self,
        follower: &Follower,
        staleness: Duration,
    ) -> Result<(), ApiError> {
        if self.has_more_to_open() {
            self.read_whole(follower).await?;
        }
        if !follower.shared {
            self.follow_late(follower).await;
            return Ok(());
        }
        let ticket = follower.arrived.fetch_add(1, Ordering::AcqRel) + 1;
        let mut state = follower.state.lock().await;
        let fresh = state.asked.is_some_and(|asked| asked.elapsed() < staleness);
        if !fresh && state.served < ticket {
            self.ask(follower, &mut state).await;
        }
        match &state.failed {
            None => Ok(()),
            Some(error) => Err(ApiError::store(error.as_ref())),
        }
    }

    /// Whether there are stored keys that did not open, and `root.key` was read again since.
    fn has_more_to_open(&self) -> bool {
        let reading = self.keys.incomplete();
        reading.is_some_and(|reading| reading != self.root.reads())
    }

    /// Reads everything again: which keys did not open is known, which grants went with them is not.
    async fn read_whole(&self, follower: &Follower) -> Result<(), ApiError> {
        let mut state = follower.state.lock().await;
        if !self.has_more_to_open() {
            return Ok(());
        }
        let news = state.watch.look(&Wanted::Whole).await;
        if let Some(news) = news.map_err(|error| ApiError::store(&error))? {
            self.take(&news);
            follower.seq.store(news.seq, Ordering::Release);
        }
        Ok(())
    }

    /// Asks for what is new, once for all who have come.
    async fn ask(&self, follower: &Follower, state: &mut State) {
        let coming = follower.arrived.load(Ordering::Acquire);
        let asked = Instant::now();
        let news = state.watch.look(&Wanted::After(follower.seq())).await;
        state.served = coming;
        match news {
            Ok(news) => {
                state.failed = None;
                state.asked = Some(asked);
                if let Some(news) = news {
                    self.take(&news);
                    follower.seq.store(news.seq, Ordering::Release);
                }
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "memory cannot follow the database");
                state.failed = Some(Arc::new(error));
                state.asked = None;
            }
        }
    }

    /// Reads again what a transaction of this process has touched. The transaction stands, so a failure is not its caller's:
    /// who comes next finds it.
    pub(crate) async fn follow(&self, follower: &Follower, touched: Vec<String>) {
        if follower.shared {
            // If it fails the next request asks again.
            let _failed = self.catch_up_fully(follower).await;
            return;
        }
        let mut state = follower.state.lock().await;
        state.owed.extend(touched);
        self.read_owed(&mut state).await;
    }

    /// Reads what became durable and nobody was told. Who comes while it is being read waits for it.
    async fn follow_late(&self, follower: &Follower) {
        if !follower.late.is_any() {
            return;
        }
        let mut state = follower.state.lock().await;
        state.owed.extend(follower.late.take());
        if !state.owed.is_empty() {
            self.read_owed(&mut state).await;
        }
        follower.late.settle();
    }

    async fn read_owed(&self, state: &mut State) {
        let wanted = Wanted::Touched(state.owed.clone());
        match state.watch.look(&wanted).await {
            Ok(news) => {
                state.owed.clear();
                news.iter().for_each(|news| self.take(news));
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "what was stored cannot be read again: keys that it concerns are refused");
                for subject in &state.owed {
                    self.forget(subject.split('#').next().unwrap_or_default());
                }
            }
        }
    }

    /// Puts what is new into memory. New names come before old ones go, so that an alias that moves is always there.
    fn take(&self, news: &News) {
        let reading = self.root.reads();
        let mut unread = false;
        if news.whole {
            let gone = self.keys.select(|key| !news.keys.contains_key(&key.row.id));
            gone.iter().for_each(|key| self.forget(&key.row.id));
        }
        for (id, stored) in &news.keys {
            if let Err(error) = self.put(id, stored, news.whole) {
                tracing::error!(key = id, error = %Chain(&error), "a key cannot be used as it is stored and is refused");
                unread |= error.is_unread();
                self.forget(id);
            }
        }
        if unread {
            self.root.note_missed();
            self.keys.set_incomplete(Some(reading));
        } else if news.whole {
            self.keys.set_incomplete(None);
        }
        for (id, stored) in &news.keys {
            self.keys.keep_aliases(id, &stored.aliases);
        }
        for (key, id, grant) in &news.grants {
            match grant.clone().map(Grant::load) {
                Some(Ok(grant)) => self.grants.put(grant),
                Some(Err(error)) => {
                    tracing::error!(error = %Chain(&error), "a grant admits nobody");
                    self.grants.remove(key, id);
                }
                None => self.grants.remove(key, id),
            }
        }
    }

    /// All there is about one key, its grants too if they were read.
    fn put(&self, id: &str, stored: &StoredKey, whole: bool) -> Result<(), LoadError> {
        let Some((row, materials)) = &stored.key else {
            self.forget(id);
            return Ok(());
        };
        let key = Key::open(row.clone(), materials.clone(), self.root)?;
        let grants = stored.grants.iter().cloned().map(Grant::load);
        let grants = grants.collect::<Result<Vec<_>, _>>()?;
        self.tags.put(id, stored.tags.clone());
        if whole {
            let kept: BTreeSet<&str> = grants.iter().map(|grant| grant.id.as_str()).collect();
            let known = self.grants.ids(id).into_iter();
            let gone: Vec<_> = known
                .filter(|known| !kept.contains(known.as_str()))
                .collect();
            gone.iter().for_each(|gone| self.grants.remove(id, gone));
            grants.into_iter().for_each(|grant| self.grants.put(grant));
        }
        self.keys.put(key);
        for alias in &stored.aliases {
            self.keys.put_alias(alias.clone());
        }
        Ok(())
    }

    fn forget(&self, id: &str) {
        if let Some(key) = self.keys.get(id) {
            self.keys.remove(&key);
        }
        self.grants.remove_key(id);
        self.tags.put(id, crate::tags::Tags::new());
    }
}

impl ApiError {
    /// A failure of the store: one that may pass is the caller's to try again.
    pub(crate) fn store(error: &StoreError) -> Self {
        if error.is_passing() {
            tracing::error!(error = %Chain(error), "the database cannot be reached");
            return Self::timeout();
        }
        Self::internal(error)
    }

    /// What this server needs and does not have yet; `cause` goes to the log only.
    pub(crate) fn try_again(cause: &dyn std::error::Error) -> Self {
        tracing::error!(error = %Chain(cause), "a request cannot be answered yet");
        Self::timeout()
    }

    fn timeout() -> Self {
        Self::new(
            ErrorKind::DependencyTimeout,
            "The system timed out while trying to fulfill the request. You can retry the request.",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Change;

    #[tokio::test]
    async fn what_nobody_was_told_is_read_before_the_next_request() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(directory.path()).await.unwrap();
        let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
        let (keys, grants, tags) = (Keyring::default(), Grants::default(), TagStore::default());
        let memory = Memory {
            keys: &keys,
            grants: &grants,
            tags: &tags,
            root: &root,
        };
        let follower = Follower::new(&store, 0);
        // Durable, as if its caller had given up before.
        let key = crate::keyring::tests::row("k");
        let audit = crate::store::AuditRow {
            time_ms: 0,
            operation: "CreateKey".to_owned(),
            error_code: None,
            event: "{}".to_owned(),
            used: None,
        };
        let touched = store.change(Change::InsertKey(key), audit, None).await;
        memory.catch_up(&follower).await.unwrap();
        assert!(keys.get("k").is_none());
        store.late().add(touched.unwrap());
        memory.catch_up(&follower).await.unwrap();
        assert!(keys.get("k").is_some());
        assert!(!store.late().is_any());
    }
}
