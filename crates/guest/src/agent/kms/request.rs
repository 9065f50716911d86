//! What is done to an application's request on its way.
//!
//! | action | done |
//! |---|---|
//! | Decrypt, GenerateDataKey, GenerateDataKeyPair, GenerateRandom, DeriveSharedSecret | `Recipient` added, unless it has one |
//! | Sign, Verify, GenerateMac, VerifyMac | the same, if the image says that its KMS takes one |
//! | Decrypt, ReEncrypt | a `CiphertextBlob` that is base64 twice is decoded once |
//! | anything else | nothing: its body is not even parsed |

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// Warning for a ciphertext that was encoded twice.
pub const TWICE: &str =
    "CiphertextBlob is base64 twice; pass the decoded bytes to the SDK, it encodes them";

/// Fewest bytes of a ciphertext that is looked at for being base64: shorter ones are none anyway.
const SHORTEST: usize = 32;

/// An action that takes a document.
#[derive(Debug)]
struct Attested {
    name: &'static str,
    /// Where a reply carries what only the enclave may read; a check's reply has nothing of the kind.
    sealed: Option<&'static str>,
    /// What the reply repeats, if the request has it.
    repeated: &'static [&'static str],
}

const fn attested(
    name: &'static str,
    sealed: Option<&'static str>,
    repeated: &'static [&'static str],
) -> Attested {
    Attested {
        name,
        sealed,
        repeated,
    }
}

/// Those of AWS.
const ACTIONS: [Attested; 5] = [
    attested("Decrypt", Some("Plaintext"), &["EncryptionAlgorithm"]),
    attested(
        "DeriveSharedSecret",
        Some("SharedSecret"),
        &["KeyAgreementAlgorithm"],
    ),
    attested("GenerateDataKey", Some("Plaintext"), &[]),
    attested(
        "GenerateDataKeyPair",
        Some("PrivateKeyPlaintext"),
        &["KeyPairSpec"],
    ),
    attested("GenerateRandom", Some("Plaintext"), &[]),
];

/// Those of a KMS with `--attested-signing`. No reply tells such a KMS from another in time: one that ignores the document
/// has signed already. So the image says it.
const EXTENSION: [Attested; 4] = [
    attested("GenerateMac", Some("Mac"), &["MacAlgorithm"]),
    attested("Sign", Some("Signature"), &["SigningAlgorithm"]),
    attested("Verify", None, &["SigningAlgorithm"]),
    attested("VerifyMac", None, &["MacAlgorithm"]),
];

/// A request as it goes on.
#[derive(Debug)]
pub struct Planned {
    /// Parsed body, when anything is to be done to it, or raw.
    body: Body,
    /// What the reply must be, when this enclave's `Recipient` is to be added.
    pub attested: Option<Expected>,
    /// For log and response header.
    pub warning: Option<&'static str>,
}

#[derive(Debug)]
enum Body {
    Raw(Bytes),
    Parsed(Map<String, Value>),
}

/// What the reply to an attested request must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Which action was asked for.
    pub action: &'static str,
    /// Field that the application expects what is sealed in; none where nothing is.
    pub plaintext_field: Option<&'static str>,
    /// Whether it is one that AWS takes no document for.
    pub extension: bool,
    /// Length of the plaintext, when the request names it.
    pub plaintext_len: Option<usize>,
    /// Key that the request names.
    pub key_id: Option<String>,
    /// Fields that the reply must repeat.
    pub repeated: Vec<(&'static str, String)>,
}

/// Decides what is done to a request. `signing` is whether the KMS takes documents for signatures and MACs too.
#[must_use]
pub fn plan(action: &str, body: Bytes, signing: bool) -> Planned {
    let extension = EXTENSION.iter().filter(|_| signing);
    let mut taking = ACTIONS.iter().chain(extension);
    let known = taking.find(|known| known.name == action);
    let raw = |body| Planned {
        body: Body::Raw(body),
        attested: None,
        warning: None,
    };
    if known.is_none() && action != "ReEncrypt" {
        return raw(body);
    }
    // What is not JSON is the KMS's to refuse, in its own words.
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&body) else {
        return raw(body);
    };
    let warning = decode_twice(&mut fields);
    let own_recipient = fields
        .get("Recipient")
        .is_some_and(|recipient| !recipient.is_null());
    let attested = known
        .filter(|_| !own_recipient)
        .map(|action| expected(action, &fields));
    if attested.is_none() && warning.is_none() {
        return raw(body);
    }
    Planned {
        body: Body::Parsed(fields),
        attested,
        warning,
    }
}

