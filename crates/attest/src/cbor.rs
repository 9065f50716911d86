//! What this crate needs of CBOR (RFC 8949): a writer that cannot fail, and strict readers.
//!
//! The writer emits definite lengths and shortest integers. The readers accept definite and indefinite
//! lengths, as AWS's documents come in both, and refuse a map that names a key twice.

use std::borrow::Cow;
use std::collections::BTreeSet;

use minicbor::data::Type;
use minicbor::decode::{Decoder, Error};

/// Bytes that are not the CBOR that was expected.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CborError(#[from] Error);

impl CborError {
    pub(crate) fn message(text: &'static str) -> Self {
        Self(Error::message(text))
    }
}

/// Major types of RFC 8949 section 3.1, in the upper three bits.
const UNSIGNED: u8 = 0x00;
const BYTES: u8 = 0x40;
const TEXT: u8 = 0x60;
const ARRAY: u8 = 0x80;
const MAP: u8 = 0xa0;

/// Appends CBOR items to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// With room for `bytes`, so that a long item does not grow by steps.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn unsigned(mut self, value: u64) -> Self {
        self.head(UNSIGNED, value);
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.head(BYTES, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(mut self, text: &str) -> Self {
        self.head(TEXT, text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    pub(crate) fn array(mut self, len: usize) -> Self {
        self.head(ARRAY, len as u64);
        self
    }

    pub(crate) fn map(mut self, len: usize) -> Self {
        self.head(MAP, len as u64);
        self
    }

    pub(crate) fn bool(mut self, value: bool) -> Self {
        self.0.push(if value { 0xf5 } else { 0xf4 });
        self
    }

    pub(crate) fn bytes_or_null(mut self, bytes: Option<&[u8]>) -> Self {
        match bytes {
            Some(bytes) => self.bytes(bytes),
            None => {
                self.0.push(0xf6);
                self
            }
        }
    }

    fn head(&mut self, major: u8, value: u64) {
        let bytes = value.to_be_bytes();
        match value {
            0..=23 => self.0.push(major + bytes[7]),
            24..=0xff => self.0.extend([major + 24, bytes[7]]),
            0x100..=0xffff => {
                self.0.push(major + 25);
                self.0.extend_from_slice(&bytes[6..]);
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(major + 26);
                self.0.extend_from_slice(&bytes[4..]);
            }
            _ => {
                self.0.push(major + 27);
                self.0.extend_from_slice(&bytes);
            }
        }
    }
}

/// Reads a map; `key` reads each key, `value` its value. A repeated key is an error.
pub(crate) fn map<'b, K: Ord + Clone>(
    decoder: &mut Decoder<'b>,
    key: impl Fn(&mut Decoder<'b>) -> Result<K, CborError>,
    mut value: impl FnMut(&mut Decoder<'b>, K) -> Result<(), CborError>,
) -> Result<(), CborError> {
    let mut left = decoder.map()?;
    let mut seen = BTreeSet::new();
    while more(decoder, &mut left)? {
        let name = key(decoder)?;
        if !seen.insert(name.clone()) {
            return Err(CborError::message("a map names a key twice"));
        }
        value(decoder, name)?;
    }
    Ok(())
}

/// Reads an array of definite or indefinite length.
pub(crate) fn array<'b, T>(
    decoder: &mut Decoder<'b>,
    item: impl Fn(&mut Decoder<'b>) -> Result<T, CborError>,
) -> Result<Vec<T>, CborError> {
    let mut left = decoder.array()?;
    let mut items = Vec::new();
    while more(decoder, &mut left)? {
        items.push(item(decoder)?);
    }
    Ok(items)
}

/// Whether another item follows; consumes the end of an indefinite-length one.
fn more(decoder: &mut Decoder<'_>, left: &mut Option<u64>) -> Result<bool, CborError> {
    match left {
        Some(0) => Ok(false),
        Some(n) => {
            *n -= 1;
            Ok(true)
        }
        None if decoder.datatype()? == Type::Break => {
            decoder.set_position(decoder.position() + 1);
            Ok(false)
        }
        None => Ok(true),
    }
}

/// Reads a byte string: borrowed in one piece, copied in chunks.
pub(crate) fn bytes<'b>(decoder: &mut Decoder<'b>) -> Result<Cow<'b, [u8]>, CborError> {
    if decoder.datatype()? == Type::Bytes {
        return Ok(Cow::Borrowed(decoder.bytes()?));
    }
    let mut bytes = Vec::new();
    for chunk in decoder.bytes_iter()? {
        bytes.extend_from_slice(chunk?);
    }
    Ok(Cow::Owned(bytes))
}

/// Reads a text string: borrowed in one piece, copied in chunks.
pub(crate) fn text<'b>(decoder: &mut Decoder<'b>) -> Result<Cow<'b, str>, CborError> {
    if decoder.datatype()? == Type::String {
        return Ok(Cow::Borrowed(decoder.str()?));
    }
    let mut text = String::new();
    for chunk in decoder.str_iter()? {
        text.push_str(chunk?);
    }
    Ok(Cow::Owned(text))
}

/// Reads `null` or `undefined` as `None`, anything else with `some`.
pub(crate) fn nullable<'b, T>(
    decoder: &mut Decoder<'b>,
    some: impl Fn(&mut Decoder<'b>) -> Result<T, CborError>,
) -> Result<Option<T>, CborError> {
    match decoder.datatype()? {
        Type::Null | Type::Undefined => {
            decoder.set_position(decoder.position() + 1);
            Ok(None)
        }
        _ => some(decoder).map(Some),
    }
}

/// Reads the end of an item of indefinite length.
pub(crate) fn close(decoder: &mut Decoder<'_>) -> Result<(), CborError> {
    if more(decoder, &mut None)? {
        return Err(CborError::message("the item has too many elements"));
    }
    Ok(())
}

/// Checks that nothing follows.
pub(crate) fn end(decoder: &Decoder<'_>) -> Result<(), CborError> {
    if decoder.position() == decoder.input().len() {
        return Ok(());
    }
    Err(CborError::message("bytes follow the end of the item"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_shortest() {
        let cases: [(u64, &str); 9] = [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65_535, "19ffff"),
            (65_536, "1a00010000"),
            (0xffff_ffff, "1affffffff"),
            (0x1_0000_0000, "1b0000000100000000"),
        ];
        for (value, hex) in cases {
            assert_eq!(hex::encode(Writer::new().unsigned(value).finish()), hex);
        }
    }

    #[test]
    fn both_kinds_of_map_are_read_and_duplicates_refused() {
        let read = |hex: &str| {
            let bytes = hex::decode(hex).unwrap();
            let mut decoder = Decoder::new(&bytes);
            let mut sum = 0;
            map(&mut decoder, text, |d, _| {
                sum += d.u8()?;
                Ok(())
            })?;
            end(&decoder).map(|()| sum)
        };
        assert_eq!(read("a2616101616202").unwrap(), 3);
        assert_eq!(read("bf616101616202ff").unwrap(), 3);
        assert!(read("a2616101616102").is_err());
        assert!(read("bf616101616202").is_err());
        assert!(read("a161610100").is_err());
    }

    #[test]
    fn strings_may_come_in_chunks() {
        let bytes_in = hex::decode("5f420102410aff").unwrap();
        assert_eq!(*bytes(&mut Decoder::new(&bytes_in)).unwrap(), [1, 2, 10]);
        let text_in = hex::decode("7f61616162ff").unwrap();
        assert_eq!(text(&mut Decoder::new(&text_in)).unwrap(), "ab");
    }
}
