//! The durable store: one SQLite file, one writer.
//!
//! ```text
//! handlers ── Change + audit row ──▶ writer task ──▶ BEGIN … COMMIT (fsync) ──▶ answers
//!          ── audit row alone ─────▶      │ one transaction for all that queued up
//! reads of lists and audit ── pool of read-only connections
//! ```
//!
//! A *change* is answered only after its transaction, which also holds its audit row, is on disk (WAL,
//! `synchronous=FULL`). So is a refusal by policy and a release to an enclave. Audit rows of all other calls are
//! queued and committed within [`GATHER`]; a full queue makes callers wait. Once a transaction has failed (disk full, for example),
//! [`Store::record`] waits for the disk too, so that no call is answered that cannot be audited.
//!
//! Everything that requests need is also in memory ([`crate::keyring`]); the file is read when the
//! process starts and for lists.

mod audit;
mod grants;
mod identities;
mod resealed;
mod schema;
mod tags;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::crypto::seal::RootKey;
use crate::error::Chain;
use crate::spec::{KeySpec, KeyUsage, Origin};
use crate::tags::Tags;

pub use audit::{
    AuditRow, Flaw, Head, HeadError, Verified, append_audit, audit, audit_of, audit_tail,
    verify_audit,
};
pub use grants::GrantRow;
pub use identities::{IdentityRow, delete_identity, identities, put_identity};
pub use resealed::{SealedRow, Secret, reseal, sealed_otherwise};
pub use usage::{LastUse, Used};

/// How long audit rows may wait for company before they are committed.
const GATHER: Duration = Duration::from_millis(10);

/// Queue between handlers and the writer.
const QUEUE: usize = 16_384;

/// Most messages in one transaction.
const BATCH: usize = 2_000;

/// How long SQLite waits for another process's lock, `enclos-kms principal add` for example.
const BUSY: Duration = Duration::from_secs(10);

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite or the disk.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A unique row exists.
    #[error("a row with this key exists")]
    Conflict,
    /// The row to change is gone.
    #[error("the row to change does not exist")]
    Missing,
    /// Written by a newer program.
    #[error(
        "the database has schema {found}, this program knows up to {known}; use the newer enclos-kms"
    )]
    NewerSchema {
        /// In the file.
        found: i64,
        /// In this program.
        known: i64,
    },
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
    /// The file is not there.
    #[error(
        "there is no KMS database at {0}; start `enclos-kms serve --data` with that directory once"
    )]
    NoDatabase(PathBuf),
}

/// A key's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Key id; of a replica, the key id, `@` and its region. See [`key_id`].
    pub id: String,
    /// Account.
    pub account: String,
    /// Region.
    pub region: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Description.
    pub description: String,
    /// Not disabled.
    pub enabled: bool,
    /// When it will be deleted.
    pub deletion_ms: Option<i64>,
    /// Policy document.
    pub policy: String,
    /// What kind of key.
    pub spec: KeySpec,
    /// What it may do.
    pub usage: KeyUsage,
    /// Where its material comes from.
    pub origin: Origin,
    /// Of a multi-Region key, where its primary is.
    pub primary_region: Option<String>,
    /// Period of automatic rotation in days, when it is on.
    pub rotation_days: Option<i64>,
    /// When it rotates next, milliseconds since 1970.
    pub next_rotation_ms: Option<i64>,
    /// Waiting period in days of a primary that waits for its replicas' deletion.
    pub pending_days: Option<i64>,
}

/// The key id in a row's id: replicas of one key share it.
#[must_use]
pub fn key_id(row_id: &str) -> &str {
    row_id.split_once('@').map_or(row_id, |(id, _)| id)
}

/// One version of a key's material, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaterialRow {
    /// Id of the key's row.
    pub key_id: String,
    /// Counts from 1.
    pub version: i64,
    /// 32 bytes.
    pub material_id: Vec<u8>,
    /// Under the root key; empty when it was deleted or has expired.
    pub sealed: Vec<u8>,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Imported, and not rotated to yet.
    pub pending: bool,
    /// `AUTOMATIC` or `ON_DEMAND`, if a rotation made it current.
    pub rotation: Option<String>,
    /// When that was, milliseconds since 1970.
    pub rotated_ms: Option<i64>,
    /// When it expires, milliseconds since 1970.
    pub valid_to_ms: Option<i64>,
    /// What its importer says about it.
    pub description: Option<String>,
}