impl Planned {
    /// The body to send, with this document as `Recipient`.
    #[must_use]
    pub fn attested_body(&self, document: &[u8]) -> Bytes {
        let Body::Parsed(fields) = &self.body else {
            return self.body();
        };
        let mut fields = fields.clone();
        let recipient = json!({
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": STANDARD.encode(document),
        });
        fields.insert("Recipient".to_owned(), recipient);
        Value::Object(fields).to_string().into()
    }

    /// The body to send without a `Recipient` of this enclave.
    #[must_use]
    pub fn body(&self) -> Bytes {
        match &self.body {
            Body::Raw(bytes) => bytes.clone(),
            Body::Parsed(fields) => Value::Object(fields.clone()).to_string().into(),
        }
    }
}

/// Undoes a second base64 around a ciphertext.
///
/// A ciphertext is binary: that every byte of a real one happens to be of base64's alphabet does not occur.
fn decode_twice(fields: &mut Map<String, Value>) -> Option<&'static str> {
    let blob = fields.get_mut("CiphertextBlob")?;
    let once = STANDARD.decode(blob.as_str()?).ok()?;
    let text = once.trim_ascii();
    if text.len() < SHORTEST || STANDARD.decode(text).is_err() {
        return None;
    }
    *blob = Value::String(String::from_utf8(text.to_vec()).ok()?);
    Some(TWICE)
}

fn expected(action: &Attested, fields: &Map<String, Value>) -> Expected {
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let repeated = action.repeated.iter();
    let repeated = repeated.filter_map(|name| Some((*name, text(name)?)));
    Expected {
        action: action.name,
        plaintext_field: action.sealed,
        extension: EXTENSION.iter().any(|known| known.name == action.name),
        plaintext_len: plaintext_len(action.name, fields),
        key_id: text("KeyId"),
        repeated: repeated.collect(),
    }
}

fn plaintext_len(action: &str, fields: &Map<String, Value>) -> Option<usize> {
    match action {
        "GenerateDataKey" | "GenerateRandom" => data_len(fields),
        "GenerateMac" => mac_len(fields),
        _ => None,
    }
}

fn mac_len(fields: &Map<String, Value>) -> Option<usize> {
    match fields.get("MacAlgorithm")?.as_str()? {
        "HMAC_SHA_224" => Some(28),
        "HMAC_SHA_256" => Some(32),
        "HMAC_SHA_384" => Some(48),
        "HMAC_SHA_512" => Some(64),
        _ => None,
    }
}

