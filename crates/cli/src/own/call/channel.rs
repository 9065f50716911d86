//! Options of `enclos call` for attested TLS, and calls over it.

use std::time::Duration;

use clap::Args;
use enclos_client::http::{Http, HttpError};
use enclos_client::{AttestedTls, Verifier};

use super::{Call, connect, encrypted, endpoint, note, patiently, send};
use crate::failure::Outcome;

/// Time for one exchange.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Options for attested TLS.
#[derive(Debug, Args)]
pub(super) struct Channel {
    /// Speak TLS that ends inside the enclave: the server's certificate must carry a document that is accepted, for its own key. What
    /// is sent travels inside as it is. Nothing else is trusted, neither certificate authorities nor names
    #[arg(long)]
    attested_tls: bool,
    /// Seal the data to the enclave's own key inside attested TLS too
    #[arg(long, requires = "attested_tls", conflicts_with = "kms_key")]
    seal: bool,
    /// Demand a document that was made now, for a nonce, not the one in the certificate
    #[arg(long, requires = "attested_tls")]
    tls_nonce: bool,
    /// What the data is, when it is sent as it is
    #[arg(
        long,
        value_name = "TYPE",
        requires = "attested_tls",
        default_value = "application/json"
    )]
    content_type: String,
}

impl Channel {
    /// Attested TLS, if it is wanted.
    pub(super) fn open(&self, verifier: &Verifier) -> Outcome<Option<AttestedTls>> {
        if !self.attested_tls {
            return Ok(None);
        }
        let tls = AttestedTls::new(verifier.clone())?;
        let tls = if self.tls_nonce {
            tls.with_nonces()?
        } else {
            tls
        };
        Ok(Some(tls))
    }
}

/// A call over attested TLS: as it is, encrypted with a KMS key, or sealed under a document that is fetched inside.
pub(super) fn call(
    args: &Call,
    verifier: &Verifier,
    tls: &AttestedTls,
    payload: Vec<u8>,
) -> Outcome<Vec<u8>> {
    let http = Http::attested(TIMEOUT, tls);
    if args.channel.seal {
        let enclave = connect(args, verifier, http)?;
        note(enclave.document());
        return send(args, &enclave, payload);
    }
    let (kind, body) = match encrypted(args, &payload)? {
        Some(body) => ("application/json", body),
        None => (args.channel.content_type.as_str(), payload),
    };
    let url = endpoint(args).process;
    let post = || http.post(&url, [("content-type", kind)], &body);
    let answer = patiently(args, post, HttpError::nothing_was_sent)?;
    if let Some(verdict) = tls.verdict_of(&url) {
        note(verdict.document());
    }
    Ok(answer)
}
