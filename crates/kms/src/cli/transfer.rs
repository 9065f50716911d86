//! `enclos-kms move`: all state from one database to another.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::data::servers;
use super::serve::lock;
use super::{Failure, print};
use crate::crypto::seal::RootKey;
use crate::store::{self, Location, Moved, Store};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the state is: a data directory, or postgres://USER@HOST:PORT/NAME
    #[arg(long, value_name = "DIR|URL")]
    from: String,

    /// Where it goes: a data directory with root.key and without keys, or an empty database
    #[arg(long, value_name = "DIR|URL")]
    to: String,

    /// The root key; by default root.key of --from or else of --to, whichever is a directory
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,

    /// File with the password of the databases; without it PGPASSWORD is the password
    #[arg(long, value_name = "FILE")]
    database_password_file: Option<PathBuf>,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum MoveError {
    #[error("neither --from nor --to is a data directory: name the root key by --root-key")]
    NoRoot,
    #[error("{0} has no root.key: copy it there first, with mode 0600")]
    RootMissing(PathBuf),
}

/// Moves, all or nothing.
pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (from, to) = (
        location(&arguments.from, &arguments)?,
        location(&arguments.to, &arguments)?,
    );
    let root = RootKey::open(&root_path(&arguments, &from, &to)?, false)?;
    // Nobody may serve from a directory meanwhile; a shared database is locked as long as it takes.
    let _locks = [lock_directory(&from)?, lock_directory(&to)?];
    let mut source = store::connect(&from).await?;
    let (target, writer) = Store::open(to.clone()).await?;
    drop(target);
    writer.await?;
    let mut target = store::connect(&to).await?;
    let moved = store::transfer(&mut source, &mut target, &root).await?;
    target.close().await?;
    source.close().await?;
    if arguments.json {
        return Ok(print(&format!("{:#}", as_json(&moved)))?);
    }
    print_rows(&moved)?;
    print(&format!("audit trail verified, head: {}", moved.head))?;
    print(&format!(
        "{from} is left as it was: do not serve from it again"
    ))?;
    Ok(())
}

/// Rows by table and the head of the audit trail.
pub(super) fn as_json(moved: &Moved) -> Value {
    let rows = moved.rows.iter();
    let rows: serde_json::Map<_, _> = rows
        .map(|(table, rows)| ((*table).to_owned(), json!(rows)))
        .collect();
    json!({ "rows": rows, "head": moved.head.to_string() })
}

pub(super) fn print_rows(moved: &Moved) -> Result<(), std::io::Error> {
    for (table, rows) in &moved.rows {
        print(&format!("{table}: {rows}"))?;
    }
    Ok(())
}

fn location(name: &str, arguments: &Arguments) -> Result<Location, Failure> {
    if name.contains("://") {
        let password = arguments.database_password_file.as_deref();
        return Ok(servers(&[name.to_owned()], password)?.into());
    }
    Ok(Path::new(name).into())
}

fn root_path(arguments: &Arguments, from: &Location, to: &Location) -> Result<PathBuf, MoveError> {
    if let Location::Sqlite(data) = to
        && !data.join("root.key").exists()
    {
        return Err(MoveError::RootMissing(data.clone()));
    }
    match (&arguments.root_key, from, to) {
        (Some(path), _, _) => Ok(path.clone()),
        (None, Location::Sqlite(data), _) | (None, _, Location::Sqlite(data)) => {
            Ok(data.join("root.key"))
        }
        (None, Location::Postgres(_), Location::Postgres(_)) => Err(MoveError::NoRoot),
    }
}

pub(super) fn lock_directory(location: &Location) -> Result<Option<std::fs::File>, Failure> {
    match location {
        Location::Sqlite(data) => Ok(Some(lock(data)?)),
        Location::Postgres(_) => Ok(None),
    }
}
