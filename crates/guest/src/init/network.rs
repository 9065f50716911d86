//! The loopback interface, through rtnetlink: the only network an enclave has.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::InitError;

/// Index of `lo`: the first interface of every network namespace.
const LOOPBACK: u32 = 1;

// linux/rtnetlink.h, linux/netlink.h, linux/if.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RT_SCOPE_HOST: u8 = 254;
const AF_INET: u8 = 2;

/// Brings `lo` up and gives it the service addresses.
pub(super) fn set_up(addresses: &[Ipv4Addr]) -> Result<(), InitError> {
    let wrap = |source| InitError::Loopback { source };
    let flags = SocketFlags::CLOEXEC;
    // No protocol is protocol 0, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).map_err(wrap)?;
    request(&socket, &link_up()).map_err(wrap)?;
    for address in addresses {
        match request(&socket, &new_address(*address)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(wrap(source)),
        }
    }
    Ok(())
}

/// Sends one request and waits for its acknowledgement.
fn request(socket: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
    send(socket, message, SendFlags::empty())?;
    let mut reply = [0_u8; 4096];
    let (_, len) = recv(socket, &mut reply[..], RecvFlags::empty())?;
    acknowledged(reply.get(..len).unwrap_or_default())
}

/// Reads an `NLMSG_ERROR`: zero is success, a negative number the error.
fn acknowledged(reply: &[u8]) -> Result<(), Errno> {
    let kind = reply
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let code = reply
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw_os_error(code.saturating_neg())),
        _ => Err(Errno::PROTO),
    }
}

/// `struct nlmsghdr` and what follows it.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend([0; 8]); // sequence and port: the socket asks one thing at a time
    bytes.extend(body);
    bytes
}

/// `struct ifinfomsg`: set `IFF_UP`, change nothing else.
fn link_up() -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(LOOPBACK.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    message(RTM_NEWLINK, 0, &body)
}

/// `struct ifaddrmsg` with the address as `/32`.
fn new_address(address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 32, 0, RT_SCOPE_HOST];
    body.extend(LOOPBACK.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(8_u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    message(RTM_NEWADDR, NLM_F_CREATE, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        assert_eq!(link_up().len(), 32);
        let bytes = new_address(Ipv4Addr::new(169, 254, 169, 254));
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..4], 40_u32.to_ne_bytes());
        assert_eq!(bytes[16..20], [2, 32, 0, 254]);
        assert_eq!(bytes[28..32], [169, 254, 169, 254]);
    }

    #[test]
    fn replies_are_success_an_error_or_nonsense() {
        let reply = |kind: u16, code: i32| {
            let mut bytes = message(kind, 0, &code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        assert_eq!(acknowledged(&reply(NLMSG_ERROR, 0)), Ok(()));
        assert_eq!(acknowledged(&reply(NLMSG_ERROR, -17)), Err(Errno::EXIST));
        assert_eq!(acknowledged(&reply(RTM_NEWLINK, 0)), Err(Errno::PROTO));
        assert_eq!(acknowledged(&[]), Err(Errno::PROTO));
    }
}
