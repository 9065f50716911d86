//! Where things are: run, state and cache directory, guest binaries, sibling programs.
//!
//! | what | variable | root | others |
//! |---|---|---|---|
//! | sockets, pids | `ENCLOS_RUN_DIR` | `/run/enclos` | `$XDG_RUNTIME_DIR/enclos` |
//! | authority, keys, logs | `ENCLOS_STATE_DIR` | `/var/lib/enclos` | `~/.local/state/enclos` |
//! | kernels | `ENCLOS_CACHE_DIR` | `~/.cache/enclos` | `~/.cache/enclos` |
//! | init and agent | `ENCLOS_GUEST_DIR` | `guest/` beside the executable | the same |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

/// Reads variables from somewhere: the process, or a test's table.
type Vars<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn process_vars(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Directory of sockets and pid files.
pub(crate) fn run() -> Outcome<PathBuf> {
    run_from(&process_vars, is_root())
}

/// Directory of what must survive a restart.
pub(crate) fn state() -> Outcome<PathBuf> {
    state_from(&process_vars, is_root())
}

/// Directory of what can be fetched again.
pub(crate) fn cache() -> Outcome<PathBuf> {
    cache_from(&process_vars)
}

/// Directory that holds `enclos-init` and `enclos-agent` for the guest.
pub(crate) fn guest() -> Outcome<PathBuf> {
    match process_vars("ENCLOS_GUEST_DIR") {
        Some(dir) => Ok(dir.into()),
        None => Ok(beside_executable()?.join("guest")),
    }
}

/// Path of another program of Enclos: beside this one, else by name for the search in `PATH`.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = beside_executable().map(|dir| dir.join(name)).ok();
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| name.into())
}

/// Finds a program as the shell would.
pub(crate) fn in_path(name: impl AsRef<Path>) -> Option<PathBuf> {
    let name = name.as_ref();
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_owned());
    }
    let path = process_vars("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn beside_executable() -> Outcome<PathBuf> {
    let executable = std::env::current_exe().and_then(|path| path.canonicalize());
    let executable = executable
        .map_err(|error| Failure::from(error).context("cannot find my own executable"))?;
    Ok(executable.parent().map(Path::to_owned).unwrap_or_default())
}

fn run_from(vars: Vars<'_>, root: bool) -> Outcome<PathBuf> {
    if let Some(dir) = vars("ENCLOS_RUN_DIR") {
        return Ok(dir.into());
    }
    if root {
        return Ok("/run/enclos".into());
    }
    let runtime = vars("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("enclos"));
    runtime.ok_or_else(|| {
        Failure::text("no run directory: neither ENCLOS_RUN_DIR nor XDG_RUNTIME_DIR is set").hint(
            "set ENCLOS_RUN_DIR to a directory of yours, the same for every command and daemon",
        )
    })
}

fn state_from(vars: Vars<'_>, root: bool) -> Outcome<PathBuf> {
    match vars("ENCLOS_STATE_DIR") {
        Some(dir) => Ok(dir.into()),
        None if root => Ok("/var/lib/enclos".into()),
        None => in_home(vars, ".local/state/enclos", "ENCLOS_STATE_DIR"),
    }
}

fn cache_from(vars: Vars<'_>) -> Outcome<PathBuf> {
    match vars("ENCLOS_CACHE_DIR") {
        Some(dir) => Ok(dir.into()),
        None => in_home(vars, ".cache/enclos", "ENCLOS_CACHE_DIR"),
    }
}

fn in_home(vars: Vars<'_>, below: &str, instead: &str) -> Outcome<PathBuf> {
    let home = vars("HOME").map(|home| Path::new(&home).join(below));
    home.ok_or_else(|| Failure::text(format_args!("neither {instead} nor HOME is set")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(table: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| {
            table
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.into())
        }
    }

    #[test]
    fn a_variable_wins_over_every_default() {
        let vars = vars(&[
            ("ENCLOS_RUN_DIR", "/r"),
            ("ENCLOS_STATE_DIR", "/s"),
            ("ENCLOS_CACHE_DIR", "/c"),
        ]);
        assert_eq!(run_from(&vars, true).unwrap(), Path::new("/r"));
        assert_eq!(state_from(&vars, false).unwrap(), Path::new("/s"));
        assert_eq!(cache_from(&vars).unwrap(), Path::new("/c"));
    }

    #[test]
    fn root_and_others_have_their_places() {
        let vars = vars(&[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")]);
        assert_eq!(run_from(&vars, true).unwrap(), Path::new("/run/enclos"));
        assert_eq!(
            run_from(&vars, false).unwrap(),
            Path::new("/run/user/7/enclos")
        );
        assert_eq!(
            state_from(&vars, true).unwrap(),
            Path::new("/var/lib/enclos")
        );
        assert_eq!(
            state_from(&vars, false).unwrap(),
            Path::new("/home/u/.local/state/enclos")
        );
        assert_eq!(
            cache_from(&vars).unwrap(),
            Path::new("/home/u/.cache/enclos")
        );
    }

    #[test]
    fn without_any_place_the_variable_to_set_is_named() {
        let none = vars(&[]);
        assert!(
            run_from(&none, false)
                .unwrap_err()
                .render("enclos")
                .contains("ENCLOS_RUN_DIR")
        );
        assert!(
            cache_from(&none)
                .unwrap_err()
                .render("enclos")
                .contains("ENCLOS_CACHE_DIR")
        );
    }

    #[test]
    fn programs_are_found_in_path_only_when_they_are_files() {
        assert!(in_path("sh").is_some());
        assert!(in_path("no-such-program-anywhere").is_none());
        assert!(in_path("/").is_none());
    }
}
