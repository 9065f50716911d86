//! The root key, and what it seals.
//!
//! Key material and secret access keys are stored only under the root key: AES-256-GCM, a random nonce in
//! front, and associated data that says what the secret is and whose. A sealed value that is moved to
//! another key, version or account does not open.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::RandomError;

/// What the key of tags is derived for.
const TAG_LABEL: &[u8] = b"enclos-kms tags 1";

/// A 256-bit key in memory, wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// The key that seals all others.
pub struct RootKey {
    key: LessSafeKey,
    /// Authenticates what is no secret: the audit trail.
    tags: hmac::Key,
}

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
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A sealed value did not open.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} does not open under this root key: it is damaged, was moved, or root.key is another installation's"
)]
pub struct UnsealError {
    what: String,
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

impl RootKey {
    /// Reads the root key, or makes one if there is none and `create` says so.
    ///
    /// # Errors
    /// If the file cannot be used; a root key is never replaced.
    pub fn open(path: &Path, create: bool) -> Result<Self, RootKeyError> {
        let io = |source| RootKeyError::Io {
            path: path.to_owned(),
            source,
        };
        if create && !path.try_exists().map_err(io)? {
            let key = Zeroizing::new(super::random_array::<32>()?);
            write_new(path, &*key).map_err(io)?;
        }
        let mut file = std::fs::File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(RootKeyError::Exposed {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        (&mut file).take(64).read_to_end(&mut bytes).map_err(io)?;
        let length = bytes.len();
        let unbound = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| RootKeyError::Length {
            path: path.to_owned(),
            length,
        })?;
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), TAG_LABEL);
        Ok(Self {
            key: LessSafeKey::new(unbound),
            tags: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        })
    }

    /// What only a holder of the root key can say about `data`.
    #[must_use]
    pub fn tag(&self, data: &[u8]) -> hmac::Tag {
        hmac::sign(&self.tags, data)
    }

    /// Whether a tag is this root key's for `data`, compared in constant time.
    #[must_use]
    pub fn is_tag(&self, data: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.tags, data, tag).is_ok()
    }

    /// Seals `plaintext` for the purpose that `label` names.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn seal(&self, label: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = super::random_array()?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + plaintext.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let (_, body) = sealed.split_at_mut(NONCE_LEN);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(label), body)
            .map_err(|_| SealError::Cipher)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens what [`RootKey::seal`] sealed under the same label.
    ///
    /// # Errors
    /// If it was sealed for anything else or is damaged.
    pub fn unseal(&self, label: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let error = || UnsealError {
            what: String::from_utf8_lossy(label).into_owned(),
        };
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(error)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| error())?;
        let mut buffer = Zeroizing::new(body.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(label), &mut buffer)
            .map_err(|_| error())?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
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

/// Writes a file that must not exist yet, 0600, and makes it durable under its final name only when whole.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    if partial.exists() {
        std::fs::remove_file(&partial)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A hard link fails if the name is taken: of two first starts one wins and both use its key.
    let linked = std::fs::hard_link(&partial, path);
    std::fs::remove_file(&partial)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
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
