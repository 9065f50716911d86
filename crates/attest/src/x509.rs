//! X.509 certificates as attestation needs them: RFC 5280 path validation narrowed to one algorithm.
//!
//! Everything that this module does not understand is refused, not skipped: other signature algorithms, other
//! curves, compressed points, critical extensions beyond basicConstraints and keyUsage. Names are compared
//! byte for byte. Signatures are checked over the bytes as received.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, ParsedPublicKey};
use der::{Decode, Encode, Header, Reader, SliceReader};
use x509_cert::TbsCertificate;
use x509_cert::certificate::Version;
use x509_cert::der;
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::time::UnixMillis;

/// ecdsa-with-SHA384 (RFC 5758).
pub(crate) const ECDSA_WITH_SHA384: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");

/// SubjectPublicKeyInfo of a P-384 key up to its point: id-ecPublicKey, secp384r1, BIT STRING of 97 bytes.
const SPKI_PREFIX: [u8; 23] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];

/// Bytes of an uncompressed P-384 point: 0x04, x, y.
const POINT_LEN: usize = 97;

/// Why a certificate is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are not DER of a certificate.
    #[error("it is not the DER of an X.509 certificate")]
    Encoding(#[source] der::Error),
    /// Extensions exist in version 3 only.
    #[error("its version is {found}, expected 3")]
    Version {
        /// The version it names.
        found: u8,
    },
    /// Signed with something else than ECDSA on P-384 with SHA-384.
    #[error("its signature algorithm is {found}, expected {ECDSA_WITH_SHA384} (ecdsa-with-SHA384)")]
    Algorithm {
        /// Object identifier that it names, in either of the two fields.
        found: ObjectIdentifier,
    },
    /// The key is of another kind.
    #[error("its public key is not an uncompressed point on P-384")]
    Key,
    /// A critical extension that this verifier does not process.
    #[error(
        "its critical extension {oid} is not understood, expected basicConstraints and keyUsage only"
    )]
    CriticalExtension {
        /// Which one.
        oid: ObjectIdentifier,
    },
    /// An extension occurs twice.
    #[error("its extension {oid} occurs twice")]
    RepeatedExtension {
        /// Which one.
        oid: ObjectIdentifier,
    },
    /// An extension cannot be read.
    #[error("its extension {oid} cannot be read")]
    Extension {
        /// Which one.
        oid: ObjectIdentifier,
        /// What the decoder met.
        #[source]
        source: der::Error,
    },
    /// Too early.
    #[error("it is valid from {not_before}, but it is judged at {at}")]
    NotYetValid {
        /// First moment of its validity.
        not_before: UnixMillis,
        /// The moment that was asked for.
        at: UnixMillis,
    },
    /// Too late.
    #[error("it is valid until {not_after}, but it is judged at {at}")]
    Expired {
        /// Last second of its validity.
        not_after: UnixMillis,
        /// The moment that was asked for.
        at: UnixMillis,
    },
    /// It names another issuer than the certificate above it.
    #[error("its issuer is {found:?}, expected {expected:?}, the subject of the certificate above")]
    Issuer {
        /// Subject of the certificate above.
        expected: String,
        /// Issuer that it names.
        found: String,
    },
    /// It names another key of its issuer.
    #[error("its authorityKeyIdentifier is {found}, expected {expected}")]
    KeyIdentifier {
        /// subjectKeyIdentifier of the certificate above, hex.
        expected: String,
        /// authorityKeyIdentifier, hex.
        found: String,
    },
    /// The signature is not the issuer's.
    #[error("its signature is not by the key of the certificate above")]
    Signature,
    /// It issued a certificate without being a CA.
    #[error("it issues certificates, but its basicConstraints do not say that it is a CA")]
    NotCa,
    /// More certificates follow than it allows.
    #[error("its pathLenConstraint allows {allowed} CA certificates below it, found {found}")]
    PathLength {
        /// The constraint.
        allowed: u8,
        /// CA certificates below it.
        found: usize,
    },
    /// Its key usage forbids what it is used for.
    #[error("its keyUsage does not allow {expected}")]
    KeyUsage {
        /// The bit that is missing.
        expected: &'static str,
    },
    /// The signing certificate is a CA's.
    #[error(
        "it signs documents, but it is a CA: expected basicConstraints CA:FALSE without pathLen, and no keyCertSign"
    )]
    LeafIsCa,
}

/// A certificate whose every field that matters here has been read.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    tbs: Vec<u8>,
    signature: Vec<u8>,
    issuer: Name,
    subject: Name,
    not_before: u64,
    not_after: u64,
    point: Vec<u8>,
    extensions: Extensions,
}

