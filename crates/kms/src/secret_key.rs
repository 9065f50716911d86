//! Secret access keys, and the signing keys of Signature Version 4 that come from them.
//!
//! A signing key is five HMACs away from its secret, and the same for a day, a region and a service: as long as a client signs for
//! one scope, it is derived once. It is remembered only after a signature was right, so strangers cannot displace it.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

/// The key of one scope.
pub(crate) struct SigningKey {
    scope: String,
    key: hmac::Key,
}

impl SigningKey {
    /// The signature of a text.
    pub(crate) fn sign(&self, text: &str) -> hmac::Tag {
        hmac::sign(&self.key, text.as_bytes())
    }
}

/// A secret access key.
pub struct SecretKey {
    secret: Zeroizing<Vec<u8>>,
    last: Mutex<Option<Arc<SigningKey>>>,
}

impl SecretKey {
    /// A secret that nothing has been signed with yet.
    #[must_use]
    pub fn new(secret: Zeroizing<Vec<u8>>) -> Self {
        Self {
            secret,
            last: Mutex::default(),
        }
    }

    /// The signing key of a scope: `date/region/service/aws4_request`.
    pub(crate) fn signing_key(&self, scope: &str) -> Arc<SigningKey> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(key) if key.scope == scope => Arc::clone(key),
            _ => Arc::new(self.derive(scope)),
        }
    }

    /// A signing key that was found to be the one that clients use now.
    pub(crate) fn remember(&self, key: Arc<SigningKey>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    fn derive(&self, scope: &str) -> SigningKey {
        let mut start = Zeroizing::new(b"AWS4".to_vec());
        start.extend_from_slice(&self.secret);
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, &start);
        for part in scope.split('/') {
            let tag = hmac::sign(&key, part.as_bytes());
            key = hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref());
        }
        SigningKey {
            scope: scope.to_owned(),
            key,
        }
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_key_signs_for_its_scope_alone() {
        let fresh = || SecretKey::new(b"secret".to_vec().into());
        let scopes = [
            "20261127/us-east-1/kms/aws4_request",
            "20261128/us-east-1/kms/aws4_request",
            "20261127/us-east-2/kms/aws4_request",
            "20261127/us-east-1/sts/aws4_request",
        ];
        let known = fresh();
        for scope in scopes {
            let expected = fresh().signing_key(scope).sign("text");
            for _ in 0..2 {
                let key = known.signing_key(scope);
                assert_eq!(key.sign("text").as_ref(), expected.as_ref(), "{scope}");
                known.remember(key);
            }
        }
    }

    #[test]
    fn what_was_not_found_right_is_not_remembered() {
        let known = SecretKey::new(b"secret".to_vec().into());
        let key = known.signing_key("20261127/us-east-1/kms/aws4_request");
        known.remember(Arc::clone(&key));
        known.signing_key("20261127/invented/kms/aws4_request");
        let again = known.signing_key("20261127/us-east-1/kms/aws4_request");
        assert!(Arc::ptr_eq(&key, &again));
    }
}
