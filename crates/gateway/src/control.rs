//! The gateway's control socket: one request, one reply.

use std::sync::Arc;

use enclos_api::control::Failure;
use enclos_api::frame::FrameError;
use enclos_api::gateway::{Reply, Request};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::registry::Registry;
use crate::socket::Socket;
use crate::wire;

/// Clients at a time.
const MAX_CLIENTS: usize = 64;

/// nitro-cli's code for a command that cannot be understood.
const E_COMMAND: u8 = 14;

/// Answers clients for ever.
pub async fn serve(socket: Socket, registry: Arc<Registry>) {
    let limit = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok(stream) => {
                let registry = Arc::clone(&registry);
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &registry).await {
                        tracing::debug!("control: {error}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("control socket: cannot accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, registry: &Registry) -> Result<(), FrameError> {
    let uid = stream.peer_cred()?.uid();
    let reply = match wire::read_soon(&mut stream).await {
        Ok(request) => act(request, uid, registry).await,
        Err(FrameError::Json(error)) => {
            let message =
                format!("the request is not understood: {error}; are both of one version?");
            Reply::Error(Failure {
                code: E_COMMAND,
                message,
            })
        }
        Err(error) => return Err(error),
    };
    wire::write(&mut stream, &reply).await
}

async fn act(request: Request, uid: u32, registry: &Registry) -> Reply {
    match request {
        Request::List => Reply::Ok(registry.list(uid)),
        Request::Publish(publication) => match registry.publish(publication, uid).await {
            Ok(publication) => Reply::Ok(vec![publication]),
            Err(failure) => Reply::Error(failure),
        },
    }
}
