//! Commands of other programs, run with an error that tells what was run.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// One command to run.
#[derive(Debug)]
pub(crate) struct Shell(Command);

impl Shell {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self(command)
    }

    /// The cargo that runs this xtask, in the workspace, writing to its target folder.
    pub(crate) fn cargo(workspace: &Workspace) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut shell = Self::new(cargo);
        shell.0.current_dir(&workspace.root);
        shell.0.env("CARGO_TARGET_DIR", &workspace.target);
        shell
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.0.arg(argument);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.0.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Without these variables of our own environment.
    pub(crate) fn without<const N: usize>(mut self, names: [&str; N]) -> Self {
        for name in names {
            self.0.env_remove(name);
        }
        self
    }

    /// Runs it with its output shown.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self
            .0
            .status()
            .with_context(|| format!("cannot run {}", self.text()))?;
        if !status.success() {
            bail!("{} failed: {status}", self.text());
        }
        Ok(())
    }

    /// Runs it and returns what it prints on standard output; standard error goes into the error.
    pub(crate) fn read(mut self) -> Result<String> {
        let output = self
            .0
            .output()
            .with_context(|| format!("cannot run {}", self.text()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "{} failed: {}\n{}",
                self.text(),
                output.status,
                said.trim_end()
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs it and says whether it succeeded; its output is dropped.
    pub(crate) fn succeeds(mut self) -> bool {
        self.0.stdout(Stdio::null()).stderr(Stdio::null());
        self.0.status().is_ok_and(|status| status.success())
    }

    fn text(&self) -> String {
        let words = std::iter::once(self.0.get_program()).chain(self.0.get_args());
        let words: Vec<_> = words
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        format!("`{}`", words.join(" "))
    }
}
