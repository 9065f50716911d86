//! A stream as the muxer holds it: the connection machine, the host socket, and the bytes between them.

use std::{collections::VecDeque, time::Instant};

use super::{
    backend::{HostStream, Poller, Sent, Token},
    connection::Connection,
    packet::{Halves, Header, Op, TYPE_STREAM},
};

/// A stream as its packets name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host_cid: u64,
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// One stream with its host side.
pub(super) struct Entry {
    pub(super) ports: Ports,
    pub(super) connection: Connection,
    pub(super) stream: Option<HostStream>,
    /// Guest bytes that the host socket had no room for.
    pub(super) backlog: VecDeque<u8>,
    pub(super) granted: u32,
    /// Whether the stream stands in the ready line.
    pub(super) queued: bool,
    /// When to dial again, while dialling.
    pub(super) retry: Option<Instant>,
    /// The moment under which the stream is in the list of timers.
    pub(super) timer: Option<Instant>,
}

/// Bytes read from a host socket that are on their way into the guest's ring.
pub(super) struct Stage {
    pub(super) owner: Token,
    pub(super) bytes: Box<[u8]>,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Entry {
    pub(super) fn new(
        ports: Ports,
        connection: Connection,
        stream: Option<HostStream>,
        granted: u32,
    ) -> Self {
        Self {
            ports,
            connection,
            stream,
            backlog: VecDeque::new(),
            granted,
            queued: false,
            retry: None,
            timer: None,
        }
    }

    /// Whether there is a packet to send, or a host socket to read. Asks for credit if only that is missing.
    pub(super) fn has_output(&mut self) -> bool {
        let readable = self.stream.as_ref().is_some_and(|stream| stream.readable);
        if readable && self.connection.may_send() == 0 {
            self.connection.starved();
        }
        self.connection.has_control() || (readable && self.connection.may_send() > 0)
    }

    /// The header of a packet to the guest without payload.
    pub(super) fn header(&mut self, guest_cid: u64, op: Op, flags: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.connection.credit();
        Header {
            src_cid: self.ports.host_cid,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: 0,
            kind: TYPE_STREAM,
            op: op.code(),
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Writes guest bytes to the host, or keeps what does not fit. Credit bounds how much that can be.
    pub(super) fn deliver(&mut self, mut payload: &[u8], poller: &Poller, now: Instant) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        if self.backlog.is_empty() {
            match stream.send(payload) {
                Sent::Bytes(len) => {
                    self.connection
                        .delivered(u32::try_from(len).unwrap_or(u32::MAX), now);
                    payload = &payload[len..];
                }
                Sent::Full => {}
                Sent::Failed => {
                    self.host_stopped_receiving(now);
                    return;
                }
            }
        }
        if payload.is_empty() {
            return;
        }
        if self.backlog.capacity() == 0 {
            self.backlog
                .reserve_exact(usize::try_from(self.granted).unwrap_or_default());
        }
        self.backlog.extend(payload);
        if let Some(stream) = &mut self.stream {
            stream.watch_writes(true, poller);
        }
    }

    /// Writes what has waited, as far as it fits.
    pub(super) fn flush(&mut self, poller: &Poller, now: Instant) {
        while !self.backlog.is_empty() {
            let Some(stream) = &mut self.stream else {
                return;
            };
            match stream.send(self.backlog.as_slices().0) {
                Sent::Bytes(len) => {
                    self.backlog.drain(..len);
                    self.connection
                        .delivered(u32::try_from(len).unwrap_or(u32::MAX), now);
                }
                Sent::Full => return,
                Sent::Failed => self.host_stopped_receiving(now),
            }
        }
        if let Some(stream) = &mut self.stream {
            stream.watch_writes(false, poller);
        }
    }

    /// Tells a host client that the guest has accepted its connection.
    pub(super) fn welcome(&mut self, now: Instant) {
        let line = format!("OK {}\n", self.ports.host);
        let Some(stream) = &mut self.stream else {
            return;
        };
        // The socket is new, so the line fits, unless the client has gone.
        if stream.send(line.as_bytes()) != Sent::Bytes(line.len()) {
            self.host_vanished(now);
        }
    }

    pub(super) fn host_closed_sending(&mut self, now: Instant) {
        let halves = Halves {
            send: true,
            receive: false,
        };
        self.connection.host_closed(halves, now);
    }

    pub(super) fn host_stopped_receiving(&mut self, now: Instant) {
        self.backlog.clear();
        let halves = Halves {
            send: false,
            receive: true,
        };
        self.connection.host_closed(halves, now);
    }

    pub(super) fn host_vanished(&mut self, now: Instant) {
        self.backlog.clear();
        self.connection.host_closed(Halves::BOTH, now);
    }

    /// Does what the connection asks of the host socket.
    pub(super) fn act(&mut self) {
        if !self.connection.is_alive() {
            self.stream = None;
            self.backlog = VecDeque::new();
            self.retry = None;
        }
        let Some(stream) = &self.stream else { return };
        if self.connection.take_write_close() {
            stream.close_write();
        }
        if self.connection.take_read_close() {
            stream.close_read();
        }
    }
}

impl Stage {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    pub(super) fn fill(&mut self, owner: Token, len: usize) {
        self.owner = owner;
        (self.start, self.end) = (0, len);
    }

    /// The next bytes, `room` at most.
    pub(super) fn take(&mut self, room: usize) -> &[u8] {
        let start = self.start;
        self.start += room.min(self.end - start);
        &self.bytes[start..self.start]
    }
}
