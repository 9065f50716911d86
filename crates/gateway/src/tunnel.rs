//! From an enclave to the KMS: bytes that are TLS to both ends and nothing here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::pump::pump;

/// How long the KMS may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing moves for this long is given up; agents keep theirs alive for less.
const IDLE: Duration = Duration::from_secs(15 * 60);

/// Carries one connection of an enclave to `kms`, until both directions have ended.
///
/// # Errors
/// A stream's; `TimedOut` when the KMS does not accept, or when nothing moved for [`IDLE`].
pub async fn carry(mut enclave: UnixStream, kms: SocketAddr) -> io::Result<()> {
    let connect = timeout(CONNECT_TIMEOUT, TcpStream::connect(kms)).await;
    let mut upstream = connect.map_err(io::Error::from)??;
    upstream.set_nodelay(true)?;
    pump(&mut enclave, &mut upstream, IDLE).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn any_bytes_cross_and_half_closes_are_kept() {
        let kms = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut enclave, inside) = UnixStream::pair().unwrap();
        let carried = tokio::spawn(carry(inside, kms.local_addr().unwrap()));
        enclave.write_all(&[0, 255, 22, 3, 1]).await.unwrap();
        enclave.shutdown().await.unwrap();
        let (mut served, _) = kms.accept().await.unwrap();
        let mut bytes = Vec::new();
        served.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, [0, 255, 22, 3, 1]);
        served.write_all(b"late answer").await.unwrap();
        drop(served);
        let mut answer = String::new();
        enclave.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "late answer");
        carried.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_kms_that_is_not_there_closes_the_stream() {
        let kms = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = kms.local_addr().unwrap();
        drop(kms);
        let (mut enclave, inside) = UnixStream::pair().unwrap();
        let error = carry(inside, address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(enclave.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
