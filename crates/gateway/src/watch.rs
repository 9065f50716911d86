//! Follows the hypervisor: which enclaves there are.
//!
//! While the hypervisor is away the enclaves that were known stay served; when it is back they are compared
//! with what it has.

use std::path::Path;
use std::time::Duration;

use enclos_api::control::{Enclaves, Event, Failure, Reply, Request, Success};
use enclos_api::frame::FrameError;
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::registry::Registry;
use crate::wire;

/// First pause before the hypervisor is tried again; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause before the hypervisor is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why the hypervisor could not be followed any longer.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It does not answer.
    #[error("cannot reach the hypervisor")]
    Connect(#[source] std::io::Error),
    /// The stream failed.
    #[error("the connection to the hypervisor failed")]
    Frame(#[from] FrameError),
    /// It refused.
    #[error("the hypervisor refused")]
    Refused(#[source] Failure),
    /// It answered something else than it was asked for.
    #[error("the hypervisor answered out of turn; is it of the same version?")]
    Unexpected,
}

/// Follows the hypervisor behind `socket`, for ever.
pub async fn follow(socket: &Path, registry: &Registry) {
    let mut pause = FIRST_PAUSE;
    loop {
        match once(socket, registry, &mut pause).await {
            Ok(()) | Err(WatchError::Frame(FrameError::Closed)) => {
                tracing::info!("the hypervisor closed the connection");
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(cause, "{error}");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One connection, from the comparison to the end of its events.
async fn once(socket: &Path, registry: &Registry, pause: &mut Duration) -> Result<(), WatchError> {
    let (mut watch, reply) = ask(socket, &Request::Watch).await?;
    let Success::Streaming = reply else {
        return Err(WatchError::Unexpected);
    };
    let ids = running(socket).await?;
    registry.retain(&ids);
    *pause = FIRST_PAUSE;
    tracing::info!(enclaves = ids.len(), "following the hypervisor");
    loop {
        match wire::read(&mut watch).await? {
            Event::Added(enclave) => registry.add(&enclave).await,
            Event::Changed(_) => {}
            Event::Removed(exit) => registry.remove(&exit.id),
        }
    }
}

/// Ids of all enclaves that there are.
async fn running(socket: &Path) -> Result<Vec<String>, WatchError> {
    let (mut stream, mut reply) = ask(socket, &Request::Describe).await?;
    let mut list = Enclaves::default();
    loop {
        let answer = list.take(reply).map_err(|_| WatchError::Unexpected)?;
        if let Some(all) = answer {
            return Ok(all.into_iter().map(|enclave| enclave.id).collect());
        }
        reply = success(&mut stream).await?;
    }
}

async fn ask(socket: &Path, request: &Request) -> Result<(UnixStream, Success), WatchError> {
    let mut stream = UnixStream::connect(socket)
        .await
        .map_err(WatchError::Connect)?;
    wire::write(&mut stream, request).await?;
    let reply = success(&mut stream).await?;
    Ok((stream, reply))
}

async fn success(stream: &mut UnixStream) -> Result<Success, WatchError> {
    match wire::read_soon(stream).await? {
        Reply::Ok(success) => Ok(success),
        Reply::Error(failure) => Err(WatchError::Refused(failure)),
    }
}
