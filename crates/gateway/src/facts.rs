//! Who this host is, for the agent's metadata service.
//!
//! The role's credentials are read from the operator's file at each request, so that rotation needs no restart,
//! and are wiped once they are sent. A host without a role, or whose file cannot be read, has no credentials
//! to tell; the log says which.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use enclos_api::config::{HostConfig, Role};
use enclos_api::frame::FrameError;
use enclos_api::guest::{FactsReply, FactsRequest, InstanceFacts, RoleFacts};
use serde::Deserialize;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use tokio::net::UnixStream;
use zeroize::{Zeroize, Zeroizing};

use crate::wire;

/// What metadata calls the instance's type: no EC2 machine, and it does not pretend to be one.
const INSTANCE_TYPE: &str = "enclos.host";

/// Credentials without an expiry are announced as good for this long, and asked for again before it is over.
const DEFAULT_LIFETIME: Duration = Duration::hours(1);

/// Longest credentials file, in bytes.
const MAX_FILE: usize = 64 << 10;

/// Permission bits that let others read or change a file.
const OTHERS: u32 = 0o066;

/// Why a role has no credentials to tell.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read the credentials file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file is not what was expected.
    #[error(
        "{} is not JSON with AccessKeyId and SecretAccessKey (line {line}, column {column})",
        path.display()
    )]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where parsing stopped; the text itself might be secret.
        line: usize,
        /// Where parsing stopped.
        column: usize,
    },
}

/// The shape of the SDKs' `credential_process`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    session_token: Option<Zeroizing<String>>,
    expiration: Option<String>,
}

/// Answers one connection of the agent.
///
/// # Errors
/// See [`FrameError`].
pub async fn answer(mut stream: UnixStream, host: Arc<HostConfig>) -> Result<(), FrameError> {
    let FactsRequest::Facts = wire::read_soon(&mut stream).await?;
    let gathered = tokio::task::spawn_blocking(move || gather(&host)).await;
    let mut reply = match gathered {
        Ok(facts) => FactsReply::Ok(Box::new(facts)),
        Err(_) => FactsReply::Error("the gateway could not gather its facts".to_owned()),
    };
    let sent = wire::write(&mut stream, &reply).await;
    wipe(&mut reply);
    sent
}

fn wipe(reply: &mut FactsReply) {
    if let FactsReply::Ok(facts) = reply
        && let Some(role) = &mut facts.role
    {
        role.secret_access_key.zeroize();
        role.session_token.zeroize();
    }
}

/// Everything the host file says, and the credentials of the moment.
#[must_use]
pub fn gather(host: &HostConfig) -> InstanceFacts {
    let instance = &host.instance;
    InstanceFacts {
        instance_id: instance.id.clone(),
        region: instance.region.clone(),
        availability_zone: instance.availability_zone.clone(),
        account_id: instance.account_id.clone(),
        instance_type: INSTANCE_TYPE.to_owned(),
        private_ip: private_ip().to_string(),
        role: host.role.as_ref().and_then(role_facts),
    }
}

fn role_facts(role: &Role) -> Option<RoleFacts> {
    let path = role.credentials_file.as_deref()?;
    match read_credentials(path) {
        Ok(credentials) => Some(to_facts(&role.arn, credentials)),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(cause, "{error}");
            None
        }
    }
}

fn to_facts(arn: &str, mut credentials: Credentials) -> RoleFacts {
    let take = |secret: &mut Zeroizing<String>| std::mem::take(&mut **secret);
    RoleFacts {
        arn: arn.to_owned(),
        access_key_id: credentials.access_key_id,
        secret_access_key: take(&mut credentials.secret_access_key),
        session_token: credentials.session_token.as_mut().map(take),
        expiration: credentials.expiration.unwrap_or_else(default_expiry),
    }
}

fn default_expiry() -> String {
    let expiry = OffsetDateTime::now_utc() + DEFAULT_LIFETIME;
    let whole = expiry.replace_nanosecond(0).unwrap_or(expiry);
    whole.format(&Rfc3339).unwrap_or_default()
}

