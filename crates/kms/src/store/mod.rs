//! The durable store: one SQLite file, or a PostgreSQL database that several nodes share.
//!
//! ```text
//! handlers ── Change + audit row ──▶ writer task ──▶ BEGIN … COMMIT (fsync) ──▶ answers
//!          ── audit row alone ─────▶      │ one transaction for all that queued up
//! reads of lists and audit ── connections for reading
//! memory ── Watch ──▶ which keys did others change?        PostgreSQL alone
//! ```
//!
//! A *change* is answered only after its transaction, which also holds its audit row, is on disk (SQLite: WAL,
//! `synchronous=FULL`; PostgreSQL: `synchronous_commit` at least `on`). So is a refusal by policy and a release to an enclave.
//! Audit rows of all other calls are queued and committed within [`GATHER`]; a full queue makes callers wait. Once a
//! transaction has failed (disk full, for example) or hangs, [`Store::record`] waits for the disk too, so that no call is answered
//! that cannot be audited.
//!
//! Everything that requests need is also in memory ([`crate::keyring`]); the database is read when the process starts, for
//! lists, and for keys that changed ([`crate::memory`]).
//!
//! **Several nodes.** Every writing transaction first locks the one row of `state`, so that all of them, on all nodes, are in one
//! order, and so is the one audit trail. One that changes keys counts `change_seq` up and writes into `changes` which keys.
//! A change says which number the state had that it was computed from; if another node has changed the same keys since, it
//! is refused ([`StoreError::Raced`]) and computed again.

mod apply;
mod audit;
pub mod backup;
mod database;
mod health;
mod identities;
mod late;
mod look;
mod postgres;
mod principals;
mod resealed;
mod root_versions;
mod rows;
mod schema;
mod stored;
mod tables;
mod transfer;
mod usage;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::crypto::seal::RootKey;
use crate::error::Chain;
use crate::tags::Tags;

use database::{Access, Readers};
use health::Health;

pub use audit::{
    AuditRow, Flaw, Head, HeadError, Verified, append_audit, audit, audit_of, audit_tail,
    verify_audit,
};
pub use database::{Connection, Location, database_path};
pub use identities::{IdentityRow, delete_identity, identities, put_identity};
pub(crate) use late::Late;
pub use look::{Still, look};
pub use postgres::{AddressError, Servers};
pub use principals::{delete_principal, insert_principal, principals};
pub use resealed::{SealedRow, Secret, reseal, sealed_otherwise};
pub use root_versions::{newest_root, put_current_root, put_retired_root, refuse_retired_root};
pub use rows::{AliasRow, GrantRow, KeyRow, MaterialRow, PrincipalRow, key_id};
pub use stored::{News, StoredKey};
pub(crate) use stored::{Wanted, Watch};
pub use transfer::{Moved, TransferError, transfer};
pub use usage::{LastUse, Used};

/// How long audit rows may wait for company before they are committed.
const GATHER: Duration = Duration::from_millis(10);

/// Queue between handlers and the writer.
const QUEUE: usize = 16_384;

/// Most messages in one transaction.
const BATCH: usize = 2_000;

/// How long a request waits for a database that cannot be reached.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(100);

