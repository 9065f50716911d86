//! A KMS endpoint that stock SDKs talk to, and that makes their calls attested ones.
//!
//! ```text
//!  SDK ── POST /, X-Amz-Target, any signature ──▶ plan ─▶ key, document ─▶ sign with the role ─▶ KMS
//!  SDK ◀── Plaintext, CiphertextForRecipient gone ── check, open ◀── reply ◀──────────────────────┘
//! ```
//!
//! A refusal of the KMS reaches the SDK unchanged. What goes wrong here is told in the same shape, with a message
//! that starts `enclos-agent:` and the header `x-enclos-error`.

use std::sync::Arc;

use bytes::Bytes;
use enclos_api::config::Kms;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::facts::{Facts, FactsError};
use super::http::{Answer, Handler, answer};
use super::nsm::{self, AttestError, Fields, Nsm};
use super::transport::{Boxed, Dial};
use crate::log;
use keys::{Keys, RecipientKey};
use reply::ReplyError;
use request::{Expected, Planned};
use upstream::{Upstream, UpstreamConfigError, UpstreamError};

pub mod ber;
pub mod cms;
pub mod keys;
pub mod reply;
pub mod request;
pub mod sign;
#[cfg(test)]
mod testing;
pub mod upstream;

/// Longest request body: twice the largest document that `Recipient` may hold, in base64.
pub const MAX_REQUEST: usize = 1 << 20;

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");
const WARNING: HeaderName = HeaderName::from_static("x-enclos-warning");
const ERROR: HeaderName = HeaderName::from_static("x-enclos-error");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const JSON: &str = "application/x-amz-json-1.1";

/// Headers of the application's request that go on to the KMS.
const PASSED_ON: [HeaderName; 5] = [
    CONTENT_TYPE,
    TARGET,
    USER_AGENT,
    HeaderName::from_static("amz-sdk-invocation-id"),
    HeaderName::from_static("amz-sdk-request"),
];

/// Headers of the KMS's reply that go back to the application.
const PASSED_BACK: [HeaderName; 3] = [CONTENT_TYPE, REQUEST_ID, ERROR_TYPE];

/// Why a request was not answered by the KMS.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not a call of KMS.
    #[error("a call is a POST to / with the header X-Amz-Target: TrentService.<Action>")]
    NotKms,
    /// The body is too long.
    #[error("the request is longer than {MAX_REQUEST} bytes")]
    TooLarge,
    /// The body broke off.
    #[error("the request broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No facts, so no role.
    #[error("the parent's role is not known")]
    Facts(#[from] FactsError),
    /// The parent has no role.
    #[error(
        "the parent has no role with credentials; give [role] arn and credentials_file in its host.toml"
    )]
    NoRole,
    /// The request could not be signed.
    #[error("the request cannot be signed")]
    Sign(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No key pair for the reply.
    #[error("cannot make a key pair for the reply")]
    Key,
    /// No attestation document.
    #[error("no attestation document")]
    Attest(#[from] AttestError),
    /// The KMS did not answer.
    #[error("no answer from the KMS")]
    Upstream(#[from] UpstreamError),
    /// The KMS's answer was refused.
    #[error("the answer was refused")]
    Reply(#[from] ReplyError),
}

impl EndpointError {
    /// Status and AWS's name for it; SDKs try again from 500 on.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotKms => (StatusCode::BAD_REQUEST, "UnknownOperationException"),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLargeException",
            ),
            Self::Body(_) | Self::Sign(_) => (StatusCode::BAD_REQUEST, "SerializationException"),
            Self::NoRole => (StatusCode::BAD_REQUEST, "UnrecognizedClientException"),
            Self::Facts(_) | Self::Key | Self::Attest(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailableException",
            ),
            Self::Upstream(_) => (StatusCode::GATEWAY_TIMEOUT, "DependencyTimeoutException"),
            Self::Reply(_) => (StatusCode::BAD_GATEWAY, "KMSInternalException"),
        }
    }

    fn answer(&self) -> Answer {
        let (status, name) = self.status();
        let text = log::chain(self);
        log::line("enclos-agent", format_args!("kms: {text}"));
        let body = json!({ "__type": name, "message": format!("enclos-agent: {text}") });
        let mut response = answer(status, JSON, body.to_string());
        response
            .headers_mut()
            .insert(ERROR_TYPE, HeaderValue::from_static(name));
        response
            .headers_mut()
            .insert(ERROR, HeaderValue::from_static("agent"));
        response
    }
}

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    kms: Kms,
    facts: Arc<Facts>,
    nsm: Arc<dyn Nsm>,
    keys: Keys,
    upstream: Upstream,
}

