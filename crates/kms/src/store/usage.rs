//! When keys were last used: one row for each key, written in the transaction that holds the audit row.

use std::collections::HashMap;

use sqlx::{Row as _, SqliteConnection};

use super::{AuditRow, Store, StoreError};

/// The migration whose time is when recording began.
pub(super) const MIGRATION: &str = "last use of keys";

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
    /// When a key was last used, if it was.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn last_use(&self, key_id: &str) -> Result<Option<LastUse>, StoreError> {
        // What was answered before is then in the file.
        self.flush().await?;
        let row = sqlx::query(
            "SELECT operation, time_ms, event_id, request_id FROM key_usage WHERE key_id = ?",
        )
        .bind(key_id)
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| {
            Ok(LastUse {
                operation: row.try_get(0)?,
                time_ms: row.try_get(1)?,
                event_id: row.try_get(2)?,
                request_id: row.try_get(3)?,
            })
        })
        .transpose()
    }

    /// Since when uses are recorded, milliseconds since 1970.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn recording_since_ms(&self) -> Result<i64, StoreError> {
        let row = sqlx::query(
            "SELECT CAST(strftime('%s', applied_at) AS INTEGER) * 1000 FROM schema_migrations WHERE description = ?",
        )
        .bind(MIGRATION)
        .fetch_one(&self.readers)
        .await?;
        Ok(row.try_get(0)?)
    }
}

/// Keeps the last of all uses that the rows tell of. A key that is gone meanwhile has none.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    rows: &[&AuditRow],
) -> Result<(), StoreError> {
    let mut last = HashMap::new();
    for row in rows {
        if let Some(used) = &row.used {
            last.extend(used.keys.iter().map(|key| (key, (row, used))));
        }
    }
    for (key, (row, used)) in last {
        sqlx::query(
            "INSERT INTO key_usage (key_id, operation, time_ms, event_id, request_id)
             SELECT id, ?, ?, ?, ? FROM keys WHERE id = ?
             ON CONFLICT (key_id) DO UPDATE SET operation = excluded.operation, time_ms = excluded.time_ms,
                event_id = excluded.event_id, request_id = excluded.request_id",
        )
        .bind(&row.operation)
        .bind(row.time_ms)
        .bind(&used.event_id)
        .bind(&used.request_id)
        .bind(key)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