/// What the root key is checked by.
const ROOT_CHECK: &[u8] = b"enclos-kms root check 1";

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite or the disk, PostgreSQL or the network.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A unique row exists.
    #[error("a row with this key exists")]
    Conflict,
    /// The row to change is gone.
    #[error("the row to change does not exist")]
    Missing,
    /// Computed from what is no longer so.
    #[error("another node has changed keys meanwhile")]
    Raced,
    /// PostgreSQL's text cannot hold NUL, for example.
    #[error("a value cannot be stored in this database")]
    Unfit,
    /// Written by a newer program.
    #[error(
        "the database has schema {found}, this program knows up to {known}; use the newer enclos-kms"
    )]
    NewerSchema {
        /// In the database.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// Written by an older program, where this one cannot bring it up to date.
    #[error(
        "the database has schema {found}, this program needs {known} and cannot write here to bring it there; look at a copy in a directory that you can write, or use the older enclos-kms"
    )]
    OlderSchema {
        /// In the database.
        found: i64,
        /// In this program.
        known: i64,
    },
    /// It can be neither written nor read.
    #[error(
        "{} cannot be read, and nothing can be written there; see that you may read it, kms.db-wal and kms.db-shm beside it, or look at a copy of all three in a directory that you can write", .0.display()
    )]
    NotReadable(PathBuf, #[source] Box<Self>),
    /// It is on a read-only mount, or somebody else's.
    #[error(
        "{} or its directory cannot be written, which this command has to; run it where they can, as their owner", .0.display()
    )]
    NotWritable(PathBuf),
    /// The end of it is in the log, which cannot be read without writing.
    #[error(
        "the newest changes of {} are in kms.db-wal beside it, which cannot be read where nothing can be written; copy both into a directory that you can write and look there", .0.display()
    )]
    LogWithoutIndex(PathBuf),
    /// A server began to write what was taken for a file at rest.
    #[error(
        "{} was changed while it was read, so what was read is of no one moment; do it again", .0.display()
    )]
    ChangedMeanwhile(PathBuf),
    /// A row holds what this program never writes.
    #[error("the row of key {key} is damaged: {value:?} is no {column}")]
    Damaged {
        /// Which key.
        key: String,
        /// Which column.
        column: &'static str,
        /// What it holds.
        value: String,
    },
    /// The writer is gone.
    #[error("the database writer has stopped")]
    Stopped,
    /// The whole batch failed.
    #[error("the transaction failed: {0}")]
    Batch(String),
    /// The whole batch failed, or it is not known whether it did, because the database cannot be reached.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// No answer in time.
    #[error("the database did not answer in time")]
    Slow,
    /// No server lets us in.
    #[error("none of the servers {0} answers")]
    Unreachable(String),
    /// A copy that follows the server that is written.
    #[error(
        "the server {0} is a standby and cannot be written; name the primary, or every server with a --database of its own"
    )]
    Standby(String),
    /// The database is an older one than a moment ago.
    #[error(
        "the database is at change {found}, but this node has seen change {known}: acknowledged changes are lost, or it is another database; nothing is answered until it is put right or this node is started again"
    )]
    Behind {
        /// What it is at.
        found: i64,
        /// What it was at.
        known: i64,
    },
    /// Nodes of one database have one root key.
    #[error(
        "the database was made with another root key than this node has; copy root.key from a node that works"
    )]
    OtherRoot,
    /// Another node has retired what this one still seals under.
    #[error(
        "version {0} of the root key, which this node seals under, is retired and nothing may be stored under it again; copy root.key from a node that has a newer current version"
    )]
    RetiredRoot(u32),
    /// The file is not there.
    #[error(
        "there is no KMS database at {0}; start `enclos-kms serve --data` with that directory once"
    )]
    NoDatabase(PathBuf),
}

impl StoreError {
    /// The SQLSTATE that a PostgreSQL server sent, if it is one's error.
    fn state(&self) -> Option<String> {
        match self {
            Self::Database(sqlx::Error::Database(error)) => {
                error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
                error.code().map(|code| code.into_owned())
            }
            _ => None,
        }
    }

    /// Whether it may pass: the server is gone or goes, it is a standby, a transaction was in another's way.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        if let Some(state) = self.state() {
            let passing = [
                "25006", "40001", "40003", "40P01", "53300", "55P03", "57014",
            ];
            return passing.contains(&state.as_str())
                || state.starts_with("08")
                || state.starts_with("57P");
        }
        matches!(
            self,
            Self::Slow
                | Self::Unreachable(_)
                | Self::Standby(_)
                | Self::Unavailable(_)
                | Self::Database(
                    sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed
                )
        )
    }

    /// Whether a change may have failed because another node was first.
    #[must_use]
    pub fn is_lost_race(&self) -> bool {
        matches!(self, Self::Raced | Self::Conflict | Self::Missing)
    }

    /// Whether it says for certain that a transaction that was to be committed was not.
    fn is_certain(&self) -> bool {
        self.state().is_some_and(|state| {
            state != "40003" && !state.starts_with("08") && !state.starts_with("57")
        })
    }

    /// Whether PostgreSQL takes offence at a value.
    fn is_about_a_value(&self) -> bool {
        self.state().is_some_and(|state| state.starts_with("22"))
    }

    /// What each of those is told who waited for a transaction that failed.
    fn told(&self) -> Self {
        let text = Chain(self).to_string();
        match self.is_passing() {
            true => Self::Unavailable(text),
            false => Self::Batch(text),
        }
    }
}

/// A durable change.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new key.
    InsertKey(KeyRow),
    /// New values for all mutable columns of a key.
    UpdateKey(KeyRow),
    /// A key whose waiting period is over.
    DeleteKey(String),
    /// A new material, or all values of one that exists.
    PutMaterial(MaterialRow),
    /// A material that is forgotten: row id, version.
    DeleteMaterial(String, i64),
    /// A new alias.
    InsertAlias(AliasRow),
    /// An alias that points elsewhere.
    UpdateAlias(AliasRow),
    /// An alias that goes: account, region, name.
    DeleteAlias(String, String, String),
    /// A new grant.
    InsertGrant(GrantRow),
    /// A grant that is retired or revoked.
    DeleteGrant(String),
    /// All tags of a key.
    SetTags(String, Tags),
}