/// A request that is the KMS's business.
struct Call {
    action: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Endpoint {
    /// An endpoint for the KMS of the measured configuration.
    ///
    /// # Errors
    /// See [`UpstreamConfigError`].
    pub fn new(
        kms: Kms,
        facts: Arc<Facts>,
        nsm: Arc<dyn Nsm>,
        keys: Keys,
        parent: Arc<dyn Dial>,
    ) -> Result<Self, UpstreamConfigError> {
        let upstream = Upstream::new(&kms, parent)?;
        Ok(Self {
            kms,
            facts,
            nsm,
            keys,
            upstream,
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, EndpointError> {
        let Call {
            action,
            headers,
            body,
        } = read(request).await?;
        let planned = request::plan(&action, body, self.kms.attested_signing);
        if let Some(warning) = planned.warning {
            log::line("enclos-agent", format_args!("kms: {action}: {warning}"));
        }
        let mut response = match &planned.attested {
            Some(expected) => self.attested(&planned, expected, headers).await?,
            None => self.forward(planned.body(), headers).await?,
        };
        if let Some(warning) = planned.warning {
            response
                .headers_mut()
                .insert(WARNING, HeaderValue::from_static(warning));
        }
        Ok(response)
    }

    async fn attested(
        &self,
        planned: &Planned,
        expected: &Expected,
        headers: HeaderMap,
    ) -> Result<Answer, EndpointError> {
        let key = self.keys.take().await.map_err(|_| EndpointError::Key)?;
        let public_key = Some(key.public().to_vec());
        let document = nsm::attest(
            &self.nsm,
            Fields {
                public_key,
                ..Fields::default()
            },
        )
        .await?;
        let response = self
            .forward(planned.attested_body(&document), headers)
            .await?;
        if response.status() != StatusCode::OK {
            return Ok(response);
        }
        self.open(response, expected, &key).await
    }

    async fn open(
        &self,
        response: Answer,
        expected: &Expected,
        key: &RecipientKey,
    ) -> Result<Answer, EndpointError> {
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let opened = reply::open(&body, expected, &self.kms.key_arns, key)?;
        Ok(Response::from_parts(
            parts,
            Full::new(Bytes::from_owner(opened)),
        ))
    }

    /// Signs and sends; the KMS's status and body come back as they are.
    async fn forward(&self, body: Bytes, headers: HeaderMap) -> Result<Answer, EndpointError> {
        let facts = self.facts.get().await?;
        let role = facts.role.as_ref().ok_or(EndpointError::NoRole)?;
        let mut request = Request::post("/").body(Full::new(body.clone()));
        let request = request.as_mut().map_err(|_| EndpointError::NotKms)?;
        *request.headers_mut() = headers;
        let name = &self.kms.server_name;
        let host =
            HeaderValue::from_str(name).map_err(|error| EndpointError::Sign(error.into()))?;
        request.headers_mut().insert(HOST, host);
        sign::apply(request, &body, role, &self.kms.region, name).map_err(EndpointError::Sign)?;
        let response = self.upstream.send(std::mem::take(request)).await?;
        Ok(pass_back(response))
    }
}

/// Reads a request as far as it is one to the KMS.
async fn read(request: Request<Incoming>) -> Result<Call, EndpointError> {
    let (parts, body) = request.into_parts();
    let target = parts
        .headers
        .get(TARGET)
        .and_then(|value| value.to_str().ok());
    let action = target.and_then(|target| target.strip_prefix("TrentService."));
    let (Method::POST, "/", Some(action)) = (parts.method, parts.uri.path(), action) else {
        return Err(EndpointError::NotKms);
    };
    let body = Limited::new(body, MAX_REQUEST)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                EndpointError::TooLarge
            } else {
                EndpointError::Body(error)
            }
        })?;
    let mut headers = HeaderMap::new();
    for name in PASSED_ON {
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    Ok(Call {
        action: action.to_owned(),
        headers,
        body: body.to_bytes(),
    })
}

fn pass_back(response: Response<Bytes>) -> Answer {
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = parts.status;
    for name in PASSED_BACK {
        if let Some(value) = parts.headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

impl Handler for Endpoint {
    fn handle(self: Arc<Self>, request: Request<Incoming>) -> Boxed<'static, Answer> {
        Box::pin(async move {
            self.answer(request)
                .await
                .unwrap_or_else(|error| error.answer())
        })
    }
}

/// Answers in the place of a KMS that the image does not name.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKms;

impl Handler for NoKms {
    fn handle(self: Arc<Self>, _: Request<Incoming>) -> Boxed<'static, Answer> {
        let body = json!({
            "__type": "UnsupportedOperationException",
            "message": "enclos-agent: this image names no KMS; give [kms] in enclos.toml and build again",
        });
        Box::pin(async move { answer(StatusCode::BAD_REQUEST, JSON, body.to_string()) })
    }
}
