//! Sparse files in PAX archives, as GNU tar writes them (`GNU.sparse` records).
//!
//! An entry's data are the pieces of the file that are no hole, one after the other; everything between them is zeros. Where they
//! belong, a map says: offset and length of each. Format 0.0 has a record for every number, 0.1 all of them in one
//! record, and 1.0 has decimal lines before the data, padded to 512 bytes. (The older form, a type of entry of its own, is the
//! archive reader's business.) What is read as what is as in Go's `archive/tar`, which container runtimes read layers with.

use std::io::{self, Read};

/// A block of a tar archive.
const BLOCK: usize = 512;

/// Most pieces of one file: more than any file system makes of 4 GiB.
const MAX_PIECES: u64 = 1 << 20;

/// What an entry's extended headers say of a sparse file.
#[derive(Debug, Default)]
pub(crate) struct SparseHeader {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// How many pieces there are, in the formats before 1.0.
    count: Option<u64>,
    /// Offset and length of each, in turn, in the formats before 1.0.
    numbers: Option<Vec<u64>>,
}

/// A sparse file, as far as its entry's headers tell.
#[derive(Debug)]
pub(crate) struct Sparse {
    /// Its name, if the entry's own is made up.
    pub(crate) name: Option<Vec<u8>>,
    /// Its length, holes included.
    pub(crate) size: u64,
    map: Map,
}

/// Where the pieces of a file belong.
#[derive(Debug)]
enum Map {
    /// Offset and length of each piece.
    Known(Vec<(u64, u64)>),
    /// The entry's data start with them.
    InData,
}

impl SparseHeader {
    /// Takes note of an extended header.
    ///
    /// # Errors
    /// It is one of a sparse file, and makes no sense.
    pub(crate) fn note(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else {
            return Ok(());
        };
        match key {
            b"major" => once(&mut self.major, number(value)?),
            b"minor" => once(&mut self.minor, number(value)?),
            b"name" => once(&mut self.name, value.to_vec()),
            b"size" | b"realsize" => once(&mut self.size, number(value)?),
            b"numblocks" => once(&mut self.count, number(value)?),
            b"offset" => self.next_number(0, number(value)?),
            b"numbytes" => self.next_number(1, number(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(number);
                once(&mut self.numbers, numbers.collect::<io::Result<_>>()?)
            }
            _ => Ok(()),
        }
    }

    /// A number of a map that has a record for each: offsets where the count so far is even, lengths where it is odd.
    fn next_number(&mut self, parity: usize, number: u64) -> io::Result<()> {
        let numbers = self.numbers.get_or_insert_default();
        if numbers.len() % 2 != parity {
            return Err(invalid("a sparse file's map is out of order"));
        }
        numbers.push(number);
        Ok(())
    }

    /// The sparse file that the entry is, if it is one.
    ///
    /// # Errors
    /// It is, in a form that is not known or not complete.
    pub(crate) fn file(self) -> io::Result<Option<Sparse>> {
        let is_plain = self.name.is_none() && self.size.is_none() && self.numbers.is_none();
        let map = match (self.major, self.minor) {
            (None, None) if is_plain => return Ok(None),
            (Some(1), Some(0)) => Map::InData,
            (None, None) | (Some(0), Some(0 | 1)) => {
                Map::Known(pieces(&self.numbers.unwrap_or_default(), self.count)?)
            }
            _ => {
                return Err(invalid(
                    "a sparse file is in another format than GNU's 0.0, 0.1 and 1.0",
                ));
            }
        };
        let size = self
            .size
            .ok_or_else(|| invalid("a sparse file has no size"))?;
        let name = self.name.filter(|name| !name.is_empty());
        Ok(Some(Sparse { name, size, map }))
    }
}

impl Sparse {
    /// The file's content, out of the entry's data.
    ///
    /// # Errors
    /// The map in the data cannot be read, or no map can be right.
    pub(crate) fn expanded<R: Read>(self, data: &mut R) -> io::Result<Expanded<'_, R>> {
        let pieces = match self.map {
            Map::Known(pieces) => pieces,
            Map::InData => Lines::of(data).pieces()?,
        };
        let mut end = 0;
        for (offset, len) in &pieces {
            let next = offset.checked_add(*len).filter(|next| *next <= self.size);
            end = next
                .filter(|_| *offset >= end)
                .ok_or_else(|| invalid("a sparse file's pieces overlap or do not fit"))?;
        }
        Ok(Expanded {
            data,
            pieces: pieces.into_iter().peekable(),
            position: 0,
            size: self.size,
        })
    }
}

