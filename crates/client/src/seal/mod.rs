//! Sealed requests and replies, format version 1.
//!
//! ```text
//!  client                                              enclave
//!  Sealer::new(key, document)                          Opener::generate()
//!                    ◀──────── attestation document ── public_key_der() into the document,
//!                              (verified by the client)  then offer(document)
//!  seal(plaintext) ───────────── sealed request ─────▶ open(bytes) -> Opened
//!  PendingReply::open(bytes) ◀── sealed reply ───────── Opened::reply(plaintext)
//! ```
//!
//! A request is one HPKE message (RFC 9180 base mode; DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM) to the
//! public key of an attestation document. The hash of that document is bound into the key schedule, so both sides agree
//! on *which* document the client looked at. The reply is encrypted with a key exported from the same HPKE context, so
//! only the sender of a request can read its reply, and a reply cannot be moved to another request.
//!
//! What the enclave side refuses besides damage: a request sealed to a document that it never offered or that
//! has expired, and a request that it has opened before (a replay by whoever carried it).
//!
//! What this does not hide: lengths, timing, and which document was used.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod key_schedule;
mod opener;
mod sealer;
#[cfg(any(test, feature = "fuzzing"))]
mod vector;
mod wire;

use std::fmt;

use sha2::{Digest, Sha256};

pub use opener::{Limits, Opened, Opener};
pub use sealer::{PendingReply, Sealer};

/// Content type of sealed requests and replies over HTTP.
pub const CONTENT_TYPE: &str = "application/vnd.enclos.sealed";

/// Bytes that a sealed request is longer than its plaintext.
pub const REQUEST_OVERHEAD: usize = wire::REQUEST_PREFIX + wire::TAG;

/// Bytes that a sealed reply is longer than its plaintext.
pub const REPLY_OVERHEAD: usize = wire::REPLY_PREFIX + wire::TAG;

/// SHA-256 of an attestation document's bytes, as they travelled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentHash([u8; 32]);

impl DocumentHash {
    /// Hashes the document.
    #[must_use]
    pub fn of(document: &[u8]) -> Self {
        Self(Sha256::digest(document).into())
    }
}

impl fmt::Debug for DocumentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentHash({self})")
    }
}

impl fmt::Display for DocumentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Identifies a request: random, chosen by the client, authenticated, accepted once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 16]);

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why nothing could be sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The document carries no key that can be sealed to.
    #[error(
        "the enclave's public key ({len} bytes) is not an X25519 SubjectPublicKeyInfo of 44 bytes: \
         the service does not offer sealed requests in format 1"
    )]
    PublicKey {
        /// Length of what was found.
        len: usize,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Entropy(#[source] getrandom::Error),
    /// HPKE refused; with a well-formed key this means a key of small order.
    #[error("cannot encrypt to the enclave's public key: it is not a usable X25519 point")]
    Hpke(#[source] hpke::HpkeError),
}

/// Why sealed bytes could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Shorter than any sealed message.
    #[error("{len} bytes are too few for a sealed {expected}: at least {minimum} were expected")]
    Truncated {
        /// What was received.
        len: usize,
        /// The shortest possible message.
        minimum: usize,
        /// `request` or `reply`.
        expected: &'static str,
    },
    /// The first bytes are not those of a sealed message.
    #[error("not a sealed message: it begins with {found:02x?} where \"ENCS\" was expected")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A format version from the future.
    #[error("sealed format version {found} is not supported, only version 1 is")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// A reply where a request was due, or the reverse.
    #[error("a sealed {expected} was expected, but the message is of kind {found}")]
    Kind {
        /// `request` or `reply`.
        expected: &'static str,
        /// The kind byte.
        found: u8,
    },
    /// The request was sealed to a document that this enclave does not answer for (any more).
    #[error(
        "the request is sealed to document {document}, which this enclave never offered or which has \
         expired: fetch and verify a fresh document, then seal again"
    )]
    UnknownDocument {
        /// Hash in the request.
        document: DocumentHash,
    },
    /// The request was opened before.
    #[error(
        "request {id} was accepted before: a replay; seal the message again instead of resending it"
    )]
    Replayed {
        /// Id of the request.
        id: RequestId,
    },
    /// The reply answers another request.
    #[error("the reply answers request {found}, but request {expected} was sent")]
    OtherRequest {
        /// Id in the reply.
        found: RequestId,
        /// Id of the request.
        expected: RequestId,
    },
    /// Authentication failed: damaged, or sealed to another key.
    #[error(
        "the sealed {expected} does not decrypt: it was damaged or altered on the way, or sealed to another key"
    )]
    Undecryptable {
        /// `request` or `reply`.
        expected: &'static str,
    },
}

impl OpenError {
    /// Whether the client should fetch a fresh document and seal again.
    #[must_use]
    pub fn wants_fresh_document(&self) -> bool {
        matches!(self, Self::UnknownDocument { .. })
    }

    /// The HTTP status that a service should answer with: 409 when a fresh document helps or the request is a
    /// replay, 400 for everything else.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self {
            Self::UnknownDocument { .. } | Self::Replayed { .. } => 409,
            _ => 400,
        }
    }
}

#[cfg(test)]
mod tests;
