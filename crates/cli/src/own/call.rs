//! `enclos call`: verify an enclave, then send it what only it may read.
//!
//! ```text
//! GET /attest?nonce=… ─▶ verify root, registers, nonce, age ─▶ sealed:  HPKE to the document's key ─▶ POST ─▶ open the reply
//!                                                            └▶ KMS:     KMS Encrypt ─▶ POST {"encrypted_data": …} ─▶ reply
//! ```
//!
//! Nothing but the nonce is sent before the document was accepted. In KMS mode it is the key's policy that
//! keeps others
//! from decrypting; the reply comes in the open.

mod kms;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use enclos_client::{ConnectError, Enclave, Endpoint};
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
    --kms-key arn:aws:kms:us-east-1:000000000000:key/… --kms-endpoint http://127.0.0.1:4566\n\n\
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
    let enclave = connect(args)?;
    let pcr0 = enclave
        .document()
        .pcrs()
        .iter()
        .next()
        .map(|(_, value)| value.to_string());
    term::note(format_args!(
        "verified {} (root {}, PCR0 {})",
        enclave.document().module_id(),
        enclave.document().anchor(),
        pcr0.unwrap_or_default()
    ));
    let answer = match args.kms.wanted()? {
        Some(kms) => {
            let ciphertext = BASE64_STANDARD.encode(kms.encrypt(&payload)?);
            let body = serde_json::to_vec(&json!({ "encrypted_data": ciphertext }))?;
            enclave.post("application/json", &body)?
        }
        None => enclave.call(&payload)?.to_vec(),
    };
    term::out(&format!(
        "{}\n",
        String::from_utf8_lossy(&answer).trim_end()
    ))
}

fn connect(args: &Call) -> Outcome<Enclave> {
    let verifier = args.trust.verifier()?;
    if !verifier.is_pinned() && !args.any_image {
        return Err(Failure::text("no image is expected: any enclave of this root could read the data")
            .hint("give --eif FILE, or --pcr0 HEX (with --pcr1 and --pcr2), or --any-image if that is meant"));
    }
    let mut endpoint = Endpoint::new(&args.url);
    if let Some(url) = &args.attest_url {
        endpoint.attest.clone_from(url);
    }
    let deadline = Instant::now() + Duration::from_secs(args.wait.into());
    let mut connected = Enclave::connect(endpoint.clone(), &verifier);
    while Instant::now() < deadline && connected.as_ref().is_err_and(is_not_there_yet) {
        std::thread::sleep(PAUSE);
        connected = Enclave::connect(endpoint.clone(), &verifier);
    }
    connected.map_err(|error| match error {
        ConnectError::Refused { url, source } => refused(*source).context(format_args!(
            "nothing was sent: {url} is not the enclave that was expected"
        )),
        other => other.into(),
    })
}

/// Whether nobody answered, as while an application starts. An answer that is wrong stays wrong.
fn is_not_there_yet(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Http(error) if error.nobody_answered())
}
