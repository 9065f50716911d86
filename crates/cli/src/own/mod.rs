//! Enclos's own commands.

mod attest;
mod build;
mod call;
mod condition;
mod diff;
mod doctor;
mod eif;
mod inputs;
mod kernel;
mod kms;
mod logs;
mod manual;
mod pki;
mod plan;
mod services;
mod trust;
mod wait;

pub(crate) use kernel::{
    missing as kernel_missing, newest as newest_kernel,
    newest_for_aarch64 as newest_kernel_for_aarch64,
};

use clap::Subcommand;

use crate::failure::{Failure, Outcome};

/// Enclos's own commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Verify and inspect attestation documents
    #[command(subcommand)]
    Attest(attest::Attest),
    /// Build an EIF from an image, an archive or a root file system
    Build(build::Build),
    /// Measure what `build` would make of the same inputs, without writing it
    Plan(plan::Plan),
    /// Show what makes two images differ, and which PCR that moved
    Diff(diff::Diff),
    /// Verify an enclave, then send it what only it may read
    Call(Box<call::Call>),
    /// Check this machine and say what to do about what is missing
    Doctor(doctor::Doctor),
    /// Fetch or locate the kernel that images are built with
    #[command(subcommand)]
    Kernel(kernel::Kernel),
    /// Look at keys, policies, grants, principals and the audit trail of a KMS
    Kms(kms::Kms),
    /// Put finished parts together; sign with a key that is kept elsewhere
    #[command(subcommand)]
    Eif(eif::EifCommand),
    /// Show, export, endorse and replace the attestation root of this host
    #[command(subcommand)]
    Pki(pki::Pki),
    /// Start the hypervisor and the gateway (and a KMS) in the background
    Up(services::Up),
    /// Stop what `up` started
    Down(services::Down),
    /// Show daemons, directories, enclaves and published ports
    Status,
    /// Show the log of the hypervisor or of an enclave
    Logs(logs::Logs),
    /// Wait for an enclave to end and print how it did
    Wait(wait::Wait),
    /// Print a shell's completions
    Completions(manual::Completions),
    /// Write manual pages
    Man(manual::Man),
}

/// Runs one of Enclos's own commands.
pub(crate) fn run(command: Command) -> Outcome {
    let outcome = match command {
        Command::Attest(command) => attest::run(&command),
        Command::Call(args) => call::run(&args),
        Command::Build(args) => build::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Diff(args) => diff::run(&args),
        Command::Eif(command) => eif::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Kernel(args) => kernel::run(&args),
        Command::Pki(command) => pki::run(&command),
        Command::Kms(args) => kms::run(args),
        Command::Up(args) => services::up(&args),
        Command::Down(args) => services::down(&args),
        Command::Status => services::status(),
        Command::Logs(args) => logs::run(&args),
        Command::Wait(args) => wait::run(args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    outcome.map_err(Failure::without_code)
}