/// An alias's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    /// Account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `alias/…`.
    pub name: String,
    /// Where it points.
    pub key_id: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Last change, milliseconds since 1970.
    pub updated_ms: i64,
}

/// An access key's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalRow {
    /// Access key id.
    pub access_key_id: String,
    /// IAM ARN.
    pub arn: String,
    /// Secret access key under the root key.
    pub sealed_secret: Vec<u8>,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
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
        done: Done,
    },
    Record(AuditRow, Option<Done>),
    Flush(Done),
}

type Done = oneshot::Sender<Result<(), StoreError>>;

/// Handle of the store.
#[derive(Debug, Clone)]
pub struct Store {
    queue: mpsc::Sender<Message>,
    readers: SqlitePool,
    /// Whether the last transaction succeeded.
    healthy: Arc<AtomicBool>,
    /// What seals the audit trail.
    sealer: Sealer,
}

/// The root key, once the service has it.
type Sealer = Arc<OnceLock<Arc<RootKey>>>;

/// The writer's task; it ends when every [`Store`] is dropped.
pub type Writer = tokio::task::JoinHandle<()>;

/// Where the database is in a data directory.
#[must_use]
pub fn database_path(data: &Path) -> PathBuf {
    data.join("kms.db")
}

fn options(data: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(database_path(data))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
}

/// Opens the database of a data directory that a server has used, for the tools beside it.
///
/// # Errors
/// If there is none, or it cannot be opened.
pub async fn connect(data: &Path) -> Result<SqliteConnection, StoreError> {
    if !database_path(data).exists() {
        return Err(StoreError::NoDatabase(database_path(data)));
    }
    let mut connection = SqliteConnection::connect_with(&options(data)).await?;
    schema::migrate(&mut connection).await?;
    Ok(connection)
}

