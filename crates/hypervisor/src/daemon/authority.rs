//! The attestation CA on disk.
//!
//! ```text
//!  D/              0755
//!  D/ca.pem        0600   all keys and certificates; replaced as a whole, flushed before use
//!  D/region.pem    0600   the region's next key and certificate, when the root's key is in a token; taken and removed
//!  D/root.pem      0644   the certificate that documents begin with, for verifiers
//!  D/ca.lock       0600   held for as long as the hypervisor, or `enclos pki`, may write the others
//! ```
//!
//! The root's key is the identity of this installation: it is made once, before the first enclave, and is
//! never overwritten by a file that cannot be read. Intermediates are re-issued when they are due, each time
//! a leaf is asked for.
//!
//! The root's key may be in a token instead. Then `enclos pki renew`, which loads the token's library, signs the
//! region's next certificate and leaves it in a file beside the CA; this process never loads such a library.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use enclos_api::config::{CA_KEYS, CA_LOCK, CA_REGION, CA_ROOT, Instance};
use enclos_attest::UnixMillis;
use enclos_attest::pki::{Authority, IssuedLeaf, PkiError};

use zeroize::Zeroizing;

use crate::daemon::files::{self, FilesError};
use crate::log;

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be made or written.
    #[error("cannot store the attestation CA")]
    Files(#[from] FilesError),
    /// The file cannot be read.
    #[error("cannot read the attestation CA {}; restore it from a backup", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read the file.
    #[error(
        "the attestation CA {} can be read by others (mode {mode:o}): its keys may be known. Make a new \
         installation, or chmod it to 600 if nobody else had access", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a CA, or a certificate could not be made.
    #[error(
        "the attestation CA {} cannot be used; restore it from a backup, or move it away to begin a new \
         installation with a new root", path.display()
    )]
    Pki {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<PkiError>,
    },
}

/// The CA, stored.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    authority: Mutex<Authority>,
    _lock: File,
}

impl Store {
    /// Opens the CA of `state_dir`, or makes one; brings it up to date for `instance`.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn open(state_dir: &Path, instance: &Instance) -> Result<Self, AuthorityError> {
        files::make_dir(state_dir, 0o755)?;
        let lock = files::lock(state_dir, CA_LOCK)?;
        let path = state_dir.join(CA_KEYS);
        let authority = match load(&path)? {
            Some(mut authority) => {
                take_region(&path, &mut authority)?;
                refresh(&path, authority, instance)?
            }
            None => create(&path, instance)?,
        };
        let root = authority.root_certificate_pem();
        files::write_atomically(&state_dir.join(CA_ROOT), root.as_bytes(), 0o644)?;
        Ok(Self {
            path,
            authority: Mutex::new(authority),
            _lock: lock,
        })
    }

    /// The root's certificate, PEM.
    pub fn root_certificate(&self) -> String {
        self.lock().root_certificate_pem()
    }

    /// Issues a leaf certificate for an enclave's public key. Renewed intermediates are stored first.
    ///
    /// # Errors
    /// [`AuthorityError::Pki`], [`AuthorityError::Files`].
    pub fn issue(&self, spki: &[u8], id: &str, slot: u64) -> Result<IssuedLeaf, AuthorityError> {
        let mut authority = self.lock();
        let now = now();
        take_region(&self.path, &mut authority)?;
        if authority.renew(now).map_err(pki(&self.path))? {
            keep(&self.path, &mut authority)?;
        }
        if let Some(end) = authority.wants_region(now) {
            log::warn(format_args!(
                "the region's certificate ends at {end}: `enclos pki renew` with the token that holds the root's key"
            ));
        }
        let leaf = authority.issue_leaf(spki, id, slot, now);
        leaf.map_err(pki(&self.path))
    }

    fn lock(&self) -> MutexGuard<'_, Authority> {
        self.authority
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(path: &Path) -> Result<Option<Authority>, AuthorityError> {
    let text = read(path)?;
    let authority = text.map(|text| Authority::from_pem(&text).map_err(pki(path)));
    authority.transpose()
}

/// Takes the region's next certificate, if there is one. One that cannot be used is told and stays; what there is goes on.
fn take_region(path: &Path, authority: &mut Authority) -> Result<(), AuthorityError> {
    let next = path.with_file_name(CA_REGION);
    let adopted = match read(&next) {
        Ok(None) => return Ok(()),
        Ok(Some(text)) => {
            let adopted = authority.adopt_region(&text, now());
            adopted.map_err(|error| log::chain(&error))
        }
        Err(error) => Err(log::chain(&error)),
    };
    if let Err(error) = adopted {
        log::warn(format_args!(
            "{} is not used, `enclos pki renew` makes another: {error}",
            next.display()
        ));
        return Ok(());
    }
    keep(path, authority)?;
    let removed = fs::remove_file(&next);
    removed.map_err(|source| AuthorityError::Read { path: next, source })
}

/// A file of keys, unless there is none.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, AuthorityError> {
    let unreadable = |source| AuthorityError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(unreadable)?,
    };
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(AuthorityError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    // Whole from the start: a string that grows would leave copies of the keys behind.
    let len = usize::try_from(metadata.len()).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(len + 1));
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(Some(text))
}

/// The host may have been renamed, and certificates may have expired, since the CA was stored.
fn refresh(
    path: &Path,
    mut authority: Authority,
    instance: &Instance,
) -> Result<Authority, AuthorityError> {
    let Instance {
        region,
        availability_zone,
        id,
        ..
    } = instance;
    let now = now();
    let moved = authority.relocate(now, region, availability_zone, id);
    let renewed = authority.renew(now);
    if moved.map_err(pki(path))? | renewed.map_err(pki(path))? {
        store(path, &authority)?;
    }
    Ok(authority)
}

fn create(path: &Path, instance: &Instance) -> Result<Authority, AuthorityError> {
    let Instance {
        region,
        availability_zone,
        id,
        ..
    } = instance;
    let authority = Authority::create(now(), region, availability_zone, id).map_err(pki(path))?;
    store(path, &authority)?;
    Ok(authority)
}

/// Stores what has changed, or goes back to what is stored: nothing is issued by a certificate that could be gone tomorrow.
fn keep(path: &Path, authority: &mut Authority) -> Result<(), AuthorityError> {
    store(path, authority).inspect_err(|_| {
        if let Ok(Some(stored)) = load(path) {
            *authority = stored;
        }
    })
}

fn store(path: &Path, authority: &Authority) -> Result<(), AuthorityError> {
    let pem = authority.to_pem().map_err(pki(path))?;
    Ok(files::write_atomically(path, pem.as_bytes(), 0o600)?)
}

fn pki(path: &Path) -> impl Fn(PkiError) -> AuthorityError + '_ {
    |source| AuthorityError::Pki {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

/// The host's clock, which every certificate and document is dated by.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
