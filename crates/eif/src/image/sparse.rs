//! Sparse files in PAX archives, as GNU tar writes them (`GNU.sparse`, format 1.0).
//!
//! The entry's body starts with a map in decimal lines, padded to 512 bytes: how many pieces, then offset and length of each. The
//! pieces follow. Everything between them is zeros. (The older form, a type of entry of its own, is the archive reader's business.)

use std::io::{self, Read};

/// A block of a tar archive.
const BLOCK: usize = 512;

/// Most pieces of one file: more than any file system makes of 4 GiB.
const MAX_PIECES: u64 = 1 << 20;

/// What an entry's extended headers say of a sparse file.
#[derive(Debug, Default)]
pub(crate) struct SparseHeader {
    major: Option<String>,
    minor: Option<String>,
    other: bool,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
}

impl SparseHeader {
    /// Takes note of an extended header.
    pub(crate) fn note(&mut self, key: &[u8], value: &[u8]) {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else {
            return;
        };
        let text = String::from_utf8_lossy(value).into_owned();
        match key {
            b"major" => self.major = Some(text),
            b"minor" => self.minor = Some(text),
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" => self.real_size = text.parse().ok(),
            _ => self.other = true,
        }
    }

    /// The file's own name and size, if it is sparse.
    ///
    /// # Errors
    /// It is, in a form that nothing writes any more.
    pub(crate) fn file(self) -> io::Result<Option<(Vec<u8>, u64)>> {
        match (self.major.as_deref(), self.minor.as_deref()) {
            (None, None) if !self.other && self.name.is_none() => Ok(None),
            (Some("1"), Some("0")) => match (self.name, self.real_size) {
                (Some(name), Some(size)) => Ok(Some((name, size))),
                _ => Err(invalid("a sparse file has no name or size")),
            },
            _ => Err(invalid("a sparse file is in another format than GNU's 1.0")),
        }
    }
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

impl<'r, R: Read> Expanded<'r, R> {
    /// Reads the map that an entry's body starts with.
    pub(crate) fn new(data: &'r mut R, size: u64) -> io::Result<Self> {
        let mut map = Map {
            data,
            block: [0; BLOCK],
            at: BLOCK,
        };
        let count = map.number()?;
        if count > MAX_PIECES {
            return Err(invalid("a sparse file has too many pieces"));
        }
        let (mut pieces, mut end) = (Vec::new(), 0);
        for _ in 0..count {
            let (offset, len) = (map.number()?, map.number()?);
            let fits = offset >= end && offset.checked_add(len).is_some_and(|end| end <= size);
            if !fits {
                return Err(invalid("a sparse file's pieces overlap or do not fit"));
            }
            end = offset + len;
            pieces.push((offset, len));
        }
        Ok(Self {
            data,
            pieces: pieces.into_iter().peekable(),
            position: 0,
            size,
        })
    }
}

impl<R: Read> Read for Expanded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
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
struct Map<'m, R> {
    data: &'m mut R,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Map<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut number = None;
        loop {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            let digit = match byte {
                b'\n' => {
                    return number.ok_or_else(|| invalid("a sparse file's map lacks a number"));
                }
                b'0'..=b'9' => u64::from(byte - b'0'),
                _ => return Err(invalid("a sparse file's map is not decimal")),
            };
            let next = number
                .unwrap_or(0_u64)
                .checked_mul(10)
                .and_then(|n| n.checked_add(digit));
            number = Some(next.ok_or_else(|| invalid("a sparse file's map is out of range"))?);
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

    fn expand(map: &str, data: &[u8], size: u64) -> io::Result<Vec<u8>> {
        let mut body = map.as_bytes().to_vec();
        body.resize(body.len().next_multiple_of(BLOCK), 0);
        body.extend_from_slice(data);
        let mut out = Vec::new();
        let mut body = body.as_slice();
        Expanded::new(&mut body, size)?
            .take(1 << 20)
            .read_to_end(&mut out)?;
        Ok(out)
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
            assert!(expand(map, b"abcd", 8).is_err(), "{map:?}");
        }
        assert!(expand("1\n0\n4\n", b"abc", 8).is_err(), "data is missing");
    }

    proptest! {
        #[test]
        fn any_map_ends(map in "[0-9\n]{0,40}", size in 0_u64..2000) {
            if let Ok(out) = expand(&map, &[1; 300], size) {
                prop_assert_eq!(u64::try_from(out.len()).unwrap(), size);
            }
        }
    }
}
