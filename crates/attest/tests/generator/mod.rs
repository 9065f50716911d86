//! Makes the vectors that are ours: deterministic keys, deterministic signatures (RFC 6979), fixed times. Nothing here
//! uses the code under test: certificates and documents are written byte by byte.

pub mod certificates;
pub mod disagreements;
pub mod documents;
pub mod vectors;

use p384::ecdsa::signature::Signer as _;
use p384::ecdsa::{Signature, SigningKey};

/// 2026-11-22T00:00:00Z, in milliseconds.
pub const NOW: u64 = 1_795_305_600_000;

/// The same in seconds.
pub const NOW_SECS: u64 = NOW / 1000;

/// A key that everybody can make: nothing but a vector may be signed with it.
#[derive(Clone)]
pub struct Key(SigningKey);

impl Key {
    pub fn new(seed: u8) -> Self {
        Self(SigningKey::from_slice(&[seed; 48]).unwrap())
    }

    /// Uncompressed.
    pub fn point(&self) -> Vec<u8> {
        self.0
            .verifying_key()
            .to_sec1_point(false)
            .as_bytes()
            .to_vec()
    }

    pub fn compressed_point(&self) -> Vec<u8> {
        self.0
            .verifying_key()
            .to_sec1_point(true)
            .as_bytes()
            .to_vec()
    }

    /// r ‖ s.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.0.sign(message);
        signature.to_bytes().to_vec()
    }

    pub fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.0.sign(message);
        signature.to_der().as_bytes().to_vec()
    }
}
