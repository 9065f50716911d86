//! Passphrases: where they come from, and the key that follows from one.
//!
//! | source, first that is there | |
//! |---|---|
//! | `ENCLOS_KMS_PASSPHRASE_FILE` | a file |
//! | `$CREDENTIALS_DIRECTORY/enclos-kms.passphrase` | systemd's `LoadCredential=` and `LoadCredentialEncrypted=` |
//! | `ENCLOS_KMS_PASSPHRASE` | the environment, which other processes of the same user can read |
//! | the terminal | asked for, not shown |
//!
//! Never an argument: all users of the machine can read those. A line break at the end of a file does not count.

use std::io::{BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::seal::Secret;
use super::{RandomError, random_array};

/// Longest passphrase, in bytes.
const LONGEST: u64 = 1024;

/// Shortest passphrase that may protect a root key, in bytes.
const SHORTEST: usize = 12;

/// Name of the credential.
const CREDENTIAL: &str = "enclos-kms.passphrase";

/// What is asked of Argon2id. Files hold their own, so that these may grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argon2id {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    #[serde(with = "hex::serde")]
    salt: [u8; 16],
}

/// Why there is no key of a passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// None was given.
    #[error(
        "the root key is protected by a passphrase and none was given; set ENCLOS_KMS_PASSPHRASE_FILE, give systemd the credential enclos-kms.passphrase, set ENCLOS_KMS_PASSPHRASE, or start from a terminal"
    )]
    Missing,
    /// None was given, and nobody can be asked.
    #[error("{0} needs a passphrase and there is no terminal; give --passphrase-file")]
    NoTerminal(String),
    /// The file cannot be read.
    #[error("cannot read the passphrase from {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not text, or endless.
    #[error("the passphrase is longer than {LONGEST} bytes")]
    TooLong,
    /// Guessed too soon.
    #[error("the new passphrase has {0} bytes, expected {SHORTEST} at least")]
    TooShort(usize),
    /// Typed twice, differently.
    #[error("the two passphrases differ; nothing was changed")]
    Differ,
    /// The terminal.
    #[error("cannot ask for the passphrase on the terminal")]
    Terminal(#[source] std::io::Error),
    /// Somebody else's parameters.
    #[error(
        "Argon2id is asked for {memory_kib} KiB, {passes} passes, {lanes} lanes, which is out of bounds (2 GiB, 64, 64): the file is damaged"
    )]
    Parameters {
        /// Memory.
        memory_kib: u32,
        /// Passes.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// The library.
    #[error("Argon2id failed: {0}")]
    Derive(String),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl Argon2id {
    /// RFC 9106's second recommendation, with a new salt.
    pub(super) fn new() -> Result<Self, RandomError> {
        Ok(Self {
            memory_kib: 64 * 1024,
            passes: 3,
            lanes: 4,
            salt: random_array()?,
        })
    }

    /// The key of a passphrase. Takes a tenth of a second and 64 MiB.
    pub(super) fn derive(&self, passphrase: &[u8]) -> Result<Secret, PassphraseError> {
        let bounded = self.memory_kib <= 2 * 1024 * 1024 && self.passes <= 64 && self.lanes <= 64;
        let parameters = Params::new(self.memory_kib, self.passes, self.lanes, Some(32));
        let (true, Ok(parameters)) = (bounded, parameters) else {
            return Err(PassphraseError::Parameters {
                memory_kib: self.memory_kib,
                passes: self.passes,
                lanes: self.lanes,
            });
        };
        let mut key = Secret::default();
        Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
            .hash_password_into(passphrase, &self.salt, &mut *key)
            .map_err(|error| PassphraseError::Derive(error.to_string()))?;
        Ok(key)
    }
}

/// The passphrase that opens what is there; `ask` allows the terminal.
pub(super) fn find(ask: bool) -> Result<Zeroizing<Vec<u8>>, PassphraseError> {
    if let Some(path) = std::env::var_os("ENCLOS_KMS_PASSPHRASE_FILE") {
        return read(Path::new(&path));
    }
    if let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") {
        let path = Path::new(&directory).join(CREDENTIAL);
        if path.exists() {
            return read(&path);
        }
    }
    if let Ok(text) = std::env::var("ENCLOS_KMS_PASSPHRASE") {
        return Ok(Zeroizing::new(text.into_bytes()));
    }
    match ask {
        true => prompt("Passphrase of the root key: "),
        false => Err(PassphraseError::Missing),
    }
}

