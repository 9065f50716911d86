//! The root and its key: in the authority's own file, or somewhere that signs and never gives it away.
//!
//! A [`RootKey`] that is kept elsewhere, in a PKCS#11 token, is needed for what only a root can do: make itself, endorse
//! another root, and sign the region's certificate, which lasts twenty days. Everything else is done with the region's
//! key, so whoever runs enclaves needs neither the token nor its library.

use std::error::Error;

use aws_lc_rs::digest::{SHA384, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair as _};
use x509_cert::ext::Extension;
use x509_cert::name::RdnSequence;

use super::PkiError;
use super::authority::ROOT_LIFETIME;
use super::issue::{self, CertifiedKey, HOUR, Template};
use crate::time::UnixMillis;
use crate::x509::{self, Certificate, SIGNATURE_DER_MAX, signature_der};

/// A root's key that is kept elsewhere.
pub trait RootKey {
    /// Its public half: an uncompressed point of P-384, 97 bytes.
    fn point(&self) -> &[u8];

    /// Signs the SHA-384 of a certificate with ECDSA; r and s, 48 bytes each. Few tokens can hash, all can sign a digest.
    ///
    /// # Errors
    /// Whatever keeps it from signing.
    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
}

/// A root's certificate, and its key unless that is kept elsewhere.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) certificate: Certificate,
    pub(super) key: Option<EcdsaKeyPair>,
}

/// A key that signs certificates.
#[derive(Clone, Copy)]
pub(super) enum Signer<'a> {
    Held(&'a EcdsaKeyPair),
    Elsewhere(&'a dyn RootKey),
}

/// A CA that issues: its certificate and who signs for it.
#[derive(Clone, Copy)]
pub(super) struct Issuer<'a> {
    pub(super) certificate: &'a Certificate,
    pub(super) signer: Signer<'a>,
}

impl Root {
    /// A new root: of a new key, or of one that is kept elsewhere.
    pub(super) fn create(now: UnixMillis, key: Option<&dyn RootKey>) -> Result<Self, PkiError> {
        let own = match key {
            Some(_) => None,
            None => Some(issue::new_ca_key()?),
        };
        let signer = match (&own, key) {
            (Some(own), _) => Signer::Held(own),
            (None, Some(key)) => Signer::Elsewhere(key),
            (None, None) => return Err(elsewhere("make a root")),
        };
        let point = signer.point().to_vec();
        let name = issue::name(&format!("{}.enclos", issue::random_hex(4)?))?;
        let template = Template {
            subject: name.clone(),
            serial: issue::random_serial()?,
            not_before: now.minus(HOUR),
            not_after: now.plus(ROOT_LIFETIME),
            extensions: vec![
                issue::ca_constraints(None)?,
                issue::subject_key(&point)?,
                issue::ca_usage()?,
            ],
            point,
        };
        let der = template.sign(name, signer)?;
        let certificate = Certificate::parse(&der).map_err(issue::new_unusable)?;
        Ok(Self {
            certificate,
            key: own,
        })
    }

    /// The root as an issuer that is about to do `action`: with the key named, else with its own.
    pub(super) fn issuer<'a>(
        &'a self,
        key: Option<&'a dyn RootKey>,
        action: &'static str,
    ) -> Result<Issuer<'a>, PkiError> {
        let signer = match (key, &self.key) {
            (Some(key), _) if key.point() == self.certificate.point() => Signer::Elsewhere(key),
            (Some(_), _) => {
                return Err(PkiError::OtherKey {
                    which: "the root's certificate",
                });
            }
            (None, Some(own)) => Signer::Held(own),
            (None, None) => return Err(elsewhere(action)),
        };
        Ok(Issuer {
            certificate: &self.certificate,
            signer,
        })
    }

    /// Whether the key is kept elsewhere.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.key.is_none()
    }
}

fn elsewhere(action: &'static str) -> PkiError {
    PkiError::RootElsewhere { action }
}

impl Signer<'_> {
    pub(super) fn point(&self) -> &[u8] {
        match self {
            Self::Held(key) => key.public_key().as_ref(),
            Self::Elsewhere(key) => key.point(),
        }
    }

    /// ecdsa-with-SHA384, DER.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        let refused = PkiError::Crypto {
            action: "sign a certificate",
        };
        match self {
            Self::Held(key) => {
                let signature = key.sign(&SystemRandom::new(), message);
                Ok(signature.map_err(|_| refused)?.as_ref().to_vec())
            }
            Self::Elsewhere(key) => {
                let digest = digest(&SHA384, message);
                let signature = key.sign(digest.as_ref()).map_err(PkiError::RootRefused)?;
                let mut buffer = [0; SIGNATURE_DER_MAX];
                let signature = signature_der(&signature, &mut buffer);
                // What a token signs is used after it was checked: it may have signed with another key, or not at all.
                let public = x509::public_key(key.point()).ok();
                let right = |signature: &&[u8]| {
                    public.is_some_and(|public| public.verify(message, signature).is_ok())
                };
                Ok(signature.filter(right).ok_or(refused)?.to_vec())
            }
        }
    }
}

impl Issuer<'_> {
    /// Name for the issuer field of what it signs.
    pub(super) fn name(&self) -> Result<RdnSequence, PkiError> {
        let unusable = |source| PkiError::Certificate {
            which: "the issuer",
            source,
        };
        Ok(self.certificate.subject().map_err(unusable)?.into())
    }

    pub(super) fn authority_key(&self) -> Result<Extension, PkiError> {
        issue::authority_key(self.certificate.point())
    }
}

impl CertifiedKey {
    /// This key as an issuer.
    pub(super) fn issuer(&self) -> Issuer<'_> {
        Issuer {
            certificate: &self.certificate,
            signer: Signer::Held(&self.key),
        }
    }
}
