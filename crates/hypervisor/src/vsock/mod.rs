//! The enclave's only way in and out: a virtio-vsock device whose host side is unix sockets.
//!
//! | direction | who dials | where it arrives |
//! |---|---|---|
//! | guest → host | `connect` to CID 3 (or 2), port *p* | unix socket `<uds>_<p>`; or a [`Service`] of this process, for the ports that have one |
//! | host → guest | unix socket `<uds>`, line `CONNECT <p>\n`, answered `OK <host port>\n` | the guest's listener on port *p*, which sees a peer with CID 3 |
//!
//! The module is built in layers, the pure ones first:
//!
//! ```text
//!  packet      44-byte header, parsed and written                                   pure
//!  connection  one stream's life: handshake, credit, half-closes, timers            pure
//!  stream      a connection with its host socket and the bytes between them        owns host sockets
//!  muxer       all streams: who sends next, resets, the bounds on everything        owns the streams
//!  backend     host sockets: listener, CONNECT lines, dialling, epoll, timer        system calls
//!  device      queues and guest memory on one side, the muxer on the other          vhost-user
//! ```
//!
//! Everything happens on one thread per device: packets, host sockets and timers, woken by one epoll. No call
//! it makes can block.
//!
//! # What a hostile guest can and cannot do
//!
//! It can waste the time of its own device thread, and have its own connections reset. It cannot make the
//! process allocate more than these bounds, all of them constants next to the code they guard:
//! connections, bytes buffered per connection and in all, unanswered resets, service threads, buffers
//! per descriptor chain. A packet that breaks the protocol costs its connection a reset, or is dropped when it
//! belongs to none.

mod backend;
mod connection;
mod device;
mod muxer;
mod packet;
mod stream;
#[cfg(test)]
mod tests;

use std::{os::unix::net::UnixStream, path::PathBuf, sync::Arc};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use device::Bench;
pub use device::Device;

use crate::vhost_user::FrontendSocket;

/// An endpoint inside this process for one port that guests dial.
///
/// It is handed one end of a stream per connection, on a thread of its own, and may block. No more than
/// eight run at a time for one port; a guest that dials more often is reset.
pub type Service = Arc<dyn Fn(UnixStream) + Send + Sync>;

/// What a vsock device is made of.
pub struct VsockSpec {
    /// The guest's context id, 4 or more.
    pub guest_cid: u32,
    /// Where host clients connect; also the prefix of the sockets the guest reaches.
    pub uds_path: PathBuf,
    /// Where QEMU connects.
    pub frontend: FrontendSocket,
    /// Ports answered inside this process.
    pub services: Vec<(u32, Service)>,
}

impl std::fmt::Debug for VsockSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ports: Vec<u32> = self.services.iter().map(|(port, _)| *port).collect();
        f.debug_struct("VsockSpec")
            .field("guest_cid", &self.guest_cid)
            .field("uds_path", &self.uds_path)
            .field("services", &ports)
            .finish_non_exhaustive()
    }
}
