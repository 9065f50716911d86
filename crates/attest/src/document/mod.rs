//! Attestation documents: read them, verify them.
//!
//! ```text
//!  bytes ──parse──▶ UnverifiedDocument ──verify──▶ VerifiedDocument ──▶ policy::Expectation::check
//!         DocumentError                VerifyError
//! ```
//!
//! A [`VerifiedDocument`] has no public constructor: holding one *is* the proof that the checks happened.
//! [`UnverifiedDocument::verify`] does, in this order:
//!
//! 1. **Freshness.** Live: not older than [`VerifyOptions::max_age`]. Always: not further in the future than
//!    [`VerifyOptions::max_future_skew`].
//! 2. **Root.** The bundle's first certificate is byte for byte one of the [`TrustAnchors`].
//! 3. **Chain.** RFC 5280 path validation from that root to the leaf: signatures, names, key identifiers,
//!    validity (both bounds inclusive), CA flag, path length, key usage, no unknown critical extension. Judged
//!    now, or at the document's own time when [`VerifyOptions::archival`].
//! 4. **Signature.** ES384 by the leaf's key over the bytes as received. The header never chooses the algorithm.
//! 5. **Debug.** PCR0, PCR1 and PCR2 are present, and none is zero, unless [`VerifyOptions::allow_debug`].
//!
//! What the registers, the nonce or the key should be is for [`crate::policy`].
//!
//! [`UnverifiedDocument::verify_with_cache`] does the same; of a chain that a [`ChainCache`] has seen before it
//! does not check the signatures again.

mod anchors;
mod cache;
mod payload;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anchors::Anchor;
pub use anchors::{AWS_ANCHOR, AWS_ROOT_SHA256, AnchorError, TrustAnchors};
pub use cache::{CacheUse, ChainCache};
pub use payload::{CABUNDLE_MAX, CERTIFICATE_MAX, DOCUMENT_MAX, FIELD_MAX};
pub(crate) use payload::{encode_envelope, encode_payload, sig_structure};

pub use crate::cbor::CborError;
use crate::crypto;
use crate::pcr::{PcrIndex, PcrValue};
use crate::time::UnixMillis;
pub use crate::x509::CertificateError;
use crate::x509::{self, Certificate, Link};

/// The registers that identify an image.
const IMAGE: [PcrIndex; 3] = [PcrIndex::IMAGE, PcrIndex::BOOT, PcrIndex::APPLICATION];

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

impl Claims {
    /// Whether a debug enclave says this: one of PCR0, PCR1, PCR2 is zero.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        IMAGE
            .iter()
            .any(|index| self.pcrs.get(index).is_some_and(PcrValue::is_zero))
    }

    /// The module id's two halves: instance id and slot number. AWS pads the number with zeros here and not in
    /// `nitro-cli`'s enclave ids, so compare numbers, not text.
    #[must_use]
    pub fn module(&self) -> Option<(&str, u64)> {
        let (instance_id, slot) = self.module_id.rsplit_once("-enc")?;
        let digits = (1..=16).contains(&slot.len()) && slot.bytes().all(|b| b.is_ascii_hexdigit());
        let slot = u64::from_str_radix(slot, 16).ok().filter(|_| digits)?;
        Some((instance_id, slot))
    }
}

