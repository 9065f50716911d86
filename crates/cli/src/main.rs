//! `enclos`: one binary for whoever builds, runs, verifies and calls enclaves. Called as `nitro-cli` it has
//! nitro-cli's commands only.
//!
//! ```text
//! main ── nitro/   AWS's commands: flags, JSON and codes as scripts expect them
//!      └─ own/     Enclos's commands
//!            both use: daemon (control sockets), dirs (where things are), failure (what is said and
//!            which status is left with), files (written whole), image (building one), signing (whose key vouches for it), kms (a
//!            key in a KMS), codes (AWS's error table), term (stdout and stderr)
//! ```

#![forbid(unsafe_code)]

mod codes;
mod daemon;
mod dirs;
mod failure;
mod files;
mod image;
mod kms;
mod nitro;
mod own;
mod signing;
mod term;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};

use codes::Code;
use failure::{Failure, Outcome};

/// Confidential computing on your own machines: build, run, verify and call enclaves
#[derive(Debug, Parser)]
#[command(
    name = "enclos",
    version,
    arg_required_else_help = true,
    infer_subcommands = false
)]
#[command(
    after_help = "A first run:\n  enclos doctor\n  enclos kernel fetch\n  enclos up\n  enclos build ./rootfs -o app.eif\n  \
                        enclos run-enclave --cpu-count 2 --memory 512 --eif-path app.eif --publish 8080:5000\n\n\
                        Called as nitro-cli it takes nitro-cli's commands and prints its JSON."
)]
pub(crate) struct Enclos {
    #[command(subcommand)]
    command: EnclosCommand,
}

#[derive(Debug, Subcommand)]
enum EnclosCommand {
    #[command(flatten)]
    Nitro(nitro::Command),
    #[command(flatten)]
    Own(own::Command),
}

/// nitro-cli's commands, served by Enclos
#[derive(Debug, Parser)]
#[command(
    name = "nitro-cli",
    display_name = "Nitro CLI",
    version = concat!("1.5.2 (Enclos ", env!("CARGO_PKG_VERSION"), ")"),
    arg_required_else_help = true
)]
struct NitroCli {
    #[command(subcommand)]
    command: nitro::Command,
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let (name, outcome) = if is_nitro_cli(&args) {
        let parsed = NitroCli::try_parse_from(&args);
        let parsed = parsed.or_else(|error| refused(error, true));
        ("nitro-cli", parsed.and_then(|cli| nitro::run(cli.command)))
    } else {
        let parsed = Enclos::try_parse_from(&args);
        let parsed = parsed.or_else(|error| refused(error, is_nitro_command(&args)));
        let outcome = parsed.and_then(|enclos| match enclos.command {
            EnclosCommand::Nitro(command) => nitro::run(command),
            EnclosCommand::Own(command) => own::run(command),
        });
        ("enclos", outcome)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            term::note(failure.render(name).trim_end());
            ExitCode::from(failure.exit_status())
        }
    }
}

/// nitro-cli reads values itself, after its options, so an unusable value has a code there; for everything else, and for our own
/// commands, clap says what is wrong and exits with 2.
fn refused<T>(error: clap::Error, is_nitro: bool) -> Outcome<T> {
    if !is_nitro || error.kind() != ErrorKind::ValueValidation {
        error.exit();
    }
    let named = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let (value, option) = (
        named(ContextKind::InvalidValue),
        named(ContextKind::InvalidArg),
    );
    let failure = Failure::aws_text(
        Code::INVALID_ARGUMENT,
        format_args!("`{value}` cannot be used for {option}"),
    );
    let reason = std::error::Error::source(&error).map(ToString::to_string);
    Err(reason
        .into_iter()
        .fold(failure, |failure, reason| failure.because(reason)))
}

/// Whether the first word is one of nitro-cli's commands.
fn is_nitro_command(args: &[OsString]) -> bool {
    let word = args.get(1).and_then(|word| word.to_str());
    word.is_some_and(nitro::Command::has_subcommand)
}

fn is_nitro_cli(args: &[OsString]) -> bool {
    let name = args.first().and_then(|name| Path::new(name).file_name());
    name.is_some_and(|name| name == "nitro-cli")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Enclos::command().debug_assert();
        NitroCli::command().debug_assert();
    }

    /// The names of all commands that do something themselves, their words joined by `-`.
    fn leaves(command: &clap::Command, prefix: &str, into: &mut Vec<String>) {
        for one in command.get_subcommands() {
            let name = format!("{prefix}{}", one.get_name());
            match one.has_subcommands() {
                true => leaves(one, &format!("{name}-"), into),
                false => into.push(name),
            }
        }
    }

    /// Tests in `tests/snapshots.rs` make and compare them; what they forgot shows here.
    #[test]
    fn every_command_has_a_snapshot_of_its_help_and_of_a_failure() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
        let files = std::fs::read_dir(folder).unwrap().flatten();
        let texts: Vec<String> = files
            .map(|file| std::fs::read_to_string(file.path()).unwrap())
            .collect();
        let mut commands = Vec::new();
        leaves(&Enclos::command(), "", &mut commands);
        assert!(commands.len() > 30, "{commands:?}");
        for command in commands {
            let called = |text: &&String, help: bool| {
                let line = text.lines().find_map(|line| line.strip_prefix("$ enclos "));
                let line = line.unwrap_or_default().replace(' ', "-") + "-";
                line.starts_with(&format!("{command}-")) && line.ends_with("--help-") == help
            };
            let helped = texts.iter().any(|text| called(&text, true));
            let failed = texts
                .iter()
                .filter(|text| called(text, false))
                .any(|text| !text.contains("[status 0]"));
            assert!(
                helped && failed,
                "{command}: help {helped}, failure {failed}"
            );
        }
    }

    #[test]
    fn the_name_decides_the_face() {
        assert!(is_nitro_cli(&["/usr/bin/nitro-cli".into()]));
        assert!(!is_nitro_cli(&[
            "/usr/bin/enclos".into(),
            "nitro-cli".into()
        ]));
        assert!(!is_nitro_cli(&[]));
    }
}
