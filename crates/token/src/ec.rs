//! Private EC keys, which sign.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use crate::error::refused;
use crate::{Login, TokenError, Uri, only};

/// Named curve secp384r1, DER: what `CKA_EC_PARAMS` holds.
const SECP384R1: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// Before an uncompressed point of P-384 when it stands in an OCTET STRING, as PKCS#11 says; some tokens leave it out.
const OCTETS_97: &[u8] = &[0x04, 0x61];

/// Bytes of an uncompressed point of P-384.
const POINT: usize = 97;

/// A private EC key in a token, logged in to.
pub struct EcKey {
    login: Login,
    key: ObjectHandle,
}

impl std::fmt::Debug for EcKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EcKey").finish_non_exhaustive()
    }
}

impl EcKey {
    /// Finds it and logs in.
    ///
    /// # Errors
    /// If there is not exactly one, or the token does not let us in.
    pub fn open(uri: &Uri) -> Result<Self, TokenError> {
        let login = Login::new(uri, false)?;
        let found = login.find(&[
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::EC),
        ])?;
        let key = only(&found, "private EC")?;
        Ok(Self { login, key })
    }

    /// The public half of a P-384 key: its uncompressed point.
    ///
    /// # Errors
    /// If the token has no such public key beside it, or it is of another curve.
    pub fn p384_point(&self) -> Result<Vec<u8>, TokenError> {
        let read = refused("tell what key it is");
        let session = &self.login.session;
        let names = [AttributeType::Id, AttributeType::Label];
        let mut template = session.get_attributes(self.key, &names).map_err(&read)?;
        // An id is what binds the two halves; only a key without one is known by its label.
        if template
            .iter()
            .any(|name| matches!(name, Attribute::Id(id) if !id.is_empty()))
        {
            template.retain(|name| matches!(name, Attribute::Id(_)));
        }
        template.push(Attribute::Class(ObjectClass::PUBLIC_KEY));
        template.push(Attribute::KeyType(KeyType::EC));
        let found = session.find_objects(&template).map_err(&read)?;
        let [public] = found.as_slice() else {
            return Err(TokenError::NoPublic { found: found.len() });
        };
        let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
        let values = session.get_attributes(*public, &wanted).map_err(&read)?;
        let (mut curve, mut point) = (Vec::new(), Vec::new());
        for value in values {
            match value {
                Attribute::EcParams(params) => curve = params,
                Attribute::EcPoint(bytes) => point = bytes,
                _ => {}
            }
        }
        let bare = point
            .strip_prefix(OCTETS_97)
            .filter(|bare| bare.len() == POINT);
        let point = bare.unwrap_or(&point).to_vec();
        if curve != SECP384R1 || point.len() != POINT {
            return Err(TokenError::Curve);
        }
        Ok(point)
    }

    /// Signs a digest with ECDSA: r and s.
    ///
    /// # Errors
    /// If the token refuses.
    pub fn sign_digest(&self, digest: &[u8]) -> Result<Vec<u8>, TokenError> {
        let session = &self.login.session;
        let signed = session.sign(&Mechanism::Ecdsa, self.key, digest);
        signed.map_err(refused("sign"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_none_is_named() {
        let uri = Uri::parse("pkcs11:token=x?module-path=/no/such.so&pin-value=1").unwrap();
        let error = EcKey::open(&uri).err().unwrap();
        assert!(error.to_string().contains("/no/such.so"), "{error}");
        assert!(error.is_absence());
    }
}
