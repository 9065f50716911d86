//! `enclos-kms backup` and `enclos-kms restore`.
//!
//! | made with | opened by | holds |
//! |---|---|---|
//! | nothing | the root key, which is kept elsewhere | all rows |
//! | `--passphrase`, `--passphrase-file` | that passphrase | all rows, and `root.key` as it is on disk |

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::root::NO_ACCOUNT;
use super::transfer::{as_json, lock_directory, print_rows};
use super::{Data, Failure, print, record};
use crate::audit::unix_ms;
use crate::crypto::backup::{Holder, Reader, SealedBy, Unopened, Writer};
use crate::crypto::passphrase;
use crate::crypto::seal::RootKey;
use crate::durable::{self, NewFile};
use crate::store::{self, Connection, Moved, Store, backup as rows};

/// What a passphrase is asked for.
const WHAT: &str = "the backup";

#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    #[command(flatten)]
    data: Data,

    /// The file to write; there must be none of that name
    #[arg(long, value_name = "FILE")]
    to: PathBuf,

    #[command(flatten)]
    by: By,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What seals the file; the root key by default.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct By {
    /// Seal it under a passphrase, typed on the terminal, and put root.key into it too
    #[arg(long)]
    passphrase: bool,

    /// Seal it under the passphrase in this file, and put root.key into it too
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The backup
    #[arg(value_name = "BACKUP")]
    file: PathBuf,

    #[command(flatten)]
    data: Data,

    /// File with the passphrase, if the backup is sealed under one; without it the terminal is asked
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    /// Only read it all and say what it holds
    #[arg(long)]
    check: bool,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot write the backup {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{0} has no root.key and the backup holds none: copy root.key there first, with mode 0600"
    )]
    RootMissing(PathBuf),
}

/// Writes one.
pub(super) async fn backup(arguments: Backup) -> Result<(), Failure> {
    let to = &arguments.to;
    let unwritable = |source| FileError::Write {
        path: to.clone(),
        source,
    };
    let root = arguments.data.root()?;
    let by = &arguments.by;
    let passphrase = match by.passphrase || by.passphrase_file.is_some() {
        true => Some(passphrase::choose(WHAT, by.passphrase_file.as_deref())?),
        false => None,
    };
    let file = NewFile::create(to).map_err(unwritable)?;
    let mut connection = store::connect(&arguments.data.location()?).await?;
    // In the trail before anything leaves, and so in the backup.
    connection.begin().await?;
    note(&mut connection, &root, "Backup", passphrase.is_some()).await?;
    connection.commit().await?;
    let (holder, root_key) = match &passphrase {
        None => (Holder::RootKey(&root), None),
        Some(passphrase) => {
            let path = arguments.data.data.join("root.key");
            let bytes = std::fs::read(&path).map(Zeroizing::new);
            let bytes = bytes.map_err(|source| FileError::Read { path, source })?;
            (Holder::Passphrase(passphrase), Some(bytes))
        }
    };
    let now = OffsetDateTime::now_utc();
    let mut writer = Writer::new(BufWriter::new(&file), holder, unix_ms(now))?;
    let root_key = root_key
        .as_ref()
        .map(|bytes| rows::RootKeyFile { bytes, root: &root });
    let written = rows::export(&mut connection, root_key, &mut writer).await?;
    writer.finish()?;
    file.finish().map_err(unwritable)?;
    connection.close().await?;
    told(
        &written,
        arguments.json,
        &format!("written to {}", to.display()),
    )
}

/// Reads one, and writes what it holds if it is whole.
pub(super) async fn restore(arguments: Restore) -> Result<(), Failure> {
    let mut backup = Opened::new(&arguments)?;
    // All of it is read before anything is written.
    let contents = rows::check(backup.reader()?)?;
    let root_key = contents.root_key.map(Zeroizing::new);
    if arguments.check {
        let created = backup.created.clone();
        return told(
            &contents.moved,
            arguments.json,
            &format!("whole, of {created}"),
        );
    }
    let location = arguments.data.location()?;
    let data = &arguments.data.data;
    std::fs::create_dir_all(data)?;
    let _lock = lock_directory(&location)?;
    let placed = place_root(data, root_key.as_ref().map(|bytes| bytes.as_slice()))?;
    let root = arguments.data.root()?;
    let (target, writer) = Store::open(location.clone()).await?;
    drop(target);
    writer.await?;
    let mut target = store::connect(&location).await?;
    let restored = rows::restore(backup.reader()?, &mut target, &root).await?;
    note(&mut target, &root, "Restore", backup.by_passphrase()).await?;
    target.commit().await?;
    placed.keep();
    target.close().await?;
    told(
        &restored,
        arguments.json,
        &format!("restored into {location}"),
    )
}

