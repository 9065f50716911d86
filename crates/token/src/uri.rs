//! What names a key: RFC 7512.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cryptoki::object::Attribute;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::TokenError;

/// Longest PIN, and what may stand behind it, in bytes; PINs are much shorter.
const LONGEST_PIN: usize = 1024;

/// A parsed URI.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Uri {
    pub(crate) token: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) slot: Option<u64>,
    pub(crate) object: Option<String>,
    pub(crate) id: Option<Vec<u8>>,
    pub(crate) module: Option<PathBuf>,
    pub(crate) pin_source: Option<PathBuf>,
    pub(crate) pin_value: Option<Zeroizing<String>>,
}

impl Uri {
    /// Reads one.
    ///
    /// # Errors
    /// If it is none, or says what is not understood.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        // A PIN may stand behind the question mark.
        let shown = text.split('?').next().unwrap_or_default();
        let bad = || TokenError::Uri(shown.to_owned());
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
                "pin-value" => uri.pin_value = Some(value()?.into()),
                // A URI that tools print may say more; only what is understood can be relied on.
                "type" if bytes == b"private" || bytes == b"secret-key" => {}
                other => return Err(TokenError::Attribute(other.to_owned())),
            }
        }
        Ok(uri)
    }

    /// Which key it is, without how to get at it: no library, no PIN. Such a URI can be kept in a file.
    #[must_use]
    pub fn key(&self) -> String {
        let text = |name: &str, value: &Option<String>| {
            let value = value.as_ref()?;
            Some(format!("{name}={}", escaped(value.as_bytes())))
        };
        let parts = [
            text("token", &self.token),
            text("serial", &self.serial),
            self.slot.map(|slot| format!("slot-id={slot}")),
            text("object", &self.object),
            self.id.as_ref().map(|id| format!("id={}", escaped(id))),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        format!("pkcs11:{}", parts.join(";"))
    }

    /// Whether it holds a PIN, which everyone on the machine can read on a command line.
    #[must_use]
    pub fn holds_pin(&self) -> bool {
        self.pin_value.is_some()
    }

    /// Label and id of the key, as far as they are named.
    pub(crate) fn names(&self) -> Vec<Attribute> {
        let label = self
            .object
            .iter()
            .map(|label| Attribute::Label(label.clone().into_bytes()));
        label
            .chain(self.id.iter().map(|id| Attribute::Id(id.clone())))
            .collect()
    }

    /// Whether a token is one that is meant.
    pub(crate) fn is_token(&self, label: &str, serial: &str, slot: u64) -> bool {
        let is = |wanted: &Option<String>, found| wanted.as_ref().is_none_or(|name| name == found);
        is(&self.token, label) && is(&self.serial, serial) && self.slot.is_none_or(|id| id == slot)
    }

    pub(crate) fn module(&self) -> Result<PathBuf, TokenError> {
        let variable = || std::env::var_os("ENCLOS_PKCS11_MODULE").map(PathBuf::from);
        self.module
            .clone()
            .or_else(variable)
            .ok_or(TokenError::NoModule)
    }

    pub(crate) fn pin(&self) -> Result<AuthPin, TokenError> {
        let variable = |name| std::env::var(name).ok().map(Zeroizing::new);
        let file = std::env::var_os("ENCLOS_PKCS11_PIN_FILE").map(PathBuf::from);
        let pin = match (&self.pin_source, &self.pin_value, &file) {
            (Some(path), _, _) | (None, None, Some(path)) => read_pin(path)?,
            (None, Some(pin), _) => pin.clone(),
            (None, None, None) => variable("ENCLOS_PKCS11_PIN").ok_or(TokenError::NoPin)?,
        };
        Ok(AuthPin::new(pin.as_str().into()))
    }
}

/// A PIN is never shown.
impl std::fmt::Debug for Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uri")
            .field("key", &self.key())
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}

fn read_pin(path: &Path) -> Result<Zeroizing<String>, TokenError> {
    let failed = |source| TokenError::Pin {
        path: path.to_owned(),
        source,
    };
    // Whole from the start: a string that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * LONGEST_PIN));
    let limit = u64::try_from(LONGEST_PIN).unwrap_or_default();
    let file = File::open(path).map_err(failed)?;
    let read = file.take(limit + 1).read_to_string(&mut text);
    let read = read.map_err(failed)?;
    let length = text.trim_end_matches(['\r', '\n']).len();
    if length == 0 || read > LONGEST_PIN {
        return Err(TokenError::NotPin(path.to_owned()));
    }
    text.truncate(length);
    Ok(text)
}

/// Percent-encodes what is not plain.
fn escaped(bytes: &[u8]) -> String {
    let escape = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(*byte).to_string()
        }
        other => format!("%{other:02x}"),
    };
    bytes.iter().map(escape).collect()
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
        let error = Uri::parse("pkcs11:token?pin-value=1234").unwrap_err();
        assert!(!error.to_string().contains("1234"), "{error}");
        assert!(matches!(
            Uri::parse("pkcs11:type=cert"),
            Err(TokenError::Attribute(_))
        ));
        assert!(matches!(
            Uri::parse("pkcs11:library-version=3"),
            Err(TokenError::Attribute(_))
        ));
    }

    /// A token counts what it is asked.
    #[test]
    fn a_file_that_holds_no_pin_is_not_tried() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_pin(&path)
        };
        assert_eq!(*read("1234\r\n").unwrap(), "1234");
        assert_eq!(read(&"1".repeat(LONGEST_PIN)).unwrap().len(), LONGEST_PIN);
        for none in ["", "\n", &"1".repeat(LONGEST_PIN + 1)] {
            let error = read(none).unwrap_err();
            assert!(matches!(error, TokenError::NotPin(_)), "{error}");
        }
    }

    #[test]
    fn what_is_kept_names_the_key_alone() {
        let text = "pkcs11:token=My%20Token;slot-id=7;object=e%2ff;id=%01%ff?module-path=/lib/x.so&pin-value=1234";
        let uri = Uri::parse(text).unwrap();
        assert!(uri.holds_pin());
        assert!(!format!("{uri:?}").contains("1234"));
        let kept = uri.key();
        assert_eq!(
            kept,
            "pkcs11:token=My%20Token;slot-id=7;object=e%2ff;id=%01%ff"
        );
        let again = Uri::parse(&kept).unwrap();
        assert_eq!(again.key(), kept);
        assert!(!again.holds_pin() && again.module.is_none());
    }
}
