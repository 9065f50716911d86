//! Keys in PKCS#11 tokens, which sign, or which other keys follow from, and never leave them. A key is named by a URI (RFC 7512).
//!
//! ```text
//! pkcs11:token=build;object=eif?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/secrets/pin
//! ```
//!
//! | attribute | meaning |
//! |---|---|
//! | `token`, `serial`, `slot-id` | which token; needed where there are several |
//! | `object`, `id` | label and id of the key; needed where the token has several of its kind |
//! | `module-path` | the token's library; without it `ENCLOS_PKCS11_MODULE` |
//! | `pin-source`, `pin-value` | a file with the PIN, or the PIN; without them the file `ENCLOS_PKCS11_PIN_FILE`, or the PIN `ENCLOS_PKCS11_PIN`. Other users may see arguments: prefer a file |
//!
//! The library is loaded when a key is opened, and only then.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod ec;
mod error;
mod library;
mod secret;
mod uri;

use cryptoki::error::RvError;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};

pub use ec::EcKey;
pub use error::TokenError;
pub use secret::{Derived, SecretKey};
pub use uri::Uri;

use error::{login_failed, refused, unless};

/// A session in which a token lets us use its keys, until dropped.
struct Login {
    session: Session,
    uri: Uri,
}

impl Login {
    /// Logs in to the one token that the URI names. `change` allows to make keys.
    fn new(uri: &Uri, change: bool) -> Result<Self, TokenError> {
        let module = library::load(&uri.module()?)?;
        let slot = library::find_token(&module, uri)?;
        let session = match change {
            true => module.open_rw_session(slot),
            false => module.open_ro_session(slot),
        };
        let session = session.map_err(refused("open a session"))?;
        let pin = uri.pin()?;
        let login = session.login(UserType::User, Some(&pin));
        unless(RvError::UserAlreadyLoggedIn, login).map_err(login_failed)?;
        let uri = uri.clone();
        Ok(Self { session, uri })
    }

    /// The keys of a kind that have the URI's label and id.
    fn find(&self, kind: &[Attribute]) -> Result<Vec<ObjectHandle>, TokenError> {
        let template = [kind, &self.uri.names()].concat();
        let found = self.session.find_objects(&template);
        found.map_err(refused("list its keys"))
    }
}

/// The only one of the keys that were found.
fn only(found: &[ObjectHandle], kind: &'static str) -> Result<ObjectHandle, TokenError> {
    match found {
        [key] => Ok(*key),
        _ => Err(TokenError::Key {
            found: found.len(),
            kind,
        }),
    }
}
