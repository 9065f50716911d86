//! For whoever talks to an enclave: verify what it is, seal what it may read.
//!
//! [`seal`] is the sealed request and reply format, both sides of it: a client seals to the key inside a
//! verified attestation document, the enclave opens and answers. Everything on the way (gateway, TLS
//! terminator, the host's operator) sees lengths and nothing else. The byte layout is in `SPEC.md`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod seal;
