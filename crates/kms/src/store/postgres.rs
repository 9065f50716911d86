//! PostgreSQL, and what speaks its wire: which servers, how they are reached, what a session must be.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Executor as _, PgConnection, Row as _};

use super::StoreError;

/// How long one server may take to let us in.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// What every session is given. A node that hangs inside a transaction must not hold up the fleet, and what is
/// acknowledged must be on disk even if the server's own default is to be quick. What speaks PostgreSQL's wire without being
/// PostgreSQL need not know `synchronous_commit`.
const SESSION: &str = "SET idle_in_transaction_session_timeout = '10s'; SET statement_timeout = '15s';
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit', true) IN ('off', 'local')";

/// The servers of one database, of which one can be written.
#[derive(Clone)]
pub struct Servers {
    options: Vec<PgConnectOptions>,
    shown: String,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Servers").field(&self.shown).finish()
    }
}

impl std::fmt::Display for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

/// A database's address that is none.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not a URL of PostgreSQL.
    #[error("expected postgres://USER@HOST:PORT/NAME, got {0:?}")]
    Form(String),
    /// Every user of the machine can read command lines.
    #[error(
        "the address of {0} holds a password, which everyone on this machine can read; give it by --database-password-file or PGPASSWORD"
    )]
    Password(String),
    /// Parameters that are not understood.
    #[error("the address of {shown} is not understood")]
    Parameters {
        /// Which.
        shown: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
}

impl Servers {
    /// Reads addresses, each `postgres://user@host:port/name?sslmode=…&sslrootcert=…`. Without `sslmode` a server over TCP
    /// must prove its name with a certificate (`verify-full`).
    ///
    /// # Errors
    /// If one is no such address, or holds a password.
    pub fn parse(urls: &[String], password: Option<&str>) -> Result<Self, AddressError> {
        let mut options = Vec::with_capacity(urls.len());
        for url in urls {
            options.push(server(url, password)?);
        }
        let shown: Vec<String> = urls.iter().map(|url| without_parameters(url)).collect();
        Ok(Self {
            options,
            shown: shown.join(", "),
        })
    }

    /// A session with the first server that can be written.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        let mut last = StoreError::Unreachable(self.shown.clone());
        for options in &self.options {
            match tokio::time::timeout(CONNECT_TIME, session(options)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }
}

async fn session(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let mut connection = options.connect().await?;
    connection.execute(SESSION).await?;
    let row = sqlx::query("SELECT current_setting('transaction_read_only')")
        .fetch_one(&mut connection)
        .await?;
    let read_only: String = row.try_get(0)?;
    if read_only == "on" {
        let host = options.get_host().to_owned();
        return Err(StoreError::Standby(host));
    }
    Ok(connection)
}

fn without_parameters(url: &str) -> String {
    url.split_once('?')
        .map_or(url, |(address, _)| address)
        .to_owned()
}

fn server(url: &str, password: Option<&str>) -> Result<PgConnectOptions, AddressError> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| AddressError::Form(without_parameters(url)))?;
    let (address, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = address.split('/').next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let names = |name: &str| {
        let mut all = parameters.split('&');
        all.any(|parameter| parameter.split('=').next() == Some(name))
    };
    if user.contains(':') || names("password") {
        return Err(AddressError::Password(host.to_owned()));
    }
    let options = PgConnectOptions::from_str(url).map_err(|source| AddressError::Parameters {
        shown: without_parameters(url),
        source,
    })?;
    let options = match password {
        Some(password) => options.password(password),
        None => options,
    };
    let socket = options.get_socket().is_some() || host.starts_with("%2F");
    let says = names("sslmode") || names("ssl-mode");
    let options = match socket || says {
        true => options,
        false => options.ssl_mode(PgSslMode::VerifyFull),
    };
    Ok(options
        .application_name("enclos-kms")
        .disable_statement_logging())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Servers, AddressError> {
        Servers::parse(&[url.to_owned()], None)
    }

    #[test]
    fn addresses_have_no_passwords() {
        for url in [
            "postgres://kms:secret@db/kms",
            "postgres://kms@db/kms?sslmode=disable&password=secret",
        ] {
            let error = parse(url).unwrap_err();
            assert!(matches!(error, AddressError::Password(_)), "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for url in ["", "mysql://db/kms", "db"] {
            assert!(matches!(parse(url), Err(AddressError::Form(_))), "{url}");
        }
    }

    #[test]
    fn a_server_over_tcp_proves_its_name_unless_told_otherwise() {
        let mode = |url: &str| {
            let servers = parse(url).unwrap();
            format!("{:?}", servers.options.first().unwrap().get_ssl_mode())
        };
        assert_eq!(mode("postgres://kms@db/kms"), "VerifyFull");
        assert_eq!(mode("postgres://kms@db/kms?sslmode=require"), "Require");
        assert_eq!(mode("postgres://kms@localhost/kms?host=/tmp"), "Prefer");
    }
}
