//! Users and roles in the store.

use super::database::Record;
use super::{Connection, Store, StoreError};

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

const COLUMNS: &str = "arn, unique_id, created_ms, profile";

impl Store {
    /// A user or role.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn identity(&self, arn: &str) -> Result<Option<IdentityRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM identities WHERE arn = $1");
        let row = self.readers.row(&sql, &[arn.into()]).await?;
        row.as_ref().map(identity_row).transpose()
    }

    /// ARNs that end as a user's or role's name does, in any case: its own, its namesakes' and perhaps some more.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn identities_ending(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT arn FROM identities WHERE lower(arn) LIKE $1";
        // Names hold no %, and whatever _ stands for is looked at by the caller.
        let pattern = format!("%/{}", name.to_ascii_lowercase());
        let rows = self.readers.rows(sql, &[pattern.as_str().into()]).await?;
        rows.iter().map(|row| Ok(row.get(0)?)).collect()
    }
}

fn identity_row(row: &Record) -> Result<IdentityRow, StoreError> {
    Ok(IdentityRow {
        arn: row.get(0)?,
        unique_id: row.get(1)?,
        created_ms: row.get(2)?,
        profile: row.get(3)?,
    })
}

/// All users and roles by ARN; used by the tools.
///
/// # Errors
/// If the database fails.
pub async fn identities(connection: &mut Connection) -> Result<Vec<IdentityRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM identities ORDER BY arn");
    let rows = connection.rows(&sql, &[]).await?;
    rows.iter().map(identity_row).collect()
}

/// Adds a user or role, or gives an existing one another profile; used by the tool.
///
/// # Errors
/// If the database fails.
pub async fn put_identity(
    connection: &mut Connection,
    row: &IdentityRow,
) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO identities ({COLUMNS}) VALUES ($1, $2, $3, $4)
         ON CONFLICT (arn) DO UPDATE SET profile = excluded.profile"
    );
    let values = [
        (&row.arn).into(),
        (&row.unique_id).into(),
        row.created_ms.into(),
        (&row.profile).into(),
    ];
    connection.execute(&sql, &values).await?;
    Ok(())
}

/// Removes a user or role; whether there was one.
///
/// # Errors
/// If the database fails.
pub async fn delete_identity(connection: &mut Connection, arn: &str) -> Result<bool, StoreError> {
    let sql = "DELETE FROM identities WHERE arn = $1";
    Ok(connection.execute(sql, &[arn.into()]).await? > 0)
}
