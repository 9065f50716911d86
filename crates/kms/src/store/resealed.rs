//! Sealed values and the version of the root key that they are sealed under.
//!
//! A value is replaced only if it is still the one that was read: a rotation of the root key never undoes what anybody
//! else has stored meanwhile. Nothing is stored under a version that is retired.

use super::database::Value;
use super::root_versions::refuse_sealed;
use super::{Connection, StoreError};

/// Whose secret it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A key's material.
    Material {
        /// Id of the key's row.
        key_id: String,
        /// The material's version.
        version: i64,
        /// Account.
        account: String,
    },
    /// A secret access key.
    AccessKey {
        /// Its access key id.
        access_key_id: String,
        /// Its principal.
        arn: String,
    },
}

/// A secret as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    /// Whose.
    pub secret: Secret,
    /// Under the root key.
    pub sealed: Vec<u8>,
}

const MATERIALS: &str = "SELECT materials.key_id, materials.version, keys.account, materials.sealed
    FROM materials JOIN keys ON keys.id = materials.key_id
    WHERE length(materials.sealed) > 0 AND substr(materials.sealed, 1, 4) NOT IN";

const ACCESS_KEYS: &str = "SELECT access_key_id, arn, sealed_secret
    FROM principals WHERE substr(sealed_secret, 1, 4) NOT IN";

/// At most so many values of each kind that are not sealed under any of these versions of the root key.
///
/// # Errors
/// If the database fails.
pub async fn sealed_otherwise(
    connection: &mut Connection,
    versions: &[u32],
    limit: i64,
) -> Result<Vec<SealedRow>, StoreError> {
    let prefixes: Vec<_> = versions
        .iter()
        .map(|version| version.to_be_bytes())
        .collect();
    let values: Vec<Value<'_>> = prefixes
        .iter()
        .map(|prefix| prefix.as_slice().into())
        .collect();
    let rest = format!("{} LIMIT {limit}", connection.tuples(1, values.len()));
    let mut found = Vec::new();
    for row in connection
        .rows(&format!("{MATERIALS} {rest}"), &values)
        .await?
    {
        found.push(SealedRow {
            secret: Secret::Material {
                key_id: row.get(0)?,
                version: row.get(1)?,
                account: row.get(2)?,
            },
            sealed: row.get(3)?,
        });
    }
    for row in connection
        .rows(&format!("{ACCESS_KEYS} {rest}"), &values)
        .await?
    {
        found.push(SealedRow {
            secret: Secret::AccessKey {
                access_key_id: row.get(0)?,
                arn: row.get(1)?,
            },
            sealed: row.get(2)?,
        });
    }
    Ok(found)
}

/// What sealed values begin with: the versions of the root key that they need.
pub(super) async fn prefixes(connection: &mut Connection) -> Result<Vec<Vec<u8>>, StoreError> {
    let sql = "SELECT DISTINCT substr(sealed, 1, 4) FROM materials WHERE length(sealed) > 0
        UNION SELECT DISTINCT substr(sealed_secret, 1, 4) FROM principals";
    let rows = connection.rows(sql, &[]).await?;
    rows.iter().map(|row| Ok(row.get(0)?)).collect()
}

/// Replaces a sealed value, in a transaction of its own; whether it was still the one that was read.
///
/// # Errors
/// If it is sealed under a retired version, or the database fails. Then the connection is to be given up.
pub async fn reseal(
    connection: &mut Connection,
    read: &SealedRow,
    sealed: &[u8],
) -> Result<bool, StoreError> {
    connection.begin().await?;
    refuse_sealed(connection, sealed).await?;
    let replaced = replace(connection, read, sealed).await?;
    connection.commit().await?;
    Ok(replaced)
}

async fn replace(
    connection: &mut Connection,
    read: &SealedRow,
    sealed: &[u8],
) -> Result<bool, StoreError> {
    let (new, old) = (sealed.into(), read.sealed.as_slice().into());
    let rows = match &read.secret {
        Secret::Material {
            key_id, version, ..
        } => {
            let sql = "UPDATE materials SET sealed = $1 WHERE sealed = $2 AND key_id = $3 AND version = $4";
            let values = [new, old, key_id.into(), (*version).into()];
            connection.execute(sql, &values).await?
        }
        Secret::AccessKey { access_key_id, .. } => {
            let sql = "UPDATE principals SET sealed_secret = $1 WHERE sealed_secret = $2 AND access_key_id = $3";
            connection
                .execute(sql, &[new, old, access_key_id.into()])
                .await?
        }
    };
    Ok(rows > 0)
}
