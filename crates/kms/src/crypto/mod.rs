//! Cryptography of the KMS: what seals at rest, what ciphertexts look like, what goes to enclaves.

pub mod backup;
pub mod blob;
pub mod cms;
mod external_mu;
pub mod material;
pub mod pair;
pub mod passphrase;
mod prehash;
pub mod root_file;
pub mod seal;
mod stream;
mod token_lock;
pub mod wrapping;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// The system's random source failed. Nothing secure can be done without it.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator failed")]
pub struct RandomError;

/// Fills `out` with random bytes.
///
/// # Errors
/// If the system has none to give.
pub fn random(out: &mut [u8]) -> Result<(), RandomError> {
    SystemRandom::new().fill(out).map_err(|_| RandomError)
}

/// A random array.
pub(crate) fn random_array<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    random(&mut bytes)?;
    Ok(bytes)
}

/// A random (version 4) UUID.
pub(crate) fn uuid() -> Result<String, RandomError> {
    let mut bytes: [u8; 16] = random_array()?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
    Ok(parts.join("-"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn uuids_have_their_form() {
        let id = super::uuid().unwrap();
        assert!(crate::arn::is_key_id(&id), "{id}");
        assert_eq!(id.as_bytes()[14], b'4');
        assert_ne!(id, super::uuid().unwrap());
    }
}
