//! All rows of a database, read from one and written to another, of the same kind or not.
//!
//! What goes is every table but those that say how the database itself is doing (`schema_migrations`, `state`, `changes`).
//! The reading is of one moment, the writing one transaction into an empty database, and before it is committed the
//! audit trail there must verify up to the head that it had here.

use super::audit::{self, Head};
use super::database::{Record, Value};
use super::usage::{RECORDING_SINCE_POSTGRES, RECORDING_SINCE_SQLITE};
use super::{Connection, StoreError, check_root};
use crate::crypto::seal::RootKey;

/// Rows read and written at a time.
const PAGE: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    Text,
    Bytes,
    Flag,
}

use Kind::{Bytes, Flag, Integer, Text};

/// A table; the first columns, so many, are its key.
struct Table {
    name: &'static str,
    key: usize,
    columns: &'static [(&'static str, Kind)],
}

/// In an order in which no row names one that is not there yet.
const TABLES: &[Table] = &[
    Table {
        name: "keys",
        key: 1,
        columns: &[
            ("id", Text),
            ("account", Text),
            ("region", Text),
            ("created_ms", Integer),
            ("description", Text),
            ("enabled", Flag),
            ("deletion_ms", Integer),
            ("policy", Text),
            ("spec", Text),
            ("usage", Text),
            ("origin", Text),
            ("primary_region", Text),
            ("rotation_days", Integer),
            ("next_rotation_ms", Integer),
            ("pending_days", Integer),
        ],
    },
    Table {
        name: "materials",
        key: 2,
        columns: &[
            ("key_id", Text),
            ("version", Integer),
            ("material_id", Bytes),
            ("sealed", Bytes),
            ("created_ms", Integer),
            ("pending", Flag),
            ("rotation", Text),
            ("rotated_ms", Integer),
            ("valid_to_ms", Integer),
            ("description", Text),
        ],
    },
    Table {
        name: "aliases",
        key: 3,
        columns: &[
            ("account", Text),
            ("region", Text),
            ("name", Text),
            ("key_id", Text),
            ("created_ms", Integer),
            ("updated_ms", Integer),
        ],
    },
    Table {
        name: "grants",
        key: 1,
        columns: &[
            ("id", Text),
            ("key_id", Text),
            ("created_ms", Integer),
            ("terms", Text),
        ],
    },
    Table {
        name: "tags",
        key: 1,
        columns: &[("key_id", Text), ("tags", Text)],
    },
    Table {
        name: "principals",
        key: 1,
        columns: &[
            ("access_key_id", Text),
            ("arn", Text),
            ("sealed_secret", Bytes),
            ("created_ms", Integer),
        ],
    },
    Table {
        name: "identities",
        key: 1,
        columns: &[
            ("arn", Text),
            ("unique_id", Text),
            ("created_ms", Integer),
            ("profile", Text),
        ],
    },
    Table {
        name: "key_usage",
        key: 1,
        columns: &[
            ("key_id", Text),
            ("operation", Text),
            ("time_ms", Integer),
            ("event_id", Text),
            ("request_id", Text),
        ],
    },
    Table {
        name: "audit",
        key: 1,
        columns: &[
            ("seq", Integer),
            ("time_ms", Integer),
            ("operation", Text),
            ("error_code", Text),
            ("event", Text),
            ("hash", Bytes),
            ("seal", Bytes),
        ],
    },
];

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cell {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Flag(bool),
}

impl Cell {
    fn read(record: &Record, column: usize, kind: Kind) -> Result<Self, sqlx::Error> {
        Ok(match kind {
            Kind::Integer => Self::Integer(record.get(column)?),
            Kind::Text => Self::Text(record.get(column)?),
            Kind::Bytes => Self::Bytes(record.get(column)?),
            Kind::Flag => Self::Flag(record.get(column)?),
        })
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Integer(value) => Value::Integer(*value),
            Self::Text(value) => Value::Text(value.as_deref()),
            Self::Bytes(value) => Value::Bytes(value.as_deref()),
            Self::Flag(value) => Value::Flag(*value),
        }
    }
}

