//! Calls under one document for as long as it is fresh.
//!
//! A document is good for more than one request: its key is the enclave's for the enclave's life, and what was verified stays true
//! as long as the verifier accepts the document's age. So a session fetches one, keeps it, and fetches another when the
//! verifier would no longer accept it, before anything is sent. It never repeats a request: see [`Enclave::call`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use enclos_attest::UnixMillis;
use zeroize::Zeroizing;

use crate::enclave::{CallError, ConnectError, Enclave, Endpoint};
use crate::http::Http;
use crate::verify::Verifier;

/// A service that is verified when needed. Threads may share it.
#[derive(Debug)]
pub struct Session {
    endpoint: Endpoint,
    verifier: Verifier,
    http: Http,
    current: Mutex<Option<Arc<Enclave>>>,
}

/// Why a call of a session failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The enclave was not accepted, or cannot be reached. Nothing was sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The call failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Session {
    /// Calls to `endpoint`, of which nothing is asked yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, verifier: Verifier, http: Http) -> Self {
        Self {
            endpoint,
            verifier,
            http,
            current: Mutex::default(),
        }
    }

    /// The enclave under a document that the verifier accepts now: the one at hand, else a fresh one.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn enclave(&self) -> Result<Arc<Enclave>, ConnectError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(enclave) = current.as_ref().filter(|enclave| self.is_fresh(enclave)) {
            return Ok(Arc::clone(enclave));
        }
        *current = None;
        let http = self.http.clone();
        let enclave = Enclave::connect_with(self.endpoint.clone(), &self.verifier, http)?;
        Ok(Arc::clone(current.insert(Arc::new(enclave))))
    }

    fn is_fresh(&self, enclave: &Enclave) -> bool {
        let now: UnixMillis = SystemTime::now().into();
        let document = enclave.document();
        self.verifier.still_accepts(document, document.nonce(), now)
    }

    /// Forgets the document, so that the next call fetches another: after a status of 409, for example.
    pub fn forget(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends a sealed request and reads the sealed reply. See [`Enclave::call`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn call(&self, plaintext: &[u8]) -> Result<Zeroizing<Vec<u8>>, SessionError> {
        Ok(self.enclave()?.call(plaintext)?)
    }
}
