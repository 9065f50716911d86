//! The root key, and what it seals.
//!
//! Key material and secret access keys are stored only under the root key: AES-256-GCM, a random nonce in
//! front, and associated data that says what the secret is and whose. A sealed value that is moved to
//! another key, version or account does not open.
//!
//! The root key has versions ([`super::root_file`]). New values are sealed under the current one and say so:
//!
//! ```text
//! sealed = version of the root key (32 bits, big-endian) ‖ nonce (12) ‖ ciphertext ‖ tag (16)
//! ```
//!
//! Values from before there were versions begin with the nonce and open under version 1. A running process reads the file again
//! when it changes, and when it meets a version that it does not know.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use enclos_token::TokenError;
use tokio::runtime::{Handle, RuntimeFlavor};
use zeroize::Zeroizing;

use super::passphrase::PassphraseError;
use super::root_file::{Lock, RootFile};
use super::{RandomError, random_array};
use crate::durable;
use crate::error::Chain;

/// What the key of tags is derived for.
const TAG_LABEL: &[u8] = b"enclos-kms tags 1";

/// What the key of backups is derived for.
const BACKUP_LABEL: &[u8] = b"enclos-kms backups 1";

/// A 256-bit key in memory, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// Bytes in front of a sealed value: the root key's version.
const PREFIX: usize = 4;

/// The key that seals all others, in all its versions.
pub struct RootKey {
    path: PathBuf,
    ring: RwLock<Arc<Ring>>,
    /// Held while the file is read again: the file whose token refused our PIN, which is not tried twice.
    refused: Mutex<Option<Stamp>>,
    /// Whether the file was changed and could not be read again since.
    unread: AtomicBool,
    /// Whether something stored could not be opened meanwhile.
    missed: AtomicBool,
    /// How often it was read.
    reads: AtomicU64,
}

/// The versions that a file held.
struct Ring {
    stamp: Stamp,
    /// Number and keys of the current version.
    current: u32,
    sealer: Gcm,
    tagger: hmac::Key,
    versions: Vec<Version>,
    /// Opens the file again.
    lock: Lock,
}

struct Version {
    number: u32,
    /// `None` once retired.
    key: Option<Gcm>,
    /// What backups are sealed under; `None` once retired.
    backups: Option<Secret>,
    /// Authenticates what is no secret: the audit trail.
    tags: hmac::Key,
}

/// What tells one file from the one that replaced it.
type Stamp = (u64, i64, i64, u64);

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootKey").finish_non_exhaustive()
    }
}

/// Why there is no usable root key.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// The file system.
    #[error("cannot read or write the root key {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others could read it.
    #[error(
        "the root key {path} has mode {mode:o}, which lets others read it; make it 0600 and consider what it sealed known to them"
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// It is not 32 bytes.
    #[error(
        "the root key {path} has {length} bytes, expected 32; restore it from a backup, without it no key opens"
    )]
    Length {
        /// Which file.
        path: PathBuf,
        /// Bytes found.
        length: usize,
    },
    /// The contents make no sense.
    #[error("root.key is damaged: {0}; restore it from a backup")]
    Damaged(String),
    /// Not with this passphrase or token.
    #[error(
        "root.key does not open: the {0} is not the one that it was protected with, or the file is damaged"
    )]
    Locked(&'static str),
    /// No key of a passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The token.
    #[error("the token that protects the root key does not open it")]
    Token(#[from] TokenError),
    /// The token, not in time.
    #[error(
        "the token that protects the root key has not answered within {} s; see that it can be reached", .0.as_secs()
    )]
    Silent(Duration),
    /// No thread to ask the token.
    #[error("cannot start the thread that asks the token of the root key")]
    Thread(#[source] std::io::Error),
    /// The code between us and the token.
    #[error("asking the token of the root key ended in a panic")]
    Panicked,
    /// The cipher.
    #[error("cannot seal a version of the root key")]
    Seal(#[from] SealError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl RootKeyError {
    /// Whether the file is there and whole, and what opens it is missing or wrong.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        match self {
            Self::Locked(_) | Self::Passphrase(_) => true,
            Self::Token(error) => !error.is_absence(),
            _ => false,
        }
    }

    /// Whether the token that opens the file is not there, or does not work.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Token(error) => error.is_absence(),
            Self::Silent(_) => true,
            _ => false,
        }
    }
}

