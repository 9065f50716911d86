//! One line per event on standard error: the console of a debug enclave, nowhere in production.

use std::error::Error;
use std::fmt::Arguments;
use std::io::Write;

/// Writes one line, prefixed with who says it. A console that cannot be written to is no reason to stop.
pub fn line(who: &str, text: Arguments<'_>) {
    let line = format!("{who}: {text}\n");
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
}

/// Joins an error and its causes by `: `.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
