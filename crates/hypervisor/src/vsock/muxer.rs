//! All streams of one guest: where packets go, who sends next, and the bounds on everything.
//!
//! ```text
//!  packet from the guest ──▶ receive() ──▶ Connection ──▶ host socket, or its backlog when that is full
//!  epoll, timer ──────────▶ host_events()
//!  room in the guest's ring ▶ next_packet() ◀── resets of unknown streams
//!                                           ◀── the ready list: control packets, then up to STAGE bytes
//! ```
//!
//! # Fairness
//!
//! Streams with something for the guest stand in one line. The first sends its control packets and then at
//! most [`STAGE`] bytes, and goes to the end of the line. Bytes are read from the host socket only when it is
//! that stream's turn and the guest has room, into the one staging buffer that all streams share, and leave
//! it in packets as large as the guest's buffers. So host bytes wait in the kernel's socket, where they
//! push back on their sender, and never here.
//!
//! # Bounds
//!
//! | what | bound |
//! |---|---|
//! | streams, either way | [`MAX_CONNECTIONS`] |
//! | guest bytes that a slow host reader leaves waiting | what the stream was granted: [`GRANT`], [`SMALL_GRANT`] beyond [`FULL_GRANTS`] streams; 88 MiB in all |
//! | resets for unknown streams | [`MAX_ORPHAN_RESETS`]; more are dropped, as the network would |
//! | host clients without a CONNECT line | [`MAX_GREETINGS`] |

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use super::{
    backend::{
        self, Dial, GREETING_TIMEOUT, Greeting, HostListener, HostStream, MAX_GREETINGS, Poller,
        Ready, Received, Services, Token,
    },
    connection::{Connection, Verdict},
    packet::{Header, Op, TYPE_STREAM},
    stream::{Entry, Ports, Stage},
};
use crate::log;

/// Streams at a time, of both directions together.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// Bytes a stream's guest side may have on the way: as much as Linux grants us.
const GRANT: u32 = 256 * 1024;

/// The same once many streams are open, so that all of them together stay bounded.
const SMALL_GRANT: u32 = 32 * 1024;

/// Streams that get the full [`GRANT`].
const FULL_GRANTS: usize = 256;

/// Resets for unknown streams that wait for room in the guest's ring.
const MAX_ORPHAN_RESETS: usize = 256;

/// Bytes a stream may send before it is another's turn.
const STAGE: usize = 64 * 1024;

/// Things an operator is told once each.
const MAX_COMPLAINTS: usize = 16;

/// How often a host socket whose backlog is full is tried again.
const DIAL_RETRY: Duration = Duration::from_millis(10);

/// How long no client is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The CIDs under which the guest reaches the host: the parent of a Nitro enclave, and virtio's own host.
const PARENT_CID: u64 = 3;
const HOST_CID: u64 = 2;

/// First port given to host clients; above what services listen on.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;

/// A host client that has not said yet where to.
struct Newcomer {
    stream: HostStream,
    deadline: Instant,
}

/// What a stream does with its turn.
enum Turn {
    Control(Header),
    Staged,
    Again,
    Nothing,
}

/// All streams of one guest.
pub(crate) struct Muxer {
    guest_cid: u64,
    poller: Poller,
    listener: HostListener,
    services: Services,
    entries: HashMap<Token, Entry>,
    tokens: HashMap<Ports, Token>,
    greetings: BTreeMap<Token, Newcomer>,
    ready: VecDeque<Token>,
    timers: BTreeSet<(Instant, Token)>,
    orphan_resets: VecDeque<Header>,
    stage: Stage,
    next_token: Token,
    next_port: u32,
    /// Whether the guest's driver is there to answer.
    guest_is_up: bool,
    events: Vec<Ready>,
    complaints: Complaints,
}

/// What an operator has been told already.
#[derive(Default)]
struct Complaints(BTreeSet<Subject>);

/// What there is to complain about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Violation,
    Accept,
    /// Nothing listens on this port.
    Refused(u32),
}

impl Complaints {
    /// Logs a line about a subject the first time it comes up, for a few subjects: a guest chooses how often
    /// that is, and must not fill the log.
    fn once(&mut self, subject: Subject, line: impl FnOnce() -> String) {
        if self.0.len() < MAX_COMPLAINTS && self.0.insert(subject) {
            log::warn(line());
        }
    }
}

