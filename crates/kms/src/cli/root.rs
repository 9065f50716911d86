//! `enclos-kms root`: the root key.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use enclos_token::Uri;
use serde_json::json;
use time::OffsetDateTime;

use super::record::record;
use super::{Data, Failure, IN_USE, USAGE, print};
use crate::crypto::passphrase;
use crate::crypto::root_file::{Lock, RootFile};
use crate::crypto::seal::RootKey;
use crate::store::{Connection, Location};
use crate::{reseal, store};

/// Account of events that concern the installation.
pub(super) const NO_ACCOUNT: &str = "000000000000";

/// What `enclos-kms root` does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the root key's versions and what protects them.
    Show {
        #[command(flatten)]
        data: Data,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a new version current. A running server takes it up and seals everything anew, while it serves.
    Rotate {
        #[command(flatten)]
        data: Data,
        /// Only add the version: give root.key to every node, then rotate.
        #[arg(long)]
        prepare: bool,
    },
    /// Forget an old version once nothing is sealed under it. What it sealed in the audit trail still verifies.
    Retire {
        #[command(flatten)]
        data: Data,
        /// Which version.
        #[arg(long, value_name = "N")]
        version: u32,
    },
    /// Protect the root key with a passphrase, a token's key, another one, or its file's mode alone. Makes a root key if there is none.
    Protect {
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        by: Protector,
    },
    /// Write a copy of the root key that is protected otherwise: for another node, or for the day on which a token is lost.
    Copy {
        #[command(flatten)]
        data: Data,
        /// The file to write; there must be none of that name.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        #[command(flatten)]
        by: Protector,
    },
}

/// What is to protect the root key.
#[derive(Debug, clap::Args)]
pub(super) struct Protector {
    #[command(flatten)]
    by: By,
    /// Make the token's key first, if it has none of this label and id.
    #[arg(long, requires = "token", conflicts_with_all = ["passphrase", "passphrase_file", "file_mode"])]
    make_token_key: bool,
}

/// Which of the protections.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct By {
    /// A passphrase, typed on the terminal.
    #[arg(long)]
    passphrase: bool,
    /// A passphrase, read from a file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// A generic secret key in a PKCS#11 token, which signs: pkcs11:token=NAME;object=LABEL?module-path=FILE&pin-source=FILE
    #[arg(long, value_name = "URI")]
    token: Option<String>,
    /// The file's mode alone.
    #[arg(long)]
    file_mode: bool,
}

/// Why the root key stays as it is.
#[derive(Debug, thiserror::Error)]
enum RootError {
    #[error("another enclos-kms root works on {0}; wait until it is done")]
    Busy(PathBuf),
    #[error(
        "something is still sealed under version {0}; run the server until it has sealed everything anew, then try again"
    )]
    InUse(u32),
    #[error("there is no old version {0}; see `enclos-kms root show`")]
    NoVersion(u32),
    #[error(
        "another node of this database has made version {0} current; copy its root.key here first"
    )]
    Behind(u32),
    #[error(
        "the URI holds a PIN, which everyone on this machine can read; name a file by pin-source= or ENCLOS_PKCS11_PIN_FILE"
    )]
    Pin,
}

impl Protector {
    /// The new protection. May ask for a passphrase on the terminal.
    fn lock(&self) -> Result<Lock, Failure> {
        let file = self.by.passphrase_file.as_deref();
        match &self.by.token {
            Some(uri) => Ok(Lock::token(&without_pin(uri)?, self.make_token_key)?),
            None if self.by.file_mode => Ok(Lock::none()),
            None => Ok(Lock::passphrase(&passphrase::choose(
                "the root key",
                file,
            )?)?),
        }
    }
}

fn without_pin(uri: &str) -> Result<Uri, Failure> {
    let uri = Uri::parse(uri).map_err(|error| Failure::new(USAGE, error))?;
    match uri.holds_pin() {
        true => Err(Failure::new(USAGE, RootError::Pin)),
        false => Ok(uri),
    }
}

/// Does it.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Show { data, json } => show(&data, json),
        Command::Rotate { data, prepare } => rotate(&data, prepare).await,
        Command::Retire { data, version } => retire(&data, version).await,
        Command::Protect { data, by } => protect(&data, &by),
        Command::Copy { data, to, by } => copy(&data, &to, &by).await,
    }
}

fn path(data: &Data) -> PathBuf {
    data.data.join("root.key")
}

