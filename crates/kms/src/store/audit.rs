//! The audit trail: rows that nobody can change, remove or slip in unnoticed.
//!
//! Every row holds the SHA-256 of the row before it and of itself, so rows are a chain. The last row of every
//! transaction also holds a *seal*, an HMAC over its number and hash and over those of the row that the transaction went on from, under a key
//! that follows from the root key. Who can write to the database but does not have `root.key` can neither change the chain nor make it longer. They can
//! cut it off after a seal; that shows against a number and hash noted elsewhere (`enclos-kms audit verify --head`).
//!
//! ```text
//! hash = SHA-256("enclos-kms audit 1" ‖ hash before ‖ seq ‖ time_ms ‖ len ‖ operation ‖ len ‖ error ‖ len ‖ event)
//! seal = HMAC-SHA-256(key, "enclos-kms audit seal 2" ‖ seq ‖ hash ‖ seq of the row gone on from ‖ its hash)
//! ```
//!
//! Numbers and lengths are 64 bits, big-endian; before the first row are number 0 and a hash of 32 zero bytes; numbers have no gaps.
//!
//! The row that a transaction goes on from was the last of another, so it has a seal. Were it not in the seal, the next transaction of a server would
//! vouch for whatever somebody had put there meanwhile, chained as anybody can and without seals.
//! Seals of the first form, `"enclos-kms audit seal 1" ‖ seq ‖ hash`, verify too: older versions wrote them, and this one writes one where there are rows from
//! before there were seals. `audit verify` tells where seals begin.

use super::database::{Record, Value};
use super::usage;
use super::{Connection, StoreError, Used};
use crate::crypto::seal::RootKey;
use aws_lc_rs::digest;

/// Audit rows in one INSERT: six values each, far below SQLite's 32,766.
const ROWS: usize = 500;

/// Rows that are hashed in one go: some tens of microseconds.
const HASHED_AT_ONCE: usize = 16;

/// Values of a row, its seal left out.
const COLUMNS: usize = 6;

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

    fn sealed_on(&self, before: &Self) -> Vec<u8> {
        [
            b"enclos-kms audit seal 2".as_slice(),
            &self.seq.to_be_bytes(),
            &self.hash,
            &before.seq.to_be_bytes(),
            &before.hash,
        ]
        .concat()
    }
}

/// What a transaction goes on from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground {
    /// The chain's last row.
    pub(super) head: Head,
    is_sealed: bool,
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
pub(super) async fn head(connection: &mut Connection) -> Result<Head, StoreError> {
    Ok(ground(connection).await?.head)
}

/// What the next transaction goes on from.
pub(super) async fn ground(connection: &mut Connection) -> Result<Ground, StoreError> {
    let sql = "SELECT seq, hash, seal FROM audit ORDER BY seq DESC LIMIT 1";
    let Some(row) = connection.row(sql, &[]).await? else {
        return Ok(Ground {
            head: Head::EMPTY,
            is_sealed: true,
        });
    };
    let hash: Option<Vec<u8>> = row.get(1)?;
    let seal: Option<Vec<u8>> = row.get(2)?;
    let head = Head {
        seq: row.get(0)?,
        // A row that lost its hash is found by the verification; what follows it must still be recorded.
        hash: hash
            .and_then(|hash| hash.try_into().ok())
            .unwrap_or_default(),
    };
    Ok(Ground {
        head,
        is_sealed: seal.is_some(),
    })
}

/// Whether the chain holds that head: a transaction that made it was made durable.
pub(super) async fn holds(connection: &mut Connection, head: &Head) -> Result<bool, StoreError> {
    let sql = "SELECT seq FROM audit WHERE seq = $1 AND hash = $2";
    let values = [head.seq.into(), head.hash.as_slice().into()];
    Ok(connection.row(sql, &values).await?.is_some())
}

