//! Where the state is: the data directory, and the database if that is not in it.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::Failure;
use crate::crypto::seal::RootKey;
use crate::store::{AddressError, Location, Servers};

/// The data directory and the database, common to all commands.
#[derive(Debug, clap::Args)]
pub(super) struct Data {
    /// Data directory: kms.db, root.key, tls/
    #[arg(long, value_name = "DIR", env = "ENCLOS_KMS_DATA")]
    pub(super) data: PathBuf,

    #[command(flatten)]
    pub(super) database: Database,
}

/// A database outside of the data directory.
#[derive(Debug, clap::Args)]
pub(super) struct Database {
    /// PostgreSQL database instead of DATA/kms.db: postgres://USER@HOST:PORT/NAME. Repeat it for each server of which one can
    /// be written. Over TCP the server must prove its name; see sslmode and sslrootcert of PostgreSQL
    #[arg(
        long,
        value_name = "URL",
        env = "ENCLOS_KMS_DATABASE",
        value_delimiter = ','
    )]
    database: Vec<String>,

    /// File with the password of --database; without it PGPASSWORD is the password
    #[arg(
        long,
        value_name = "FILE",
        requires = "database",
        env = "ENCLOS_KMS_DATABASE_PASSWORD_FILE"
    )]
    database_password_file: Option<PathBuf>,
}

/// Why the database cannot be named.
#[derive(Debug, thiserror::Error)]
enum DatabaseError {
    #[error("cannot read the database's password from {path}")]
    Password {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl Data {
    /// Where the state is.
    pub(super) fn location(&self) -> Result<Location, Failure> {
        self.database.or_in(&self.data)
    }

    /// The root key, which must be there.
    pub(super) fn root(&self) -> Result<RootKey, Failure> {
        Ok(RootKey::open(&self.data.join("root.key"), false)?)
    }
}

impl Database {
    /// This database, or the one in a data directory.
    pub(super) fn or_in(&self, data: &std::path::Path) -> Result<Location, Failure> {
        if self.database.is_empty() {
            return Ok(data.into());
        }
        let servers = servers(&self.database, self.database_password_file.as_deref())?;
        Ok(servers.into())
    }
}

/// Servers with the password that a file holds, if there is one.
pub(super) fn servers(
    urls: &[String],
    password: Option<&std::path::Path>,
) -> Result<Servers, Failure> {
    let read = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).map(Zeroizing::new);
        text.map_err(|source| DatabaseError::Password {
            path: path.to_owned(),
            source,
        })
    };
    let password = password.map(read).transpose()?;
    let password = password.as_ref().map(|text| text.trim_end_matches('\n'));
    Ok(Servers::parse(urls, password).map_err(DatabaseError::from)?)
}
