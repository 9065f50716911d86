//! One stream between the guest and the host: handshake, credit, half-closes and timers, without any I/O.
//!
//! The owner (the muxer) tells the machine what happened, and does what it asks for:
//!
//! ```text
//!  packets from the guest ─▶ packet()                      next_control() ─▶ packets to the guest
//!  the host socket:          dialled() refused()           may_send()     ─▶ how much to read from it
//!                            delivered() host_closed()     take_*_close() ─▶ shut one of its halves
//!  the clock ─────────────▶ expired()                      deadline()     ─▶ when to look again
//! ```
//!
//! # Life
//!
//! ```text
//!  guest REQUEST ─▶ Dialling ──dialled(): RESPONSE──┐
//!                      │ refused(), 2 s: RST        ├──▶ Open ──both halves over: RST──▶ Ended
//!  host CONNECT ──▶ Requesting: REQUEST ──RESPONSE──┘      │
//!                      │ RST, 2 s                          └─ violation: RST, or RST received ─▶ Ended
//! ```
//!
//! An open stream has two directions that end separately. Guest → host ends when the guest has sent
//! SHUTDOWN(send) and every byte before it has been delivered; the host socket's writing half is shut then.
//! Host → guest ends when the host socket has reached its end, which the guest learns through SHUTDOWN(send) after the last
//! byte. When both have ended the stream is over, and a RST lets the guest forget it at once. When the
//! host peer has vanished altogether the guest is told SHUTDOWN(both) and has a moment to finish in its own
//! time. When the guest has finished but the host reads slowly, the rest is delivered for up to [`LINGER`].
//!
//! # Credit
//!
//! Each side may have no more bytes in flight than the other has granted. Counters are 32 bits and wrap. The guest
//! exceeding what it was granted, or acknowledging what was never sent, is a violation.

use std::time::{Duration, Instant};

use super::packet::{Halves, Header, Op};

/// How long either side has to answer a connection request: Linux' own connect timeout is 2 s.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the guest may keep a stream whose host peer is gone, before it is reset.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long bytes of a guest that has finished wait for a slow host reader.
pub(crate) const LINGER: Duration = Duration::from_secs(30);

/// A packet without payload that is due to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Request,
    Response,
    Reset,
    Shutdown(Halves),
    CreditUpdate,
    CreditRequest,
}

impl Control {
    /// Operation and flags on the wire.
    pub(crate) const fn wire(self) -> (Op, u32) {
        match self {
            Self::Request => (Op::Request, 0),
            Self::Response => (Op::Response, 0),
            Self::Reset => (Op::Reset, 0),
            Self::Shutdown(halves) => (Op::Shutdown, halves.flags()),
            Self::CreditUpdate => (Op::CreditUpdate, 0),
            Self::CreditRequest => (Op::CreditRequest, 0),
        }
    }
}

/// What the owner must do with a packet it has shown to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Done,
    /// The guest has accepted a connection of the host.
    Established,
    /// The payload goes to the host socket; call [`Connection::delivered`] as it does.
    Deliver,
    /// The payload has nowhere to go any more.
    Discard,
}

/// How the guest broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("operation {0:?} is out of place")]
    OutOfPlace(Op),
    #[error("data after the end of data was announced")]
    DataAfterShutdown,
    #[error("more data than was granted")]
    CreditExceeded,
    #[error("bytes acknowledged that were never sent")]
    ForgedAcknowledgement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest has asked; the host side is being reached.
    Dialling,
    /// The host has asked; the guest has not answered.
    Requesting,
    /// Bytes may flow.
    Open,
    /// Nothing more will happen, except that a reset may still be due.
    Ended,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    deadline: Option<Instant>,
    inbound: Inbound,
    outbound: Outbound,
    /// What the guest has announced in shutdown packets.
    guest_done: Halves,
    /// What the host socket is done with.
    host_done: Halves,
    /// What of `host_done` the guest has been told.
    told: Halves,
    /// Whether the guest has forgotten the stream: it must not be sent anything.
    forgotten: bool,
    pending: Pending,
}

