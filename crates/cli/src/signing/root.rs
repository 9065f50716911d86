//! An attestation root's key in a token, for `enclos pki`.

use std::error::Error;

use enclos_attest::pki::RootKey;
use enclos_token::EcKey;

use crate::failure::{Failure, Outcome};

/// A key in a token that can be a root's.
pub(crate) struct TokenRoot {
    key: EcKey,
    point: Vec<u8>,
}

impl TokenRoot {
    /// Finds the key and logs in.
    pub(crate) fn open(uri: &str) -> Outcome<Self> {
        let opened = super::open(uri).and_then(|key| {
            let point = key.p384_point()?;
            Ok(Self { key, point })
        });
        opened.map_err(|error| {
            Failure::from(anyhow::Error::new(error).context("cannot use the token's key"))
        })
    }
}

impl RootKey for TokenRoot {
    fn point(&self) -> &[u8] {
        &self.point
    }

    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        Ok(self.key.sign_digest(digest)?)
    }
}
