//! A key that follows from one in a PKCS#11 token: what protects `root.key` where the token is.
//!
//! ```text
//! key = HMAC-SHA-256(the token's key, "enclos-kms root key 1" ‖ salt (32)), computed in the token
//! ```
//!
//! The versions of the root key in the file are under it as they are under a passphrase's. So the token is needed once, when a process starts, and neither
//! its speed nor its absence later stops anything. Each protection has a salt of its own, and with it a key of its own. Why an HMAC and not
//! encryption in the token: [`enclos_token::SecretKey`].
//!
//! `root.key` says which key of which token it is and nothing else: a file must not name a library that this process then loads, nor where a
//! PIN is.

use enclos_token::{SecretKey, Uri};
use serde::{Deserialize, Serialize};

use super::random_array;
use super::seal::{RootKeyError, Secret};

/// What it is derived for.
const LABEL: &[u8] = b"enclos-kms root key 1";

/// A token's key, and the salt of what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKey {
    key: String,
    #[serde(with = "hex::serde")]
    salt: [u8; 32],
}

impl TokenKey {
    /// A new salt, and what follows. `make` makes the token's key if there is none of its name.
    pub(super) fn new(uri: &Uri, make: bool) -> Result<(Self, Secret), RootKeyError> {
        let token = match make {
            true => SecretKey::open_or_make(uri)?,
            false => SecretKey::open(uri)?,
        };
        let new = Self {
            key: uri.key(),
            salt: random_array()?,
        };
        let secret = new.derive(&token)?;
        Ok((new, secret))
    }

    /// Which key it is, as a `pkcs11:` URI.
    pub(super) fn uri(&self) -> &str {
        &self.key
    }

    /// Asks the token.
    pub(super) fn open(&self) -> Result<Secret, RootKeyError> {
        let uri = Uri::parse(&self.key)?;
        if uri.key() != self.key {
            let error = "its token's key is named with more than which key it is".to_owned();
            return Err(RootKeyError::Damaged(error));
        }
        self.derive(&SecretKey::open(&uri)?)
    }

    fn derive(&self, token: &SecretKey) -> Result<Secret, RootKeyError> {
        Ok(token.derive(&[LABEL, &self.salt].concat())?)
    }
}
