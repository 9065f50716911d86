//! The inside of a backup: all rows of a database, written one after the other and read again with bounded memory.
//!
//! ```text
//! record = kind (8 bits) ‖ length (32 bits, big-endian) ‖ body
//!   'K'  root.key, byte for byte; first, if at all
//!   'T'  { "table": …, "columns": [ … ] }, then its rows, in the order of their keys
//!   'R'  a row: its cells in the order of the columns
//!   'E'  { "rows": { table: number, … }, "head": head of the audit trail, "usage_since_ms": … }; last
//! cell = 0 | 1 ‖ integer (64) | 2 ‖ length (32) ‖ text | 3 ‖ length (32) ‖ bytes | 4 ‖ flag (8)
//! ```
//!
//! What is secret in a row is sealed under the root key here as it is in the database. What stands around the records is
//! [`crate::crypto::backup`]'s. Nothing is believed of a length: a record is read as far as there are bytes, up to [`LONGEST`].

use std::collections::BTreeMap;
use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use super::audit::{self, Head};
use super::tables::{Cell, Kind, PAGE, TABLES, Table, recording_since, set_recording_since};
use super::transfer::{Moved, TransferError, begin_empty, finish};
use super::{Connection, StoreError, root_versions};
use crate::crypto::seal::RootKey;

/// Longest record. Policies and audit events are far shorter.
const LONGEST: u32 = 16 * 1024 * 1024;

/// Rows are kept until they have so many bytes, or there are [`PAGE`] of them.
const GATHER: usize = 1024 * 1024;

/// Why there is no backup, or nothing of it was restored.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The database.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// What it is restored into.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The file.
    #[error("cannot read or write the backup")]
    Io(#[from] std::io::Error),
    /// Opened, and not understood.
    #[error("the backup holds what this program does not expect: {0}")]
    Content(String),
    /// Of another schema.
    #[error(
        "the backup's table {0} has other columns than this program's; restore it with the enclos-kms that made it, then start this one"
    )]
    Columns(&'static str),
    /// Nobody could restore it.
    #[error(
        "version {0} of the root key was made current and this root.key, which goes into the backup, does not have it; copy root.key from a node that has it, or try again if it was rotated just now"
    )]
    OldRootKey(u32),
    /// Longer than anything that is ever stored.
    #[error("a row of the table {0} is longer than {LONGEST} bytes and cannot be backed up")]
    TooLong(&'static str),
}

fn content(text: impl Into<String>) -> CopyError {
    CopyError::Content(text.into())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Columns {
    table: String,
    columns: Vec<String>,
}

/// What a backup ends with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    rows: BTreeMap<String, i64>,
    head: String,
    usage_since_ms: i64,
}

fn put(out: &mut impl Write, kind: u8, body: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    out.write_all(&[kind])?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(body)
}

fn put_json(out: &mut impl Write, kind: u8, value: &impl Serialize) -> Result<(), CopyError> {
    let body = serde_json::to_vec(value).map_err(|error| content(error.to_string()))?;
    Ok(put(out, kind, &body)?)
}

fn encode(row: &[Cell]) -> Vec<u8> {
    let mut body = Vec::new();
    let long = |kind: u8, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        [&[kind], length.to_be_bytes().as_slice(), bytes].concat()
    };
    for cell in row {
        let cell = match cell {
            Cell::Integer(None) | Cell::Text(None) | Cell::Bytes(None) => vec![0],
            Cell::Integer(Some(value)) => [&[1], value.to_be_bytes().as_slice()].concat(),
            Cell::Text(Some(text)) => long(2, text.as_bytes()),
            Cell::Bytes(Some(bytes)) => long(3, bytes),
            Cell::Flag(flag) => vec![4, u8::from(*flag)],
        };
        body.extend_from_slice(&cell);
    }
    body
}

