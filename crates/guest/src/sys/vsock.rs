//! vsock sockets. A connected one is handed out as a [`UnixStream`]: after `connect` a stream socket is a
//! stream socket, and everything that reads and writes one works with it, in tests over unix sockets too.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::{check, timeval};

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT` with the old `timeval`, `linux/vm_sockets.h`.
const CONNECT_TIMEOUT: libc::c_int = 6;

/// Connections that wait to be accepted; more are refused, and the peer may come again.
const BACKLOG: libc::c_int = 128;

/// `AF_VSOCK` and lengths, in the types that the calls take.
#[expect(
    clippy::cast_possible_truncation,
    reason = "small constants: 40, 16 and 16"
)]
mod constants {
    use std::mem::size_of;

    pub(super) const FAMILY: libc::sa_family_t = libc::AF_VSOCK as libc::sa_family_t;
    pub(super) const ADDRESS_LEN: libc::socklen_t =
        size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    pub(super) const TIMEVAL_LEN: libc::socklen_t = size_of::<libc::timeval>() as libc::socklen_t;
}
use constants::{ADDRESS_LEN, FAMILY, TIMEVAL_LEN};

fn socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    let fd = check(unsafe {
        libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags,
            0,
        )
    })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain data for which zero is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = FAMILY;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Connects to a port of another context; blocks for at most `timeout`.
///
/// # Errors
/// The system calls'; `ConnectionReset` when nobody listens there.
pub fn connect(cid: u32, port: u32, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket(0)?;
    let limit = timeval(timeout);
    // SAFETY: the option's value is a timeval of the stated length.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const limit).cast(),
            TIMEVAL_LEN,
        )
    })?;
    let address = address(cid, port);
    // SAFETY: the address is a sockaddr_vm of the stated length.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    Ok(UnixStream::from(socket))
}

/// Listens on a port of this context, without blocking.
///
/// # Errors
/// The system calls'.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is a sockaddr_vm of the stated length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) })?;
    // SAFETY: listen takes no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// [`listen`], registered with the tokio runtime that runs this.
///
/// # Errors
/// The system calls'.
pub fn listen_async(port: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let socket = listen(port)?;
    // SAFETY: the descriptor is owned by `socket`, which the result owns; it is always the same one.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// Accepts one connection and says which context it is from.
///
/// # Errors
/// The system call's; `WouldBlock` when there is none.
pub fn accept(listener: impl AsFd) -> io::Result<(UnixStream, u32)> {
    let mut peer = address(0, 0);
    let mut len = ADDRESS_LEN;
    // SAFETY: `peer` has room for the `len` bytes that are announced.
    let fd = check(unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut peer).cast(),
            &raw mut len,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    let stream = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((UnixStream::from(stream), peer.svm_cid))
}
