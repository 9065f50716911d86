//! Who may be talked to: trust anchors, what the document must say, how fresh it must be.
//!
//! ```text
//! bytes ─▶ UnverifiedDocument ─▶ chain, signature, age ─▶ VerifiedDocument ─▶ registers, nonce ─▶ accepted
//!            DocumentError          VerifyError                                Mismatch (all of them)
//! ```
//!
//! A [`Verifier`] without a single expected register accepts *any* image that the root vouches for. That is what an
//! inspection wants and what a client must not do; [`Verifier::is_pinned`] tells.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use enclos_attest::document::{
    ChainCache, DocumentError, TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyError,
    VerifyOptions,
};
use enclos_attest::policy::{Expectation, Mismatch, Policy, Reason, Warning};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};

/// Decides about documents. It remembers chains that it has proven, and so do its clones with it: keep one.
#[derive(Debug, Clone)]
pub struct Verifier {
    anchors: TrustAnchors,
    chains: Arc<ChainCache>,
    options: VerifyOptions,
    expectation: Expectation,
    policy: Option<Arc<Policy>>,
}

/// Why a document was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The bytes are not an attestation document.
    #[error(transparent)]
    Malformed(#[from] DocumentError),
    /// Nobody trusted vouches for it, or it is too old.
    #[error("the document cannot be trusted")]
    Untrusted(#[from] VerifyError),
    /// It is genuine, but says something else than was expected.
    #[error("the document is genuine but not the one expected: {}", Listed(.0))]
    Unexpected(Vec<Mismatch>),
    /// It is genuine, but the policy does not accept it.
    #[error("the document is genuine but the policy does not accept it: {}", Listed(.0))]
    Policy(Vec<Reason>),
}

struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, mismatch) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{mismatch}")?;
        }
        Ok(())
    }
}

impl Verifier {
    /// Trusts these roots, expects nothing yet.
    #[must_use]
    pub fn new(anchors: TrustAnchors) -> Self {
        Self {
            anchors,
            chains: Arc::default(),
            options: VerifyOptions::default(),
            expectation: Expectation::default(),
            policy: None,
        }
    }

    /// Demands a register's value. Pin 0, 1 and 2 together.
    #[must_use]
    pub fn expect_pcr(mut self, index: PcrIndex, value: PcrValue) -> Self {
        self.expectation.pcrs.insert(index, value);
        self
    }

    /// Demands that this policy accepts the document, besides everything else.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// Demands that the document was made at most this long ago.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.options.max_age = age;
        self
    }

    /// Accepts documents of debug enclaves, whose image registers are zero and whose memory the host can read.
    #[must_use]
    pub fn allow_debug(mut self) -> Self {
        self.options.allow_debug = true;
        self
    }

    /// Checks certificates at the document's own time and forgets about age: for records, not for clients.
    #[must_use]
    pub fn archival(mut self) -> Self {
        self.options.archival = true;
        self
    }

    /// Whether the image is pinned: at least PCR0, or PCR8 (the signer), or by a policy in all its alternatives.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        let mut pcrs = self.expectation.pcrs.keys();
        let any_image = |warning: &Warning| matches!(warning, Warning::AnyImage { .. });
        let pins = |policy: &Policy| !policy.lint(SystemTime::now().into()).iter().any(any_image);
        pcrs.any(|index| matches!(index.get(), 0 | 8)) || self.policy.as_deref().is_some_and(pins)
    }

    /// Verifies a document now. `nonce` is what the document was asked for with, if it was.
    ///
    /// # Errors
    /// [`Refusal`]; of mismatches it names all.
    pub fn verify(
        &self,
        document: &[u8],
        nonce: Option<&[u8]>,
    ) -> Result<VerifiedDocument, Refusal> {
        self.verify_at(document, nonce, SystemTime::now().into())
    }

    /// Verifies a document at a time of the caller's.
    ///
    /// # Errors
    /// [`Refusal`]; of mismatches it names all.
    pub fn verify_at(
        &self,
        document: &[u8],
        nonce: Option<&[u8]>,
        now: UnixMillis,
    ) -> Result<VerifiedDocument, Refusal> {
        let document = UnverifiedDocument::parse(document)?;
        let verified =
            document.verify_with_cache(&self.anchors, now, &self.options, &self.chains)?;
        self.expects(&verified, nonce, now)?;
        Ok(verified)
    }

    /// Whether a document that was accepted would be accepted at this moment, too. No signature is checked again.
    pub(crate) fn still_accepts(
        &self,
        verified: &VerifiedDocument,
        nonce: Option<&[u8]>,
        now: UnixMillis,
    ) -> bool {
        verified.is_timely(now, &self.options) && self.expects(verified, nonce, now).is_ok()
    }

    /// Whether a verified document says what is expected, and the policy accepts it, at a moment.
    fn expects(
        &self,
        verified: &VerifiedDocument,
        nonce: Option<&[u8]>,
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        let mut expectation = self.expectation.clone();
        expectation.nonce = nonce.map(<[u8]>::to_vec);
        expectation.check(verified).map_err(Refusal::Unexpected)?;
        let Some(policy) = &self.policy else {
            return Ok(());
        };
        // A record is judged at its own time.
        let archival = self.options.archival;
        let at = if archival { verified.timestamp() } else { now };
        let accepted = policy.check(verified, at, nonce);
        accepted.map(drop).map_err(Refusal::Policy)
    }

    /// The last moment at which a document can be accepted.
    pub(crate) fn good_until(&self, verified: &VerifiedDocument) -> UnixMillis {
        verified.timely_until(&self.options)
    }

    /// Whether documents are judged at their own time.
    #[must_use]
    pub fn is_archival(&self) -> bool {
        self.options.archival
    }
}