/// Why bytes are not an enclave's attestation document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Longer than any document.
    #[error("the document is {found} bytes long, expected at most {DOCUMENT_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// The bytes are not the CBOR of a document.
    #[error("not an attestation document: its {part} cannot be decoded")]
    Cbor {
        /// Which part.
        part: &'static str,
        /// What the decoder met.
        #[source]
        source: CborError,
    },
    /// Another algorithm than ES384.
    #[error("the protected header is {found}, expected a1013822: algorithm ES384 and nothing else")]
    Algorithm {
        /// The header, hex.
        found: String,
    },
    /// The unprotected header has entries, which nobody signed.
    #[error("the unprotected header has {found} entries, expected none")]
    UnprotectedHeader {
        /// How many.
        found: usize,
    },
    /// The signature cannot be ES384's.
    #[error("the signature is {found} bytes long, expected 96")]
    SignatureLength {
        /// Its length.
        found: usize,
    },
    /// The document of an EC2 instance's NitroTPM: same root, other meaning.
    #[error("this is the document of a NitroTPM (it has nitrotpm_pcrs), expected an enclave's")]
    NitroTpm,
    /// A mandatory key is absent or null.
    #[error("the payload lacks {key}")]
    Missing {
        /// Which key.
        key: &'static str,
    },
    /// A value is too short or too long.
    #[error("{key} is {found} bytes long, expected {min} to {max}")]
    Length {
        /// Its key in the payload.
        key: &'static str,
        /// Its length.
        found: usize,
        /// Shortest allowed.
        min: usize,
        /// Longest allowed.
        max: usize,
    },
    /// Registers of another hash.
    #[error("digest is {found:?}, expected \"SHA384\"")]
    Digest {
        /// The name it gives.
        found: String,
    },
    /// No time.
    #[error("timestamp is 0, expected milliseconds since 1970")]
    ZeroTimestamp,
    /// No registers, or more than there are.
    #[error("pcrs has {found} entries, expected 1 to 32")]
    PcrCount {
        /// How many.
        found: usize,
    },
    /// A register that does not exist.
    #[error("pcrs names register {found}, expected 0 to 31")]
    PcrIndex {
        /// Its number.
        found: u64,
    },
    /// A register that is not a SHA-384 digest.
    #[error("PCR{index} is {found} bytes long, expected 48")]
    PcrLength {
        /// Which register.
        index: PcrIndex,
        /// Its length.
        found: usize,
    },
    /// No bundle, or one that is too long.
    #[error("cabundle has {found} certificates, expected 1 to {CABUNDLE_MAX}")]
    BundleCount {
        /// How many.
        found: usize,
    },
}

/// Why a well-formed document is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Too old.
    #[error("the document is from {timestamp}, {} before {now}; expected at most {}", seconds(.age), seconds(.max_age))]
    TooOld {
        /// The document's time.
        timestamp: UnixMillis,
        /// The verifier's time.
        now: UnixMillis,
        /// The difference.
        age: Duration,
        /// The limit.
        max_age: Duration,
    },
    /// From the future.
    #[error("the document is from {timestamp}, later than {now} by more than {}: set the clocks", seconds(.max_future_skew))]
    InFuture {
        /// The document's time.
        timestamp: UnixMillis,
        /// The verifier's time.
        now: UnixMillis,
        /// The limit.
        max_future_skew: Duration,
    },
    /// The document's root is not among the trust anchors.
    #[error(
        "the document's root certificate {subject:?} (SHA-256 {found}) is not trusted; trusted are: {trusted}"
    )]
    UntrustedRoot {
        /// SHA-256 of the document's root, hex.
        found: String,
        /// Its subject, as it claims.
        subject: String,
        /// Names and SHA-256 of the anchors.
        trusted: String,
    },
    /// A certificate breaks a rule of path validation.
    #[error("{which} is not acceptable")]
    Certificate {
        /// `cabundle[2]`, or `the signing certificate`.
        which: String,
        /// The rule.
        #[source]
        source: CertificateError,
    },
    /// The signature is not the leaf's.
    #[error(
        "the document's signature is not by the key of its certificate: it was altered or forged"
    )]
    Signature,
    /// One of the registers that identify an image is absent.
    #[error("PCR{index} is not in the document, expected PCR0, PCR1 and PCR2")]
    MissingPcr {
        /// Which one.
        index: PcrIndex,
    },
    /// A debug enclave's document.
    #[error(
        "the document is of a debug enclave (PCR{index} is zero): it says nothing about what runs there"
    )]
    Debug {
        /// The first register that is zero.
        index: PcrIndex,
    },
}

/// How strictly a document is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Longest time since the document's timestamp; ignored when `archival`.
    pub max_age: Duration,
    /// Longest time by which the document's timestamp may lie in the future.
    pub max_future_skew: Duration,
    /// Judge age and certificates at the document's own time instead of now: for records of the past, never
    /// for the release of a key.
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

