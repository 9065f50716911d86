//! The cipher suite and the two key derivations of format 1.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{DocumentHash, SealError};

pub(super) type Kem = hpke::kem::X25519HkdfSha256;
pub(super) type Kdf = hpke::kdf::HkdfSha256;
pub(super) type Cipher = hpke::aead::AesGcm256;
pub(super) type PublicKey = <Kem as hpke::Kem>::PublicKey;
pub(super) type PrivateKey = <Kem as hpke::Kem>::PrivateKey;
pub(super) type EncappedKey = <Kem as hpke::Kem>::EncappedKey;

/// `SubjectPublicKeyInfo` of an X25519 key up to the 32 key bytes: SEQUENCE, algorithm 1.3.101.110, BIT
/// STRING.
pub(super) const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00,
];

const REQUEST_LABEL: &[u8] = b"enclos-seal/v1/request\0";
const REPLY_LABEL: &[u8] = b"enclos-seal/v1/reply";

/// HPKE `info` of a request: what the two sides must agree on for the keys to be equal.
pub(super) fn request_info(document: DocumentHash) -> Vec<u8> {
    [REQUEST_LABEL, &document.0].concat()
}

/// The secret that a request's HPKE context exports, from which its reply is encrypted.
pub(super) struct ReplySecret {
    exported: Zeroizing<[u8; 32]>,
    encapsulated: [u8; 32],
}

impl ReplySecret {
    pub(super) fn export(
        encapsulated: [u8; 32],
        export: impl FnOnce(&[u8], &mut [u8]) -> Result<(), hpke::HpkeError>,
    ) -> Result<Self, hpke::HpkeError> {
        let mut exported = Zeroizing::new([0; 32]);
        export(REPLY_LABEL, exported.as_mut())?;
        Ok(Self {
            exported,
            encapsulated,
        })
    }

    /// The reply's nonce goes into the derivation (as in RFC 9458, section 4.4), so that even two replies to one
    /// request would never share a key and nonce.
    fn cipher(&self, reply_nonce: &[u8; 32]) -> Option<(Aes256Gcm, [u8; 12])> {
        let salt = [self.encapsulated, *reply_nonce].concat();
        let derive = Hkdf::<Sha256>::new(Some(&salt), self.exported.as_ref());
        let (mut key, mut nonce) = (Zeroizing::new([0; 32]), [0; 12]);
        derive.expand(b"key", key.as_mut()).ok()?;
        derive.expand(b"nonce", &mut nonce).ok()?;
        Some((Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key)), nonce))
    }

    pub(super) fn seal(&self, nonce: &[u8; 32], aad: &[u8], msg: &[u8]) -> Option<Vec<u8>> {
        let (cipher, iv) = self.cipher(nonce)?;
        cipher.encrypt(&Nonce::from(iv), Payload { msg, aad }).ok()
    }

    pub(super) fn open(&self, nonce: &[u8; 32], aad: &[u8], msg: &[u8]) -> Option<Vec<u8>> {
        let (cipher, iv) = self.cipher(nonce)?;
        cipher.decrypt(&Nonce::from(iv), Payload { msg, aad }).ok()
    }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(SealError::Entropy)?;
    Ok(bytes)
}
