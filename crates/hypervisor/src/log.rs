//! Log lines on standard error, one per event, for whatever supervises the process (systemd adds the time).
//!
//! | level | meaning |
//! |---|---|
//! | `error` | this process could not do what it exists for |
//! | `warn` | an operator should look: something was refused or cleaned up |
//! | `info` | life cycle: started, enclave up, enclave gone |
//!
//! Text that a guest chose never enters a line unless it was sanitised by [`printable`].

use std::fmt;
use std::io::Write;

pub use enclos_api::error::chain;

/// Writes a line at level `info`.
pub fn info(message: impl fmt::Display) {
    line("info", &message);
}

/// Writes a line at level `warn`.
pub fn warn(message: impl fmt::Display) {
    line("warn", &message);
}

/// Writes a line at level `error`.
pub fn error(message: impl fmt::Display) {
    line("error", &message);
}

/// A log that cannot be written is no reason to stop serving.
fn line(level: &str, message: &dyn fmt::Display) {
    let text = format!("{level}: {message}\n");
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// At most `limit` characters of `text`, control characters replaced by spaces.
pub fn printable(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_guest_cannot_forge_lines() {
        assert_eq!(printable("a\nerror: b\u{1b}[2J", 40), "a error: b [2J");
        assert_eq!(printable("abcdef", 3), "abc");
    }
}
