//! `enclos attest`: documents judged and shown.

mod inspect;
mod policy;
mod registers;
mod request;
mod verify;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use enclos_client::decode::{self, MAX_DOCUMENT};
use enclos_client::http::Http;

use crate::failure::{Failure, Outcome};

pub(crate) use verify::refused;

/// `enclos attest …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// Decide whether a document is genuine, fresh and of the enclave that is expected
    Verify(verify::Verify),
    /// Show what a document says, without believing it
    Inspect(inspect::Inspect),
    /// Ask a service for a document and keep it, for whoever verifies it later or elsewhere
    Request(request::Request),
    /// Check and convert measurement policies
    #[command(subcommand)]
    Policy(policy::Command),
}

pub(super) fn run(command: &Attest) -> Outcome {
    match command {
        Attest::Verify(args) => verify::run(args),
        Attest::Inspect(args) => inspect::run(args),
        Attest::Request(args) => request::run(args),
        Attest::Policy(command) => policy::run(command),
    }
}

/// Where the document is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct From {
    /// File with the document, binary, base64 or JSON; `-` reads standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same as FILE
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Fetch the document from a service, with a fresh nonce that it must then carry
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

/// A document's bytes, and the nonce that it was fetched with.
pub(super) struct Found {
    pub(super) document: Vec<u8>,
    pub(super) nonce: Option<Vec<u8>>,
}

impl From {
    pub(super) fn find(&self) -> Outcome<Found> {
        if let Some(url) = &self.url {
            let (document, nonce) = enclos_client::fetch(&Http::default(), url)?;
            return Ok(Found {
                document,
                nonce: Some(nonce.to_vec()),
            });
        }
        let path = self
            .file
            .as_deref()
            .or(self.document.as_deref())
            .unwrap_or_else(|| Path::new("-"));
        let document = decode::document(&read(path)?).map_err(|error| {
            Failure::from(error).context(format_args!(
                "no attestation document in {}",
                path.display()
            ))
        })?;
        Ok(Found {
            document,
            nonce: None,
        })
    }
}

/// Reads a file or standard input, a little more than could be a document.
fn read(path: &Path) -> Outcome<Vec<u8>> {
    let limit = u64::try_from(MAX_DOCUMENT)
        .unwrap_or(u64::MAX)
        .saturating_mul(2);
    let mut bytes = Vec::new();
    let done = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    done.map_err(|error| Failure::file(None, "read", path, error))?;
    Ok(bytes)
}