impl Store {
    /// Opens or makes the database and starts its writer.
    ///
    /// # Errors
    /// If the file cannot be opened or is of a newer program.
    pub async fn open(data: &Path) -> Result<(Self, Writer), StoreError> {
        let mut connection =
            SqliteConnection::connect_with(&options(data).create_if_missing(true)).await?;
        schema::migrate(&mut connection).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options(data).read_only(true))
            .await?;
        let (queue, messages) = mpsc::channel(QUEUE);
        let healthy = Arc::new(AtomicBool::new(true));
        let sealer = Sealer::default();
        let writer = Writing {
            connection,
            healthy: Arc::clone(&healthy),
            sealer: Arc::clone(&sealer),
        };
        let writer = tokio::spawn(write_all(writer, messages));
        Ok((
            Self {
                queue,
                readers,
                healthy,
                sealer,
            },
            writer,
        ))
    }

    /// Opens the database of a data directory that a server has used for reading alone; every change is refused.
    ///
    /// # Errors
    /// If there is none, or it cannot be opened.
    pub async fn reader(data: &Path) -> Result<Self, StoreError> {
        connect(data).await?.close().await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options(data).read_only(true))
            .await?;
        let (queue, _closed) = mpsc::channel(1);
        Ok(Self {
            queue,
            readers,
            healthy: Arc::new(AtomicBool::new(true)),
            sealer: Sealer::default(),
        })
    }

    /// From here on every transaction's audit rows are sealed under this root key.
    pub(crate) fn seal_with(&self, root: Arc<RootKey>) {
        // Set once, by the service that the store belongs to.
        let _already = self.sealer.set(root);
    }

    /// Makes changes and their audit row durable, all or none.
    ///
    /// # Errors
    /// If nothing was changed.
    pub async fn change(
        &self,
        changes: impl Into<Vec<Change>>,
        audit: AuditRow,
    ) -> Result<(), StoreError> {
        let changes = changes.into();
        self.ask(|done| Message::Change {
            changes,
            audit,
            done,
        })
        .await
    }

    /// Queues an audit row. With `durable`, and always after a failed transaction, waits until it is on disk.
    ///
    /// # Errors
    /// If the row cannot be stored.
    pub async fn record(&self, audit: AuditRow, durable: bool) -> Result<(), StoreError> {
        if durable || !self.healthy.load(Ordering::Relaxed) {
            return self.ask(|done| Message::Record(audit, Some(done))).await;
        }
        let queued = self.queue.send(Message::Record(audit, None)).await;
        queued.map_err(|_| StoreError::Stopped)
    }

    /// Waits until everything queued so far is durable.
    ///
    /// # Errors
    /// If the writer is gone.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.ask(Message::Flush).await
    }

    async fn ask(&self, message: impl FnOnce(Done) -> Message) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.queue
            .send(message(done))
            .await
            .map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Audit rows and changes that wait for the writer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Whether the last transaction succeeded and the writer still takes messages.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.queue.is_closed() && self.healthy.load(Ordering::Relaxed)
    }

    /// All keys.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, account, region, created_ms, description, enabled, deletion_ms, policy, spec, usage, origin,
                    primary_region, rotation_days, next_rotation_ms, pending_days FROM keys",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(key_row).collect()
    }

    /// All materials, oldest first for each key.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn materials(&self) -> Result<Vec<MaterialRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT key_id, version, material_id, sealed, created_ms, pending, rotation, rotated_ms, valid_to_ms, description
             FROM materials ORDER BY key_id, version",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(MaterialRow {
                    key_id: row.try_get(0)?,
                    version: row.try_get(1)?,
                    material_id: row.try_get(2)?,
                    sealed: row.try_get(3)?,
                    created_ms: row.try_get(4)?,
                    pending: row.try_get(5)?,
                    rotation: row.try_get(6)?,
                    rotated_ms: row.try_get(7)?,
                    valid_to_ms: row.try_get(8)?,
                    description: row.try_get(9)?,
                })
            })
            .collect()
    }

    /// All aliases.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn aliases(&self) -> Result<Vec<AliasRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT account, region, name, key_id, created_ms, updated_ms FROM aliases",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(alias_row).collect()
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
        let rows = sqlx::query(
            "SELECT id FROM keys WHERE account = ? AND region = ? AND id > ? ORDER BY id LIMIT ?",
        )
        .bind(account)
        .bind(region)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
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
        let rows = sqlx::query(
            "SELECT account, region, name, key_id, created_ms, updated_ms FROM aliases
             WHERE account = ? AND region = ? AND name > ? AND (? IS NULL OR key_id = ?)
             ORDER BY name LIMIT ?",
        )
        .bind(account)
        .bind(region)
        .bind(after)
        .bind(key_id)
        .bind(key_id)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(alias_row).collect()
    }

    /// An access key.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn principal(&self, access_key_id: &str) -> Result<Option<PrincipalRow>, StoreError> {
        let row = sqlx::query(
            "SELECT access_key_id, arn, sealed_secret, created_ms FROM principals WHERE access_key_id = ?",
        )
        .bind(access_key_id)
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(principal_row).transpose()
    }
}

fn key_row(row: &sqlx::sqlite::SqliteRow) -> Result<KeyRow, StoreError> {
    let id: String = row.try_get(0)?;
    let damaged = |column, value: &str| StoreError::Damaged {
        key: id.clone(),
        column,
        value: value.to_owned(),
    };
    let (spec, usage, origin): (String, String, String) =
        (row.try_get(8)?, row.try_get(9)?, row.try_get(10)?);
    Ok(KeyRow {
        account: row.try_get(1)?,
        region: row.try_get(2)?,
        created_ms: row.try_get(3)?,
        description: row.try_get(4)?,
        enabled: row.try_get(5)?,
        deletion_ms: row.try_get(6)?,
        policy: row.try_get(7)?,
        spec: KeySpec::from_name(&spec).ok_or_else(|| damaged("spec", &spec))?,
        usage: KeyUsage::from_name(&usage).ok_or_else(|| damaged("usage", &usage))?,
        origin: Origin::from_name(&origin).ok_or_else(|| damaged("origin", &origin))?,
        primary_region: row.try_get(11)?,
        rotation_days: row.try_get(12)?,
        next_rotation_ms: row.try_get(13)?,
        pending_days: row.try_get(14)?,
        id,
    })
}

