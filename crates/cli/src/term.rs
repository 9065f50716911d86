//! Writing to the terminal: results to stdout, everything about them to stderr.

use std::io::{self, ErrorKind, IsTerminal as _, Write};

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

/// [`printable`] lines.
pub(crate) fn printable_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// A length for display.
#[expect(
    clippy::cast_precision_loss,
    reason = "a length with one decimal needs no more precision"
)]
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Writes a line to stderr, nothing of which steers a terminal; a closed stderr loses it.
pub(crate) fn note(text: impl std::fmt::Display) {
    let text = printable_lines(&text.to_string());
    let _ = writeln!(io::stderr(), "{text}");
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// A line for stderr that says `… is FOUND, expected EXPECTED`, as differences do: the two are red and green where somebody
/// looks and wants colours (<https://no-color.org>). Other colours than these do not get through.
pub(crate) fn difference(text: &str) -> String {
    let text = &printable_lines(text);
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stderr().is_terminal() && !set("NO_COLOR") && !dumb {
        coloured(text).unwrap_or_else(|| text.to_owned())
    } else {
        text.to_owned()
    }
}

fn coloured(text: &str) -> Option<String> {
    let (head, tail) = text.rsplit_once(", expected ")?;
    let (what, found) = head.rsplit_once(" is ")?;
    let (expected, more) = tail.split_at(tail.find(';').unwrap_or(tail.len()));
    Some(format!(
        "{what} is {RED}{found}{PLAIN}, expected {GREEN}{expected}{PLAIN}{more}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_red_and_what_was_expected_is_green() {
        assert_eq!(
            coloured("not \"app is 7\": PCR0 is aa, expected bb").unwrap(),
            "not \"app is 7\": PCR0 is \x1b[31maa\x1b[0m, expected \x1b[32mbb\x1b[0m"
        );
        assert_eq!(
            coloured("PCR16 is not in the document, expected bb; registers 16 to 31 appear")
                .unwrap(),
            "PCR16 is \x1b[31mnot in the document\x1b[0m, expected \x1b[32mbb\x1b[0m; registers 16 to 31 appear"
        );
        assert_eq!(coloured("it is what the policy forbids: {}"), None);
    }
}
