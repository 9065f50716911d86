//! Users and roles in the store.

use sqlx::{Row as _, SqliteConnection};

use super::{Store, StoreError};

/// A user's or role's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRow {
    /// IAM ARN.
    pub arn: String,
    /// `AIDA…` or `AROA…`, never used again.
    pub unique_id: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// [`crate::identities::Profile`] as JSON.
    pub profile: String,
}

impl Store {
    /// A user or role.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn identity(&self, arn: &str) -> Result<Option<IdentityRow>, StoreError> {
        let row =
            sqlx::query("SELECT arn, unique_id, created_ms, profile FROM identities WHERE arn = ?")
                .bind(arn)
                .fetch_optional(&self.readers)
                .await?;
        row.as_ref().map(identity_row).transpose()
    }
}

fn identity_row(row: &sqlx::sqlite::SqliteRow) -> Result<IdentityRow, StoreError> {
    Ok(IdentityRow {
        arn: row.try_get(0)?,
        unique_id: row.try_get(1)?,
        created_ms: row.try_get(2)?,
        profile: row.try_get(3)?,
    })
}

/// All users and roles by ARN; used by the tools.
///
/// # Errors
/// If the database fails.
pub async fn identities(connection: &mut SqliteConnection) -> Result<Vec<IdentityRow>, StoreError> {
    let rows =
        sqlx::query("SELECT arn, unique_id, created_ms, profile FROM identities ORDER BY arn")
            .fetch_all(connection)
            .await?;
    rows.iter().map(identity_row).collect()
}

/// Adds a user or role, or gives an existing one another profile; used by the tool.
///
/// # Errors
/// If the database fails.
pub async fn put_identity(
    connection: &mut SqliteConnection,
    row: &IdentityRow,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO identities (arn, unique_id, created_ms, profile) VALUES (?, ?, ?, ?)
         ON CONFLICT (arn) DO UPDATE SET profile = excluded.profile",
    )
    .bind(&row.arn)
    .bind(&row.unique_id)
    .bind(row.created_ms)
    .bind(&row.profile)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a user or role; whether there was one.
///
/// # Errors
/// If the database fails.
pub async fn delete_identity(
    connection: &mut SqliteConnection,
    arn: &str,
) -> Result<bool, StoreError> {
    let result = sqlx::query("DELETE FROM identities WHERE arn = ?")
        .bind(arn)
        .execute(connection)
        .await?;
    Ok(result.rows_affected() > 0)
}
