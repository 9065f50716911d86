//! A reader for the part of BER that CMS uses: low tag numbers, definite and indefinite lengths.
//!
//! It never allocates by a length that it reads, never reads past its input and never nests deeper than
//! [`MAX_DEPTH`]: the input is what a KMS sent, and may be anything.

/// Deepest nesting; CMS needs seven.
pub const MAX_DEPTH: usize = 16;

/// Universal tags.
pub const INTEGER: u8 = 0x02;
/// OCTET STRING, primitive.
pub const OCTET_STRING: u8 = 0x04;
/// NULL.
pub const NULL: u8 = 0x05;
/// OBJECT IDENTIFIER.
pub const OID: u8 = 0x06;
/// SEQUENCE.
pub const SEQUENCE: u8 = 0x30;
/// SET.
pub const SET: u8 = 0x31;
/// Bit of a tag that says "made of elements".
pub const CONSTRUCTED: u8 = 0x20;
/// Context-specific tag 0, primitive.
pub const CONTEXT_0: u8 = 0x80;

/// Why bytes are no BER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BerError {
    /// The input ends within an element.
    #[error("the input ends within an element")]
    Truncated,
    /// A tag number above 30.
    #[error("a tag number above 30")]
    HighTag,
    /// A length that is none, or on a primitive element without end.
    #[error("a length that is none")]
    Length,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// An element of another kind than expected.
    #[error("an element of tag {found:#04x} where {expected:#04x} was expected")]
    Unexpected {
        /// What was expected.
        expected: u8,
        /// What is there.
        found: u8,
    },
    /// Bytes after the last element.
    #[error("bytes after the last element")]
    Trailing,
}

/// One element: its tag and what it holds, without an end-of-contents mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element<'a> {
    /// First and only byte of the tag.
    pub tag: u8,
    /// What it holds.
    pub content: &'a [u8],
}

impl<'a> Element<'a> {
    /// Reads the elements inside.
    #[must_use]
    pub fn reader(&self) -> Reader<'a> {
        Reader { rest: self.content }
    }
}

/// Reads one element after the other.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next element; nothing at the end.
    ///
    /// # Errors
    /// See [`BerError`].
    pub fn element(&mut self) -> Result<Option<Element<'a>>, BerError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (element, rest) = element(self.rest, 0)?;
        self.rest = rest;
        Ok(Some(element))
    }

    /// The next element, which must be there and have this tag.
    ///
    /// # Errors
    /// See [`BerError`].
    pub fn expect(&mut self, expected: u8) -> Result<Element<'a>, BerError> {
        let element = self.element()?.ok_or(BerError::Truncated)?;
        if element.tag == expected {
            return Ok(element);
        }
        Err(BerError::Unexpected {
            expected,
            found: element.tag,
        })
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`BerError::Trailing`].
    pub fn end(&self) -> Result<(), BerError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(BerError::Trailing)
        }
    }
}

/// The bytes of a string whose tag, when primitive, is `primitive`: in one piece, or in OCTET STRING pieces.
///
/// # Errors
/// See [`BerError`].
pub fn string(element: Element<'_>, primitive: u8) -> Result<Vec<u8>, BerError> {
    let mut bytes = Vec::new();
    append(element, primitive, &mut bytes, 0)?;
    Ok(bytes)
}

fn append(
    element: Element<'_>,
    primitive: u8,
    bytes: &mut Vec<u8>,
    depth: usize,
) -> Result<(), BerError> {
    if depth > MAX_DEPTH {
        return Err(BerError::TooDeep);
    }
    if element.tag == primitive {
        bytes.extend(element.content);
        return Ok(());
    }
    if element.tag != primitive | CONSTRUCTED {
        return Err(BerError::Unexpected {
            expected: primitive,
            found: element.tag,
        });
    }
    let mut pieces = element.reader();
    while let Some(piece) = pieces.element()? {
        append(piece, OCTET_STRING, bytes, depth + 1)?;
    }
    Ok(())
}

/// Splits the first element off.
fn element(bytes: &[u8], depth: usize) -> Result<(Element<'_>, &[u8]), BerError> {
    if depth > MAX_DEPTH {
        return Err(BerError::TooDeep);
    }
    let (&tag, rest) = bytes.split_first().ok_or(BerError::Truncated)?;
    if tag & 0x1f == 0x1f {
        return Err(BerError::HighTag);
    }
    let (length, rest) = length(rest)?;
    let (content, rest) = match length {
        Some(length) => rest.split_at_checked(length).ok_or(BerError::Truncated)?,
        None if tag & CONSTRUCTED == 0 => return Err(BerError::Length),
        None => until_end_of_contents(rest, depth)?,
    };
    Ok((Element { tag, content }, rest))
}

