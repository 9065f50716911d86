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
//! The same parameters may stand in the query instead (a presigned URL); then `X-Amz-Expires` says how long they are good
//! for. A signature may be used again while its time lasts, as on AWS. Texts are AWS's.

use std::borrow::Cow;
use std::collections::BTreeSet;

use aws_lc_rs::{constant_time, digest};
use hyper::HeaderMap;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use crate::arn;
use crate::error::{ApiError, ErrorKind};
use crate::secret_key::SecretKey;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATION: &str = "aws4_request";
const BASIC_FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// How far a signature's time may lie from ours, either way: AWS's five minutes.
const MAX_SKEW: Duration = Duration::minutes(5);

/// The longest that a presigned URL may be good for, in seconds: seven days.
const MAX_EXPIRES: i64 = 604_800;

/// Header and query parameter of a session token.
const TOKEN_HEADER: &str = "x-amz-security-token";
const TOKEN_PARAMETER: &str = "X-Amz-Security-Token";
const SIGNATURE_PARAMETER: &str = "X-Amz-Signature";

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

/// Authentication parameters whose form, scope and time are right. Their signature is not yet checked.
#[derive(Debug)]
pub struct Authorization<'a> {
    access_key_id: String,
    scope_date: String,
    region: String,
    service: &'a str,
    timestamp: String,
    signed_headers: Vec<String>,
    signature: String,
    security_token: Option<String>,
    /// Seconds that a presigned URL is good for.
    expires: Option<i64>,
}

impl<'a> Authorization<'a> {
    /// Takes the header or the query apart and checks what needs no secret.
    ///
    /// # Errors
    /// `MissingAuthenticationTokenException`, `IncompleteSignatureException` or `InvalidSignatureException`
    /// with AWS's text.
    pub fn parse(
        headers: &HeaderMap,
        query: &str,
        service: &'a str,
        now: OffsetDateTime,
    ) -> Result<Self, ApiError> {
        let parameters = match headers.get("authorization") {
            Some(header) => Parameters::of_header(headers, header)?,
            None => Parameters::of_query(query)?,
        };
        let authorization = Self::new(parameters, service)?;
        authorization.check_signed_headers(headers)?;
        authorization.check_time(now)?;
        Ok(authorization)
    }

