//! `/dev/nsm`: one ioctl that carries a CBOR request and takes a CBOR reply.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::check;

/// `_IOWR(0x0A, 0, struct nsm_raw)`, `linux/nsm.h`.
const NSM_IOCTL_RAW: libc::c_ulong = 0xC020_0A00;

/// Longest reply, from the driver.
const MAX_REPLY: usize = 0x3000;

/// `struct nsm_iovec`
#[repr(C)]
struct Buffer {
    address: u64,
    len: u64,
}

/// `struct nsm_raw`
#[repr(C)]
struct Raw {
    request: Buffer,
    reply: Buffer,
}

/// Sends one request to the NSM behind `device` and returns its reply.
///
/// # Errors
/// The driver's: `EMSGSIZE` for a request above 4,096 bytes, `ETIMEDOUT` for a device that is silent.
pub fn call(device: impl AsFd, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut reply = vec![0_u8; MAX_REPLY];
    let mut raw = Raw {
        request: Buffer {
            address: request.as_ptr().addr() as u64,
            len: request.len() as u64,
        },
        reply: Buffer {
            address: reply.as_mut_ptr().addr() as u64,
            len: reply.len() as u64,
        },
    };
    request.as_ptr().expose_provenance();
    reply.as_mut_ptr().expose_provenance();
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: both buffers live across the call and have the announced lengths; the driver reads the first
    // and writes at most `reply.len` bytes to the second.
    check(unsafe { libc::ioctl(fd, NSM_IOCTL_RAW, &raw mut raw) })?;
    let len = usize::try_from(raw.reply.len).unwrap_or(MAX_REPLY);
    reply.truncate(len);
    Ok(reply)
}