fn alias_row(row: &sqlx::sqlite::SqliteRow) -> Result<AliasRow, StoreError> {
    Ok(AliasRow {
        account: row.try_get(0)?,
        region: row.try_get(1)?,
        name: row.try_get(2)?,
        key_id: row.try_get(3)?,
        created_ms: row.try_get(4)?,
        updated_ms: row.try_get(5)?,
    })
}

fn principal_row(row: &sqlx::sqlite::SqliteRow) -> Result<PrincipalRow, StoreError> {
    Ok(PrincipalRow {
        access_key_id: row.try_get(0)?,
        arn: row.try_get(1)?,
        sealed_secret: row.try_get(2)?,
        created_ms: row.try_get(3)?,
    })
}

/// Adds an access key; used by the tool, beside a running server or without one.
///
/// # Errors
/// If the database fails.
pub async fn insert_principal(
    connection: &mut SqliteConnection,
    row: &PrincipalRow,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO principals (access_key_id, arn, sealed_secret, created_ms) VALUES (?, ?, ?, ?)",
    )
    .bind(&row.access_key_id)
    .bind(&row.arn)
    .bind(&row.sealed_secret)
    .bind(row.created_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes an access key; whether there was one.
///
/// # Errors
/// If the database fails.
pub async fn delete_principal(
    connection: &mut SqliteConnection,
    access_key_id: &str,
) -> Result<bool, StoreError> {
    let result = sqlx::query("DELETE FROM principals WHERE access_key_id = ?")
        .bind(access_key_id)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() > 0)
}

/// All access keys, oldest first.
///
/// # Errors
/// If the database fails.
pub async fn principals(
    connection: &mut SqliteConnection,
) -> Result<Vec<PrincipalRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT access_key_id, arn, sealed_secret, created_ms FROM principals ORDER BY created_ms, access_key_id",
    )
    .fetch_all(connection)
    .await?;
    rows.iter().map(principal_row).collect()
}

// --- the writer -----------------------------------------------------------------------------------

/// What the writer's task has.
struct Writing {
    connection: SqliteConnection,
    healthy: Arc<AtomicBool>,
    sealer: Sealer,
}

async fn write_all(mut writing: Writing, mut messages: mpsc::Receiver<Message>) {
    while let Some(batch) = next_batch(&mut messages).await {
        write_batch(&mut writing, batch).await;
    }
    if let Err(error) = writing.connection.close().await {
        tracing::error!(%error, "closing the database failed");
    }
}

/// Waits for work, then takes what else is there. Changes do not wait for company.
async fn next_batch(messages: &mut mpsc::Receiver<Message>) -> Option<Vec<Message>> {
    let mut batch = vec![messages.recv().await?];
    let deadline = Instant::now() + GATHER;
    while batch.len() < BATCH {
        let urgent = batch
            .last()
            .is_some_and(|message| !matches!(message, Message::Record(_, None)));
        let next = if urgent {
            messages.try_recv().ok()
        } else {
            tokio::time::timeout_at(deadline, messages.recv())
                .await
                .ok()
                .flatten()
        };
        match next {
            Some(message) => batch.push(message),
            None => break,
        }
    }
    Some(batch)
}

