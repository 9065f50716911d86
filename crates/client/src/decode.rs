//! Getting at the document's bytes, however a service or a person wraps them.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

/// Largest document accepted, in bytes. AWS's are below 8 KiB; KMS accepts up to 262,144 bytes of base64.
pub const MAX_DOCUMENT: usize = 192 * 1024;

/// Keys under which services are known to answer with a document.
const KEYS: [&str; 4] = [
    "attestation_doc",
    "attestation_document",
    "attestationDocument",
    "document",
];

/// Why there is no document in what was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Nothing was received.
    #[error("empty: an attestation document was expected, binary, as base64 or in JSON")]
    Empty,
    /// More than any document.
    #[error(
        "{len} bytes are too many for an attestation document: at most {MAX_DOCUMENT} are accepted"
    )]
    TooLarge {
        /// What was received.
        len: usize,
    },
    /// JSON without a document.
    #[error("JSON without a document: a text field `attestation_doc` was expected, found {found}")]
    Json {
        /// The keys that were there, or the kind of value.
        found: String,
    },
    /// Neither CBOR nor base64.
    #[error(
        "neither a binary document (which begins with 84 or d2) nor base64: it begins with {found:?}"
    )]
    Base64 {
        /// The first characters.
        found: String,
    },
}

/// Finds the document in `bytes`: binary, base64 (standard or URL alphabet, line breaks allowed) or JSON with base64 in
/// a field such as `attestation_doc`.
///
/// # Errors
/// [`DecodeError`] says what was found instead. Whether the bytes are a good document is not decided here.
pub fn document(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let trimmed = bytes.trim_ascii();
    let document = match trimmed.first() {
        None => return Err(DecodeError::Empty),
        // An array of four, bare or behind COSE_Sign1's tag 18.
        Some(0x84 | 0xd2) => bytes.to_vec(),
        Some(b'{' | b'"' | b'[') => from_json(trimmed)?,
        Some(_) => from_text(trimmed)?,
    };
    match document.len() {
        0 => Err(DecodeError::Empty),
        len if len > MAX_DOCUMENT => Err(DecodeError::TooLarge { len }),
        _ => Ok(document),
    }
}

/// Decodes base64 of either alphabet, with or without padding.
#[must_use]
pub fn base64_any(text: &str) -> Option<Vec<u8>> {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let standard = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let url = GeneralPurpose::new(&base64::alphabet::URL_SAFE, config);
    standard.decode(text).or_else(|_| url.decode(text)).ok()
}

fn from_json(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|_| DecodeError::Json {
        found: "malformed JSON".to_owned(),
    })?;
    let text = match &value {
        Value::String(text) => Some(text),
        Value::Object(fields) => KEYS.iter().find_map(|key| match fields.get(*key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    };
    from_text(
        text.ok_or_else(|| DecodeError::Json {
            found: kind(&value),
        })?
        .trim()
        .as_bytes(),
    )
}

fn kind(value: &Value) -> String {
    match value {
        Value::Object(fields) if fields.is_empty() => "an empty object".to_owned(),
        Value::Object(fields) => fields
            .keys()
            .take(8)
            .cloned()
            .collect::<Vec<_>>()
            .join(", "),
        Value::Array(_) => "an array".to_owned(),
        _ => "a bare value".to_owned(),
    }
}

fn from_text(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let compact: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let decoded = std::str::from_utf8(&compact).ok().and_then(base64_any);
    decoded.ok_or_else(|| DecodeError::Base64 {
        found: String::from_utf8_lossy(text).chars().take(16).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &[u8] = &[0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xfb, 0xff];

    #[test]
    fn every_wrapping_leads_to_the_same_bytes() {
        let wrapped: [&[u8]; 7] = [
            DOCUMENT,
            b"hEShATgi+/8=",
            b"hEShATgi-_8",
            b" hESh\nATgi+/8=\n",
            b"{\"attestation_doc\": \"hEShATgi+/8=\"}",
            b"{\"x\": 1, \"document\": \"hEShATgi-_8=\"}",
            b"\"hEShATgi+/8=\"",
        ];
        for bytes in wrapped {
            assert_eq!(
                document(bytes).as_deref(),
                Ok(DOCUMENT),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn what_is_no_document_is_described() {
        assert_eq!(document(b" \n"), Err(DecodeError::Empty));
        assert_eq!(
            document(b"{}"),
            Err(DecodeError::Json {
                found: "an empty object".into()
            })
        );
        let found = document(b"{\"error\":\"no NSM\"}").unwrap_err().to_string();
        assert!(found.ends_with("found error"), "{found}");
        let found = document(b"<html><body>502").unwrap_err().to_string();
        assert!(found.contains("<html><body>502"), "{found}");
        let mut large = vec![0x84; MAX_DOCUMENT];
        assert!(document(&large).is_ok());
        large.push(0);
        assert_eq!(
            document(&large),
            Err(DecodeError::TooLarge {
                len: MAX_DOCUMENT + 1
            })
        );
    }
}
