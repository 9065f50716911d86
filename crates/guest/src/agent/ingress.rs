//! From a vsock port of the enclave to the application's TCP port of the same number.
//!
//! Only the parent may connect: a context id is no authentication, but another enclave's never gets here. Either
//! side may close its half and go on reading. Where the image says so, attested TLS ends here: the parent carries ciphertext, and
//! the application, which knows nothing of TLS, gets what is inside.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enclos_api::guest::PARENT_CID;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::channel::Channel;
use super::transport::Accept;
use crate::log;

/// `VMADDR_CID_HOST`: what a vhost back-end may call the parent.
const HOST_CID: u32 = 2;

/// Connections at a time and port; more wait in the listener's queue, so a flood costs the application nothing.
pub const MAX_CONNECTIONS: usize = 1024;

/// How long the application may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may take over a TLS handshake, its nonce included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after an accept that failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a silent application is asked whether it accepts yet.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// Forwards every connection of `listener` to 127.0.0.1:`port`, for ever; with a channel, what is inside of its TLS.
pub async fn serve(mut listener: impl Accept, port: u16, channel: Option<Arc<Channel>>) {
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepted = Arc::new(AtomicBool::new(false));
    loop {
        let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, PARENT_CID | HOST_CID)) => {
                let (channel, accepted) = (channel.clone(), Arc::clone(&accepted));
                tokio::spawn(async move {
                    // The other end's reset is its own business; both sockets are closed either way.
                    let _ = match channel {
                        None => forward(stream, port).await,
                        Some(channel) => forward_attested(stream, port, &channel, &accepted).await,
                    };
                    drop(permit);
                });
            }
            Ok((_, cid)) => {
                log::line(
                    "enclos-agent",
                    format_args!("port {port}: refused context id {cid}"),
                );
            }
            Err(error) => {
                log::line(
                    "enclos-agent",
                    format_args!("port {port}: cannot accept: {error}"),
                );
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The application is not troubled before the handshake is over. Only until it has accepted once is it asked first: a client that is turned
/// away before TLS knows that nothing was sent, and can come again.
async fn forward_attested(
    stream: UnixStream,
    port: u16,
    channel: &Channel,
    accepted: &AtomicBool,
) -> io::Result<()> {
    if !accepted.load(Ordering::Relaxed) {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        accepted.store(true, Ordering::Relaxed);
    }
    let shaken = timeout(HANDSHAKE_TIMEOUT, channel.accept(stream)).await;
    forward(shaken.map_err(io::Error::other)??, port).await
}

async fn forward<S>(mut stream: S, port: u16) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connect = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let mut app = timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(io::Error::other)??;
    app.set_nodelay(true)?;
    let carried = tokio::io::copy_bidirectional(&mut stream, &mut app).await;
    if carried.is_err() {
        // The application must not take what came for all there is: a reset is no end of stream.
        app.set_zero_linger()?;
    }
    carried.map(drop)
}

/// Returns once 127.0.0.1:`port` accepts a connection.
pub async fn until_ready(port: u16) {
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .is_err()
    {
        sleep(READY_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::transport::Boxed;
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    /// Hands out streams that the test made.
    struct Given(mpsc::Receiver<(UnixStream, u32)>);

    impl Accept for Given {
        fn accept(&mut self) -> Boxed<'_, io::Result<(UnixStream, u32)>> {
            Box::pin(async {
                self.0
                    .recv()
                    .await
                    .ok_or_else(|| io::Error::other("no more"))
            })
        }
    }

    async fn enclave() -> (TcpListener, mpsc::Sender<(UnixStream, u32)>) {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, receiver) = mpsc::channel(8);
        let port = app.local_addr().unwrap().port();
        tokio::spawn(serve(Given(receiver), port, None));
        (app, sender)
    }

    /// A client that sends something and is cut off.
    struct Cut(Option<&'static [u8]>);

    impl AsyncRead for Cut {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let bytes = self.0.take().ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.put_slice(bytes);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Cut {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_is_no_end_of_stream_to_the_application() {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = app.local_addr().unwrap().port();
        let forwarding = tokio::spawn(forward(Cut(Some(b"pay 100")), port));
        let (mut served, _) = bounded(app.accept()).await.unwrap();
        let mut request = Vec::new();
        let ended = bounded(served.read_to_end(&mut request)).await;
        assert!(forwarding.await.unwrap().is_err(), "the agent knows");
        assert!(
            ended.is_err(),
            "the application takes {request:?} for all there is"
        );
    }

    async fn bounded<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), future).await.unwrap()
    }

    #[tokio::test]
    async fn a_half_closed_request_is_still_answered() {
        let (app, sender) = enclave().await;
        let (mut client, inside) = UnixStream::pair().unwrap();
        sender.send((inside, 3)).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut served, _) = bounded(app.accept()).await.unwrap();
        let mut request = Vec::new();
        bounded(served.read_to_end(&mut request)).await.unwrap();
        assert_eq!(request, b"question");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        let mut answer = Vec::new();
        bounded(client.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"answer");
    }

    #[tokio::test]
    async fn a_foreign_context_is_refused_and_the_parent_still_served() {
        let (app, sender) = enclave().await;
        let (mut foreign, inside) = UnixStream::pair().unwrap();
        sender.send((inside, 17)).await.unwrap();
        let mut nothing = Vec::new();
        assert_eq!(bounded(foreign.read_to_end(&mut nothing)).await.unwrap(), 0);
        let (_client, inside) = UnixStream::pair().unwrap();
        sender.send((inside, 2)).await.unwrap();
        bounded(app.accept()).await.unwrap();
    }

    #[tokio::test]
    async fn an_application_that_does_not_listen_closes_the_stream() {
        let (app, sender) = enclave().await;
        drop(app);
        let (mut client, inside) = UnixStream::pair().unwrap();
        sender.send((inside, 3)).await.unwrap();
        let mut nothing = Vec::new();
        assert_eq!(bounded(client.read_to_end(&mut nothing)).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn readiness_waits_for_the_first_accept() {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = app.local_addr().unwrap().port();
        bounded(until_ready(port)).await;
        drop(app);
        let waiting = timeout(Duration::from_millis(80), until_ready(port)).await;
        assert!(waiting.is_err());
    }
}
