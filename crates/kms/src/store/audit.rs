//! The audit trail: rows that nobody can change, remove or slip in unnoticed.
//!
//! Every row holds the SHA-256 of the row before it and of itself, so rows are a chain. The last row of every
//! transaction also holds a *seal*, an HMAC over its number and hash under a key that follows from the root key.
//! Who can write to the database but does not have `root.key` can neither change the chain nor make it longer. They can
//! cut it off after a seal; that shows against a number and hash noted elsewhere (`enclos-kms audit verify --head`).
//!
//! ```text
//! hash = SHA-256("enclos-kms audit 1" ‖ hash before ‖ seq ‖ time_ms ‖ len ‖ operation ‖ len ‖ error ‖ len ‖ event)
//! seal = HMAC-SHA-256(key, "enclos-kms audit seal 1" ‖ seq ‖ hash)
//! ```
//!
//! Numbers and lengths are 64 bits, big-endian; the first row's *hash before* is 32 zero bytes; numbers have no gaps.

use aws_lc_rs::digest;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::{StoreError, Used, usage};
use crate::crypto::seal::RootKey;

/// Audit rows in one INSERT: seven variables each, far below SQLite's 32,766.
const ROWS: usize = 500;

/// Rows read at a time.
const PAGE: i64 = 1000;

/// SHA-256.
type Hash = [u8; 32];

/// One audited call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// AWS operation.
    pub operation: String,
    /// Error type, if it failed.
    pub error_code: Option<String>,
    /// CloudTrail-shaped JSON.
    pub event: String,
    /// Keys whose last use this is, if the call was one.
    pub used: Option<Used>,
}

/// Number and hash of a chain's last row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Rows count from 1.
    pub seq: i64,
    /// Of the row.
    pub hash: Hash,
}

impl Head {
    /// The head of no rows.
    pub const EMPTY: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// The head after one more row.
    #[must_use]
    pub fn after(&self, row: &AuditRow) -> Self {
        let seq = self.seq + 1;
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"enclos-kms audit 1");
        context.update(&self.hash);
        context.update(&seq.to_be_bytes());
        context.update(&row.time_ms.to_be_bytes());
        let error = row.error_code.as_deref().unwrap_or_default();
        for text in [row.operation.as_str(), error, row.event.as_str()] {
            let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
            context.update(&length.to_be_bytes());
            context.update(text.as_bytes());
        }
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self { seq, hash }
    }

    fn sealed(&self) -> Vec<u8> {
        [
            b"enclos-kms audit seal 1".as_slice(),
            &self.seq.to_be_bytes(),
            &self.hash,
        ]
        .concat()
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, hex::encode(self.hash))
    }
}

/// Not a number and a hash.
#[derive(Debug, thiserror::Error)]
#[error("expected SEQ:HASH as `enclos-kms audit verify` prints it, got {0:?}")]
pub struct HeadError(String);

impl std::str::FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let parse = || {
            let (seq, hash) = text.split_once(':')?;
            let hash = hex::decode(hash).ok()?;
            Some(Self {
                seq: seq.parse().ok()?,
                hash: hash.try_into().ok()?,
            })
        };
        parse().ok_or_else(|| HeadError(text.to_owned()))
    }
}

/// The head of what is stored.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let row = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(Head::EMPTY);
    };
    let hash: Option<Vec<u8>> = row.try_get(1)?;
    Ok(Head {
        seq: row.try_get(0)?,
        // A row that lost its hash is found by the verification; what follows it must still be recorded.
        hash: hash
            .and_then(|hash| hash.try_into().ok())
            .unwrap_or_default(),
    })
}

/// Adds rows to the chain; the last one is not sealed yet.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    head: &mut Head,
    rows: &[&AuditRow],
) -> Result<(), StoreError> {
    for chunk in rows.chunks(ROWS) {
        let heads: Vec<Head> = chunk
            .iter()
            .map(|row| {
                *head = head.after(row);
                *head
            })
            .collect();
        let mut query: QueryBuilder<'_, Sqlite> = QueryBuilder::new(
            "INSERT INTO audit (seq, hash, time_ms, operation, error_code, event) ",
        );
        query.push_values(chunk.iter().zip(&heads), |mut values, (row, head)| {
            values
                .push_bind(head.seq)
                .push_bind(head.hash.as_slice())
                .push_bind(row.time_ms)
                .push_bind(&row.operation)
                .push_bind(&row.error_code)
                .push_bind(&row.event);
        });
        query
            .build()
            .persistent(chunk.len() == 1)
            .execute(&mut *connection)
            .await?;
    }
    usage::put(connection, rows).await
}

/// Seals the chain's last row.
pub(super) async fn seal(
    connection: &mut SqliteConnection,
    head: &Head,
    root: &RootKey,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE audit SET seal = ? WHERE seq = ?")
        .bind(root.tag(&head.sealed()).as_ref())
        .bind(head.seq)
        .execute(connection)
        .await?;
    Ok(())
}

