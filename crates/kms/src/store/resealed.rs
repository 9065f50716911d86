//! Sealed values and the version of the root key that they are sealed under.
//!
//! A value is replaced only if it is still the one that was read: a rotation of the root key never undoes what anybody
//! else has stored meanwhile.

use sqlx::{Row as _, SqliteConnection};

use super::StoreError;

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
    WHERE length(materials.sealed) > 0 AND substr(materials.sealed, 1, 4) <> $1 LIMIT $2";

const ACCESS_KEYS: &str = "SELECT access_key_id, arn, sealed_secret
    FROM principals WHERE substr(sealed_secret, 1, 4) <> $1 LIMIT $2";

/// At most so many values that are not sealed under this version of the root key.
///
/// # Errors
/// If the database fails.
pub async fn sealed_otherwise(
    connection: &mut SqliteConnection,
    version: u32,
    limit: i64,
) -> Result<Vec<SealedRow>, StoreError> {
    let prefix = version.to_be_bytes();
    let mut found = Vec::new();
    let rows = sqlx::query(MATERIALS).bind(prefix.as_slice()).bind(limit);
    for row in rows.fetch_all(&mut *connection).await? {
        found.push(SealedRow {
            secret: Secret::Material {
                key_id: row.try_get(0)?,
                version: row.try_get(1)?,
                account: row.try_get(2)?,
            },
            sealed: row.try_get(3)?,
        });
    }
    let rows = sqlx::query(ACCESS_KEYS).bind(prefix.as_slice()).bind(limit);
    for row in rows.fetch_all(connection).await? {
        found.push(SealedRow {
            secret: Secret::AccessKey {
                access_key_id: row.try_get(0)?,
                arn: row.try_get(1)?,
            },
            sealed: row.try_get(2)?,
        });
    }
    Ok(found)
}

/// Replaces a sealed value; whether it was still the one that was read.
///
/// # Errors
/// If the database fails.
pub async fn reseal(
    connection: &mut SqliteConnection,
    read: &SealedRow,
    sealed: &[u8],
) -> Result<bool, StoreError> {
    let query = match &read.secret {
        Secret::Material {
            key_id, version, ..
        } => sqlx::query(
            "UPDATE materials SET sealed = $1 WHERE sealed = $2 AND key_id = $3 AND version = $4",
        )
        .bind(sealed)
        .bind(&read.sealed)
        .bind(key_id)
        .bind(version),
        Secret::AccessKey { access_key_id, .. } => sqlx::query(
            "UPDATE principals SET sealed_secret = $1 WHERE sealed_secret = $2 AND access_key_id = $3",
        )
        .bind(sealed)
        .bind(&read.sealed)
        .bind(access_key_id),
    };
    let done = query.execute(connection).await?;
    Ok(done.rows_affected() > 0)
}