/// A length; nothing for the indefinite form.
fn length(bytes: &[u8]) -> Result<(Option<usize>, &[u8]), BerError> {
    let (&first, rest) = bytes.split_first().ok_or(BerError::Truncated)?;
    match first {
        0x80 => Ok((None, rest)),
        0..0x80 => Ok((Some(usize::from(first)), rest)),
        // Four bytes count further than any message that is accepted.
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let (digits, rest) = rest.split_at_checked(count).ok_or(BerError::Truncated)?;
            let length = digits
                .iter()
                .fold(0_usize, |sum, digit| sum << 8 | usize::from(*digit));
            Ok((Some(length), rest))
        }
        0x85.. => Err(BerError::Length),
    }
}

/// What lies before the matching end-of-contents mark, and what lies behind it.
fn until_end_of_contents(bytes: &[u8], depth: usize) -> Result<(&[u8], &[u8]), BerError> {
    let mut rest = bytes;
    loop {
        if let Some(after) = rest.strip_prefix(&[0, 0]) {
            let len = bytes.len() - rest.len();
            return Ok((bytes.get(..len).unwrap_or_default(), after));
        }
        (_, rest) = element(rest, depth + 1)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Result<Element<'_>, BerError> {
        let mut reader = Reader::new(bytes);
        let element = reader.element()?.ok_or(BerError::Truncated)?;
        reader.end()?;
        Ok(element)
    }

    #[test]
    fn definite_and_indefinite_forms_hold_the_same() {
        for bytes in [
            &[0x30, 3, 2, 1, 7][..],
            &[0x30, 0x81, 3, 2, 1, 7],
            &[0x30, 0x84, 0, 0, 0, 3, 2, 1, 7],
            &[0x30, 0x80, 2, 1, 7, 0, 0],
        ] {
            let element = one(bytes).unwrap();
            assert_eq!((element.tag, element.content), (SEQUENCE, &[2, 1, 7][..]));
        }
    }

    #[test]
    fn a_zero_within_content_is_no_end_mark() {
        let bytes = [0x30, 0x80, 4, 3, 0, 0, 0, 0x30, 0x80, 0, 0, 0, 0];
        let mut inner = one(&bytes).unwrap().reader();
        assert_eq!(inner.expect(OCTET_STRING).unwrap().content, [0, 0, 0]);
        assert!(inner.expect(SEQUENCE).unwrap().content.is_empty());
        inner.end().unwrap();
    }

    #[test]
    fn strings_come_in_one_piece_or_several() {
        for bytes in [
            &[0x80, 3, 1, 2, 3][..],
            &[0xa0, 0x80, 4, 1, 1, 4, 2, 2, 3, 0, 0],
            &[0xa0, 7, 4, 1, 1, 4, 2, 2, 3],
            &[0xa0, 0x80, 0x24, 0x80, 4, 1, 1, 0, 0, 4, 2, 2, 3, 0, 0],
        ] {
            assert_eq!(string(one(bytes).unwrap(), CONTEXT_0).unwrap(), [1, 2, 3]);
        }
        let foreign = string(one(&[0xa0, 3, 2, 1, 1]).unwrap(), CONTEXT_0);
        assert_eq!(
            foreign,
            Err(BerError::Unexpected {
                expected: OCTET_STRING,
                found: INTEGER
            })
        );
    }

    #[test]
    fn each_malformation_has_its_error() {
        let cases: [(&[u8], BerError); 8] = [
            (&[0x30], BerError::Truncated),
            (&[0x30, 5, 0], BerError::Truncated),
            (&[0x30, 0x82, 1], BerError::Truncated),
            (&[0x30, 0x80, 2, 1, 7], BerError::Truncated),
            (&[0x1f, 0x81, 0], BerError::HighTag),
            (&[0x30, 0x85, 0, 0, 0, 0, 0], BerError::Length),
            (&[0x04, 0x80, 0, 0], BerError::Length),
            (&[0x30, 0, 0], BerError::Trailing),
        ];
        for (bytes, error) in cases {
            assert_eq!(one(bytes), Err(error), "{bytes:02x?}");
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |depth: usize| [[0x30, 0x80].repeat(depth), [0, 0].repeat(depth)].concat();
        assert!(one(&nested(MAX_DEPTH + 1)).is_ok());
        assert_eq!(one(&nested(MAX_DEPTH + 2)), Err(BerError::TooDeep));
        assert_eq!(one(&[0x30, 0x80].repeat(100_000)), Err(BerError::TooDeep));
    }
}
