//! The boundary to the databases: a connection that is SQLite's or PostgreSQL's, statements that both understand.
//!
//! Statements number their values (`$1`), conflicts are `ON CONFLICT`, and numbers are 64 bits. Where the two differ there
//! is a statement for each. Nothing outside `store` sees a database's own types.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Executor as _, Postgres, Row as _, Sqlite};
use tokio::sync::{Mutex, Semaphore};

use super::postgres::Servers;
use super::{PAUSE, StoreError, look};
use crate::error::Chain;

/// How long SQLite waits for another process's lock, `enclos-kms principal add` for example.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// How long one read may take, its wait for a connection included, before its connection is given up.
const READ_TIME: Duration = Duration::from_secs(5);

/// How long a process that starts tries to reach a server.
const AT_THE_START: Duration = Duration::from_secs(20);

/// So many files are opened at once.
const OPENED_AT_ONCE: usize = 16;

/// Connections for reading.
const READERS: usize = 2;

/// Where a KMS keeps its state.
#[derive(Debug, Clone)]
pub enum Location {
    /// One file, in this data directory.
    Sqlite(PathBuf),
    /// A database that nodes share.
    Postgres(Servers),
}

impl From<&Path> for Location {
    fn from(data: &Path) -> Self {
        Self::Sqlite(data.to_owned())
    }
}

impl From<Servers> for Location {
    fn from(servers: Servers) -> Self {
        Self::Postgres(servers)
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(data) => write!(f, "{}", database_path(data).display()),
            Self::Postgres(servers) => write!(f, "{servers}"),
        }
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Writing; a file is made if there is none.
    Create,
    /// Writing to what exists.
    Write,
    /// Reading.
    Read,
    /// Reading where nothing can be written. It asks the file system how that is done, so it is nothing for servers.
    Look,
}

/// Where the database is in a data directory.
#[must_use]
pub fn database_path(data: &Path) -> PathBuf {
    data.join("kms.db")
}

fn sqlite_options(data: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(database_path(data))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY)
}

/// Opens the file. On a disk that hangs this never ends, and nothing ends the thread that it takes; who gives up waiting leaves its
/// place taken, so that such threads do not pile up.
async fn open_file(options: SqliteConnectOptions) -> Result<SqliteConnection, StoreError> {
    static OPENING: Semaphore = Semaphore::const_new(OPENED_AT_ONCE);
    let place = OPENING.acquire().await.map_err(|_| StoreError::Stopped)?;
    let opening = tokio::spawn(async move {
        let opened = SqliteConnection::connect_with(&options).await;
        drop(place);
        opened
    });
    Ok(opening.await.map_err(|_| StoreError::Stopped)??)
}

impl Location {
    pub(super) async fn connect(&self, access: Access) -> Result<Connection, StoreError> {
        match self {
            Self::Sqlite(data) if access == Access::Look => {
                let opened = open_file(look::options(data)?).await;
                Ok(Connection::Sqlite(opened.map_err(|source| {
                    StoreError::NotReadable(database_path(data), Box::new(source))
                })?))
            }
            Self::Sqlite(data) => {
                let options = sqlite_options(data)
                    .create_if_missing(access == Access::Create)
                    .read_only(access == Access::Read);
                Ok(Connection::Sqlite(open_file(options).await?))
            }
            Self::Postgres(servers) => Ok(Connection::Postgres(servers.connect().await?)),
        }
    }
}

