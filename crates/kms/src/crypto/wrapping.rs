//! Wrapping keys for the import of key material, and the tokens that carry them.
//!
//! The token is the wrapping key's private half, sealed under the root key for one key and a time: the server keeps
//! nothing between GetParametersForImport and ImportKeyMaterial.
//!
//! ```text
//! sealed( algorithm 1 | valid to, milliseconds since 1970, 8 | PKCS#8 )
//! ```

use aws_lc_rs::key_wrap::{AES_128, AES_256, AesKek, KeyWrapPadded as _};
use zeroize::Zeroizing;

use super::pair::{KeyPair, PairError};
use super::seal::{RootKey, SealError};
use crate::spec::{EncryptionAlgorithm, KeySpec, KeyUsage, WrappingAlgorithm};

/// A wrapping key and what it is for.
#[derive(Debug)]
pub struct Token {
    algorithm: WrappingAlgorithm,
    valid_to_ms: i64,
    pair: KeyPair,
}

/// Why a token cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("the import token has expired")]
    Expired,
    /// It is none of this key.
    #[error("not an import token for this key")]
    Invalid,
}

/// Bytes before the private key.
const HEAD_LEN: usize = 9;

impl Token {
    /// Makes a wrapping key. Takes up to seconds.
    ///
    /// # Errors
    /// If the library fails.
    pub fn generate(
        algorithm: WrappingAlgorithm,
        spec: KeySpec,
        valid_to_ms: i64,
    ) -> Result<Self, PairError> {
        Ok(Self {
            algorithm,
            valid_to_ms,
            pair: KeyPair::generate(spec, KeyUsage::EncryptDecrypt)?,
        })
    }

    /// The public half, DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// If the library fails.
    pub fn public_der(&self) -> Result<Vec<u8>, PairError> {
        self.pair.public_der()
    }

    /// Seals the token for one key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn seal(&self, root: &RootKey, key: &str) -> Result<Vec<u8>, SealError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_LEN + self.pair.private().len()));
        bytes.push(match self.algorithm {
            WrappingAlgorithm::RsaesOaepSha1 => 1,
            WrappingAlgorithm::RsaesOaepSha256 => 2,
            WrappingAlgorithm::RsaAesKeyWrapSha1 => 3,
            WrappingAlgorithm::RsaAesKeyWrapSha256 => 4,
            WrappingAlgorithm::RsaesPkcs1V15 | WrappingAlgorithm::Sm2Pke => 0,
        });
        bytes.extend_from_slice(&self.valid_to_ms.to_be_bytes());
        bytes.extend_from_slice(self.pair.private());
        root.seal(&label(key), &bytes)
    }

    /// Opens a token of that key.
    ///
    /// # Errors
    /// If it is another key's, damaged, or its time is over.
    pub fn open(root: &RootKey, key: &str, sealed: &[u8], now_ms: i64) -> Result<Self, TokenError> {
        let bytes = root
            .unseal(&label(key), sealed)
            .map_err(|_| TokenError::Invalid)?;
        let (head, private) = bytes
            .split_first_chunk::<HEAD_LEN>()
            .ok_or(TokenError::Invalid)?;
        let [algorithm, valid_to @ ..] = head;
        let valid_to_ms = i64::from_be_bytes(*valid_to);
        if valid_to_ms <= now_ms {
            return Err(TokenError::Expired);
        }
        let algorithm = match algorithm {
            1 => WrappingAlgorithm::RsaesOaepSha1,
            2 => WrappingAlgorithm::RsaesOaepSha256,
            3 => WrappingAlgorithm::RsaAesKeyWrapSha1,
            4 => WrappingAlgorithm::RsaAesKeyWrapSha256,
            _ => return Err(TokenError::Invalid),
        };
        let private = Zeroizing::new(private.to_vec());
        // Any RSA size: the pair takes it from the private key.
        let pair = KeyPair::stored(KeySpec::Rsa4096, KeyUsage::EncryptDecrypt, private);
        Ok(Self {
            algorithm,
            valid_to_ms,
            pair,
        })
    }

    /// Opens key material that was wrapped for this token.
    ///
    /// # Errors
    /// If it was wrapped for another, in another way, or is damaged.
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, PairError> {
        use WrappingAlgorithm as A;
        let oaep = match self.algorithm {
            A::RsaesOaepSha1 | A::RsaAesKeyWrapSha1 => EncryptionAlgorithm::RsaesOaepSha1,
            _ => EncryptionAlgorithm::RsaesOaepSha256,
        };
        if matches!(self.algorithm, A::RsaesOaepSha1 | A::RsaesOaepSha256) {
            return self.pair.decrypt(oaep, wrapped);
        }
        // The AES key, encrypted with RSA; then the material, wrapped with AES (RFC 5649).
        let (key, wrapped) = wrapped
            .split_at_checked(self.pair.modulus_len()?)
            .ok_or(PairError::Ciphertext)?;
        let key = self.pair.decrypt(oaep, key)?;
        let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
        let key = AesKek::new(algorithm, &key).map_err(|_| PairError::Ciphertext)?;
        let mut bytes = Zeroizing::new(vec![0; wrapped.len()]);
        let length = key
            .unwrap_with_padding(wrapped, &mut bytes)
            .map_err(|_| PairError::Ciphertext)?
            .len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

fn label(key: &str) -> Vec<u8> {
    format!("enclos-kms import token {key}").into_bytes()
}
