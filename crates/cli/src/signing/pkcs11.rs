//! A signing key in a PKCS#11 token, named by a URI (RFC 7512).
//!
//! ```text
//! pkcs11:token=build;object=eif?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/secrets/pin
//! ```
//!
//! | attribute | meaning |
//! |---|---|
//! | `token`, `serial`, `slot-id` | which token; needed where there are several |
//! | `object`, `id` | label and id of the key; needed where the token has several private EC keys |
//! | `module-path` | the token's library; without it `ENCLOS_PKCS11_MODULE` |
//! | `pin-source`, `pin-value` | a file with the PIN, or the PIN; without them `ENCLOS_PKCS11_PIN`. Other users may see arguments: prefer the file |

use std::path::PathBuf;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::RvError;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use enclos_eif::{SigningKey, ToBeSigned};

/// Why a token's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error(
        "`{0}` is no pkcs11: URI, expected pkcs11:token=NAME;object=LABEL?module-path=FILE&pin-source=FILE"
    )]
    Uri(String),
    #[error("the attribute `{0}` means nothing here; remove it from the pkcs11: URI")]
    Attribute(String),
    #[error("no library is named; add ?module-path=FILE to the URI or set ENCLOS_PKCS11_MODULE")]
    NoModule,
    #[error("no PIN is named; add pin-source=FILE to the URI's query or set ENCLOS_PKCS11_PIN")]
    NoPin,
    #[error("cannot read the PIN from {}", path.display())]
    Pin {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot load the token's library {}", path.display())]
    Module {
        path: PathBuf,
        #[source]
        source: cryptoki::error::Error,
    },
    #[error("{found} tokens match the URI, expected one; name it by token=, serial= or slot-id=")]
    Token { found: usize },
    #[error("{found} private EC keys match the URI, expected one; name it by object= or id=")]
    Key { found: usize },
    #[error(
        "the token has {found} public keys that belong to this one, expected one: import it beside the private key, with the same id or label"
    )]
    NoPublic { found: usize },
    #[error("the key is not one of P-384, which attestation roots are")]
    Curve,
    #[error("the token refuses to {doing}")]
    Refused {
        doing: &'static str,
        #[source]
        source: cryptoki::error::Error,
    },
}

fn refused(doing: &'static str) -> impl Fn(cryptoki::error::Error) -> TokenError {
    move |source| TokenError::Refused { doing, source }
}

/// A parsed URI.
#[derive(Debug, Default, PartialEq, Eq)]
struct Uri {
    token: Option<String>,
    serial: Option<String>,
    slot: Option<u64>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    module: Option<PathBuf>,
    pin_source: Option<PathBuf>,
    pin_value: Option<String>,
}

impl Uri {
    fn parse(text: &str) -> Result<Self, TokenError> {
        let bad = || TokenError::Uri(text.to_owned());
        let rest = text.strip_prefix("pkcs11:").ok_or_else(bad)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let attributes = path.split(';').chain(query.split('&'));
        for attribute in attributes.filter(|attribute| !attribute.is_empty()) {
            let (name, value) = attribute.split_once('=').ok_or_else(bad)?;
            let bytes = unescaped(value).ok_or_else(bad)?;
            let value = || String::from_utf8(bytes.clone()).map_err(|_| bad());
            match name {
                "token" => uri.token = Some(value()?),
                "serial" => uri.serial = Some(value()?),
                "slot-id" => uri.slot = Some(value()?.parse().map_err(|_| bad())?),
                "object" => uri.object = Some(value()?),
                "id" => uri.id = Some(bytes),
                "module-path" => uri.module = Some(value()?.into()),
                "pin-source" => {
                    let value = value()?;
                    uri.pin_source = Some(value.strip_prefix("file:").unwrap_or(&value).into());
                }
                "pin-value" => uri.pin_value = Some(value()?),
                // A URI that tools print may say more; only what is understood can be relied on.
                "type" if bytes == b"private" => {}
                other => return Err(TokenError::Attribute(other.to_owned())),
            }
        }
        Ok(uri)
    }

    fn module(&self) -> Result<PathBuf, TokenError> {
        let variable = || std::env::var_os("ENCLOS_PKCS11_MODULE").map(PathBuf::from);
        self.module
            .clone()
            .or_else(variable)
            .ok_or(TokenError::NoModule)
    }

    fn pin(&self) -> Result<AuthPin, TokenError> {
        let pin = match (&self.pin_source, &self.pin_value) {
            (Some(path), _) => {
                let read = std::fs::read_to_string(path);
                let failed = |source| TokenError::Pin {
                    path: path.clone(),
                    source,
                };
                read.map_err(failed)?
                    .trim_end_matches(['\r', '\n'])
                    .to_owned()
            }
            (None, Some(pin)) => pin.clone(),
            (None, None) => std::env::var("ENCLOS_PKCS11_PIN").map_err(|_| TokenError::NoPin)?,
        };
        Ok(AuthPin::new(pin.into()))
    }
}

/// Undoes percent-encoding.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = tail.get(2..)?;
    }
    Some(bytes)
}

/// A key in a token, logged in to.
pub(super) struct TokenKey {
    session: Session,
    key: ObjectHandle,
    // Last, so that the session ends before its library does.
    _module: Pkcs11,
}

