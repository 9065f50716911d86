//! The three things that verifying takes, by the library that the crate is built with.
//!
//! aws-lc is the fast one, and the one with formally verified parts; it needs a C compiler for its target. Where that is
//! none, WebAssembly, feature `rustcrypto` verifies in pure Rust. Both pass the same vectors. With both features aws-lc is used.

#[cfg(feature = "aws-lc")]
pub(crate) use aws_lc::{PublicKey, sha256, sha384};
#[cfg(not(feature = "aws-lc"))]
pub(crate) use rustcrypto::{PublicKey, sha256, sha384};

#[cfg(not(any(feature = "aws-lc", feature = "rustcrypto")))]
compile_error!("enclos-attest needs one of its features aws-lc and rustcrypto");

/// A signature that does not hold, or a point that is not on the curve.
#[derive(Debug)]
pub(crate) struct Invalid;

#[cfg(feature = "aws-lc")]
mod aws_lc {
    use aws_lc_rs::digest::{Algorithm, Context, SHA256, SHA384};
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, ParsedPublicKey};

    use super::Invalid;

    /// A key of P-384.
    #[derive(Debug, Clone)]
    pub(crate) struct PublicKey(ParsedPublicKey);

    impl PublicKey {
        /// The key of an uncompressed point.
        pub(crate) fn of_point(point: &[u8]) -> Result<Self, Invalid> {
            let key = ParsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point);
            key.map(Self).map_err(|_| Invalid)
        }

        /// Checks ecdsa-with-SHA384, DER.
        pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Invalid> {
            let checked = self.0.verify_sig(message, signature);
            checked.map_err(|_| Invalid)
        }
    }

    pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
        hash(&SHA256, &[bytes])
    }

    /// Of parts, one after the other.
    pub(crate) fn sha384(parts: &[&[u8]]) -> [u8; 48] {
        hash(&SHA384, parts)
    }

    /// `N` is the algorithm's length.
    fn hash<const N: usize>(algorithm: &'static Algorithm, parts: &[&[u8]]) -> [u8; N] {
        let mut hash = Context::new(algorithm);
        parts.iter().for_each(|part| hash.update(part));
        let mut digest = [0; N];
        digest.copy_from_slice(hash.finish().as_ref());
        digest
    }
}

#[cfg(not(feature = "aws-lc"))]
mod rustcrypto {
    use p384::ecdsa::signature::Verifier as _;
    use p384::ecdsa::{Signature, VerifyingKey};
    use sha2::{Digest as _, Sha256, Sha384};

    use super::Invalid;

    /// A key of P-384.
    #[derive(Debug, Clone)]
    pub(crate) struct PublicKey(VerifyingKey);

    impl PublicKey {
        /// The key of an uncompressed point.
        pub(crate) fn of_point(point: &[u8]) -> Result<Self, Invalid> {
            let key = VerifyingKey::from_sec1_bytes(point);
            key.map(Self).map_err(|_| Invalid)
        }

        /// Checks ecdsa-with-SHA384, DER.
        pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Invalid> {
            let signature = Signature::from_der(signature).map_err(|_| Invalid)?;
            self.0.verify(message, &signature).map_err(|_| Invalid)
        }
    }

    pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    /// Of parts, one after the other.
    pub(crate) fn sha384(parts: &[&[u8]]) -> [u8; 48] {
        let mut hash = Sha384::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }
}