/// A sealed value did not open.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// It never will.
    #[error(
        "{0} does not open under this root key: it is damaged, was moved, or root.key is another installation's"
    )]
    Closed(String),
    /// It may once the file can be read.
    #[error(
        "{0} does not open under the root key as it is known: root.key was changed and cannot be read again"
    )]
    Unread(String),
}

/// A value could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The cipher refused.
    #[error("AES-256-GCM failed to seal")]
    Cipher,
}

/// AES-256-GCM with a random nonce in front.
pub(super) struct Gcm(LessSafeKey);

impl Gcm {
    pub(super) fn new(key: &Secret) -> Result<Self, SealError> {
        let unbound = UnboundKey::new(&AES_256_GCM, &**key);
        let unbound = unbound.map_err(|_| SealError::Cipher)?;
        Ok(Self(LessSafeKey::new(unbound)))
    }

    pub(super) fn seal(&self, label: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        self.seal_after(&[], label, plaintext)
    }

    /// Seals behind a prefix, which is not authenticated.
    fn seal_after(
        &self,
        prefix: &[u8],
        label: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random_array()?;
        let start = prefix.len() + NONCE_LEN;
        // Whole from the start: a vector that grows would leave copies of the plaintext behind.
        let mut sealed = Vec::with_capacity(start + plaintext.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(prefix);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let (_, body) = sealed.split_at_mut(start);
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(label), body)
            .map_err(|_| SealError::Cipher)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    pub(super) fn open(&self, label: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut buffer = Zeroizing::new(body.to_vec());
        let opened = self.0.open_in_place(nonce, Aad::from(label), &mut buffer);
        let length = opened.ok()?.len();
        buffer.truncate(length);
        Some(buffer)
    }
}

/// The key of tags that follows from a version's key.
pub(super) fn tags_of(key: &Secret) -> Secret {
    derive(key, TAG_LABEL)
}

/// A key for one purpose that follows from another.
pub(super) fn derive(key: &Secret, label: &[u8]) -> Secret {
    let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &**key), label);
    let mut secret = Secret::default();
    for (to, from) in secret.iter_mut().zip(derived.as_ref()) {
        *to = *from;
    }
    secret
}

impl Ring {
    fn new(file: RootFile, stamp: Stamp) -> Result<Self, RootKeyError> {
        let current = file.current()?;
        let tag_key = |tags: &Secret| hmac::Key::new(hmac::HMAC_SHA256, &**tags);
        let (sealer, tagger) = (Gcm::new(current)?, tag_key(&tags_of(current)));
        let version = |version: &super::root_file::Version| {
            Ok(Version {
                number: version.number,
                key: version.key.as_ref().map(Gcm::new).transpose()?,
                backups: version.key.as_ref().map(|key| derive(key, BACKUP_LABEL)),
                tags: tag_key(&version.tags),
            })
        };
        let versions: Result<_, SealError> = file.versions.iter().map(version).collect();
        Ok(Self {
            stamp,
            current: file.current,
            sealer,
            tagger,
            versions: versions?,
            lock: file.lock,
        })
    }

    fn version(&self, number: u32) -> Option<&Version> {
        self.versions
            .iter()
            .find(|version| version.number == number)
    }

    fn open(&self, label: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let key = |number| self.version(number)?.key.as_ref();
        let named = sealed.split_first_chunk::<PREFIX>();
        let opened =
            named.and_then(|(number, rest)| key(u32::from_be_bytes(*number))?.open(label, rest));
        // From before there were versions.
        opened.or_else(|| key(1)?.open(label, sealed))
    }
}

impl RootKey {
    /// Reads the root key, or makes one if there is none and `create` says so. May ask for a passphrase on the terminal.
    ///
    /// # Errors
    /// If the file cannot be used; a root key is never replaced.
    pub fn open(path: &Path, create: bool) -> Result<Self, RootKeyError> {
        let io = |source| RootKeyError::Io {
            path: path.to_owned(),
            source,
        };
        if create && !path.try_exists().map_err(io)? {
            let key = Zeroizing::new(random_array::<32>()?);
            durable::write_new(path, &*key).map_err(io)?;
        }
        let stamp = stamp(path).map_err(io)?;
        Self::at(path, RootFile::read(path, None, true)?, stamp)
    }