/// Sets what is not set to anything else: of two values one would be believed by one reader and the other by another.
fn once<T: PartialEq>(value: &mut Option<T>, new: T) -> io::Result<()> {
    match value {
        Some(old) if *old != new => Err(invalid("a sparse file is described twice")),
        _ => {
            *value = Some(new);
            Ok(())
        }
    }
}

/// The pieces of a map before format 1.0, as many as were promised.
fn pieces(numbers: &[u64], count: Option<u64>) -> io::Result<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || u64::try_from(pairs.len()).ok() != count {
        return Err(invalid("a sparse file's map is not as long as it says"));
    }
    Ok(pairs.iter().map(|[offset, len]| (*offset, *len)).collect())
}

/// A decimal number, and nothing else.
fn number(text: &[u8]) -> io::Result<u64> {
    let number = text
        .iter()
        .try_fold(None, |number, byte| digit(number, *byte))?;
    number.ok_or_else(lacking)
}

/// A number with one more digit.
fn digit(number: Option<u64>, byte: u8) -> io::Result<Option<u64>> {
    let digit = match byte {
        b'0'..=b'9' => u64::from(byte - b'0'),
        _ => return Err(invalid("a number of a sparse file is not decimal")),
    };
    let next = number.unwrap_or(0).checked_mul(10);
    let next = next.and_then(|number| number.checked_add(digit));
    next.map(Some)
        .ok_or_else(|| invalid("a number of a sparse file is out of range"))
}

fn lacking() -> io::Error {
    invalid("a sparse file's map lacks a number")
}

/// A sparse file's content, zeros included.
#[derive(Debug)]
pub(crate) struct Expanded<'r, R> {
    data: &'r mut R,
    /// Offset and length of each piece that is still to come.
    pieces: std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>,
    position: u64,
    size: u64,
}

impl<R: Read> Expanded<'_, R> {
    /// The end of the content is that of the data.
    fn end(&mut self) -> io::Result<usize> {
        match self.data.read(&mut [0])? {
            0 => Ok(0),
            _ => Err(invalid(
                "a sparse file has data that its map does not tell of",
            )),
        }
    }
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.position == self.size {
            return self.end();
        }
        while self
            .pieces
            .next_if(|(offset, len)| offset + len <= self.position)
            .is_some()
        {}
        let (start, end) = self
            .pieces
            .peek()
            .map_or((self.size, self.size), |(offset, len)| {
                (*offset, offset + len)
            });
        let is_zeros = self.position < start;
        let left = if is_zeros { start } else { end } - self.position;
        let count = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let read = if is_zeros {
            buf[..count].fill(0);
            count
        } else {
            self.data.read(&mut buf[..count])?
        };
        if read == 0 && count > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += u64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}

