//! The `Recipient` parameter: which enclave asks, and how its answer is sealed to it.
//!
//! A document counts only after [`Trust::verify`]: chain to a trusted root, signature, validity, age, public
//! key. What comes out is [`Attested`], the only type that conditions and answers take: an unverified
//! document cannot reach either.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::crypto::cms::{EnvelopeError, Recipient};
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::policy::Context;

/// The only algorithm that AWS accepts for the answer's key.
const KEY_ENCRYPTION_ALGORITHMS: &[&str] = &["RSAES_OAEP_SHA_256"];

/// AWS's limit on a document, in bytes.
const DOCUMENT_MAX: usize = 262_144;

/// PCRs that CloudTrail's `additionalEventData.recipient` shows.
const AUDITED: &[(u8, &str)] = &[
    (0, "attestationDocumentEnclaveImageDigest"),
    (1, "attestationDocumentEnclavePCR1"),
    (2, "attestationDocumentEnclavePCR2"),
    (3, "attestationDocumentEnclavePCR3"),
    (4, "attestationDocumentEnclavePCR4"),
    (8, "attestationDocumentEnclavePCR8"),
];

/// Roots whose documents count.
#[derive(Debug, Default)]
pub struct Trust {}

/// A verified document and the key that its enclave holds.
#[derive(Debug)]
pub struct Attested {
    module_id: String,
    anchor: String,
    debug: bool,
    /// PCR values in lower-case hex.
    pcrs: BTreeMap<u8, String>,
    recipient: Recipient,
}

impl Trust {
    /// Verifies a document.
    ///
    /// # Errors
    /// `ValidationException`: the document is unreadable, forged, too old or has no usable key.
    pub fn verify(&self, _document: &[u8], _now: OffsetDateTime) -> Result<Attested, ApiError> {
        Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            "Recipient is not supported by this version of Enclos KMS.",
        ))
    }
}

impl Attested {
    /// Whether the document is of an enclave in debug mode, whose memory its host can read.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.debug
    }

    /// Adds `kms:RecipientAttestation:*` to what conditions can look at.
    pub(crate) fn add_to(&self, context: &mut Context) {
        for (index, value) in &self.pcrs {
            context.set(
                &format!("kms:RecipientAttestation:PCR{index}"),
                value.as_str(),
            );
            if *index == 0 {
                context.set("kms:RecipientAttestation:ImageSha384", value.as_str());
            }
        }
    }

    /// `additionalEventData.recipient`: CloudTrail's members, and which root vouched.
    pub(crate) fn audit(&self) -> Value {
        let mut members = Map::new();
        members.insert(
            "attestationDocumentModuleId".to_owned(),
            self.module_id.as_str().into(),
        );
        for (index, name) in AUDITED {
            if let Some(value) = self.pcrs.get(index) {
                members.insert((*name).to_owned(), value.as_str().into());
            }
        }
        members.insert(
            "attestationDocumentRoot".to_owned(),
            self.anchor.as_str().into(),
        );
        Value::Object(members)
    }

    /// Encrypts an answer to the enclave's key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn envelope(&self, plaintext: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        self.recipient.envelope(plaintext)
    }
}

/// Reads the `Recipient` parameter.
pub(crate) fn parameter(input: &mut Input) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
    let Some(mut recipient) = input.structure("Recipient")? else {
        return Ok(None);
    };
    let algorithm = recipient.choice("KeyEncryptionAlgorithm", KEY_ENCRYPTION_ALGORITHMS)?;
    recipient.require("KeyEncryptionAlgorithm", algorithm);
    let document = recipient.required_blob("AttestationDocument", 1, DOCUMENT_MAX)?;
    input.adopt("Recipient", recipient);
    Ok(Some(document))
}
