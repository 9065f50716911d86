//! nitro-cli's commands: AWS's flags, AWS's JSON on stdout, AWS's words on stderr.
//!
//! Where Enclos differs on purpose, `docs/nitro-cli-differences.md` says so.

mod args;
mod build_enclave;
mod console;
mod describe_eif;
mod describe_enclaves;
mod explain;
mod output;
mod pcr;
mod run_enclave;
mod sign_eif;
mod terminate_enclave;

pub(crate) use args::{Command, Which};
pub(crate) use output::Measured;
pub(crate) use pcr::of_certificate as pcr_of_certificate;
pub(crate) use sign_eif::sign_in_place;

use crate::failure::Outcome;

/// Runs one of nitro-cli's commands.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::RunEnclave(args) => run_enclave::run(args),
        Command::DescribeEnclaves(args) => describe_enclaves::run(&args),
        Command::TerminateEnclave(args) => terminate_enclave::run(args),
        Command::Console(args) => console::run(args),
        Command::BuildEnclave(args) => build_enclave::run(args),
        Command::DescribeEif(args) => describe_eif::run(&args),
        Command::Pcr(args) => pcr::run(&args),
        Command::SignEif(args) => sign_eif::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}
