//! What goes wrong with tokens.

use std::path::PathBuf;

use cryptoki::error::{Error, RvError};

/// Why a token's key cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "their texts say what they are")]
pub enum TokenError {
    #[error(
        "`{0}` is no pkcs11: URI, expected pkcs11:token=NAME;object=LABEL?module-path=FILE&pin-source=FILE"
    )]
    Uri(String),
    #[error("the attribute `{0}` means nothing here; remove it from the pkcs11: URI")]
    Attribute(String),
    #[error("no library is named; add ?module-path=FILE to the URI or set ENCLOS_PKCS11_MODULE")]
    NoModule,
    #[error(
        "no PIN is named; add pin-source=FILE to the URI's query, or set ENCLOS_PKCS11_PIN_FILE or ENCLOS_PKCS11_PIN"
    )]
    NoPin,
    #[error("cannot read the PIN from {}", path.display())]
    Pin {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is empty or longer than any PIN, so the token was not asked: every wrong one may lock it; name a file with the PIN alone", .0.display())]
    NotPin(PathBuf),
    #[error("cannot load the token's library {}", path.display())]
    Module {
        path: PathBuf,
        #[source]
        source: Error,
    },
    #[error(
        "{found} tokens match `{name}`, expected one; see that the token is there, and name it by token=, serial= or slot-id="
    )]
    Token { found: usize, name: String },
    #[error("{found} {kind} keys match the URI, expected one; name it by object= or id=")]
    Key { found: usize, kind: &'static str },
    #[error("a new key needs a name; add object=LABEL to the URI, and id= if it is to have one")]
    Nameless,
    #[error(
        "the token has {found} public keys that belong to this one, expected one: import it beside the private key, with the same id or label"
    )]
    NoPublic { found: usize },
    #[error("the key is not one of P-384, which attestation roots are")]
    Curve,
    #[error(
        "the key can be taken out of the token (CKA_EXTRACTABLE, or not CKA_SENSITIVE); make one that cannot"
    )]
    Extractable,
    #[error("the token answers {0} bytes instead of an HMAC-SHA-256")]
    Length(usize),
    #[error("the token refuses to log in with this PIN; every further try may lock it")]
    WrongPin,
    #[error(
        "the token's PIN is locked after too many wrong ones; have its security officer set a new one"
    )]
    PinLocked,
    #[error("the token refuses to {doing}")]
    Refused {
        doing: &'static str,
        #[source]
        source: Error,
    },
}

impl TokenError {
    /// Whether the token counts this as a wrong PIN: the same again may lock it.
    #[must_use]
    pub fn is_wrong_pin(&self) -> bool {
        matches!(self, Self::WrongPin | Self::PinLocked)
    }

    /// Whether the token or its library is not there or does not work, so that the same may succeed later.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Module { .. } | Self::Token { found: 0, .. } => true,
            Self::Refused { source, .. } => is_absence(source),
            _ => false,
        }
    }
}

fn is_absence(error: &Error) -> bool {
    use RvError::{
        DeviceError, DeviceRemoved, FunctionFailed, GeneralError, SessionHandleInvalid,
        SlotIdInvalid, TokenNotPresent, TokenNotRecognized,
    };
    matches!(
        error,
        Error::Pkcs11(
            DeviceError
                | DeviceRemoved
                | FunctionFailed
                | GeneralError
                | SessionHandleInvalid
                | SlotIdInvalid
                | TokenNotPresent
                | TokenNotRecognized,
            _
        )
    )
}

pub(crate) fn refused(doing: &'static str) -> impl Fn(Error) -> TokenError {
    move |source| TokenError::Refused { doing, source }
}

/// Why a PIN did not open a token.
pub(crate) fn login_failed(source: Error) -> TokenError {
    match source {
        Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _) => {
            TokenError::WrongPin
        }
        Error::Pkcs11(RvError::PinLocked, _) => TokenError::PinLocked,
        source => refused("log in")(source),
    }
}

/// A library and a login are the process's: a second key of the same token finds both done.
pub(crate) fn unless(done: RvError, result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Pkcs11(found, _)) if found == done => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    /// SoftHSM locks no PIN: what tokens that do answer is told apart here.
    #[test]
    fn a_wrong_pin_a_locked_one_and_a_token_that_is_gone_are_told_apart() {
        let login = |answer| login_failed(Error::Pkcs11(answer, Function::Login));
        let wrong = login(RvError::PinIncorrect);
        assert!(matches!(wrong, TokenError::WrongPin) && !wrong.is_absence());
        assert!(wrong.is_wrong_pin());
        let locked = login(RvError::PinLocked);
        assert!(matches!(locked, TokenError::PinLocked) && !locked.is_absence());
        assert!(locked.to_string().contains("security officer"));
        let gone = login(RvError::DeviceRemoved);
        assert!(!gone.is_wrong_pin());
        assert!(matches!(gone, TokenError::Refused { .. }) && gone.is_absence());
        let unset = login(RvError::UserPinNotInitialized);
        assert!(matches!(unset, TokenError::Refused { .. }) && !unset.is_absence());
    }
}
