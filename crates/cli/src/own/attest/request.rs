//! `enclos attest request`: a document from a service into a file. It is fresh, which its nonce shows; whether it is genuine
//! is for `enclos attest verify`, here or where the nonce came from.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use enclos_attest::UnixMillis;
use enclos_attest::document::UnverifiedDocument;
use enclos_client::http::Http;
use serde::Serialize;

use super::verify::{Nonce, parse_nonce};
use crate::failure::{Failure, Outcome};
use crate::term;

/// Options of `attest request`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 written, 1 no answer, no document, or one without the nonce: nothing is written; 2 wrong options."
)]
pub(crate) struct Request {
    /// URL that answers with a document
    #[arg(value_name = "URL")]
    url: String,
    /// File for the document, binary
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Ask with the nonce of whoever will verify: hex or base64 (prefix hex: or base64: where it could be both); a fresh one without
    #[arg(long, value_name = "NONCE", value_parser = parse_nonce)]
    nonce: Option<Nonce>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What was written. Byte strings as base64.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Requested {
    verified: bool,
    document: PathBuf,
    module_id: String,
    timestamp: UnixMillis,
    nonce: String,
}

pub(super) fn run(args: &Request) -> Outcome {
    let http = Http::default();
    let (document, nonce) = match &args.nonce {
        Some(Nonce(nonce)) => {
            let document = enclos_client::fetch_for(&http, &args.url, nonce)?;
            (document, nonce.clone())
        }
        None => {
            let (document, nonce) = enclos_client::fetch(&http, &args.url)?;
            (document, nonce.to_vec())
        }
    };
    let read = UnverifiedDocument::parse(&document)?;
    let claims = read.unverified_claims();
    if claims.nonce.as_ref() != Some(&nonce) {
        let text = format!("{} answered with a document for another nonce", args.url);
        return Err(Failure::text(text).hint(
            "the service has to put the query's `nonce` into a document that it makes for this request",
        ));
    }
    fs::write(&args.output, &document)
        .map_err(|error| Failure::file(None, "write", &args.output, error))?;
    let requested = Requested {
        verified: false,
        document: args.output.clone(),
        module_id: claims.module_id.clone(),
        timestamp: claims.timestamp,
        nonce: BASE64_STANDARD.encode(&nonce),
    };
    if args.json {
        return term::json(&requested);
    }
    term::out(&requested.text())
}

impl Requested {
    fn text(&self) -> String {
        let (file, nonce) = (self.document.display(), &self.nonce);
        format!(
            "NOT VERIFIED: this is what the document says of itself\n  module     {}\n  made       {}\n  nonce      {nonce}\n\
             verify it: enclos attest verify {file} --root ROOT.pem --nonce base64:{nonce}\n",
            term::printable(&self.module_id),
            self.timestamp,
        )
    }
}
