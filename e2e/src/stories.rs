//! What must fail, and the reason that the KMS recorded.
//!
//! | story | what is wrong | how it is made |
//! |---|---|---|
//! | [`parent_decrypts`] | no attestation | the host's own credentials, used outside of the enclave |
//! | [`enclave_decrypts`] | other code, debug mode, other role | an enclave that runs for real and asks |
//! | [`replayed_document`] | older than five minutes | signed with the installation's authority, as its host's root could |
//! | [`foreign_document`] | signed by an unknown root | an authority made for the occasion |

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::forge::{self, Forger};
use crate::http::Reply;
use crate::kms::Server;
use crate::policy::Pins;
use crate::stack::{Enclave, Stack};
use crate::wait;

/// A key with its policy, and a message under it.
#[derive(Debug)]
pub struct Secret {
    /// The key's ARN.
    pub key: String,
    /// base64 of the message's ciphertext.
    pub ciphertext: String,
    /// Who may decrypt.
    pub pins: Pins,
}

impl Secret {
    /// Creates a key with the policy of `pins` and encrypts `message` under it.
    ///
    /// # Errors
    /// The KMS refuses.
    pub fn new(kms: &Server, pins: Pins, message: &str) -> Result<Self> {
        let developer = kms.developer();
        let key = developer.create_key("for one enclave")?;
        developer.put_policy(&key, &pins.policy())?;
        let ciphertext = developer.encrypt(&key, message)?;
        Ok(Self {
            key,
            ciphertext,
            pins,
        })
    }
}

/// A refused decryption.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// AWS's name of the error that the caller got.
    pub error: String,
    /// The reason in the KMS's audit trail.
    pub reason: String,
    /// Conditions that did not hold: key, expected and presented value.
    pub conditions: Vec<Condition>,
}

/// A condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Such as `kms:RecipientAttestation:PCR0`.
    pub key: String,
    /// Value in the policy.
    pub expected: String,
    /// Value in the document; `None` without one.
    pub presented: Option<String>,
}

/// The host calls Decrypt itself, with its role's credentials and no attestation document.
///
/// # Errors
/// The KMS gives the plaintext out, or keeps no reason.
pub fn parent_decrypts(stack: &Stack, secret: &Secret) -> Result<Refusal> {
    let body = json!({ "CiphertextBlob": secret.ciphertext });
    let reply = stack.role.call("Decrypt", &body)?;
    refused_by_kms(&stack.kms, &reply)
}

/// An enclave's application asks, as it does when all is well.
///
/// # Errors
/// The application gets the plaintext, or the KMS keeps no reason.
pub fn enclave_decrypts(kms: &Server, secret: &Secret, enclave: &Enclave<'_>) -> Result<Refusal> {
    let reply = enclave.post("/process", &json!({ "encrypted_data": secret.ciphertext }))?;
    let said = String::from_utf8_lossy(&reply.body).into_owned();
    ensure!(
        reply.status != 200,
        "the application decrypted what it must not: {said}"
    );
    recorded(kms, |event| names_key(event, &secret.key))
        .with_context(|| format!("the application said {said}"))
}

/// A document with everything right but its age, ten minutes.
///
/// # Errors
/// The KMS takes it, or keeps no reason.
pub fn replayed_document(stack: &Stack, secret: &Secret) -> Result<Refusal> {
    let reply = present(stack, secret, &stolen(stack)?, Duration::from_secs(600))?.reply;
    refused_by_kms(&stack.kms, &reply)
}

/// A document with everything right but the root of its certificates.
///
/// # Errors
/// The KMS takes it, or keeps no reason.
pub fn foreign_document(stack: &Stack, secret: &Secret) -> Result<Refusal> {
    let forger = Forger::with_own_authority(now())?;
    let reply = present(stack, secret, &forger, Duration::ZERO)?.reply;
    refused_by_kms(&stack.kms, &reply)
}

