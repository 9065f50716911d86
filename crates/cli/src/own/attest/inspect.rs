//! `enclos attest inspect`: what a document says of itself. Nothing of it is checked, and the output says so.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use enclos_attest::UnixMillis;
use enclos_attest::document::{Claims, UnverifiedDocument};
use serde::Serialize;
use sha2::{Digest, Sha256};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::From;
use super::registers::Registers;
use crate::failure::Outcome;
use crate::term;

/// Options of `attest inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 shown, 1 not a document, 2 wrong options.")]
pub(crate) struct Inspect {
    #[command(flatten)]
    from: From,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// The document as it describes itself; byte strings as base64.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    verified: bool,
    module_id: String,
    timestamp: UnixMillis,
    debug: bool,
    #[serde(rename = "PCRs")]
    pcrs: Registers,
    public_key: Option<String>,
    user_data: Option<String>,
    nonce: Option<String>,
    /// Root first, leaf last.
    certificates: Vec<Certified>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Certified {
    subject: String,
    not_before: String,
    not_after: String,
    sha256: String,
}

pub(super) fn run(args: &Inspect) -> Outcome {
    let document = UnverifiedDocument::parse(&args.from.find()?.document)?;
    let inspected = Inspected::of(&document);
    if args.json {
        return term::json(&inspected);
    }
    term::out(&inspected.text())
}

impl Inspected {
    fn of(document: &UnverifiedDocument) -> Self {
        let claims: &Claims = document.unverified_claims();
        let base64 =
            |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes));
        let bundle = document.unverified_cabundle().iter().map(Vec::as_slice);
        let chain = bundle.chain([document.unverified_certificate()]);
        Self {
            verified: false,
            module_id: claims.module_id.clone(),
            timestamp: claims.timestamp,
            debug: claims.is_debug(),
            pcrs: Registers::of(&claims.pcrs),
            public_key: base64(&claims.public_key),
            user_data: base64(&claims.user_data),
            nonce: base64(&claims.nonce),
            certificates: chain.map(Certified::of).collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = "NOT VERIFIED: this is what the document says of itself\n".to_owned();
        let _ = writeln!(
            text,
            "  module     {}\n  made       {}",
            term::printable(&self.module_id),
            self.timestamp
        );
        if self.debug {
            text += "  DEBUG      the host can read this enclave's memory\n";
        }
        text += &self.pcrs.text();
        let fields = [
            ("public key", &self.public_key),
            ("user data", &self.user_data),
            ("nonce", &self.nonce),
        ];
        for (name, value) in fields {
            let _ = writeln!(text, "  {name:<10} {}", value.as_deref().unwrap_or("none"));
        }
        text += "  certificates, root first:\n";
        for certificate in &self.certificates {
            let Certified {
                subject,
                not_before,
                not_after,
                sha256,
            } = certificate;
            let _ = writeln!(
                text,
                "    {}\n      {not_before} to {not_after}\n      SHA-256 {sha256}",
                term::printable(subject),
            );
        }
        text
    }
}

impl Certified {
    fn of(der: &[u8]) -> Self {
        let sha256 = hex::encode(Sha256::digest(der));
        match Certificate::from_der(der) {
            Ok(certificate) => {
                let body = certificate.tbs_certificate();
                let validity = body.validity();
                let (not_before, not_after) = (
                    validity.not_before.to_string(),
                    validity.not_after.to_string(),
                );
                Self {
                    subject: body.subject().to_string(),
                    not_before,
                    not_after,
                    sha256,
                }
            }
            Err(error) => {
                let subject = format!("cannot be read: {error}");
                Self {
                    subject,
                    not_before: String::new(),
                    not_after: String::new(),
                    sha256,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Nobody vouches for these texts: they may come from anywhere.
    #[test]
    fn what_a_document_says_does_not_steer_the_terminal() {
        let text = Inspected {
            verified: false,
            module_id: "i-1\x1b[2Jaccepted\n  root".to_owned(),
            timestamp: UnixMillis(0),
            debug: false,
            pcrs: Registers::of(&BTreeMap::new()),
            public_key: None,
            user_data: None,
            nonce: None,
            certificates: vec![Certified {
                subject: "CN=\x1b]0;x\x07".to_owned(),
                not_before: String::new(),
                not_after: String::new(),
                sha256: String::new(),
            }],
        }
        .text();
        assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
        assert!(
            text.contains("i-1\\u{1b}[2Jaccepted\\n  root\n"),
            "{text:?}"
        );
    }
}
