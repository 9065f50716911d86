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

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
    use proptest::prelude::*;

    use super::*;

    fn root() -> (tempfile::TempDir, RootKey) {
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
        (directory, root)
    }

    fn token(algorithm: WrappingAlgorithm) -> Token {
        Token::generate(algorithm, KeySpec::Rsa2048, 1_000).unwrap()
    }

    fn encrypt(token: &Token, plaintext: &[u8]) -> Vec<u8> {
        let key = PublicEncryptingKey::from_der(&token.public_der().unwrap()).unwrap();
        let key = OaepPublicEncryptingKey::new(key).unwrap();
        let mut out = vec![0; key.ciphertext_size()];
        let encrypted = key.encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut out, None);
        encrypted.unwrap().to_vec()
    }

    #[test]
    fn a_token_is_for_one_key_and_a_time() {
        let (_directory, root) = root();
        let made = token(WrappingAlgorithm::RsaesOaepSha256);
        let wrapped = encrypt(&made, b"material");
        let sealed = made.seal(&root, "k").unwrap();
        let opened = Token::open(&root, "k", &sealed, 999).unwrap();
        assert_eq!(&**opened.unwrap(&wrapped).unwrap(), b"material");
        let refused = |key, sealed: &[u8], now| Token::open(&root, key, sealed, now).map(drop);
        assert_eq!(refused("k", &sealed, 1_000), Err(TokenError::Expired));
        assert_eq!(refused("j", &sealed, 0), Err(TokenError::Invalid));
        for at in [0, 20, sealed.len() - 1] {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(refused("k", &damaged, 0), Err(TokenError::Invalid));
        }
        // What the root key sealed for another purpose is no token.
        let other = root.seal(b"enclos-kms key material k|1|a", b"x").unwrap();
        assert_eq!(refused("k", &other, 0), Err(TokenError::Invalid));
    }

    #[test]
    fn a_wrapped_aes_key_of_a_wrong_length_is_refused() {
        let made = token(WrappingAlgorithm::RsaAesKeyWrapSha256);
        for length in [0, 15, 24, 33] {
            let wrapped = [encrypt(&made, &vec![1; length]), vec![0; 40]].concat();
            assert_eq!(made.unwrap(&wrapped).map(drop), Err(PairError::Ciphertext));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_unwraps_by_chance(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            static TOKENS: std::sync::LazyLock<Vec<Token>> = std::sync::LazyLock::new(|| {
                [WrappingAlgorithm::RsaesOaepSha1, WrappingAlgorithm::RsaAesKeyWrapSha256].map(token).into()
            });
            for token in &*TOKENS {
                prop_assert!(token.unwrap(&bytes).is_err());
            }
        }
    }
}