/// Adds a row of a tool's own and seals it, inside the tool's transaction.
///
/// # Errors
/// If the database fails.
pub async fn append_audit(
    connection: &mut SqliteConnection,
    row: &AuditRow,
    root: &RootKey,
) -> Result<(), StoreError> {
    let mut head = head(connection).await?;
    insert(connection, &mut head, &[row]).await?;
    seal(connection, &head, root).await
}

/// Chains rows that a version without a chain has written.
pub(super) async fn adopt(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let (mut head, mut after) = (Head::EMPTY, 0);
    loop {
        let rows = audit(connection, after, PAGE).await?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        after = *last;
        for (seq, row) in &rows {
            head = head.after(row);
            sqlx::query("UPDATE audit SET seq = ?, hash = ? WHERE seq = ?")
                .bind(head.seq)
                .bind(head.hash.as_slice())
                .bind(seq)
                .execute(&mut *connection)
                .await?;
        }
    }
}

/// Audit rows after `after`, oldest first, at most `limit`, each with its number.
///
/// # Errors
/// If the database fails.
pub async fn audit(
    connection: &mut SqliteConnection,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, AuditRow)>, StoreError> {
    let rows = sqlx::query(
        "SELECT seq, time_ms, operation, error_code, event FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, audit_row(row)?)))
        .collect()
}

fn audit_row(row: &sqlx::sqlite::SqliteRow) -> Result<AuditRow, sqlx::Error> {
    Ok(AuditRow {
        time_ms: row.try_get("time_ms")?,
        operation: row.try_get("operation")?,
        error_code: row.try_get("error_code")?,
        event: row.try_get("event")?,
        used: None,
    })
}

/// Number of the last audit row but `count`, to start a tail from.
///
/// # Errors
/// If the database fails.
pub async fn audit_tail(connection: &mut SqliteConnection, count: i64) -> Result<i64, StoreError> {
    let row = sqlx::query("SELECT COALESCE(MAX(seq), 0) - ? FROM audit")
        .bind(count)
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}

/// The rows of one request.
///
/// # Errors
/// If the database fails.
pub async fn audit_of(
    connection: &mut SqliteConnection,
    request_id: &str,
) -> Result<Vec<AuditRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT time_ms, operation, error_code, event FROM audit WHERE instr(event, ?) > 0 ORDER BY seq",
    )
    .bind(format!("\"requestID\":\"{request_id}\""))
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok(audit_row(row)?)).collect()
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// Numbers jump: rows are missing before this one, or it was moved.
    Gap,
    /// The row, or one before it, is not the one that was written.
    Hash,
    /// The row was sealed by another root key, or not by the KMS.
    Seal,
    /// The last row has no seal: rows were added, or cut off.
    Unsealed,
    /// The head that was noted is not in the chain.
    Head,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gap => "rows are missing before it, or it was moved",
            Self::Hash => "it is not the row that was written, or one before it is not",
            Self::Seal => "its seal is not this root key's",
            Self::Unsealed => "it is the last one and has no seal: rows were added or cut off",
            Self::Head => "the chain does not hold the noted head",
        })
    }
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The last row that is as it was written.
    pub head: Head,
    /// The first row that has a seal. Rows before its transaction were written by a version without seals, or by nobody
    /// who had the root key.
    pub sealed_from: Option<i64>,
    /// The first flaw and the row it shows at.
    pub flaw: Option<(i64, Flaw)>,
}

