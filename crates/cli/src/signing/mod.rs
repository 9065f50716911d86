//! Who vouches for an image: certificate and key for `build`, `build-enclave` and `sign-eif`.

use std::path::{Path, PathBuf};

use clap::Args;
use enclos_eif::Signer;
use zeroize::Zeroizing;

use crate::codes::Code;
use crate::failure::{Failure, Outcome};

/// Options that sign an image while it is built.
#[derive(Debug, Default, Args)]
pub(crate) struct Signing {
    /// Certificate to sign the image with, PEM; its key then shows in PCR8
    #[arg(long, value_name = "FILE", requires = "private_key")]
    signing_certificate: Option<PathBuf>,
    /// Private key that belongs to the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "signing_certificate")]
    private_key: Option<PathBuf>,
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

/// Reads a certificate and its key.
pub(crate) fn signer(certificate: &Path, key: &Path) -> Outcome<Signer> {
    if key.to_string_lossy().starts_with("arn:") {
        return Err(Failure::aws_text(Code::SIGNING, "a key in KMS cannot sign images here")
            .hint("give the path of a PEM private key; where the key must stay in KMS, sign with AWS's nitro-cli"));
    }
    let certificate = read(certificate)?;
    let key = Zeroizing::new(read(key)?);
    Signer::from_pem(&key, &certificate).map_err(|error| Failure::aws(Code::SIGNING, error))
}

fn read(path: &Path) -> Outcome<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::file(Some(Code::SIGNING), "read", path, error))
}
