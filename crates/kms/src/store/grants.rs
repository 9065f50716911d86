//! Grants in the store.

use sqlx::{Row as _, SqliteConnection};

use super::{Store, StoreError, one_row};

/// A grant's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    /// Grant id.
    pub id: String,
    /// Whose key.
    pub key_id: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// [`crate::grants::Terms`] as JSON.
    pub terms: String,
}

impl Store {
    /// All grants.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn grants(&self) -> Result<Vec<GrantRow>, StoreError> {
        let rows = sqlx::query("SELECT id, key_id, created_ms, terms FROM grants")
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(GrantRow {
                    id: row.try_get(0)?,
                    key_id: row.try_get(1)?,
                    created_ms: row.try_get(2)?,
                    terms: row.try_get(3)?,
                })
            })
            .collect()
    }
}

pub(super) async fn insert(
    connection: &mut SqliteConnection,
    grant: &GrantRow,
) -> Result<(), StoreError> {
    let query =
        sqlx::query("INSERT INTO grants (id, key_id, created_ms, terms) VALUES (?, ?, ?, ?)")
            .bind(&grant.id)
            .bind(&grant.key_id)
            .bind(grant.created_ms)
            .bind(&grant.terms);
    one_row(query.execute(connection).await)
}

pub(super) async fn delete(connection: &mut SqliteConnection, id: &str) -> Result<(), StoreError> {
    let query = sqlx::query("DELETE FROM grants WHERE id = ?").bind(id);
    one_row(query.execute(connection).await)
}