fn read_credentials(path: &Path) -> Result<Credentials, CredentialsError> {
    let read = |source| CredentialsError::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    warn_if_open(path, &file.metadata().map_err(read)?);
    // Room for all of it: a buffer that grows would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE));
    let limit = u64::try_from(MAX_FILE).unwrap_or_default();
    file.take(limit).read_to_end(&mut bytes).map_err(read)?;
    serde_json::from_slice(&bytes).map_err(|error| CredentialsError::Parse {
        path: path.to_path_buf(),
        line: error.line(),
        column: error.column(),
    })
}

fn warn_if_open(path: &Path, metadata: &std::fs::Metadata) {
    if metadata.mode() & OTHERS != 0 {
        let mode = format!("{:o}", metadata.mode() & 0o777);
        tracing::warn!(path = %path.display(), mode, "others can read these credentials; chmod 600");
    }
}

/// The address this host would send from; no packet leaves.
fn private_ip() -> IpAddr {
    let probe = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enclos_api::config::Instance;

    fn host(file: Option<&Path>) -> HostConfig {
        HostConfig {
            instance: Instance {
                id: "i-0123456789abcdef0".into(),
                region: "eu-west-3".into(),
                availability_zone: "eu-west-3a".into(),
                account_id: "000000000000".into(),
            },
            role: Some(Role {
                arn: "arn:aws:iam::000000000000:role/parent".into(),
                credentials_file: file.map(Path::to_path_buf),
            }),
            kms: None,
        }
    }

    fn role_of(text: &str) -> Option<RoleFacts> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        gather(&host(Some(file.path()))).role
    }

    #[test]
    fn rotation_needs_no_restart() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let host = host(Some(file.path()));
        for key in ["AKIA1", "AKIA2"] {
            let text = format!(r#"{{"Version":1,"AccessKeyId":"{key}","SecretAccessKey":"s"}}"#);
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(gather(&host).role.unwrap().access_key_id, key);
        }
    }

    #[test]
    fn expiry_is_passed_on_or_made_up() {
        let role = role_of(
            r#"{"AccessKeyId":"a","SecretAccessKey":"s","SessionToken":"t",
                "Expiration":"2030-01-01T00:00:00Z"}"#,
        );
        let role = role.unwrap();
        assert_eq!(role.expiration, "2030-01-01T00:00:00Z");
        assert_eq!(role.session_token.as_deref(), Some("t"));
        let role = role_of(r#"{"AccessKeyId":"a","SecretAccessKey":"s"}"#).unwrap();
        let expiry = OffsetDateTime::parse(&role.expiration, &Rfc3339).unwrap();
        assert!(expiry > OffsetDateTime::now_utc() + Duration::minutes(50));
        assert!(role.expiration.ends_with('Z') && !role.expiration.contains('.'));
    }

    #[test]
    fn a_bad_file_means_no_role_and_the_rest_stays() {
        for text in ["", "{}", "secret, not JSON", r#"{"AccessKeyId":"a"}"#] {
            assert!(role_of(text).is_none(), "{text}");
        }
        let facts = gather(&host(Some(Path::new("/nonexistent"))));
        assert!(facts.role.is_none());
        assert_eq!(facts.instance_id, "i-0123456789abcdef0");
        assert!(gather(&host(None)).role.is_none());
    }

    #[test]
    fn an_error_never_quotes_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"AccessKeyId": hunter2}"#).unwrap();
        let error = read_credentials(file.path()).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_connection_carries_one_question_and_one_answer() {
        let (mut agent, inside) = UnixStream::pair().unwrap();
        let answered = tokio::spawn(answer(inside, Arc::new(host(None))));
        wire::write(&mut agent, &FactsRequest::Facts).await.unwrap();
        let reply: FactsReply = wire::read_soon(&mut agent).await.unwrap();
        let FactsReply::Ok(facts) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(facts.region, "eu-west-3");
        answered.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        use tokio::io::AsyncWriteExt;
        let (mut agent, inside) = UnixStream::pair().unwrap();
        let answered = tokio::spawn(answer(inside, Arc::new(host(None))));
        agent
            .write_all(&[3, 0, 0, 0, b'"', b'x', b'"'])
            .await
            .unwrap();
        assert!(matches!(answered.await.unwrap(), Err(FrameError::Json(_))));
    }
}