/// Keeps other tools from the file until dropped.
fn lock(data: &Path) -> Result<File, Failure> {
    std::fs::create_dir_all(data)?;
    let path = data.join("root.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::new(IN_USE, RootError::Busy(path))),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn show(data: &Data, as_json: bool) -> Result<(), Failure> {
    let file = RootFile::read(&path(data), None, true)?;
    let versions = file.versions.iter().map(|version| {
        let state = match version.number {
            number if number == file.current => "current",
            _ if version.is_retired() => "retired",
            number if number > file.current => "prepared",
            _ => "old",
        };
        let created = version.created;
        json!({ "version": version.number, "state": state, "created": created })
    });
    let versions: Vec<_> = versions.collect();
    let protection = file.protection().name();
    let token_key = file.protection().token_key();
    if as_json {
        let all = json!({ "protection": protection, "tokenKey": token_key, "versions": versions });
        return Ok(print(&format!("{all:#}"))?);
    }
    match token_key {
        Some(key) => print(&format!("protected by {protection}, {key}"))?,
        None => print(&format!("protected by {protection}"))?,
    }
    for version in versions {
        let state = version["state"].as_str().unwrap_or_default();
        print(&format!("version {} {state}", version["version"]))?;
    }
    Ok(())
}

async fn rotate(data: &Data, prepare: bool) -> Result<(), Failure> {
    let _lock = lock(&data.data)?;
    let path = path(data);
    let mut file = RootFile::read(&path, None, true)?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut connection = existing(data).await?;
    let newest = file.versions.last().map_or(0, |version| version.number);
    if let Some(connection) = &mut connection {
        not_behind(connection, newest).await?;
    }
    let version = match newest > file.current && !prepare {
        true => newest,
        false => file.add(now)?,
    };
    if !prepare {
        file.current = version;
    }
    file.write(&path)?;
    let what = if prepare { "prepared" } else { "current" };
    let parameters = json!({ "version": version, "state": what });
    if let Some(mut connection) = connection {
        let current = file.current;
        let root = RootKey::opened(&path, file)?;
        connection.begin().await?;
        store::put_current_root(&mut connection, current).await?;
        record(
            &mut connection,
            &root,
            "RotateRootKey",
            NO_ACCOUNT,
            parameters,
        )
        .await?;
        connection.commit().await?;
    }
    Ok(print(&format!("version {version} {what}"))?)
}

/// First the database forgets the version, then the file: whatever happens in between, nothing is sealed under it any more.
async fn retire(data: &Data, version: u32) -> Result<(), Failure> {
    let _lock = lock(&data.data)?;
    let path = path(data);
    let mut file = RootFile::read(&path, None, true)?;
    let mut connection = store::connect(&data.location()?).await?;
    connection.begin().await?;
    not_behind(&mut connection, file.current).await?;
    let left = store::sealed_otherwise(&mut connection, &[file.current], 1).await?;
    if !left.is_empty() {
        return Err(RootError::InUse(version).into());
    }
    if !file.retire(version) {
        return Err(RootError::NoVersion(version).into());
    }
    store::put_retired_root(&mut connection, version).await?;
    let root = RootKey::opened(&path, file.clone())?;
    let parameters = json!({ "version": version });
    record(
        &mut connection,
        &root,
        "RetireRootKey",
        NO_ACCOUNT,
        parameters,
    )
    .await?;
    connection.commit().await?;
    file.write(&path)?;
    Ok(print(&format!("version {version} retired"))?)
}

fn protect(data: &Data, by: &Protector) -> Result<(), Failure> {
    let _lock = lock(&data.data)?;
    let path = path(data);
    let lock = by.lock()?;
    if !path.exists() {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let file = RootFile::new(lock, now)?;
        file.write(&path)?;
        return Ok(print(&format!(
            "made, protected by {}",
            file.protection().name()
        ))?);
    }
    let mut file = RootFile::read(&path, None, true)?;
    file.protect(lock);
    file.write(&path)?;
    let name = file.protection().name();
    print(&format!("protected by {name}"))?;
    Ok(())
}

/// The copy is in the audit trail before it is there.
async fn copy(data: &Data, to: &Path, by: &Protector) -> Result<(), Failure> {
    let _lock = lock(&data.data)?;
    let path = path(data);
    let mut file = RootFile::read(&path, None, true)?;
    let root = RootKey::opened(&path, file.clone())?;
    file.protect(by.lock()?);
    let name = file.protection().name();
    if let Some(mut connection) = existing(data).await? {
        let parameters = json!({ "protection": name });
        connection.begin().await?;
        record(
            &mut connection,
            &root,
            "CopyRootKey",
            NO_ACCOUNT,
            parameters,
        )
        .await?;
        connection.commit().await?;
    }
    file.write_new(to)?;
    Ok(print(&format!("copied, protected by {name}"))?)
}

/// Refuses a file that does not know, or does not use, what other nodes use.
async fn not_behind(connection: &mut Connection, version: u32) -> Result<(), Failure> {
    match store::newest_root(connection).await? {
        Some(newest) if newest > version => Err(RootError::Behind(newest).into()),
        _ => Ok(()),
    }
}

/// The database, if there is one already.
async fn existing(data: &Data) -> Result<Option<Connection>, Failure> {
    let location = data.location()?;
    if let Location::Sqlite(directory) = &location
        && !store::database_path(directory).exists()
    {
        return Ok(None);
    }
    Ok(Some(store::connect(&location).await?))
}

/// Seals what is under older versions of the root key than the current one anew, and says when this node itself is behind.
pub(super) async fn seal_anew(location: &Location, root: &RootKey) -> Result<(), Failure> {
    let mut connection = store::connect(location).await?;
    let version = root.version();
    store::refuse_retired_root(&mut connection, version).await?;
    let newest = store::newest_root(&mut connection).await?;
    if let Some(newest) = newest.filter(|newest| *newest > version) {
        tracing::warn!(
            version,
            newest,
            "another node of this database seals under a newer version of the root key: copy its root.key to this node"
        );
    }
    let done = reseal::all(&mut connection, root).await?;
    if done > 0 {
        let version = root.version();
        tracing::info!(
            values = done,
            version,
            "everything is sealed under the current version of the root key"
        );
    }
    Ok(connection.close().await?)
}
