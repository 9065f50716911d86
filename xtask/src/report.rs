//! What a person reads while it works: one line per stage, with the time it took.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the terminal's side"
)]

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;

/// Prints stages.
#[derive(Debug)]
pub(crate) struct Report {
    colour: bool,
}

impl Report {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour }
    }

    /// Announces a part whose output follows as it comes.
    pub(crate) fn heading(&self, title: &str) {
        println!("{}", self.bold(&format!("\n== {title}")));
    }

    /// Runs one stage and prints its name and time.
    pub(crate) fn stage<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        print!("{} {name} … ", self.bold("•"));
        // Without a line break the terminal would show the stage only once it is over.
        std::io::stdout().flush()?;
        let start = Instant::now();
        let result = work();
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{outcome} ({:.1} s)", start.elapsed().as_secs_f64());
        result
    }

    fn bold(&self, text: &str) -> String {
        if self.colour {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Prints why the command failed, causes joined by colons.
pub(crate) fn failure(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
