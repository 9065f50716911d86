//! KMS Encrypt for `enclos call --kms-key`: one signed request.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use enclos_client::http::Http;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Options for KMS.
#[derive(Debug, Args)]
pub(super) struct Kms {
    /// Encrypt with this KMS key instead of sealing to the enclave's own key
    #[arg(long, value_name = "ARN")]
    kms_key: Option<String>,
    /// Where the KMS answers; by default AWS's, or AWS_ENDPOINT_URL_KMS
    #[arg(long, value_name = "URL", requires = "kms_key")]
    kms_endpoint: Option<String>,
    /// Certificates to trust for an https endpoint, PEM, instead of Mozilla's
    #[arg(long, value_name = "FILE", requires = "kms_key")]
    kms_ca: Option<PathBuf>,
}

/// A key, where it is, and the right to use it.
pub(super) struct Key<'a> {
    arn: &'a str,
    region: String,
    endpoint: String,
    credentials: Credentials,
    http: Http,
}

impl Kms {
    /// The key, if KMS is to be used.
    pub(super) fn wanted(&self) -> Outcome<Option<Key<'_>>> {
        let Some(arn) = self.kms_key.as_deref() else {
            return Ok(None);
        };
        let region = region(arn)?;
        let endpoint = self
            .kms_endpoint
            .clone()
            .or_else(|| variable("AWS_ENDPOINT_URL_KMS"));
        let endpoint = endpoint.unwrap_or_else(|| format!("https://kms.{region}.amazonaws.com"));
        let http = match &self.kms_ca {
            None => Http::new(TIMEOUT),
            Some(path) => {
                let pem = std::fs::read(path)
                    .map_err(|error| Failure::file(None, "read", path, error))?;
                Http::with_roots(TIMEOUT, &pem)?
            }
        };
        Ok(Some(Key {
            arn,
            region,
            endpoint,
            credentials: credentials()?,
            http,
        }))
    }
}

impl Key<'_> {
    /// KMS Encrypt.
    pub(super) fn encrypt(&self, plaintext: &[u8]) -> Outcome<Vec<u8>> {
        let body = serde_json::to_vec(
            &json!({ "KeyId": self.arn, "Plaintext": BASE64_STANDARD.encode(plaintext) }),
        )?;
        let url = format!("{}/", self.endpoint.trim_end_matches('/'));
        let mut headers = vec![
            (
                "content-type".to_owned(),
                "application/x-amz-json-1.1".to_owned(),
            ),
            ("x-amz-target".to_owned(), "TrentService.Encrypt".to_owned()),
        ];
        headers.extend(self.signature(&url, &headers, &body)?);
        let headers = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let answer = self.http.post(&url, headers, &body);
        let answer = answer.map_err(|error| {
            Failure::from(error).context(format_args!("cannot encrypt with {}", self.arn))
        })?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let ciphertext = answer["CiphertextBlob"]
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok());
        ciphertext
            .ok_or_else(|| Failure::text(format_args!("{url} answered without a CiphertextBlob")))
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
fn region(arn: &str) -> Outcome<String> {
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
