//! Plain HTTP to the enclave's own agent; nothing here ever leaves the machine unencrypted.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Far above any reply of the agent.
const MAX_BODY: usize = 1 << 20;

/// Sends a request and returns the body of a successful reply.
pub(crate) async fn send(request: Request<Vec<u8>>) -> Result<Vec<u8>> {
    let uri = request.uri().clone();
    let context = || format!("{} {}", request_line(&uri), "failed");
    let exchange = tokio::time::timeout(TIMEOUT, exchange(request));
    exchange.await.with_context(context)?.with_context(context)
}

fn request_line(uri: &http::Uri) -> String {
    format!(
        "request to {}{}",
        uri.host().unwrap_or_default(),
        uri.path()
    )
}

async fn exchange(request: Request<Vec<u8>>) -> Result<Vec<u8>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let reply = client
        .request(request.map(|body| Full::new(Bytes::from(body))))
        .await?;
    let status = reply.status();
    let body = Limited::new(reply.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    if !status.is_success() {
        bail!("{status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body.to_vec())
}
