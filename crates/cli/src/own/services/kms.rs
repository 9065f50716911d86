//! The development KMS of `enclos up --kms`.
//!
//! It trusts this installation's attestation root and has one principal, the host's role, whose credentials go into a
//! file that only this user can read and that `host.toml` names.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use enclos_api::control::{Request, Success};

use super::Places;
use super::host_file::HostFile;
use crate::daemon;
use crate::dirs;
use crate::failure::Outcome;
use crate::files::{make_dir, replace};
use crate::own::kernel::output;
use crate::term;

pub(super) const REGION: &str = "us-east-1";
pub(super) const ACCOUNT: &str = "000000000000";
pub(super) const ROLE_ARN: &str = "arn:aws:iam::000000000000:role/enclos-host";

/// Where the KMS is to serve, and where its files are.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) listen: SocketAddr,
    pub(super) dev_listen: SocketAddr,
    pub(super) data: PathBuf,
    pub(super) credentials: PathBuf,
    pub(super) measurement_policies: Option<PathBuf>,
}

impl Wanted {
    pub(super) fn new(places: &Places, listen: SocketAddr, dev_listen: SocketAddr) -> Self {
        let data = places.state.join("kms");
        Self {
            listen,
            dev_listen,
            credentials: places.state.join("host-credentials.json"),
            measurement_policies: None,
            data,
        }
    }
}

/// Starts the KMS and makes the host's principal. The hypervisor is up.
pub(super) fn start(places: &Places, wanted: &Wanted, host: &HostFile) -> Outcome {
    // As enclos-kms makes it when it is the first.
    make_dir(&wanted.data, 0o700)?;
    let root = wanted.data.join("attestation-root.pem");
    replace(&root, &root_certificate()?, 0o644)?;
    let mut service = places.service("kms");
    service.arg("serve").arg("--data").arg(&wanted.data);
    service.arg("--listen").arg(wanted.listen.to_string());
    service
        .arg("--dev-listen")
        .arg(wanted.dev_listen.to_string());
    service.arg("--trust-root").arg(&root);
    if let Some(directory) = &wanted.measurement_policies {
        service.arg("--measurement-policies").arg(directory);
    }
    service.start(&|| {
        service.pid().is_some() && accepts(wanted.listen) && accepts(wanted.dev_listen)
    })?;
    make_principal(&service.program, wanted, host)?;
    // Python's SDK and its command read one variable for the region, the other SDKs the other.
    term::note(format_args!(
        "kms: export AWS_ENDPOINT_URL_KMS=http://{} AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION={REGION} AWS_DEFAULT_REGION={REGION}",
        wanted.dev_listen
    ));
    term::note(format_args!(
        "kms: enclaves trust it by its CA, [kms] ca = {:?}",
        wanted.data.join("tls/ca.pem")
    ));
    Ok(())
}

fn root_certificate() -> Outcome<String> {
    match daemon::hypervisor(&Request::Host)? {
        Success::Host(host) => Ok(host.root_certificate),
        other => Err(daemon::unexpected(&other)),
    }
}

fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Credentials that exist already are kept: enclaves may be using them.
fn make_principal(program: &Path, wanted: &Wanted, host: &HostFile) -> Outcome {
    if wanted.credentials.exists() {
        return Ok(());
    }
    let arn = host
        .config
        .role
        .as_ref()
        .map_or(ROLE_ARN, |role| role.arn.as_str());
    let mut command = Command::new(dirs::in_path(program).unwrap_or_else(|| program.to_owned()));
    command
        .args(["principal", "add", "--arn", arn, "--data"])
        .arg(&wanted.data);
    replace(&wanted.credentials, &output(&mut command)?, 0o600)
}