fn decode(table: &Table, mut body: &[u8]) -> Option<Vec<Cell>> {
    fn long<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(*body.split_off(..4)?.first_chunk()?);
        body.split_off(..usize::try_from(length).ok()?)
    }
    let mut row = Vec::with_capacity(table.columns.len());
    for (_, kind) in table.columns {
        row.push(match (body.split_off_first()?, kind) {
            (0, Kind::Integer) => Cell::Integer(None),
            (0, Kind::Text) => Cell::Text(None),
            (0, Kind::Bytes) => Cell::Bytes(None),
            (1, Kind::Integer) => {
                let bytes = body.split_off(..8)?.first_chunk()?;
                Cell::Integer(Some(i64::from_be_bytes(*bytes)))
            }
            (2, Kind::Text) => {
                let text = std::str::from_utf8(long(&mut body)?).ok()?;
                Cell::Text(Some(text.to_owned()))
            }
            (3, Kind::Bytes) => Cell::Bytes(Some(long(&mut body)?.to_vec())),
            (4, Kind::Flag) => match body.split_off_first()? {
                0 => Cell::Flag(false),
                1 => Cell::Flag(true),
                _ => return None,
            },
            _ => return None,
        });
    }
    body.is_empty().then_some(row)
}

/// `root.key`, which goes along.
#[derive(Debug, Clone, Copy)]
pub struct RootKeyFile<'a> {
    /// Byte for byte.
    pub bytes: &'a [u8],
    /// Opened.
    pub root: &'a RootKey,
}

/// Writes everything, as it is at one moment, while others read and write.
///
/// # Errors
/// If the database fails, or the file; or if `root.key` does not open what it goes along with.
pub async fn export(
    from: &mut Connection,
    root_key: Option<RootKeyFile<'_>>,
    out: &mut impl Write,
) -> Result<Moved, CopyError> {
    from.begin_reading().await?;
    if let Some(RootKeyFile { bytes, root }) = root_key {
        let newest = root_versions::newest_root(from).await?;
        if let Some(newest) = newest.filter(|newest| !root.knows(*newest)) {
            return Err(CopyError::OldRootKey(newest));
        }
        put(out, b'K', bytes)?;
    }
    let mut rows = Vec::new();
    for table in TABLES {
        rows.push((table.name, export_table(from, table, out).await?));
    }
    let head = audit::head(from).await?;
    let end = End {
        rows: rows.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect(),
        head: head.to_string(),
        usage_since_ms: recording_since(from).await?,
    };
    from.rollback().await?;
    put_json(out, b'E', &end)?;
    Ok(Moved { rows, head })
}

async fn export_table(
    from: &mut Connection,
    table: &'static Table,
    out: &mut impl Write,
) -> Result<i64, CopyError> {
    let columns = table.columns.iter().map(|(name, _)| (*name).to_owned());
    let columns = Columns {
        table: table.name.to_owned(),
        columns: columns.collect(),
    };
    put_json(out, b'T', &columns)?;
    let mut count = 0;
    let mut page = table.page(from, None).await?;
    while let Some(last) = page.last() {
        for row in &page {
            let body = encode(row);
            if !u32::try_from(body.len()).is_ok_and(|length| length <= LONGEST) {
                return Err(CopyError::TooLong(table.name));
            }
            put(out, b'R', &body)?;
            count += 1;
        }
        page = table.page(from, Some(last)).await?;
    }
    Ok(count)
}

/// Some rows of one table.
struct Page {
    table: &'static Table,
    rows: Vec<Vec<Cell>>,
}

/// The records of a backup, as pages of rows.
struct Pages<R> {
    records: R,
    /// Tables whose rows are to come.
    left: std::slice::Iter<'static, Table>,
    /// The one whose rows come now.
    table: Option<&'static Table>,
    counts: BTreeMap<String, i64>,
    root_key: Option<Vec<u8>>,
    end: Option<End>,
}

impl<R: Read> Pages<R> {
    fn new(records: R) -> Self {
        Self {
            records,
            left: TABLES.iter(),
            table: None,
            counts: BTreeMap::new(),
            root_key: None,
            end: None,
        }
    }

    /// The next record: kind and body.
    fn record(&mut self) -> Result<(u8, Vec<u8>), CopyError> {
        let mut front = [0; 5];
        self.records.read_exact(&mut front)?;
        let [kind, length @ ..] = front;
        let length = u32::from_be_bytes(length);
        if length > LONGEST {
            return Err(content(format!("a record of {length} bytes")));
        }
        let mut body = Vec::new();
        let read = (&mut self.records)
            .take(length.into())
            .read_to_end(&mut body)?;
        match u32::try_from(read) {
            Ok(read) if read == length => Ok((kind, body)),
            _ => Err(content("a record that is cut off")),
        }
    }

