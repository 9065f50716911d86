//! X.509 certificates as attestation needs them: RFC 5280 path validation narrowed to one algorithm.
//!
//! Everything that this module does not understand is refused, not skipped: other signature algorithms, other
//! curves, compressed points, critical extensions beyond basicConstraints and keyUsage. Names are compared
//! byte for byte. Signatures are checked over the bytes as received.
//!
//! A [`Certificate`] is its DER and the places in it that matter: reading one allocates three times, whatever
//! the DER says.

mod der_reader;

use std::ops::Range;
use std::sync::Arc;

use der::asn1::UintRef;
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{Decode, Encode, Sequence};
use x509_cert::der;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier,
};
use x509_cert::name::Name;

use crate::crypto::PublicKey;
use crate::time::UnixMillis;
use der_reader::{Algorithm, Extension, Fields};

/// id-pe-cmw, the extension of RFC 9999 for conceptual message wrappers.
pub const CMW_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.35");

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
    /// More extensions than any chain's certificates have.
    #[error("it has more than {MAX_EXTENSIONS} extensions")]
    TooManyExtensions,
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

/// An uncompressed P-384 point: 0x04, x, y.
pub(crate) type Point = [u8; POINT_LEN];

/// A certificate whose every field that matters here has been read.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    der: Arc<[u8]>,
    tbs: Place,
    signature: Place,
    issuer: Place,
    subject: Place,
    not_before: u64,
    not_after: u64,
    point: Place,
    key: PublicKey,
    extensions: Extensions,
}

/// Most extensions of a certificate. Those of a chain have five; each is compared with all before it.
const MAX_EXTENSIONS: usize = 64;

/// Where in the DER something is.
type Place = Range<usize>;

#[derive(Debug, Clone, Default)]
struct Extensions {
    basic: Option<BasicConstraints>,
    usage: Option<KeyUsage>,
    subject_key: Option<Place>,
    authority_key: Option<Place>,
    evidence: Option<Place>,
}

impl Certificate {
    /// Reads a certificate and refuses whatever no certificate of a chain may have.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        let fields = Fields::read(bytes).map_err(CertificateError::Encoding)?;
        if fields.version != 3 {
            let found = fields.version;
            return Err(CertificateError::Version { found });
        }
        check_algorithm(fields.tbs_algorithm)?;
        check_algorithm(fields.algorithm)?;
        let point = spki_point(fields.spki)?;
        Ok(Self {
            tbs: place(bytes, fields.tbs),
            signature: place(bytes, fields.signature),
            issuer: place(bytes, fields.issuer),
            subject: place(bytes, fields.subject),
            not_before: fields.not_before,
            not_after: fields.not_after,
            point: place(bytes, point),
            key: public_key(point)?,
            extensions: Extensions::parse(bytes, &fields)?,
            der: bytes.into(),
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    /// The same, for whoever keeps it.
    pub(crate) fn shared_der(&self) -> Arc<[u8]> {
        Arc::clone(&self.der)
    }

    /// The subject's name, decoded.
    pub(crate) fn subject(&self) -> Result<Name, CertificateError> {
        Name::from_der(self.at(&self.subject)).map_err(CertificateError::Encoding)
    }

    /// The key as an uncompressed point.
    pub(crate) fn point(&self) -> &[u8] {
        self.at(&self.point)
    }

    pub(crate) fn subject_key(&self) -> Option<&[u8]> {
        let place = self.extensions.subject_key.as_ref();
        place.map(|place| self.at(place))
    }

    fn authority_key(&self) -> Option<&[u8]> {
        let place = self.extensions.authority_key.as_ref();
        place.map(|place| self.at(place))
    }

    /// The value of the extension that carries a document, which certificates of attested TLS have.
    pub(crate) fn evidence(&self) -> Option<&[u8]> {
        let place = self.extensions.evidence.as_ref();
        place.map(|place| self.at(place))
    }

    fn at(&self, place: &Place) -> &[u8] {
        &self.der[place.clone()]
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
        self.check_names(issuer)?;
        self.check_signature(issuer)
    }

    /// Name chaining, and key identifiers where both sides have one.
    fn check_names(&self, issuer: &Self) -> Result<(), CertificateError> {
        let (found, expected) = (self.at(&self.issuer), issuer.at(&issuer.subject));
        if found != expected {
            let text =
                |name| Name::from_der(name).map_or_else(|e| e.to_string(), |n| n.to_string());
            return Err(CertificateError::Issuer {
                expected: text(expected),
                found: text(found),
            });
        }
        if let (Some(found), Some(expected)) = (self.authority_key(), issuer.subject_key())
            && found != expected
        {
            let (expected, found) = (hex::encode(expected), hex::encode(found));
            return Err(CertificateError::KeyIdentifier { expected, found });
        }
        Ok(())
    }

    fn check_signature(&self, issuer: &Self) -> Result<(), CertificateError> {
        let (tbs, signature) = (self.at(&self.tbs), self.at(&self.signature));
        let checked = issuer.key.verify(tbs, signature);
        checked.map_err(|_| CertificateError::Signature)
    }

    /// Whether this certificate's key made an ES384 signature: r and s, 48 bytes each.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let mut buffer = [0; SIGNATURE_DER_MAX];
        let signature = signature_der(signature, &mut buffer);
        signature.is_some_and(|signature| self.key.verify(message, signature).is_ok())
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
    fn parse(bytes: &[u8], fields: &Fields<'_>) -> Result<Self, CertificateError> {
        let mut found = Self::default();
        for (position, extension) in fields.extensions().enumerate() {
            let extension = extension.map_err(CertificateError::Encoding)?;
            if position == MAX_EXTENSIONS {
                return Err(CertificateError::TooManyExtensions);
            }
            let oid = extension.oid;
            let mut earlier = fields.extensions().take(position).flatten();
            if earlier.any(|earlier| earlier.oid == oid) {
                return Err(CertificateError::RepeatedExtension { oid });
            }
            found
                .read(bytes, &extension)
                .map_err(|source| match source {
                    Some(source) => CertificateError::Extension { oid, source },
                    None => CertificateError::CriticalExtension { oid },
                })?;
        }
        Ok(found)
    }

    /// The error is the decoder's, or `None` for a critical extension that is not understood.
    fn read(&mut self, bytes: &[u8], extension: &Extension<'_>) -> Result<(), Option<der::Error>> {
        let value = extension.value;
        match extension.oid {
            BasicConstraints::OID => self.basic = Some(BasicConstraints::from_der(value)?),
            KeyUsage::OID => self.usage = Some(KeyUsage::from_der(value)?),
            _ if extension.critical => return Err(None),
            SubjectKeyIdentifier::OID => {
                let identifier = der_reader::subject_key(value)?;
                self.subject_key = Some(place(bytes, identifier));
            }
            AuthorityKeyIdentifier::OID => {
                let identifier = der_reader::authority_key(value)?;
                self.authority_key = identifier.map(|identifier| place(bytes, identifier));
            }
            CMW_OID => self.evidence = Some(place(bytes, value)),
            _ => {}
        }
        Ok(())
    }
}

/// A certificate of a chain, and the key that is known to have signed it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) certificate: Arc<Certificate>,
    /// Only [`check_chain`] finds out; whoever keeps it keeps it with the certificate's exact bytes.
    pub(crate) signer: Option<Point>,
}

impl Link {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        Certificate::parse(bytes).map(|certificate| Self {
            certificate: Arc::new(certificate),
            signer: None,
        })
    }

