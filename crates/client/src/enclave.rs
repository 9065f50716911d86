//! An enclave that was verified, and talking to it.
//!
//! [`Enclave`] has no public constructor but [`Enclave::connect`]: a value of this type *is* the fact that a document
//! with a fresh nonce was fetched and passed the [`Verifier`]. Requests sealed with it can be read by that enclave
//! only.

use enclos_attest::document::VerifiedDocument;
use zeroize::Zeroizing;

use crate::decode::{self, DecodeError};
use crate::http::{Http, HttpError};
use crate::seal::{CONTENT_TYPE, OpenError, SealError, Sealer};
use crate::verify::{Refusal, Verifier};

/// Length of the nonces sent, in bytes: 192 bits, and no padding in base64.
const NONCE_LEN: usize = 24;

/// Where a service answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// URL that answers with a document.
    pub attest: String,
    /// URL that takes requests.
    pub process: String,
}

impl Endpoint {
    /// From the URL that takes requests, such as `http://127.0.0.1:8080/process`; without a path that is
    /// `/process`. The document
    /// is at `/attest` of the same host unless [`Self::attest`] is set to something else.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let authority = url.find("://").map_or(0, |at| at + 3);
        let path = url[authority..]
            .find(['/', '?'])
            .map_or(url.len(), |at| authority + at);
        let (origin, path) = url.split_at(path);
        let path = if matches!(path, "" | "/") {
            "/process"
        } else {
            path
        };
        Self {
            attest: format!("{origin}/attest"),
            process: format!("{origin}{path}"),
        }
    }
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
        source: Box<Refusal>,
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
        let url = endpoint.attest.clone();
        let (document, nonce) = fetch(&http, &url)?;
        let verified = verifier.verify(&document, Some(&nonce));
        let verified = verified.map_err(|source| ConnectError::Refused {
            url,
            source: Box::new(source),
        })?;
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
    /// A status of 409 means that the enclave no longer answers for this document (connect again), or has seen the
    /// request already. It is not acted upon here: the status is not authenticated, so a man in the middle who lets a
    /// request through and answers 409 in the enclave's place could have it carried out twice.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&self, plaintext: &[u8]) -> Result<Zeroizing<Vec<u8>>, CallError> {
        let (request, pending) = self.sealer()?.seal(plaintext)?;
        let headers = [("content-type", CONTENT_TYPE), ("accept", CONTENT_TYPE)];
        let reply = self.http.post(&self.endpoint.process, headers, &request)?;
        Ok(pending.open(&reply)?)
    }

    /// Sends a request in the open; for bodies that are encrypted by other means already.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn post(&self, content_type: &str, body: &[u8]) -> Result<Vec<u8>, HttpError> {
        self.http.post(
            &self.endpoint.process,
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
    Ok((fetch_for(http, url, &nonce)?, nonce))
}

/// Fetches a document for a nonce of the caller's. Nothing is verified, not even that the document repeats it.
///
/// # Errors
/// [`ConnectError`], except `Entropy` and `Refused`.
pub fn fetch_for(http: &Http, url: &str, nonce: &[u8]) -> Result<Vec<u8>, ConnectError> {
    let answer = http.get(&with_nonce(url, nonce))?;
    decode::document(&answer).map_err(|source| ConnectError::Decode {
        url: url.to_owned(),
        source,
    })
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
    fn an_endpoint_is_made_of_the_url_that_takes_requests() {
        let urls = |url| {
            let Endpoint { attest, process } = Endpoint::new(url);
            (attest, process)
        };
        let expected = |attest: &str, process: &str| (attest.to_owned(), process.to_owned());
        assert_eq!(
            urls("http://h:1"),
            expected("http://h:1/attest", "http://h:1/process")
        );
        assert_eq!(
            urls("http://h:1/"),
            expected("http://h:1/attest", "http://h:1/process")
        );
        assert_eq!(
            urls("https://h/v1/do"),
            expected("https://h/attest", "https://h/v1/do")
        );
        assert_eq!(
            urls("http://h?x=/y"),
            expected("http://h/attest", "http://h?x=/y")
        );
    }

    #[test]
    fn the_nonce_needs_no_escaping() {
        let url = with_nonce("http://h/attest", &[0xff; 24]);
        assert_eq!(url, format!("http://h/attest?nonce={}", "_".repeat(32)));
        assert!(with_nonce("http://h/attest?x=1", &[0; 24]).contains("?x=1&nonce=AAAA"));
    }
}
