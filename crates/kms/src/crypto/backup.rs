//! The outside of a backup: who can open it, and what shows that nobody changed it.
//!
//! ```text
//! file = "enclos-kms backup\n" ‖ format (32 bits, big-endian) ‖ length of head (32 bits) ‖ head, JSON ‖ HMAC-SHA-256 of all before (32) ‖ stream
//! head = { "created_ms": …, "program": "0.1.0", "sealed_by": { "root-key": 2 }, "salt": "…" }
//!        { …, "sealed_by": { "passphrase": { "memory_kib": 65536, "passes": 3, "lanes": 4, "salt": "…" } }, … }
//! ```
//!
//! One secret opens the file: what follows from a version of the root key, or what Argon2id makes of a passphrase. Two keys follow from it
//! and from everything up to the end of the head, with its random salt: one for the HMAC, one for the stream
//! ([`super::stream`]). So no two files share a key, and a head that was changed opens nothing. What is in the stream is
//! [`crate::store::backup`]'s.

use std::io::{Read, Write};

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::passphrase::{Argon2id, PassphraseError};
use super::random_array;
use super::seal::{RootKey, SealError, Secret, derive};
use super::stream::{Opening, Sealing};

const MAGIC: &[u8; 18] = b"enclos-kms backup\n";

/// The format that this program writes and reads.
const FORMAT: u32 = 1;

/// Longest head.
const LONGEST: u32 = 4096;

const MAC: usize = 32;

/// What opens a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SealedBy {
    /// This version of the root key.
    RootKey(u32),
    /// A passphrase of its own.
    Passphrase(Argon2id),
}

/// What a backup says of itself, before anything is opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Version of the program that made it.
    pub program: String,
    /// What opens it.
    pub sealed_by: SealedBy,
    #[serde(with = "hex::serde")]
    salt: [u8; 32],
}

/// Why a file is no backup, or not one that can be opened here.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file.
    #[error("cannot read or write the backup")]
    Io(#[from] std::io::Error),
    /// Another kind of file.
    #[error("it is no backup of enclos-kms")]
    NotOne,
    /// Of a newer program.
    #[error("the backup has format {0}, this program knows {FORMAT}; use the newer enclos-kms")]
    Format(u32),
    /// The head.
    #[error("the head of the backup is damaged: {0}; take another copy of it")]
    Head(String),
    /// Another root key, another passphrase, or a changed head.
    #[error(
        "the backup does not open: this is not the {0} that it was made with, or its head was changed"
    )]
    Foreign(&'static str),
    /// The version is not there any more.
    #[error(
        "the backup was made under version {0} of the root key, which root.key has not or no longer; restore with root.key as it was then"
    )]
    NoVersion(u32),
    /// No key of a passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The cipher, or no randomness.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Whose secret it is.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// The root key, in its current version.
    RootKey(&'a RootKey),
    /// A passphrase.
    Passphrase(&'a [u8]),
}

/// A backup that is being written.
pub struct Writer<W: Write>(Sealing<W>);

/// A backup that is being read.
pub struct Reader<R: Read>(Opening<R>);

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl<R: Read> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// The two keys of one file.
struct Keys {
    mac: hmac::Key,
    stream: Secret,
}

impl Keys {
    fn new(secret: &Secret, before: &[u8]) -> Self {
        let of = |label: &[u8]| derive(secret, &[label, before].concat());
        let mac = of(b"enclos-kms backup head 1");
        Self {
            mac: hmac::Key::new(hmac::HMAC_SHA256, &*mac),
            stream: of(b"enclos-kms backup stream 1"),
        }
    }
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// If it cannot be written, or there is no randomness.
    pub fn new(mut inner: W, holder: Holder<'_>, now_ms: i64) -> Result<Self, BackupError> {
        let (sealed_by, secret) = match holder {
            Holder::RootKey(root) => {
                let version = root.version();
                let secret = root.backups(version);
                let secret = secret.ok_or(BackupError::NoVersion(version))?;
                (SealedBy::RootKey(version), secret)
            }
            Holder::Passphrase(passphrase) => {
                let parameters = Argon2id::new().map_err(SealError::from)?;
                let secret = parameters.derive(passphrase)?;
                (SealedBy::Passphrase(parameters), secret)
            }
        };
        let head = Head {
            created_ms: now_ms,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            sealed_by,
            salt: random_array().map_err(SealError::from)?,
        };
        let head =
            serde_json::to_vec(&head).map_err(|error| BackupError::Head(error.to_string()))?;
        let length = u32::try_from(head.len()).unwrap_or(u32::MAX);
        let before = [
            MAGIC.as_slice(),
            &FORMAT.to_be_bytes(),
            &length.to_be_bytes(),
            &head,
        ]
        .concat();
        let keys = Keys::new(&secret, &before);
        inner.write_all(&before)?;
        inner.write_all(hmac::sign(&keys.mac, &before).as_ref())?;
        Ok(Self(Sealing::new(&keys.stream, inner)?))
    }

    /// Ends the file: without it none of it is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(self) -> Result<W, BackupError> {
        Ok(self.0.finish()?)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(out)
    }
}

