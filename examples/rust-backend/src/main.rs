//! A backend that works on data its host cannot read.
//!
//! ```text
//! GET  /attest?nonce=B64   {"attestation_doc": B64}: a fresh document; its public key seals requests
//! POST /process            application/vnd.enclos.sealed: text, opened here; the answer is sealed to the sender
//! POST /process            {"encrypted_data": B64}: a KMS ciphertext, decrypted by attestation
//! GET  /health             ok
//! ```
//!
//! The sealing key is made when the process starts, lives in this process alone and dies with it. A client
//! reads the public half from a document that it verified, so whoever carries the request sees its length
//! and nothing else.

mod http_client;
mod kms;
mod metadata;
mod service;

use std::net::{Ipv4Addr, SocketAddr};

const PORT: u16 = 5000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, service::router()?).await?;
    Ok(())
}
