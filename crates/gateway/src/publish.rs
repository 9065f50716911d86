//! From a TCP port of the host into an enclave.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use enclos_api::gateway::Publication;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::pump::pump;

/// Connections that wait to be accepted; the kernel lets further ones try again.
const BACKLOG: u32 = 128;

/// Connections at a time into one enclave, whatever the port; more wait in the backlog.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// How long the enclave may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection on which nothing moves for this long is given up.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Pause after an accept that failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest answer to `CONNECT`: `OK 4294967295\n`.
const MAX_ANSWER: usize = 32;

/// A host port that is listening.
#[derive(Debug)]
pub struct Published {
    /// What is published, with the address that was taken.
    pub publication: Publication,
    listener: TcpListener,
}

impl Published {
    /// Listens on the publication's address.
    ///
    /// # Errors
    /// The system's; `AddrInUse` when the port is taken.
    pub fn bind(mut publication: Publication) -> io::Result<Self> {
        let socket = match publication.listen {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(publication.listen)?;
        let listener = socket.listen(BACKLOG)?;
        publication.listen = listener.local_addr()?;
        Ok(Self {
            publication,
            listener,
        })
    }

    /// Forwards every connection to the enclave behind `vsock`, for ever; as many at a time as `limit` has permits.
    pub async fn serve(self, vsock: PathBuf, limit: Arc<Semaphore>) {
        let port = self.publication.guest_port;
        let vsock: Arc<Path> = vsock.into();
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((client, peer)) => {
                    let vsock = Arc::clone(&vsock);
                    connections.spawn(async move {
                        if let Err(error) = carry(client, &vsock, port).await {
                            tracing::debug!(%peer, port, "connection ended: {error}");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(port, "cannot accept: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn carry(mut client: TcpStream, vsock: &Path, port: u32) -> io::Result<()> {
    client.set_nodelay(true)?;
    let connect = timeout(CONNECT_TIMEOUT, connect(vsock, port)).await;
    let mut enclave = connect.map_err(io::Error::from)??;
    pump(&mut client, &mut enclave, IDLE).await?;
    Ok(())
}

/// Asks the vsock device for a connection to a port of the guest.
///
/// # Errors
/// The stream's; `ConnectionRefused` when nobody listens on that port.
pub async fn connect(vsock: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut answer = Vec::new();
    loop {
        // One byte at a time: what follows the line is the application's.
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < MAX_ANSWER => answer.push(byte),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(_) => return Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
    if answer.starts_with(b"OK ") {
        return Ok(stream);
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn publication() -> Publication {
        Publication {
            enclave_id: "i-1-enc2".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            guest_port: 5000,
        }
    }

    /// Answers `CONNECT` as a vsock device does and returns what was asked.
    async fn device(listener: &UnixListener, answer: &[u8]) -> (UnixStream, String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = String::new();
        while !line.ends_with('\n') {
            line.push(char::from(stream.read_u8().await.unwrap()));
        }
        stream.write_all(answer).await.unwrap();
        (stream, line)
    }

    #[tokio::test]
    async fn a_client_reaches_the_guests_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let vsock = UnixListener::bind(&path).unwrap();
        let published = Published::bind(publication()).unwrap();
        let address = published.publication.listen;
        assert_ne!(address.port(), 0);
        let serving =
            tokio::spawn(published.serve(path, Arc::new(Semaphore::new(MAX_CONNECTIONS))));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut guest, line) = device(&vsock, b"OK 1025\nearly").await;
        assert_eq!(line, "CONNECT 5000\n");
        let mut request = String::new();
        guest.read_to_string(&mut request).await.unwrap();
        assert_eq!(request, "hello");
        guest.write_all(b" bird").await.unwrap();
        drop(guest);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "early bird");
        serving.abort();
    }

    #[tokio::test]
    async fn bad_answers_close_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let vsock = UnixListener::bind(&path).unwrap();
        for answer in [&b"NO\n"[..], &[b'x'; 64], b""] {
            let connecting = tokio::spawn({
                let path = path.clone();
                async move { connect(&path, 5000).await }
            });
            drop(device(&vsock, answer).await);
            assert!(connecting.await.unwrap().is_err());
        }
        assert!(connect(&dir.path().join("none"), 1).await.is_err());
    }

    #[tokio::test]
    async fn a_busy_port_is_refused() {
        let taken = Published::bind(publication()).unwrap();
        let again = Publication {
            listen: taken.publication.listen,
            ..publication()
        };
        let error = Published::bind(again).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