/// The head of a file, read and not yet believed.
#[derive(Debug)]
pub struct Unopened<R> {
    /// What it says.
    pub head: Head,
    before: Vec<u8>,
    mac: [u8; MAC],
    inner: R,
}

impl<R: Read> Unopened<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// If the file is something else, or of a newer program.
    pub fn read(mut inner: R) -> Result<Self, BackupError> {
        let mut before = vec![0; MAGIC.len() + 8];
        fill(&mut inner, &mut before, BackupError::NotOne)?;
        let (magic, numbers) = before.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(BackupError::NotOne);
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n: u32, b| n << 8 | u32::from(*b));
        let (format, length) = numbers.split_at(4);
        match number(format) {
            FORMAT => {}
            other => return Err(BackupError::Format(other)),
        }
        let length = number(length);
        if length > LONGEST {
            return Err(BackupError::Head(format!("it has {length} bytes")));
        }
        let cut = || BackupError::Head("it is cut off".to_owned());
        let mut head = vec![0; usize::try_from(length).map_err(|_| cut())?];
        fill(&mut inner, &mut head, cut())?;
        let mut mac = [0; MAC];
        fill(&mut inner, &mut mac, cut())?;
        before.extend_from_slice(&head);
        let head = serde_json::from_slice(&head);
        let head = head.map_err(|error| BackupError::Head(error.to_string()))?;
        Ok(Self {
            head,
            before,
            mac,
            inner,
        })
    }

    /// Opens the file by what it says opens it. `passphrase` is asked for if that is one.
    ///
    /// # Errors
    /// If it does not open.
    pub fn open(
        self,
        root: Option<&RootKey>,
        passphrase: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, PassphraseError>,
    ) -> Result<Reader<R>, BackupError> {
        let (secret, name) = match &self.head.sealed_by {
            SealedBy::RootKey(version) => {
                let secret = root.and_then(|root| root.backups(*version));
                let secret = secret.ok_or(BackupError::NoVersion(*version))?;
                (secret, "root key")
            }
            SealedBy::Passphrase(parameters) => (parameters.derive(&passphrase()?)?, "passphrase"),
        };
        let keys = Keys::new(&secret, &self.before);
        hmac::verify(&keys.mac, &self.before, &self.mac).map_err(|_| BackupError::Foreign(name))?;
        Ok(Reader(Opening::new(&keys.stream, self.inner)?))
    }
}

/// Reads exactly so much; `short` if the file ends before.
fn fill(inner: &mut impl Read, out: &mut [u8], short: BackupError) -> Result<(), BackupError> {
    inner.read_exact(out).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => short,
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root(directory: &std::path::Path) -> RootKey {
        RootKey::open(&directory.join("root.key"), true).unwrap()
    }

    fn written(holder: Holder<'_>) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), holder, 1).unwrap();
        writer.write_all(b"content").unwrap();
        writer.finish().unwrap()
    }

    fn read(file: &[u8], root: &RootKey) -> Result<Vec<u8>, BackupError> {
        let mut reader =
            Unopened::read(file)?.open(Some(root), || Err(PassphraseError::Missing))?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn the_root_key_opens_it_and_no_other() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, other) = (root(here.path()), root(there.path()));
        let file = written(Holder::RootKey(&own));
        assert_eq!(read(&file, &own).unwrap(), b"content");
        assert!(matches!(
            read(&file, &other),
            Err(BackupError::Foreign("root key"))
        ));
        // The same content, the same key, another file.
        assert_ne!(file, written(Holder::RootKey(&own)));
        assert!(!file.windows(7).any(|window| window == b"content"));
    }

    #[test]
    fn a_passphrase_opens_it_and_no_other() {
        let file = written(Holder::Passphrase(b"correct horse battery"));
        let open = |passphrase: &'static [u8]| {
            let unopened = Unopened::read(file.as_slice()).unwrap();
            unopened.open(None, || Ok(passphrase.to_vec().into()))
        };
        let mut content = Vec::new();
        let mut reader = open(b"correct horse battery").unwrap();
        reader.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"content");
        assert!(matches!(
            open(b"correct horse staple"),
            Err(BackupError::Foreign("passphrase"))
        ));
    }

    #[test]
    fn other_files_and_other_formats_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = root(directory.path());
        let file = written(Holder::RootKey(&root));
        let with = |at: usize, byte: u8| {
            let mut changed = file.clone();
            changed[at] = byte;
            read(&changed, &root)
        };
        assert!(matches!(read(b"", &root), Err(BackupError::NotOne)));
        assert!(matches!(with(0, b'x'), Err(BackupError::NotOne)));
        assert!(matches!(with(21, 2), Err(BackupError::Format(2))));
        assert!(matches!(with(22, 1), Err(BackupError::Head(_))));
        assert!(matches!(
            read(&file[..40], &root),
            Err(BackupError::Head(_))
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn a_changed_bit_or_a_cut_anywhere_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let directory = tempfile::tempdir().unwrap();
            let root = root(directory.path());
            let file = written(Holder::RootKey(&root));
            let at = at.index(file.len());
            let mut changed = file.clone();
            changed[at] ^= 1_u8 << bit;
            prop_assert!(read(&changed, &root).is_err());
            prop_assert!(read(&file[..at], &root).is_err());
        }
    }
}
