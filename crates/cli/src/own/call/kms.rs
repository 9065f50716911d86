//! Options of `enclos call` for KMS: the payload is encrypted with a KMS key instead of sealed to the enclave's own.

use std::path::PathBuf;

use clap::Args;

use crate::failure::Outcome;
use crate::kms::Key;

/// Options for KMS.
#[derive(Debug, Args)]
pub(super) struct Kms {
    /// Encrypt with this KMS key instead of sealing to the enclave's own key
    #[arg(long, value_name = "ARN")]
    kms_key: Option<String>,
    /// Where the KMS answers; by default AWS's, or AWS_ENDPOINT_URL_KMS
    #[arg(long, value_name = "URL", requires = "kms_key")]
    kms_endpoint: Option<String>,
    /// Certificates to trust for an https endpoint, PEM, instead of Mozilla's or AWS_CA_BUNDLE's
    #[arg(long, value_name = "FILE", requires = "kms_key")]
    kms_ca: Option<PathBuf>,
}

impl Kms {
    /// The key, if KMS is to be used.
    pub(super) fn wanted(&self) -> Outcome<Option<Key>> {
        let arn = self.kms_key.as_deref();
        arn.map(|arn| Key::new(arn, self.kms_endpoint.as_deref(), self.kms_ca.as_deref()))
            .transpose()
    }
}
