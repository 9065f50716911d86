//! `enclos attest policy`: files that say which enclaves are accepted.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::own::trust::read_policy;
use crate::term;

/// `enclos attest policy …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Warn of what a policy admits that nobody may have meant
    Lint(Lint),
    /// Print a policy as `Condition` blocks for a KMS key policy, and what those cannot say
    Kms(Kms),
}

/// Options of `attest policy lint`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing to warn of, 1 warnings or not a policy, 2 wrong options."
)]
pub(crate) struct Lint {
    /// The policy, JSON
    file: PathBuf,
    /// Print the warnings as JSON
    #[arg(long)]
    json: bool,
}

/// Options of `attest policy kms`.
#[derive(Debug, Args)]
#[command(after_help = "One statement for each block: a request has to satisfy one of them.")]
pub(crate) struct Kms {
    /// The policy, JSON
    file: PathBuf,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Linted {
    warnings: Vec<String>,
}

pub(super) fn run(command: &Command) -> Outcome {
    match command {
        Command::Lint(args) => lint(args),
        Command::Kms(args) => kms(args),
    }
}

fn lint(args: &Lint) -> Outcome {
    let policy = read_policy(&args.file)?;
    let warnings = policy.lint(SystemTime::now().into());
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    let count = warnings.len();
    let file = args.file.display();
    if args.json {
        term::json(&Linted {
            warnings: warnings.clone(),
        })?;
    }
    if count == 0 {
        return if args.json {
            Ok(())
        } else {
            term::out(&format!("{file}: nothing to warn of\n"))
        };
    }
    let plural = if count == 1 { "" } else { "s" };
    let failure = Failure::text(format_args!("{file}: {count} warning{plural}"));
    Err(warnings.into_iter().rev().fold(failure, Failure::because))
}

fn kms(args: &Kms) -> Outcome {
    let rendered = read_policy(&args.file)?.kms_conditions();
    for note in &rendered.notes {
        term::note(format_args!("note: {note}"));
    }
    term::json(&rendered.conditions)
}
