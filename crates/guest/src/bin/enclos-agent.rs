//! The agent of an enclave; see [`enclos_guest::agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let _ = enclos_guest::agent::run();
    ExitCode::FAILURE
}