/// Commits a batch, in the order in which it came, and answers those who wait.
///
/// A change that conflicts is undone on its own. If the transaction as a whole fails, everyone who waits is told
/// so, and audit rows that nobody waits for are tried once more without the changes.
async fn write_batch(writing: &mut Writing, batch: Vec<Message>) {
    let result = transact(writing, &batch).await;
    writing.healthy.store(result.is_ok(), Ordering::Relaxed);
    match result {
        Ok(outcomes) => {
            for (message, outcome) in batch.into_iter().zip(outcomes) {
                message.answer(outcome);
            }
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "a transaction failed, nothing of it was stored");
            let text = Chain(&error).to_string();
            let mut records = Vec::new();
            for message in batch {
                match message {
                    Message::Record(row, None) => records.push(Message::Record(row, None)),
                    other => other.answer(Err(StoreError::Batch(text.clone()))),
                }
            }
            rescue(writing, &records).await;
        }
    }
}

/// Writes audit rows of a failed transaction again. Their calls were answered, so if that fails too they go to
/// the log, and from then on no call is answered before its row is stored (see [`Store::record`]).
async fn rescue(writing: &mut Writing, records: &[Message]) {
    if records.is_empty() {
        return;
    }
    let Err(error) = transact(writing, records).await else {
        return;
    };
    tracing::error!(error = %Chain(&error), rows = records.len(), "audit rows could not be stored, they follow");
    for record in records {
        if let Message::Record(row, _) = record {
            tracing::error!(event = %row.event, "audit");
        }
    }
}

impl Message {
    /// Tells whoever waits. A handler that went away does not undo what is durable.
    fn answer(self, outcome: Result<(), StoreError>) {
        let waiting = match self {
            Self::Change { done, .. } | Self::Record(_, Some(done)) | Self::Flush(done) => done,
            Self::Record(_, None) => return,
        };
        let _gone = waiting.send(outcome);
    }
}

async fn transact(
    writing: &mut Writing,
    batch: &[Message],
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    let mut transaction = writing.connection.begin_with("BEGIN IMMEDIATE").await?;
    let before = audit::head(&mut transaction).await?;
    let mut head = before;
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut rows = Vec::new();
    for message in batch {
        let outcome = match message {
            Message::Record(row, _) => {
                rows.push(row);
                Ok(())
            }
            Message::Flush(_) => Ok(()),
            Message::Change { changes, audit, .. } => {
                audit::insert(&mut transaction, &mut head, &std::mem::take(&mut rows)).await?;
                change_once(&mut transaction, &mut head, changes, audit).await?
            }
        };
        outcomes.push(outcome);
    }
    audit::insert(&mut transaction, &mut head, &rows).await?;
    if let Some(root) = writing.sealer.get()
        && head != before
    {
        audit::seal(&mut transaction, &head, root).await?;
    }
    transaction.commit().await?;
    Ok(outcomes)
}

/// Makes one message's changes and its audit row, or none. The outer error is the transaction's, the inner the change's.
async fn change_once(
    transaction: &mut SqliteConnection,
    head: &mut Head,
    changes: &[Change],
    audit: &AuditRow,
) -> Result<Result<(), StoreError>, StoreError> {
    let mut savepoint = transaction.begin().await?;
    match apply_all(&mut savepoint, changes).await {
        Ok(()) => {
            audit::insert(&mut savepoint, head, &[audit]).await?;
            savepoint.commit().await?;
            Ok(Ok(()))
        }
        Err(error @ (StoreError::Conflict | StoreError::Missing)) => {
            savepoint.rollback().await?;
            Ok(Err(error))
        }
        Err(error) => Err(error),
    }
}

async fn apply_all(
    connection: &mut SqliteConnection,
    changes: &[Change],
) -> Result<(), StoreError> {
    for change in changes {
        apply(connection, change).await?;
    }
    Ok(())
}