    /// The root key of a file that this process has read and written itself, so that nobody is asked for its passphrase again.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn opened(path: &Path, file: RootFile) -> Result<Self, RootKeyError> {
        let stamp = stamp(path).map_err(|source| RootKeyError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::at(path, file, stamp)
    }

    fn at(path: &Path, file: RootFile, stamp: Stamp) -> Result<Self, RootKeyError> {
        Ok(Self {
            path: path.to_owned(),
            ring: RwLock::new(Arc::new(Ring::new(file, stamp)?)),
            refused: Mutex::new(None),
            unread: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            reads: AtomicU64::new(1),
        })
    }

    /// Reads the file again if it was replaced; whether it was. A file whose token refuses our PIN is an error once and left alone
    /// from then on: tokens lock after a few tries.
    ///
    /// # Errors
    /// If it cannot be used; what was known stays known.
    pub fn reload(&self) -> Result<bool, RootKeyError> {
        let read = self.read_again();
        match &read {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.unread.store(false, Ordering::Relaxed);
                self.missed.store(false, Ordering::Relaxed);
            }
            Err(_) => self.unread.store(true, Ordering::Relaxed),
        }
        Ok(read? == Some(true))
    }

    /// The same for tasks: a token may have to be asked, which must not hold up other requests.
    ///
    /// # Errors
    /// As [`RootKey::reload`].
    pub fn reload_in_task(&self) -> Result<bool, RootKeyError> {
        let here = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match here {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.reload()),
            _ => self.reload(),
        }
    }

    /// Whether the file is as it was, or was read; nothing if it was refused before.
    fn read_again(&self) -> Result<Option<bool>, RootKeyError> {
        let stamp = stamp(&self.path).map_err(|source| RootKeyError::Io {
            path: self.path.clone(),
            source,
        })?;
        if self.ring().stamp == stamp {
            return Ok(Some(false));
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.ring();
        if known.stamp == stamp {
            return Ok(Some(false));
        }
        if *refused == Some(stamp) {
            return Ok(None);
        }
        let read = RootFile::read(&self.path, Some(known.lock.clone()), false);
        *refused = match &read {
            Err(RootKeyError::Token(error)) if error.is_wrong_pin() => Some(stamp),
            _ => None,
        };
        let file = read?;
        let news = Arc::new(Ring::new(file, stamp)?);
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = news;
        self.reads.fetch_add(1, Ordering::Release);
        Ok(Some(true))
    }

    /// Whether the file was changed and what is in it is not known: its token does not answer, for example.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Whether requests miss what stands in a file that could not be read.
    #[must_use]
    pub fn is_missed(&self) -> bool {
        self.is_unread() && self.missed.load(Ordering::Relaxed)
    }

    /// Notes that something stored did not open; what strangers send does not count.
    pub(crate) fn note_missed(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Changes when the file was read again: what did not open may open now.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Acquire)
    }

    fn ring(&self) -> Arc<Ring> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&ring)
    }

    /// The version that new values are sealed under.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.ring().current
    }

    /// Whether there is a version for a sealed value that begins like this. Values from before there were versions begin with anything and
    /// open under version 1.
    pub(crate) fn opens(&self, prefix: &[u8]) -> bool {
        let ring = self.ring();
        let has = |number| ring.version(number).is_some_and(|v| v.key.is_some());
        let named = prefix.first_chunk::<PREFIX>();
        let named = named.map(|number| u32::from_be_bytes(*number));
        match named.and_then(|number| ring.version(number)) {
            Some(version) => version.key.is_some(),
            None => has(1),
        }
    }

    /// Whether there is that version, or it is an older one than the current and was forgotten.
    pub(crate) fn knows(&self, number: u32) -> bool {
        let ring = self.ring();
        number <= ring.current || ring.version(number).is_some()
    }

    /// What a version seals backups under; `None` if it was retired or there is no such version.
    pub(super) fn backups(&self, version: u32) -> Option<Secret> {
        self.ring().version(version)?.backups.clone()
    }

    /// The version that new values are sealed under and, of those that are known, all that are newer: prepared ones, or current
    /// ones of nodes that are ahead of this one.
    #[must_use]
    pub fn current_and_newer(&self) -> Vec<u32> {
        let ring = self.ring();
        let numbers = ring.versions.iter().map(|version| version.number);
        numbers.filter(|number| *number >= ring.current).collect()
    }

    /// What only a holder of the root key can say about `data`.
    #[must_use]
    pub fn tag(&self, data: &[u8]) -> hmac::Tag {
        hmac::sign(&self.ring().tagger, data)
    }

    /// Whether a tag is this root key's for `data`, in any version, compared in constant time.
    #[must_use]
    pub fn is_tag(&self, data: &[u8], tag: &[u8]) -> bool {
        let is_tag = |version: &Version| hmac::verify(&version.tags, data, tag).is_ok();
        let by_known = self.ring().versions.iter().any(is_tag);
        by_known || (self.is_news() && self.ring().versions.iter().any(is_tag))
    }

    /// Whether another process has changed the file and it was read again.
    fn is_news(&self) -> bool {
        self.reload_in_task().unwrap_or_else(|error| {
            tracing::error!(error = %Chain(&error), "root.key was changed and cannot be read again; what was known is used");
            false
        })
    }

    /// Seals `plaintext` for the purpose that `label` names.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn seal(&self, label: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let ring = self.ring();
        let prefix = ring.current.to_be_bytes();
        ring.sealer.seal_after(&prefix, label, plaintext)
    }

    /// Opens what [`RootKey::seal`] sealed under the same label.
    ///
    /// # Errors
    /// If it was sealed for anything else or is damaged.
    pub fn unseal(&self, label: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let mut opened = self.ring().open(label, sealed);
        if opened.is_none() && self.is_news() {
            opened = self.ring().open(label, sealed);
        }
        opened.ok_or_else(|| {
            let what = String::from_utf8_lossy(label).into_owned();
            match self.is_unread() {
                true => UnsealError::Unread(what),
                false => UnsealError::Closed(what),
            }
        })
    }
}

