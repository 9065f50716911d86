//! `enclos-gateway`: the parent side of enclaves; see [`enclos_gateway`].

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use enclos_api::error::chain;
use enclos_gateway::{config, server};
use tracing_subscriber::EnvFilter;

/// Forwards bytes between clients, enclaves and the KMS. It can read none of them.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves every enclave of the hypervisor until SIGTERM.
    Serve {
        /// The host file: instance, role and the address of the KMS.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Directory of the control sockets. Default: /run/enclos for root, else $XDG_RUNTIME_DIR/enclos.
        #[arg(long, value_name = "DIR", env = "ENCLOS_RUN_DIR")]
        run_dir: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Command::Serve { config, run_dir } = Arguments::parse().command;
    let filter = EnvFilter::try_from_env("ENCLOS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(config, run_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// No core files: memory holds the role's credentials. Descriptors as many as the system allows, since each connection takes two.
fn limit_resources() {
    use rustix::process::{
        DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    let files = Rlimit {
        current: hard,
        maximum: hard,
    };
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let private = setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = private {
        tracing::warn!("core files cannot be forbidden: {error}");
    }
    // A limit of its own: without more descriptors there are fewer connections, and still no core files.
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        tracing::warn!("the limit of open files stays: {error}");
    }
}

fn run(config: PathBuf, run_dir: Option<PathBuf>) -> Result<(), Box<dyn Error>> {
    let host = config::read(&config)?;
    let run_dir = run_dir
        .or_else(default_run_dir)
        .ok_or("no run directory: give --run-dir, or set ENCLOS_RUN_DIR or XDG_RUNTIME_DIR")?;
    limit_resources();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(server::serve(host, &run_dir))?)
}

fn default_run_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/run/enclos"));
    }
    std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("enclos"))
}
