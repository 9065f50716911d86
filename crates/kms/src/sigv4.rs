//! AWS Signature Version 4, verified.
//!
//! The caller's side is described in AWS's "Authenticating requests"; this is its mirror image:
//!
//! 1. [`Authorization::parse`] takes the `Authorization` header apart and checks everything that needs no
//!    secret: algorithm, scope, which headers are signed, the time. It yields the access key id.
//! 2. The secret is looked up.
//! 3. [`Authorization::verify`] rebuilds the canonical request from what arrived, the body's real hash
//!    included, and compares signatures in constant time.
//!
//! Presigned URLs are not accepted. Texts are AWS's.

use aws_lc_rs::{constant_time, digest, hmac};
use hyper::HeaderMap;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use crate::arn;
use crate::error::{ApiError, ErrorKind};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "kms";
const TERMINATION: &str = "aws4_request";
const BASIC_FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// How far a signature's time may lie from ours, either way: AWS's five minutes.
const MAX_SKEW: Duration = Duration::minutes(5);

/// A request as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path, percent-encoded as it arrived.
    pub path: &'a str,
    /// Query string, percent-encoded as it arrived.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a [u8],
}

/// An `Authorization` header whose form, scope and time are right. Its signature is not yet checked.
#[derive(Debug)]
pub struct Authorization<'a> {
    access_key_id: &'a str,
    scope_date: &'a str,
    region: &'a str,
    service: &'a str,
    timestamp: String,
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Takes the header apart and checks what needs no secret.
    ///
    /// # Errors
    /// `MissingAuthenticationTokenException`, `IncompleteSignatureException` or `InvalidSignatureException`
    /// with AWS's text.
    pub fn parse(headers: &'a HeaderMap, now: OffsetDateTime) -> Result<Self, ApiError> {
        let authorization = Self::parse_unscoped(headers)?;
        authorization.check_scope(SERVICE)?;
        authorization.check_signed_headers(headers)?;
        authorization.check_time(now)?;
        Ok(authorization)
    }

    fn parse_unscoped(headers: &'a HeaderMap) -> Result<Self, ApiError> {
        let Some(header) = headers.get("authorization") else {
            return Err(ApiError::new(
                ErrorKind::MissingAuthenticationToken,
                "Missing Authentication Token",
            ));
        };
        let header = header
            .to_str()
            .map_err(|_| incomplete("Authorization header is not text"))?;
        let (algorithm, parameters) = header.split_once(' ').unwrap_or((header, ""));
        if algorithm != ALGORITHM {
            return Err(incomplete(format!(
                "Unsupported AWS 'algorithm': '{algorithm}'."
            )));
        }
        let parameters = Parameters::parse(parameters);
        let timestamp = request_time(headers);
        parameters.check_complete(timestamp.is_some(), header)?;
        let [access_key_id, scope_date, region, service, termination] =
            split_credential(parameters.credential)?;
        if termination != TERMINATION {
            return Err(invalid(format!(
                "Credential should be scoped with correct termination: '{TERMINATION}', got '{termination}'"
            )));
        }
        Ok(Self {
            access_key_id,
            scope_date,
            region,
            service,
            timestamp: timestamp.unwrap_or_default(),
            signed_headers: parameters.signed_headers.split(';').collect(),
            signature: parameters.signature,
        })
    }

    /// Whose secret is needed.
    #[must_use]
    pub fn access_key_id(&self) -> &'a str {
        self.access_key_id
    }

    /// The region of the credential scope.
    #[must_use]
    pub fn region(&self) -> &'a str {
        self.region
    }

    fn check_scope(&self, service: &str) -> Result<(), ApiError> {
        if self.service != service {
            return Err(invalid(format!(
                "Credential should be scoped to correct service: '{service}'. "
            )));
        }
        if !arn::is_region(self.region) {
            return Err(invalid(format!(
                "Credential should be scoped to a valid region, not '{}'. ",
                self.region
            )));
        }
        let day = self.timestamp.get(..8).unwrap_or_default();
        if self.scope_date != day {
            return Err(invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != '{day}', from '{}'.",
                self.scope_date, self.timestamp
            )));
        }
        Ok(())
    }

    /// `host` and every `x-amz-*` header must be under the signature: they decide what is done.
    fn check_signed_headers(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if !self.signed_headers.contains(&"host") {
            return Err(invalid(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        let unsigned = headers
            .keys()
            .map(hyper::header::HeaderName::as_str)
            .find(|name| name.starts_with("x-amz-") && !self.signed_headers.contains(name));
        match unsigned {
            Some(name) => Err(invalid(format!(
                "'{name}' must be a 'SignedHeader' in the AWS Authorization."
            ))),
            None => Ok(()),
        }
    }

    fn check_time(&self, now: OffsetDateTime) -> Result<(), ApiError> {
        let signed = PrimitiveDateTime::parse(&self.timestamp, BASIC_FORMAT)
            .map_err(|_| {
                incomplete(format!(
                    "Date must be in ISO-8601 'basic format'. Got '{}'. See http://en.wikipedia.org/wiki/ISO_8601",
                    self.timestamp
                ))
            })?
            .assume_utc();
        let show = |time: OffsetDateTime| time.format(BASIC_FORMAT).unwrap_or_default();
        if signed < now - MAX_SKEW {
            return Err(invalid(format!(
                "Signature expired: {} is now earlier than {} ({} - 5 min.)",
                self.timestamp,
                show(now - MAX_SKEW),
                show(now)
            )));
        }
        if signed > now + MAX_SKEW {
            return Err(invalid(format!(
                "Signature not yet current: {} is still later than {} ({} + 5 min.)",
                self.timestamp,
                show(now + MAX_SKEW),
                show(now)
            )));
        }
        Ok(())
    }

    /// Checks the signature over the request as it arrived.
    ///
    /// # Errors
    /// `InvalidSignatureException` with AWS's text.
    pub fn verify(&self, secret: &[u8], request: &Request<'_>) -> Result<(), ApiError> {
        let expected = hex::encode(self.expected_signature(secret, request)?);
        constant_time::verify_slices_are_equal(expected.as_bytes(), self.signature.as_bytes())
            .map_err(|_| mismatch())
    }

    fn expected_signature(
        &self,
        secret: &[u8],
        request: &Request<'_>,
    ) -> Result<hmac::Tag, ApiError> {
        let canonical = self.canonical_request(request)?;
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        let string_to_sign = format!(
            "{ALGORITHM}\n{}\n{}/{}/{}/{TERMINATION}\n{hash}",
            self.timestamp, self.scope_date, self.region, self.service
        );
        let key = signing_key(secret, self.scope_date, self.region, self.service);
        Ok(hmac::sign(&key, string_to_sign.as_bytes()))
    }

    fn canonical_request(&self, request: &Request<'_>) -> Result<String, ApiError> {
        let body_hash = hex::encode(digest::digest(&digest::SHA256, request.body));
        if let Some(claimed) = request.headers.get("x-amz-content-sha256")
            && claimed.as_bytes() != body_hash.as_bytes()
        {
            return Err(mismatch());
        }
        let mut text = format!(
            "{}\n{}\n{}\n",
            request.method,
            canonical_path(request.path),
            canonical_query(request.query)
        );
        for name in &self.signed_headers {
            text.push_str(name);
            text.push(':');
            text.push_str(&canonical_header(request.headers, name)?);
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.signed_headers.join(";"));
        text.push('\n');
        text.push_str(&body_hash);
        Ok(text)
    }
}

/// The three parameters of the header, empty where absent.
#[derive(Default)]
struct Parameters<'a> {
    credential: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Parameters<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parameters = Self::default();
        for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("Credential", value)) => parameters.credential = value,
                Some(("SignedHeaders", value)) => parameters.signed_headers = value,
                Some(("Signature", value)) => parameters.signature = value,
                _ => {}
            }
        }
        parameters
    }

    fn check_complete(&self, has_date: bool, header: &str) -> Result<(), ApiError> {
        let mut missing = String::new();
        for (name, value) in [
            ("Credential", self.credential),
            ("Signature", self.signature),
            ("SignedHeaders", self.signed_headers),
        ] {
            if value.is_empty() {
                missing.push_str(&format!(
                    "Authorization header requires '{name}' parameter. "
                ));
            }
        }
        if !has_date {
            missing.push_str("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ");
        }
        if missing.is_empty() {
            return Ok(());
        }
        // As AWS does now: enough to recognise one's own header, without repeating a secret in a log.
        let hash = digest::digest(&digest::SHA256, header.as_bytes());
        let hash = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, hash);
        Err(incomplete(format!(
            "{missing}(Hashed with SHA-256 and encoded with Base64) Authorization={hash}"
        )))
    }
}

