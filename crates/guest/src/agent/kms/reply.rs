//! Checks a reply to an attested request and turns it into what the application's SDK expects.
//!
//! A reply that is not exactly what was asked for is refused, whole: a wrong key's plaintext, a short data key or a
//! plaintext that was never encrypted to this enclave must not reach the application.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::cms::{self, CmsError};
use super::keys::RecipientKey;
use super::request::Expected;

/// Most bytes of a shared secret: ECDH on P-521.
const MAX_SECRET: usize = 66;

/// Why a reply is refused.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The body is not a JSON object.
    #[error("the KMS's reply is not a JSON object")]
    Json,
    /// The KMS ignored the attestation.
    #[error("the KMS's reply has no CiphertextForRecipient; {0}")]
    NoCiphertext(&'static str),
    /// The plaintext was sent in the clear too.
    #[error("the KMS sent {0} in the clear although it was asked to encrypt it to the enclave")]
    InTheClear(&'static str),
    /// The envelope could not be opened.
    #[error("the KMS's reply cannot be opened")]
    Cms(#[from] CmsError),
    /// Not the key that was asked for, or none that the image allows.
    #[error("the KMS's reply is of key {found}, {expected}")]
    Key {
        /// What the reply names.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The reply contradicts the request.
    #[error("the KMS's reply says {name} {found}, the request {expected}")]
    Repeated {
        /// Which field.
        name: &'static str,
        /// What the reply says.
        found: String,
        /// What the request said.
        expected: String,
    },
    /// A plaintext of the wrong length.
    #[error("the KMS's reply holds {found} bytes, expected {expected}")]
    Length {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: String,
    },
}

fn no_ciphertext(expected: &Expected) -> ReplyError {
    ReplyError::NoCiphertext(match expected.extension {
        false => "a KMS that ignores attestation is not used from an enclave",
        true => {
            "[kms] attested_signing in enclos.toml is for a KMS that runs with --attested-signing"
        }
    })
}

/// Checks and opens a successful reply. One that holds nothing sealed is checked and stays as it is.
///
/// # Errors
/// See [`ReplyError`].
pub fn open(
    body: &[u8],
    expected: &Expected,
    allowed: &[String],
    key: &RecipientKey,
) -> Result<Zeroizing<Vec<u8>>, ReplyError> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else {
        return Err(ReplyError::Json);
    };
    check_key(&fields, expected, allowed)?;
    check_repeated(&fields, expected)?;
    let Some(plaintext_field) = expected.plaintext_field else {
        return Ok(Zeroizing::new(body.to_vec()));
    };
    check_clear(&fields, plaintext_field, expected)?;
    let envelope = match fields.remove("CiphertextForRecipient") {
        Some(Value::String(text)) => STANDARD.decode(text).map_err(|_| no_ciphertext(expected))?,
        _ => return Err(no_ciphertext(expected)),
    };
    let plaintext = cms::open(&envelope, key)?;
    check_len(plaintext.len(), expected)?;
    let text = STANDARD.encode(&*plaintext);
    fields.insert(plaintext_field.to_owned(), Value::String(text));
    Ok(Zeroizing::new(
        Value::Object(fields).to_string().into_bytes(),
    ))
}

/// The plaintext's field is absent, null or empty when a `Recipient` was given.
fn check_clear(
    fields: &Map<String, Value>,
    name: &'static str,
    expected: &Expected,
) -> Result<(), ReplyError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(text)) if text.is_empty() => Ok(()),
        Some(_) if !fields.contains_key("CiphertextForRecipient") => Err(no_ciphertext(expected)),
        Some(_) => Err(ReplyError::InTheClear(name)),
    }
}

fn check_key(
    fields: &Map<String, Value>,
    expected: &Expected,
    allowed: &[String],
) -> Result<(), ReplyError> {
    if expected.action == "GenerateRandom" {
        return Ok(());
    }
    let found = fields
        .get("KeyId")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let fail = |expected: String| ReplyError::Key {
        found: found.to_owned(),
        expected,
    };
    if !allowed.is_empty() && !allowed.iter().any(|arn| arn == found) {
        return Err(fail(format!("the image allows {}", allowed.join(", "))));
    }
    match expected.key_id.as_deref() {
        Some(asked) if !is_same_key(asked, found) => {
            Err(fail(format!("the request asked for {asked}")))
        }
        _ => Ok(()),
    }
}

/// Whether an ARN is of the key that was asked for; an alias could be of any.
fn is_same_key(asked: &str, found: &str) -> bool {
    let is_alias = asked.starts_with("alias/") || asked.contains(":alias/");
    let id = found.rsplit('/').next().unwrap_or_default();
    is_alias || asked == found || (!asked.starts_with("arn:") && asked == id)
}

fn check_repeated(fields: &Map<String, Value>, expected: &Expected) -> Result<(), ReplyError> {
    for (name, asked) in &expected.repeated {
        let found = fields
            .get(*name)
            .and_then(Value::as_str)
            .unwrap_or_default();
        if found != asked {
            let (found, expected) = (found.to_owned(), asked.clone());
            return Err(ReplyError::Repeated {
                name,
                found,
                expected,
            });
        }
    }
    Ok(())
}

fn check_len(found: usize, expected: &Expected) -> Result<(), ReplyError> {
    let fail = |expected: String| Err(ReplyError::Length { found, expected });
    match (expected.plaintext_len, expected.action) {
        (Some(len), _) if len != found => fail(len.to_string()),
        (_, "DeriveSharedSecret") if !(1..=MAX_SECRET).contains(&found) => {
            fail(format!("1 to {MAX_SECRET}"))
        }
        (None, _) if found == 0 => fail("at least one".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
