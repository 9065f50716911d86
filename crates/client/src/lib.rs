//! For whoever talks to an enclave: verify what it is, seal what it may read.
//!
//! ```no_run
//! use enclos_client::attest::document::TrustAnchors;
//! use enclos_client::attest::{PcrIndex, PcrValue};
//! use enclos_client::{Enclave, Endpoint, Verifier};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let root = std::fs::read("attestation-root.pem")?;
//! let verifier = Verifier::new(TrustAnchors::new().with_root("our host", &root)?)
//!     .expect_pcr(PcrIndex::try_from(0_u16)?, PcrValue::from_hex(&std::fs::read_to_string("pcr0")?)?);
//! let enclave = Enclave::connect(Endpoint::new("http://127.0.0.1:8080"), &verifier)?;
//! let answer = enclave.call(br#"{"data": "for the enclave's eyes only"}"#)?;
//! # let _ = answer;
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`seal`] | sealed requests and replies, both sides; the byte layout is in this crate's `SPEC.md` |
//! | [`verify`] | trust anchors, expectations and freshness in one value |
//! | [`decode`] | documents out of whatever wraps them |
//! | [`Enclave`] | fetch, verify, call |
//! | [`Session`] | the same, with a document that is kept while it is fresh |
//! | [`attested`] | TLS that ends inside the enclave, with resumption (feature `tls`) |
//!
//! An enclave that only opens sealed requests builds this crate without default features: [`seal`] alone,
//! no HTTP.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod seal;

#[cfg(feature = "tls")]
pub mod attested;
#[cfg(feature = "verify")]
pub mod decode;
#[cfg(feature = "verify")]
mod enclave;
#[cfg(feature = "verify")]
pub mod http;
#[cfg(feature = "verify")]
mod session;
#[cfg(feature = "verify")]
pub mod verify;

#[cfg(feature = "tls")]
pub use attested::{AttestedTls, AttestedTlsError};
#[cfg(feature = "verify")]
pub use enclave::{CallError, ConnectError, Enclave, Endpoint, fetch, fetch_for};
#[cfg(feature = "verify")]
pub use enclos_attest as attest;
#[cfg(feature = "verify")]
pub use session::{Session, SessionError};
#[cfg(feature = "verify")]
pub use verify::{Refusal, Verifier};