fn split_credential(credential: &str) -> Result<[&str; 5], ApiError> {
    // Access key ids hold no slash, so the split is unambiguous.
    <[&str; 5]>::try_from(credential.split('/').collect::<Vec<_>>()).map_err(|_| {
        incomplete(format!(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{credential}'"
        ))
    })
}

fn request_time(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("x-amz-date").or_else(|| headers.get("date"))?;
    value.to_str().ok().map(str::to_owned)
}

fn signing_key(secret: &[u8], date: &str, region: &str, service: &str) -> hmac::Key {
    let mut start = zeroize::Zeroizing::new(b"AWS4".to_vec());
    start.extend_from_slice(secret);
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, &start);
    for part in [date, region, service, TERMINATION] {
        let tag = hmac::sign(&key, part.as_bytes());
        key = hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref());
    }
    key
}

/// Values of one header: each trimmed, inner runs of blanks folded, several joined by commas.
fn canonical_header(headers: &HeaderMap, name: &str) -> Result<String, ApiError> {
    let mut joined = String::new();
    for (index, value) in headers.get_all(name).iter().enumerate() {
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| mismatch())?;
        if index > 0 {
            joined.push(',');
        }
        let mut words = value.split_ascii_whitespace();
        joined.push_str(words.next().unwrap_or_default());
        for word in words {
            joined.push(' ');
            joined.push_str(word);
        }
    }
    Ok(joined)
}

/// Every service but S3 signs the path encoded once more.
fn canonical_path(path: &str) -> String {
    if path.is_empty() {
        "/".to_owned()
    } else {
        encode(path.as_bytes(), b"/")
    }
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encode(&decode(name), b""), encode(&decode(value), b""))
        })
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

fn encode(bytes: &[u8], keep: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || keep.contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escape = (byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

fn incomplete(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::IncompleteSignature, message)
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidSignature, message)
}

fn mismatch() -> ApiError {
    invalid(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.",
    )
}

#[cfg(test)]
#[path = "sigv4_tests.rs"]
mod tests;