impl Location {
    /// The same for a process that starts: a database that starts too, fails over or is busy is waited for.
    pub(super) async fn connect_at_the_start(
        &self,
        access: Access,
    ) -> Result<Connection, StoreError> {
        let deadline = Instant::now() + AT_THE_START;
        let mut told = false;
        loop {
            let error = match self.connect(access).await {
                Err(error) if error.is_passing() && Instant::now() < deadline => error,
                connected => return connected,
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(error = %Chain(&error), "waiting for the database, {} s at most", AT_THE_START.as_secs());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub enum Connection {
    /// To a file.
    Sqlite(SqliteConnection),
    /// To a server.
    Postgres(PgConnection),
}

/// A value of a statement. Those that may be missing say what they would be: PostgreSQL wants to know.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Integer(Option<i64>),
    Text(Option<&'a str>),
    Bytes(Option<&'a [u8]>),
    Flag(bool),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(Some(value))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Self::Integer(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a Option<String>> for Value<'a> {
    fn from(value: &'a Option<String>) -> Self {
        Self::Text(value.as_deref())
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(Some(value))
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Flag(value)
    }
}

/// A statement with its values, for whichever database runs it.
macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        let values: &[Value<'_>] = $values;
        let mut query = sqlx::query($sql);
        for value in values {
            query = match *value {
                Value::Integer(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
                Value::Flag(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Connection {
    /// Runs a statement; how many rows it changed. Statements made up as they go are not kept prepared.
    pub(super) async fn execute(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        self.run(sql, values, true).await
    }

    /// The same for a statement that is seldom the same again.
    pub(super) async fn execute_once(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        self.run(sql, values, false).await
    }

    async fn run(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
        keep: bool,
    ) -> Result<u64, StoreError> {
        let rows = match self {
            Self::Sqlite(connection) => {
                let query = bound!(sql, values).persistent(keep);
                query.execute(connection).await?.rows_affected()
            }
            Self::Postgres(connection) => {
                let query = bound!(sql, values).persistent(keep);
                query.execute(connection).await?.rows_affected()
            }
        };
        Ok(rows)
    }

    /// The rows that a statement gives.
    pub(super) async fn rows(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<Vec<Record>, StoreError> {
        Ok(match self {
            Self::Sqlite(connection) => {
                let rows = bound!(sql, values).fetch_all(connection).await?;
                rows.into_iter().map(Record::Sqlite).collect()
            }
            Self::Postgres(connection) => {
                let rows = bound!(sql, values).fetch_all(connection).await?;
                rows.into_iter().map(Record::Postgres).collect()
            }
        })
    }

    /// The first row, if there is one.
    pub(super) async fn row(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<Option<Record>, StoreError> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Runs statements without values, one after the other.
    pub(super) async fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(connection) => connection.execute(sql).await.map(drop)?,
            Self::Postgres(connection) => connection.execute(sql).await.map(drop)?,
        }
        Ok(())
    }

    /// Places for a statement's values, all of them in their order: `(?, ?), (?, ?)`, or `($1, $2), ($3, $4)`. SQLite takes
    /// `$1` for a name and looks each name up among all before it, which is most of the time of a statement of 3,000 values.
    pub(super) fn tuples(&self, rows: usize, columns: usize) -> String {
        let place = |index: usize| match self {
            Self::Sqlite(_) => "?".to_owned(),
            Self::Postgres(_) => format!("${index}"),
        };
        let tuple = |row: usize| {
            let places = (1..=columns).map(|column| place(row * columns + column));
            format!("({})", places.collect::<Vec<_>>().join(", "))
        };
        (0..rows).map(tuple).collect::<Vec<_>>().join(", ")
    }

    /// Whether nodes share this database.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Starts a transaction that will write and waits until it is the only one: with SQLite for the file's lock, with
    /// PostgreSQL for the lock of the one row that every writing transaction takes. So all of them are in one order,
    /// whatever the isolation level; `READ COMMITTED` lets each see what those before it did.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        if !self.is_shared() {
            return self.script("BEGIN IMMEDIATE").await;
        }
        self.script("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        self.rows("SELECT id FROM state WHERE id = 1 FOR UPDATE", &[])
            .await?;
        Ok(())
    }

    /// Starts a transaction that sees one state of everything.
    pub(super) async fn begin_reading(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(_) => self.script("BEGIN").await,
            Self::Postgres(_) => {
                self.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    .await
            }
        }
    }

    /// Makes a transaction durable.
    ///
    /// # Errors
    /// If the database fails. Then it is not known whether it was made durable.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        self.script("COMMIT").await
    }

    /// Undoes a transaction.
    pub(super) async fn rollback(&mut self) -> Result<(), StoreError> {
        self.script("ROLLBACK").await
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn close(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(connection) => connection.close().await?,
            Self::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }
}

/// A row of whichever database.
pub(super) enum Record {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What both databases can hold in a column.
pub(super) trait Held:
    for<'r> sqlx::Decode<'r, Sqlite>
    + sqlx::Type<Sqlite>
    + for<'r> sqlx::Decode<'r, Postgres>
    + sqlx::Type<Postgres>
{
}

impl<T> Held for T where
    T: for<'r> sqlx::Decode<'r, Sqlite>
        + sqlx::Type<Sqlite>
        + for<'r> sqlx::Decode<'r, Postgres>
        + sqlx::Type<Postgres>
{
}

impl Record {
    /// The column of that number.
    pub(super) fn get<T: Held>(&self, column: usize) -> Result<T, sqlx::Error> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
    }
}

/// Closes a connection for reading, if there is one. One that is only dropped is open for a while still.
pub(super) async fn close(connection: Option<Connection>) {
    if let Some(connection) = connection
        && let Err(error) = connection.close().await
    {
        tracing::debug!(error = %Chain(&error), "closing a connection for reading failed");
    }
}

/// Connections for reading. One that fails is given up and made anew by whoever needs it next.
#[derive(Debug)]
pub(super) struct Readers {
    location: Location,
    access: Access,
    idle: Vec<Mutex<Option<Connection>>>,
    next: AtomicUsize,
}

impl Readers {
    pub(super) fn new(location: Location, access: Access) -> Self {
        Self {
            location,
            access,
            idle: (0..READERS).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// How they are opened.
    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// The rows that a statement gives. A connection that was open and fails is tried once more, anew: the server may
    /// have been restarted since it was used last.
    pub(super) async fn rows(
        &self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<Vec<Record>, StoreError> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % READERS;
        let Some(slot) = self.idle.get(next) else {
            return Err(StoreError::Stopped);
        };
        let read = async {
            let mut slot = match self.idle.iter().find_map(|slot| slot.try_lock().ok()) {
                Some(slot) => slot,
                None => slot.lock().await,
            };
            // Taken out, so that a read that is given up half-way does not leave its rest to the next.
            if let Some(mut connection) = slot.take()
                && let Ok(rows) = connection.rows(sql, values).await
            {
                *slot = Some(connection);
                return Ok(rows);
            }
            let mut connection = self.location.connect(self.access).await?;
            let rows = connection.rows(sql, values).await?;
            *slot = Some(connection);
            Ok(rows)
        };
        tokio::time::timeout(READ_TIME, read)
            .await
            .map_err(|_| StoreError::Slow)?
    }

    /// Closes the connections that nobody uses.
    pub(super) async fn close(&self) {
        for slot in &self.idle {
            close(slot.try_lock().ok().and_then(|mut slot| slot.take())).await;
        }
    }

    pub(super) async fn row(
        &self,
        sql: &str,
        values: &[Value<'_>],
    ) -> Result<Option<Record>, StoreError> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_do_not_queue_behind_reads_that_hang() {
        let directory = tempfile::tempdir().unwrap();
        let readers = std::sync::Arc::new(Readers::new(directory.path().into(), Access::Read));
        let mut hanging = Vec::new();
        for slot in &readers.idle {
            hanging.push(slot.lock().await);
        }
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let readers = std::sync::Arc::clone(&readers);
            reads.spawn(async move { readers.rows("SELECT 1", &[]).await.map(drop) });
        }
        // In turns it would be for ever.
        let all = tokio::time::timeout(READ_TIME * 4, reads.join_all()).await;
        let mut all = all.unwrap().into_iter();
        assert!(all.all(|read| matches!(read, Err(StoreError::Slow))));
    }
}
