//! The two directions of vsock, behind traits so that tests run over unix sockets.
//!
//! A connected vsock stream is carried by tokio's [`UnixStream`]: see [`crate::sys::vsock`].

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use enclos_api::guest::PARENT_CID;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::sys;

/// How long a connection to the parent may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A future in a box, for traits that are used as objects.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Connects to the parent.
pub trait Dial: std::fmt::Debug + Send + Sync + 'static {
    /// A new stream to a vsock port of the parent.
    fn dial(&self, port: u32) -> Boxed<'_, io::Result<UnixStream>>;
}

/// Accepts connections to one vsock port of the enclave.
pub trait Accept: Send + 'static {
    /// The next stream, and the context id of its other end.
    fn accept(&mut self) -> Boxed<'_, io::Result<(UnixStream, u32)>>;
}

/// The parent over vsock.
#[derive(Debug, Clone, Copy, Default)]
pub struct VsockParent;

impl Dial for VsockParent {
    fn dial(&self, port: u32) -> Boxed<'_, io::Result<UnixStream>> {
        Box::pin(async move {
            let connect = move || sys::vsock::connect(PARENT_CID, port, CONNECT_TIMEOUT);
            let stream = tokio::task::spawn_blocking(connect)
                .await
                .map_err(io::Error::other)??;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        })
    }
}

/// A listening vsock port.
#[derive(Debug)]
pub struct VsockListener {
    socket: AsyncFd<OwnedFd>,
}

impl VsockListener {
    /// Listens on `port`.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(port: u32) -> io::Result<Self> {
        Ok(Self {
            socket: sys::vsock::listen_async(port)?,
        })
    }
}

impl Accept for VsockListener {
    fn accept(&mut self) -> Boxed<'_, io::Result<(UnixStream, u32)>> {
        Box::pin(async move {
            loop {
                let mut ready = self.socket.readable().await?;
                if let Ok(accepted) = ready.try_io(sys::vsock::accept) {
                    let (stream, cid) = accepted?;
                    return Ok((UnixStream::from_std(stream)?, cid));
                }
            }
        })
    }
}
