//! What a rotation of the root key leaves to do: every sealed value goes under its current version.
//!
//! Values are replaced one by one, each in a transaction of its own, while requests are served. A process that dies in between
//! leaves values of both versions, which both open; the next one goes on.

use crate::crypto::seal::{RootKey, SealError, UnsealError, access_key_label, material_label};
use crate::store::{self, Connection, SealedRow, Secret, StoreError};

/// Values read at a time.
const PAGE: i64 = 100;

/// Why values stay under an older version.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResealError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value that does not open.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// No randomness.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Seals everything under the root key's current version that is not; how many values that were.
///
/// # Errors
/// If the database fails or a value does not open; what was done stays done.
pub(crate) async fn all(connection: &mut Connection, root: &RootKey) -> Result<u64, ResealError> {
    let mut done = 0;
    loop {
        let rows = store::sealed_otherwise(connection, root.version(), PAGE).await?;
        if rows.is_empty() {
            return Ok(done);
        }
        for row in &rows {
            let label = label(row);
            let plaintext = root.unseal(&label, &row.sealed)?;
            let sealed = root.seal(&label, &plaintext)?;
            done += u64::from(store::reseal(connection, row, &sealed).await?);
        }
    }
}

fn label(row: &SealedRow) -> Vec<u8> {
    match &row.secret {
        Secret::Material {
            key_id,
            version,
            account,
        } => material_label(key_id, *version, account),
        Secret::AccessKey { access_key_id, arn } => access_key_label(access_key_id, arn),
    }
}
