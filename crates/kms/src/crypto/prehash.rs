//! Ed25519ph (RFC 8032): Ed25519 over a SHA-512 digest that the caller made.

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use sha2::digest::consts::U64;
use sha2::digest::{FixedOutput, HashMarker, Output, OutputSizeUser, Update};

/// A finished digest where a hasher is wanted.
#[derive(Clone)]
struct Finished([u8; 64]);

impl Default for Finished {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Update for Finished {
    fn update(&mut self, _data: &[u8]) {}
}

impl OutputSizeUser for Finished {
    type OutputSize = U64;
}

impl FixedOutput for Finished {
    fn finalize_into(self, out: &mut Output<Self>) {
        out.copy_from_slice(&self.0);
    }
}

impl HashMarker for Finished {}

/// Signs a SHA-512 digest with the key that `seed` makes.
pub(super) fn sign(seed: &[u8], digest: &[u8; 64]) -> Option<Vec<u8>> {
    let key = SigningKey::from_bytes(seed.try_into().ok()?);
    let signature = key.sign_prehashed(Finished(*digest), None).ok()?;
    Some(signature.to_bytes().to_vec())
}

/// Whether the signature over a SHA-512 digest is the public key's.
pub(super) fn verify(public: &[u8], digest: &[u8; 64], signature: &[u8]) -> bool {
    let verified = || {
        let key = VerifyingKey::from_bytes(public.try_into().ok()?).ok()?;
        let signature = Signature::from_slice(signature).ok()?;
        key.verify_prehashed_strict(Finished(*digest), None, &signature)
            .ok()
    };
    verified().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.3.
    #[test]
    fn the_vector_of_the_rfc() {
        let seed = hex::decode("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
            .unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, b"abc");
        let digest: &[u8; 64] = digest.as_ref().try_into().unwrap();
        let signature = sign(&seed, digest).unwrap();
        assert_eq!(
            hex::encode(&signature),
            "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae4131f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
        );
        let key = SigningKey::from_bytes(seed.as_slice().try_into().unwrap()).verifying_key();
        assert!(verify(key.as_bytes(), digest, &signature));
        assert!(!verify(key.as_bytes(), &[0; 64], &signature));
        assert!(!verify(key.as_bytes(), digest, &signature[1..]));
    }
}
