//! KMS Decrypt as any SDK calls it. The agent behind `AWS_ENDPOINT_URL_KMS` adds the attestation.

use std::env;
use std::time::SystemTime;

use anyhow::{Context, Result};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::prelude::{BASE64_STANDARD, Engine};
use http::Request;
use serde::Deserialize;
use serde_json::json;

use crate::http_client::send;
use crate::metadata;

#[derive(Deserialize)]
struct Decrypted {
    #[serde(rename = "Plaintext")]
    plaintext: String,
}

pub(crate) async fn decrypt(ciphertext: &[u8]) -> Result<Vec<u8>> {
    let body = json!({ "CiphertextBlob": BASE64_STANDARD.encode(ciphertext) });
    let reply = send(signed("Decrypt", body.to_string().into_bytes()).await?).await?;
    let reply: Decrypted = serde_json::from_slice(&reply)?;
    BASE64_STANDARD
        .decode(reply.plaintext)
        .context("KMS did not answer in base64")
}

async fn signed(action: &str, body: Vec<u8>) -> Result<Request<Vec<u8>>> {
    let endpoint = env::var("AWS_ENDPOINT_URL_KMS").context("AWS_ENDPOINT_URL_KMS is not set")?;
    let region = env::var("AWS_REGION").context("AWS_REGION is not set")?;
    let endpoint = format!("{}/", endpoint.trim_end_matches('/'));
    let host = http::Uri::try_from(&endpoint)?
        .authority()
        .map(ToString::to_string);
    let mut request = Request::post(&endpoint)
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amz-target", format!("TrentService.{action}"))
        .header("host", host.context("AWS_ENDPOINT_URL_KMS names no host")?)
        .body(body)?;
    let identity = metadata::credentials().await?.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(&region)
        .name("kms")
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()?
        .into();
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()));
    let body = SignableBody::Bytes(request.body());
    let signable = SignableRequest::new("POST", &endpoint, headers, body)?;
    let (instructions, _) = sign(signable, &parameters)?.into_parts();
    instructions.apply_to_request_http1x(&mut request);
    Ok(request)
}
