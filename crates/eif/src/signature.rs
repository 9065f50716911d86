//! The signature section: who vouches for PCR0.
//!
//! ```text
//! CBOR array(1) of map(2)
//!   "signing_certificate": array of uints, the PEM text
//!   "signature":           array of uints, an untagged COSE_Sign1:
//!      [ protected {1: alg}, {}, payload {"register_index": 0, "register_value": [48 uints]}, r‖s ]
//! ```
//!
//! The payload is never believed: it is rebuilt from the PCR0 that was measured, and the signature is
//! verified over that. The certificate's chain says nothing here; its digest is PCR8.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, UnparsedPublicKey,
    VerificationAlgorithm,
};
use enclos_attest::PcrValue;
use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Document};

use crate::format::MAX_SIGNATURE_LEN;

/// Why a signature was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The section is longer than the format allows.
    #[error(
        "the signature section is {len} bytes long, the limit is {MAX_SIGNATURE_LEN}; sign the image again"
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The section's CBOR is malformed.
    #[error("the signature section is not the expected CBOR; sign the image again")]
    Cbor(#[from] minicbor::decode::Error),
    /// The section's CBOR is well-formed and something else.
    #[error("the signature section has {found}, expected {expected}; sign the image again")]
    Shape {
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// The certificate is no PEM certificate.
    #[error("the signing certificate is not a PEM certificate; sign with a valid one")]
    Certificate(#[from] x509_cert::der::Error),
    /// The certificate's key is of a kind that signs no images.
    #[error("the signing certificate's key is not on P-256, P-384 or P-521; sign with such a key")]
    Key,
    /// The COSE algorithm is not the one for the certificate's key.
    #[error(
        "the signature's algorithm is {found}, its certificate's key needs {expected}; sign the image again"
    )]
    Algorithm {
        /// COSE number in the signature.
        found: i64,
        /// COSE number for the key.
        expected: i64,
    },
    /// The signature covers another PCR0.
    #[error(
        "the signature is for another image: it does not cover PCR0 {pcr0}; sign the image again"
    )]
    OtherImage {
        /// The measured value.
        pcr0: PcrValue,
    },
    /// The signature was not made by the certificate's key.
    #[error("the signature was not made by the key of its certificate; sign the image again")]
    Forged,
    /// The certificate is not valid yet.
    #[error("the signing certificate is not valid before {not_before}; check this host's clock")]
    NotYetValid {
        /// Start of its validity.
        not_before: String,
    },
    /// The certificate is not valid any more.
    #[error("the signing certificate expired on {not_after}; sign the image with a valid one")]
    Expired {
        /// End of its validity.
        not_after: String,
    },
}

/// A curve, which decides on hash and COSE algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256 with SHA-256: ES256.
    P256,
    /// NIST P-384 with SHA-384: ES384.
    P384,
    /// NIST P-521 with SHA-512: ES512.
    P521,
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        })
    }
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    /// COSE algorithm number (RFC 9053, table 1).
    pub(crate) fn cose(self) -> i64 {
        match self {
            Self::P256 => -7,
            Self::P384 => -35,
            Self::P521 => -36,
        }
    }

    fn oid(self) -> ObjectIdentifier {
        ObjectIdentifier::new_unwrap(match self {
            Self::P256 => "1.2.840.10045.3.1.7",
            Self::P384 => "1.3.132.0.34",
            Self::P521 => "1.3.132.0.35",
        })
    }

    /// The hash that a signature on this curve is over.
    #[cfg(feature = "build")]
    pub(crate) fn hash(self) -> &'static aws_lc_rs::digest::Algorithm {
        match self {
            Self::P256 => &aws_lc_rs::digest::SHA256,
            Self::P384 => &aws_lc_rs::digest::SHA384,
            Self::P521 => &aws_lc_rs::digest::SHA512,
        }
    }

    fn verifier(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }

    pub(crate) fn of(certificate: &Certificate) -> Option<Self> {
        let parameters = certificate
            .tbs_certificate()
            .subject_public_key_info()
            .algorithm
            .parameters
            .as_ref()?;
        let oid = parameters.decode_as::<ObjectIdentifier>().ok()?;
        Self::ALL.into_iter().find(|curve| curve.oid() == oid)
    }
}

