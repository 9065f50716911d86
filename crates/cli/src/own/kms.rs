//! `enclos kms`: the tools of `enclos-kms`, on the data directory of the KMS that `enclos up --kms` started unless told otherwise.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use clap::Args;

use crate::dirs;
use crate::failure::{Failure, Outcome};

/// Commands of `enclos-kms` that read or change a data directory.
const ON_DATA: &[&str] = &[
    "serve",
    "principal",
    "identity",
    "keys",
    "policies",
    "grants",
    "root",
    "explain",
    "audit",
    "backup",
    "restore",
];

/// What goes to `enclos-kms`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  enclos kms keys list\n  enclos kms explain <request id>\n  enclos kms audit verify\n  enclos kms policies check policy.json\n  enclos kms audit --help"
)]
pub(crate) struct Kms {
    /// Commands and options of `enclos-kms`; without --data the KMS of `enclos up` is meant
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

/// Becomes `enclos-kms`.
pub(super) fn run(args: Kms) -> Outcome {
    let program = dirs::program("enclos-kms");
    let mut command = Command::new(&program);
    let add_data = wants_data(&args.args);
    command.args(args.args);
    if add_data {
        command.arg("--data").arg(dirs::state()?.join("kms"));
    }
    let error = command.exec();
    Err(Failure::file(None, "run", &program, error)
        .hint("enclos-kms is installed beside enclos, or found in PATH"))
}

/// Whether the command works on a data directory and none was named.
fn wants_data(args: &[OsString]) -> bool {
    let text = |at: usize| {
        args.get(at)
            .and_then(|arg| arg.to_str())
            .unwrap_or_default()
    };
    let is = |name: &str| args.iter().any(|arg| arg == OsStr::new(name));
    let named = args
        .iter()
        .filter_map(|arg| arg.to_str())
        .any(|arg| arg == "--data" || arg.starts_with("--data="));
    let on_file = text(0) == "policies" && text(1) == "check";
    ON_DATA.contains(&text(0)) && !named && !on_file && !is("--help") && !is("-h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_added_where_one_is_needed() {
        let rows: &[(&[&str], bool)] = &[
            (&["keys", "list"], true),
            (&["audit"], true),
            (&["audit", "verify"], true),
            (&["explain", "1234abcd-12ab-34cd-56ef-1234567890ab"], true),
            (&["policies", "check-all"], true),
            (&["root", "rotate"], true),
            (&["backup", "--to", "file"], true),
            (&["restore", "file"], true),
            (&["move", "--from", "a", "--to", "b"], false),
            (&["policies", "check", "file.json"], false),
            (&["keys", "list", "--data", "/x"], false),
            (&["keys", "list", "--data=/x"], false),
            (&["keys", "--help"], false),
            (&["--version"], false),
            (&[], false),
        ];
        for (args, expected) in rows {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(wants_data(&args), *expected, "{args:?}");
        }
    }
}