/// Decimal lines in whole blocks.
struct Lines<'m, R> {
    data: &'m mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<'m, R: Read> Lines<'m, R> {
    fn of(data: &'m mut R) -> Self {
        let (block, at) = ([0; BLOCK], BLOCK);
        Self { data, block, at }
    }

    fn pieces(mut self) -> io::Result<Vec<(u64, u64)>> {
        let count = self.number()?;
        if count > MAX_PIECES {
            return Err(invalid("a sparse file has too many pieces"));
        }
        (0..count)
            .map(|_| Ok((self.number()?, self.number()?)))
            .collect()
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut number = None;
        loop {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return number.ok_or_else(lacking),
                byte => number = digit(number, byte)?,
            }
        }
    }
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sparse(records: &[(&str, &str)]) -> io::Result<Option<Sparse>> {
        let mut header = SparseHeader::default();
        for (key, value) in records {
            header.note(format!("GNU.sparse.{key}").as_bytes(), value.as_bytes())?;
        }
        header.file()
    }

    fn content(sparse: Sparse, mut data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let expanded = sparse.expanded(&mut data)?;
        expanded.take(1 << 20).read_to_end(&mut out)?;
        Ok(out)
    }

    fn expand(map: &str, data: &[u8], size: u64) -> io::Result<Vec<u8>> {
        let mut body = map.as_bytes().to_vec();
        body.resize(body.len().next_multiple_of(BLOCK), 0);
        body.extend_from_slice(data);
        let size = size.to_string();
        let records = [("major", "1"), ("minor", "0"), ("realsize", &*size)];
        content(sparse(&records)?.unwrap(), &body)
    }

    #[test]
    fn pieces_are_put_where_they_belong() {
        assert_eq!(
            expand("2\n1\n2\n5\n1\n", b"abc", 8).unwrap(),
            b"\0ab\0\0c\0\0"
        );
        assert_eq!(expand("0\n", b"", 3).unwrap(), [0; 3]);
        assert_eq!(expand("1\n0\n0\n", b"", 0).unwrap(), b"");
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let cases = [
            "",
            "x\n",
            "\n",
            "1\n",
            "2\n0\n2\n1\n2\n",
            "1\n7\n2\n",
            "1\n18446744073709551615\n1\n",
            "99999999999999999999\n",
            "9999999\n",
        ];
        for map in cases {
            assert!(expand(map, b"", 8).is_err(), "{map:?}");
        }
        assert!(expand("1\n0\n4\n", b"abc", 8).is_err(), "data is missing");
        assert!(expand("1\n0\n2\n", b"abc", 8).is_err(), "data is left");
    }

    #[test]
    fn maps_in_headers_are_read_with_and_without_a_version() {
        let one_by_one = [
            ("size", "8"),
            ("numblocks", "2"),
            ("offset", "1"),
            ("numbytes", "2"),
            ("offset", "5"),
            ("numbytes", "1"),
        ];
        let together = [("size", "8"), ("numblocks", "2"), ("map", "1,2,5,1")];
        let named = [("major", "0"), ("minor", "1"), ("name", "n")];
        for records in [
            one_by_one.to_vec(),
            together.to_vec(),
            [named.as_slice(), &together].concat(),
        ] {
            let file = sparse(&records).unwrap().unwrap();
            let name = records.contains(&("name", "n")).then(|| b"n".to_vec());
            assert_eq!(file.name, name);
            assert_eq!(content(file, b"abc").unwrap(), b"\0ab\0\0c\0\0");
        }
        assert!(sparse(&[]).unwrap().is_none());
        assert!(sparse(&[("of-a-later-time", "1")]).unwrap().is_none());
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let cases: [&[(&str, &str)]; 13] = [
            &[("major", "1"), ("minor", "1"), ("size", "8")],
            &[("major", "1"), ("minor", "0")],
            &[("major", "1")],
            &[("name", "n")],
            &[("size", "8")],
            &[("size", "-8")],
            &[("numblocks", "1"), ("map", "1,2")],
            &[("size", "8"), ("map", "1,2")],
            &[("size", "8"), ("numblocks", "2"), ("map", "1,2")],
            &[("size", "8"), ("numblocks", "1"), ("map", "1,2,3")],
            &[("size", "8"), ("numblocks", "1"), ("map", "1,,2")],
            &[("size", "8"), ("realsize", "9"), ("numblocks", "0")],
            &[
                ("size", "8"),
                ("numblocks", "1"),
                ("numbytes", "1"),
                ("offset", "2"),
            ],
        ];
        for records in cases {
            assert!(sparse(records).is_err(), "{records:?}");
        }
        for map in ["4,5", "18446744073709551615,1"] {
            let records = [("size", "8"), ("numblocks", "1"), ("map", map)];
            let file = sparse(&records).unwrap().unwrap();
            assert!(content(file, b"abcde").is_err(), "{map}");
        }
    }

    proptest! {
        #[test]
        fn any_map_ends(map in "[0-9\n]{0,40}", size in 0_u64..2000) {
            if let Ok(out) = expand(&map, &[], size) {
                prop_assert_eq!(u64::try_from(out.len()).unwrap(), size);
            }
        }

        #[test]
        fn holes_and_pieces_come_back(parts in prop::collection::vec((0_usize..700, 0_usize..700), 0..20), hole in 0_usize..700) {
            let (mut whole, mut data, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
            for (index, (gap, len)) in parts.iter().enumerate() {
                whole.resize(whole.len() + gap, 0);
                let piece = vec![u8::try_from(index + 1).unwrap(); *len];
                numbers.extend([whole.len().to_string(), len.to_string()]);
                whole.extend(&piece);
                data.extend(piece);
            }
            whole.resize(whole.len() + hole, 0);
            let size = u64::try_from(whole.len()).unwrap();
            let lines = format!("{}\n{}", parts.len(), numbers.iter().map(|n| format!("{n}\n")).collect::<String>());
            prop_assert_eq!(&expand(&lines, &data, size).unwrap(), &whole);
            let (size, count, map) = (size.to_string(), parts.len().to_string(), numbers.join(","));
            let mut records = vec![("size", &*size), ("numblocks", &*count)];
            if !parts.is_empty() {
                records.push(("map", &*map));
            }
            if let Ok(Some(file)) = sparse(&records) {
                prop_assert_eq!(content(file, &data).unwrap(), whole);
            } else {
                prop_assert!(false, "refused");
            }
        }
    }
}