/// The head after each row. A thread that hashes looks at no socket, so others get their turn in between.
async fn chained(head: &mut Head, rows: &[&AuditRow]) -> Vec<Head> {
    let mut heads = Vec::with_capacity(rows.len());
    for some in rows.chunks(HASHED_AT_ONCE) {
        for row in some {
            *head = head.after(row);
            heads.push(*head);
        }
        tokio::task::yield_now().await;
    }
    heads
}

/// Adds rows to the chain; the last one is not sealed yet.
pub(super) async fn insert(
    connection: &mut Connection,
    head: &mut Head,
    rows: &[&AuditRow],
) -> Result<(), StoreError> {
    for chunk in rows.chunks(ROWS) {
        let heads = chained(head, chunk).await;
        let mut values: Vec<Value<'_>> = Vec::with_capacity(chunk.len() * COLUMNS);
        for (row, head) in chunk.iter().zip(&heads) {
            values.extend([
                head.seq.into(),
                head.hash.as_slice().into(),
                row.time_ms.into(),
                Value::from(&row.operation),
                (&row.error_code).into(),
                (&row.event).into(),
            ]);
        }
        let sql = format!(
            "INSERT INTO audit (seq, hash, time_ms, operation, error_code, event) VALUES {}",
            connection.tuples(chunk.len(), COLUMNS)
        );
        match chunk.len() {
            1 => connection.execute(&sql, &values).await?,
            _ => connection.execute_once(&sql, &values).await?,
        };
    }
    usage::put(connection, rows).await
}

/// Seals the chain's last row, whatever it goes on from: what is wrong with that is the verification's to find.
pub(super) async fn seal(
    connection: &mut Connection,
    ground: &Ground,
    head: &Head,
    root: &RootKey,
) -> Result<(), StoreError> {
    let is_first = !ground.is_sealed && !has_seals(connection).await?;
    if !ground.is_sealed && !is_first {
        tracing::error!(
            row = ground.head.seq,
            "the last row of the audit trail had no seal: it was not written by a KMS, or has lost it; see `enclos-kms audit verify`"
        );
    }
    let tag = match is_first {
        true => root.tag(&head.sealed()),
        false => root.tag(&head.sealed_on(&ground.head)),
    };
    let sql = "UPDATE audit SET seal = $1 WHERE seq = $2";
    let values = [tag.as_ref().into(), head.seq.into()];
    connection.execute(sql, &values).await?;
    Ok(())
}

/// Whether any row has a seal.
async fn has_seals(connection: &mut Connection) -> Result<bool, StoreError> {
    let sql = "SELECT seq FROM audit WHERE seal IS NOT NULL LIMIT 1";
    Ok(connection.row(sql, &[]).await?.is_some())
}

/// Adds a row of a tool's own and seals it, inside the tool's transaction.
///
/// # Errors
/// If the database fails.
pub async fn append_audit(
    connection: &mut Connection,
    row: &AuditRow,
    root: &RootKey,
) -> Result<(), StoreError> {
    let ground = ground(connection).await?;
    let mut head = ground.head;
    insert(connection, &mut head, &[row]).await?;
    seal(connection, &ground, &head, root).await
}

/// Chains rows that a version without a chain has written.
pub(super) async fn adopt(connection: &mut Connection) -> Result<(), StoreError> {
    let (mut head, mut after) = (Head::EMPTY, 0);
    loop {
        let rows = audit(connection, after, PAGE).await?;
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        after = *last;
        for (seq, row) in &rows {
            head = head.after(row);
            let sql = "UPDATE audit SET seq = $1, hash = $2 WHERE seq = $3";
            let values = [head.seq.into(), head.hash.as_slice().into(), (*seq).into()];
            connection.execute(sql, &values).await?;
        }
    }
}

/// Audit rows after `after`, oldest first, at most `limit`, each with its number.
///
/// # Errors
/// If the database fails.
pub async fn audit(
    connection: &mut Connection,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, AuditRow)>, StoreError> {
    let sql = "SELECT time_ms, operation, error_code, event, seq FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
    let rows = connection.rows(sql, &[after.into(), limit.into()]).await?;
    rows.iter()
        .map(|row| Ok((row.get(4)?, audit_row(row)?)))
        .collect()
}

