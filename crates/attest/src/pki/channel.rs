//! The key of an enclave's attested TLS, and its certificates.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use der::Encode;
use der::asn1::OctetString;
use der::oid::AssociatedOid;
use der::oid::db::rfc5280::ID_KP_SERVER_AUTH;
use x509_cert::der;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::ExtendedKeyUsage;
use zeroize::Zeroizing;

use super::PkiError;
use super::issue::{self, Template};
use super::root::Signer;
use crate::channel::{CMW_OID, VALID_AFTER, VALID_BEFORE, wrap};
use crate::document::UnverifiedDocument;
use crate::x509::point_spki;

/// Subject and issuer of the certificates. Nobody should go by it: the document says whose they are.
const COMMON_NAME: &str = "attested TLS";

/// An enclave's TLS key, P-384. It is made in the enclave, for one boot.
#[derive(Debug)]
pub struct ChannelKey {
    key: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl ChannelKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when the cryptographic library fails.
    pub fn generate() -> Result<Self, PkiError> {
        let key = issue::new_key(&ECDSA_P384_SHA384_ASN1_SIGNING, "make a TLS key")?;
        let spki = point_spki(key.public_key().as_ref());
        Ok(Self { key, spki })
    }

    /// The public half, SubjectPublicKeyInfo DER: what the document's `public_key` has to be.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The private key as PKCS #8, for a TLS library in the same process.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when the cryptographic library fails.
    pub fn pkcs8_der(&self) -> Result<Zeroizing<Vec<u8>>, PkiError> {
        let document = self.key.to_pkcs8v1().map_err(|_| PkiError::Crypto {
            action: "encode a TLS key",
        })?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// A certificate for this key that carries `document`. Whether the document speaks for the key is for clients to
    /// decide; here it is only read for its time.
    ///
    /// # Errors
    /// [`PkiError::Document`] when `document` is none; [`PkiError::Crypto`], [`PkiError::Encoding`].
    pub fn certificate(&self, document: &[u8]) -> Result<Vec<u8>, PkiError> {
        let made = UnverifiedDocument::parse(document)?
            .unverified_claims()
            .timestamp;
        let point = self.key.public_key().as_ref().to_vec();
        let name = issue::name(COMMON_NAME)?;
        let template = Template {
            subject: name.clone(),
            serial: issue::random_serial()?,
            not_before: made.minus(VALID_BEFORE),
            not_after: made.plus(VALID_AFTER),
            extensions: vec![
                issue::leaf_constraints()?,
                issue::leaf_usage()?,
                server_auth()?,
                issue::subject_key(&point)?,
                evidence(document)?,
            ],
            point,
        };
        template.sign(name, Signer::Held(&self.key))
    }
}

fn server_auth() -> Result<Extension, PkiError> {
    Ok(Extension {
        extn_id: ExtendedKeyUsage::OID,
        critical: false,
        extn_value: OctetString::new(ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH]).to_der()?)?,
    })
}

/// Not critical, as RFC 9999 wants it: a client that cannot read it trusts no self-signed certificate anyway.
fn evidence(document: &[u8]) -> Result<Extension, PkiError> {
    Ok(Extension {
        extn_id: CMW_OID,
        critical: false,
        extn_value: OctetString::new(wrap(document)?)?,
    })
}
