//! `enclos attest verify`.

use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use enclos_api::error::causes;
use enclos_attest::UnixMillis;
use enclos_attest::document::VerifiedDocument;
use enclos_client::Refusal;
use enclos_client::decode::base64_any;
use serde::Serialize;

use super::From;
use super::registers::Registers;
use crate::failure::{Failure, Outcome};
use crate::own::trust::Trust;
use crate::term;

/// Options of `attest verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 accepted, 1 refused (every reason is named), 2 wrong options."
)]
pub(crate) struct Verify {
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    trust: Trust,
    /// Expect this nonce: hex or base64 (prefix hex: or base64: where it could be both)
    #[arg(long, value_name = "NONCE", value_parser = parse_nonce, conflicts_with = "url")]
    nonce: Option<Nonce>,
    /// Judge certificates at the document's own time and ignore its age: for records
    #[arg(long, conflicts_with_all = ["max_age", "url"])]
    archival: bool,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Nonce(pub(super) Vec<u8>);

pub(super) fn run(args: &Verify) -> Outcome {
    let mut verifier = args.trust.verifier()?;
    if args.archival {
        verifier = verifier.archival();
    }
    let found = args.from.find()?;
    let nonce = found
        .nonce
        .as_deref()
        .or_else(|| args.nonce.as_ref().map(|nonce| nonce.0.as_slice()));
    let verdict = verifier.verify(&found.document, nonce);
    if args.json {
        term::json(&Verdict::of(&verdict))?;
    }
    let verified = verdict.map_err(refused)?;
    if !verifier.is_pinned() {
        term::note(
            "warning: no image was expected: any image that this root vouches for is accepted (give --pcr0, --eif or --policy)",
        );
    }
    if nonce.is_none() && !args.archival {
        term::note(
            "warning: no nonce was expected: anybody may be showing a copy of this document (give --nonce or --url)",
        );
    }
    if args.json {
        Ok(())
    } else {
        term::out(&describe(&verified))
    }
}

/// Each difference on a line of its own.
pub(crate) fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Unexpected(mismatches) => listed(
            "the document is genuine but not the one expected",
            &mismatches,
        ),
        Refusal::Policy(reasons) => listed(
            "the document is genuine but the policy does not accept it",
            &reasons,
        ),
        other => other.into(),
    }
}

fn listed(text: &str, reasons: &[impl ToString]) -> Failure {
    let lines = reasons.iter().map(ToString::to_string).rev();
    lines.fold(Failure::text(text), |failure, line| {
        failure.because_different(&line)
    })
}

/// What people read.
pub(crate) fn describe(document: &VerifiedDocument) -> String {
    let now = UnixMillis::from(SystemTime::now());
    let age = now
        .since(document.timestamp())
        .unwrap_or_default()
        .as_secs();
    let mut text = format!(
        "accepted\n  module     {}\n  root       {}\n  made       {} ({age} s ago)\n",
        term::printable(document.module_id()),
        document.anchor(),
        document.timestamp(),
    );
    if document.is_debug() {
        text += "  DEBUG      the host can read this enclave's memory\n";
    }
    text += &Registers::of(document.pcrs()).text();
    let fields = [
        ("public key", document.public_key()),
        ("user data", document.user_data()),
        ("nonce", document.nonce()),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            text += &format!(
                "  {name:<10} {} bytes, {}\n",
                value.len(),
                BASE64_STANDARD.encode(value)
            );
        }
    }
    text
}

/// What programs read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Verdict {
    accepted: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Shown>,
}

/// A document in JSON; byte strings as base64.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    module_id: String,
    timestamp: UnixMillis,
    root: String,
    debug: bool,
    #[serde(rename = "PCRs")]
    pcrs: Registers,
    public_key: Option<String>,
    user_data: Option<String>,
    nonce: Option<String>,
}

impl Verdict {
    fn of(verdict: &Result<VerifiedDocument, Refusal>) -> Self {
        match verdict {
            Ok(document) => Self {
                accepted: true,
                reasons: Vec::new(),
                document: Some(Shown::of(document)),
            },
            Err(refusal) => Self {
                accepted: false,
                reasons: match refusal {
                    Refusal::Unexpected(list) => list.iter().map(ToString::to_string).collect(),
                    Refusal::Policy(list) => list.iter().map(ToString::to_string).collect(),
                    other => causes(other).map(ToString::to_string).collect(),
                },
                document: None,
            },
        }
    }
}

impl Shown {
    fn of(document: &VerifiedDocument) -> Self {
        let base64 = |bytes: Option<&[u8]>| bytes.map(|bytes| BASE64_STANDARD.encode(bytes));
        Self {
            module_id: document.module_id().to_owned(),
            timestamp: document.timestamp(),
            root: document.anchor().to_owned(),
            debug: document.is_debug(),
            pcrs: Registers::of(document.pcrs()),
            public_key: base64(document.public_key()),
            user_data: base64(document.user_data()),
            nonce: base64(document.nonce()),
        }
    }
}

/// Hex when it can be read as hex.
pub(super) fn parse_nonce(text: &str) -> Result<Nonce, String> {
    let expected = || format!("`{text}` is neither hex nor base64");
    let bytes = match text.split_once(':') {
        Some(("hex", text)) => hex::decode(text).ok(),
        Some(("base64", text)) => base64_any(text),
        _ => hex::decode(text).ok().or_else(|| base64_any(text)),
    };
    bytes
        .filter(|bytes| !bytes.is_empty())
        .map(Nonce)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_hex_before_it_is_base64() {
        let bytes = |text: &str| parse_nonce(text).map(|nonce| nonce.0);
        assert_eq!(bytes("00ff").unwrap(), [0, 0xff]);
        assert_eq!(bytes("AP8=").unwrap(), [0, 0xff]);
        assert_eq!(bytes("base64:00ff").unwrap(), [0xd3, 0x47, 0xdf]);
        assert_eq!(bytes("hex:00FF").unwrap(), [0, 0xff]);
        for bad in ["", "hex:", "hex:AP8=", "%%"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