/// Goes through the whole chain.
///
/// # Errors
/// If the database fails.
pub async fn verify_audit(
    connection: &mut SqliteConnection,
    root: &RootKey,
    noted: Option<Head>,
) -> Result<Verified, StoreError> {
    let (mut head, mut sealed, mut sealed_from) = (Head::EMPTY, true, None);
    let mut found = noted.is_none_or(|noted| noted == Head::EMPTY);
    loop {
        let rows = sqlx::query(
            "SELECT seq, time_ms, operation, error_code, event, hash, seal FROM audit WHERE seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(head.seq)
        .bind(PAGE)
        .fetch_all(&mut *connection)
        .await?;
        for row in &rows {
            let seq: i64 = row.try_get("seq")?;
            let hash: Option<Vec<u8>> = row.try_get("hash")?;
            let seal: Option<Vec<u8>> = row.try_get("seal")?;
            let next = head.after(&audit_row(row)?);
            let flaw = if seq != next.seq {
                Some(Flaw::Gap)
            } else if hash.as_deref() != Some(next.hash.as_slice()) {
                Some(Flaw::Hash)
            } else if seal
                .as_ref()
                .is_some_and(|seal| !root.is_tag(&next.sealed(), seal))
            {
                Some(Flaw::Seal)
            } else {
                None
            };
            if let Some(flaw) = flaw {
                return Ok(Verified {
                    head,
                    sealed_from,
                    flaw: Some((seq, flaw)),
                });
            }
            head = next;
            sealed = seal.is_some();
            sealed_from = sealed_from.or_else(|| sealed.then_some(seq));
            found |= noted == Some(head);
        }
        if rows.is_empty() {
            let flaw = match (sealed, found) {
                (false, _) => Some((head.seq, Flaw::Unsealed)),
                (true, false) => Some((noted.map_or(0, |noted| noted.seq), Flaw::Head)),
                (true, true) => None,
            };
            return Ok(Verified {
                head,
                sealed_from,
                flaw,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Executor as _;

    use super::super::{Store, connect};
    use super::*;

    fn row(number: i64) -> AuditRow {
        AuditRow {
            time_ms: number,
            operation: "Decrypt".to_owned(),
            error_code: (number % 2 == 0).then(|| "AccessDenied".to_owned()),
            event: format!("{{\"requestID\":\"{number}\"}}"),
            used: None,
        }
    }

    /// A trail of ten rows in transactions of their own, then what `tamper` makes of it.
    async fn after(tamper: &str, noted: Option<Head>) -> Verified {
        let directory = tempfile::tempdir().unwrap();
        let root =
            std::sync::Arc::new(RootKey::open(&directory.path().join("root.key"), true).unwrap());
        let (store, writer) = Store::open(directory.path()).await.unwrap();
        store.seal_with(std::sync::Arc::clone(&root));
        for number in 1..=10 {
            store.record(row(number), true).await.unwrap();
        }
        drop(store);
        writer.await.unwrap();
        let mut connection = connect(directory.path()).await.unwrap();
        connection.execute(tamper).await.unwrap();
        verify_audit(&mut connection, &root, noted).await.unwrap()
    }

    fn head_of(count: i64) -> Head {
        (1..=count).fold(Head::EMPTY, |head, number| head.after(&row(number)))
    }

    #[tokio::test]
    async fn an_untouched_trail_verifies() {
        for noted in [None, Some(head_of(4)), Some(head_of(10)), Some(Head::EMPTY)] {
            let verified = after("SELECT 1", noted).await;
            assert_eq!((verified.head, verified.flaw), (head_of(10), None));
        }
    }

    #[tokio::test]
    async fn every_tampering_shows() {
        let rows = [
            ("UPDATE audit SET event = '{}' WHERE seq = 4", 4, Flaw::Hash),
            (
                "UPDATE audit SET operation = 'Encrypt' WHERE seq = 4",
                4,
                Flaw::Hash,
            ),
            (
                "UPDATE audit SET error_code = NULL WHERE seq = 4",
                4,
                Flaw::Hash,
            ),
            ("UPDATE audit SET time_ms = 5 WHERE seq = 4", 4, Flaw::Hash),
            ("UPDATE audit SET hash = NULL WHERE seq = 4", 4, Flaw::Hash),
            ("UPDATE audit SET hash = NULL", 1, Flaw::Hash),
            (
                "UPDATE audit SET seal = zeroblob(32) WHERE seq = 4",
                4,
                Flaw::Seal,
            ),
            ("DELETE FROM audit WHERE seq = 4", 5, Flaw::Gap),
            ("DELETE FROM audit WHERE seq = 1", 2, Flaw::Gap),
            ("UPDATE audit SET seq = 20 WHERE seq = 4", 5, Flaw::Gap),
            (
                "UPDATE audit SET seal = NULL WHERE seq = 10",
                10,
                Flaw::Unsealed,
            ),
            (
                "INSERT INTO audit (time_ms, operation, event) VALUES (1, 'x', '{}')",
                11,
                Flaw::Hash,
            ),
        ];
        for (tamper, seq, flaw) in rows {
            let verified = after(tamper, None).await;
            assert_eq!(verified.flaw, Some((seq, flaw)), "{tamper}");
        }
    }

    #[tokio::test]
    async fn a_chain_that_is_made_anew_has_no_seals() {
        // Who has no root key computes hashes as we do, and copies a seal.
        let forged = AuditRow {
            event: "{}".to_owned(),
            ..row(10)
        };
        let head = head_of(9).after(&forged);
        let tamper = format!(
            "UPDATE audit SET event = '{{}}', hash = x'{}' WHERE seq = 10",
            hex::encode(head.hash)
        );
        assert_eq!(after(&tamper, None).await.flaw, Some((10, Flaw::Seal)));
        let unsealed = format!("{tamper}; UPDATE audit SET seal = NULL WHERE seq = 10");
        assert_eq!(
            after(&unsealed, None).await.flaw,
            Some((10, Flaw::Unsealed))
        );
    }

    #[tokio::test]
    async fn a_cut_shows_against_a_noted_head() {
        let cut = "DELETE FROM audit WHERE seq > 6";
        assert_eq!(after(cut, None).await.flaw, None);
        assert_eq!(after(cut, Some(head_of(6))).await.flaw, None);
        assert_eq!(
            after(cut, Some(head_of(10))).await.flaw,
            Some((10, Flaw::Head))
        );
    }

    #[test]
    fn heads_are_written_and_read() {
        let head = head_of(3);
        assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
        for bad in ["", "3", "3:", "x:00", "3:00"] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }
}
