//! Tokens' libraries.
//!
//! A library is loaded once and stays until the process ends. Some run threads of their own, which would not survive that their code is unloaded; and what
//! was loaded once cannot be another file later.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::RvError;
use cryptoki::slot::Slot;

use crate::error::{TokenError, refused, unless};
use crate::uri::Uri;

static LOADED: Mutex<Vec<(PathBuf, Pkcs11)>> = Mutex::new(Vec::new());

/// A library, ready for use.
pub(crate) fn load(path: &Path) -> Result<Pkcs11, TokenError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, module)) = loaded.iter().find(|(known, _)| known == path) {
        return Ok(module.clone());
    }
    let failed = |source| TokenError::Module {
        path: path.to_owned(),
        source,
    };
    let module = Pkcs11::new(path).map_err(failed)?;
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    let begun = module.initialize(arguments);
    unless(RvError::CryptokiAlreadyInitialized, begun).map_err(failed)?;
    loaded.push((path.to_owned(), module.clone()));
    Ok(module)
}

/// The one token that a URI names.
pub(crate) fn find_token(module: &Pkcs11, uri: &Uri) -> Result<Slot, TokenError> {
    let list = refused("list its slots");
    let mut found = Vec::new();
    for slot in module.get_slots_with_initialized_token().map_err(&list)? {
        let token = module.get_token_info(slot).map_err(&list)?;
        if uri.is_token(token.label(), token.serial_number(), slot.id()) {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        _ => Err(TokenError::Token {
            found: found.len(),
            name: uri.key(),
        }),
    }
}
