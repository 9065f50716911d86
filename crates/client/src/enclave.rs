//! An enclave that was verified, and talking to it.
//!
//! [`Enclave`] has no public constructor but [`Enclave::connect`]: a value of this type *is* the fact that a document
//! with a fresh nonce was fetched and passed the [`Verifier`]. Requests sealed with it can be read by that enclave only.

use enclos_attest::document::VerifiedDocument;
use zeroize::Zeroizing;

use crate::decode::{self, DecodeError};
use crate::http::{Http, HttpError};
use crate::seal::{CONTENT_TYPE, OpenError, SealError, Sealer};
use crate::verify::{Refusal, Verifier};

/// Length of the nonces sent, in bytes: 192 bits, and no padding in base64.
const NONCE_LEN: usize = 24;

/// Where a service answers, below its base URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Such as `http://127.0.0.1:8080`.
    pub base: String,
    /// Path that answers with a document.
    pub attest: String,
    /// Path that takes requests.
    pub process: String,
}

impl Endpoint {
    /// `/attest` and `/process` below `base`.
    #[must_use]
    pub fn new(base: &str) -> Self {
        Self {
            base: base.to_owned(),
            attest: "/attest".to_owned(),
            process: "/process".to_owned(),
        }
    }

    /// URL of the document.
    #[must_use]
    pub fn attest_url(&self) -> String {
        join(&self.base, &self.attest)
    }

    /// URL that takes requests.
    #[must_use]
    pub fn process_url(&self) -> String {
        join(&self.base, &self.process)
    }
}

fn join(base: &str, path: &str) -> String {
    format!(
        "{}/{}",
        base.trim_end_matches('/'),
        path.trim_start_matches('/')
    )
}

/// Why an enclave was not connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No random bytes for a nonce.
    #[error("the system gave no random bytes for a nonce")]
    Entropy(#[source] getrandom::Error),
    /// No answer, or not a good one.
    #[error("cannot fetch the attestation document")]
    Http(#[from] HttpError),
    /// The answer holds no document.
    #[error("{url} answered without an attestation document")]
    Decode {
        /// What was asked.
        url: String,
        /// What it answered instead.
        #[source]
        source: DecodeError,
    },
    /// The document was refused.
    #[error("{url} is not the enclave that was expected")]
    Refused {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: Refusal,
    },
}

/// Why a sealed call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The document has no key to seal to.
    #[error("the document carries no public key: the service does not offer sealed requests")]
    NoKey,
    /// Sealing failed.
    #[error("cannot seal the request")]
    Seal(#[from] SealError),
    /// No answer, or a refusal.
    #[error("the sealed request was not answered")]
    Http(#[from] HttpError),
    /// The answer is not a sealed reply to this request.
    #[error("the answer cannot be read")]
    Open(#[from] OpenError),
}

/// A verified enclave.
#[derive(Debug, Clone)]
pub struct Enclave {
    endpoint: Endpoint,
    http: Http,
    document: Vec<u8>,
    verified: VerifiedDocument,
}

impl Enclave {
    /// Fetches a document with a fresh nonce of 192 bits and verifies it.
    ///
    /// # Errors
    /// [`ConnectError`] says what failed; nothing was sent to the enclave but the nonce.
    pub fn connect(endpoint: Endpoint, verifier: &Verifier) -> Result<Self, ConnectError> {
        Self::connect_with(endpoint, verifier, Http::default())
    }

    /// As [`Self::connect`], with an HTTP client of the caller's.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_with(
        endpoint: Endpoint,
        verifier: &Verifier,
        http: Http,
    ) -> Result<Self, ConnectError> {
        let url = endpoint.attest_url();
        let (document, nonce) = fetch(&http, &url)?;
        let verified = verifier.verify(&document, Some(&nonce));
        let verified = verified.map_err(|source| ConnectError::Refused { url, source })?;
        Ok(Self {
            endpoint,
            http,
            document,
            verified,
        })
    }

    /// What the enclave attested.
    #[must_use]
    pub fn document(&self) -> &VerifiedDocument {
        &self.verified
    }

    /// The document's bytes.
    #[must_use]
    pub fn document_bytes(&self) -> &[u8] {
        &self.document
    }

    /// Where it answers.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Seals to the key in the document.
    ///
    /// # Errors
    /// [`CallError::NoKey`] and [`CallError::Seal`].
    pub fn sealer(&self) -> Result<Sealer, CallError> {
        let key = self.verified.public_key().ok_or(CallError::NoKey)?;
        Ok(Sealer::new(key, &self.document)?)
    }

    /// Sends a sealed request and reads the sealed reply.
    ///
    /// A status of 409 means that the enclave no longer answers for this document (connect again), or has seen the request
    /// already. It is not acted upon here: the status is not authenticated, so a man in the middle who lets a request through
    /// and answers 409 in the enclave's place could have it carried out twice.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, plaintext: &[u8]) -> Result<Zeroizing<Vec<u8>>, CallError> {
        let (request, pending) = self.sealer()?.seal(plaintext)?;
        let headers = [("content-type", CONTENT_TYPE), ("accept", CONTENT_TYPE)];
        let reply = self
            .http
            .post(&self.endpoint.process_url(), headers, &request)?;
        Ok(pending.open(&reply)?)
    }

    /// Sends a request in the open; for bodies that are encrypted by other means already.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn post(&self, content_type: &str, body: &[u8]) -> Result<Vec<u8>, HttpError> {
        self.http.post(
            &self.endpoint.process_url(),
            [("content-type", content_type)],
            body,
        )
    }
}

/// Fetches a document with a fresh nonce, and returns both. Nothing is verified.
///
/// # Errors
/// [`ConnectError`], except `Refused`.
pub fn fetch(http: &Http, url: &str) -> Result<(Vec<u8>, [u8; NONCE_LEN]), ConnectError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(ConnectError::Entropy)?;
    let answer = http.get(&with_nonce(url, &nonce))?;
    match decode::document(&answer) {
        Ok(document) => Ok((document, nonce)),
        Err(source) => Err(ConnectError::Decode {
            url: url.to_owned(),
            source,
        }),
    }
}

/// The nonce travels in the URL alphabet without padding, which survives any query parser.
fn with_nonce(url: &str, nonce: &[u8]) -> String {
    use base64::Engine as _;
    let nonce = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(nonce);
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}nonce={nonce}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_joined_with_one_slash() {
        let mut endpoint = Endpoint::new("http://h:1/");
        assert_eq!(endpoint.attest_url(), "http://h:1/attest");
        endpoint.base = "http://h:1/app".to_owned();
        endpoint.process = "v1/process".to_owned();
        assert_eq!(endpoint.process_url(), "http://h:1/app/v1/process");
    }

    #[test]
    fn the_nonce_needs_no_escaping() {
        let url = with_nonce("http://h/attest", &[0xff; 24]);
        assert_eq!(url, format!("http://h/attest?nonce={}", "_".repeat(32)));
        assert!(with_nonce("http://h/attest?x=1", &[0; 24]).contains("?x=1&nonce=AAAA"));
    }
}
