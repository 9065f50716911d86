//! The run directory: what is where, who may touch it, and how it is cleaned.
//!
//! ```text
//!  R/                      0755
//!  R/hypervisor.lock       held for as long as the hypervisor runs
//!  R/hypervisor.sock       0666: every caller is identified by the kernel and judged per request
//!  R/enclaves/             0755
//!  R/enclaves/<id>/        3770, owner: the vmm's user, group: the requester's; sticky, so that nobody in the
//!                          group can put something else in the place of the vmm's sockets
//!  R/enclaves/<id>/vsock.sock, vsock.sock_<port>
//!  R/enclaves/<id>/engine/ 0700, the engine's own sockets
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use enclos_api::control::SOCKET_NAME;
use rustix::fs::FlockOperation;

use crate::sys::Identity;

/// Longest path of a unix socket, the terminating zero not counted.
const MAX_SOCKET_PATH: usize = 107;

/// `/enclaves/i-0123456789abcdef0-enc0123456789abcdef/vsock.sock_65535`: a port above that is its user's own affair.
const LONGEST_SOCKET: usize = 10 + 39 + 1 + 16;

/// Attempts at removing a directory that others may still be writing to.
const REMOVE_ATTEMPTS: usize = 5;

/// Why the run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file or directory could not be made, opened or changed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another user could replace what is in it.
    #[error(
        "{} belongs to user {owner} or can be written by others (mode {mode:o}); it must belong to this \
         process's user and be writable by that user only", path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Sockets in it would have names that the kernel refuses.
    #[error(
        "{} is too long for a run directory: its sockets may have {MAX_SOCKET_PATH} bytes of path, so it may \
         have {} at most; choose a shorter --run-dir", path.display(), MAX_SOCKET_PATH - LONGEST_SOCKET
    )]
    TooLong {
        /// The directory.
        path: PathBuf,
    },
    /// A hypervisor runs here.
    #[error(
        "another enclos-hypervisor, or `enclos pki`, uses {}; let it end, or choose another directory", path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// Turns an I/O error into one that says what was tried on which path.
pub(crate) fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FilesError + 'a {
    move |source| FilesError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// A run directory that is ours alone until this value is dropped.
#[derive(Debug)]
pub(crate) struct RunDir {
    pub(crate) socket: PathBuf,
    pub(crate) enclaves: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes or takes over `path`, and removes what an earlier hypervisor left there. Returns the names of the
    /// enclaves whose directories were removed.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<String>), FilesError> {
        make_dir(path, 0o755)?;
        let path = path.canonicalize().map_err(failed("resolve", path))?;
        if path.as_os_str().len() + LONGEST_SOCKET > MAX_SOCKET_PATH {
            return Err(FilesError::TooLong { path });
        }
        let lock = lock(&path, "hypervisor.lock")?;
        let run = Self {
            socket: path.join(SOCKET_NAME),
            enclaves: path.join("enclaves"),
            _lock: lock,
        };
        make_dir(&run.enclaves, 0o755)?;
        let stale = clean(&run.enclaves)?;
        Ok((run, stale))
    }

    /// The directory itself, without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        self.socket.parent().unwrap_or(&self.socket)
    }

    /// Listens on the control socket.
    pub(crate) fn listen(&self) -> Result<UnixListener, FilesError> {
        let path = &self.socket;
        remove_file(path)?;
        let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
        fs::set_permissions(path, Permissions::from_mode(0o666))
            .map_err(failed("set the permissions of", path))?;
        Ok(listener)
    }

    /// Makes the directory of an enclave.
    pub(crate) fn make_enclave_dir(
        &self,
        id: &str,
        identity: Option<Identity>,
        requester_gid: u32,
    ) -> Result<PathBuf, FilesError> {
        let path = self.enclaves.join(id);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(failed("create", &path))?;
        if let Some(identity) = identity {
            std::os::unix::fs::chown(&path, Some(identity.uid), Some(requester_gid))
                .map_err(failed("change the owner of", &path))?;
        }
        // After chown, which clears the set-group-id bit.
        fs::set_permissions(&path, Permissions::from_mode(0o3770))
            .map_err(failed("set the permissions of", &path))?;
        Ok(path)
    }
}

