//! Instance metadata at 169.254.169.254, versions 1 and 2.
//!
//! The leaves are the parent's facts, see [`tree`]. One leaf is the enclave's own: a fresh attestation document,
//! see [`query`] for what may go into it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};

use enclos_attest::channel;

use super::facts::Facts;
use super::http::{Answer, Handler, answer};
use super::nsm::{self, AttestError, Nsm};
use super::transport::Boxed;
use crate::log;
use token::{MAX_TTL, Tokens};
use tree::Tree;

pub mod query;
pub mod token;
pub mod tree;

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const TEXT: &str = "text/plain";

/// The metadata service.
#[derive(Debug)]
pub struct Imds {
    facts: Arc<Facts>,
    nsm: Arc<dyn Nsm>,
    tokens: Tokens,
}

impl Imds {
    /// A service that tells these facts and attests with this NSM.
    ///
    /// # Errors
    /// When there is no randomness for tokens.
    pub fn new(
        facts: Arc<Facts>,
        nsm: Arc<dyn Nsm>,
    ) -> Result<Self, aws_lc_rs::error::Unspecified> {
        Ok(Self {
            facts,
            nsm,
            tokens: Tokens::new()?,
        })
    }

    /// Answers a request; its body, if any, means nothing.
    pub async fn answer(&self, request: &Parts) -> Answer {
        let path = request.uri.path();
        match request.method {
            Method::PUT if path == "/latest/api/token" => self.issue(&request.headers),
            Method::GET | Method::HEAD => self.get(request).await,
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "metadata is read with GET"),
        }
    }

    fn issue(&self, headers: &HeaderMap) -> Answer {
        if headers.contains_key(FORWARDED_FOR) {
            return refuse(StatusCode::FORBIDDEN, "a proxy may not ask for a token");
        }
        let ttl = headers
            .get(TOKEN_TTL)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        match ttl.and_then(|ttl| self.tokens.issue(ttl).map(|token| (ttl, token))) {
            Some((ttl, token)) => {
                let mut response = answer(StatusCode::OK, TEXT, token);
                response
                    .headers_mut()
                    .insert(TOKEN_TTL, HeaderValue::from(ttl));
                response
            }
            None => refuse(
                StatusCode::BAD_REQUEST,
                &format!("{TOKEN_TTL} must be a number from 1 to {MAX_TTL}"),
            ),
        }
    }

    async fn get(&self, request: &Parts) -> Answer {
        let token = request
            .headers
            .get(TOKEN)
            .map(|value| value.to_str().unwrap_or_default());
        if token.is_some_and(|token| !self.tokens.is_good(token)) {
            return refuse(StatusCode::UNAUTHORIZED, "this token is unknown or over");
        }
        let path = request.uri.path();
        if path == "/" {
            return answer(StatusCode::OK, TEXT, "1.0\nlatest");
        }
        let Some(path) = below_version(path) else {
            return not_found(path);
        };
        if path == tree::ATTESTATION {
            let query = request.uri.query().unwrap_or_default();
            return self.document(query, token.is_some()).await;
        }
        match self.facts.get().await {
            Ok(facts) => match Tree::new(&facts).get(path) {
                Some(value) => answer(StatusCode::OK, kind(path), value),
                None => not_found(path),
            },
            Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &log::chain(&error)),
        }
    }

    /// A document for a key needs a token: whoever can make an application fetch an address (by GET, without headers of
    /// their own) must not become the enclave to others, nor to a KMS.
    async fn document(&self, query: &str, has_token: bool) -> Answer {
        let fields = match query::parse(query) {
            Ok(fields) => fields,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        if fields.public_key.is_some() && !has_token {
            let message = "a document with a public_key is given for a token only: PUT /latest/api/token, as IMDSv2 does";
            return refuse(StatusCode::UNAUTHORIZED, message);
        }
        let purpose = fields.user_data.as_deref().unwrap_or_default();
        if purpose.starts_with(channel::RESERVED) {
            let message = "user_data that begins with enclos-tls/ is for the agent's own TLS key";
            return refuse(StatusCode::BAD_REQUEST, message);
        }
        match nsm::attest(&self.nsm, fields).await {
            Ok(document) => answer(StatusCode::OK, TEXT, STANDARD.encode(document)),
            Err(error) => refuse(status_of(&error), &log::chain(&error)),
        }
    }
}

fn status_of(error: &AttestError) -> StatusCode {
    use enclos_attest::nsm::ErrorCode::{InputTooLarge, InvalidArgument};
    match error {
        AttestError::Refused(InvalidArgument | InputTooLarge) => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// What follows `/latest/`, or a dated version, in a path.
fn below_version(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/')?;
    let (version, rest) = path.split_once('/').unwrap_or((path, ""));
    let dated = version.len() == 10 && version.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    (version == "latest" || version == "1.0" || dated).then_some(rest)
}

fn kind(path: &str) -> &'static str {
    if path.starts_with("dynamic/instance-identity/") {
        "application/json"
    } else {
        TEXT
    }
}

fn refuse(status: StatusCode, reason: &str) -> Answer {
    answer(status, TEXT, format!("{} {reason}\n", status.as_u16()))
}

fn not_found(path: &str) -> Answer {
    refuse(StatusCode::NOT_FOUND, &format!("there is no {path}"))
}

impl Handler for Imds {
    fn handle(self: Arc<Self>, request: Request<Incoming>) -> Boxed<'static, Answer> {
        Box::pin(async move { self.answer(&request.into_parts().0).await })
    }
}