/// The first four columns of a row.
fn audit_row(row: &Record) -> Result<AuditRow, sqlx::Error> {
    Ok(AuditRow {
        time_ms: row.get(0)?,
        operation: row.get(1)?,
        error_code: row.get(2)?,
        event: row.get(3)?,
        used: None,
    })
}

/// Number of the last audit row but `count`, to start a tail from.
///
/// # Errors
/// If the database fails.
pub async fn audit_tail(connection: &mut Connection, count: i64) -> Result<i64, StoreError> {
    Ok(head(connection).await?.seq.saturating_sub(count))
}

/// The rows of one request.
///
/// # Errors
/// If the database fails.
pub async fn audit_of(
    connection: &mut Connection,
    request_id: &str,
) -> Result<Vec<AuditRow>, StoreError> {
    let place = match connection.is_shared() {
        true => "strpos",
        false => "instr",
    };
    let sql = format!(
        "SELECT time_ms, operation, error_code, event FROM audit WHERE {place}(event, $1) > 0 ORDER BY seq"
    );
    let wanted = format!("\"requestID\":\"{request_id}\"");
    let rows = connection.rows(&sql, &[(&wanted).into()]).await?;
    rows.iter().map(|row| Ok(audit_row(row)?)).collect()
}

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// Numbers jump: rows are missing before this one, or it was moved.
    Gap,
    /// The row, or one before it, is not the one that was written.
    Hash,
    /// The row was sealed by another root key, or not by the KMS, or not behind the rows that are before it.
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
            Self::Seal => {
                "its seal is not this root key's, or the KMS wrote it behind rows that are not the KMS's or have lost their seals"
            }
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

/// Whether a row's seal is one of this root key's, behind the row that had the last.
fn is_seal(root: &RootKey, seal: &[u8], ground: &Head, row: &Head) -> bool {
    root.is_tag(&row.sealed_on(ground), seal) || root.is_tag(&row.sealed(), seal)
}

const VERIFIED: &str = "SELECT time_ms, operation, error_code, event, seq, hash, seal FROM audit
    WHERE seq > $1 ORDER BY seq LIMIT $2";

