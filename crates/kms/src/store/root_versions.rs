//! What the database knows of the root key's versions: those that were made current, and which of them are retired.
//!
//! Each node has a `root.key` of its own, and one that was missed in a rotation may still seal under a version that another
//! node has given up. So retirement stands in the database, written under the lock that every writing transaction takes, and
//! every sealed value that is stored is checked against it in its own transaction: under a retired version nothing is ever
//! stored again.

use super::{Connection, StoreError};
use crate::crypto::seal;

/// Notes that a version was made current.
///
/// # Errors
/// If the database fails.
pub async fn put_current_root(connection: &mut Connection, version: u32) -> Result<(), StoreError> {
    put(connection, version, false).await
}

/// Notes that a version is retired. `connection` is in a transaction, in which nothing was found that is sealed under it.
///
/// # Errors
/// If the database fails.
pub async fn put_retired_root(connection: &mut Connection, version: u32) -> Result<(), StoreError> {
    put(connection, version, true).await
}

async fn put(connection: &mut Connection, version: u32, retired: bool) -> Result<(), StoreError> {
    let sql = "INSERT INTO root_versions (version, retired) VALUES ($1, $2)
               ON CONFLICT (version) DO UPDATE SET retired = root_versions.retired OR excluded.retired";
    let values = [i64::from(version).into(), retired.into()];
    connection.execute(sql, &values).await?;
    Ok(())
}

/// The newest version that any node was told to make current and has not retired; none if there was no rotation yet.
///
/// # Errors
/// If the database fails.
pub async fn newest_root(connection: &mut Connection) -> Result<Option<u32>, StoreError> {
    let sql = "SELECT version FROM root_versions WHERE NOT retired ORDER BY version DESC LIMIT 1";
    let Some(row) = connection.row(sql, &[]).await? else {
        return Ok(None);
    };
    let version: i64 = row.get(0)?;
    Ok(u32::try_from(version).ok())
}

/// Refuses a version that is retired.
///
/// # Errors
/// If it is, or the database fails.
pub async fn refuse_retired_root(
    connection: &mut Connection,
    version: u32,
) -> Result<(), StoreError> {
    let sql = "SELECT version FROM root_versions WHERE version = $1 AND retired";
    match connection.row(sql, &[i64::from(version).into()]).await? {
        Some(_) => Err(StoreError::RetiredRoot(version)),
        None => Ok(()),
    }
}

/// Refuses to store a value that was sealed just now under a version that is retired.
pub(super) async fn refuse_sealed(
    connection: &mut Connection,
    sealed: &[u8],
) -> Result<(), StoreError> {
    match seal::named_version(sealed) {
        Some(version) => refuse_retired_root(connection, version).await,
        None => Ok(()),
    }
}
