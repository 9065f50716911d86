//! The key of one enclave, its certificate, and the signing of documents.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde::{Deserialize, Serialize};

use super::PkiError;
use super::issue::new_key;
use crate::document::{self, Claims};
use crate::time::UnixMillis;
use crate::x509::{Certificate, point_spki};

/// How long a leaf certificate lasts after it was issued: 3 hours, as AWS's. It begins 3 seconds earlier.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(3 * 3600);

/// How long before its end a leaf certificate is due for renewal: 15 minutes, three times the age at which
/// verifiers stop accepting a document that it signed.
pub const RENEWAL_MARGIN: Duration = Duration::from_secs(15 * 60);

/// A leaf certificate with its chain. Public data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedLeaf {
    /// DER.
    pub certificate: Vec<u8>,
    /// DER, root first, as documents carry it.
    pub cabundle: Vec<Vec<u8>>,
    /// Last second of the leaf's validity.
    pub not_after: UnixMillis,
}

/// An enclave's signing key, P-384. It never leaves the process that made it.
#[derive(Debug)]
pub struct LeafKey {
    key: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl LeafKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when the cryptographic library fails.
    pub fn generate() -> Result<Self, PkiError> {
        let key = new_key(&ECDSA_P384_SHA384_FIXED_SIGNING, "make a leaf key")?;
        let spki = point_spki(key.public_key().as_ref());
        Ok(Self { key, spki })
    }

    /// The public half, SubjectPublicKeyInfo DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }
}

/// A key with the certificates that speak for it: all that signing documents takes.
#[derive(Debug)]
pub struct LeafIdentity {
    key: LeafKey,
    certificate: Certificate,
    cabundle: Vec<Vec<u8>>,
}

impl LeafIdentity {
    /// Joins a key and its certificate.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when the leaf cannot be one, [`PkiError::OtherKey`] when it is for another key.
    pub fn new(key: LeafKey, leaf: IssuedLeaf) -> Result<Self, PkiError> {
        let certificate = check(&key, &leaf)?;
        Ok(Self {
            key,
            certificate,
            cabundle: leaf.cabundle,
        })
    }

    /// Replaces the certificates and keeps the key.
    ///
    /// # Errors
    /// As [`LeafIdentity::new`]; the old certificates stay in place.
    pub fn replace(&mut self, leaf: IssuedLeaf) -> Result<(), PkiError> {
        self.certificate = check(&self.key, &leaf)?;
        self.cabundle = leaf.cabundle;
        Ok(())
    }

    /// The public half of the key, SubjectPublicKeyInfo DER: what a renewal asks for.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        self.key.spki_der()
    }

    /// The leaf certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        self.certificate.der()
    }

    /// Last second of the certificate's validity.
    #[must_use]
    pub fn not_after(&self) -> UnixMillis {
        self.certificate.not_after()
    }

    /// Whether a new certificate is due: [`RENEWAL_MARGIN`] before the end, or when the clock has jumped to
    /// before the beginning.
    #[must_use]
    pub fn needs_renewal(&self, now: UnixMillis) -> bool {
        now < self.certificate.not_before() || now.plus(RENEWAL_MARGIN) >= self.not_after()
    }

    /// Signs a document: an untagged COSE_Sign1.
    ///
    /// # Errors
    /// [`PkiError::LeafNotValid`] when the certificate does not cover the document's timestamp.
    pub fn sign_document(&self, claims: &Claims) -> Result<Vec<u8>, PkiError> {
        let at = claims.timestamp;
        self.certificate
            .check_time(at)
            .map_err(|_| PkiError::LeafNotValid {
                at,
                not_before: self.certificate.not_before(),
                not_after: self.not_after(),
            })?;
        let payload = document::encode_payload(claims, self.certificate.der(), &self.cabundle);
        let message = document::sig_structure(&payload);
        let signature = self.key.key.sign(&SystemRandom::new(), &message);
        let signature = signature.map_err(|_| PkiError::Crypto {
            action: "sign a document",
        })?;
        Ok(document::encode_envelope(&payload, signature.as_ref()))
    }
}

fn check(key: &LeafKey, leaf: &IssuedLeaf) -> Result<Certificate, PkiError> {
    const WHICH: &str = "the leaf certificate";
    let unusable = |source| PkiError::Certificate {
        which: WHICH,
        source,
    };
    let certificate = Certificate::parse(&leaf.certificate).map_err(unusable)?;
    certificate.check_leaf().map_err(unusable)?;
    if certificate.point() != key.key.public_key().as_ref() {
        return Err(PkiError::OtherKey { which: WHICH });
    }
    Ok(certificate)
}
