//! Text that others wrote, on lines that people read: the log and the tables.
//!
//! Callers choose encryption contexts, key ids and names. None of it may begin a line of its own, move a terminal's cursor or turn
//! the direction of what stands beside it.

use std::fmt::Debug;

use tracing::field::Field;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// The text with a blank for each control character and each that changes the direction of writing.
pub(super) fn plain(text: &str) -> String {
    let moves =
        |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| if moves(c) { ' ' } else { c })
        .collect()
}

/// How the fields of an event stand in the log.
pub(super) fn fields() -> impl for<'writer> FormatFields<'writer> + 'static {
    debug_fn(
        |writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
            let text = plain(&format!("{value:?}"));
            match field.name() {
                "message" => writer.write_str(&text),
                name => write!(writer, "{name}={text}"),
            }
        },
    )
    .delimited(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_a_cursor() {
        assert_eq!(
            plain("a\nb\r\u{1b}[31m\u{9b}\u{7}\u{202e}\u{2028}\u{2067}c"),
            "a b  [31m     c"
        );
        assert_eq!(plain("alias/ä → 𝄞"), "alias/ä → 𝄞");
    }
}
