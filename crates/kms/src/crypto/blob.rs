//! The ciphertext that callers keep: `CiphertextBlob` of symmetric keys.
//!
//! ```text
//! "ENK" 01 | key id 16 or mrk | material id 32 | salt 16 | nonce 12 | ciphertext | tag 16
//! ```
//!
//! The cipher is AES-256-GCM under a key of its own for every blob, HKDF-SHA-256 of the key material with
//! the random salt: a master key then has no practical limit on how often it encrypts. Associated data are
//! everything before the nonce and the encryption context, sorted and length-prefixed so that no two
//! contexts share an encoding.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use super::seal::Secret;
use super::{RandomError, random_array};

/// Format mark and version.
const MAGIC: [u8; 4] = *b"ENK\x01";
const KEY_ID_LEN: usize = 16;
const MATERIAL_ID_LEN: usize = 32;
const SALT_LEN: usize = 16;
const HEADER_LEN: usize = MAGIC.len() + 1 + KEY_ID_LEN + MATERIAL_ID_LEN + SALT_LEN;
const TAG_LEN: usize = 16;

/// Bytes that a blob is longer than its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TAG_LEN;

/// Names one version of a key's material: 64 hex digits in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaterialId(pub [u8; MATERIAL_ID_LEN]);

impl std::fmt::Display for MaterialId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a blob says about itself, before anything is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The key that encrypted it.
    pub key_id: String,
    /// Which material of that key.
    pub material: MaterialId,
}

/// A blob that does not open. AWS does not say why, and neither do we: it would be an oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a ciphertext of this KMS, damaged, or the encryption context differs")]
pub struct InvalidBlob;

/// Encryption failed.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The key id has no binary form, or the cipher refused.
    #[error("cannot encrypt under key {0}")]
    Cipher(String),
}

/// Encrypts under a key's current material.
///
/// # Errors
/// If the system has no randomness.
pub fn encrypt(
    header: &Header,
    material: &Secret,
    context: &BTreeMap<String, String>,
    plaintext: &[u8],
) -> Result<Vec<u8>, EncryptError> {
    let refused = || EncryptError::Cipher(header.key_id.clone());
    let mut blob = Vec::with_capacity(OVERHEAD + plaintext.len());
    blob.extend_from_slice(&MAGIC);
    let (kind, id) = pack_key_id(&header.key_id).ok_or_else(refused)?;
    blob.push(kind);
    blob.extend_from_slice(&id);
    blob.extend_from_slice(&header.material.0);
    let salt: [u8; SALT_LEN] = random_array()?;
    blob.extend_from_slice(&salt);
    let aad = associated_data(&blob, context);
    let key = blob_key(material, &salt).ok_or_else(refused)?;
    let nonce: [u8; NONCE_LEN] = random_array()?;
    blob.extend_from_slice(&nonce);
    let start = blob.len();
    blob.extend_from_slice(plaintext);
    let (_, body) = blob.split_at_mut(start);
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), body)
        .map_err(|_| refused())?;
    blob.extend_from_slice(tag.as_ref());
    Ok(blob)
}

/// Reads which key a blob belongs to.
///
/// # Errors
/// If it is no blob of this format.
pub fn header(blob: &[u8]) -> Result<Header, InvalidBlob> {
    let rest = blob.strip_prefix(&MAGIC).ok_or(InvalidBlob)?;
    if rest.len() < OVERHEAD - MAGIC.len() {
        return Err(InvalidBlob);
    }
    let (kind, rest) = rest.split_first().ok_or(InvalidBlob)?;
    let (id, rest) = rest.split_first_chunk::<KEY_ID_LEN>().ok_or(InvalidBlob)?;
    let material = rest.first_chunk::<MATERIAL_ID_LEN>().ok_or(InvalidBlob)?;
    let key_id = unpack_key_id(*kind, id).ok_or(InvalidBlob)?;
    Ok(Header {
        key_id,
        material: MaterialId(*material),
    })
}

/// Opens a blob under the material that its [`header`] names.
///
/// # Errors
/// If any bit or the encryption context differs.
pub fn decrypt(
    blob: &[u8],
    material: &Secret,
    context: &BTreeMap<String, String>,
) -> Result<Zeroizing<Vec<u8>>, InvalidBlob> {
    let (head, rest) = blob.split_at_checked(HEADER_LEN).ok_or(InvalidBlob)?;
    let salt = head.last_chunk::<SALT_LEN>().ok_or(InvalidBlob)?;
    let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(InvalidBlob)?;
    let key = blob_key(material, salt).ok_or(InvalidBlob)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| InvalidBlob)?;
    let mut buffer = Zeroizing::new(body.to_vec());
    let aad = associated_data(head, context);
    let length = key
        .open_in_place(nonce, Aad::from(&aad), &mut buffer)
        .map_err(|_| InvalidBlob)?
        .len();
    buffer.truncate(length);
    Ok(buffer)
}

struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        32
    }
}

fn blob_key(material: &Secret, salt: &[u8]) -> Option<LessSafeKey> {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&**material);
    let mut bytes = Zeroizing::new([0; 32]);
    prk.expand(&[b"enclos-kms blob v1"], KeyLength)
        .ok()?
        .fill(&mut *bytes)
        .ok()?;
    Some(LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, &*bytes).ok()?,
    ))
}

fn associated_data(head: &[u8], context: &BTreeMap<String, String>) -> Vec<u8> {
    let mut aad = head.to_vec();
    for (key, value) in context {
        for text in [key, value] {
            // A request is far smaller than 4 GiB.
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            aad.extend_from_slice(&length.to_be_bytes());
            aad.extend_from_slice(text.as_bytes());
        }
    }
    aad
}

/// Kind 0 is a UUID, kind 1 `mrk-` and 32 hex digits; both are 16 bytes.
fn pack_key_id(id: &str) -> Option<(u8, [u8; KEY_ID_LEN])> {
    let (kind, digits) = match id.strip_prefix("mrk-") {
        Some(digits) => (1, digits.to_owned()),
        None => (0, id.replace('-', "")),
    };
    let mut bytes = [0; KEY_ID_LEN];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some((kind, bytes))
}

fn unpack_key_id(kind: u8, bytes: &[u8; KEY_ID_LEN]) -> Option<String> {
    let digits = hex::encode(bytes);
    match kind {
        0 => {
            let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| digits.get(range));
            let parts: Option<Vec<&str>> = parts.into_iter().collect();
            Some(parts?.join("-"))
        }
        1 => Some(format!("mrk-{digits}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    fn context(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn sealed(plaintext: &[u8], pairs: &[(&str, &str)]) -> (Secret, Vec<u8>) {
        let material = Zeroizing::new([7; 32]);
        let header = Header {
            key_id: ID.to_owned(),
            material: MaterialId([9; 32]),
        };
        let blob = encrypt(&header, &material, &context(pairs), plaintext).unwrap();
        (material, blob)
    }

    #[test]
    fn round_trip() {
        let (material, blob) = sealed(b"hello", &[("a", "1"), ("b", "2")]);
        assert_eq!(blob.len(), OVERHEAD + 5);
        let read = header(&blob).unwrap();
        assert_eq!(
            (read.key_id.as_str(), read.material),
            (ID, MaterialId([9; 32]))
        );
        let opened = decrypt(&blob, &material, &context(&[("b", "2"), ("a", "1")])).unwrap();
        assert_eq!(&**opened, b"hello");
    }

    #[test]
    fn two_blobs_of_one_plaintext_differ() {
        assert_ne!(sealed(b"x", &[]).1, sealed(b"x", &[]).1);
    }

    #[test]
    fn every_bit_and_the_context_count() {
        let (material, blob) = sealed(b"hello", &[("a", "1")]);
        for at in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x10;
            let opened = header(&damaged)
                .and_then(|_| decrypt(&damaged, &material, &context(&[("a", "1")])));
            assert_eq!(opened.map(|_| ()), Err(InvalidBlob), "{at}");
        }
        for other in [
            &[][..],
            &[("a", "2")],
            &[("A", "1")],
            &[("a", "1"), ("b", "")],
            &[("a1", "")],
        ] {
            assert!(
                decrypt(&blob, &material, &context(other)).is_err(),
                "{other:?}"
            );
        }
        for length in 0..blob.len() {
            let cut = &blob[..length];
            assert!(
                header(cut).is_err() || decrypt(cut, &material, &context(&[("a", "1")])).is_err()
            );
        }
    }

    #[test]
    fn multi_region_ids_have_a_form() {
        let id = "mrk-1234abcd12ab34cd56ef1234567890ab";
        let header_in = Header {
            key_id: id.to_owned(),
            material: MaterialId([1; 32]),
        };
        let blob = encrypt(&header_in, &Zeroizing::new([1; 32]), &BTreeMap::new(), b"").unwrap();
        assert_eq!(header(&blob).unwrap(), header_in);
    }
}
