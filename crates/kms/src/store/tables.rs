//! What a database holds, as tables, columns and rows that can be read from one and written to another, of the same kind or not.
//!
//! That is every table but those that say how the database itself is doing (`schema_migrations`, `state`, `changes`).

use super::database::{Record, Value};
use super::usage::{RECORDING_SINCE_POSTGRES, RECORDING_SINCE_SQLITE};
use super::{Connection, StoreError};

/// Rows read and written at a time.
pub(super) const PAGE: usize = 200;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Text,
    Bytes,
    Flag,
}

use Kind::{Bytes, Flag, Integer, Text};

/// A table; the first columns, so many, are its key.
pub(super) struct Table {
    pub(super) name: &'static str,
    key: usize,
    pub(super) columns: &'static [(&'static str, Kind)],
}

/// In an order in which no row names one that is not there yet.
pub(super) const TABLES: &[Table] = &[
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
    Table {
        name: "root_versions",
        key: 1,
        columns: &[("version", Integer), ("retired", Flag)],
    },
];

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
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
    pub(super) async fn page(
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

    pub(super) async fn insert(
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

    pub(super) async fn count(&self, connection: &mut Connection) -> Result<i64, StoreError> {
        let sql = format!("SELECT COUNT(*) FROM {}", self.name);
        let row = connection.row(&sql, &[]).await?;
        Ok(row.ok_or(StoreError::Missing)?.get(0)?)
    }
}

/// Since when uses of keys are recorded, milliseconds since 1970.
pub(super) async fn recording_since(connection: &mut Connection) -> Result<i64, StoreError> {
    let sql = match connection.is_shared() {
        true => RECORDING_SINCE_POSTGRES,
        false => RECORDING_SINCE_SQLITE,
    };
    let row = connection.row(sql, &[]).await?.ok_or(StoreError::Missing)?;
    Ok(row.get(0)?)
}

/// That goes with the records.
pub(super) async fn set_recording_since(
    connection: &mut Connection,
    since_ms: i64,
) -> Result<(), StoreError> {
    let sql = match connection.is_shared() {
        true => "UPDATE state SET usage_since_ms = $1 WHERE id = 1",
        false => {
            "UPDATE schema_migrations SET applied_at = datetime($1 / 1000, 'unixepoch')
             WHERE description = 'last use of keys'"
        }
    };
    connection.execute(sql, &[since_ms.into()]).await?;
    Ok(())
}
