//! `enclos-kms`: the key management service. See [`enclos_kms::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    enclos_kms::cli::main()
}
