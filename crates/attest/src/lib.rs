//! Attestation as AWS Nitro Enclaves does it: what is measured, who signs it, how it is checked.
//!
//! ```text
//!   measurements ──▶ nsm::Nsm ──Attestation request──▶ document signed by pki::LeafIdentity
//!                    (32 PCRs, locks)                          │ COSE_Sign1 bytes
//!                                                              ▼
//!   policy::Expectation ◀── VerifiedDocument ◀── verify ── document::UnverifiedDocument
//!                                                 ▲
//!                                    document::TrustAnchors (AWS's root, own roots)
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`nsm`] | the Nitro Secure Module: its messages, and the machine that answers them |
//! | [`pki`] | an installation's certificate authority, in the shape of AWS's, and the keys that sign documents |
//! | [`document`] | attestation documents: issue, parse, verify |
//! | [`policy`] | what a verified document must say |
//! | [`channel`] | TLS certificates that carry a document for their key |
//!
//! Without feature `aws-lc`, with `rustcrypto`, it verifies and does not issue: [`document`], [`policy`] and the
//! client's side of [`channel`].
//!
//! Nothing here does I/O or reads a clock: time is passed in, bytes go in, bytes come out. `SPEC.md` beside
//! this crate lists where AWS's texts are ambiguous, what was chosen, and the test that holds it.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(
    not(feature = "aws-lc"),
    expect(
        dead_code,
        unused_imports,
        reason = "what issues documents has no user there"
    )
)]

mod cbor;
pub mod channel;
mod crypto;
pub mod document;
#[cfg(feature = "aws-lc")]
pub mod nsm;
mod pcr;
#[cfg(feature = "aws-lc")]
pub mod pki;
pub mod policy;
mod time;
mod x509;

pub use pcr::{PCR_COUNT, PCR_LEN, PcrError, PcrIndex, PcrValue};
pub use time::UnixMillis;