fn data_len(fields: &Map<String, Value>) -> Option<usize> {
    match fields.get("KeySpec").and_then(Value::as_str) {
        Some("AES_256") => Some(32),
        Some("AES_128") => Some(16),
        _ => usize::try_from(fields.get("NumberOfBytes")?.as_u64()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(action: &str, body: &Value) -> Planned {
        plan(action, Bytes::from(body.to_string()), false)
    }

    #[test]
    fn five_actions_are_attested_and_four_more_where_the_image_says_so() {
        let all = ACTIONS.iter().chain(&EXTENSION);
        for Attested { name, sealed, .. } in all {
            let body = json!({"KeyId": "alias/x"});
            let planned = plan(name, Bytes::from(body.to_string()), true);
            let expected = planned.attested.as_ref().unwrap();
            assert_eq!(expected.plaintext_field, *sealed);
            let body: Value = serde_json::from_slice(&planned.attested_body(b"doc")).unwrap();
            assert_eq!(
                body["Recipient"]["AttestationDocument"],
                STANDARD.encode("doc")
            );
            assert_eq!(
                body["Recipient"]["KeyEncryptionAlgorithm"],
                "RSAES_OAEP_SHA_256"
            );
            assert_eq!(body["KeyId"], "alias/x");
        }
    }

    #[track_caller]
    fn passes(action: &str, signing: bool) {
        let body = Bytes::from_static(b"{ \"b\":1,\"a\" : 2}");
        let planned = plan(action, body.clone(), signing);
        assert!(planned.attested.is_none(), "{action}");
        assert_eq!(planned.body(), body);
    }

    #[test]
    fn other_actions_pass_byte_for_byte() {
        for action in [
            "Encrypt",
            "GenerateDataKeyWithoutPlaintext",
            "ListKeys",
            "ReEncrypt",
        ] {
            for signing in [false, true] {
                passes(action, signing);
            }
        }
        // AWS knows no `Recipient` of these.
        for action in &EXTENSION {
            passes(action.name, false);
        }
        let nonsense = plan("Decrypt", Bytes::from_static(b"not JSON"), true);
        assert!(nonsense.attested.is_none());
        assert_eq!(nonsense.body(), "not JSON");
    }

    #[test]
    fn an_applications_own_recipient_stays() {
        let own = json!({"Recipient": {"AttestationDocument": "QQ=="}});
        for action in ["Decrypt", "Sign"] {
            let planned = plan(action, own.to_string().into(), true);
            assert!(planned.attested.is_none());
        }
        assert!(
            planned("Decrypt", &json!({"Recipient": null}))
                .attested
                .is_some()
        );
    }

    #[test]
    fn a_ciphertext_encoded_twice_is_decoded_once() {
        let cipher = STANDARD.encode((0..100).map(|n| n ^ 0x5a).collect::<Vec<u8>>());
        for text in [
            STANDARD.encode(&cipher),
            STANDARD.encode(format!("{cipher}\n")),
        ] {
            for action in ["Decrypt", "ReEncrypt"] {
                let planned = planned(action, &json!({"CiphertextBlob": text}));
                assert_eq!(planned.warning, Some(TWICE));
                let body: Value = serde_json::from_slice(&planned.body()).unwrap();
                assert_eq!(body["CiphertextBlob"], cipher);
            }
        }
    }

    #[test]
    fn a_good_or_hopeless_ciphertext_is_left_alone() {
        let binary = STANDARD.encode((0..100).map(|n| n ^ 0x5a).collect::<Vec<u8>>());
        for blob in [
            json!(binary),
            json!(STANDARD.encode("short")),
            json!("?"),
            json!(1),
        ] {
            assert_eq!(
                planned("Decrypt", &json!({"CiphertextBlob": blob})).warning,
                None
            );
        }
    }

    #[test]
    fn lengths_follow_from_the_request() {
        let len = |action, body: Value| {
            let planned = plan(action, body.to_string().into(), true);
            planned.attested.unwrap().plaintext_len
        };
        for (algorithm, bytes) in [("224", 28), ("256", 32), ("384", 48), ("512", 64)] {
            let mac = json!({"MacAlgorithm": format!("HMAC_SHA_{algorithm}")});
            assert_eq!(len("GenerateMac", mac.clone()), Some(bytes));
            assert_eq!(len("VerifyMac", mac), None);
        }
        assert_eq!(len("GenerateMac", json!({"MacAlgorithm": "x"})), None);
        assert_eq!(
            len("GenerateDataKey", json!({"KeySpec": "AES_256"})),
            Some(32)
        );
        assert_eq!(
            len("GenerateDataKey", json!({"KeySpec": "AES_128"})),
            Some(16)
        );
        assert_eq!(
            len("GenerateDataKey", json!({"NumberOfBytes": 64})),
            Some(64)
        );
        assert_eq!(len("GenerateRandom", json!({"NumberOfBytes": 1})), Some(1));
        assert_eq!(len("GenerateRandom", json!({"NumberOfBytes": -1})), None);
        assert_eq!(len("Decrypt", json!({"NumberOfBytes": 1})), None);
    }
}