impl Muxer {
    /// A muxer for the guest with this CID; the listener is watched from now on.
    pub(crate) fn new(
        guest_cid: u32,
        listener: HostListener,
        services: Services,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        listener.watch(&poller)?;
        let bytes = vec![0; STAGE].into_boxed_slice();
        Ok(Self {
            guest_cid: u64::from(guest_cid),
            poller,
            listener,
            services,
            entries: HashMap::new(),
            tokens: HashMap::new(),
            greetings: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            orphan_resets: VecDeque::new(),
            stage: Stage {
                owner: Token::LISTENER,
                bytes,
                start: 0,
                end: 0,
            },
            next_token: Token::FIRST_FREE,
            next_port: FIRST_EPHEMERAL_PORT,
            guest_is_up: false,
            events: Vec::new(),
            complaints: Complaints::default(),
        })
    }

    /// Whether the guest's driver can take and send packets. While it cannot, host clients are turned away.
    pub(crate) fn set_guest_up(&mut self, up: bool) {
        self.guest_is_up = up;
    }

    /// Forgets every stream, as after the guest's driver has been reset.
    pub(crate) fn reset(&mut self) {
        self.entries.clear();
        self.tokens.clear();
        self.greetings.clear();
        self.ready.clear();
        // A listener that pauses for want of descriptors still has to come back.
        self.timers.retain(|(_, token)| *token == Token::LISTENER);
        self.orphan_resets.clear();
        self.stage.clear();
        self.guest_is_up = false;
    }

