//! Puts the parts together and ends them on request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use enclos_api::config::HostConfig;
use tokio::signal::unix::{SignalKind, signal};

use crate::registry::Registry;
use crate::socket::Socket;
use crate::{control, ledger, watch};

/// Why the gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The control socket cannot be made.
    #[error("cannot listen at {}; is another gateway running?", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// Serves until SIGTERM or SIGINT; then removes every socket it made. What is published is published again by the next one.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(host: HostConfig, run_dir: &Path) -> Result<(), ServeError> {
    let path = run_dir.join(enclos_api::gateway::SOCKET_NAME);
    let socket = Socket::bind(&path)
        .await
        .map_err(|source| ServeError::Socket { path, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let registry = Arc::new(Registry::new(host, run_dir.join(ledger::FILE_NAME)));
    let hypervisor = run_dir.join(enclos_api::control::SOCKET_NAME);
    tokio::select! {
        () = watch::follow(&hypervisor, &registry) => {}
        () = control::serve(socket, Arc::clone(&registry)) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    registry.close();
    tracing::info!("stopped");
    Ok(())
}
