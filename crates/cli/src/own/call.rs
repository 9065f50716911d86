//! `enclos call`: verify an enclave, then send it what only it may read.
//!
//! ```text
//! GET /attest?nonce=… ─▶ verify root, registers, nonce, age ─▶ sealed:  HPKE to the document's key ─▶ POST ─▶ open the reply
//!                                                            └▶ KMS:     KMS Encrypt ─▶ POST {"encrypted_data": …} ─▶ reply
//! ```
//!
//! Nothing but the nonce is sent before the document was accepted. In KMS mode it is the key's policy that keeps others
//! from decrypting; the reply comes in the open.
//!
//! With `--attested-tls` the document comes with the TLS handshake, which fails unless it is accepted; what is sent travels inside, as it
//! is, or sealed or encrypted on top. See [`channel`].

mod channel;
mod kms;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use enclos_attest::document::VerifiedDocument;
use enclos_client::http::Http;
use enclos_client::{ConnectError, Enclave, Endpoint, Verifier};
use serde_json::json;

use super::attest::refused;
use super::trust::Trust;
use crate::failure::{Failure, Outcome};
use crate::term;

/// Pause between two attempts to reach an application that is not there yet.
const PAUSE: Duration = Duration::from_millis(200);

/// Options of `call`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    enclos call http://127.0.0.1:8080/process --root root.pem --eif app.eif --data '{\"data\": \"secret\"}'\n  \
    enclos call http://127.0.0.1:8080/process --root root.pem --eif app.eif --data secret \\\n      \
    --kms-key arn:aws:kms:us-east-1:000000000000:key/… --kms-endpoint http://127.0.0.1:4566\n  \
    enclos call https://127.0.0.1:9443/process --attested-tls --root root.pem --eif app.eif --data '{\"data\": \"secret\"}'\n\n\
    Exit status: 0 answered, 1 the enclave was refused or did not answer (nothing secret was sent if it was refused), 2 wrong options.")]
pub(crate) struct Call {
    /// URL that takes the request; without a path, /process
    #[arg(value_name = "URL")]
    url: String,
    /// URL that answers with the document; by default /attest on the same host
    #[arg(long, value_name = "URL")]
    attest_url: Option<String>,
    #[command(flatten)]
    trust: Trust,
    /// How long an application that has just been started may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u32,
    /// Accept any image that the root vouches for
    #[arg(long)]
    any_image: bool,
    #[command(flatten)]
    payload: Payload,
    #[command(flatten)]
    channel: channel::Channel,
    #[command(flatten)]
    kms: kms::Kms,
}

/// What is sent.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Payload {
    /// What only the enclave may read
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// The same from a file; `-` reads standard input, which keeps it out of the list of processes
    #[arg(long, value_name = "FILE")]
    data_file: Option<PathBuf>,
}

impl Payload {
    fn read(&self) -> Outcome<Vec<u8>> {
        match (&self.data, &self.data_file) {
            (Some(text), _) => Ok(text.clone().into_bytes()),
            (None, Some(path)) if path == Path::new("-") => {
                let mut bytes = Vec::new();
                std::io::stdin().lock().read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            (None, Some(path)) => {
                std::fs::read(path).map_err(|error| Failure::file(None, "read", path, error))
            }
            (None, None) => Err(Failure::text("nothing to send: give --data or --data-file")),
        }
    }
}

pub(super) fn run(args: &Call) -> Outcome {
    let payload = args.payload.read()?;
    let verifier = verifier(args)?;
    let answer = match args.channel.open(&verifier)? {
        Some(tls) => channel::call(args, &verifier, &tls, payload)?,
        None => {
            let enclave = connect(args, &verifier, Http::default())?;
            note(enclave.document());
            send(args, &enclave, payload)?
        }
    };
    term::out(&format!(
        "{}\n",
        String::from_utf8_lossy(&answer).trim_end()
    ))
}

fn note(document: &VerifiedDocument) {
    let pcr0 = document.pcrs().first_key_value();
    let pcr0 = pcr0.map(|(_, value)| value.to_string());
    term::note(format_args!(
        "verified {} (root {}, PCR0 {})",
        term::printable(document.module_id()),
        document.anchor(),
        pcr0.unwrap_or_default()
    ));
}

/// Sends what only this enclave can read: encrypted with a KMS key, or sealed.
fn send(args: &Call, enclave: &Enclave, payload: Vec<u8>) -> Outcome<Vec<u8>> {
    match encrypted(args, &payload)? {
        Some(body) => Ok(enclave.post("application/json", &body)?),
        None => Ok(enclave.call(&payload)?.to_vec()),
    }
}

/// The request with the payload encrypted with a KMS key, if one is to be used.
fn encrypted(args: &Call, payload: &[u8]) -> Outcome<Option<Vec<u8>>> {
    let Some(key) = args.kms.wanted()? else {
        return Ok(None);
    };
    let ciphertext = BASE64_STANDARD.encode(key.encrypt(payload)?);
    let body = json!({ "encrypted_data": ciphertext });
    Ok(Some(serde_json::to_vec(&body)?))
}

fn verifier(args: &Call) -> Outcome<Verifier> {
    let verifier = args.trust.verifier()?;
    if !verifier.is_pinned() && !args.any_image {
        return Err(Failure::text("no image is expected: any enclave of this root could read the data")
            .hint("give --eif FILE, or --pcr0 HEX (with --pcr1 and --pcr2), or --any-image if that is meant"));
    }
    Ok(verifier)
}

fn endpoint(args: &Call) -> Endpoint {
    let mut endpoint = Endpoint::new(&args.url);
    if let Some(url) = &args.attest_url {
        endpoint.attest.clone_from(url);
    }
    endpoint
}

fn connect(args: &Call, verifier: &Verifier, http: Http) -> Outcome<Enclave> {
    let endpoint = endpoint(args);
    let connect = || Enclave::connect_with(endpoint.clone(), verifier, http.clone());
    let connected = patiently(args, connect, is_not_there_yet);
    connected.map_err(|error| match error {
        ConnectError::Refused { url, source } => refused(*source).context(format_args!(
            "nothing was sent: {url} is not the enclave that was expected"
        )),
        other => other.into(),
    })
}

/// Tries until it works, fails for another reason than that nobody is there yet, or `--wait` is over.
fn patiently<T, E>(
    args: &Call,
    attempt: impl Fn() -> Result<T, E>,
    is_early: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + Duration::from_secs(args.wait.into());
    loop {
        match attempt() {
            Err(error) if Instant::now() < deadline && is_early(&error) => {
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Whether nobody answered, as while an application starts. An answer that is wrong stays wrong.
fn is_not_there_yet(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Http(error) if error.nobody_answered())
}