/// One change is as good as a list of one.
impl From<Change> for Vec<Change> {
    fn from(change: Change) -> Self {
        vec![change]
    }
}

enum Message {
    Change {
        changes: Vec<Change>,
        audit: AuditRow,
        /// The change that what they were computed from is not older than.
        base: Option<i64>,
        done: Done,
    },
    Record(AuditRow, Option<Done>),
    Flush(Done),
}

/// Tells whoever waits; of a change, which keys it touched.
type Done = oneshot::Sender<Result<Vec<String>, StoreError>>;

/// Handle of the store.
#[derive(Debug, Clone)]
pub struct Store {
    location: Location,
    queue: mpsc::Sender<Message>,
    /// Told after a message for whose end somebody waits.
    waited_for: Arc<Notify>,
    readers: Arc<Readers>,
    health: Arc<Health>,
    /// What seals the audit trail.
    sealer: Sealer,
    late: Arc<Late>,
}

/// The root key, once the service has it.
type Sealer = Arc<OnceLock<Arc<RootKey>>>;

/// The writer's task; it ends when every [`Store`] is dropped.
pub type Writer = tokio::task::JoinHandle<()>;

/// Opens a database that a server has used, for the tools beside it.
///
/// # Errors
/// If there is none, or it cannot be opened.
pub async fn connect(location: &Location) -> Result<Connection, StoreError> {
    if let Location::Sqlite(data) = location
        && !database_path(data).exists()
    {
        return Err(StoreError::NoDatabase(database_path(data)));
    }
    if let Location::Sqlite(data) = location
        && !look::is_writable(data)
    {
        return Err(StoreError::NotWritable(database_path(data)));
    }
    let mut connection = location.connect(Access::Write).await?;
    schema::migrate(&mut connection).await?;
    Ok(connection)
}

impl Store {
    /// Opens or makes the database and starts its writer.
    ///
    /// # Errors
    /// If it cannot be opened or is of a newer program.
    pub async fn open(location: impl Into<Location>) -> Result<(Self, Writer), StoreError> {
        let location = location.into();
        let mut connection = location.connect_at_the_start(Access::Create).await?;
        schema::migrate(&mut connection).await?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let store = Self {
            readers: Arc::new(Readers::new(location.clone(), Access::Read)),
            location,
            queue,
            waited_for: Arc::default(),
            health: Arc::default(),
            sealer: Sealer::default(),
            late: Arc::default(),
        };
        let writing = writer::Writing::new(
            store.location.clone(),
            connection,
            Arc::clone(&store.health),
            (Arc::clone(&store.sealer), Arc::clone(&store.late)),
            crate::crypto::uuid().map_err(|_| StoreError::Stopped)?,
        );
        let waited_for = Arc::clone(&store.waited_for);
        let writer = tokio::spawn(writer::write_all(writing, messages, waited_for));
        Ok((store, writer))
    }

    /// Opens a database that a server has used for reading alone; every change is refused.
    ///
    /// # Errors
    /// If there is none, or it cannot be opened.
    pub async fn reader(location: &Location) -> Result<Self, StoreError> {
        let (connection, still) = look(location).await?;
        connection.close().await?;
        let access = still.access();
        let (queue, _closed) = mpsc::channel(1);
        Ok(Self {
            location: location.clone(),
            queue,
            waited_for: Arc::default(),
            readers: Arc::new(Readers::new(location.clone(), access)),
            health: Arc::default(),
            sealer: Sealer::default(),
            late: Arc::default(),
        })
    }

    /// What became durable and nobody was told.
    pub(crate) fn late(&self) -> Arc<Late> {
        Arc::clone(&self.late)
    }