/// Packets and actions that are due: at most one of each, so nothing can pile up.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    reset: bool,
    credit_update: bool,
    credit_request: bool,
    close_write: bool,
    close_read: bool,
}

/// Guest → host: what the guest sent, and what it may.
#[derive(Debug)]
struct Inbound {
    /// Bytes the guest may have in flight or waiting here.
    granted: u32,
    /// Bytes received so far.
    received: u32,
    /// Bytes delivered to the host so far.
    delivered: u32,
    /// `delivered` as the guest was last told.
    told: u32,
}

impl Inbound {
    const fn new(granted: u32) -> Self {
        Self {
            granted,
            received: 0,
            delivered: 0,
            told: 0,
        }
    }

    const fn waiting(&self) -> u32 {
        self.received.wrapping_sub(self.delivered)
    }

    /// How much the guest believes it may still send.
    const fn free_in_guests_view(&self) -> u32 {
        self.granted
            .saturating_sub(self.received.wrapping_sub(self.told))
    }

    /// Whether the guest should be told of progress: there is some, and it may run short.
    const fn update_is_due(&self) -> bool {
        self.delivered != self.told && self.free_in_guests_view() <= self.granted / 2
    }
}

/// Host → guest: what was sent, and what may be.
#[derive(Debug, Default)]
struct Outbound {
    /// Bytes the guest lets us have in flight.
    granted: u32,
    /// Bytes sent so far.
    sent: u32,
    /// Bytes the guest has acknowledged.
    acknowledged: u32,
    /// Whether the guest has been asked for credit since it last gave some.
    asked: bool,
}

impl Outbound {
    const fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.acknowledged)
    }

    const fn free(&self) -> u32 {
        self.granted.saturating_sub(self.in_flight())
    }

    /// Takes the credit fields of a packet.
    fn update(&mut self, header: &Header) -> Result<(), Violation> {
        let ahead = header.fwd_cnt.wrapping_sub(self.acknowledged);
        if ahead <= self.in_flight() {
            self.acknowledged = header.fwd_cnt;
        } else if ahead <= u32::MAX / 2 {
            return Err(Violation::ForgedAcknowledgement);
        }
        // Further "ahead" is behind: two threads of the guest can overtake each other between stamping a
        // packet and queueing it, so an old acknowledgement is no violation.
        self.granted = header.buf_alloc;
        if self.free() > 0 {
            self.asked = false;
        }
        Ok(())
    }
}

impl Connection {
    /// The guest has asked for a connection; the owner now reaches for the host side.
    pub(crate) fn from_guest(request: &Header, granted: u32, now: Instant) -> Self {
        let mut connection = Self::new(Phase::Dialling, granted, now);
        connection.outbound.granted = request.buf_alloc;
        connection
    }

    /// The host has asked for a connection: the guest is sent a request.
    pub(crate) fn from_host(granted: u32, now: Instant) -> Self {
        let mut connection = Self::new(Phase::Requesting, granted, now);
        connection.pending.request = true;
        connection
    }

    fn new(phase: Phase, granted: u32, now: Instant) -> Self {
        Self {
            phase,
            deadline: Some(now + CONNECT_TIMEOUT),
            inbound: Inbound::new(granted),
            outbound: Outbound::default(),
            guest_done: Halves::default(),
            host_done: Halves::default(),
            told: Halves::default(),
            forgotten: false,
            pending: Pending::default(),
        }
    }

    /// The host side has been reached.
    pub(crate) fn dialled(&mut self) {
        if self.phase == Phase::Dialling {
            self.phase = Phase::Open;
            self.deadline = None;
            self.pending.response = true;
        }
    }

    /// The stream cannot go on: the host side is not there, or failed.
    pub(crate) fn refused(&mut self) {
        self.end();
    }