/// The counter-proof to the two above: the same forgery with a fresh date and the right root is taken, so it is age and
/// root that they fail by, and nothing else. openssl then opens what the KMS releases. It also shows plainly what the
/// host's root can do where the host's root is the hypervisor.
///
/// # Errors
/// The KMS refuses, or openssl does not take its answer.
pub fn opened_by_openssl(stack: &Stack, secret: &Secret) -> Result<Vec<u8>> {
    let Presented { reply, key } = present(stack, secret, &stolen(stack)?, Duration::ZERO)?;
    ensure!(
        reply.status == 200,
        "{}",
        String::from_utf8_lossy(&reply.body)
    );
    let reply = reply.json()?;
    ensure!(
        reply["Plaintext"].is_null(),
        "the plaintext travels in the open"
    );
    let cms = reply["CiphertextForRecipient"]
        .as_str()
        .context("no CiphertextForRecipient")?;
    let file = key.with_extension("cms");
    fs::write(&file, BASE64_STANDARD.decode(cms)?)?;
    forge::open_with_openssl(&key, &file)
}

fn stolen(stack: &Stack) -> Result<Forger> {
    Forger::with_stolen_authority(&fs::read_to_string(stack.host.state.join("ca.pem"))?)
}

struct Presented {
    reply: Reply,
    key: PathBuf,
}

fn present(stack: &Stack, secret: &Secret, forger: &Forger, age: Duration) -> Result<Presented> {
    let key = stack.dir.join("recipient.pem");
    forge::make_rsa_key(&key)?;
    let document = forger.document(&secret.pins.pcrs, now(), age, &forge::public_key_der(&key)?)?;
    let reply = stack
        .role
        .decrypt_with_document(&secret.ciphertext, &document)?;
    Ok(Presented { reply, key })
}

fn refused_by_kms(kms: &Server, reply: &Reply) -> Result<Refusal> {
    let said = String::from_utf8_lossy(&reply.body).into_owned();
    ensure!(
        reply.status != 200,
        "the KMS decrypted what it must not: {said}"
    );
    let id = reply
        .header("x-amzn-requestid")
        .context("the KMS names its request")?
        .to_owned();
    recorded(kms, |event| event["requestID"] == id.as_str())
}

/// The newest refused decryption that `matches`. The trail is written just after the answer.
fn recorded(kms: &Server, matches: impl Fn(&Value) -> bool) -> Result<Refusal> {
    wait::until(
        "the KMS records its refusal",
        Duration::from_secs(5),
        || {
            let events = kms.audit()?;
            let refusals = events
                .iter()
                .rev()
                .filter(|event| event["errorCode"].is_string());
            let mut decryptions = refusals.filter(|event| event["eventName"] == "Decrypt");
            Ok(decryptions
                .find(|event| matches(event))
                .map(Refusal::from_event))
        },
    )
}

fn names_key(event: &Value, key: &str) -> bool {
    let mut resources = event["resources"].as_array().into_iter().flatten();
    resources.any(|resource| resource["ARN"] == key)
}

impl Refusal {
    fn from_event(event: &Value) -> Self {
        let denial = &event["additionalEventData"]["denial"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reason = match &denial["reason"] {
            Value::String(reason) => reason.clone(),
            _ => text(&event["errorMessage"]),
        };
        let statements = denial["statements"].as_array().into_iter().flatten();
        let conditions = statements
            .flat_map(|statement| statement["conditions"].as_array().into_iter().flatten());
        Self {
            error: text(&event["errorCode"]),
            reason,
            conditions: conditions.map(Condition::from_event).collect(),
        }
    }

    /// Whether a condition on this PCR did not hold.
    #[must_use]
    pub fn is_about_pcr(&self, index: u8) -> bool {
        let key = format!("kms:RecipientAttestation:PCR{index}");
        self.conditions.iter().any(|condition| condition.key == key)
    }
}

impl Condition {
    fn from_event(value: &Value) -> Self {
        let joined = |values: &Value| {
            let words = values
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            words.collect::<Vec<_>>().join(" or ")
        };
        let presented = value["presented"]
            .is_array()
            .then(|| joined(&value["presented"]));
        let key = value["key"].as_str().unwrap_or_default().to_owned();
        Self {
            key,
            expected: joined(&value["expected"]),
            presented,
        }
    }
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