    /// The next rows; `None` once everything was read.
    fn next(&mut self) -> Result<Option<Page>, CopyError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let (mut rows, mut bytes) = (Vec::new(), 0);
        loop {
            let (kind, body) = self.record()?;
            let full = match (kind, self.table) {
                (b'K', None) if self.root_key.is_none() && self.left.len() == TABLES.len() => {
                    self.root_key = Some(body);
                    None
                }
                (b'R', Some(table)) => {
                    bytes += body.len();
                    let row = decode(table, &body);
                    rows.push(row.ok_or_else(|| content(format!("a row of {}", table.name)))?);
                    *self.counts.entry(table.name.to_owned()).or_default() += 1;
                    (rows.len() == PAGE || bytes >= GATHER).then_some(table)
                }
                (b'T', before) => {
                    self.begin_table(&body)?;
                    before
                }
                (b'E', Some(table)) if self.left.len() == 0 => {
                    self.end(&body)?;
                    Some(table)
                }
                (other, _) => return Err(content(format!("a record of kind {other}"))),
            };
            match full {
                Some(table) if !rows.is_empty() => return Ok(Some(Page { table, rows })),
                _ if self.end.is_some() => return Ok(None),
                _ => {}
            }
        }
    }

    fn begin_table(&mut self, body: &[u8]) -> Result<(), CopyError> {
        let text: Columns = serde_json::from_slice(body).map_err(|e| content(e.to_string()))?;
        let table = self.left.next().filter(|table| table.name == text.table);
        let table = table.ok_or_else(|| content(format!("the table {}", text.table)))?;
        let names = table.columns.iter().map(|(name, _)| *name);
        if !names.eq(text.columns.iter().map(String::as_str)) {
            return Err(CopyError::Columns(table.name));
        }
        self.counts.insert(table.name.to_owned(), 0);
        self.table = Some(table);
        Ok(())
    }

    fn end(&mut self, body: &[u8]) -> Result<(), CopyError> {
        let end: End = serde_json::from_slice(body).map_err(|e| content(e.to_string()))?;
        if end.rows != self.counts {
            return Err(content("other numbers of rows than it says"));
        }
        // Only now is it known that the last piece is whole.
        if self.records.read(&mut [0])? != 0 {
            return Err(content("something after its end"));
        }
        self.table = None;
        self.end = Some(end);
        Ok(())
    }

    fn finished(self) -> Result<(End, Head), CopyError> {
        let end = self.end.ok_or_else(|| content("no end"))?;
        let head = end.head.parse();
        let head = head.map_err(|_| content("no head of the audit trail"))?;
        Ok((end, head))
    }
}

/// What a backup holds, all of which was read.
#[derive(Debug)]
pub struct Contents {
    /// Rows by table, and the head of the audit trail.
    pub moved: Moved,
    /// The root key's file, if it is in it.
    pub root_key: Option<Vec<u8>>,
}

/// Reads a whole backup and looks at every record; writes nothing.
///
/// # Errors
/// If it is not whole, or not what this program writes.
pub fn check(records: impl Read) -> Result<Contents, CopyError> {
    let mut pages = Pages::new(records);
    while pages.next()?.is_some() {}
    let root_key = pages.root_key.take();
    let (end, head) = pages.finished()?;
    Ok(Contents {
        moved: Moved {
            rows: counted(&end),
            head,
        },
        root_key,
    })
}

fn counted(end: &End) -> Vec<(&'static str, i64)> {
    let rows = TABLES.iter().map(|table| {
        let count = end.rows.get(table.name).copied();
        (table.name, count.unwrap_or_default())
    });
    rows.collect()
}

