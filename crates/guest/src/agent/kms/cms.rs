//! Opens `CiphertextForRecipient`: CMS EnvelopedData for one RSA key, as KMS makes it.
//!
//! ```text
//! ContentInfo  envelopedData
//!   EnvelopedData  version, one KeyTransRecipientInfo { RSAES-OAEP with SHA-256 and MGF1-SHA-256, key }
//!                  EncryptedContentInfo { aes256-CBC with IV, content in one piece or several }
//! ```
//!
//! KMS writes BER with indefinite lengths; DER is read too. Who the recipient is named to be is ignored: there is one
//! key. The envelope has no integrity, anyone with the public key can make one: it counts only because it came
//! over a connection to the KMS that ends in this process. All failures to decrypt look the same.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::OAEP_SHA256_MGF1SHA256;
use zeroize::Zeroizing;

use super::ber::{self, BerError, CONSTRUCTED, CONTEXT_0, Element, Reader};
use super::keys::RecipientKey;

// Object identifiers, encoded.
pub(crate) const ENVELOPED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
pub(crate) const DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
pub(crate) const RSAES_OAEP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07];
pub(crate) const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
pub(crate) const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
pub(crate) const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];

/// Length of the content-encryption key.
const KEY_LEN: usize = 32;

/// Why an envelope cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CmsError {
    /// The bytes are no BER, or not of the expected structure.
    #[error("CiphertextForRecipient is no EnvelopedData")]
    Structure(#[from] BerError),
    /// An algorithm or type that KMS does not use.
    #[error("CiphertextForRecipient uses another {0} than KMS does")]
    Algorithm(&'static str),
    /// Not exactly one recipient.
    #[error("CiphertextForRecipient names no recipient, or several")]
    Recipients,
    /// Decryption failed, for whatever reason.
    #[error("CiphertextForRecipient cannot be decrypted with this request's key")]
    Decrypt,
}

impl From<Unspecified> for CmsError {
    fn from(_: Unspecified) -> Self {
        Self::Decrypt
    }
}

/// What an envelope holds.
#[derive(Debug, PartialEq, Eq)]
struct Envelope {
    key: Vec<u8>,
    iv: [u8; 16],
    content: Vec<u8>,
}

/// Opens an envelope.
///
/// # Errors
/// See [`CmsError`].
pub fn open(bytes: &[u8], recipient: &RecipientKey) -> Result<Zeroizing<Vec<u8>>, CmsError> {
    let envelope = parse(bytes)?;
    let private = recipient.private();
    let mut room = Zeroizing::new(vec![0; private.min_output_size()]);
    let key = private.decrypt(&OAEP_SHA256_MGF1SHA256, &envelope.key, &mut room, None)?;
    if key.len() != KEY_LEN {
        return Err(CmsError::Decrypt);
    }
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_256, key)?)?;
    let mut content = Zeroizing::new(envelope.content);
    let iv = DecryptionContext::Iv128(FixedLength::from(envelope.iv));
    let len = key.decrypt(&mut content, iv)?.len();
    content.truncate(len);
    Ok(content)
}

fn parse(bytes: &[u8]) -> Result<Envelope, CmsError> {
    let mut outer = Reader::new(bytes);
    let mut info = outer.expect(ber::SEQUENCE)?.reader();
    outer.end()?;
    known(info.expect(ber::OID)?, ENVELOPED_DATA, "content type")?;
    let mut wrapper = info.expect(CONTEXT_0 | CONSTRUCTED)?.reader();
    info.end()?;
    let mut enveloped = wrapper.expect(ber::SEQUENCE)?.reader();
    wrapper.end()?;
    enveloped.expect(ber::INTEGER)?;
    let key = encrypted_key(enveloped.expect(ber::SET)?)?;
    let (iv, content) = encrypted_content(enveloped.expect(ber::SEQUENCE)?)?;
    enveloped.end()?;
    Ok(Envelope { key, iv, content })
}

fn known(element: Element<'_>, expected: &[u8], what: &'static str) -> Result<(), CmsError> {
    if element.content == expected {
        Ok(())
    } else {
        Err(CmsError::Algorithm(what))
    }
}

/// The key in the one KeyTransRecipientInfo.
fn encrypted_key(recipients: Element<'_>) -> Result<Vec<u8>, CmsError> {
    let mut recipients = recipients.reader();
    let recipient = recipients.element()?.ok_or(CmsError::Recipients)?;
    if recipient.tag != ber::SEQUENCE || recipients.element()?.is_some() {
        return Err(CmsError::Recipients);
    }
    let mut recipient = recipient.reader();
    recipient.expect(ber::INTEGER)?;
    recipient.element()?.ok_or(BerError::Truncated)?; // who it is for
    oaep(recipient.expect(ber::SEQUENCE)?)?;
    let key = recipient.element()?.ok_or(BerError::Truncated)?;
    recipient.end()?;
    Ok(ber::string(key, ber::OCTET_STRING)?)
}

/// RSAES-OAEP with SHA-256 for label and mask, and the empty label.
fn oaep(algorithm: Element<'_>) -> Result<(), CmsError> {
    let mut algorithm = algorithm.reader();
    known(algorithm.expect(ber::OID)?, RSAES_OAEP, "key encryption")?;
    let mut parameters = algorithm.expect(ber::SEQUENCE)?.reader();
    algorithm.end()?;
    let hash = parameters.expect(CONTEXT_0 | CONSTRUCTED)?;
    sha256(hash.reader().expect(ber::SEQUENCE)?)?;
    let mask = parameters.expect(CONTEXT_0 | CONSTRUCTED | 1)?;
    let mut mask = mask.reader().expect(ber::SEQUENCE)?.reader();
    known(mask.expect(ber::OID)?, MGF1, "mask generation")?;
    sha256(mask.expect(ber::SEQUENCE)?)?;
    if parameters.element()?.is_some() {
        return Err(CmsError::Algorithm("label"));
    }
    Ok(())
}

fn sha256(algorithm: Element<'_>) -> Result<(), CmsError> {
    known(algorithm.reader().expect(ber::OID)?, SHA256, "hash")
}

/// IV and bytes of the EncryptedContentInfo.
fn encrypted_content(info: Element<'_>) -> Result<([u8; 16], Vec<u8>), CmsError> {
    let mut info = info.reader();
    known(info.expect(ber::OID)?, DATA, "inner content type")?;
    let mut algorithm = info.expect(ber::SEQUENCE)?.reader();
    known(
        algorithm.expect(ber::OID)?,
        AES_256_CBC,
        "content encryption",
    )?;
    let iv = algorithm.expect(ber::OCTET_STRING)?;
    let iv = iv
        .content
        .try_into()
        .map_err(|_| CmsError::Algorithm("length of IV"))?;
    let content = info.element()?.ok_or(BerError::Truncated)?;
    info.end()?;
    Ok((iv, ber::string(content, CONTEXT_0)?))
}

#[cfg(test)]
#[path = "cms_tests.rs"]
mod tests;
