//! Trust anchors: the root certificates that a verifier was told to trust.

use std::sync::Arc;

use crate::x509::{self, Certificate, CertificateError};

/// AWS Nitro Enclaves root G1, DER. Its SHA-256 is [`AWS_ROOT_SHA256`].
const AWS_ROOT: &[u8] = include_bytes!("aws-root-g1.der");

/// SHA-256 of AWS's root certificate as AWS publishes it (of the DER; the zip's digest is another one).
pub const AWS_ROOT_SHA256: &str =
    "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b";

/// Name of AWS's root in [`TrustAnchors`].
pub const AWS_ANCHOR: &str = "aws";

/// Why a certificate cannot be a trust anchor.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// The text is not PEM.
    #[error("trust anchor {name:?} is not a certificate: expected DER, or PEM of exactly one")]
    Pem {
        /// Name given by the caller.
        name: String,
    },
    /// The certificate cannot be a root.
    #[error("trust anchor {name:?} cannot be a root: expected a self-signed P-384 CA certificate")]
    Certificate {
        /// Name given by the caller.
        name: String,
        /// The rule that it breaks.
        #[source]
        source: CertificateError,
    },
    /// The certificate was added before.
    #[error("trust anchor {name:?} is the same certificate as {earlier:?}")]
    Repeated {
        /// Name given by the caller.
        name: String,
        /// Name it was added under.
        earlier: String,
    },
}

/// Root certificates that a verifier trusts, each under a name that ends up in
/// [`VerifiedDocument::anchor`](super::VerifiedDocument::anchor). A document's own bundle is never a reason to
/// trust anything.
#[derive(Debug, Clone, Default)]
pub struct TrustAnchors {
    anchors: Vec<Anchor>,
}

#[derive(Debug, Clone)]
pub(super) struct Anchor {
    pub(super) name: Arc<str>,
    pub(super) certificate: Arc<Certificate>,
}

impl TrustAnchors {
    /// None: nothing verifies.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the root of AWS Nitro Enclaves (G1), under the name [`AWS_ANCHOR`].
    #[must_use]
    pub fn with_aws(mut self) -> Self {
        // That the embedded root can be read is what the test below is for.
        let root = Certificate::parse(AWS_ROOT).ok();
        let root = root.filter(|_| self.find(AWS_ROOT).is_none());
        self.anchors.extend(root.map(|root| Anchor {
            name: AWS_ANCHOR.into(),
            certificate: Arc::new(root),
        }));
        self
    }

    /// Adds a root: DER, or PEM of exactly one certificate. Its own validity is judged with each document.
    ///
    /// # Errors
    /// [`AnchorError`] when it cannot be a root.
    pub fn with_root(mut self, name: &str, der_or_pem: &[u8]) -> Result<Self, AnchorError> {
        let Some(der) = to_der(der_or_pem) else {
            let name = name.to_owned();
            return Err(AnchorError::Pem { name });
        };
        let root = x509::root(&der).map_err(|source| AnchorError::Certificate {
            name: name.to_owned(),
            source,
        })?;
        if let Some(earlier) = self.find(&der) {
            return Err(AnchorError::Repeated {
                name: name.to_owned(),
                earlier: earlier.name.to_string(),
            });
        }
        self.anchors.push(Anchor {
            name: name.into(),
            certificate: Arc::new(root),
        });
        Ok(self)
    }

    /// Whether there is no anchor at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Name and DER of each anchor.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.anchors
            .iter()
            .map(|anchor| (&*anchor.name, anchor.certificate.der()))
    }

    /// The anchor that is exactly this certificate.
    pub(super) fn find(&self, der: &[u8]) -> Option<&Anchor> {
        let mut anchors = self.anchors.iter();
        anchors.find(|anchor| anchor.certificate.der() == der)
    }
}

fn to_der(bytes: &[u8]) -> Option<Vec<u8>> {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    // DER of a certificate begins with a SEQUENCE; no PEM text does.
    if bytes.first() == Some(&0x30) {
        return Some(bytes.to_vec());
    }
    // Text before the certificate is common (openssl x509 -text) and says nothing.
    let start = bytes
        .windows(BEGIN.len())
        .position(|window| window == BEGIN)?;
    let (label, der) = der::pem::decode_vec(bytes[start..].trim_ascii_end()).ok()?;
    (label == "CERTIFICATE").then_some(der)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_root_is_the_pinned_one() {
        let found = crate::crypto::sha256(AWS_ROOT);
        assert_eq!(hex::encode(found), AWS_ROOT_SHA256);
        x509::root(AWS_ROOT).unwrap();
        assert_eq!(TrustAnchors::new().with_aws().iter().count(), 1);
    }
}
