//! Making one certificate: names, validity, extensions, signature.

use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
};
use der::asn1::Utf8StringRef;
use der::asn1::{Any, BitString, ContextSpecific, OctetString, SetOfVec};
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{DateTime, Decode, Encode, Sequence, TagMode, TagNumber};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::Version;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use super::root::Signer;
use super::{PkiError, random};
use crate::time::UnixMillis;
use crate::x509::{Certificate, CertificateError, ECDSA_WITH_SHA384, point_spki};

/// commonName.
pub(super) const CN: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// localityName.
pub(super) const L: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.7");
/// organizationName.
const O: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
/// organizationalUnitName.
const OU: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");

/// How long before its issue a root, region or zone certificate begins.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Longest part of a name in bytes (RFC 5280 appendix A.1: `ub-common-name` 64, `ub-locality-name` 128).
const NAME_MAX: usize = 64;

/// Bytes of a subjectKeyIdentifier (160 bits, as in AWS's).
const KEY_IDENTIFIER_LEN: usize = 20;

/// A CA's key with its certificate.
#[derive(Debug)]
pub(super) struct CertifiedKey {
    pub(super) key: EcdsaKeyPair,
    pub(super) certificate: Certificate,
}

/// What a new certificate shall say.
pub(super) struct Template {
    pub(super) subject: RdnSequence,
    pub(super) serial: SerialNumber,
    pub(super) not_before: UnixMillis,
    pub(super) not_after: UnixMillis,
    /// Uncompressed point of the subject's key.
    pub(super) point: Vec<u8>,
    pub(super) extensions: Vec<Extension>,
}

/// TBSCertificate (RFC 5280 section 4.1). `x509-cert` reads its own but does not let others build one.
#[derive(Sequence)]
struct Tbs {
    version: ContextSpecific<Version>,
    serial: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: RdnSequence,
    validity: Validity,
    subject: RdnSequence,
    spki: SubjectPublicKeyInfoOwned,
    extensions: ContextSpecific<Vec<Extension>>,
}

