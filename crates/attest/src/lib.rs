//! Attestation: registers, documents, certificates.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod pcr;

pub use pcr::{PCR_COUNT, PCR_LEN, PcrError, PcrIndex, PcrValue};
