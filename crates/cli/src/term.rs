//! Writing to the terminal: results to stdout, everything about them to stderr.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// Writes text to stdout. A reader that has gone (`| head`) is no failure.
pub(crate) fn out(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::from(error).context("cannot write to standard output")),
        Ok(()) => Ok(()),
    }
}

/// Writes a value to stdout as nitro-cli does: indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value)?;
    out(&format!("{text}\n"))
}

/// Text from a file, with everything escaped that would steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_debug().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A length for display.
#[expect(
    clippy::cast_precision_loss,
    reason = "a length with one decimal needs no more precision"
)]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Writes a line to stderr; a closed stderr loses it.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