/// Adds an event; `connection` is in a transaction.
async fn note(
    connection: &mut Connection,
    root: &RootKey,
    operation: &str,
    by_passphrase: bool,
) -> Result<(), Failure> {
    let sealed_by = match by_passphrase {
        true => "passphrase",
        false => "root key",
    };
    let parameters = json!({ "sealedBy": sealed_by, "rootKey": by_passphrase });
    record::record(connection, root, operation, NO_ACCOUNT, parameters).await
}

/// A file and what opens it, so that it can be read twice.
struct Opened<'a> {
    arguments: &'a Restore,
    file: File,
    sealed_by: SealedBy,
    created: String,
    root: Option<RootKey>,
    passphrase: Option<Zeroizing<Vec<u8>>>,
}

impl<'a> Opened<'a> {
    fn new(arguments: &'a Restore) -> Result<Self, Failure> {
        let path = &arguments.file;
        let file = File::open(path).map_err(|source| FileError::Read {
            path: path.clone(),
            source,
        })?;
        let head = Unopened::read(&file)?.head;
        let created = OffsetDateTime::from_unix_timestamp(head.created_ms / 1000);
        let created = created.ok().and_then(|time| time.format(&Rfc3339).ok());
        let (root, passphrase) = match &head.sealed_by {
            SealedBy::RootKey(_) => {
                let data = &arguments.data.data;
                if !data.join("root.key").exists() {
                    return Err(FileError::RootMissing(data.clone()).into());
                }
                (Some(arguments.data.root()?), None)
            }
            SealedBy::Passphrase(_) => {
                let file = arguments.passphrase_file.as_deref();
                (None, Some(passphrase::of(WHAT, file)?))
            }
        };
        Ok(Self {
            arguments,
            file,
            sealed_by: head.sealed_by,
            created: created.unwrap_or_default(),
            root,
            passphrase,
        })
    }

    fn by_passphrase(&self) -> bool {
        matches!(self.sealed_by, SealedBy::Passphrase(_))
    }

    /// From the beginning.
    fn reader(&mut self) -> Result<Reader<BufReader<&File>>, Failure> {
        let path = &self.arguments.file;
        self.file.rewind().map_err(|source| FileError::Read {
            path: path.clone(),
            source,
        })?;
        let unopened = Unopened::read(BufReader::new(&self.file))?;
        let passphrase = || Ok(self.passphrase.clone().unwrap_or_default());
        Ok(unopened.open(self.root.as_ref(), passphrase)?)
    }
}

/// A root key from a backup, which goes again if nothing comes of the restoring.
struct Placed(Option<PathBuf>);

impl Placed {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _left = std::fs::remove_file(path);
        }
    }
}

/// Writes the backup's root key, unless the directory has one already: the audit trail tells whether it is the right one.
fn place_root(data: &Path, bytes: Option<&[u8]>) -> Result<Placed, Failure> {
    let path = data.join("root.key");
    match bytes {
        _ if path.try_exists()? => Ok(Placed(None)),
        None => Err(FileError::RootMissing(data.to_owned()).into()),
        Some(bytes) => {
            durable::write_new(&path, bytes)?;
            Ok(Placed(Some(path)))
        }
    }
}

fn told(moved: &Moved, json: bool, done: &str) -> Result<(), Failure> {
    if json {
        return Ok(print(&format!("{:#}", as_json(moved)))?);
    }
    print_rows(moved)?;
    print(&format!("audit trail, head: {}", moved.head))?;
    Ok(print(done)?)
}