/// The passphrase of something else than the root key: from a file, else typed.
///
/// # Errors
/// If there is none.
pub fn of(what: &str, file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, PassphraseError> {
    match file {
        Some(path) => read(path),
        None => match prompt(&format!("Passphrase of {what}: ")) {
            Err(PassphraseError::Missing) => Err(PassphraseError::NoTerminal(what.to_owned())),
            other => other,
        },
    }
}

/// A new passphrase: from a file, else typed twice.
///
/// # Errors
/// If it is too short, or the two differ.
pub fn choose(what: &str, file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, PassphraseError> {
    let passphrase = match file {
        Some(path) => read(path)?,
        None => {
            let first = of(&format!("{what}, a new one"), None)?;
            if *first != *prompt("The same again: ")? {
                return Err(PassphraseError::Differ);
            }
            first
        }
    };
    match passphrase.len() {
        short if short < SHORTEST => Err(PassphraseError::TooShort(short)),
        _ => Ok(passphrase),
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, PassphraseError> {
    let failed = |source| PassphraseError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(2048));
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LONGEST + 2)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    trim(&mut bytes)?;
    Ok(bytes)
}

/// Asks on the terminal of this process, whatever standard input is.
fn prompt(question: &str) -> Result<Zeroizing<Vec<u8>>, PassphraseError> {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/tty");
    let Ok(terminal) = opened else {
        return Err(PassphraseError::Missing);
    };
    let quiet = Quiet::new(&terminal).map_err(PassphraseError::Terminal)?;
    let mut line = Zeroizing::new(Vec::with_capacity(2048));
    let asked = (&terminal).write_all(question.as_bytes());
    asked.map_err(PassphraseError::Terminal)?;
    let mut reader = std::io::BufReader::with_capacity(1, &terminal).take(LONGEST + 2);
    let typed = reader.read_until(b'\n', &mut line);
    drop(quiet);
    let _shown = (&terminal).write_all(b"\n");
    typed.map_err(PassphraseError::Terminal)?;
    trim(&mut line)?;
    Ok(line)
}

/// A terminal that does not show what is typed, until dropped.
struct Quiet<'a>(&'a std::fs::File, Termios);

impl<'a> Quiet<'a> {
    fn new(terminal: &'a std::fs::File) -> std::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that went away has nothing to restore.
        let _gone = tcsetattr(self.0, OptionalActions::Now, &self.1);
    }
}

fn trim(bytes: &mut Vec<u8>) -> Result<(), PassphraseError> {
    while let Some(b'\n' | b'\r') = bytes.last() {
        bytes.pop();
    }
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= LONGEST => Ok(()),
        _ => Err(PassphraseError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_argon2ids() {
        // RFC 9106's own vectors use a secret and associated data, which this interface has not: these are the reference
        // program's, `printf passphrase | argon2 saltsaltsaltsalt -id -t 2 -k 1024 -p 1 -l 32 -r`.
        let wanted = Argon2id {
            memory_kib: 1024,
            passes: 2,
            lanes: 1,
            salt: *b"saltsaltsaltsalt",
        };
        let key = wanted.derive(b"passphrase").unwrap();
        assert_eq!(hex::encode(*key), REFERENCE);
    }

    const REFERENCE: &str = "81b137db9b38f838ea643c00444c4d3a482f397a1e0d45811ea6d33c9df1a657";

    #[test]
    fn parameters_are_bounded() {
        let wanted = Argon2id {
            memory_kib: u32::MAX,
            ..Argon2id::new().unwrap()
        };
        let refused = wanted.derive(b"x");
        assert!(matches!(refused, Err(PassphraseError::Parameters { .. })));
    }

    #[test]
    fn a_new_passphrase_is_neither_short_nor_endless() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p");
        let chosen = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            choose("it", Some(&path))
        };
        assert_eq!(*chosen(b"correct horse\r\n").unwrap(), b"correct horse");
        assert!(matches!(
            chosen(b"short\n\n\n\n\n\n\n\n\n"),
            Err(PassphraseError::TooShort(5))
        ));
        assert!(matches!(
            chosen(&[b'x'; 1100]),
            Err(PassphraseError::TooLong)
        ));
        assert!(matches!(
            choose("it", Some(&directory.path().join("none"))),
            Err(PassphraseError::Read { .. })
        ));
    }
}