/// Writes a backup's rows into an empty database; `to` is then in a transaction that is still to be committed.
///
/// # Errors
/// If anything fails; without a commit the database is as it was.
pub async fn restore(
    records: impl Read,
    to: &mut Connection,
    root: &RootKey,
) -> Result<Moved, CopyError> {
    begin_empty(to).await?;
    let mut pages = Pages::new(records);
    while let Some(page) = pages.next()? {
        page.table.insert(to, &page.rows).await?;
    }
    let (end, head) = pages.finished()?;
    set_recording_since(to, end.usage_since_ms).await?;
    Ok(finish(to, root, &counted(&end), head).await?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(table: &'static Table) -> impl Strategy<Value = Vec<Cell>> {
        let cell = |(_, kind): &(&str, Kind)| match kind {
            Kind::Integer => any::<Option<i64>>().prop_map(Cell::Integer).boxed(),
            Kind::Text => any::<Option<String>>().prop_map(Cell::Text).boxed(),
            Kind::Bytes => any::<Option<Vec<u8>>>().prop_map(Cell::Bytes).boxed(),
            Kind::Flag => any::<bool>().prop_map(Cell::Flag).boxed(),
        };
        table.columns.iter().map(cell).collect::<Vec<_>>()
    }

    fn whole() -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, b'K', &[9; 32]).unwrap();
        let mut end = End {
            rows: BTreeMap::new(),
            head: Head::EMPTY.to_string(),
            usage_since_ms: 5,
        };
        for table in TABLES {
            let columns = table.columns.iter().map(|(name, _)| (*name).to_owned());
            let columns = Columns {
                table: table.name.to_owned(),
                columns: columns.collect(),
            };
            put_json(&mut out, b'T', &columns).unwrap();
            let row: Vec<Cell> = table
                .columns
                .iter()
                .map(|(_, kind)| match kind {
                    Kind::Integer => Cell::Integer(Some(1)),
                    Kind::Text => Cell::Text(Some("x".to_owned())),
                    Kind::Bytes => Cell::Bytes(Some(vec![1])),
                    Kind::Flag => Cell::Flag(true),
                })
                .collect();
            for _ in 0..PAGE + 1 {
                put(&mut out, b'R', &encode(&row)).unwrap();
            }
            end.rows.insert(table.name.to_owned(), 201);
        }
        put_json(&mut out, b'E', &end).unwrap();
        out
    }

    #[test]
    fn a_whole_backup_is_read_in_pages() {
        let whole = whole();
        let checked = check(whole.as_slice()).unwrap();
        assert_eq!(checked.root_key.as_deref(), Some([9; 32].as_slice()));
        assert!(checked.moved.rows.iter().all(|(_, n)| *n == 201));
        let mut pages = Pages::new(whole.as_slice());
        let mut sizes = Vec::new();
        while let Some(page) = pages.next().unwrap() {
            sizes.push(page.rows.len());
        }
        assert_eq!(sizes, [PAGE, 1].repeat(TABLES.len()));
    }

    #[test]
    fn what_is_left_out_added_or_out_of_order_is_refused() {
        let whole = whole();
        let refused = |bytes: &[u8], text: &str| {
            let error = check(bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        let record = |kind: u8, body: &[u8]| {
            let mut out = Vec::new();
            put(&mut out, kind, body).unwrap();
            out
        };
        let (key, rest) = whole.split_at(37);
        refused(&[&whole, [0].as_slice()].concat(), "after its end");
        refused(&[key, &whole].concat(), "kind 75");
        refused(&record(b'R', &[]), "kind 82");
        refused(
            &record(b'T', br#"{"table":"grants","columns":[]}"#),
            "grants",
        );
        refused(
            &record(b'T', br#"{"table":"keys","columns":["id"]}"#),
            "other columns",
        );
        refused(&[b'R', 0xff, 0xff, 0xff, 0xff], "4294967295");
        refused(&[b'K', 0, 0, 1, 0, 1], "cut off");
        check(rest).unwrap();
        let text = String::from_utf8_lossy(&whole).into_owned();
        let end = text.rfind("\"rows\"").unwrap();
        assert!(text[end..].contains("\"keys\":201"));
        let mut fewer = whole.clone();
        let at = whole
            .windows(10)
            .rposition(|w| w == b"\"keys\":201")
            .unwrap();
        fewer[at + 9] = b'0';
        refused(&fewer, "other numbers of rows");
    }

    proptest! {
        #[test]
        fn rows_come_back(rows in (0..TABLES.len()).prop_flat_map(|at| (Just(at), rows(&TABLES[at])))) {
            let (at, row) = rows;
            prop_assert_eq!(decode(&TABLES[at], &encode(&row)), Some(row));
        }

        #[test]
        fn any_bytes_are_a_backup_or_an_error(bytes in any::<Vec<u8>>(), at in any::<prop::sample::Index>()) {
            let _verdict = check(bytes.as_slice());
            let mut mixed = whole();
            let at = at.index(mixed.len());
            mixed.splice(at..at, bytes);
            let _verdict = check(mixed.as_slice());
        }
    }
}