impl Table {
    fn names(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// Rows after the one with that key, in the order of keys.
    async fn page(
        &self,
        connection: &mut Connection,
        after: Option<&[Cell]>,
    ) -> Result<Vec<Vec<Cell>>, StoreError> {
        let keys: Vec<&str> = self
            .columns
            .iter()
            .take(self.key)
            .map(|(n, _)| *n)
            .collect();
        let keys = keys.join(", ");
        let wanted = match after {
            Some(_) => format!("WHERE ({keys}) > {}", connection.tuples(1, self.key)),
            None => String::new(),
        };
        let sql = format!(
            "SELECT {} FROM {} {wanted} ORDER BY {keys} LIMIT {PAGE}",
            self.names(),
            self.name
        );
        let after = after.unwrap_or_default().iter().take(self.key);
        let values: Vec<Value<'_>> = after.map(Cell::value).collect();
        let rows = connection.rows(&sql, &values).await?;
        let row = |record: &Record| {
            let cells = self.columns.iter().enumerate();
            let cells = cells.map(|(at, (_, kind))| Cell::read(record, at, *kind));
            cells.collect::<Result<Vec<_>, _>>()
        };
        Ok(rows.iter().map(row).collect::<Result<Vec<_>, _>>()?)
    }

    async fn insert(
        &self,
        connection: &mut Connection,
        rows: &[Vec<Cell>],
    ) -> Result<(), StoreError> {
        let sql = format!(
            "INSERT INTO {} ({}) VALUES {}",
            self.name,
            self.names(),
            connection.tuples(rows.len(), self.columns.len())
        );
        let values: Vec<Value<'_>> = rows.iter().flatten().map(Cell::value).collect();
        connection.execute_once(&sql, &values).await?;
        Ok(())
    }

    async fn count(&self, connection: &mut Connection) -> Result<i64, StoreError> {
        let sql = format!("SELECT COUNT(*) FROM {}", self.name);
        let row = connection.row(&sql, &[]).await?;
        Ok(row.ok_or(StoreError::Missing)?.get(0)?)
    }
}

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// One of the databases.
    #[error("moving failed, the target is as it was")]
    Store(#[from] StoreError),
    /// Nothing is ever overwritten or mixed.
    #[error("the target is not empty: its table {0} has {1} rows; name an empty database")]
    NotEmpty(&'static str, i64),
    /// Rows are missing.
    #[error(
        "the table {table} has {from} rows in the source and {to} in the target; the target is as it was"
    )]
    Count {
        /// Which.
        table: &'static str,
        /// In the source.
        from: i64,
        /// In the target.
        to: i64,
    },
    /// The audit trail is not what it was.
    #[error("the audit trail does not verify: row {0}: {1}; nothing was moved")]
    Trail(i64, super::Flaw),
}

impl From<sqlx::Error> for TransferError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Rows that were moved, by table, and the head of the audit trail.
#[derive(Debug)]
pub struct Moved {
    /// Table and number of rows.
    pub rows: Vec<(&'static str, i64)>,
    /// Of the audit trail.
    pub head: Head,
}

/// Copies everything from one database to another, empty one. While it does, nobody can write to either.
///
/// # Errors
/// If anything fails; then the target is as it was.
pub async fn transfer(
    from: &mut Connection,
    to: &mut Connection,
    root: &RootKey,
) -> Result<Moved, TransferError> {
    from.begin().await?;
    to.begin().await?;
    for table in TABLES {
        let rows = table.count(to).await?;
        if rows != 0 {
            return Err(TransferError::NotEmpty(table.name, rows));
        }
    }
    for table in TABLES {
        let mut page = table.page(from, None).await?;
        while let Some(last) = page.last() {
            table.insert(to, &page).await?;
            page = table.page(from, Some(last)).await?;
        }
    }
    carry_recording_since(from, to).await?;
    if to.is_shared() {
        check_root(to, root).await?;
    }
    let mut rows = Vec::new();
    for table in TABLES {
        let (there, here) = (table.count(from).await?, table.count(to).await?);
        if there != here {
            return Err(TransferError::Count {
                table: table.name,
                from: there,
                to: here,
            });
        }
        rows.push((table.name, here));
    }
    let head = audit::head(from).await?;
    let verified = audit::verify_audit(to, root, Some(head)).await?;
    if let Some((seq, flaw)) = verified.flaw {
        return Err(TransferError::Trail(seq, flaw));
    }
    to.commit().await?;
    from.rollback().await?;
    Ok(Moved { rows, head })
}

/// Since when uses of keys are recorded goes with the records.
async fn carry_recording_since(
    from: &mut Connection,
    to: &mut Connection,
) -> Result<(), StoreError> {
    let sql = match from.is_shared() {
        true => RECORDING_SINCE_POSTGRES,
        false => RECORDING_SINCE_SQLITE,
    };
    let row = from.row(sql, &[]).await?.ok_or(StoreError::Missing)?;
    let since_ms: i64 = row.get(0)?;
    let sql = match to.is_shared() {
        true => "UPDATE state SET usage_since_ms = $1 WHERE id = 1",
        false => {
            "UPDATE schema_migrations SET applied_at = datetime($1 / 1000, 'unixepoch')
             WHERE description = 'last use of keys'"
        }
    };
    to.execute(sql, &[since_ms.into()]).await?;
    Ok(())
}
