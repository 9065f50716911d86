//! All rows of a database, read from one and written to another, of the same kind or not.
//!
//! The reading is of one moment, the writing one transaction into an empty database, and before it is committed the
//! audit trail there must verify up to the head that it had here.

use super::audit::{self, Head};
use super::tables::{TABLES, recording_since, set_recording_since};
use super::{Connection, StoreError, check_root};
use crate::crypto::seal::RootKey;

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// One of the databases.
    #[error("moving failed, the target is as it was")]
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
    /// The audit trail is not what it was.
    #[error("the audit trail does not verify: row {0}: {1}; nothing was moved")]
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
    to.begin().await?;
    for table in TABLES {
        let rows = table.count(to).await?;
        if rows != 0 {
            return Err(TransferError::NotEmpty(table.name, rows));
        }
    }
    for table in TABLES {
        let mut page = table.page(from, None).await?;
        while let Some(last) = page.last() {
            table.insert(to, &page).await?;
            page = table.page(from, Some(last)).await?;
        }
    }
    set_recording_since(to, recording_since(from).await?).await?;
    if to.is_shared() {
        check_root(to, root).await?;
    }
    let mut rows = Vec::new();
    for table in TABLES {
        let (there, here) = (table.count(from).await?, table.count(to).await?);
        if there != here {
            return Err(TransferError::Count {
                table: table.name,
                from: there,
                to: here,
            });
        }
        rows.push((table.name, here));
    }
    let head = audit::head(from).await?;
    let verified = audit::verify_audit(to, root, Some(head)).await?;
    if let Some((seq, flaw)) = verified.flaw {
        return Err(TransferError::Trail(seq, flaw));
    }
    to.commit().await?;
    from.rollback().await?;
    Ok(Moved { rows, head })
}
