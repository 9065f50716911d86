//! `root.key`: the versions of the root key, as they are or under a passphrase or a token's key.
//!
//! 32 bytes are a root key's first version and nothing else: what a new installation has. Anything else is JSON:
//!
//! ```json
//! { "format": "enclos-kms root key 1",
//!   "protection": { "passphrase": { "memory_kib": 65536, "passes": 3, "lanes": 4, "salt": "…" } },
//!   "current": 2,
//!   "versions": [ { "version": 1, "created": 1790000000, "tags": "…" },
//!                 { "version": 2, "created": 1795000000, "key": "…" } ] }
//! ```
//!
//! Under a token's key, `protection` is `{ "token": { "key": "pkcs11:token=kms;object=root", "salt": "…" } }` ([`super::token_lock`]).
//!
//! A version's `key` is 32 bytes in hexadecimal. Under a protection it is AES-256-GCM of them: nonce, ciphertext, tag, bound to the
//! version. A version that was retired has `tags` alone, the key that its seals in the audit trail verify under.
//! The file is only ever replaced whole, by a rename.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use enclos_token::Uri;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::passphrase::{self, Argon2id};
use super::random_array;
use super::seal::{Gcm, RootKeyError, Secret, tags_of};
use super::token_lock::TokenKey;
use crate::durable;

const FORMAT: &str = "enclos-kms root key 1";

/// Longest file: some thousand versions.
const LONGEST: u64 = 1024 * 1024;

/// What stands between the file and the key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// Its mode alone.
    #[default]
    None,
    /// A key derived from a passphrase.
    Passphrase(Argon2id),
    /// A key derived in a PKCS#11 token.
    Token(TokenKey),
}

impl Protection {
    /// Its name, as the tools print it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "file mode",
            Self::Passphrase(_) => "passphrase",
            Self::Token(_) => "token",
        }
    }

    /// The token's key that it is under, as a `pkcs11:` URI.
    #[must_use]
    pub fn token_key(&self) -> Option<&str> {
        match self {
            Self::Token(key) => Some(key.uri()),
            _ => None,
        }
    }
}

/// A protection and the key that it comes down to, if any.
#[derive(Clone)]
pub struct Lock {
    pub(super) protection: Protection,
    key: Option<Secret>,
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock")
            .field("protection", &self.protection)
            .finish_non_exhaustive()
    }
}

impl Lock {
    /// No protection but the file's mode.
    #[must_use]
    pub fn none() -> Self {
        Self {
            protection: Protection::None,
            key: None,
        }
    }

    /// A new passphrase.
    ///
    /// # Errors
    /// If Argon2id fails.
    pub fn passphrase(passphrase: &[u8]) -> Result<Self, RootKeyError> {
        let parameters = Argon2id::new()?;
        let key = parameters.derive(passphrase)?;
        Ok(Self {
            protection: Protection::Passphrase(parameters),
            key: Some(key),
        })
    }

    /// The key in a token that a URI names. `make` makes it if there is none of this name.
    ///
    /// # Errors
    /// If the token cannot be used.
    pub fn token(uri: &Uri, make: bool) -> Result<Self, RootKeyError> {
        let (token, key) = TokenKey::new(uri, make)?;
        Ok(Self {
            protection: Protection::Token(token),
            key: Some(key),
        })
    }

    /// What opens this protection. `ask` allows to ask on the terminal.
    fn of(protection: Protection, ask: bool) -> Result<Self, RootKeyError> {
        let key = match &protection {
            Protection::None => None,
            Protection::Token(token) => Some(token.open(ask)?),
            Protection::Passphrase(parameters) => Some(parameters.derive(&passphrase::find(ask)?)?),
        };
        Ok(Self { protection, key })
    }

    fn close(&self, version: u32, bytes: &[u8; 32]) -> Result<String, RootKeyError> {
        let Some(key) = &self.key else {
            return Ok(hex::encode(bytes));
        };
        let closed = Gcm::new(key)?.seal(&label(version), bytes);
        Ok(hex::encode(closed?))
    }

