//! Whether the client of a request is still there.
//!
//! A request is answered in a task of its own, so that a client that hangs up does not stop a change half-way between disk and
//! memory. But what has not begun is not done for nobody: where a request waits for its turn, it ends when its client goes.

use tokio::sync::watch;

use crate::error::{ApiError, ErrorKind};

tokio::task_local! {
    static CLIENT: watch::Receiver<()>;
}

/// Does the work of a client who is there for as long as the sender of `client` is.
pub(crate) fn with_client<T>(
    client: watch::Receiver<()>,
    work: impl Future<Output = T>,
) -> impl Future<Output = T> {
    CLIENT.scope(client, work)
}

/// Waits for something, unless the client goes first. Work of no client, that of time for one, waits on.
///
/// # Errors
/// If the client is gone. Nobody is told but the audit trail.
pub(crate) async fn unless_gone<T>(waiting: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::select! {
        biased;
        () = gone() => Err(ApiError::new(
            ErrorKind::Throttling,
            "The client hung up before its request was begun.",
        )),
        done = waiting => Ok(done),
    }
}

async fn gone() {
    match CLIENT.try_with(watch::Receiver::clone) {
        // Nothing is ever sent, so it changes when the sender goes.
        Ok(mut client) => while client.changed().await.is_ok() {},
        Err(_) => std::future::pending().await,
    }
}
