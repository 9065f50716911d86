//! The enclave's NSM, as the agent uses it: fresh attestation documents.

use std::fmt::Debug;
use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;

use enclos_attest::nsm::{CborError, ErrorCode, Request, Response};

use crate::sys;

/// Something that answers NSM requests.
pub trait Nsm: Debug + Send + Sync + 'static {
    /// Sends one encoded request and returns the encoded reply; may block for as long as the device does.
    ///
    /// # Errors
    /// The device's.
    fn call(&self, request: &[u8]) -> io::Result<Vec<u8>>;
}

/// `/dev/nsm`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Device;

impl Nsm for Device {
    fn call(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/nsm")?;
        sys::nsm::call(&device, request)
    }
}

/// Why there is no attestation document.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The device failed.
    #[error("cannot talk to the NSM (/dev/nsm)")]
    Device(#[source] io::Error),
    /// The reply is not one.
    #[error("the NSM's reply is not understood")]
    Reply(#[source] CborError),
    /// The NSM refused.
    #[error("the NSM refused: {0}")]
    Refused(ErrorCode),
    /// The reply is to something else.
    #[error("the NSM answered something else than a document")]
    Unexpected,
}

/// What goes into a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Key that others may encrypt to.
    pub public_key: Option<Vec<u8>>,
    /// The asker's challenge.
    pub nonce: Option<Vec<u8>>,
    /// Anything else.
    pub user_data: Option<Vec<u8>>,
}

/// A fresh document.
///
/// # Errors
/// See [`AttestError`].
pub async fn attest(nsm: &Arc<dyn Nsm>, fields: Fields) -> Result<Vec<u8>, AttestError> {
    let Fields {
        public_key,
        nonce,
        user_data,
    } = fields;
    let request = Request::Attestation {
        user_data,
        nonce,
        public_key,
    }
    .encode();
    let nsm = Arc::clone(nsm);
    let called = tokio::task::spawn_blocking(move || nsm.call(&request)).await;
    let reply = called
        .map_err(io::Error::other)
        .flatten()
        .map_err(AttestError::Device)?;
    match Response::decode(&reply).map_err(AttestError::Reply)? {
        Response::Attestation { document } => Ok(document),
        Response::Error(code) => Err(AttestError::Refused(code)),
        _ => Err(AttestError::Unexpected),
    }
}
