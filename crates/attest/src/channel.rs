//! Attested TLS: a server certificate that carries an attestation document for its own key.
//!
//! ```text
//!  Certificate (self-signed, P-384)
//!    subjectPublicKeyInfo ◀───────────────────────────────┐ equal, byte for byte
//!    extension id-pe-cmw                                  │
//!      ["application/aws-nitro-document", document, 4]    │
//!                                          └─ public_key ─┘   user_data "enclos-tls/v1"
//! ```
//!
//! TLS proves that the server holds the certificate's key (CertificateVerify); the document says which enclave
//! made that key. [`ChannelKey`] is the enclave's side, [`ChannelCertificate`] the client's. The carrier is RFC 9999's:
//! an X.509 extension with a CBOR conceptual message wrapper, marked as evidence. Exact bytes, reasons and vectors are in
//! `crates/client/SPEC.md`.
//!
//! A certificate is refused unless every byte of it is accounted for: it is read as strictly as those of a chain, it is
//! signed by its own key, and there is one encoding of the wrapper.

use std::time::Duration;

use der::asn1::OctetStringRef;
use der::{Decode, Encode};
use minicbor::decode::Decoder;
use x509_cert::der;

use crate::cbor::Writer;
use crate::document::{CERTIFICATE_MAX, DOCUMENT_MAX, VerifiedDocument};
#[cfg(feature = "aws-lc")]
pub use crate::pki::ChannelKey;
use crate::time::UnixMillis;
pub use crate::x509::{CMW_OID, CertificateError};
use crate::x509::{Certificate, point_spki};

/// The wrapper's type of attestation documents of this format, whoever signed them.
pub const MEDIA_TYPE: &str = "application/aws-nitro-document";

/// `user_data` of a document that speaks for a TLS key: a document made for something else never does.
pub const PURPOSE: &[u8] = b"enclos-tls/v1";

/// What `user_data` of every version begins with. Whoever makes documents for others refuses it, or they could end TLS in
/// the enclave's name.
pub const RESERVED: &[u8] = b"enclos-tls/";

/// ALPN name with which a client says that it will send a nonce after the handshake, before anything of the application's.
pub const NONCE_ALPN: &[u8] = b"enclos-nonce/1";

/// Shortest nonce in bytes.
pub const NONCE_MIN: usize = 16;

/// Longest nonce in bytes.
pub const NONCE_MAX: usize = 64;

/// The wrapper's indicator: bit 2, evidence.
const EVIDENCE: u64 = 1 << 2;

/// A certificate is valid from this long before its document was made, so that clocks may differ.
pub const VALID_BEFORE: Duration = Duration::from_secs(3600);

/// And until this long after. What limits its use is the age that a client accepts of the document, which is less.
pub const VALID_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Longest certificate that is looked at: a document, and what an ordinary certificate may have.
pub const CHANNEL_CERTIFICATE_MAX: usize = DOCUMENT_MAX + CERTIFICATE_MAX;

/// Why a TLS certificate is not one of an attested enclave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// Longer than any.
    #[error("the certificate is {found} bytes long, expected at most {CHANNEL_CERTIFICATE_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// The certificate is not acceptable.
    #[error("the server's certificate is not acceptable")]
    Certificate(#[from] CertificateError),
    /// An ordinary certificate.
    #[error(
        "the server's certificate carries no attestation document (extension {CMW_OID}): it is not attested TLS"
    )]
    NoDocument,
    /// The extension holds something else.
    #[error(
        "the server's certificate carries evidence in another form (extension {CMW_OID}), expected the CBOR record of a {MEDIA_TYPE}"
    )]
    Wrapper,
    /// The document was made for another purpose.
    #[error("the document was not made for a TLS key: its user_data is not \"enclos-tls/v1\"")]
    Purpose,
    /// The document speaks for another key.
    #[error(
        "the document is for another key than the server's certificate: the server is not the enclave that made it"
    )]
    OtherKey,
}

/// A certificate that carries a document and is signed by its own key. What the document is worth has yet to be decided.
#[derive(Debug, Clone)]
pub struct ChannelCertificate {
    certificate: Certificate,
    document: Vec<u8>,
}

impl ChannelCertificate {
    /// Reads a certificate, DER.
    ///
    /// # Errors
    /// [`ChannelError`] names the rule that it breaks.
    pub fn parse(der: &[u8]) -> Result<Self, ChannelError> {
        if der.len() > CHANNEL_CERTIFICATE_MAX {
            return Err(ChannelError::TooLong { found: der.len() });
        }
        let certificate = Certificate::parse(der)?;
        let wrapper = certificate.evidence().ok_or(ChannelError::NoDocument)?;
        let document = unwrap(wrapper).ok_or(ChannelError::Wrapper)?;
        certificate.check_leaf()?;
        certificate.check_issued_by(&certificate)?;
        Ok(Self {
            certificate,
            document,
        })
    }

    /// The attestation document, unchecked.
    #[must_use]
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// The certificate's key, SubjectPublicKeyInfo DER.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        point_spki(self.certificate.point())
    }

    /// Whether `verified`, a document that was verified, speaks for this certificate's key at `now`. It need not be the
    /// one in the certificate: one with a nonce of the client's says the same of the same key.
    ///
    /// # Errors
    /// [`ChannelError::Purpose`], [`ChannelError::OtherKey`], or the certificate's validity.
    pub fn check(&self, verified: &VerifiedDocument, now: UnixMillis) -> Result<(), ChannelError> {
        self.certificate.check_time(now)?;
        if verified.user_data() != Some(PURPOSE) {
            return Err(ChannelError::Purpose);
        }
        if verified.public_key() != Some(self.spki_der().as_slice()) {
            return Err(ChannelError::OtherKey);
        }
        Ok(())
    }
}

/// The extension's value: a DER OCTET STRING (RFC 9999's `cbor` choice) with the CBOR record.
pub(crate) fn wrap(document: &[u8]) -> der::Result<Vec<u8>> {
    OctetStringRef::new(&record(document))?.to_der()
}

fn record(document: &[u8]) -> Vec<u8> {
    let record = Writer::with_capacity(document.len() + MEDIA_TYPE.len() + 8);
    let record = record.array(3).text(MEDIA_TYPE);
    record.bytes(document).unsigned(EVIDENCE).finish()
}

/// The document in an extension's value, if it is exactly what [`wrap`] makes.
fn unwrap(value: &[u8]) -> Option<Vec<u8>> {
    let cbor = <&OctetStringRef>::from_der(value).ok()?.as_bytes();
    let mut decoder = Decoder::new(cbor);
    decoder.array().ok()?;
    decoder.str().ok()?;
    let document = decoder.bytes().ok()?;
    (record(document) == cbor).then(|| document.to_vec())
}

#[cfg(test)]
mod tests;