    /// A packet of this stream has arrived. On a violation the stream has ended, and a reset is due.
    pub(crate) fn packet(
        &mut self,
        header: &Header,
        op: Op,
        now: Instant,
    ) -> Result<Verdict, Violation> {
        let verdict = self.judge(header, op, now);
        if verdict.is_err() {
            self.end();
        }
        verdict
    }

    fn judge(&mut self, header: &Header, op: Op, now: Instant) -> Result<Verdict, Violation> {
        if op == Op::Reset {
            self.reset_by_guest(now);
            return Ok(Verdict::Done);
        }
        if self.phase == Phase::Ended {
            return Ok(Verdict::Done);
        }
        self.outbound.update(header)?;
        match (self.phase, op) {
            (Phase::Open, Op::Data) => self.data(header.len, now),
            (Phase::Open, Op::Shutdown) => {
                self.guest_shuts(Halves::from_flags(header.flags), now);
                Ok(Verdict::Done)
            }
            (Phase::Open, Op::CreditRequest) => {
                self.pending.credit_update = true;
                Ok(Verdict::Done)
            }
            (Phase::Open, Op::CreditUpdate) => Ok(Verdict::Done),
            (Phase::Requesting, Op::Response) => {
                self.phase = Phase::Open;
                self.deadline = None;
                Ok(Verdict::Established)
            }
            _ => Err(Violation::OutOfPlace(op)),
        }
    }

    fn data(&mut self, len: u32, now: Instant) -> Result<Verdict, Violation> {
        if self.guest_done.send {
            return Err(Violation::DataAfterShutdown);
        }
        if len > self.inbound.granted - self.inbound.waiting() {
            return Err(Violation::CreditExceeded);
        }
        self.inbound.received = self.inbound.received.wrapping_add(len);
        if self.host_done.receive {
            self.delivered(len, now);
            return Ok(Verdict::Discard);
        }
        Ok(Verdict::Deliver)
    }

    fn guest_shuts(&mut self, halves: Halves, now: Instant) {
        let news = halves.receive && !self.guest_done.receive;
        self.guest_done = self.guest_done.or(halves);
        self.pending.close_read |= news && !self.host_done.send;
        self.guest_direction_may_have_ended(halves.send);
        self.settle(now);
    }

    fn reset_by_guest(&mut self, now: Instant) {
        self.forgotten = true;
        self.pending.reset = false;
        if self.phase != Phase::Open {
            self.end();
            return;
        }
        // Bytes that were sent before the reset are still delivered.
        self.guest_done = Halves::BOTH;
        self.settle(now);
    }

    /// `len` bytes of the guest have gone to the host, or have been thrown away because it is gone.
    pub(crate) fn delivered(&mut self, len: u32, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        self.inbound.delivered = self.inbound.delivered.wrapping_add(len);
        self.pending.credit_update |= self.inbound.update_is_due();
        self.guest_direction_may_have_ended(self.guest_done.send && len > 0);
        self.settle(now);
    }

    /// Shuts the host socket's writing half when the guest's last byte has been delivered.
    fn guest_direction_may_have_ended(&mut self, news: bool) {
        let ended = self.guest_done.send && self.inbound.waiting() == 0;
        self.pending.close_write |= news && ended && !self.host_done.receive;
    }

    /// The host socket is done: `send` when its end was read, `receive` when nothing can be written to it.
    /// Bytes that still waited to be written count as delivered from here on.
    pub(crate) fn host_closed(&mut self, halves: Halves, now: Instant) {
        self.host_done = self.host_done.or(halves);
        if self.phase == Phase::Requesting {
            // Nobody waits for the guest's answer any more; it need not hear of a request that was never sent.
            self.forgotten = self.pending.request;
            self.end();
        }
        if self.host_done.receive {
            self.delivered(self.inbound.waiting(), now);
        }
        self.settle(now);
    }