#[derive(Debug, Clone, Default)]
struct Extensions {
    basic: Option<BasicConstraints>,
    usage: Option<KeyUsage>,
    subject_key: Option<Vec<u8>>,
    authority_key: Option<Vec<u8>>,
}

impl Certificate {
    /// Reads a certificate and refuses whatever no certificate of a chain may have.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        let parsed = x509_cert::Certificate::from_der(bytes).map_err(CertificateError::Encoding)?;
        let tbs = parsed.tbs_certificate();
        if tbs.version() != Version::V3 {
            return Err(CertificateError::Version {
                found: version(tbs),
            });
        }
        check_algorithm(tbs.signature())?;
        check_algorithm(parsed.signature_algorithm())?;
        Ok(Self {
            der: bytes.to_vec(),
            tbs: tbs_bytes(bytes)
                .map_err(CertificateError::Encoding)?
                .to_vec(),
            signature: parsed.signature().raw_bytes().to_vec(),
            issuer: tbs.issuer().clone(),
            subject: tbs.subject().clone(),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
            point: point(tbs)?,
            extensions: Extensions::parse(tbs.extensions().map_or(&[], Vec::as_slice))?,
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn subject(&self) -> &Name {
        &self.subject
    }

    /// The key as an uncompressed point.
    pub(crate) fn point(&self) -> &[u8] {
        &self.point
    }

    pub(crate) fn subject_key(&self) -> Option<&[u8]> {
        self.extensions.subject_key.as_deref()
    }

    pub(crate) fn not_before(&self) -> UnixMillis {
        UnixMillis::from_secs(self.not_before)
    }

    /// The last second of the validity.
    pub(crate) fn not_after(&self) -> UnixMillis {
        UnixMillis::from_secs(self.not_after)
    }

    /// Both bounds belong to the validity, the last one as a whole second.
    pub(crate) fn check_time(&self, at: UnixMillis) -> Result<(), CertificateError> {
        if at.as_secs() < self.not_before {
            return Err(CertificateError::NotYetValid {
                not_before: self.not_before(),
                at,
            });
        }
        if at.as_secs() > self.not_after {
            return Err(CertificateError::Expired {
                not_after: self.not_after(),
                at,
            });
        }
        Ok(())
    }

    /// Name chaining, key identifiers where both sides have one, signature.
    pub(crate) fn check_issued_by(&self, issuer: &Self) -> Result<(), CertificateError> {
        if self.issuer != issuer.subject {
            return Err(CertificateError::Issuer {
                expected: issuer.subject.to_string(),
                found: self.issuer.to_string(),
            });
        }
        if let (Some(found), Some(expected)) =
            (&self.extensions.authority_key, issuer.subject_key())
            && found != expected
        {
            let (expected, found) = (hex::encode(expected), hex::encode(found));
            return Err(CertificateError::KeyIdentifier { expected, found });
        }
        let key = public_key(&issuer.point)?;
        key.verify_sig(&self.tbs, &self.signature)
            .map_err(|_| CertificateError::Signature)
    }

    /// Whether it may issue a chain with `below` further CA certificates.
    pub(crate) fn check_ca(&self, below: usize) -> Result<(), CertificateError> {
        let basic = self.extensions.basic.as_ref().filter(|basic| basic.ca);
        let basic = basic.ok_or(CertificateError::NotCa)?;
        if let Some(allowed) = basic.path_len_constraint
            && usize::from(allowed) < below
        {
            return Err(CertificateError::PathLength {
                allowed,
                found: below,
            });
        }
        if !self
            .extensions
            .usage
            .is_some_and(|usage| usage.key_cert_sign())
        {
            return Err(CertificateError::KeyUsage {
                expected: "keyCertSign",
            });
        }
        Ok(())
    }

    /// Whether it may sign documents, and nothing above that.
    pub(crate) fn check_leaf(&self) -> Result<(), CertificateError> {
        let basic = self.extensions.basic.as_ref();
        if basic.is_some_and(|basic| basic.ca || basic.path_len_constraint.is_some()) {
            return Err(CertificateError::LeafIsCa);
        }
        let usage = self.extensions.usage;
        if usage.is_some_and(|usage| usage.key_cert_sign()) {
            return Err(CertificateError::LeafIsCa);
        }
        if !usage.is_some_and(|usage| usage.digital_signature()) {
            return Err(CertificateError::KeyUsage {
                expected: "digitalSignature",
            });
        }
        Ok(())
    }
}

impl Extensions {
    fn parse(list: &[Extension]) -> Result<Self, CertificateError> {
        let mut found = Self::default();
        for (position, extension) in list.iter().enumerate() {
            let oid = extension.extn_id;
            if list[..position]
                .iter()
                .any(|earlier| earlier.extn_id == oid)
            {
                return Err(CertificateError::RepeatedExtension { oid });
            }
            found.read(extension)?;
        }
        Ok(found)
    }

    fn read(&mut self, extension: &Extension) -> Result<(), CertificateError> {
        match extension.extn_id {
            BasicConstraints::OID => self.basic = Some(value(extension)?),
            KeyUsage::OID => self.usage = Some(value(extension)?),
            oid if extension.critical => return Err(CertificateError::CriticalExtension { oid }),
            SubjectKeyIdentifier::OID => {
                let identifier: SubjectKeyIdentifier = value(extension)?;
                self.subject_key = Some(identifier.0.as_bytes().to_vec());
            }
            AuthorityKeyIdentifier::OID => {
                let identifier: AuthorityKeyIdentifier = value(extension)?;
                self.authority_key = identifier.key_identifier.map(|id| id.as_bytes().to_vec());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks a chain, root first and leaf last, at a moment. The root is a trust anchor: its own signature says
/// nothing more and is not checked here.
///
/// # Errors
/// Position in `chain` and the rule that it breaks.
pub(crate) fn check_chain(
    chain: &[Certificate],
    at: UnixMillis,
) -> Result<(), (usize, CertificateError)> {
    let mut issuer = None;
    for (position, certificate) in chain.iter().enumerate() {
        let below = chain.len() - position - 1;
        check_link(certificate, issuer, below, at).map_err(|error| (position, error))?;
        issuer = Some(certificate);
    }
    Ok(())
}

fn check_link(
    certificate: &Certificate,
    issuer: Option<&Certificate>,
    below: usize,
    at: UnixMillis,
) -> Result<(), CertificateError> {
    if let Some(issuer) = issuer {
        certificate.check_issued_by(issuer)?;
    }
    certificate.check_time(at)?;
    match below.checked_sub(1) {
        Some(cas) => certificate.check_ca(cas),
        None => certificate.check_leaf(),
    }
}

/// The key of this uncompressed point, which is on the curve.
pub(crate) fn public_key(point: &[u8]) -> Result<ParsedPublicKey, CertificateError> {
    ParsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point).map_err(|_| CertificateError::Key)
}

/// The point of a SubjectPublicKeyInfo, which is a P-384 key's.
pub(crate) fn spki_point(spki: &[u8]) -> Result<&[u8], CertificateError> {
    let point = spki
        .strip_prefix(&SPKI_PREFIX)
        .ok_or(CertificateError::Key)?;
    if point.len() != POINT_LEN || point[0] != 4 {
        return Err(CertificateError::Key);
    }
    public_key(point).map(|_| point)
}

/// SubjectPublicKeyInfo of the key with this uncompressed point.
pub(crate) fn point_spki(point: &[u8]) -> Vec<u8> {
    [&SPKI_PREFIX, point].concat()
}

fn point(tbs: &TbsCertificate) -> Result<Vec<u8>, CertificateError> {
    let spki = tbs
        .subject_public_key_info()
        .to_der()
        .map_err(CertificateError::Encoding)?;
    spki_point(&spki).map(<[u8]>::to_vec)
}

fn value<'a, T: Decode<'a, Error = der::Error>>(
    extension: &'a Extension,
) -> Result<T, CertificateError> {
    let oid = extension.extn_id;
    T::from_der(extension.extn_value.as_bytes())
        .map_err(|source| CertificateError::Extension { oid, source })
}

fn check_algorithm(algorithm: &AlgorithmIdentifierOwned) -> Result<(), CertificateError> {
    if algorithm.oid != ECDSA_WITH_SHA384 || algorithm.parameters.is_some() {
        return Err(CertificateError::Algorithm {
            found: algorithm.oid,
        });
    }
    Ok(())
}

fn version(tbs: &TbsCertificate) -> u8 {
    match tbs.version() {
        Version::V1 => 1,
        Version::V2 => 2,
        Version::V3 => 3,
    }
}

/// The signed part, as received: decoding and encoding again would check a signature over other bytes.
fn tbs_bytes(certificate: &[u8]) -> der::Result<&[u8]> {
    let mut reader = SliceReader::new(certificate)?;
    Header::decode(&mut reader)?;
    reader.tlv_bytes()
}