    /// Whether nodes share this database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.location, Location::Postgres(_))
    }

    /// From here on every transaction's audit rows are sealed under this root key. A database that nodes share takes the
    /// first one's and no other.
    ///
    /// # Errors
    /// If it has another, or fails.
    pub(crate) async fn seal_with(&self, root: Arc<RootKey>) -> Result<(), StoreError> {
        if self.is_shared() {
            let mut connection = self.location.connect_at_the_start(Access::Write).await?;
            check_root(&mut connection, &root).await?;
            connection.close().await?;
        }
        // Set once, by the service that the store belongs to.
        let _already = self.sealer.set(root);
        Ok(())
    }

    /// Whether the database has a root key, which a node then must have too.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn has_root(&self) -> Result<bool, StoreError> {
        if !self.is_shared() {
            return Ok(false);
        }
        let mut connection = self.location.connect_at_the_start(Access::Read).await?;
        let sql = "SELECT id FROM state WHERE id = 1 AND root_check IS NOT NULL";
        let row = connection.row(sql, &[]).await?;
        connection.close().await?;
        Ok(row.is_some())
    }

    /// Makes changes and their audit row durable, all or none; what they touched. With `base`, only if no other node
    /// has changed the same keys after the change of that number.
    ///
    /// # Errors
    /// If nothing was changed. With [`StoreError::Unavailable`] it is not known whether anything was.
    pub async fn change(
        &self,
        changes: impl Into<Vec<Change>>,
        audit: AuditRow,
        base: Option<i64>,
    ) -> Result<Vec<String>, StoreError> {
        let changes = changes.into();
        self.ask(|done| Message::Change {
            changes,
            audit,
            base,
            done,
        })
        .await
    }

    /// Queues an audit row. With `durable`, and always after a failed transaction and while one hangs, waits until it is on disk.
    ///
    /// # Errors
    /// If the row cannot be stored.
    pub async fn record(&self, audit: AuditRow, durable: bool) -> Result<(), StoreError> {
        if durable || !self.health.is_good() {
            self.ask(|done| Message::Record(audit, Some(done))).await?;
            return Ok(());
        }
        let queued = self.queue.send(Message::Record(audit, None)).await;
        queued.map_err(|_| StoreError::Stopped)
    }

    /// Waits until everything queued so far is durable.
    ///
    /// # Errors
    /// If the writer is gone.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.ask(Message::Flush).await.map(drop)
    }

    async fn ask(&self, message: impl FnOnce(Done) -> Message) -> Result<Vec<String>, StoreError> {
        let (done, answer) = oneshot::channel();
        self.queue
            .send(message(done))
            .await
            .map_err(|_| StoreError::Stopped)?;
        self.waited_for.notify_one();
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Audit rows and changes that wait for the writer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Whether the last transaction succeeded, none hangs and the writer still takes messages.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.queue.is_closed() && self.health.is_good()
    }

    /// Stores what is still to be stored, and gives up what takes longer than that: the audit rows among it go to the log.
    pub fn end_within(&self, time: Duration) {
        self.health.end_at(Instant::now() + time);
    }

    /// Closes the connections for reading.
    pub(crate) async fn end_reading(&self) {
        self.readers.close().await;
    }

    /// Notes that a reader found the database gone, although nothing need have been written since; the writer finds out
    /// when it is there again.
    pub(crate) fn suspect(&self) {
        if !self.health.suspect() {
            return;
        }
        let (done, _nobody_waits) = oneshot::channel();
        // With a full queue the writer has enough to find out by.
        let _full = self.queue.try_send(Message::Flush(done));
        self.waited_for.notify_one();
    }

    /// Ids of a place's keys after `after`, at most `limit`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_keys(
        &self,
        account: &str,
        region: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT id FROM keys WHERE account = $1 AND region = $2 AND id > $3 ORDER BY id LIMIT $4";
        let values = [account.into(), region.into(), after.into(), limit.into()];
        let rows = self.readers.rows(sql, &values).await?;
        rows.iter().map(|row| Ok(row.get(0)?)).collect()
    }

    /// A place's aliases after `after`, at most `limit`, of one key or of all.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_aliases(
        &self,
        account: &str,
        region: &str,
        key_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<AliasRow>, StoreError> {
        let sql = format!(
            "SELECT {} FROM aliases
             WHERE account = $1 AND region = $2 AND name > $3 AND ($4 IS NULL OR key_id = $4)
             ORDER BY name LIMIT $5",
            rows::ALIAS
        );
        let values = [
            account.into(),
            region.into(),
            after.into(),
            key_id.into(),
            limit.into(),
        ];
        let rows = self.readers.rows(&sql, &values).await?;
        rows.iter().map(rows::alias_row).collect()
    }
}

/// Gives a database without a root key this one, refuses another than it has.
async fn check_root(connection: &mut Connection, root: &RootKey) -> Result<(), StoreError> {
    let check = root.tag(ROOT_CHECK);
    let sql = "UPDATE state SET root_check = $1 WHERE id = 1 AND root_check IS NULL";
    connection.execute(sql, &[check.as_ref().into()]).await?;
    let row = connection
        .row("SELECT root_check FROM state WHERE id = 1", &[])
        .await?;
    let found: Vec<u8> = row.ok_or(StoreError::Missing)?.get(0)?;
    match root.is_tag(ROOT_CHECK, &found) {
        true => Ok(()),
        false => Err(StoreError::OtherRoot),
    }
}
