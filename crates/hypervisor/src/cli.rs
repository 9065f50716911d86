//! The command lines of both programs: few flags, long form, `--flag value` or `--flag=value`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::daemon::serve::Options;

/// Replaces the boot timeout, in milliseconds.
pub const BOOT_TIMEOUT_VARIABLE: &str = "ENCLOS_BOOT_TIMEOUT_MS";

/// Printed by `--help`, and after a mistake.
pub const USAGE: &str = "\
Usage: enclos-hypervisor serve --config FILE [--state-dir DIR] [--run-dir DIR] [--allocator FILE]
                               [--memory-mib N] [--qemu FILE] [--vmm FILE] [--uid-base N]
       enclos-hypervisor probe [--qemu FILE]
       enclos-hypervisor pki show [--state-dir DIR]

serve     runs the hypervisor until SIGTERM
probe     prints what this machine can do, as JSON
pki show  prints the installation's attestation root, PEM

  --config FILE     host configuration (TOML): instance, role
  --state-dir DIR   attestation CA; default $ENCLOS_STATE_DIR, /var/lib/enclos for root,
                    else ~/.local/state/enclos
  --run-dir DIR     sockets; default $ENCLOS_RUN_DIR, /run/enclos for root, else $XDG_RUNTIME_DIR/enclos
  --allocator FILE  CPUs and memory for enclaves, as AWS's allocator.yaml has them; default
                    /etc/nitro_enclaves/allocator.yaml if it is there, else all that the host can spare
  --memory-mib N    memory for enclaves; default: the allocator's, else what is available at start, less 512
  --qemu FILE       QEMU; default qemu-system-x86_64 in PATH
  --vmm FILE        enclos-vmm; default: beside this program
  --uid-base N      first of 256 user ids for enclaves, as root; default 1880000000,
                    in a container the end of what it has

ENCLOS_BOOT_TIMEOUT_MS replaces the boot timeout, in milliseconds.

Exit status: 0 done, 1 failed (reason on standard error), 2 wrong usage.
";

/// What was asked for.
#[derive(Debug)]
pub enum Command {
    /// `serve`.
    Serve(Box<Options>),
    /// `probe`.
    Probe {
        /// `--qemu`.
        qemu: Option<PathBuf>,
    },
    /// `pki show`.
    PkiShow {
        /// `--state-dir`.
        state_dir: PathBuf,
    },
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UsageError {
    /// No such command.
    #[error("{0:?} is not a command; serve, probe and pki show are")]
    Command(String),
    /// No such flag for this command.
    #[error("{0:?} is not an option of this command")]
    Flag(String),
    /// A flag without its value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// A flag given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A flag that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that is not a number.
    #[error("{flag} is {found:?}, expected a whole number")]
    Number {
        /// The flag.
        flag: String,
        /// What was given.
        found: String,
    },
    /// A directory without a default.
    #[error("there is no default for {0} here; give it")]
    NoDefault(&'static str),
}

/// Parses `enclos-hypervisor`'s arguments, the program's name not among them.
///
/// # Errors
/// See [`UsageError`].
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    match arguments.next().as_deref() {
        Some("serve") => serve(arguments),
        Some("probe") => {
            let mut flags = Flags::parse(arguments, &["--qemu"])?;
            Ok(Command::Probe {
                qemu: flags.path("--qemu"),
            })
        }
        Some("pki") => match arguments.next().as_deref() {
            Some("show") => {
                let mut flags = Flags::parse(arguments, &["--state-dir"])?;
                Ok(Command::PkiShow {
                    state_dir: state_dir(&mut flags)?,
                })
            }
            other => Err(UsageError::Command(format!(
                "pki {}",
                other.unwrap_or_default()
            ))),
        },
        Some("--help" | "-h" | "help") => Ok(Command::Help),
        Some("--version" | "-V") => Ok(Command::Version),
        other => Err(UsageError::Command(other.unwrap_or_default().to_owned())),
    }
}

fn serve(arguments: impl Iterator<Item = String>) -> Result<Command, UsageError> {
    let known = [
        "--config",
        "--state-dir",
        "--run-dir",
        "--allocator",
        "--memory-mib",
        "--qemu",
        "--vmm",
        "--uid-base",
    ];
    let mut flags = Flags::parse(arguments, &known)?;
    Ok(Command::Serve(Box::new(Options {
        config: flags
            .path("--config")
            .ok_or(UsageError::Missing("--config"))?,
        state_dir: state_dir(&mut flags)?,
        run_dir: run_dir(&mut flags)?,
        allocator: flags.path("--allocator"),
        memory_mib: flags.number("--memory-mib")?,
        qemu: flags.path("--qemu"),
        vmm: flags.path("--vmm"),
        boot_timeout: boot_timeout()?,
        uid_base: flags.number("--uid-base")?,
    })))
}

/// `ENCLOS_BOOT_TIMEOUT_MS`, if it is set.
fn boot_timeout() -> Result<Option<Duration>, UsageError> {
    let Some(found) = env::var_os(BOOT_TIMEOUT_VARIABLE) else {
        return Ok(None);
    };
    let found = found.to_string_lossy().into_owned();
    let milliseconds = found.parse().ok().map(Duration::from_millis);
    milliseconds.map(Some).ok_or_else(|| UsageError::Number {
        flag: BOOT_TIMEOUT_VARIABLE.to_owned(),
        found,
    })
}

fn state_dir(flags: &mut Flags) -> Result<PathBuf, UsageError> {
    let default = || {
        let home = env::var_os("HOME").map(PathBuf::from);
        directory(
            "ENCLOS_STATE_DIR",
            "/var/lib/enclos",
            home.map(|h| h.join(".local/state/enclos")),
        )
    };
    flags
        .path("--state-dir")
        .or_else(default)
        .ok_or(UsageError::NoDefault("--state-dir"))
}

fn run_dir(flags: &mut Flags) -> Result<PathBuf, UsageError> {
    let default = || {
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        directory(
            "ENCLOS_RUN_DIR",
            "/run/enclos",
            runtime.map(|runtime| runtime.join("enclos")),
        )
    };
    flags
        .path("--run-dir")
        .or_else(default)
        .ok_or(UsageError::NoDefault("--run-dir"))
}

/// The variable's value, else root's directory for root, else the user's.
fn directory(variable: &str, for_root: &str, for_user: Option<PathBuf>) -> Option<PathBuf> {
    match env::var_os(variable) {
        Some(path) if !path.is_empty() => Some(path.into()),
        _ if rustix::process::geteuid().is_root() => Some(for_root.into()),
        _ => for_user,
    }
}

/// Flags and their values.
#[derive(Debug, Default)]
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Parses `arguments`, all of which must be among `known`.
    ///
    /// # Errors
    /// See [`UsageError`].
    pub fn parse(
        mut arguments: impl Iterator<Item = String>,
        known: &[&str],
    ) -> Result<Self, UsageError> {
        let mut flags = Self::default();
        while let Some(argument) = arguments.next() {
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            if !known.contains(&flag.as_str()) {
                return Err(UsageError::Flag(flag));
            }
            let value = value.or_else(|| arguments.next());
            let value = value.ok_or_else(|| UsageError::NoValue(flag.clone()))?;
            if flags.0.insert(flag.clone(), value).is_some() {
                return Err(UsageError::Twice(flag));
            }
        }
        Ok(flags)
    }

