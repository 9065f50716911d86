//! An installation's certificate authority and the keys of its enclaves, in the shape of AWS's.
//!
//! ```text
//!  root      O=Enclos, OU=Enclos, CN=<8 hex>.enclos                              30 years    pinned by verifiers
//!   └ region   CN=<16 hex>.<region>.<8 hex>.enclos                               20 d + 1 h  pathLen 2
//!      └ zone     CN=<16 hex>.zonal.<region>.<8 hex>.enclos, …, L=<zone>         5 d 14 h    pathLen 1
//!         └ instance CN=<instance-id>.<region>.<8 hex>.enclos                    24 h        pathLen 0
//!            └ leaf     CN=<module-id>.<region>.enclos                           3 h + 3 s   one per enclave
//! ```
//!
//! Keys are P-384, signatures ecdsa-with-SHA384. Lifetimes, extensions, their criticality and the order of
//! name parts are AWS's; the names are not, so that nobody takes one for the other, and there are no CRL
//! distribution points because nobody serves the lists.
//!
//! The hypervisor owns the [`Authority`]. An enclave's monitor owns a [`LeafKey`] that it made itself, sends
//! its public half to the hypervisor and gets an [`IssuedLeaf`] back; both together are a [`LeafIdentity`].
//! When [`LeafIdentity::needs_renewal`] says so it asks again, with the same key.
//!
//! Everything below the root is re-issued, with new keys, whenever it would expire before a certificate that
//! it has yet to issue, and whenever the clock has jumped to before its validity. So a leaf never outlives its
//! issuers.
//!
//! A root can be endorsed by another one: documents then begin with that one, the endorsed root's certificate by it
//! stands where the own root stood, and whoever trusts the other root accepts them. That is how a fleet comes
//! under one root ([`Authority::endorse`], [`Authority::adopt`]) and how a root is replaced while verifiers still know the old
//! one only ([`Authority::rotate`], later [`Authority::drop_endorsement`]).
//!
//! The root's key can be kept elsewhere, in a token that signs and never gives it away ([`RootKey`]). The stored authority
//! then begins with the root's certificate alone, and the region's key is the highest that it holds.
//!
//! Private keys live in memory that is wiped when they are dropped.

mod authority;
mod channel;
mod issue;
mod leaf;
mod root;
#[cfg(test)]
mod root_tests;
#[cfg(test)]
mod tests;

use aws_lc_rs::rand::{self, SecureRandom};

pub use authority::{Authority, Described, Endorsement};
pub use channel::ChannelKey;
pub use leaf::{IssuedLeaf, LEAF_LIFETIME, LeafIdentity, LeafKey, RENEWAL_MARGIN};
pub use root::RootKey;

use crate::document::DocumentError;
use crate::time::UnixMillis;
pub use crate::x509::CertificateError;

/// Why the authority or a key could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The cryptographic library failed.
    #[error("cannot {action}: the cryptographic library refused")]
    Crypto {
        /// What was being done.
        action: &'static str,
    },
    /// A value does not fit into a certificate.
    #[error("cannot encode a certificate")]
    Encoding(#[from] der::Error),
    /// A name that goes into certificates is not usable.
    #[error(
        "{field} {found:?} cannot be part of a certificate's name: expected 1 to {max} letters, digits, hyphens"
    )]
    Name {
        /// Which name.
        field: &'static str,
        /// The name.
        found: String,
        /// Longest allowed, in bytes.
        max: usize,
    },
    /// The clock is before the root's validity.
    #[error(
        "the clock says {now}, but the root certificate is valid from {not_before}: set the clock"
    )]
    ClockBeforeRoot {
        /// The clock.
        now: UnixMillis,
        /// Begin of the root's validity.
        not_before: UnixMillis,
    },
    /// The root cannot issue any more.
    #[error(
        "the root certificate ends at {not_after}, too soon to issue at {now}: create a new authority"
    )]
    RootExpires {
        /// The clock.
        now: UnixMillis,
        /// End of the root's validity.
        not_after: UnixMillis,
    },
    /// A stored authority cannot be read.
    #[error(
        "not a stored authority: {problem}; expected four PRIVATE KEY and CERTIFICATE pairs, root first, the root's key only if it is kept here"
    )]
    Stored {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A certificate is not usable.
    #[error("{which} is not usable")]
    Certificate {
        /// Which certificate.
        which: &'static str,
        /// The rule that it breaks.
        #[source]
        source: CertificateError,
    },
    /// An endorsement of a root cannot be used.
    #[error("not an endorsement that can be used: {problem}")]
    Endorsement {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Only the root can do it, and its key is kept elsewhere.
    #[error(
        "the root's key is kept in a token, and it alone can {action}: `enclos pki` with --root-key pkcs11:…"
    )]
    RootElsewhere {
        /// What was to be done.
        action: &'static str,
    },
    /// Where the root's key is kept, it was not used.
    #[error("the root's key did not sign")]
    RootRefused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate is for another key.
    #[error("{which} is for another key than the one at hand")]
    OtherKey {
        /// Which certificate.
        which: &'static str,
    },
    /// What should go into a certificate is no attestation document.
    #[error("cannot make a certificate of what is no attestation document")]
    Document(#[from] DocumentError),
    /// The leaf certificate does not cover the moment of signing.
    #[error(
        "cannot sign a document at {at}: the leaf certificate is valid from {not_before} to {not_after}"
    )]
    LeafNotValid {
        /// The document's timestamp.
        at: UnixMillis,
        /// Begin of the leaf's validity.
        not_before: UnixMillis,
        /// End of the leaf's validity.
        not_after: UnixMillis,
    },
}

/// Fills `out` with random bytes from the process's cryptographic generator.
///
/// # Errors
/// [`PkiError::Crypto`] when the generator fails.
pub fn random(out: &mut [u8]) -> Result<(), PkiError> {
    let generator = rand::SystemRandom::new();
    generator.fill(out).map_err(|_| PkiError::Crypto {
        action: "draw random bytes",
    })
}
