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

/// What a request says, once it is readable.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Work {
    /// Text, in sealed requests only: in the open it would have been read on its way.
    Data(String),
    /// base64 of a KMS ciphertext.
    EncryptedData(String),
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
        return Ok(Json(answer(parse(&body)?, Secrecy::Open).await?).into_response());
    }
    let opened = opener.open(&body)?;
    let answer = answer(parse(opened.plaintext())?, Secrecy::Sealed).await?;
    let reply = opened.reply(&serde_json::to_vec(&answer).context("an answer is JSON")?);
    let reply = reply.context("cannot seal the answer")?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], reply).into_response())
}

fn parse(body: &[u8]) -> Result<Work, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure(
            StatusCode::BAD_REQUEST,
            format!("{{\"encrypted_data\": …}} expected: {error}"),
        )
    })
}

/// How a request came.
enum Secrecy {
    Sealed,
    Open,
}

async fn answer(work: Work, secrecy: Secrecy) -> Result<Answer, Failure> {
    let text = match (work, secrecy) {
        (Work::EncryptedData(ciphertext), _) => decrypt(&ciphertext).await?,
        (Work::Data(text), Secrecy::Sealed) => text,
        (Work::Data(_), Secrecy::Open) => {
            let text = "data in the open is refused: seal the request".to_owned();
            return Err(Failure(StatusCode::BAD_REQUEST, text));
        }
    };
    let words = text.split_whitespace().count();
    let result = format!("Processed: {} ({words} words)", text.to_uppercase());
    Ok(Answer { result })
}

async fn decrypt(ciphertext: &str) -> Result<String, Failure> {
    let bad = |text: &str| Failure(StatusCode::BAD_REQUEST, text.to_owned());
    let ciphertext = BASE64_STANDARD.decode(ciphertext);
    let ciphertext = ciphertext.map_err(|_| bad("encrypted_data is not base64"))?;
    let plaintext = kms::decrypt(&ciphertext).await?;
    String::from_utf8(plaintext).map_err(|_| bad("the plaintext is not UTF-8"))
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
