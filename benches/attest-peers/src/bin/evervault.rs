//! Judges the document in a file with `attestation-doc-validation`, at the system's time: status 0 or 1.

use std::process::ExitCode;

fn main() -> ExitCode {
    let path = std::env::args_os().nth(1).expect("a file");
    let document = std::fs::read(path).expect("the file can be read");
    match enclos_attest_peers::evervault(&document) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            eprintln!("{refusal}");
            ExitCode::FAILURE
        }
    }
}