    /// A path, if it was given.
    pub fn path(&mut self, flag: &str) -> Option<PathBuf> {
        self.0.remove(flag).map(PathBuf::from)
    }

    /// A number, if it was given.
    ///
    /// # Errors
    /// [`UsageError::Number`].
    pub fn number<T: std::str::FromStr>(&mut self, flag: &str) -> Result<Option<T>, UsageError> {
        let Some(found) = self.0.remove(flag) else {
            return Ok(None);
        };
        let number = found.parse().ok();
        number.map(Some).ok_or_else(|| UsageError::Number {
            flag: flag.to_owned(),
            found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn both_spellings_of_a_value_are_read() {
        let line =
            "serve --config h.toml --run-dir=/r --state-dir /s --memory-mib 4096 --uid-base=5000";
        let Ok(Command::Serve(options)) = parsed(line) else {
            panic!("serve")
        };
        assert_eq!(options.config, PathBuf::from("h.toml"));
        assert_eq!(options.run_dir, PathBuf::from("/r"));
        assert_eq!(
            (options.memory_mib, options.uid_base),
            (Some(4096), Some(5000))
        );
    }

    #[test]
    fn mistakes_are_named() {
        let error = |line: &str| parsed(line).unwrap_err();
        assert_eq!(error("serve"), UsageError::Missing("--config"));
        assert_eq!(
            error("serve --config"),
            UsageError::NoValue("--config".into())
        );
        assert_eq!(error("serve --confg x"), UsageError::Flag("--confg".into()));
        assert_eq!(
            error("probe --qemu a --qemu b"),
            UsageError::Twice("--qemu".into())
        );
        assert_eq!(error("start"), UsageError::Command("start".into()));
        assert_eq!(error("pki"), UsageError::Command("pki ".into()));
        let line = "serve --config c --run-dir r --state-dir s --memory-mib much";
        let expected = UsageError::Number {
            flag: "--memory-mib".into(),
            found: "much".into(),
        };
        assert_eq!(error(line), expected);
    }

    #[test]
    fn the_documented_default_is_the_real_one() {
        assert!(USAGE.contains(&crate::daemon::users::UID_BASE.to_string()));
    }
}