#[derive(Sequence)]
struct Signed {
    tbs: Tbs,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl Template {
    /// Signs the certificate with the key of `signer`, whose name is `issuer`.
    pub(super) fn sign(self, issuer: RdnSequence, signer: Signer<'_>) -> Result<Vec<u8>, PkiError> {
        let algorithm = AlgorithmIdentifierOwned {
            oid: ECDSA_WITH_SHA384,
            parameters: None,
        };
        let tbs = Tbs {
            version: explicit(0, Version::V3),
            serial: self.serial,
            signature: algorithm.clone(),
            issuer,
            validity: Validity::new(time(self.not_before)?, time(self.not_after)?),
            subject: self.subject,
            spki: SubjectPublicKeyInfoOwned::from_der(&point_spki(&self.point))?,
            extensions: explicit(3, self.extensions),
        };
        let signature = signer.sign(&tbs.to_der()?)?;
        let signature = BitString::from_bytes(&signature)?;
        Ok(Signed {
            tbs,
            algorithm,
            signature,
        }
        .to_der()?)
    }
}

/// A certificate of ours that cannot be read back.
pub(super) fn new_unusable(source: CertificateError) -> PkiError {
    PkiError::Certificate {
        which: "a new certificate",
        source,
    }
}

/// authorityKeyIdentifier of what the key at `point` signs.
pub(super) fn authority_key(point: &[u8]) -> Result<Extension, PkiError> {
    let identifier = OctetString::new(key_identifier(point))?;
    let value = AuthorityKeyIdentifier {
        key_identifier: Some(identifier),
        ..Default::default()
    };
    extension(false, &value)
}

impl CertifiedKey {
    pub(super) fn check_key(&self, which: &'static str) -> Result<(), PkiError> {
        if self.key.public_key().as_ref() == self.certificate.point() {
            return Ok(());
        }
        Err(PkiError::OtherKey { which })
    }
}

pub(super) fn new_ca_key() -> Result<EcdsaKeyPair, PkiError> {
    new_key(&ECDSA_P384_SHA384_ASN1_SIGNING, "make a CA key")
}

pub(super) fn new_key(
    algorithm: &'static EcdsaSigningAlgorithm,
    action: &'static str,
) -> Result<EcdsaKeyPair, PkiError> {
    EcdsaKeyPair::generate(algorithm).map_err(|_| PkiError::Crypto { action })
}

pub(super) fn subject_key(point: &[u8]) -> Result<Extension, PkiError> {
    extension(
        false,
        &SubjectKeyIdentifier(OctetString::new(key_identifier(point))?),
    )
}

pub(super) fn ca_constraints(path_len: Option<u8>) -> Result<Extension, PkiError> {
    extension(
        true,
        &BasicConstraints {
            ca: true,
            path_len_constraint: path_len,
        },
    )
}

pub(super) fn leaf_constraints() -> Result<Extension, PkiError> {
    extension(
        true,
        &BasicConstraints {
            ca: false,
            path_len_constraint: None,
        },
    )
}

/// keyUsage of root, region and zone.
pub(super) fn ca_usage() -> Result<Extension, PkiError> {
    let usage = KeyUsages::DigitalSignature | KeyUsages::KeyCertSign | KeyUsages::CRLSign;
    extension(true, &KeyUsage(usage))
}

/// keyUsage of the instance: it signs leaves and nothing else.
pub(super) fn instance_usage() -> Result<Extension, PkiError> {
    extension(true, &KeyUsage(KeyUsages::KeyCertSign.into()))
}

/// keyUsage of the leaf, not critical, as in AWS's.
pub(super) fn leaf_usage() -> Result<Extension, PkiError> {
    extension(
        false,
        &KeyUsage(KeyUsages::DigitalSignature | KeyUsages::NonRepudiation),
    )
}

/// `O=Enclos, OU=Enclos, CN=…`.
pub(super) fn name(common_name: &str) -> Result<RdnSequence, PkiError> {
    Ok(RdnSequence::from(vec![
        part(O, "Enclos")?,
        part(OU, "Enclos")?,
        part(CN, common_name)?,
    ]))
}

/// `CN=…, OU=Enclos, O=Enclos, L=…`: AWS's zonal certificates begin with the commonName.
pub(super) fn zonal_name(common_name: &str, zone: &str) -> Result<RdnSequence, PkiError> {
    let parts = [(CN, common_name), (OU, "Enclos"), (O, "Enclos"), (L, zone)];
    let parts: Result<Vec<_>, _> = parts
        .into_iter()
        .map(|(oid, text)| part(oid, text))
        .collect();
    Ok(RdnSequence::from(parts?))
}

/// Sixteen random bytes, as in AWS's.
pub(super) fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    // Positive, and sixteen bytes long whatever was drawn.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::new(&bytes)?)
}

pub(super) fn random_hex(bytes: usize) -> Result<String, PkiError> {
    let mut drawn = vec![0; bytes];
    random(&mut drawn)?;
    Ok(hex::encode(drawn))
}

fn part(oid: ObjectIdentifier, text: &str) -> Result<RelativeDistinguishedName, PkiError> {
    if text.is_empty() || text.len() > NAME_MAX {
        return Err(PkiError::Name {
            field: "name",
            found: text.to_owned(),
            max: NAME_MAX,
        });
    }
    let value = Any::encode_from(&Utf8StringRef::new(text)?)?;
    let set = SetOfVec::try_from(vec![AttributeTypeAndValue { oid, value }])?;
    Ok(set.into())
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> Result<Extension, PkiError> {
    let extn_value = OctetString::new(value.to_der()?)?;
    Ok(Extension {
        extn_id: T::OID,
        critical,
        extn_value,
    })
}

/// The first 160 bits of the key's SHA-256 (RFC 7093 method 1; SHA-1 would do, but needs an excuse).
fn key_identifier(point: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, point).as_ref()[..KEY_IDENTIFIER_LEN].to_vec()
}

fn explicit<T>(number: u32, value: T) -> ContextSpecific<T> {
    ContextSpecific {
        tag_number: TagNumber(number),
        tag_mode: TagMode::Explicit,
        value,
    }
}

/// UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280 section 4.1.2.5).
fn time(moment: UnixMillis) -> Result<Time, PkiError> {
    let date = DateTime::from_unix_duration(Duration::from_secs(moment.as_secs()))?;
    Ok(Time::from(date))
}
