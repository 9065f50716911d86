//! When keys were last used: one row for each key, written in the transaction that holds the audit row.

use std::collections::HashMap;

use super::database::{Location, Value};
use super::{AuditRow, Connection, Store, StoreError};

/// Uses in one statement: five values each.
const ROWS: usize = 500;

/// The keys that a cryptographic operation used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Ids of their rows.
    pub keys: Vec<String>,
    /// Id of the audit event.
    pub event_id: String,
    /// Id of the request.
    pub request_id: String,
}

/// The last use of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastUse {
    /// AWS operation.
    pub operation: String,
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// Id of the audit event.
    pub event_id: String,
    /// Id of the request.
    pub request_id: String,
}

impl Store {
    /// When a key was last used, if it was. Of what other nodes answered in the last instants they may not have told yet.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn last_use(&self, key_id: &str) -> Result<Option<LastUse>, StoreError> {
        // What was answered before is then in the file.
        self.flush().await?;
        let sql =
            "SELECT operation, time_ms, event_id, request_id FROM key_usage WHERE key_id = $1";
        let row = self.readers.row(sql, &[key_id.into()]).await?;
        row.map(|row| {
            Ok(LastUse {
                operation: row.get(0)?,
                time_ms: row.get(1)?,
                event_id: row.get(2)?,
                request_id: row.get(3)?,
            })
        })
        .transpose()
    }

    /// Since when uses are recorded, milliseconds since 1970.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn recording_since_ms(&self) -> Result<i64, StoreError> {
        let sql = match self.location {
            Location::Sqlite(_) => RECORDING_SINCE_SQLITE,
            Location::Postgres(_) => RECORDING_SINCE_POSTGRES,
        };
        let row = self.readers.row(sql, &[]).await?;
        let row = row.ok_or(StoreError::Missing)?;
        Ok(row.get(0)?)
    }
}

pub(super) const RECORDING_SINCE_SQLITE: &str =
    "SELECT CAST(strftime('%s', applied_at) AS INTEGER) * 1000
    FROM schema_migrations WHERE description = 'last use of keys'";
pub(super) const RECORDING_SINCE_POSTGRES: &str = "SELECT usage_since_ms FROM state WHERE id = 1";

/// Keeps the last of all uses that the rows tell of. A key that is gone meanwhile has none.
pub(super) async fn put(connection: &mut Connection, rows: &[&AuditRow]) -> Result<(), StoreError> {
    let mut last = HashMap::new();
    for row in rows {
        if let Some(used) = &row.used {
            last.extend(used.keys.iter().map(|key| (key, (row, used))));
        }
    }
    let last: Vec<_> = last.into_iter().collect();
    for chunk in last.chunks(ROWS) {
        let mut values: Vec<Value<'_>> = Vec::with_capacity(chunk.len() * 5);
        for (key, (row, used)) in chunk {
            values.extend([
                Value::from(*key),
                (&row.operation).into(),
                row.time_ms.into(),
                (&used.event_id).into(),
                (&used.request_id).into(),
            ]);
        }
        let sql = format!(
            "INSERT INTO key_usage (key_id, operation, time_ms, event_id, request_id)
             SELECT keys.id, used.column2, used.column3, used.column4, used.column5
             FROM (VALUES {}) AS used JOIN keys ON keys.id = used.column1 WHERE true
             ON CONFLICT (key_id) DO UPDATE SET operation = excluded.operation, time_ms = excluded.time_ms,
                event_id = excluded.event_id, request_id = excluded.request_id
             WHERE excluded.time_ms >= key_usage.time_ms",
            connection.tuples(chunk.len(), 5)
        );
        match chunk.len() {
            1 => connection.execute(&sql, &values).await?,
            _ => connection.execute_once(&sql, &values).await?,
        };
    }
    Ok(())
}
