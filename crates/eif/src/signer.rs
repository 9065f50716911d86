//! Signing images with a key from a file, from elsewhere, or with a signature made elsewhere (feature `build`).
//!
//! ECDSA signatures by keys from files are deterministic (RFC 6979): signing the same image twice gives the same bytes, so
//! that a signed image can be reproduced by whoever has the key and checked by whoever has not.

use std::fmt;
use std::io::{self, Read, Seek, Write};

use enclos_attest::PcrValue;
use p256::ecdsa::signature::Signer as _;
use x509_cert::Certificate;

use crate::builder::{BuildError, ImageWriter, Source};
use crate::error::EifError;
use crate::format::SectionKind;
use crate::measure::Measurements;
use crate::reader::Eif;
use crate::signature::{
    Curve, ImageSignature, SignatureError, encode_cose, encode_payload, encode_protected,
    encode_section, first_certificate, parse_certificate, to_be_signed,
};

/// Why a key and its certificate cannot sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// The certificate cannot be used.
    #[error("the signing certificate cannot be used")]
    Certificate(#[source] SignatureError),
    /// The key is not in a form that is read here.
    #[error(
        "the signing key is no PEM private key that can be read, expected an unencrypted PKCS#8 or SEC1 key \
         on the certificate's curve ({curve}); convert it with `openssl pkcs8 -topk8 -nocrypt`"
    )]
    Key {
        /// The certificate's curve.
        curve: Curve,
    },
    /// The certificate is another key's.
    #[error(
        "the signing key is not the one that the certificate is for; pass the pair that belongs together"
    )]
    OtherKey,
}

/// Why an image could not be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The image to sign was refused.
    #[error("the image cannot be signed as it is")]
    Image(#[from] EifError),
    /// The signed image could not be written.
    #[error("cannot write the signed image")]
    Write(#[from] BuildError),
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The key did not sign.
    #[error("the signing key does not sign")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key's signature has no form of a signature on this curve.
    #[error(
        "the signature is neither DER nor r and s of {curve} one after the other; sign the bytes that \
         `enclos eif measure` wrote, with the certificate's key"
    )]
    Encoding {
        /// The certificate's curve.
        curve: Curve,
    },
    /// The signature does not hold.
    #[error("the signature that was made does not hold")]
    Signature(#[from] SignatureError),
}

/// The bytes that a signature of an image is over (RFC 9052, section 4.4), and how they are hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToBeSigned {
    /// The certificate's curve.
    pub curve: Curve,
    /// The bytes. They depend on PCR0 alone.
    pub bytes: Vec<u8>,
}

impl ToBeSigned {
    /// What a certificate's key has to sign for an image with this PCR0.
    ///
    /// # Errors
    /// [`SignatureError`] when the certificate is none, or its key signs no images.
    pub fn new(certificate_pem: &str, pcr0: &PcrValue) -> Result<Self, SignatureError> {
        let (_, certificate) = parse_certificate(certificate_pem.as_bytes())?;
        let curve = Curve::of(&certificate).ok_or(SignatureError::Key)?;
        Ok(Self::on(curve, pcr0))
    }

    fn on(curve: Curve, pcr0: &PcrValue) -> Self {
        let bytes = to_be_signed(&encode_protected(curve), &encode_payload(pcr0));
        Self { curve, bytes }
    }

    /// The bytes' digest by the curve's hash, which is what a key signs.
    pub fn digest(&self) -> Vec<u8> {
        aws_lc_rs::digest::digest(self.curve.hash(), &self.bytes)
            .as_ref()
            .to_vec()
    }
}

/// A private key, wherever it is kept: in memory, in a token, in a KMS, or with someone who has signed already.
pub trait SigningKey {
    /// An ECDSA signature, as DER or as r and s one after the other.
    ///
    /// # Errors
    /// Whatever kept the key from signing.
    fn sign(
        &self,
        message: &ToBeSigned,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;
}

/// A signature that was made before, elsewhere.
struct Made(Vec<u8>);

impl SigningKey for Made {
    fn sign(&self, _: &ToBeSigned) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.clone())
    }
}

/// A key with its certificate.
pub struct Signer {
    key: Box<dyn SigningKey>,
    curve: Curve,
    certificate_pem: Vec<u8>,
    certificate_der: Vec<u8>,
}

enum Key {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
}

