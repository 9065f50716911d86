//! `CiphertextForRecipient`: CMS EnvelopedData in exactly AWS's shape.
//!
//! ```text
//! SEQUENCE (indefinite)                       ContentInfo
//!   OID envelopedData
//!   [0] (indefinite)
//!     SEQUENCE (indefinite)                   EnvelopedData
//!       INTEGER 2
//!       SET                                   one KeyTransRecipientInfo
//!         SEQUENCE
//!           INTEGER 2
//!           [0] 32 bytes                      SHA-256 of the recipient's SubjectPublicKeyInfo
//!           SEQUENCE OID RSAES-OAEP, SHA-256, MGF1 with SHA-256
//!           OCTET STRING                      the content key, encrypted
//!       SEQUENCE (indefinite)                 EncryptedContentInfo
//!         OID data
//!         SEQUENCE OID aes256-CBC, OCTET STRING iv
//!         [0] (indefinite)
//!           OCTET STRING …                    ciphertext in pieces
//! ```
//!
//! The shape has no authentication: whoever knows the public key can make one. That is AWS's format; the
//! connection between enclave and KMS must therefore be TLS that ends in the enclave.

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::digest;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use x509_cert::spki::SubjectPublicKeyInfoRef;
use zeroize::Zeroizing;

use super::{RandomError, random_array};

/// Largest piece of content in one OCTET STRING: AWS's answers have the shape that Bouncy Castle writes, whose
/// pieces are of 1000 bytes.
const PIECE: usize = 1000;

const OID_ENVELOPED_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03";
const OID_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
const OID_RSAES_OAEP: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07";
const OID_MGF1: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08";
const OID_SHA256: &[u8] = b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01";
const OID_AES256_CBC: &[u8] = b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x01\x2a";
const NULL: &[u8] = b"\x05\x00";
const VERSION_2: &[u8] = b"\x02\x01\x02";
const END_OF_CONTENTS: &[u8] = b"\x00\x00";

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const CONTEXT_0: u8 = 0x80;
const CONTEXT_0_CONSTRUCTED: u8 = 0xa0;
const CONTEXT_1_CONSTRUCTED: u8 = 0xa1;

/// An enclave's public key, ready to encrypt to.
pub struct Recipient {
    key: OaepPublicEncryptingKey,
    key_id: [u8; 32],
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recipient")
            .field("key_id", &hex::encode(self.key_id))
            .finish_non_exhaustive()
    }
}

/// A public key that cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the public key is not an RSA key of 2048 bits or more in DER SubjectPublicKeyInfo form")]
pub struct RecipientKeyError;

/// Enveloping failed.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// RSA or AES refused.
    #[error("{0} failed")]
    Cipher(&'static str),
}

impl Recipient {
    /// Reads a recipient's SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// If it is not RSA with at least 2048 bits.
    pub fn from_spki(der: &[u8]) -> Result<Self, RecipientKeyError> {
        // aws-lc takes 2048 to 8192 bits, but does not mind what follows the key.
        SubjectPublicKeyInfoRef::try_from(der).map_err(|_| RecipientKeyError)?;
        let key = PublicEncryptingKey::from_der(der).map_err(|_| RecipientKeyError)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_| RecipientKeyError)?;
        let mut key_id = [0; 32];
        key_id.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
        Ok(Self { key, key_id })
    }

    /// Encrypts `plaintext` so that only the recipient reads it.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn envelope(&self, plaintext: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let content_key = Zeroizing::new(random_array::<32>()?);
        let iv = random_array::<16>()?;
        let content = encrypt_content(&content_key, iv, plaintext)?;
        let mut encrypted_key = vec![0; self.key.ciphertext_size()];
        let length = self
            .key
            .encrypt(
                &OAEP_SHA256_MGF1SHA256,
                &*content_key,
                &mut encrypted_key,
                None,
            )
            .map_err(|_| EnvelopeError::Cipher("RSAES-OAEP"))?
            .len();
        encrypted_key.truncate(length);
        Ok(self.encode(&encrypted_key, &iv, &content))
    }

    fn encode(&self, encrypted_key: &[u8], iv: &[u8; 16], content: &[u8]) -> Vec<u8> {
        let pieces: Vec<u8> = content
            .chunks(PIECE)
            .flat_map(|piece| definite(OCTET_STRING, &[piece]))
            .collect();
        let algorithm = definite(SEQUENCE, &[OID_AES256_CBC, &definite(OCTET_STRING, &[iv])]);
        let encrypted_content_info = indefinite(
            SEQUENCE,
            &[
                OID_DATA,
                &algorithm,
                &indefinite(CONTEXT_0_CONSTRUCTED, &[&pieces]),
            ],
        );
        let recipient_info = definite(
            SEQUENCE,
            &[
                VERSION_2,
                &definite(CONTEXT_0, &[&self.key_id]),
                &oaep_algorithm(),
                &definite(OCTET_STRING, &[encrypted_key]),
            ],
        );
        let enveloped_data = indefinite(
            SEQUENCE,
            &[
                VERSION_2,
                &definite(SET, &[&recipient_info]),
                &encrypted_content_info,
            ],
        );
        indefinite(
            SEQUENCE,
            &[
                OID_ENVELOPED_DATA,
                &indefinite(CONTEXT_0_CONSTRUCTED, &[&enveloped_data]),
            ],
        )
    }
}

fn oaep_algorithm() -> Vec<u8> {
    let sha256 = definite(SEQUENCE, &[OID_SHA256, NULL]);
    let mgf1 = definite(SEQUENCE, &[OID_MGF1, &sha256]);
    let parameters = definite(
        SEQUENCE,
        &[
            &definite(CONTEXT_0_CONSTRUCTED, &[&sha256]),
            &definite(CONTEXT_1_CONSTRUCTED, &[&mgf1]),
        ],
    );
    definite(SEQUENCE, &[OID_RSAES_OAEP, &parameters])
}

fn encrypt_content(
    key: &[u8; 32],
    iv: [u8; 16],
    plaintext: &[u8],
) -> Result<Vec<u8>, EnvelopeError> {
    let failed = |_| EnvelopeError::Cipher("AES-256-CBC");
    let key = UnboundCipherKey::new(&AES_256, key).map_err(failed)?;
    let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).map_err(failed)?;
    let mut buffer = plaintext.to_vec();
    let iv = EncryptionContext::Iv128(FixedLength::from(iv));
    key.less_safe_encrypt(&mut buffer, iv).map_err(failed)?;
    Ok(buffer)
}

fn definite(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let significant: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            // usize has at most eight bytes.
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            out.extend(significant);
        }
    }
    out.extend(parts.iter().copied().flatten());
    out
}

fn indefinite(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![tag, 0x80];
    out.extend(parts.iter().copied().flatten());
    out.extend(END_OF_CONTENTS);
    out
}

#[cfg(test)]
#[path = "cms_tests.rs"]
mod tests;
