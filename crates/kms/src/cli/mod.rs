//! The `enclos-kms` program.
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | done; for `serve`: stopped by SIGINT or SIGTERM after a clean drain |
//! | 1 | the command failed: a file, the database, a key that does not open |
//! | 2 | the command line, or the file of settings, is wrong |
//! | 3 | an address cannot be listened on: taken, not ours, or not loopback under `--dev` |
//! | 4 | another server uses the data directory |
//! | 5 | the audit trail is not as it was written |
//! | 6 | the root key does not open: no passphrase or PIN, a wrong one, a locked token, another key |
//! | 7 | the token of the root key is not there or does not work: trying again may help |

mod audit;
mod backup;
mod config;
mod data;
mod explain;
mod identity;
mod inspect;
mod measurements;
mod plain;
mod principal;
mod record;
mod root;
mod serve;
mod table;
mod transfer;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::crypto::seal::RootKeyError;
use crate::error::Chain;
use crate::memory_lock;

use config::{ConfigError, Sources};
use data::Data;

/// An AWS-KMS-compatible key management service that releases keys to attested enclaves.
#[derive(Debug, Parser)]
#[command(name = "enclos-kms", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the KMS API.
    Serve(serve::Arguments),
    /// Look at the settings of `serve`: flags, environment, file.
    #[command(subcommand)]
    Config(config::Check),
    /// Manage who may call: access keys of account roots, users and roles.
    #[command(subcommand)]
    Principal(principal::Command),
    /// Manage users and roles: their policies, and who may assume a role.
    #[command(subcommand)]
    Identity(identity::Command),
    /// Look at keys.
    #[command(subcommand)]
    Keys(inspect::Keys),
    /// Look at key policies, and look them through.
    #[command(subcommand)]
    Policies(inspect::Policies),
    /// Look at grants.
    #[command(subcommand)]
    Grants(inspect::Grants),
    /// Look at the root key, rotate it, protect it with a passphrase or a token.
    #[command(subcommand)]
    Root(root::Command),
    /// Say why a request was denied: which statement, which condition, what was expected and presented.
    Explain(explain::Arguments),
    /// Print the audit trail, or verify it.
    Audit(audit::Arguments),
    /// Move all state from one database to another: SQLite, PostgreSQL.
    Move(transfer::Arguments),
    /// Write all state into one sealed file, while the server serves.
    Backup(backup::Backup),
    /// Write what a backup holds into an empty database, or check that it is whole.
    Restore(backup::Restore),
}

/// A command's failure and the exit status it leads to.
#[derive(Debug)]
struct Failure {
    status: u8,
    error: Box<dyn std::error::Error + Send + Sync>,
}

/// Any failure that has no status of its own.
const FAILED: u8 = 1;
/// The command line or the file of settings is wrong.
const USAGE: u8 = 2;
/// An address cannot be listened on.
const CANNOT_LISTEN: u8 = 3;
/// Another server uses the data directory.
const IN_USE: u8 = 4;
/// The audit trail is not as it was written.
const TAMPERED: u8 = 5;
/// The root key is there and does not open.
const LOCKED: u8 = 6;
/// The token that opens the root key is not there.
const NO_TOKEN: u8 = 7;

impl Failure {
    fn new(status: u8, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self {
            status,
            error: Box::new(error),
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
        let status = match error.downcast_ref::<RootKeyError>() {
            Some(error) if error.is_locked() => LOCKED,
            Some(error) if error.is_absence() => NO_TOKEN,
            _ => FAILED,
        };
        Self { status, error }
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let parsed = config::parse(std::env::args_os().collect());
    memory_lock::forbid_core_dumps();
    // Whatever is made here is for this user alone; the CA certificate is opened up by name.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    start_log();
    let done = match parsed {
        Ok((arguments, sources)) => run(arguments, &sources),
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => Err(Failure::new(USAGE, error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Standard error may be closed; there is nobody else to tell.
            let _closed = writeln!(
                std::io::stderr(),
                "enclos-kms: {}",
                Chain(failure.error.as_ref())
            );
            ExitCode::from(failure.status)
        }
    }
}

fn run(arguments: Arguments, sources: &Sources) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Serve(arguments) => serve::run(arguments).await,
            Command::Config(command) => config::run(command, sources),
            Command::Principal(command) => principal::run(command).await,
            Command::Identity(command) => identity::run(command).await,
            Command::Keys(command) => inspect::keys(command).await,
            Command::Policies(command) => inspect::policies(command).await,
            Command::Grants(command) => inspect::grants(command).await,
            Command::Root(command) => root::run(command).await,
            Command::Explain(arguments) => explain::run(arguments).await,
            Command::Audit(arguments) => audit::run(arguments).await,
            Command::Move(arguments) => transfer::run(arguments).await,
            Command::Backup(arguments) => backup::backup(arguments).await,
            Command::Restore(arguments) => backup::restore(arguments).await,
        }
    })
}

/// Logs go to standard error; `ENCLOS_LOG` selects them (`info` by default), `ENCLOS_LOG_FORMAT=json` shapes them.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ENCLOS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let json = std::env::var_os("ENCLOS_LOG_FORMAT").is_some_and(|format| format == "json");
    // Fails only if a log was already started, which then is the one to use.
    let _started = if json {
        log.json().try_init()
    } else {
        log.fmt_fields(plain::fields()).try_init()
    };
}

/// Prints a line that is the command's result.
fn print(text: &str) -> Result<(), std::io::Error> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        // `enclos-kms audit | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