/// A well-formed document that nobody has checked.
#[derive(Debug, Clone)]
pub struct UnverifiedDocument {
    payload: payload::Payload,
    /// What the signature is over: the payload as received, in its Sig_structure.
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl UnverifiedDocument {
    /// Reads a document: tagged or untagged, maps of definite or indefinite length.
    ///
    /// # Errors
    /// [`DocumentError`] names the rule that the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let envelope = payload::Envelope::decode(bytes)?;
        Ok(Self {
            payload: payload::Payload::decode(&envelope.payload)?,
            signed: sig_structure(&envelope.payload),
            signature: envelope.signature.into_owned(),
        })
    }

    /// What the document says, unchecked: for display and diagnosis only.
    #[must_use]
    pub fn unverified_claims(&self) -> &Claims {
        &self.payload.claims
    }

    /// The signing certificate, DER, unchecked.
    #[must_use]
    pub fn unverified_certificate(&self) -> &[u8] {
        &self.payload.certificate
    }

    /// The bundle, root first, DER, unchecked.
    #[must_use]
    pub fn unverified_cabundle(&self) -> &[Vec<u8>] {
        &self.payload.cabundle
    }

    /// Does the checks that the [module](self) lists, at `now`.
    ///
    /// # Errors
    /// [`VerifyError`] names the rule, what was expected and what was found.
    pub fn verify(
        self,
        anchors: &TrustAnchors,
        now: UnixMillis,
        options: &VerifyOptions,
    ) -> Result<VerifiedDocument, VerifyError> {
        self.check(anchors, now, options, None)
    }

    /// As [`Self::verify`], with the same verdict, but signatures of certificates that `cache` knows are not
    /// checked again; what this document proves is added to it.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_with_cache(
        self,
        anchors: &TrustAnchors,
        now: UnixMillis,
        options: &VerifyOptions,
        cache: &ChainCache,
    ) -> Result<VerifiedDocument, VerifyError> {
        self.check(anchors, now, options, Some(cache))
    }

    fn check(
        self,
        anchors: &TrustAnchors,
        now: UnixMillis,
        options: &VerifyOptions,
        cache: Option<&ChainCache>,
    ) -> Result<VerifiedDocument, VerifyError> {
        let timestamp = self.payload.claims.timestamp;
        check_freshness(timestamp, now, options)?;
        let anchor = self.anchor(anchors)?;
        let mut chain = self.chain(anchor, cache)?;
        let at = if options.archival { timestamp } else { now };
        x509::check_chain(&mut chain, at).map_err(|broken| self.refuse(broken))?;
        let leaf = chain.last().map(|link| &link.certificate);
        if !leaf.is_some_and(|leaf| leaf.signed(&self.signed, &self.signature)) {
            return Err(VerifyError::Signature);
        }
        if let Some(cache) = cache {
            cache.keep(&chain);
        }
        check_image(&self.payload.claims, options)?;
        Ok(VerifiedDocument {
            claims: self.payload.claims,
            anchor: Arc::clone(&anchor.name),
            chain: Validity::of(&chain),
        })
    }

    fn anchor<'a>(&self, anchors: &'a TrustAnchors) -> Result<&'a Anchor, VerifyError> {
        // Parsing has refused an empty bundle.
        let root = self.payload.cabundle.first().map_or(&[][..], Vec::as_slice);
        anchors.find(root).ok_or_else(|| {
            let names = anchors
                .iter()
                .map(|(name, der)| format!("{name} ({})", fingerprint(der)));
            let names: Vec<_> = names.collect();
            let subject = Certificate::parse(root).and_then(|root| root.subject());
            VerifyError::UntrustedRoot {
                found: fingerprint(root),
                subject: subject.map_or_else(|_| "unreadable".to_owned(), |name| name.to_string()),
                trusted: if names.is_empty() {
                    "none".to_owned()
                } else {
                    names.join(", ")
                },
            }
        })
    }

    /// The certificates, anchor first and leaf last; what the cache knows is not read again.
    fn chain(&self, anchor: &Anchor, cache: Option<&ChainCache>) -> Result<Vec<Link>, VerifyError> {
        let below = self.payload.cabundle.iter().skip(1);
        let below = || below.clone().chain([&self.payload.certificate]);
        let known = cache.map(|cache| cache.find(below().map(Vec::as_slice)));
        let mut known = known.into_iter().flatten();
        let mut chain = Vec::with_capacity(self.payload.cabundle.len() + 1);
        chain.push(Link {
            certificate: Arc::clone(&anchor.certificate),
            signer: None,
        });
        for der in below() {
            let position = chain.len();
            let link = known.next().flatten();
            let link = link.map_or_else(|| Link::parse(der), Ok);
            chain.push(link.map_err(|error| self.refuse((position, error)))?);
        }
        Ok(chain)
    }

    fn refuse(&self, (position, source): (usize, CertificateError)) -> VerifyError {
        let leaf = self.payload.cabundle.len();
        let which = if position == leaf {
            "the signing certificate".to_owned()
        } else {
            format!("cabundle[{position}]")
        };
        VerifyError::Certificate { which, source }
    }
}

