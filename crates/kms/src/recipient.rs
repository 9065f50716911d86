//! The `Recipient` parameter: which enclave asks, and how its answer is sealed to it.
//!
//! A document counts only after [`Trust::verify`]: chain to a trusted root, signature, validity, age, public
//! key. What comes out is [`Attested`], the only type that conditions and answers take: an unverified
//! document cannot reach either.
//!
//! On AWS five actions take it. `--attested-signing` is an extension of ours: with it Sign, Verify, GenerateMac and
//! VerifyMac take it too. A signature and a MAC are then sealed like any other answer: a document proves what its enclave
//! is, not who sent it, so only an answer that nobody else can open is an answer to that enclave.

use std::time::Duration;

use enclos_attest::UnixMillis;
use enclos_attest::document::{
    ChainCache, TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyOptions,
};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::crypto::cms::{EnvelopeError, Recipient};
use crate::error::{ApiError, Chain};
use crate::input::Input;
use crate::policy::Context;
use crate::service::Call;

/// The only algorithm that AWS accepts for the answer's key.
const KEY_ENCRYPTION_ALGORITHMS: &[&str] = &["RSAES_OAEP_SHA_256"];

/// AWS's limit on a document, in bytes.
const DOCUMENT_MAX: usize = 262_144;

/// PCRs that CloudTrail's `additionalEventData.recipient` shows.
const AUDITED: &[(usize, &str)] = &[
    (0, "attestationDocumentEnclaveImageDigest"),
    (1, "attestationDocumentEnclavePCR1"),
    (2, "attestationDocumentEnclavePCR2"),
    (3, "attestationDocumentEnclavePCR3"),
    (4, "attestationDocumentEnclavePCR4"),
    (8, "attestationDocumentEnclavePCR8"),
];

/// AWS's limit on a document's age.
const MAX_AGE: Duration = Duration::from_secs(300);

/// How far a document's time may lie ahead of ours: the enclave's clock is its host's, which is not ours.
const MAX_FUTURE_SKEW: Duration = Duration::from_secs(300);

/// Roots whose documents count.
#[derive(Debug, Default)]
pub struct Trust {
    anchors: TrustAnchors,
    /// An enclave asks often, and its certificates change every few hours.
    chains: ChainCache,
}

/// A verified document and the key that its enclave holds.
#[derive(Debug)]
pub struct Attested {
    document: VerifiedDocument,
    recipient: Recipient,
}

impl Trust {
    /// Trust in a set of roots.
    #[must_use]
    pub fn new(anchors: TrustAnchors) -> Self {
        Self {
            anchors,
            chains: ChainCache::default(),
        }
    }

    /// Verifies a document.
    ///
    /// # Errors
    /// `ValidationException`: the document is unreadable, forged, too old or has no usable key.
    pub fn verify(&self, document: &[u8], now: OffsetDateTime) -> Result<Attested, ApiError> {
        let document = UnverifiedDocument::parse(document).map_err(|error| refused(&error))?;
        let now = unix_millis(now);
        // AWS lets documents of debug enclaves through to the conditions, where their zero PCRs decide.
        let options = VerifyOptions {
            max_age: MAX_AGE,
            max_future_skew: MAX_FUTURE_SKEW,
            archival: false,
            allow_debug: true,
        };
        let document = document
            .verify_with_cache(&self.anchors, now, &options, &self.chains)
            .map_err(|error| refused(&error))?;
        let key = document.public_key().ok_or_else(|| {
            ApiError::validation(
                "The attestation document has no public key to encrypt the answer to.",
            )
        })?;
        let recipient = Recipient::from_spki(key).map_err(|error| {
            ApiError::validation(format!("In the attestation document, {error}."))
        })?;
        Ok(Attested {
            document,
            recipient,
        })
    }
}

/// A moment as documents and measurement policies count it.
pub(crate) fn unix_millis(now: OffsetDateTime) -> UnixMillis {
    UnixMillis(u64::try_from(crate::audit::unix_ms(now)).unwrap_or(0))
}

/// Clients look for either half of AWS's sentence; the reason after it is ours.
fn refused(error: &dyn std::error::Error) -> ApiError {
    ApiError::validation(format!(
        "KMS cannot parse the attestation document, or the document exceeded the five-minute age limit: {}",
        Chain(error)
    ))
}

impl Attested {
    /// Whether the document is of an enclave in debug mode, whose memory its host can read.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.document.is_debug()
    }

    /// What was verified.
    #[must_use]
    pub fn document(&self) -> &VerifiedDocument {
        &self.document
    }

    /// Adds `kms:RecipientAttestation:*` to what conditions can look at.
    pub(crate) fn add_to(&self, context: &mut Context) {
        for (index, value) in self.document.pcrs() {
            let (index, value) = (index.as_usize(), value.to_string());
            if index == 0 {
                context.set("kms:RecipientAttestation:ImageSha384", value.as_str());
            }
            context.set(&format!("kms:RecipientAttestation:PCR{index}"), value);
        }
    }

    /// `additionalEventData.recipient`: CloudTrail's members, and which root vouched.
    pub(crate) fn audit(&self) -> Value {
        let mut members = Map::new();
        let mut add = |name: &str, value: &str| members.insert(name.to_owned(), value.into());
        add("attestationDocumentModuleId", self.document.module_id());
        for (index, value) in self.document.pcrs() {
            let shown = AUDITED
                .iter()
                .find(|(number, _)| *number == index.as_usize());
            if let Some((_, name)) = shown {
                add(name, &value.to_string());
            }
        }
        add("attestationDocumentRoot", self.document.anchor());
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

/// Reads the `Recipient` parameter of an action that has it through the extension. Without the extension it is what it is
/// on AWS: a member that nobody knows, which is ignored.
pub(crate) fn extension(
    call: &Call<'_>,
    input: &mut Input,
) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
    match call.service.attested_signing {
        true => parameter(input),
        false => Ok(None),
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
