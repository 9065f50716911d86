//! The hypervisor's control socket, for what the command line does not print.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use enclos_api::control::{
    Enclave, Enclaves, Exit, Host, Reply, Request, SOCKET_NAME, Selector, Success,
};
use enclos_api::frame;

/// Asks the hypervisor whose run directory this is.
///
/// # Errors
/// It does not answer within `limit`, or refuses.
pub fn ask(run_dir: &Path, request: &Request, limit: Duration) -> Result<Success> {
    success(&mut begin(run_dir, request, limit)?, request)
}

fn begin(run_dir: &Path, request: &Request, limit: Duration) -> Result<UnixStream> {
    let mut stream =
        UnixStream::connect(run_dir.join(SOCKET_NAME)).context("the hypervisor is not there")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    frame::write(&mut stream, request)?;
    Ok(stream)
}

fn success(stream: &mut UnixStream, request: &Request) -> Result<Success> {
    match frame::read(stream).with_context(|| format!("no answer to {request:?}"))? {
        Reply::Ok(success) => Ok(success),
        Reply::Error(failure) => bail!("E{:02}: {failure}", failure.code),
    }
}

/// The installation.
///
/// # Errors
/// See [`ask`].
pub fn host(run_dir: &Path) -> Result<Host> {
    match ask(run_dir, &Request::Host, Duration::from_secs(10))? {
        Success::Host(host) => Ok(*host),
        other => bail!("unexpected answer {other:?}"),
    }
}

/// All enclaves.
///
/// # Errors
/// See [`ask`].
pub fn enclaves(run_dir: &Path) -> Result<Vec<Enclave>> {
    let mut stream = begin(run_dir, &Request::Describe, Duration::from_secs(10))?;
    let mut list = Enclaves::default();
    loop {
        match list.take(success(&mut stream, &Request::Describe)?) {
            Ok(Some(all)) => return Ok(all),
            Ok(None) => {}
            Err(other) => bail!("unexpected answer {other:?}"),
        }
    }
}

/// One enclave as it is now.
///
/// # Errors
/// There is none of this id.
pub fn enclave(run_dir: &Path, id: &str) -> Result<Enclave> {
    let mut all = enclaves(run_dir)?.into_iter();
    all.find(|enclave| enclave.id == id)
        .with_context(|| format!("no enclave {id} runs"))
}

/// Waits for an enclave's end.
///
/// # Errors
/// It does not end within `limit`.
pub fn wait(run_dir: &Path, id: &str, limit: Duration) -> Result<Exit> {
    let enclave = Selector::Id(id.to_owned());
    match ask(run_dir, &Request::Wait { enclave }, limit)? {
        Success::Exited(exit) => Ok(exit),
        other => bail!("unexpected answer {other:?}"),
    }
}
