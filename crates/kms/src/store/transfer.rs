//! All rows of a database, read from one and written to another, of the same kind or not.
//!
//! The reading is of one moment, the writing one transaction into an empty database, and before it is committed the
//! audit trail there must verify up to the head that it had here.

use super::audit::{self, Head};
use super::tables::{TABLES, recording_since, set_recording_since};
use super::{Connection, StoreError, check_root, resealed};
use crate::crypto::seal::RootKey;

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// One of the databases.
    #[error("writing failed, the target is as it was")]
    Store(#[from] StoreError),
    /// Nothing is ever overwritten or mixed.
    #[error("the target is not empty: its table {0} has {1} rows; name an empty database")]
    NotEmpty(&'static str, i64),
    /// Rows are missing.
    #[error(
        "the table {table} has {from} rows in the source and {to} in the target; the target is as it was"
    )]
    Count {
        /// Which.
        table: &'static str,
        /// In the source.
        from: i64,
        /// In the target.
        to: i64,
    },
    /// What it was sealed under is gone.
    #[error(
        "something is sealed under version {0} of the root key (hexadecimal), which root.key does not open any more; use root.key as it was then. The target is as it was"
    )]
    Version(String),
    /// The audit trail is not what it was.
    #[error("the audit trail does not verify: row {0}: {1}; the target is as it was")]
    Trail(i64, super::Flaw),
}

impl From<sqlx::Error> for TransferError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Rows that were moved, by table, and the head of the audit trail.
#[derive(Debug)]
pub struct Moved {
    /// Table and number of rows.
    pub rows: Vec<(&'static str, i64)>,
    /// Of the audit trail.
    pub head: Head,
}

/// Copies everything from one database to another, empty one. While it does, nobody can write to either.
///
/// # Errors
/// If anything fails; then the target is as it was.
pub async fn transfer(
    from: &mut Connection,
    to: &mut Connection,
    root: &RootKey,
) -> Result<Moved, TransferError> {
    from.begin().await?;
    begin_empty(to).await?;
    let mut rows = Vec::new();
    for table in TABLES {
        let mut page = table.page(from, None).await?;
        while let Some(last) = page.last() {
            table.insert(to, &page).await?;
            page = table.page(from, Some(last)).await?;
        }
        rows.push((table.name, table.count(from).await?));
    }
    set_recording_since(to, recording_since(from).await?).await?;
    let moved = finish(to, root, &rows, audit::head(from).await?).await?;
    to.commit().await?;
    from.rollback().await?;
    Ok(moved)
}

/// Begins a transaction in a database that must hold nothing.
pub(super) async fn begin_empty(to: &mut Connection) -> Result<(), TransferError> {
    to.begin().await?;
    for table in TABLES {
        let rows = table.count(to).await?;
        if rows != 0 {
            return Err(TransferError::NotEmpty(table.name, rows));
        }
    }
    Ok(())
}

/// Whether everything that was written is there, opens under this root key, and is the trail that it was.
pub(super) async fn finish(
    to: &mut Connection,
    root: &RootKey,
    expected: &[(&'static str, i64)],
    head: Head,
) -> Result<Moved, TransferError> {
    if to.is_shared() {
        check_root(to, root).await?;
    }
    for table in TABLES {
        let found = table.count(to).await?;
        let wanted = expected.iter().find(|(name, _)| *name == table.name);
        let wanted = wanted.map_or(0, |(_, count)| *count);
        if wanted != found {
            return Err(TransferError::Count {
                table: table.name,
                from: wanted,
                to: found,
            });
        }
    }
    for prefix in resealed::prefixes(to).await? {
        if !root.opens(&prefix) {
            return Err(TransferError::Version(hex::encode(prefix)));
        }
    }
    let verified = audit::verify_audit(to, root, Some(head)).await?;
    if let Some((seq, flaw)) = verified.flaw {
        return Err(TransferError::Trail(seq, flaw));
    }
    let rows = expected.to_vec();
    Ok(Moved { rows, head })
}