impl TokenKey {
    pub(super) fn open(uri: &str) -> Result<Self, TokenError> {
        let uri = Uri::parse(uri)?;
        let path = uri.module()?;
        let failed = |source| TokenError::Module {
            path: path.clone(),
            source,
        };
        let module = Pkcs11::new(&path).map_err(failed)?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        unless(
            RvError::CryptokiAlreadyInitialized,
            module.initialize(arguments),
        )
        .map_err(failed)?;
        let slot = find_token(&module, &uri)?;
        let session = module
            .open_ro_session(slot)
            .map_err(refused("open a session"))?;
        let pin = uri.pin()?;
        let login = session.login(UserType::User, Some(&pin));
        unless(RvError::UserAlreadyLoggedIn, login).map_err(refused("log in with this PIN"))?;
        let key = find_key(&session, &uri)?;
        Ok(Self {
            session,
            key,
            _module: module,
        })
    }
}

/// A library and a login are the process's: a second key of the same token finds both done.
fn unless(
    done: RvError,
    result: Result<(), cryptoki::error::Error>,
) -> Result<(), cryptoki::error::Error> {
    match result {
        Err(cryptoki::error::Error::Pkcs11(found, _)) if found == done => Ok(()),
        other => other,
    }
}

fn find_token(module: &Pkcs11, uri: &Uri) -> Result<Slot, TokenError> {
    let list = refused("list its slots");
    let mut found = Vec::new();
    for slot in module.get_slots_with_initialized_token().map_err(&list)? {
        let token = module.get_token_info(slot).map_err(&list)?;
        let is_it = uri
            .token
            .as_ref()
            .is_none_or(|label| token.label() == label)
            && uri
                .serial
                .as_ref()
                .is_none_or(|serial| token.serial_number() == serial)
            && uri.slot.is_none_or(|id| slot.id() == id);
        if is_it {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        _ => Err(TokenError::Token { found: found.len() }),
    }
}

fn find_key(session: &Session, uri: &Uri) -> Result<ObjectHandle, TokenError> {
    let mut template = vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
    ];
    template.extend(
        uri.object
            .iter()
            .map(|label| Attribute::Label(label.clone().into_bytes())),
    );
    template.extend(uri.id.iter().map(|id| Attribute::Id(id.clone())));
    let found = session
        .find_objects(&template)
        .map_err(refused("list its keys"))?;
    match found.as_slice() {
        [key] => Ok(*key),
        _ => Err(TokenError::Key { found: found.len() }),
    }
}

/// Named curve secp384r1, DER: what `CKA_EC_PARAMS` holds.
const SECP384R1: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// Before an uncompressed point of P-384 when it stands in an OCTET STRING, as PKCS#11 says; some tokens leave it out.
const OCTETS_97: &[u8] = &[0x04, 0x61];

/// Bytes of an uncompressed point of P-384.
const POINT: usize = 97;

impl TokenKey {
    /// The public half of a P-384 key: its uncompressed point.
    pub(super) fn p384_point(&self) -> Result<Vec<u8>, TokenError> {
        let read = refused("tell what key it is");
        let names = [AttributeType::Id, AttributeType::Label];
        let mut template = self
            .session
            .get_attributes(self.key, &names)
            .map_err(&read)?;
        // An id is what binds the two halves; only a key without one is known by its label.
        if template
            .iter()
            .any(|name| matches!(name, Attribute::Id(id) if !id.is_empty()))
        {
            template.retain(|name| matches!(name, Attribute::Id(_)));
        }
        template.push(Attribute::Class(ObjectClass::PUBLIC_KEY));
        template.push(Attribute::KeyType(KeyType::EC));
        let found = self.session.find_objects(&template).map_err(&read)?;
        let [public] = found.as_slice() else {
            return Err(TokenError::NoPublic { found: found.len() });
        };
        let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
        let values = self
            .session
            .get_attributes(*public, &wanted)
            .map_err(&read)?;
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
    pub(super) fn sign_digest(&self, digest: &[u8]) -> Result<Vec<u8>, TokenError> {
        let signed = self.session.sign(&Mechanism::Ecdsa, self.key, digest);
        signed.map_err(refused("sign"))
    }
}

impl SigningKey for TokenKey {
    /// The token gets the digest: few can hash, and all can sign one.
    fn sign(
        &self,
        message: &ToBeSigned,
    ) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.sign_digest(&message.digest())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_token_key_library_and_pin() {
        let uri = Uri::parse(
            "pkcs11:token=My%20Token;object=eif;id=%01%ff;type=private?module-path=/lib/x.so&pin-source=file:/run/pin",
        );
        let expected = Uri {
            token: Some("My Token".into()),
            object: Some("eif".into()),
            id: Some(vec![1, 0xff]),
            module: Some("/lib/x.so".into()),
            pin_source: Some("/run/pin".into()),
            ..Uri::default()
        };
        assert_eq!(uri.unwrap(), expected);
        assert_eq!(Uri::parse("pkcs11:").unwrap(), Uri::default());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "pkcs12:",
            "pkcs11:token",
            "pkcs11:token=%",
            "pkcs11:token=%zz",
            "pkcs11:slot-id=x",
            "pkcs11:object=%ff",
        ] {
            assert!(matches!(Uri::parse(bad), Err(TokenError::Uri(_))), "{bad}");
        }
        assert!(matches!(
            Uri::parse("pkcs11:type=cert"),
            Err(TokenError::Attribute(_))
        ));
        assert!(matches!(
            Uri::parse("pkcs11:library-version=3"),
            Err(TokenError::Attribute(_))
        ));
    }

    #[test]
    fn a_library_that_is_none_is_named() {
        let error = TokenKey::open("pkcs11:token=x?module-path=/no/such.so&pin-value=1")
            .err()
            .unwrap();
        assert!(error.to_string().contains("/no/such.so"), "{error}");
    }
}
