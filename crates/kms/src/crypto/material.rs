//! Key material of every kind, as it is made, imported, sealed and held in memory.

use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

use super::RandomError;
use super::pair::{KeyPair, PairError};
use super::seal::Secret;
use crate::spec::{KeySpec, KeyUsage, MacAlgorithm};

/// The secret of one version of a key. All forms are wiped when dropped.
#[derive(Debug)]
pub enum KeyMaterial {
    /// 256 bits for symmetric encryption.
    Symmetric(SymmetricKey),
    /// A key for one HMAC algorithm.
    Mac(MacKey),
    /// A private key.
    Pair(Box<KeyPair>),
}

/// 256 bits, absent from debug output.
pub struct SymmetricKey(pub Secret);

/// An HMAC key, absent from debug output.
pub struct MacKey {
    algorithm: MacAlgorithm,
    bytes: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for SymmetricKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SymmetricKey").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MacKey")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Why there is no such material.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// A key pair.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// Not the length that the key spec wants.
    #[error("the key material has {found} bytes, {spec} wants {expected}")]
    Length {
        /// What it was for.
        spec: KeySpec,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        found: usize,
    },
}

impl KeyMaterial {
    /// Makes new material. RSA takes up to seconds: not for a thread that serves requests.
    ///
    /// # Errors
    /// If the system has no randomness or the library fails.
    pub fn generate(spec: KeySpec, usage: KeyUsage) -> Result<Self, MaterialError> {
        let Some(length) = secret_len(spec) else {
            return Ok(Self::Pair(Box::new(KeyPair::generate(spec, usage)?)));
        };
        let mut bytes = Zeroizing::new(vec![0; length]);
        super::random(&mut bytes)?;
        Self::stored(spec, usage, bytes)
    }

    /// Material from its form at rest.
    ///
    /// # Errors
    /// If the length is wrong. Key pairs are parsed when they are first used.
    pub fn stored(
        spec: KeySpec,
        usage: KeyUsage,
        bytes: Zeroizing<Vec<u8>>,
    ) -> Result<Self, MaterialError> {
        let Some(expected) = secret_len(spec) else {
            return Ok(Self::Pair(Box::new(KeyPair::stored(spec, usage, bytes))));
        };
        if bytes.len() != expected {
            return Err(MaterialError::Length {
                spec,
                expected,
                found: bytes.len(),
            });
        }
        if let Some(algorithm) = spec.mac() {
            return Ok(Self::Mac(MacKey { algorithm, bytes }));
        }
        let mut secret = Secret::default();
        secret.copy_from_slice(&bytes);
        Ok(Self::Symmetric(SymmetricKey(secret)))
    }

    /// Material that the caller brought: raw bytes for secrets, PKCS#8 for key pairs.
    ///
    /// # Errors
    /// If it is not of this spec.
    pub fn import(
        spec: KeySpec,
        usage: KeyUsage,
        bytes: Zeroizing<Vec<u8>>,
    ) -> Result<Self, MaterialError> {
        match secret_len(spec) {
            Some(_) => Self::stored(spec, usage, bytes),
            None => Ok(Self::Pair(Box::new(KeyPair::import(spec, usage, &bytes)?))),
        }
    }

    /// The form at rest, to be sealed.
    #[must_use]
    pub fn to_store(&self) -> &[u8] {
        match self {
            Self::Symmetric(key) => &*key.0,
            Self::Mac(key) => &key.bytes,
            Self::Pair(pair) => pair.private(),
        }
    }
}

impl MacKey {
    /// The HMAC of a message.
    #[must_use]
    pub fn generate(&self, message: &[u8]) -> Vec<u8> {
        let algorithm = match self.algorithm {
            MacAlgorithm::HmacSha224 => hmac::HMAC_SHA224,
            MacAlgorithm::HmacSha256 => hmac::HMAC_SHA256,
            MacAlgorithm::HmacSha384 => hmac::HMAC_SHA384,
            MacAlgorithm::HmacSha512 => hmac::HMAC_SHA512,
        };
        let key = hmac::Key::new(algorithm, &self.bytes);
        hmac::sign(&key, message).as_ref().to_vec()
    }

    /// Whether this is the HMAC of the message, in constant time.
    #[must_use]
    pub fn verify(&self, message: &[u8], mac: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(&self.generate(message), mac).is_ok()
    }
}

/// Bytes of a key that is a plain secret.
fn secret_len(spec: KeySpec) -> Option<usize> {
    match spec {
        KeySpec::SymmetricDefault | KeySpec::Hmac256 => Some(32),
        KeySpec::Hmac224 => Some(28),
        KeySpec::Hmac384 => Some(48),
        KeySpec::Hmac512 => Some(64),
        _ => None,
    }
}