    /// The signature by `issuer`'s key, unless it is known already.
    fn check_signature(&mut self, issuer: &Certificate) -> Result<(), CertificateError> {
        if self.signer.as_ref().map(Point::as_slice) == Some(issuer.point()) {
            return Ok(());
        }
        self.certificate.check_signature(issuer)?;
        self.signer = Point::try_from(issuer.point()).ok();
        Ok(())
    }
}

/// Checks a chain, root first and leaf last, at a moment. The root is a trust anchor: its own signature says
/// nothing more and is not checked here.
///
/// # Errors
/// Position in `chain` and the rule that it breaks.
pub(crate) fn check_chain(
    chain: &mut [Link],
    at: UnixMillis,
) -> Result<(), (usize, CertificateError)> {
    let len = chain.len();
    let mut issuer: Option<Arc<Certificate>> = None;
    for (position, link) in chain.iter_mut().enumerate() {
        let below = len - position - 1;
        check_link(link, issuer.as_deref(), below, at).map_err(|error| (position, error))?;
        issuer = Some(Arc::clone(&link.certificate));
    }
    Ok(())
}

fn check_link(
    link: &mut Link,
    issuer: Option<&Certificate>,
    below: usize,
    at: UnixMillis,
) -> Result<(), CertificateError> {
    if let Some(issuer) = issuer {
        link.certificate.check_names(issuer)?;
        link.check_signature(issuer)?;
    }
    let certificate = &link.certificate;
    certificate.check_time(at)?;
    match below.checked_sub(1) {
        Some(cas) => certificate.check_ca(cas),
        None => certificate.check_leaf(),
    }
}

/// Reads a root: self-signed, and a CA.
pub(crate) fn root(der: &[u8]) -> Result<Certificate, CertificateError> {
    let root = Certificate::parse(der)?;
    root.check_issued_by(&root)?;
    root.check_ca(0)?;
    Ok(root)
}

/// The key of this uncompressed point, which is on the curve.
pub(crate) fn public_key(point: &[u8]) -> Result<PublicKey, CertificateError> {
    PublicKey::of_point(point).map_err(|_| CertificateError::Key)
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

/// Longest DER of an ECDSA signature on P-384 in bytes: a header of 2, two integers of 51 with theirs.
pub(crate) const SIGNATURE_DER_MAX: usize = 104;

/// Ecdsa-Sig-Value (RFC 3279 section 2.2.3), which is what the keys here verify.
#[derive(Sequence)]
struct SignatureValue<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// The DER of r ‖ s.
pub(crate) fn signature_der<'a>(
    fixed: &[u8],
    buffer: &'a mut [u8; SIGNATURE_DER_MAX],
) -> Option<&'a [u8]> {
    let (r, s) = fixed.split_at_checked(fixed.len() / 2)?;
    let value = SignatureValue {
        r: UintRef::new(r).ok()?,
        s: UintRef::new(s).ok()?,
    };
    value.encode_to_slice(buffer).ok()
}

/// Where `part`, a slice of `whole`, is in it.
fn place(whole: &[u8], part: &[u8]) -> Place {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

fn check_algorithm(algorithm: Algorithm<'_>) -> Result<(), CertificateError> {
    if algorithm.oid != ECDSA_WITH_SHA384 || algorithm.parameters.is_some() {
        return Err(CertificateError::Algorithm {
            found: algorithm.oid,
        });
    }
    Ok(())
}
