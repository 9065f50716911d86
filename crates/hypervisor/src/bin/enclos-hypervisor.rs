//! `enclos-hypervisor`: see [`enclos_hypervisor::daemon`], and `--help` for its usage.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use enclos_hypervisor::cli::{self, Command, USAGE};
use enclos_hypervisor::daemon::serve;
use enclos_hypervisor::{log, probe};

/// Wrong usage, as everywhere.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let done = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Command::Serve(options)) => serve::serve(&options).map_err(|error| log::chain(&error)),
        Ok(Command::Probe { qemu }) => print_probe(qemu.as_deref()),
        Ok(Command::PkiShow { state_dir }) => show_root(&state_dir),
        Ok(Command::Help) => print(USAGE),
        Ok(Command::Version) => print(concat!(
            "enclos-hypervisor ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        )),
        Err(error) => {
            log::error(format_args!("{error}\n\n{USAGE}"));
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log::error(message);
            ExitCode::FAILURE
        }
    }
}

fn print_probe(qemu: Option<&Path>) -> Result<(), String> {
    let probe = probe::probe(qemu);
    let text = serde_json::to_string_pretty(&probe).map_err(|error| error.to_string())?;
    print(&format!("{text}\n"))
}

fn show_root(state_dir: &Path) -> Result<(), String> {
    let path = state_dir.join(enclos_api::config::CA_ROOT);
    let pem = fs::read_to_string(&path).map_err(|error| {
        format!(
            "cannot read {}: {error}; it is made when enclos-hypervisor serve first starts",
            path.display()
        )
    })?;
    print(&pem)
}

fn print(text: &str) -> Result<(), String> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|error| format!("cannot write the output: {error}"))
}