fn check_freshness(
    timestamp: UnixMillis,
    now: UnixMillis,
    options: &VerifyOptions,
) -> Result<(), VerifyError> {
    let max_future_skew = options.max_future_skew;
    if timestamp > now.plus(max_future_skew) {
        return Err(VerifyError::InFuture {
            timestamp,
            now,
            max_future_skew,
        });
    }
    let age = now.since(timestamp).unwrap_or_default();
    if !options.archival && age > options.max_age {
        return Err(VerifyError::TooOld {
            timestamp,
            now,
            age,
            max_age: options.max_age,
        });
    }
    Ok(())
}

/// When all certificates of a chain are valid.
#[derive(Debug, Clone, Copy)]
struct Validity {
    from: UnixMillis,
    until: UnixMillis,
}

impl Validity {
    fn of(chain: &[Link]) -> Self {
        let certificates = || chain.iter().map(|link| &link.certificate);
        let from = certificates().map(|certificate| certificate.not_before());
        let until = certificates().map(|certificate| certificate.not_after());
        Self {
            from: from.max().unwrap_or_default(),
            until: until.min().unwrap_or_default(),
        }
    }

    /// The last second is one as a whole.
    fn covers(self, at: UnixMillis) -> bool {
        self.from <= at && at.as_secs() <= self.until.as_secs()
    }
}

fn check_image(claims: &Claims, options: &VerifyOptions) -> Result<(), VerifyError> {
    for index in IMAGE {
        match claims.pcrs.get(&index) {
            None => return Err(VerifyError::MissingPcr { index }),
            Some(value) if value.is_zero() && !options.allow_debug => {
                return Err(VerifyError::Debug { index });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn fingerprint(der: &[u8]) -> String {
    hex::encode(crypto::sha256(der))
}

fn seconds(duration: &Duration) -> String {
    format!("{}.{:03} s", duration.as_secs(), duration.subsec_millis())
}

/// A document whose signature, chain and freshness were checked. Only [`UnverifiedDocument::verify`] and
/// [`UnverifiedDocument::verify_with_cache`] make one; code that takes it cannot be reached without them:
///
/// ```compile_fail,E0451
/// # use enclos_attest::document::{Claims, VerifiedDocument};
/// fn forge(claims: Claims) -> VerifiedDocument {
///     VerifiedDocument { claims, anchor: "aws".into(), ..todo!() }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct VerifiedDocument {
    claims: Claims,
    anchor: Arc<str>,
    chain: Validity,
}

impl VerifiedDocument {
    /// Everything that the document says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

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

    /// Name of the trust anchor that the chain begins with.
    #[must_use]
    pub fn anchor(&self) -> &str {
        &self.anchor
    }

    /// Whether a verification at `now` would find age, skew and the validity of every certificate as they must be: for whoever keeps
    /// a verified document. Signatures, which do not change, are not checked again.
    #[must_use]
    pub fn is_timely(&self, now: UnixMillis, options: &VerifyOptions) -> bool {
        let at = if options.archival {
            self.timestamp()
        } else {
            now
        };
        check_freshness(self.timestamp(), now, options).is_ok() && self.chain.covers(at)
    }

    /// The last moment at which it can be timely: it becomes too old then, or one of its certificates ends.
    #[must_use]
    pub fn timely_until(&self, options: &VerifyOptions) -> UnixMillis {
        let too_old = self.timestamp().plus(options.max_age);
        let end = self.chain.until.plus(Duration::from_millis(999));
        too_old.min(end)
    }

    /// Whether a debug enclave made it, which only [`VerifyOptions::allow_debug`] lets through.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.claims.is_debug()
    }
}