    fn open(&self, version: u32, text: &str) -> Result<Secret, RootKeyError> {
        let damaged = || RootKeyError::Damaged(format!("version {version} is not hexadecimal"));
        let bytes = Zeroizing::new(hex::decode(text).map_err(|_| damaged())?);
        let bytes = match &self.key {
            None => bytes,
            Some(key) => Gcm::new(key)?
                .open(&label(version), &bytes)
                .ok_or_else(|| RootKeyError::Locked(self.protection.name()))?,
        };
        let mut secret = Secret::default();
        if bytes.len() != secret.len() {
            let length = bytes.len();
            let text = format!("version {version} has {length} bytes, expected 32");
            return Err(RootKeyError::Damaged(text));
        }
        secret.copy_from_slice(&bytes);
        Ok(secret)
    }
}

fn label(version: u32) -> Vec<u8> {
    format!("enclos-kms root key version {version}").into_bytes()
}

/// One version of the root key.
#[derive(Clone)]
pub struct Version {
    /// Counts from 1.
    pub number: u32,
    /// Seconds since 1970; unknown of the first version of an old file.
    pub created: Option<i64>,
    /// What seals and opens; gone once retired.
    pub(super) key: Option<Secret>,
    /// What authenticates the audit trail.
    pub(super) tags: Secret,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Version {
    fn new(number: u32, created: Option<i64>, key: Secret) -> Self {
        let tags = tags_of(&key);
        Self {
            number,
            created,
            key: Some(key),
            tags,
        }
    }

    /// Whether it can no longer open anything.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.key.is_none()
    }
}

/// The file, opened.
#[derive(Debug, Clone)]
pub struct RootFile {
    pub(super) lock: Lock,
    /// What new values are sealed under.
    pub current: u32,
    /// Oldest first.
    pub versions: Vec<Version>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    #[serde(default)]
    protection: Protection,
    current: u32,
    versions: Vec<VersionText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionText {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Zeroizing<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tags: Option<Zeroizing<String>>,
}

impl RootFile {
    /// A root key of one new version.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(lock: Lock, now: i64) -> Result<Self, RootKeyError> {
        let key = Zeroizing::new(random_array()?);
        Ok(Self {
            lock,
            current: 1,
            versions: vec![Version::new(1, Some(now), key)],
        })
    }

