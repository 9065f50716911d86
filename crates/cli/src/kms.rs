//! Using a key in a KMS, Enclos's or AWS's: one signed request.

use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use enclos_client::http::Http;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A key, where it is, and the right to use it.
pub(crate) struct Key {
    arn: String,
    region: String,
    endpoint: String,
    credentials: Credentials,
    http: Http,
}

impl Key {
    /// The key with this ARN. Without an endpoint it is at `AWS_ENDPOINT_URL_KMS` or AWS's; without certificates those
    /// of `AWS_CA_BUNDLE` or Mozilla's are trusted.
    pub(crate) fn new(arn: &str, endpoint: Option<&str>, ca: Option<&Path>) -> Outcome<Self> {
        let region = region(arn)?;
        let endpoint = endpoint
            .map(str::to_owned)
            .or_else(|| variable("AWS_ENDPOINT_URL_KMS"))
            .unwrap_or_else(|| format!("https://kms.{region}.amazonaws.com"));
        let bundle = variable("AWS_CA_BUNDLE");
        let http = match ca.or_else(|| bundle.as_deref().map(Path::new)) {
            None => Http::new(TIMEOUT),
            Some(path) => {
                let pem = std::fs::read(path)
                    .map_err(|error| Failure::file(None, "read", path, error))?;
                Http::with_roots(TIMEOUT, &pem)?
            }
        };
        Ok(Self {
            arn: arn.to_owned(),
            region,
            endpoint,
            credentials: credentials()?,
            http,
        })
    }

    /// KMS Encrypt.
    pub(crate) fn encrypt(&self, plaintext: &[u8]) -> Outcome<Vec<u8>> {
        let plaintext = BASE64_STANDARD.encode(plaintext);
        self.request(
            "Encrypt",
            &json!({ "KeyId": self.arn, "Plaintext": plaintext }),
            "CiphertextBlob",
        )
    }

    /// KMS Sign of a digest, by the algorithm of AWS's name `ECDSA_SHA_384` and the like; the signature is DER.
    pub(crate) fn sign(&self, digest: &[u8], algorithm: &str) -> Outcome<Vec<u8>> {
        let body = json!({
            "KeyId": self.arn,
            "Message": BASE64_STANDARD.encode(digest),
            "MessageType": "DIGEST",
            "SigningAlgorithm": algorithm,
        });
        self.request("Sign", &body, "Signature")
    }

    /// One operation, of whose answer one blob is wanted.
    fn request(&self, operation: &str, body: &Value, wanted: &str) -> Outcome<Vec<u8>> {
        let body = serde_json::to_vec(body)?;
        let url = format!("{}/", self.endpoint.trim_end_matches('/'));
        let mut headers = vec![
            (
                "content-type".to_owned(),
                "application/x-amz-json-1.1".to_owned(),
            ),
            (
                "x-amz-target".to_owned(),
                format!("TrentService.{operation}"),
            ),
        ];
        headers.extend(self.signature(&url, &headers, &body)?);
        let headers = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let answer = self.http.post(&url, headers, &body);
        let answer = answer.map_err(|error| {
            Failure::from(error).context(format_args!("KMS {operation} with {} failed", self.arn))
        })?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let blob = answer[wanted]
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok());
        blob.ok_or_else(|| Failure::text(format_args!("{url} answered without a {wanted}")))
    }

    /// The headers that SigV4 adds.
    fn signature(
        &self,
        url: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Outcome<Vec<(String, String)>> {
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("kms")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?;
        let headers = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let request = SignableRequest::new("POST", url, headers, SignableBody::Bytes(body))?;
        let (instructions, _) = sign(request, &params.into())?.into_parts();
        Ok(instructions
            .headers()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }
}

/// `arn:aws:kms:REGION:ACCOUNT:key/ID` or `…:alias/NAME`.
pub(crate) fn region(arn: &str) -> Outcome<String> {
    let parts: Vec<_> = arn.splitn(6, ':').collect();
    match parts.as_slice() {
        ["arn", _, "kms", region, _, resource]
            if !region.is_empty()
                && (resource.starts_with("key/") || resource.starts_with("alias/")) =>
        {
            Ok((*region).to_owned())
        }
        _ => Err(
            Failure::text(format_args!("`{arn}` is not the ARN of a KMS key"))
                .hint("expected arn:aws:kms:REGION:ACCOUNT:key/ID"),
        ),
    }
}

fn credentials() -> Outcome<Credentials> {
    let needed = |name: &str| {
        variable(name).ok_or_else(|| {
            Failure::text(format_args!("no credentials for the KMS: {name} is not set"))
                .hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`test` and `test` for a development KMS)")
        })
    };
    let (id, secret) = (
        needed("AWS_ACCESS_KEY_ID")?,
        needed("AWS_SECRET_ACCESS_KEY")?,
    );
    Ok(Credentials::new(
        id,
        secret,
        variable("AWS_SESSION_TOKEN"),
        None,
        "environment",
    ))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_in_the_arn() {
        assert_eq!(
            region("arn:aws:kms:eu-west-1:000000000000:key/x").unwrap(),
            "eu-west-1"
        );
        assert_eq!(
            region("arn:aws-cn:kms:cn-north-1:1:alias/a:b").unwrap(),
            "cn-north-1"
        );
        for bad in [
            "",
            "alias/x",
            "arn:aws:s3:us-east-1:1:key/x",
            "arn:aws:kms::1:key/x",
            "arn:aws:kms:r:1:bucket/x",
        ] {
            assert!(region(bad).is_err(), "{bad}");
        }
    }
}
