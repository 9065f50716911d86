//! `enclos build`: from whatever the application is in to an EIF, and the policy condition that pins it.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::condition::Condition;
use super::inputs::Inputs;
use crate::failure::Outcome;
use crate::image;
use crate::nitro::Measured;
use crate::signing::Signing;
use crate::term;

/// Options of `build`.
#[derive(Debug, Args)]
#[command(after_help = super::inputs::HELP)]
pub(crate) struct Build {
    #[command(flatten)]
    inputs: Inputs,
    /// Where the EIF goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    signing: Signing,
}

pub(super) fn run(args: Build) -> Outcome {
    let built = image::build(&args.inputs.wanted(), &args.signing, &args.output)?;
    for warning in &built.warnings {
        term::note(format_args!("warning: {warning}"));
    }
    term::note(format_args!(
        "{} ({:.1} MiB)",
        args.output.display(),
        term::mib(built.len)
    ));
    let measured = Measured::from(&built.measurements);
    term::note(Condition::INTRODUCTION);
    term::note(Condition::of(&measured).pretty()?);
    term::json(&json!({ "Measurements": measured }))
}