    /// Ends the stream if both directions are over, and starts or stops the timers of a stream that is ending.
    fn settle(&mut self, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        let to_host_over = self.guest_done.send && self.inbound.waiting() == 0;
        let to_guest_over = self.guest_done.receive || self.told.send;
        if to_host_over && to_guest_over {
            self.end();
        } else if self.guest_done.both() {
            self.deadline.get_or_insert(now + LINGER);
        } else if self.told.both() {
            self.deadline.get_or_insert(now + CLOSE_GRACE);
        }
    }

    fn end(&mut self) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.deadline = None;
            self.pending = Pending {
                reset: !self.forgotten,
                ..Pending::default()
            };
        }
    }

    /// Looks at the clock; true if the stream ended because of it.
    pub(crate) fn expired(&mut self, now: Instant) -> bool {
        let expired = self.deadline.is_some_and(|deadline| deadline <= now);
        if expired {
            self.end();
        }
        expired
    }

    /// When to call [`Connection::expired`].
    pub(crate) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether nothing is left to do: the owner forgets the stream.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Ended && !self.pending.reset
    }

    /// Whether bytes of the guest that wait are still worth delivering, and the host socket worth reading.
    pub(crate) fn is_alive(&self) -> bool {
        self.phase != Phase::Ended
    }

    /// How many bytes may be read from the host socket and sent to the guest now.
    pub(crate) fn may_send(&self) -> u32 {
        match self.wants_host_data() {
            true => self.outbound.free(),
            false => 0,
        }
    }

    /// Whether the host socket's bytes have a reader, credit aside.
    pub(crate) fn wants_host_data(&self) -> bool {
        self.phase == Phase::Open && !self.host_done.send && !self.guest_done.receive
    }

    /// There are bytes to send, and no credit: asks the guest for some, once.
    pub(crate) fn starved(&mut self) {
        if !self.outbound.asked && self.wants_host_data() {
            self.outbound.asked = true;
            self.pending.credit_request = true;
        }
    }

    /// `len` bytes were read from the host socket and will go to the guest.
    pub(crate) fn sending(&mut self, len: u32) {
        self.outbound.sent = self.outbound.sent.wrapping_add(len);
    }

    /// Whether [`Connection::next_control`] has something.
    pub(crate) fn has_control(&self) -> bool {
        let Pending {
            request,
            response,
            reset,
            credit_update,
            credit_request,
            ..
        } = self.pending;
        request || response || reset || credit_update || credit_request || self.shutdown_is_due()
    }

    fn shutdown_is_due(&self) -> bool {
        let news = self.told.or(self.host_done) != self.told;
        self.phase == Phase::Open && !self.pending.response && !self.forgotten && news
    }

    /// The next packet that is due. Bytes read from the host socket earlier must have been sent before this
    /// is called, since a shutdown may come out.
    pub(crate) fn next_control(&mut self, now: Instant) -> Option<Control> {
        let Pending {
            request,
            response,
            reset,
            credit_update,
            credit_request,
            ..
        } = &mut self.pending;
        let flags = [
            (reset, Control::Reset),
            (request, Control::Request),
            (response, Control::Response),
            (credit_update, Control::CreditUpdate),
            (credit_request, Control::CreditRequest),
        ];
        for (due, control) in flags {
            if std::mem::take(due) {
                return (!self.forgotten).then_some(control);
            }
        }
        if !self.shutdown_is_due() {
            return None;
        }
        self.told = self.host_done;
        self.settle(now);
        Some(Control::Shutdown(self.told))
    }

    /// The credit fields of any packet of this stream that is about to go out: granted, and delivered so far.
    pub(crate) fn credit(&mut self) -> (u32, u32) {
        self.inbound.told = self.inbound.delivered;
        self.pending.credit_update = false;
        (self.inbound.granted, self.inbound.delivered)
    }

    /// Whether the host socket's writing half is to be shut now.
    pub(crate) fn take_write_close(&mut self) -> bool {
        std::mem::take(&mut self.pending.close_write)
    }

    /// Whether the host socket's reading half is to be shut now.
    pub(crate) fn take_read_close(&mut self) -> bool {
        std::mem::take(&mut self.pending.close_read)
    }
}