/// Goes through the whole chain.
///
/// # Errors
/// If the database fails.
pub async fn verify_audit(
    connection: &mut Connection,
    root: &RootKey,
    noted: Option<Head>,
) -> Result<Verified, StoreError> {
    let (mut head, mut sealed, mut sealed_from) = (Head::EMPTY, true, None);
    // The last row with a seal: what the next transaction went on from.
    let mut ground = Head::EMPTY;
    let mut found = noted.is_none_or(|noted| noted == Head::EMPTY);
    loop {
        let rows = connection
            .rows(VERIFIED, &[head.seq.into(), PAGE.into()])
            .await?;
        for row in &rows {
            let seq: i64 = row.get(4)?;
            let hash: Option<Vec<u8>> = row.get(5)?;
            let seal: Option<Vec<u8>> = row.get(6)?;
            let next = head.after(&audit_row(row)?);
            let flaw = if seq != next.seq {
                Some(Flaw::Gap)
            } else if hash.as_deref() != Some(next.hash.as_slice()) {
                Some(Flaw::Hash)
            } else if seal
                .as_ref()
                .is_some_and(|seal| !is_seal(root, seal, &ground, &next))
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
            if sealed {
                ground = head;
            }
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
        store.seal_with(std::sync::Arc::clone(&root)).await.unwrap();
        for number in 1..=10 {
            store.record(row(number), true).await.unwrap();
        }
        drop(store);
        writer.await.unwrap();
        let location = super::super::Location::from(directory.path());
        let mut connection = connect(&location).await.unwrap();
        connection.script(tamper).await.unwrap();
        verify_audit(&mut connection, &root, noted).await.unwrap()
    }

    /// A trail of ten rows, what `tamper` makes of it, and one row more that a server which knows nothing of it writes.
    async fn and_on(tamper: &str) -> Verified {
        let directory = tempfile::tempdir().unwrap();
        let root =
            std::sync::Arc::new(RootKey::open(&directory.path().join("root.key"), true).unwrap());
        let write = async |numbers: std::ops::RangeInclusive<i64>| {
            let (store, writer) = Store::open(directory.path()).await.unwrap();
            store.seal_with(std::sync::Arc::clone(&root)).await.unwrap();
            for number in numbers {
                store.record(row(number), true).await.unwrap();
            }
            drop(store);
            writer.await.unwrap();
        };
        write(1..=10).await;
        let location = super::super::Location::from(directory.path());
        let mut connection = connect(&location).await.unwrap();
        connection.script(tamper).await.unwrap();
        connection.close().await.unwrap();
        write(11..=11).await;
        let mut connection = connect(&location).await.unwrap();
        verify_audit(&mut connection, &root, None).await.unwrap()
    }

    /// SQL that puts another event into a row and chains those that follow anew, without seals.
    fn forged(from: i64) -> String {
        let mut head = head_of(from - 1);
        let mut sql = String::new();
        for number in from..=10 {
            let mut row = row(number);
            if number == from {
                row.event = "{}".to_owned();
            }
            head = head.after(&row);
            let hash = hex::encode(head.hash);
            sql.push_str(&format!(
                "UPDATE audit SET event = '{}', hash = x'{hash}', seal = NULL WHERE seq = {number};",
                row.event
            ));
        }
        sql
    }

    #[tokio::test]
    async fn a_server_does_not_vouch_for_rows_that_it_goes_on_from() {
        let more = AuditRow {
            event: "{}".to_owned(),
            error_code: None,
            ..row(11)
        };
        let slipped_in = format!(
            "INSERT INTO audit (seq, time_ms, operation, event, hash) VALUES (11, 11, 'Decrypt', '{{}}', x'{}')",
            hex::encode(head_of(10).after(&more).hash)
        );
        for (tamper, flaw) in [
            ("SELECT 1".to_owned(), None),
            (slipped_in, Some((12, Flaw::Seal))),
            (forged(4), Some((11, Flaw::Seal))),
            (forged(10), Some((11, Flaw::Seal))),
            (
                "UPDATE audit SET seal = NULL WHERE seq = 10".to_owned(),
                Some((11, Flaw::Seal)),
            ),
            // What is left after a cut is a valid trail, and what follows it too: a noted head tells.
            ("DELETE FROM audit WHERE seq > 6".to_owned(), None),
        ] {
            assert_eq!(and_on(&tamper).await.flaw, flaw, "{tamper}");
        }
        // Without any seal the rows may be from before there were some. It is told where they begin.
        let none = and_on("UPDATE audit SET seal = NULL").await;
        assert_eq!((none.flaw, none.sealed_from), (None, Some(11)));
    }

    #[tokio::test]
    async fn seals_of_the_first_form_verify_and_are_gone_on_from() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
        let (store, writer) = Store::open(directory.path()).await.unwrap();
        drop(store);
        writer.await.unwrap();
        let location = super::super::Location::from(directory.path());
        let mut connection = connect(&location).await.unwrap();
        for number in 1..=4 {
            append_audit(&mut connection, &row(number), &root)
                .await
                .unwrap();
        }
        for number in 1..=3 {
            let tag = hex::encode(root.tag(&head_of(number).sealed()));
            let older = format!("UPDATE audit SET seal = x'{tag}' WHERE seq = {number}");
            connection.script(&older).await.unwrap();
        }
        let verified = verify_audit(&mut connection, &root, None).await.unwrap();
        assert_eq!((verified.head, verified.flaw), (head_of(4), None));
        assert_eq!(verified.sealed_from, Some(1));
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
