//! Who vouches for an image: certificate and key for `build`, `build-enclave` and `sign-eif`.
//!
//! | `--private-key` | where the key is |
//! |---|---|
//! | a path | in that PEM file |
//! | `arn:aws:kms:…` | in a KMS, Enclos's or AWS's |
//! | `pkcs11:…` (RFC 7512) | in a token |
//!
//! A key that stays with someone else altogether signs what `enclos eif measure` writes; `enclos eif attach` adds it.

mod root;

use std::path::{Path, PathBuf};

use clap::Args;
use enclos_eif::signature::Curve;
use enclos_eif::{Signer, SigningKey, ToBeSigned};
use enclos_token::{EcKey, TokenError, Uri};
use zeroize::Zeroizing;

use crate::codes::Code;
use crate::failure::{Failure, Outcome};
use crate::kms;

pub(crate) use root::TokenRoot;

/// Options that sign an image while it is built.
#[derive(Debug, Default, Args)]
pub(crate) struct Signing {
    /// Certificate to sign the image with, PEM; its key then shows in PCR8
    #[arg(long, value_name = "FILE", requires = "private_key")]
    signing_certificate: Option<PathBuf>,
    /// Private key that belongs to the certificate: a PEM file, a KMS key's ARN, or a pkcs11: URI
    #[arg(long, value_name = "KEY", requires = "signing_certificate")]
    private_key: Option<String>,
}

impl Signing {
    /// The signer, if the image is to be signed.
    pub(crate) fn signer(&self) -> Outcome<Option<Signer>> {
        match (&self.signing_certificate, &self.private_key) {
            (Some(certificate), Some(key)) => signer(certificate, key).map(Some),
            _ => Ok(None),
        }
    }
}

/// Reads a certificate and finds its key.
pub(crate) fn signer(certificate: &Path, key: &str) -> Outcome<Signer> {
    let certificate = read(certificate)?;
    let signer = if key.starts_with("arn:") {
        let key =
            kms::Key::new(key, None, None).map_err(|failure| failure.with_code(Code::SIGNING))?;
        Signer::new(&certificate, Box::new(KmsKey(key)))
    } else if key.starts_with("pkcs11:") {
        let key = open(key).map_err(|error| {
            Failure::aws(
                Code::SIGNING,
                anyhow::Error::new(error).context("cannot use the token's key"),
            )
        })?;
        Signer::new(&certificate, Box::new(TokenKey(key)))
    } else {
        let key = Zeroizing::new(read(Path::new(key))?);
        Signer::from_pem(&key, &certificate)
    };
    signer.map_err(|error| Failure::aws(Code::SIGNING, error))
}

/// Reads a file that signing needs.
pub(crate) fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::file(Some(Code::SIGNING), "read", path, error))
}

/// The private EC key that a `pkcs11:` URI names.
fn open(uri: &str) -> Result<EcKey, TokenError> {
    EcKey::open(&Uri::parse(uri)?)
}

struct TokenKey(EcKey);

impl SigningKey for TokenKey {
    /// The token gets the digest: few can hash, and all can sign one.
    fn sign(
        &self,
        message: &ToBeSigned,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.sign_digest(&message.digest())?)
    }
}

struct KmsKey(kms::Key);

impl SigningKey for KmsKey {
    fn sign(
        &self,
        message: &ToBeSigned,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let algorithm = match message.curve {
            Curve::P256 => "ECDSA_SHA_256",
            Curve::P384 => "ECDSA_SHA_384",
            Curve::P521 => "ECDSA_SHA_512",
        };
        let signed = self.0.sign(&message.digest(), algorithm);
        signed.map_err(|failure| failure.into_error().into())
    }
}