    /// Reads and opens the file. `known` opens it without asking again, if it is of the same protection.
    ///
    /// # Errors
    /// If it cannot be read, others can read it, or it does not open.
    pub fn read(path: &Path, known: Option<Lock>, ask: bool) -> Result<Self, RootKeyError> {
        let bytes = private_bytes(path)?;
        if let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()) {
            return Ok(Self {
                lock: Lock::none(),
                current: 1,
                versions: vec![Version::new(1, None, Zeroizing::new(key))],
            });
        }
        if bytes.first() != Some(&b'{') {
            return Err(RootKeyError::Length {
                path: path.to_owned(),
                length: bytes.len(),
            });
        }
        let text: Text = serde_json::from_slice(&bytes)
            .map_err(|error| RootKeyError::Damaged(error.to_string()))?;
        let lock = match known {
            Some(known) if known.protection == text.protection => known,
            _ => Lock::of(text.protection.clone(), ask)?,
        };
        Self::from_text(text, lock)
    }

    fn from_text(text: Text, lock: Lock) -> Result<Self, RootKeyError> {
        if text.format != FORMAT {
            let error = format!("its format is {:?}, expected {FORMAT:?}", text.format);
            return Err(RootKeyError::Damaged(error));
        }
        let mut versions = Vec::with_capacity(text.versions.len());
        for VersionText {
            version,
            created,
            key,
            tags,
        } in text.versions
        {
            versions.push(match (key, tags) {
                (Some(key), None) => Version::new(version, created, lock.open(version, &key)?),
                (None, Some(tags)) => Version {
                    number: version,
                    created,
                    key: None,
                    tags: lock.open(version, &tags)?,
                },
                _ => {
                    let error = format!("version {version} has not one of key and tags");
                    return Err(RootKeyError::Damaged(error));
                }
            });
        }
        let numbers = versions.iter().map(|version| version.number);
        let ascending = numbers.is_sorted_by(|a, b| a < b);
        if !ascending {
            let error = "its versions are out of order".to_owned();
            return Err(RootKeyError::Damaged(error));
        }
        let file = Self {
            lock,
            current: text.current,
            versions,
        };
        file.current()?;
        Ok(file)
    }

    /// The key of the current version.
    pub(super) fn current(&self) -> Result<&Secret, RootKeyError> {
        let mut versions = self.versions.iter();
        let current = versions.find(|version| version.number == self.current);
        let key = current.and_then(|version| version.key.as_ref());
        key.ok_or_else(|| {
            let error = format!("its current version, {}, is not there", self.current);
            RootKeyError::Damaged(error)
        })
    }

    /// What protects it.
    #[must_use]
    pub fn protection(&self) -> &Protection {
        &self.lock.protection
    }

    /// From here on protected otherwise.
    pub fn protect(&mut self, lock: Lock) {
        self.lock = lock;
    }

    /// A new version, one above the newest; its number.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn add(&mut self, now: i64) -> Result<u32, RootKeyError> {
        let newest = self.versions.last().map_or(0, |version| version.number);
        let key = Zeroizing::new(random_array()?);
        self.versions.push(Version::new(newest + 1, Some(now), key));
        Ok(newest + 1)
    }

    /// Forgets what opens a version's values and keeps what verifies its seals. `false` if there is no such version, or it
    /// is the current one.
    pub fn retire(&mut self, number: u32) -> bool {
        let current = self.current;
        let mut versions = self.versions.iter_mut();
        let found = versions.find(|version| version.number == number && number != current);
        found.is_some_and(|version| version.key.take().is_some())
    }

    /// Replaces the file, durably: after a crash it is the old one or the new one.
    ///
    /// # Errors
    /// If it cannot be written; the old one stays.
    pub fn write(&self, path: &Path) -> Result<(), RootKeyError> {
        durable::replace(path, &self.to_bytes()?).map_err(|source| RootKeyError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Writes another file, which must not be there yet, durably.
    ///
    /// # Errors
    /// If it cannot be written; nothing is left.
    pub fn write_new(&self, path: &Path) -> Result<(), RootKeyError> {
        let bytes = self.to_bytes()?;
        let written = durable::NewFile::create(path).and_then(|file| {
            (&file).write_all(&bytes)?;
            file.finish()
        });
        written.map_err(|source| RootKeyError::Io {
            path: path.to_owned(),
            source,
        })
    }

    fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, RootKeyError> {
        let mut versions = Vec::with_capacity(self.versions.len());
        for version in &self.versions {
            let close = |secret| self.lock.close(version.number, secret).map(Zeroizing::new);
            versions.push(VersionText {
                version: version.number,
                created: version.created,
                key: version.key.as_ref().map(|key| close(key)).transpose()?,
                tags: version
                    .is_retired()
                    .then(|| close(&version.tags))
                    .transpose()?,
            });
        }
        let text = Text {
            format: FORMAT.to_owned(),
            protection: self.lock.protection.clone(),
            current: self.current,
            versions,
        };
        let text = serde_json::to_vec_pretty(&text).map(Zeroizing::new);
        text.map_err(|error| RootKeyError::Damaged(error.to_string()))
    }
}

/// The bytes of a file that nobody else may read.
fn private_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, RootKeyError> {
    let io = |source| RootKeyError::Io {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(RootKeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    // Whole from the start: a vector that grows would leave copies behind.
    let length = usize::try_from(metadata.len().min(LONGEST)).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 64));
    file.take(LONGEST).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}