/// A parsed signature section; [`ImageSignature::verify`] says whether it holds.
#[derive(Debug, Clone)]
pub struct ImageSignature {
    certificate_der: Vec<u8>,
    certificate: Certificate,
    curve: Curve,
    protected: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl ImageSignature {
    /// Parses the section's data.
    ///
    /// # Errors
    /// Any [`SignatureError`] about form; none about whether the signature holds.
    pub fn parse(section: &[u8]) -> Result<Self, SignatureError> {
        if section.len() > usize::try_from(MAX_SIGNATURE_LEN).unwrap_or(usize::MAX) {
            return Err(SignatureError::TooLong { len: section.len() });
        }
        let (pem, cose) = parse_section(section)?;
        let (certificate_der, certificate) = parse_certificate(&pem)?;
        let curve = Curve::of(&certificate).ok_or(SignatureError::Key)?;
        let [protected, payload, signature] = parse_cose(&cose)?;
        let found = parse_protected(&protected)?;
        if found != curve.cose() {
            return Err(SignatureError::Algorithm {
                found,
                expected: curve.cose(),
            });
        }
        Ok(Self {
            certificate_der,
            certificate,
            curve,
            protected,
            payload,
            signature,
        })
    }

    /// Verifies that the certificate's key signed this PCR0.
    ///
    /// # Errors
    /// [`SignatureError::OtherImage`] or [`SignatureError::Forged`].
    pub fn verify(&self, pcr0: &PcrValue) -> Result<(), SignatureError> {
        let payload = encode_payload(pcr0);
        if payload != self.payload {
            return Err(SignatureError::OtherImage { pcr0: *pcr0 });
        }
        let key = self.certificate.tbs_certificate().subject_public_key_info();
        UnparsedPublicKey::new(self.curve.verifier(), key.subject_public_key.raw_bytes())
            .verify(&to_be_signed(&self.protected, &payload), &self.signature)
            .map_err(|_| SignatureError::Forged)
    }

    /// Checks that the certificate is valid at `now`.
    ///
    /// # Errors
    /// [`SignatureError::NotYetValid`] or [`SignatureError::Expired`].
    pub fn check_validity(&self, now: SystemTime) -> Result<(), SignatureError> {
        let validity = self.certificate.tbs_certificate().validity();
        if now < validity.not_before.to_system_time() {
            return Err(SignatureError::NotYetValid {
                not_before: validity.not_before.to_string(),
            });
        }
        if now > validity.not_after.to_system_time() {
            return Err(SignatureError::Expired {
                not_after: validity.not_after.to_string(),
            });
        }
        Ok(())
    }

    /// PCR8: the certificate's measurement.
    pub fn pcr8(&self) -> PcrValue {
        PcrValue::of_certificate(&self.certificate_der)
    }

    /// DER of the signing certificate.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate_der
    }

    /// The signing certificate.
    pub(crate) fn certificate(&self) -> &Certificate {
        &self.certificate
    }
}

fn shape(found: impl Into<String>, expected: &'static str) -> SignatureError {
    SignatureError::Shape {
        found: found.into(),
        expected,
    }
}

/// The PEM text and the COSE bytes of the section's only element.
fn parse_section(section: &[u8]) -> Result<(Vec<u8>, Vec<u8>), SignatureError> {
    let mut cbor = Decoder::new(section);
    match cbor.array()? {
        Some(1) => {}
        found => return Err(shape(format!("{found:?} signatures"), "exactly one")),
    }
    if cbor.map()? != Some(2) {
        return Err(shape(
            "a signature with other fields",
            "certificate and signature",
        ));
    }
    expect_key(&mut cbor, "signing_certificate")?;
    let certificate = parse_uints(&mut cbor)?;
    expect_key(&mut cbor, "signature")?;
    let signature = parse_uints(&mut cbor)?;
    expect_end(&cbor)?;
    Ok((certificate, signature))
}

fn expect_key(cbor: &mut Decoder<'_>, key: &'static str) -> Result<(), SignatureError> {
    match cbor.str()? {
        found if found == key => Ok(()),
        found => Err(shape(format!("the key {found:?}"), key)),
    }
}

fn expect_end(cbor: &Decoder<'_>) -> Result<(), SignatureError> {
    match cbor.input().len() - cbor.position() {
        0 => Ok(()),
        more => Err(shape(format!("{more} bytes more"), "an end")),
    }
}

/// A string of bytes, written as an array of unsigned integers.
fn parse_uints(cbor: &mut Decoder<'_>) -> Result<Vec<u8>, SignatureError> {
    if cbor.datatype()? != Type::Array {
        return Err(shape("another type", "an array of bytes"));
    }
    cbor.array_iter::<u8>()?.map(|byte| Ok(byte?)).collect()
}