/// Removes a directory that processes of other users may still be adding to.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    // From here on only we can add entries.
    if rustix::process::geteuid().is_root() {
        let _ = std::os::unix::fs::chown(path, Some(0), Some(0));
    }
    let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
    let mut result = Ok(());
    for _ in 0..REMOVE_ATTEMPTS {
        result = match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => return Ok(()),
        };
    }
    result
}

/// A directory of ours that nobody else can write to.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), FilesError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(failed("create the directory", path))?;
    let meta = path.metadata().map_err(failed("inspect", path))?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if !ours || meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(FilesError::NotOurs {
            path: path.to_owned(),
            owner: meta.uid(),
            mode,
        });
    }
    Ok(())
}

/// Locks a file in a directory for as long as the file is held open.
pub(super) fn lock(dir: &Path, name: &str) -> Result<File, FilesError> {
    let path = dir.join(name);
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FilesError::InUse {
            path: dir.to_owned(),
        }),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// An earlier hypervisor's vmms died with it; their directories did not.
fn clean(enclaves: &Path) -> Result<Vec<String>, FilesError> {
    let mut stale = Vec::new();
    for entry in fs::read_dir(enclaves).map_err(failed("list", enclaves))? {
        let entry = entry.map_err(failed("list", enclaves))?;
        remove_dir(&entry.path()).map_err(failed("remove", &entry.path()))?;
        stale.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(stale)
}

fn remove_file(path: &Path) -> Result<(), FilesError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Replaces a file as a whole and durably: a crash leaves the old content or the new, never a mixture.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), FilesError> {
    use std::io::Write;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    remove_file(&new)?;
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&new)
        .map_err(failed("create", &new))?;
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed("set the permissions of", &new))?;
    file.write_all(content).map_err(failed("write", &new))?;
    file.sync_all().map_err(failed("flush", &new))?;
    fs::rename(&new, path).map_err(failed("rename to", path))?;
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed("flush the directory", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn leftovers_are_removed_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir_all(run.join("enclaves/i-1-enc2/engine")).unwrap();
        fs::write(run.join("enclaves/i-1-enc2/vsock.sock"), "").unwrap();
        fs::write(run.join(SOCKET_NAME), "").unwrap();
        let (open, stale) = RunDir::open(&run).unwrap();
        assert_eq!(stale, ["i-1-enc2"]);
        assert_eq!(fs::read_dir(&open.enclaves).unwrap().count(), 0);
        open.listen().unwrap();
        assert_eq!(mode(&open.socket), 0o666);
    }

    #[test]
    fn one_hypervisor_per_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::open(dir.path()).unwrap();
        assert!(matches!(
            RunDir::open(dir.path()),
            Err(FilesError::InUse { .. })
        ));
        drop(first);
        assert!(RunDir::open(dir.path()).is_ok());
    }

    #[test]
    fn directories_that_others_can_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            RunDir::open(dir.path()),
            Err(FilesError::NotOurs { .. })
        ));
    }

    #[test]
    fn the_longest_socket_must_fit() {
        let id = "i-0123456789abcdef0-enc0123456789abcdef";
        let socket = format!("/enclaves/{id}/{}_65535", crate::VSOCK_SOCKET);
        assert_eq!(socket.len(), LONGEST_SOCKET);
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("x".repeat(60));
        assert!(matches!(
            RunDir::open(&run),
            Err(FilesError::TooLong { .. })
        ));
    }

    #[test]
    fn an_enclaves_directory_is_its_groups_and_goes_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (run, _) = RunDir::open(dir.path()).unwrap();
        let path = run.make_enclave_dir("i-1-enc2", None, 0).unwrap();
        assert_eq!(mode(&path), 0o3770);
        fs::write(path.join("vsock.sock_8000"), "").unwrap();
        assert!(
            run.make_enclave_dir("i-1-enc2", None, 0).is_err(),
            "never shared"
        );
        remove_dir(&path).unwrap();
        assert!(!path.exists());
        remove_dir(&path).unwrap();
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        fs::write(dir.path().join("ca.pem.new"), "torn").unwrap();
        write_atomically(&path, b"first", 0o600).unwrap();
        write_atomically(&path, b"second", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
