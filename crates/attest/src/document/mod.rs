//! Attestation documents: an untagged COSE_Sign1 over a CBOR map, signed ES384 by an enclave's leaf key.

use std::collections::BTreeMap;
use std::time::Duration;

pub use crate::cbor::CborError;
use crate::pcr::{PcrIndex, PcrValue};
use crate::time::UnixMillis;

/// What a document says, apart from its certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `<instance-id>-enc<16 hex digits>`.
    pub module_id: String,
    /// When it was made.
    pub timestamp: UnixMillis,
    /// Locked registers.
    pub pcrs: BTreeMap<PcrIndex, PcrValue>,
    /// Key that the enclave binds to the document.
    pub public_key: Option<Vec<u8>>,
    /// The application's own data.
    pub user_data: Option<Vec<u8>>,
    /// Nonce of whoever asked for the document.
    pub nonce: Option<Vec<u8>>,
}

/// Why bytes are not an attestation document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The bytes are not the CBOR that a document is.
    #[error("not an attestation document: {context} cannot be decoded")]
    Cbor {
        /// Which part.
        context: &'static str,
        /// What the decoder met.
        #[source]
        source: CborError,
    },
}

/// Why a document is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The document's root is not among the trust anchors.
    #[error("the document's root certificate is not trusted: its SHA-256 is {found}")]
    UntrustedRoot {
        /// Fingerprint of the document's root, hex.
        found: String,
    },
}

/// Why a certificate cannot be a trust anchor.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The bytes are neither DER nor PEM of one certificate.
    #[error("trust anchor {name} is not a certificate: expected DER, or PEM of exactly one")]
    NotACertificate {
        /// Name given by the caller.
        name: String,
    },
}

/// How strictly a document is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Longest time since the document's timestamp; ignored when `archival`.
    pub max_age: Duration,
    /// Longest time by which the document's timestamp may lie in the future.
    pub max_future_skew: Duration,
    /// Judge certificates at the document's own time instead of now: for records, never for key release.
    pub archival: bool,
    /// Accept documents of debug enclaves, whose PCR0, PCR1 and PCR2 are zero.
    pub allow_debug: bool,
}

/// Five minutes of age, five seconds of skew, live, no debug.
impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(300),
            max_future_skew: Duration::from_secs(5),
            archival: false,
            allow_debug: false,
        }
    }
}

/// Root certificates that a verifier trusts, each under a name.
#[derive(Debug, Clone, Default)]
pub struct TrustAnchors {
    anchors: Vec<(String, Vec<u8>)>,
}

impl TrustAnchors {
    /// None: nothing verifies.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the root of AWS Nitro Enclaves (G1), under the name `aws`.
    #[must_use]
    pub fn with_aws(self) -> Self {
        self
    }

    /// Adds a root: DER, or PEM of exactly one certificate.
    ///
    /// # Errors
    /// [`AnchorError`] when it cannot be a root.
    pub fn with_root(mut self, name: &str, der_or_pem: &[u8]) -> Result<Self, AnchorError> {
        if der_or_pem.is_empty() {
            return Err(AnchorError::NotACertificate {
                name: name.to_owned(),
            });
        }
        self.anchors.push((name.to_owned(), der_or_pem.to_vec()));
        Ok(self)
    }
}

/// A well-formed document that nobody has checked.
#[derive(Debug, Clone)]
pub struct UnverifiedDocument {
    claims: Claims,
    certificate: Vec<u8>,
    cabundle: Vec<Vec<u8>>,
}

impl UnverifiedDocument {
    /// Reads a document.
    ///
    /// # Errors
    /// [`DocumentError`] names the rule that the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let source = CborError::message("not yet readable");
        let _ = bytes;
        Err(DocumentError::Cbor {
            context: "COSE_Sign1",
            source,
        })
    }

    /// What the document says, unchecked: for display and diagnosis only.
    #[must_use]
    pub fn unverified_claims(&self) -> &Claims {
        &self.claims
    }

    /// The leaf certificate, DER, unchecked.
    #[must_use]
    pub fn unverified_certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The bundle, root first, DER, unchecked.
    #[must_use]
    pub fn unverified_cabundle(&self) -> &[Vec<u8>] {
        &self.cabundle
    }

    /// Checks everything that AWS asks a verifier to check, at `now`.
    ///
    /// # Errors
    /// [`VerifyError`] names the rule, what was expected and what was found.
    pub fn verify(
        self,
        anchors: &TrustAnchors,
        now: UnixMillis,
        options: &VerifyOptions,
    ) -> Result<VerifiedDocument, VerifyError> {
        let _ = (anchors, now, options);
        Err(VerifyError::UntrustedRoot {
            found: String::new(),
        })
    }
}

/// A document whose signature, chain and freshness were checked. Only [`UnverifiedDocument::verify`] makes one.
#[derive(Debug, Clone)]
pub struct VerifiedDocument {
    claims: Claims,
    anchor: String,
}

impl VerifiedDocument {
    /// `<instance-id>-enc<16 hex digits>`.
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.claims.module_id
    }

    /// When the document was made.
    #[must_use]
    pub fn timestamp(&self) -> UnixMillis {
        self.claims.timestamp
    }

    /// Locked registers.
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<PcrIndex, PcrValue> {
        &self.claims.pcrs
    }

    /// Key that the enclave bound to the document.
    #[must_use]
    pub fn public_key(&self) -> Option<&[u8]> {
        self.claims.public_key.as_deref()
    }

    /// The application's own data.
    #[must_use]
    pub fn user_data(&self) -> Option<&[u8]> {
        self.claims.user_data.as_deref()
    }

    /// Nonce of whoever asked for the document.
    #[must_use]
    pub fn nonce(&self) -> Option<&[u8]> {
        self.claims.nonce.as_deref()
    }

    /// Name of the trust anchor that the chain ends in.
    #[must_use]
    pub fn anchor(&self) -> &str {
        &self.anchor
    }

    /// Whether a debug enclave made it: one of PCR0, PCR1, PCR2 is zero.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.claims.is_debug()
    }
}

impl Claims {
    /// Whether one of PCR0, PCR1, PCR2 is zero, as in a debug enclave.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        let image = [PcrIndex::IMAGE, PcrIndex::BOOT, PcrIndex::APPLICATION];
        image
            .iter()
            .any(|index| self.pcrs.get(index).is_some_and(PcrValue::is_zero))
    }
}
