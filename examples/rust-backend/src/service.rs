//! Routes, and what the service is for.

use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use enclos_client::seal::{CONTENT_TYPE, OpenError, Opener};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{kms, metadata};

/// A request in the open.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Encrypted {
    /// base64 of a KMS ciphertext.
    encrypted_data: String,
}

#[derive(Serialize)]
struct Answer {
    result: String,
}

#[derive(Deserialize)]
struct Attest {
    nonce: Option<String>,
}

pub(crate) fn router() -> anyhow::Result<Router> {
    let opener = Arc::new(Opener::generate()?);
    Ok(Router::new()
        .route("/attest", get(attest))
        .route("/process", post(process))
        .route("/health", get(|| async { "ok" }))
        .with_state(opener))
}

async fn attest(
    State(opener): State<Arc<Opener>>,
    Query(query): Query<Attest>,
) -> Result<Response, Failure> {
    let nonce = query.nonce.unwrap_or_default();
    let document = metadata::attestation_document(opener.public_key_der(), &nonce).await?;
    opener.offer(&document);
    let document = BASE64_STANDARD.encode(document);
    Ok(Json(json!({ "attestation_doc": document })).into_response())
}

async fn process(
    State(opener): State<Arc<Opener>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    if headers
        .get(header::CONTENT_TYPE)
        .is_none_or(|value| value != CONTENT_TYPE)
    {
        let text = decrypt(&body).await?;
        return Ok(Json(work(&text)).into_response());
    }
    let opened = opener.open(&body)?;
    let text = std::str::from_utf8(opened.plaintext()).map_err(|_| bad("the text is not UTF-8"))?;
    let answer = serde_json::to_vec(&work(text)).context("an answer is JSON")?;
    let reply = opened.reply(&answer).context("cannot seal the answer")?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], reply).into_response())
}

/// Stands for whatever must be done with data that nobody else may see.
fn work(text: &str) -> Answer {
    let words = text.split_whitespace().count();
    let result = format!("Processed: {} ({words} words)", text.to_uppercase());
    Answer { result }
}

/// What a request in the open holds, decrypted with a key that the KMS gives to this enclave alone.
async fn decrypt(body: &[u8]) -> Result<String, Failure> {
    let request: Encrypted = serde_json::from_slice(body)
        .map_err(|error| bad(&format!("{{\"encrypted_data\": …}} expected: {error}")))?;
    let ciphertext = BASE64_STANDARD.decode(&request.encrypted_data);
    let ciphertext = ciphertext.map_err(|_| bad("encrypted_data is not base64"))?;
    let plaintext = kms::decrypt(&ciphertext).await?;
    String::from_utf8(plaintext).map_err(|_| bad("the plaintext is not UTF-8"))
}

fn bad(text: &str) -> Failure {
    Failure(StatusCode::BAD_REQUEST, text.to_owned())
}

/// What the client is told: a status and one sentence, no plaintext.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::BAD_GATEWAY, format!("{error:#}"))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let status = StatusCode::from_u16(error.http_status());
        Self(status.unwrap_or(StatusCode::BAD_REQUEST), error.to_string())
    }
}