/// The first certificate of a PEM file with several blocks, which is the one that signs: its issuers may follow it, a key may
/// be before it. A file with one block or none is left whole.
pub fn first_certificate(text: &str) -> &str {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    if text.matches("-----BEGIN ").count() < 2 {
        return text;
    }
    let first = text.find(BEGIN).map(|from| &text[from..]);
    let end = first.and_then(|first| first.find(END));
    match (first, end) {
        (Some(first), Some(end)) => &first[..end + END.len()],
        _ => text,
    }
}

pub(crate) fn parse_certificate(pem: &[u8]) -> Result<(Vec<u8>, Certificate), SignatureError> {
    let text = std::str::from_utf8(pem).map_err(|_| shape("no text", "a PEM certificate"))?;
    let (label, document) = Document::from_pem(first_certificate(text))?;
    if label != "CERTIFICATE" {
        return Err(shape(format!("a PEM {label}"), "a PEM CERTIFICATE"));
    }
    let der = document.into_vec();
    let certificate = Certificate::from_der(&der)?;
    Ok((der, certificate))
}

/// Protected header, payload and signature.
fn parse_cose(cose: &[u8]) -> Result<[Vec<u8>; 3], SignatureError> {
    let mut cbor = Decoder::new(cose);
    if cbor.array()? != Some(4) {
        return Err(shape("another structure", "an untagged COSE_Sign1"));
    }
    let protected = cbor.bytes()?.to_vec();
    if cbor.map()? != Some(0) {
        return Err(shape("unprotected headers", "none"));
    }
    let payload = cbor.bytes()?.to_vec();
    let signature = cbor.bytes()?.to_vec();
    expect_end(&cbor)?;
    Ok([protected, payload, signature])
}

/// The algorithm, the only protected header.
fn parse_protected(protected: &[u8]) -> Result<i64, SignatureError> {
    let mut cbor = Decoder::new(protected);
    if cbor.map()? != Some(1) || cbor.int()? != minicbor::data::Int::from(1) {
        return Err(shape("other protected headers", "the algorithm"));
    }
    let algorithm = cbor.i64()?;
    expect_end(&cbor)?;
    Ok(algorithm)
}

/// The payload that a signature of this PCR0 must have.
pub(crate) fn encode_payload(pcr0: &PcrValue) -> Vec<u8> {
    encode(|cbor| {
        cbor.map(2)?
            .str("register_index")?
            .u8(0)?
            .str("register_value")?;
        encode_uints(cbor, pcr0.as_ref())
    })
}

#[cfg(feature = "build")]
pub(crate) fn encode_protected(curve: Curve) -> Vec<u8> {
    encode(|cbor| cbor.map(1)?.u8(1)?.i64(curve.cose()).map(drop))
}

/// An untagged COSE_Sign1.
#[cfg(feature = "build")]
pub(crate) fn encode_cose(protected: &[u8], payload: &[u8], signature: &[u8]) -> Vec<u8> {
    encode(|cbor| {
        cbor.array(4)?
            .bytes(protected)?
            .map(0)?
            .bytes(payload)?
            .bytes(signature)
            .map(drop)
    })
}

/// The signature section.
#[cfg(feature = "build")]
pub(crate) fn encode_section(certificate_pem: &[u8], cose: &[u8]) -> Vec<u8> {
    encode(|cbor| {
        cbor.array(1)?.map(2)?.str("signing_certificate")?;
        encode_uints(cbor, certificate_pem)?;
        cbor.str("signature")?;
        encode_uints(cbor, cose)
    })
}

/// The bytes that are signed (RFC 9052, section 4.4).
pub(crate) fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    encode(|cbor| {
        cbor.array(4)?
            .str("Signature1")?
            .bytes(protected)?
            .bytes(&[])?
            .bytes(payload)
            .map(drop)
    })
}

type Encoding = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn encode(write: impl FnOnce(&mut Encoder<&mut Vec<u8>>) -> Encoding) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into a vector cannot fail: the error type has no value but a message that nobody makes.
    drop(write(&mut Encoder::new(&mut bytes)));
    bytes
}

fn encode_uints(cbor: &mut Encoder<&mut Vec<u8>>, bytes: &[u8]) -> Encoding {
    cbor.array(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
    bytes.iter().try_for_each(|byte| cbor.u8(*byte).map(drop))
}