/// The version that a value names as the one it is sealed under. Values from before there were versions name none, and what
/// stands there instead is random.
#[must_use]
pub fn named_version(sealed: &[u8]) -> Option<u32> {
    let (number, _) = sealed.split_first_chunk::<PREFIX>()?;
    Some(u32::from_be_bytes(*number))
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    Ok((metadata.ino(), seconds, nanoseconds, metadata.len()))
}

/// Label of a key's material.
#[must_use]
pub fn material_label(key_id: &str, version: i64, account: &str) -> Vec<u8> {
    format!("enclos-kms key material {key_id}|{version}|{account}").into_bytes()
}

/// Label of a secret access key.
#[must_use]
pub fn access_key_label(access_key_id: &str, arn: &str) -> Vec<u8> {
    format!("enclos-kms access key {access_key_id}|{arn}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn root(directory: &Path) -> RootKey {
        RootKey::open(&directory.join("root.key"), true).unwrap()
    }

    #[test]
    fn opens_only_under_its_label() {
        let directory = tempfile::tempdir().unwrap();
        let key = root(directory.path());
        let label = material_label("k", 1, "111122223333");
        let sealed = key.seal(&label, b"secret").unwrap();
        assert_eq!(&**key.unseal(&label, &sealed).unwrap(), b"secret");
        for other in [
            material_label("k", 2, "111122223333"),
            material_label("j", 1, "111122223333"),
            material_label("k", 1, "444455556666"),
        ] {
            assert!(key.unseal(&other, &sealed).is_err());
        }
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(key.unseal(&label, &damaged).is_err(), "{at}");
        }
        assert!(key.unseal(&label, &sealed[..11]).is_err());
    }

    #[test]
    fn the_same_file_is_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let sealed = root(directory.path()).seal(b"x", b"secret").unwrap();
        let again = RootKey::open(&directory.path().join("root.key"), false).unwrap();
        assert_eq!(&**again.unseal(b"x", &sealed).unwrap(), b"secret");
        let elsewhere = tempfile::tempdir().unwrap();
        assert!(root(elsewhere.path()).unseal(b"x", &sealed).is_err());
    }

    #[test]
    fn unusable_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        assert!(matches!(
            RootKey::open(&path, false),
            Err(RootKeyError::Io { .. })
        ));
        root(directory.path());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            RootKey::open(&path, true),
            Err(RootKeyError::Exposed { mode: 0o640, .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, [0; 31]).unwrap();
        assert!(matches!(
            RootKey::open(&path, true),
            Err(RootKeyError::Length { length: 31, .. })
        ));
    }
}
