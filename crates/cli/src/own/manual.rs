//! `enclos completions` and `enclos man`: what shells and `man` know of the commands, made from their options.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use crate::failure::{Failure, Outcome};
use crate::term;
use crate::{Enclos, NitroCli};

/// One of the names that this program is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// All commands
    Enclos,
    /// nitro-cli's commands only
    NitroCli,
}

impl Name {
    fn command(self) -> (Command, &'static str) {
        match self {
            Self::Enclos => (Enclos::command(), "enclos"),
            Self::NitroCli => {
                let command = NitroCli::command().display_name("nitro-cli");
                (command, "nitro-cli")
            }
        }
    }
}

/// Options of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "For bash:  enclos completions bash > ~/.local/share/bash-completion/completions/enclos\n\
                  For zsh:   enclos completions zsh > a folder of $fpath, as _enclos\n\
                  For fish:  enclos completions fish > ~/.config/fish/completions/enclos.fish"
)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
    /// Under which name the program is called
    #[arg(long, value_enum, default_value_t = Name::Enclos)]
    name: Name,
}

/// Options of `man`.
#[derive(Debug, Args)]
#[command(after_help = "For one user:  enclos man ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// Directory for the pages: `enclos.1`, `enclos-build.1`, …; it is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Under which name the program is called
    #[arg(long, value_enum, default_value_t = Name::Enclos)]
    name: Name,
}

pub(super) fn completions(args: &Completions) -> Outcome {
    let (mut command, name) = args.name.command();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    term::out(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &Man) -> Outcome {
    let folder = args.folder.as_path();
    let failed = |error| Failure::file(None, "write manual pages to", folder, error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    // `help` would be a page about pages.
    let command = args.name.command().0.disable_help_subcommand(true);
    clap_mangen::generate_to(command, folder).map_err(failed)
}
