//! `enclos plan`: the registers of an image before it is built, from the same inputs, with nothing written.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::condition::Condition;
use super::inputs::Inputs;
use crate::failure::Outcome;
use crate::image;
use crate::nitro::{Measured, pcr_of_certificate};
use crate::term;

/// Options of `plan`.
#[derive(Debug, Args)]
#[command(after_help = super::inputs::HELP)]
pub(crate) struct Plan {
    #[command(flatten)]
    inputs: Inputs,
    /// Certificate that the image will be signed with, PEM: adds PCR8. The key is not needed
    #[arg(long, value_name = "FILE")]
    signing_certificate: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Plan) -> Outcome {
    let certificate = args.signing_certificate.as_deref();
    let pcr8 = certificate.map(pcr_of_certificate).transpose()?;
    let planned = image::planned(&args.inputs.wanted())?;
    for warning in &planned.warnings {
        term::note(format_args!("warning: {warning}"));
    }
    let measured = Measured::from(&enclos_eif::Measurements {
        pcr8,
        ..planned.measurements
    });
    let condition = Condition::of(&measured);
    if args.json {
        return term::json(&json!({
            "Measurements": measured,
            "Bytes": planned.len,
            "Configuration": planned.config,
            "Condition": condition,
        }));
    }
    let mut text = String::new();
    for (index, value) in measured.registers() {
        let _ = writeln!(text, "PCR{index}  {value}");
    }
    let unsigned = if pcr8.is_none() {
        ", unsigned"
    } else {
        " and its signature"
    };
    let _ = writeln!(text, "size  {:.1} MiB{unsigned}\n", term::mib(planned.len));
    let _ = writeln!(text, "{}\n{}", Condition::INTRODUCTION, condition.pretty()?);
    term::out(&text)
}
