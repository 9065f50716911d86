//! Trust anchors: the root certificates that a verifier was told to trust.

use crate::x509::{Certificate, CertificateError};

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
struct Anchor {
    name: String,
    der: Vec<u8>,
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
        if self.name_of(AWS_ROOT).is_none() {
            self.anchors.push(Anchor {
                name: AWS_ANCHOR.to_owned(),
                der: AWS_ROOT.to_vec(),
            });
        }
        self
    }

    /// Adds a root: DER, or PEM of exactly one certificate. Its own validity is judged with each document.
    ///
    /// # Errors
    /// [`AnchorError`] when it cannot be a root.
    pub fn with_root(mut self, name: &str, der_or_pem: &[u8]) -> Result<Self, AnchorError> {
        let name = name.to_owned();
        let Some(der) = to_der(der_or_pem) else {
            return Err(AnchorError::Pem { name });
        };
        if let Err(source) = check_root(&der) {
            return Err(AnchorError::Certificate { name, source });
        }
        if let Some(earlier) = self.name_of(&der) {
            let earlier = earlier.to_owned();
            return Err(AnchorError::Repeated { name, earlier });
        }
        self.anchors.push(Anchor { name, der });
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
            .map(|anchor| (anchor.name.as_str(), anchor.der.as_slice()))
    }

    /// The name under which exactly this certificate is trusted.
    pub(super) fn name_of(&self, der: &[u8]) -> Option<&str> {
        self.iter()
            .find(|(_, trusted)| *trusted == der)
            .map(|(name, _)| name)
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

fn check_root(der: &[u8]) -> Result<(), CertificateError> {
    let root = Certificate::parse(der)?;
    root.check_issued_by(&root)?;
    root.check_ca(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_root_is_the_pinned_one() {
        use aws_lc_rs::digest::{SHA256, digest};
        assert_eq!(hex::encode(digest(&SHA256, AWS_ROOT)), AWS_ROOT_SHA256);
        check_root(AWS_ROOT).unwrap();
    }
}