    /// The descriptor that is readable when [`Muxer::host_events`] has something to do.
    pub(crate) fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.poller.as_raw_fd()
    }

    /// Has [`Muxer::host_events`] called again soon, by way of the descriptor.
    pub(crate) fn wake(&self) {
        self.poller.wake();
    }

    /// Sets the timer for the next thing that is due.
    pub(crate) fn arm(&mut self, now: Instant) {
        let next = self.timers.first().map(|(at, _)| *at);
        self.poller.arm(next, now);
    }

    // --- packets from the guest ---

    /// Takes a packet whose payload is `payload`.
    pub(crate) fn receive(&mut self, header: &Header, payload: &[u8], now: Instant) {
        if header.src_cid != self.guest_cid {
            return;
        }
        let known = matches!(header.dst_cid, PARENT_CID | HOST_CID) && header.kind == TYPE_STREAM;
        let Some(op) = Op::from_code(header.op).filter(|_| known) else {
            self.refuse_packet(header);
            return;
        };
        let ports = Ports {
            host_cid: header.dst_cid,
            host: header.dst_port,
            guest: header.src_port,
        };
        match (self.tokens.get(&ports).copied(), op) {
            (None, Op::Request) => self.open(ports, header, now),
            (None, Op::Reset) => {}
            (None, _) => self.reset_orphan(header),
            (Some(_), Op::Request) => self.refuse_packet(header),
            (Some(token), _) => self.packet(token, header, op, payload, now),
        }
    }

    /// Ends whatever stream a packet belongs to that cannot be what its header says, and tells the guest.
    pub(crate) fn refuse_packet(&mut self, header: &Header) {
        let ports = Ports {
            host_cid: header.dst_cid,
            host: header.dst_port,
            guest: header.src_port,
        };
        if header.src_cid != self.guest_cid {
            return;
        }
        match self.tokens.get(&ports).copied() {
            Some(token) => {
                if let Some(entry) = self.entries.get_mut(&token) {
                    entry.connection.refused();
                }
                self.touch(token);
            }
            None if header.op != Op::Reset.code() => self.reset_orphan(header),
            None => {}
        }
    }

    fn packet(&mut self, token: Token, header: &Header, op: Op, payload: &[u8], now: Instant) {
        let Some(entry) = self.entries.get_mut(&token) else {
            return;
        };
        match entry.connection.packet(header, op, now) {
            Ok(Verdict::Done | Verdict::Discard) => {}
            Ok(Verdict::Deliver) => entry.deliver(payload, &self.poller, now),
            Ok(Verdict::Established) => entry.welcome(now),
            Err(violation) => {
                let port = entry.ports.host;
                self.complaints.once(Subject::Violation, || {
                    format!("the enclave broke the vsock protocol on port {port}: {violation}")
                });
            }
        }
        self.touch(token);
    }

    fn open(&mut self, ports: Ports, request: &Header, now: Instant) {
        if self.entries.len() >= MAX_CONNECTIONS {
            self.reset_orphan(request);
            return;
        }
        let token = self.take_token();
        let granted = self.grant();
        let connection = Connection::from_guest(request, granted, now);
        self.entries
            .insert(token, Entry::new(ports, connection, None, granted));
        self.tokens.insert(ports, token);
        self.dial(token, now);
    }

    /// Tries to reach the host side of a stream the guest asked for.
    fn dial(&mut self, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(&token) else {
            return;
        };
        let port = entry.ports.host;
        let dialled = match self.services.dial(port) {
            Some(Ok(stream)) => Dial::Connected(stream),
            Some(Err(error)) => Dial::Refused(error),
            None => backend::dial(&self.listener.path_of_port(port)),
        };
        entry.retry = None;
        match dialled {
            Dial::Connected(socket) => match HostStream::new(socket, token, &self.poller) {
                Ok(stream) => {
                    entry.stream = Some(stream);
                    entry.connection.dialled();
                }
                Err(_) => entry.connection.refused(),
            },
            Dial::Busy => entry.retry = Some(now + DIAL_RETRY),
            Dial::Refused(error) => {
                entry.connection.refused();
                self.complaints.once(Subject::Refused(port), || {
                    format!("the enclave dialled port {port}, which is not there: {error}")
                });
            }
        }
        self.touch(token);
    }

    /// Answers a packet of a stream that does not exist.
    fn reset_orphan(&mut self, header: &Header) {
        if self.orphan_resets.len() >= MAX_ORPHAN_RESETS {
            return;
        }
        self.orphan_resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: Op::Reset.code(),
            ..Header::default()
        });
    }

    // --- packets to the guest ---

    /// Whether [`Muxer::next_packet`] may have something.
    pub(crate) fn has_output(&self) -> bool {
        !self.orphan_resets.is_empty() || !self.stage.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, with at most `room` bytes of payload.
    pub(crate) fn next_packet(&mut self, room: usize, now: Instant) -> Option<(Header, &[u8])> {
        if let Some(reset) = self.orphan_resets.pop_front() {
            return Some((reset, &[]));
        }
        while self.stage.is_empty() {
            let token = *self.ready.front()?;
            match self.turn(token, now) {
                Turn::Control(header) => return Some((header, &[])),
                Turn::Again => {}
                Turn::Staged => self.ready.rotate_left(1),
                Turn::Nothing => {
                    self.ready.pop_front();
                    if let Some(entry) = self.entries.get_mut(&token) {
                        entry.queued = false;
                    }
                    self.touch(token);
                }
            }
        }
        self.staged_packet(room)
    }

    fn staged_packet(&mut self, room: usize) -> Option<(Header, &[u8])> {
        let entry = self.entries.get_mut(&self.stage.owner)?;
        let bytes = self.stage.take(room);
        let mut header = entry.header(self.guest_cid, Op::Data, 0);
        header.len = u32::try_from(bytes.len()).ok()?;
        Some((header, bytes))
    }

    /// Lets the first stream in line do one thing.
    fn turn(&mut self, token: Token, now: Instant) -> Turn {
        let Some(entry) = self.entries.get_mut(&token) else {
            return Turn::Nothing;
        };
        if let Some(control) = entry.connection.next_control(now) {
            let (op, flags) = control.wire();
            let header = entry.header(self.guest_cid, op, flags);
            self.touch(token);
            return Turn::Control(header);
        }
        let room = usize::try_from(entry.connection.may_send())
            .unwrap_or(STAGE)
            .min(STAGE);
        let Some(stream) = entry
            .stream
            .as_mut()
            .filter(|stream| stream.readable && room > 0)
        else {
            return Turn::Nothing;
        };
        match stream.receive(&mut self.stage.bytes[..room]) {
            Received::Bytes(len) => {
                entry
                    .connection
                    .sending(u32::try_from(len).unwrap_or(u32::MAX));
                self.stage.fill(token, len);
                return Turn::Staged;
            }
            Received::Nothing => return Turn::Nothing,
            Received::End if stream.hung_up => entry.host_vanished(now),
            Received::End => entry.host_closed_sending(now),
            Received::Failed => entry.host_vanished(now),
        }
        self.touch(token);
        Turn::Again
    }

    // --- the host's side ---

    /// Handles what has happened to host sockets, and what the clock says.
    pub(crate) fn host_events(&mut self, now: Instant) {
        let mut events = std::mem::take(&mut self.events);
        self.poller.poll(&mut events);
        for event in &events {
            if event.token == Token::LISTENER {
                self.accept(now);
            } else if self.entries.contains_key(&event.token) {
                self.stream_event(event, now);
            } else if self.greetings.contains_key(&event.token) {
                self.greet(event.token, now);
            }
        }
        self.events = events;
        self.expire(now);
    }

    fn stream_event(&mut self, event: &Ready, now: Instant) {
        let Some(entry) = self.entries.get_mut(&event.token) else {
            return;
        };
        if let Some(stream) = &mut entry.stream {
            stream.readable |= event.readable;
            stream.hung_up |= event.hung_up;
        }
        if event.writable {
            entry.flush(&self.poller, now);
        }
        // While there may be bytes to read, reading their end says the same, and after them.
        if event.hung_up && !entry.connection.wants_host_data() {
            entry.host_stopped_receiving(now);
        }
        self.touch(event.token);
    }

    fn accept(&mut self, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok(Some(client)) => self.admit(client, now),
                Ok(None) => return,
                Err(error) => {
                    self.complaints.once(Subject::Accept, || {
                        format!("cannot accept a vsock client; trying again every 100 ms: {error}")
                    });
                    self.listener.pause(&self.poller);
                    self.timers.insert((now + ACCEPT_PAUSE, Token::LISTENER));
                    return;
                }
            }
        }
    }

    /// Takes a new client in, if the guest is there to be reached; else it is hung up on. Where too many have
    /// not said what they want, the one that has been silent longest makes room.
    fn admit(&mut self, client: UnixStream, now: Instant) {
        if !self.guest_is_up {
            return;
        }
        if self.greetings.len() >= MAX_GREETINGS
            && let Some((token, newcomer)) = self.greetings.pop_first()
        {
            self.timers.remove(&(newcomer.deadline, token));
        }
        let token = self.take_token();
        let Ok(stream) = HostStream::new(client, token, &self.poller) else {
            return;
        };
        let deadline = now + GREETING_TIMEOUT;
        self.timers.insert((deadline, token));
        self.greetings.insert(token, Newcomer { stream, deadline });
        self.greet(token, now);
    }

    fn greet(&mut self, token: Token, now: Instant) {
        let Some(newcomer) = self.greetings.get_mut(&token) else {
            return;
        };
        let greeting = newcomer.stream.greeting();
        if greeting == Greeting::Incomplete {
            return;
        }
        let Some(Newcomer { stream, deadline }) = self.greetings.remove(&token) else {
            return;
        };
        self.timers.remove(&(deadline, token));
        if let Greeting::Connect(port) = greeting {
            self.connect(token, stream, port, now);
        }
    }

    /// Asks the guest for a stream to `port` on behalf of a host client.
    fn connect(&mut self, token: Token, stream: HostStream, port: u32, now: Instant) {
        if self.entries.len() >= MAX_CONNECTIONS {
            return;
        }
        let ports = self.take_ports(port);
        let granted = self.grant();
        let connection = Connection::from_host(granted, now);
        self.entries
            .insert(token, Entry::new(ports, connection, Some(stream), granted));
        self.tokens.insert(ports, token);
        self.touch(token);
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, token)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, token));
            if token == Token::LISTENER {
                if self.listener.watch(&self.poller).is_err() {
                    self.timers.insert((now + ACCEPT_PAUSE, token));
                }
            } else if self.greetings.remove(&token).is_none() {
                self.expire_stream(token, now);
            }
        }
    }

    fn expire_stream(&mut self, token: Token, now: Instant) {
        let Some(entry) = self.entries.get_mut(&token) else {
            return;
        };
        entry.timer = None;
        let dial_again = entry.retry.is_some_and(|retry| retry <= now);
        if !entry.connection.expired(now) && dial_again {
            self.dial(token, now);
        } else {
            self.touch(token);
        }
    }

    // --- keeping the books ---

    /// Brings everything about a stream up to date after something has happened to it.
    fn touch(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else {
            return;
        };
        entry.act();
        if self.stage.owner == token && !entry.connection.wants_host_data() {
            self.stage.clear();
        }
        if entry.connection.is_over() {
            self.forget(token);
            return;
        }
        let due = entry
            .retry
            .into_iter()
            .chain(entry.connection.deadline())
            .min();
        if due != entry.timer {
            if let Some(old) = std::mem::replace(&mut entry.timer, due) {
                self.timers.remove(&(old, token));
            }
            self.timers.extend(due.map(|due| (due, token)));
        }
        if !entry.queued && entry.has_output() {
            entry.queued = true;
            self.ready.push_back(token);
        }
    }

    fn forget(&mut self, token: Token) {
        if let Some(entry) = self.entries.remove(&token) {
            self.tokens.remove(&entry.ports);
            if let Some(timer) = entry.timer {
                self.timers.remove(&(timer, token));
            }
            if entry.queued {
                self.ready.retain(|queued| *queued != token);
            }
        }
    }

    fn grant(&self) -> u32 {
        if self.entries.len() < FULL_GRANTS {
            GRANT
        } else {
            SMALL_GRANT
        }
    }

    fn take_token(&mut self) -> Token {
        let token = self.next_token;
        // 64 bits of connections outlast any guest.
        self.next_token = Token(token.0.wrapping_add(1));
        token
    }

    /// A free host port for a stream to the guest's `port`. There are more ports than streams.
    fn take_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
            let ports = Ports {
                host_cid: PARENT_CID,
                host,
                guest,
            };
            if !self.tokens.contains_key(&ports) {
                return ports;
            }
        }
    }
}
