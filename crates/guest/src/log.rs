//! One line per event on standard error: the console of a debug enclave, nowhere in production.

use std::fmt::Arguments;
use std::io::Write;

pub use enclos_api::error::chain;

/// Writes one line, prefixed with who says it. A console that cannot be written to is no reason to stop.
pub fn line(who: &str, text: Arguments<'_>) {
    let line = format!("{who}: {text}\n");
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
}