async fn apply(connection: &mut SqliteConnection, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::InsertKey(key) => insert_key(connection, key).await,
        Change::UpdateKey(key) => update_key(connection, key).await,
        Change::PutMaterial(material) => put_material(connection, material).await,
        Change::DeleteMaterial(key_id, version) => {
            let query = sqlx::query("DELETE FROM materials WHERE key_id = ? AND version = ?")
                .bind(key_id)
                .bind(version);
            one_row(query.execute(connection).await)
        }
        Change::DeleteKey(id) => {
            let query = sqlx::query("DELETE FROM keys WHERE id = ?").bind(id);
            one_row(query.execute(connection).await)
        }
        Change::InsertAlias(alias) => {
            let query = sqlx::query(
                "INSERT INTO aliases (key_id, updated_ms, created_ms, account, region, name) VALUES (?, ?, ?, ?, ?, ?)",
            )
            .bind(&alias.key_id)
            .bind(alias.updated_ms)
            .bind(alias.created_ms)
            .bind(&alias.account)
            .bind(&alias.region)
            .bind(&alias.name);
            one_row(query.execute(connection).await)
        }
        Change::UpdateAlias(alias) => {
            let query = sqlx::query(
                "UPDATE aliases SET key_id = ?, updated_ms = ? WHERE account = ? AND region = ? AND name = ?",
            )
            .bind(&alias.key_id)
            .bind(alias.updated_ms)
            .bind(&alias.account)
            .bind(&alias.region)
            .bind(&alias.name);
            one_row(query.execute(connection).await)
        }
        Change::DeleteAlias(account, region, name) => {
            let query =
                sqlx::query("DELETE FROM aliases WHERE account = ? AND region = ? AND name = ?")
                    .bind(account)
                    .bind(region)
                    .bind(name);
            one_row(query.execute(connection).await)
        }
        Change::InsertGrant(grant) => grants::insert(connection, grant).await,
        Change::DeleteGrant(id) => grants::delete(connection, id).await,
        Change::SetTags(key_id, tags) => tags::set(connection, key_id, tags).await,
    }
}

async fn insert_key(connection: &mut SqliteConnection, key: &KeyRow) -> Result<(), StoreError> {
    let query = sqlx::query(
        "INSERT INTO keys (id, account, region, created_ms, spec, usage, origin, policy, description, enabled)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&key.id)
    .bind(&key.account)
    .bind(&key.region)
    .bind(key.created_ms)
    .bind(key.spec.name())
    .bind(key.usage.name())
    .bind(key.origin.name())
    .bind(&key.policy)
    .bind(&key.description)
    .bind(key.enabled);
    one_row(query.execute(&mut *connection).await)?;
    update_key(connection, key).await
}

async fn update_key(connection: &mut SqliteConnection, key: &KeyRow) -> Result<(), StoreError> {
    let query = sqlx::query(
        "UPDATE keys SET description = ?, enabled = ?, deletion_ms = ?, policy = ?, primary_region = ?,
                rotation_days = ?, next_rotation_ms = ?, pending_days = ? WHERE id = ?",
    )
    .bind(&key.description)
    .bind(key.enabled)
    .bind(key.deletion_ms)
    .bind(&key.policy)
    .bind(&key.primary_region)
    .bind(key.rotation_days)
    .bind(key.next_rotation_ms)
    .bind(key.pending_days)
    .bind(&key.id);
    one_row(query.execute(connection).await)
}

async fn put_material(
    connection: &mut SqliteConnection,
    material: &MaterialRow,
) -> Result<(), StoreError> {
    let query = sqlx::query(
        "INSERT OR REPLACE INTO materials
                (key_id, version, material_id, sealed, created_ms, pending, rotation, rotated_ms, valid_to_ms, description)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&material.key_id)
    .bind(material.version)
    .bind(&material.material_id)
    .bind(&material.sealed)
    .bind(material.created_ms)
    .bind(material.pending)
    .bind(&material.rotation)
    .bind(material.rotated_ms)
    .bind(material.valid_to_ms)
    .bind(&material.description);
    one_row(query.execute(connection).await)
}

fn one_row(result: Result<sqlx::sqlite::SqliteQueryResult, sqlx::Error>) -> Result<(), StoreError> {
    match result {
        Ok(result) if result.rows_affected() == 1 => Ok(()),
        Ok(_) => Err(StoreError::Missing),
        Err(sqlx::Error::Database(error))
            if error.is_unique_violation() || error.is_foreign_key_violation() =>
        {
            Err(StoreError::Conflict)
        }
        Err(error) => Err(error.into()),
    }
}
