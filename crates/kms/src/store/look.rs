//! Looking at a database that cannot be written: on a read-only mount, a copy in somebody's archive, a file of another user's.
//!
//! SQLite writes even to read: what was changed last is in the log `kms.db-wal`, and who reads the log needs its index `kms.db-shm`. So it
//! depends on what is there how the file is opened where nothing can be written:
//!
//! | beside `kms.db` | opened | because |
//! |---|---|---|
//! | log and index | for reading | a server may be writing on the other side of the mount; SQLite reads its log |
//! | no log, or an empty one | as one that nobody changes | the file is all there is. Whether that was so until the end is [`Still`]'s to say |
//! | a log without an index | not at all | without its log the file is an older state, and of an audit trail the end would be missing |

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Access as Mode, AtFlags, CWD, accessat};
use sqlx::sqlite::SqliteConnectOptions;

use super::database::{Access, BUSY};
use super::{Connection, Location, StoreError, connect, database_path, schema};

/// Opens a database that a server has used, to look at it alone. Where it can be written that is [`connect`].
///
/// # Errors
/// If there is none, or it cannot be opened.
pub async fn look(location: &Location) -> Result<(Connection, Still), StoreError> {
    let data = match location {
        Location::Sqlite(data) if !is_writable(data) => data,
        _ => return Ok((connect(location).await?, Still(None))),
    };
    let path = database_path(data);
    if !is_there(&path) {
        return Err(StoreError::NoDatabase(path));
    }
    let still = Still(Some((data.clone(), State::of(data))));
    let mut connection = location.connect(Access::Look).await?;
    match schema::check(&mut connection).await {
        Ok(()) => Ok((connection, still)),
        // Some of what is wrong shows at the first look only.
        Err(source @ StoreError::Database(_)) => {
            Err(StoreError::NotReadable(path, Box::new(source)))
        }
        Err(other) => Err(other),
    }
}

/// Whether what was looked at is still there as it was.
#[derive(Debug)]
#[must_use]
pub struct Still(Option<(PathBuf, State)>);

impl Still {
    /// How further connections are to be opened.
    pub(super) fn access(&self) -> Access {
        match &self.0 {
            Some(_) => Access::Look,
            None => Access::Read,
        }
    }

    /// Says so when somebody has changed a file that was read as one that nobody changes.
    ///
    /// # Errors
    /// If so.
    pub fn check(&self) -> Result<(), StoreError> {
        match &self.0 {
            Some((data, before)) if before.is_immutable() && *before != State::of(data) => {
                Err(StoreError::ChangedMeanwhile(database_path(data)))
            }
            _ => Ok(()),
        }
    }
}

/// What is in a data directory.
#[derive(Debug, PartialEq, Eq)]
struct State {
    file: Option<(u64, SystemTime)>,
    log: Option<u64>,
    has_index: bool,
}

impl State {
    fn of(data: &Path) -> Self {
        let metadata = |path: &Path| std::fs::metadata(path).ok();
        let beside = |end: &str| metadata(&data.join(format!("kms.db-{end}")));
        let file = metadata(&database_path(data));
        Self {
            file: file.and_then(|file| Some((file.len(), file.modified().ok()?))),
            log: beside("wal").map(|log| log.len()),
            has_index: beside("shm").is_some(),
        }
    }

    /// Whether the file is all there is.
    fn is_immutable(&self) -> bool {
        match self.log {
            Some(0) => !self.has_index,
            other => other.is_none(),
        }
    }
}

/// Whether there is a file, as far as we may know.
fn is_there(path: &Path) -> bool {
    let found = path.try_exists();
    found.unwrap_or_else(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Whether SQLite may write the file, and what it makes beside it.
pub(super) fn is_writable(data: &Path) -> bool {
    let may = |path: &Path| accessat(CWD, path, Mode::WRITE_OK, AtFlags::EACCESS).is_ok();
    may(data) && may(&database_path(data))
}

/// How to open a file that cannot be written.
pub(super) fn options(data: &Path) -> Result<SqliteConnectOptions, StoreError> {
    let state = State::of(data);
    if state.log.is_some_and(|length| length > 0) && !state.has_index {
        return Err(StoreError::LogWithoutIndex(database_path(data)));
    }
    Ok(SqliteConnectOptions::new()
        .filename(database_path(data))
        .read_only(true)
        .immutable(state.is_immutable())
        .busy_timeout(BUSY))
}
