//! Access keys in the store.

use super::root_versions::refuse_sealed;
use super::rows::{PRINCIPAL, PrincipalRow, principal_row};
use super::{Connection, Store, StoreError};

impl Store {
    /// An access key.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn principal(&self, access_key_id: &str) -> Result<Option<PrincipalRow>, StoreError> {
        let sql = format!("SELECT {PRINCIPAL} FROM principals WHERE access_key_id = $1");
        let row = self.readers.row(&sql, &[access_key_id.into()]).await?;
        row.as_ref().map(principal_row).transpose()
    }
}

/// Adds an access key; used by the tool, beside a running server or without one. `connection` is in a transaction.
///
/// # Errors
/// If its secret is sealed under a retired version of the root key, or the database fails.
pub async fn insert_principal(
    connection: &mut Connection,
    row: &PrincipalRow,
) -> Result<(), StoreError> {
    refuse_sealed(connection, &row.sealed_secret).await?;
    let sql = format!("INSERT INTO principals ({PRINCIPAL}) VALUES ($1, $2, $3, $4)");
    let values = [
        (&row.access_key_id).into(),
        (&row.arn).into(),
        row.sealed_secret.as_slice().into(),
        row.created_ms.into(),
    ];
    connection.execute(&sql, &values).await?;
    Ok(())
}

/// Removes an access key; whether there was one.
///
/// # Errors
/// If the database fails.
pub async fn delete_principal(
    connection: &mut Connection,
    access_key_id: &str,
) -> Result<bool, StoreError> {
    let sql = "DELETE FROM principals WHERE access_key_id = $1";
    let rows = connection.execute(sql, &[access_key_id.into()]).await?;
    Ok(rows > 0)
}

/// All access keys, oldest first.
///
/// # Errors
/// If the database fails.
pub async fn principals(connection: &mut Connection) -> Result<Vec<PrincipalRow>, StoreError> {
    let sql = format!("SELECT {PRINCIPAL} FROM principals ORDER BY created_ms, access_key_id");
    let rows = connection.rows(&sql, &[]).await?;
    rows.iter().map(principal_row).collect()
}
