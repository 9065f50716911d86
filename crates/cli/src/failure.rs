//! What a command says when it fails, and the exit status that goes with it.
//!
//! Two layouts, one content: what happened, why, what to do.
//!
//! ```text
//! [ E19 ] cannot open /x.eif                      error: cannot open /x.pem
//!   because: No such file or directory              because: No such file or directory
//!   hint: …                                         hint: …
//! For details: nitro-cli explain --error-code E19
//! ```
//!
//! The left one is nitro-cli's, for nitro-cli's commands: the status is the code's number. The right one is for
//! Enclos's own commands: status 1. `docs/exit-codes.md` lists all.

use std::fmt::{self, Write as _};
use std::path::Path;

use crate::codes::Code;
use crate::term::{difference, printable, printable_lines};

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Option<Code>,
    error: anyhow::Error,
    reasons: Vec<String>,
    hints: Vec<String>,
}

impl Failure {
    /// A failure of one of nitro-cli's commands.
    pub(crate) fn aws(code: Code, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: Some(code),
            error: error.into(),
            reasons: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// A failure of one of nitro-cli's commands that has no cause besides its text.
    pub(crate) fn aws_text(code: Code, text: impl fmt::Display) -> Self {
        Self::aws(code, anyhow::anyhow!("{text}"))
    }

    /// A failure of one of Enclos's own commands.
    pub(crate) fn text(text: impl fmt::Display) -> Self {
        anyhow::anyhow!("{text}").into()
    }

    /// A file could not be used: E19 in nitro-cli's commands.
    pub(crate) fn file(
        code: Option<Code>,
        doing: &str,
        path: &Path,
        error: std::io::Error,
    ) -> Self {
        let error = anyhow::Error::new(error).context(format!("cannot {doing} {}", path.display()));
        Self {
            code,
            error,
            reasons: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Adds what to do, below what there is.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hints.push(hint.to_string());
        self
    }

    /// Gives the failure a code, for a command of nitro-cli's that uses shared parts.
    #[must_use]
    pub(crate) fn with_code(mut self, code: Code) -> Self {
        self.code = Some(code);
        self
    }

    /// Takes the code away, for a command of Enclos's own that uses shared parts.
    #[must_use]
    pub(crate) fn without_code(mut self) -> Self {
        self.code = None;
        self
    }

    /// Says what was being done.
    #[must_use]
    pub(crate) fn context(mut self, text: impl fmt::Display) -> Self {
        self.error = self.error.context(text.to_string());
        self
    }

    /// Adds one more reason below the text, before those that are there.
    #[must_use]
    pub(crate) fn because(mut self, reason: String) -> Self {
        self.reasons.insert(0, printable_lines(&reason));
        self
    }

    /// As [`Failure::because`], what was found and what was expected in colours where they are wanted.
    #[must_use]
    pub(crate) fn because_different(mut self, reason: &str) -> Self {
        self.reasons.insert(0, difference(reason));
        self
    }

    /// What failed, without code and hint, for where it becomes another error's cause.
    pub(crate) fn into_error(self) -> anyhow::Error {
        self.error
    }

    /// Exit status of the process.
    pub(crate) fn exit_status(&self) -> u8 {
        self.code.map_or(1, Code::exit_status)
    }

    /// What stderr is to say, lines ended. Names and texts of files are in it, so nothing of it may steer a terminal.
    pub(crate) fn render(&self, command: &str) -> String {
        let mut chain = self.error.chain().map(|e| printable_lines(&e.to_string()));
        let what = chain.next().unwrap_or_default();
        let mut text = match self.code {
            Some(code) => format!("[ {code} ] {what}\n"),
            None => format!("error: {what}\n"),
        };
        for cause in chain {
            let _ = writeln!(text, "  because: {cause}");
        }
        for reason in &self.reasons {
            let _ = writeln!(text, "  because: {reason}");
        }
        for hint in self.hints.iter().flat_map(|hint| hint.lines()) {
            let _ = writeln!(text, "  hint: {}", printable(hint));
        }
        if let Some(code) = self.code {
            let _ = writeln!(text, "For details: {command} explain --error-code {code}");
        }
        text
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            code: None,
            error: error.into(),
            reasons: Vec::new(),
            hints: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found() -> std::io::Error {
        std::io::ErrorKind::NotFound.into()
    }

    #[test]
    fn nitro_cli_layout_names_code_cause_and_hint() {
        let path = Path::new("/x.eif");
        let failure =
            Failure::file(Some(Code::FILE_OPERATION), "open", path, not_found()).hint("look");
        assert_eq!(failure.exit_status(), 19);
        assert_eq!(
            failure.render("nitro-cli"),
            "[ E19 ] cannot open /x.eif\n  because: entity not found\n  hint: look\n\
             For details: nitro-cli explain --error-code E19\n"
        );
    }

    #[test]
    fn one_hint_does_not_hide_another() {
        let failure = Failure::text("no").hint("start it").hint("it was stopped");
        assert_eq!(
            failure.render("enclos"),
            "error: no\n  hint: start it\n  hint: it was stopped\n"
        );
    }

    #[test]
    fn names_in_errors_steer_no_terminal() {
        let failure = Failure::file(None, "open", Path::new("/\x1b[2J\r.pem"), not_found())
            .because("a\u{9b}b".into())
            .because_different("it is \x1b, expected one\nand another")
            .hint("\x07");
        assert_eq!(
            failure.render("enclos"),
            "error: cannot open /\\u{1b}[2J\\r.pem\n  because: entity not found\n  \
             because: it is \\u{1b}, expected one\nand another\n  because: a\\u{9b}b\n  hint: \\u{7}\n"
        );
    }

    #[test]
    fn own_layout_has_no_code() {
        let failure = Failure::file(None, "open", Path::new("/x.pem"), not_found());
        assert_eq!(
            (
                failure.exit_status(),
                failure.render("enclos").lines().count()
            ),
            (1, 2)
        );
        assert_eq!(Failure::text("no").render("enclos"), "error: no\n");
    }
}