    fn new(parameters: Parameters<'_>, service: &'a str) -> Result<Self, ApiError> {
        let [
            access_key_id,
            scope_date,
            region,
            scope_service,
            termination,
        ] = split_credential(&parameters.credential)?;
        if termination != TERMINATION {
            return Err(invalid(format!(
                "Credential should be scoped with correct termination: '{TERMINATION}', got '{termination}'"
            )));
        }
        check_scope(
            service,
            [scope_date, region, scope_service],
            &parameters.timestamp,
        )?;
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            scope_date: scope_date.to_owned(),
            region: region.to_owned(),
            service,
            timestamp: parameters.timestamp.into_owned(),
            signed_headers: signed_headers(&parameters.signed_headers)?,
            signature: parameters.signature.into_owned(),
            security_token: parameters.security_token.map(Cow::into_owned),
            expires: parameters.expires,
        })
    }

    /// Whose secret is needed.
    #[must_use]
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The region of the credential scope.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The session token that came along.
    #[must_use]
    pub fn security_token(&self) -> Option<&str> {
        self.security_token.as_deref()
    }

    /// `host` and every `x-amz-*` header must be under the signature: they decide what is done.
    fn check_signed_headers(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let is_signed = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        if !is_signed("host") {
            return Err(invalid(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        let unsigned = headers
            .keys()
            .map(hyper::header::HeaderName::as_str)
            .find(|name| name.starts_with("x-amz-") && !is_signed(name));
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
        let (life, shown) = match self.expires {
            Some(seconds) => (Duration::seconds(seconds), format!("{seconds} sec.")),
            None => (MAX_SKEW, "5 min.".to_owned()),
        };
        if signed < now - life {
            return Err(invalid(format!(
                "Signature expired: {} is now earlier than {} ({} - {shown})",
                self.timestamp,
                show(now - life),
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
    pub fn verify(&self, secret: &SecretKey, request: &Request<'_>) -> Result<(), ApiError> {
        let scope = format!(
            "{}/{}/{}/{TERMINATION}",
            self.scope_date, self.region, self.service
        );
        let text = self.string_to_sign(&scope, request)?;
        let key = secret.signing_key(&scope);
        let expected = hex::encode(key.sign(&text));
        constant_time::verify_slices_are_equal(expected.as_bytes(), self.signature.as_bytes())
            .map_err(|_| mismatch())?;
        secret.remember(key);
        Ok(())
    }

    fn string_to_sign(&self, scope: &str, request: &Request<'_>) -> Result<String, ApiError> {
        let canonical = self.canonical_request(request)?;
        let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
        Ok(format!("{ALGORITHM}\n{}\n{scope}\n{hash}", self.timestamp))
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

fn check_scope(
    service: &str,
    [scope_date, region, scope_service]: [&str; 3],
    timestamp: &str,
) -> Result<(), ApiError> {
    if scope_service != service {
        return Err(invalid(format!(
            "Credential should be scoped to correct service: '{service}'. "
        )));
    }
    if !arn::is_region(region) {
        return Err(invalid(format!(
            "Credential should be scoped to a valid region, not '{region}'. "
        )));
    }
    let day = timestamp.get(..8).unwrap_or_default();
    if scope_date != day {
        return Err(invalid(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{scope_date}' != '{day}', from '{timestamp}'."
        )));
    }
    Ok(())
}

/// The names of signed headers. Each may stand there once: what is signed is copied before the signature is known to be right, so that a long
/// header that is named again and again would cost as much memory as its sender likes.
fn signed_headers(list: &str) -> Result<Vec<String>, ApiError> {
    let names: Vec<String> = list.split(';').map(str::to_owned).collect();
    let different: BTreeSet<&String> = names.iter().collect();
    match different.len() == names.len() {
        true => Ok(names),
        false => Err(mismatch()),
    }
}

/// What authenticates a request, wherever it stood; empty where absent.
#[derive(Default)]
struct Parameters<'a> {
    credential: Cow<'a, str>,
    signed_headers: Cow<'a, str>,
    signature: Cow<'a, str>,
    timestamp: Cow<'a, str>,
    security_token: Option<Cow<'a, str>>,
    expires: Option<i64>,
}

impl<'a> Parameters<'a> {
    fn of_header(
        headers: &'a HeaderMap,
        header: &'a hyper::header::HeaderValue,
    ) -> Result<Self, ApiError> {
        let header = header
            .to_str()
            .map_err(|_| incomplete("Authorization header is not text"))?;
        let (algorithm, list) = header.split_once(' ').unwrap_or((header, ""));
        check_algorithm(algorithm)?;
        let mut parameters = Self::default();
        for part in list.split([',', ' ']).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("Credential", value)) => parameters.credential = value.into(),
                Some(("SignedHeaders", value)) => parameters.signed_headers = value.into(),
                Some(("Signature", value)) => parameters.signature = value.into(),
                _ => {}
            }
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let timestamp = text("x-amz-date").or_else(|| text("date"));
        parameters.check_complete(timestamp.is_some(), header)?;
        parameters.timestamp = timestamp.unwrap_or_default().into();
        parameters.security_token = text(TOKEN_HEADER).map(Cow::from);
        Ok(parameters)
    }

    fn of_query(query: &'a str) -> Result<Self, ApiError> {
        let mut parameters = Self::default();
        let (mut algorithm, mut expires) = (None, None);
        for (name, value) in query_pairs(query) {
            let value = String::from_utf8(value)
                .map_err(|_| incomplete(format!("The query parameter '{name}' is not text.")))?;
            match name.as_str() {
                "X-Amz-Algorithm" => algorithm = Some(value),
                "X-Amz-Credential" => parameters.credential = value.into(),
                "X-Amz-Date" => parameters.timestamp = value.into(),
                "X-Amz-Expires" => expires = Some(value),
                "X-Amz-SignedHeaders" => parameters.signed_headers = value.into(),
                SIGNATURE_PARAMETER => parameters.signature = value.into(),
                TOKEN_PARAMETER => parameters.security_token = Some(value.into()),
                _ => {}
            }
        }
        let Some(algorithm) = algorithm else {
            return Err(ApiError::new(
                ErrorKind::MissingAuthenticationToken,
                "Missing Authentication Token",
            ));
        };
        check_algorithm(&algorithm)?;
        parameters.check_query()?;
        parameters.expires = Some(check_expires(expires.as_deref())?);
        Ok(parameters)
    }

    fn check_query(&self) -> Result<(), ApiError> {
        let given = [
            ("X-Amz-Credential", &self.credential),
            (SIGNATURE_PARAMETER, &self.signature),
            ("X-Amz-SignedHeaders", &self.signed_headers),
            ("X-Amz-Date", &self.timestamp),
        ];
        let missing: Vec<String> = given
            .iter()
            .filter(|(_, value)| value.is_empty())
            .map(|(name, _)| format!("AWS query-string parameters must include '{name}'. "))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(incomplete(format!(
            "{}Re-examine the query-string parameters.",
            missing.concat()
        )))
    }

    fn check_complete(&self, has_date: bool, header: &str) -> Result<(), ApiError> {
        let mut missing = String::new();
        for (name, value) in [
            ("Credential", &self.credential),
            ("Signature", &self.signature),
            ("SignedHeaders", &self.signed_headers),
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

fn check_algorithm(algorithm: &str) -> Result<(), ApiError> {
    match algorithm {
        ALGORITHM => Ok(()),
        other => Err(incomplete(format!(
            "Unsupported AWS 'algorithm': '{other}'."
        ))),
    }
}

fn check_expires(text: Option<&str>) -> Result<i64, ApiError> {
    let seconds = text.and_then(|text| text.parse().ok());
    seconds
        .filter(|seconds| (1..=MAX_EXPIRES).contains(seconds))
        .ok_or_else(|| {
            incomplete(format!(
                "X-Amz-Expires must be a number of seconds between 1 and {MAX_EXPIRES}, got '{}'.",
                text.unwrap_or_default()
            ))
        })
}

fn split_credential(credential: &str) -> Result<[&str; 5], ApiError> {
    // Access key ids hold no slash, so the split is unambiguous.
    <[&str; 5]>::try_from(credential.split('/').collect::<Vec<_>>()).map_err(|_| {
        incomplete(format!(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{credential}'"
        ))
    })
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

/// All parameters but the signature itself, sorted.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (encode(&decode(name), b""), encode(&decode(value), b""))
        })
        .filter(|(name, _)| name != SIGNATURE_PARAMETER)
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// Names and values of a query, decoded. A name that is not text has no meaning here and is left out.
pub(crate) fn query_pairs(query: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((String::from_utf8(decode(name)).ok()?, decode(value)))
        })
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
        // A number may begin with a sign, an escape may not.
        let digits = escape.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
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
