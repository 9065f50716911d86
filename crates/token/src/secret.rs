//! Secret keys that others follow from: HMAC-SHA-256, keyed in the token.
//!
//! What protects something outside of the token has to come out of it somehow. Sealing in the token (AES-GCM, `C_WrapKey`) would do too, but tokens
//! differ in it: some choose the nonce themselves, some have no GCM, some wrap only what lies in them already. An HMAC takes any message,
//! is the same each time, and has neither nonce nor padding. Who could use the token once for the same message has the derived
//! key, as who could have it open a sealed one would; the token's own key stays in it.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use zeroize::Zeroizing;

use crate::error::refused;
use crate::{Login, TokenError, Uri, only};

/// What a key is called in errors.
const KIND: &str = "generic secret";

/// Bytes of a new key: those of the HMAC.
const BYTES: u64 = 32;

/// A key that followed from a token's.
pub type Derived = Zeroizing<[u8; 32]>;

/// A generic secret key in a token, logged in to, that signs and cannot be taken out.
pub struct SecretKey {
    login: Login,
    key: ObjectHandle,
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKey").finish_non_exhaustive()
    }
}

impl SecretKey {
    /// Finds it and logs in.
    ///
    /// # Errors
    /// If there is not exactly one, the token does not let us in, or the key could be taken out of it.
    pub fn open(uri: &Uri) -> Result<Self, TokenError> {
        let login = Login::new(uri, false)?;
        let key = only(&found(&login)?, KIND)?;
        Self::checked(login, key)
    }

    /// Finds it, or makes it if the token has none of this name.
    ///
    /// # Errors
    /// If the URI names no key, or as [`SecretKey::open`].
    pub fn open_or_make(uri: &Uri) -> Result<Self, TokenError> {
        if uri.names().is_empty() {
            return Err(TokenError::Nameless);
        }
        let login = Login::new(uri, true)?;
        let found = found(&login)?;
        let key = match found.is_empty() {
            true => make(&login)?,
            false => only(&found, KIND)?,
        };
        Self::checked(login, key)
    }

    fn checked(login: Login, key: ObjectHandle) -> Result<Self, TokenError> {
        let wanted = [AttributeType::Extractable, AttributeType::Sensitive];
        let told = login.session.get_attributes(key, &wanted);
        let told = told.map_err(refused("tell whether the key can be taken out of it"))?;
        let stays = told.contains(&Attribute::Extractable(false))
            && told.contains(&Attribute::Sensitive(true));
        match stays {
            true => Ok(Self { login, key }),
            false => Err(TokenError::Extractable),
        }
    }

    /// The key for one message, the same each time.
    ///
    /// # Errors
    /// If the token refuses.
    pub fn derive(&self, message: &[u8]) -> Result<Derived, TokenError> {
        let session = &self.login.session;
        let signed = session.sign(&Mechanism::Sha256Hmac, self.key, message);
        let signed = signed.map_err(refused("compute an HMAC-SHA-256 with this key"))?;
        let signed = Zeroizing::new(signed);
        let mut derived = Derived::default();
        if signed.len() != derived.len() {
            return Err(TokenError::Length(signed.len()));
        }
        derived.copy_from_slice(&signed);
        Ok(derived)
    }
}

/// The keys that the URI names; some tokens have a type of its own for those of this HMAC.
fn found(login: &Login) -> Result<Vec<ObjectHandle>, TokenError> {
    let mut all = Vec::new();
    for kind in [KeyType::GENERIC_SECRET, KeyType::SHA256_HMAC] {
        all.extend(login.find(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(kind),
            Attribute::Token(true),
            Attribute::Sign(true),
        ])?);
    }
    Ok(all)
}

fn make(login: &Login) -> Result<ObjectHandle, TokenError> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(BYTES.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    template.extend(login.uri.names());
    let made = login
        .session
        .generate_key(&Mechanism::GenericSecretKeyGen, &template);
    made.map_err(refused("make a generic secret key"))
}