/// The key stays out of logs.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("pcr8", &self.pcr8())
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Takes a private key (PKCS#8 or SEC1) and its certificate, both as PEM text.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn from_pem(key_pem: &str, certificate_pem: &str) -> Result<Self, SignerError> {
        let (certificate, curve, _) = read_certificate(certificate_pem)?;
        let key = Key::from_pem(curve, private_key(key_pem)).ok_or(SignerError::Key { curve })?;
        if key.public() != public_key(&certificate) {
            return Err(SignerError::OtherKey);
        }
        Self::new(certificate_pem, Box::new(key))
    }

    /// Takes a key that is kept elsewhere. Whether it is the certificate's shows when it signs: what does not verify is
    /// never written.
    ///
    /// # Errors
    /// [`SignerError::Certificate`].
    pub fn new(certificate_pem: &str, key: Box<dyn SigningKey>) -> Result<Self, SignerError> {
        let (_, curve, certificate_der) = read_certificate(certificate_pem)?;
        Ok(Self {
            key,
            curve,
            certificate_pem: first_certificate(certificate_pem).as_bytes().to_vec(),
            certificate_der,
        })
    }

    /// Takes a signature of [`ToBeSigned`] that was made elsewhere; it fits one image only.
    ///
    /// # Errors
    /// [`SignerError::Certificate`].
    pub fn detached(certificate_pem: &str, signature: &[u8]) -> Result<Self, SignerError> {
        Self::new(certificate_pem, Box::new(Made(signature.to_vec())))
    }

    /// PCR8 of the images it signs.
    pub fn pcr8(&self) -> PcrValue {
        PcrValue::of_certificate(&self.certificate_der)
    }

    /// A signature section for an image with this PCR0, verified.
    pub(crate) fn sign(&self, pcr0: &PcrValue) -> Result<Vec<u8>, SigningError> {
        let curve = self.curve;
        let message = ToBeSigned::on(curve, pcr0);
        let signature = self.key.sign(&message).map_err(SigningError::Key)?;
        let signature = fixed(curve, &signature).ok_or(SigningError::Encoding { curve })?;
        let cose = encode_cose(&encode_protected(curve), &encode_payload(pcr0), &signature);
        let section = encode_section(&self.certificate_pem, &cose);
        ImageSignature::parse(&section)?.verify(pcr0)?;
        Ok(section)
    }
}

fn read_certificate(pem: &str) -> Result<(Certificate, Curve, Vec<u8>), SignerError> {
    let (der, certificate) = parse_certificate(pem.as_bytes()).map_err(SignerError::Certificate)?;
    let curve = Curve::of(&certificate).ok_or(SignerError::Certificate(SignatureError::Key))?;
    Ok((certificate, curve, der))
}

/// r and s one after the other, from there or from DER.
fn fixed(curve: Curve, signature: &[u8]) -> Option<Vec<u8>> {
    let len = match curve {
        Curve::P256 => 64,
        Curve::P384 => 96,
        Curve::P521 => 132,
    };
    if signature.len() == len {
        return Some(signature.to_vec());
    }
    Some(match curve {
        Curve::P256 => p256::ecdsa::Signature::from_der(signature)
            .ok()?
            .to_bytes()
            .to_vec(),
        Curve::P384 => p384::ecdsa::Signature::from_der(signature)
            .ok()?
            .to_bytes()
            .to_vec(),
        Curve::P521 => p521::ecdsa::Signature::from_der(signature)
            .ok()?
            .to_bytes()
            .to_vec(),
    })
}

/// Copies an image with this signature in place of any that it has.
///
/// # Errors
/// [`SignError`]; what was written until then is no image.
pub fn sign_image<R: Read + Seek, W: Write + Seek>(
    image: &mut R,
    signer: &Signer,
    out: &mut W,
) -> Result<Measurements, SignError> {
    let eif = Eif::parse(image)?;
    let pass = crate::measure::pass(image, &eif)?;
    if pass.crc != eif.header.crc {
        return Err(EifError::Crc {
            stored: eif.header.crc,
            computed: pass.crc,
        }
        .into());
    }
    let mut writer = ImageWriter::begin(out).map_err(BuildError::Write)?;
    for section in eif
        .sections()
        .iter()
        .filter(|s| s.kind != SectionKind::Signature)
    {
        let mut body = eif.section(image, section)?;
        let copy = move |out: &mut dyn Write| io::copy(&mut body, out).map(drop);
        writer.section(
            section.kind,
            Source::Producer(Box::new(copy)),
            &|_, _, _| Ok(()),
        )?;
    }
    writer.sign(signer)?;
    Ok(writer.finish().map_err(BuildError::Write)?)
}

impl Key {
    fn from_pem(curve: Curve, pem: &str) -> Option<Self> {
        Some(match curve {
            Curve::P256 => Self::P256(p256::SecretKey::from_pem(pem).ok()?.into()),
            Curve::P384 => Self::P384(p384::SecretKey::from_pem(pem).ok()?.into()),
            Curve::P521 => Self::P521(p521::SecretKey::from_pem(pem).ok()?.into()),
        })
    }

    /// The public key as an uncompressed point.
    fn public(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
            Self::P384(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
            Self::P521(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
        }
    }
}

impl SigningKey for Key {
    fn sign(
        &self,
        message: &ToBeSigned,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let message = message.bytes.as_slice();
        Ok(match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Self::P521(key) => {
                let signature: p521::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
        })
    }
}

fn public_key(certificate: &Certificate) -> &[u8] {
    certificate
        .tbs_certificate()
        .subject_public_key_info()
        .subject_public_key
        .raw_bytes()
}

/// The private key's own block: `openssl ecparam -genkey` writes the curve's parameters before it, and a certificate may follow.
fn private_key(pem: &str) -> &str {
    const LABELS: [&str; 2] = ["PRIVATE KEY-----", "EC PRIVATE KEY-----"];
    let block = LABELS.iter().find_map(|label| {
        let rest = &pem[pem.find(&format!("-----BEGIN {label}"))?..];
        let end = format!("-----END {label}");
        Some(&rest[..rest.find(&end)? + end.len()])
    });
    block.unwrap_or(pem)
}
