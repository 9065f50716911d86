//! The query string of an attestation document: `nonce`, `user_data` and `public_key` in base64.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use enclos_attest::nsm::ATTESTATION_FIELD_MAX;

use crate::agent::nsm::Fields;

/// Standard alphabet, padding as the client likes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a query is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueryError {
    /// A name that means nothing here.
    #[error("unknown parameter {0}; there are nonce, user_data and public_key")]
    Unknown(String),
    /// A name given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A value that is no base64.
    #[error("{0} is not base64")]
    Base64(String),
    /// A value that no document can hold.
    #[error("{name} has {len} bytes; a document holds at most {ATTESTATION_FIELD_MAX}")]
    TooLong {
        /// Which.
        name: String,
        /// Decoded length.
        len: usize,
    },
}

/// Reads a query string.
///
/// # Errors
/// See [`QueryError`].
pub fn parse(query: &str) -> Result<Fields, QueryError> {
    let mut fields = Fields::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = match name {
            "nonce" => &mut fields.nonce,
            "user_data" => &mut fields.user_data,
            "public_key" => &mut fields.public_key,
            _ => return Err(QueryError::Unknown(name.to_owned())),
        };
        if field.is_some() {
            return Err(QueryError::Twice(name.to_owned()));
        }
        *field = Some(decode(name, value)?).filter(|bytes| !bytes.is_empty());
    }
    Ok(fields)
}

fn decode(name: &str, value: &str) -> Result<Vec<u8>, QueryError> {
    let text = percent_decoded(value).ok_or_else(|| QueryError::Base64(name.to_owned()))?;
    // A plus that was not escaped stays one, whether or not a client's library made it a space.
    let standard: Vec<u8> = text
        .into_iter()
        .map(|byte| match byte {
            b'-' | b' ' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    let bytes = BASE64
        .decode(standard)
        .map_err(|_| QueryError::Base64(name.to_owned()))?;
    if bytes.len() > ATTESTATION_FIELD_MAX {
        return Err(QueryError::TooLong {
            name: name.to_owned(),
            len: bytes.len(),
        });
    }
    Ok(bytes)
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            other => other,
        });
    }
    Some(decoded)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_common_spelling_of_base64_is_read() {
        let bytes = Some(vec![0xfb, 0xff, 0xbf, 0x01]);
        for text in [
            "%2B/%2B/AQ%3D%3D",
            "+/+/AQ==",
            "-_-_AQ",
            "-_-_AQ==",
            "%2b%2f%2b%2fAQ",
        ] {
            assert_eq!(
                parse(&format!("nonce={text}")).unwrap().nonce,
                bytes,
                "{text}"
            );
        }
    }

    #[test]
    fn fields_are_told_apart_and_empty_ones_are_absent() {
        let fields = parse("nonce=YQ&user_data=&public_key=Yg").unwrap();
        assert_eq!(fields.nonce.as_deref(), Some(&b"a"[..]));
        assert_eq!(fields.user_data, None);
        assert_eq!(fields.public_key.as_deref(), Some(&b"b"[..]));
        assert_eq!(parse("").unwrap(), Fields::default());
    }

    #[test]
    fn bad_queries_name_their_fault() {
        assert_eq!(parse("nonse=YQ"), Err(QueryError::Unknown("nonse".into())));
        assert_eq!(
            parse("nonce=YQ&nonce=YQ"),
            Err(QueryError::Twice("nonce".into()))
        );
        for text in ["nonce=!", "nonce=%4", "nonce=%zz", "nonce=Y"] {
            assert_eq!(
                parse(text),
                Err(QueryError::Base64("nonce".into())),
                "{text}"
            );
        }
        let text = |len| format!("user_data={}", BASE64.encode(vec![1; len]));
        assert!(parse(&text(1024)).is_ok());
        let too_long = QueryError::TooLong {
            name: "user_data".into(),
            len: 1025,
        };
        assert_eq!(parse(&text(1025)), Err(too_long));
    }
}
