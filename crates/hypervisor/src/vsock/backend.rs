//! The host side's system calls: sockets, epoll and one timer. No call in here blocks.
//!
//! Streams are watched edge-triggered: an event sets a flag, and the flag falls only when the kernel says that
//! nothing is left. So a stream nobody may read from at the moment costs nothing, and needs no re-arming.
//! Writability is watched only while bytes wait to be written.

use std::{
    fmt, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags},
};

use super::Service;
use crate::{log, vhost_user::StartError};

/// Host clients that have connected but not yet said where to. One more, and the oldest is hung up on.
pub(crate) const MAX_GREETINGS: usize = 64;

/// How long a host client has to send its CONNECT line.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest CONNECT line in bytes, line feed included; `CONNECT 4294967295\n` has 19.
const MAX_GREETING: usize = 32;

/// Connections to one [`Service`] at a time: each costs a thread.
const MAX_SERVICE_THREADS: usize = 8;

/// Events taken from the kernel per call.
const EVENT_BATCH: usize = 64;

/// Names what an event is about: the two below, or a number the muxer gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    /// The socket host clients connect to.
    pub(crate) const LISTENER: Self = Self(0);
    /// The timer, and the poller's own wake-ups.
    const INTERNAL: Self = Self(1);
    /// The first number that is free.
    pub(crate) const FIRST_FREE: Self = Self(2);
}

/// What happened to a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// Neither direction works any more; bytes received earlier can still be read.
    pub(crate) hung_up: bool,
}

/// The epoll of a device, nested in its worker's, with a timer and a way to wake itself.
pub(crate) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    wake: OwnedFd,
    armed: Option<Instant>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let internal = EventData::new_u64(Token::INTERNAL.0);
        epoll::add(&epoll, &timer, internal, EventFlags::IN | EventFlags::ET)?;
        epoll::add(&epoll, &wake, internal, EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            epoll,
            timer,
            wake,
            armed: None,
        })
    }

    /// Fires once more, right after the current round of work.
    pub(crate) fn wake(&self) {
        // Failure means that the counter is full, which is as good as a wake-up.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Sets the timer to the moment something is due, if anything is.
    pub(crate) fn arm(&mut self, at: Option<Instant>, now: Instant) {
        if self.armed == at {
            return;
        }
        self.armed = at;
        let wait = at.map_or(Duration::ZERO, |at| {
            // Zero would disarm the timer.
            at.saturating_duration_since(now)
                .max(Duration::from_nanos(1))
        });
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Timespec::try_from(wait).unwrap_or(zero);
        let spec = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        if let Err(error) =
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)
        {
            complain(&error, "set the vsock timer");
        }
    }

    /// What has happened since the last call, a batch at most; what is left keeps the descriptor ready.
    pub(crate) fn poll(&mut self, ready: &mut Vec<Ready>) {
        ready.clear();
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut buffer = [const { MaybeUninit::<Event>::uninit() }; EVENT_BATCH];
        let events = match epoll::wait(&self.epoll, &mut buffer[..], Some(&zero)) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return,
            Err(error) => {
                complain(&error, "wait for vsock events");
                return;
            }
        };
        for event in events {
            let token = Token(event.data.u64());
            let flags = event.flags;
            if token == Token::INTERNAL {
                self.armed = None;
                continue;
            }
            let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let readable = hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
            let writable = hung_up || flags.contains(EventFlags::OUT);
            ready.push(Ready {
                token,
                readable,
                writable,
                hung_up,
            });
        }
    }

    fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            flags,
        )?)
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// Reports a call that cannot fail, the first time one does.
fn complain(error: &Errno, what: &str) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| log::error(format_args!("cannot {what}: {error}")));
}

/// The socket host clients connect to; its file goes when it does.
pub(crate) struct HostListener {
    socket: UnixListener,
    path: PathBuf,
}

impl HostListener {
    pub(crate) fn bind(path: PathBuf) -> Result<Self, StartError> {
        let bound = UnixListener::bind(&path).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match bound {
            Ok(socket) => Ok(Self { socket, path }),
            Err(source) => Err(StartError::Listen { path, source }),
        }
    }

    /// Watches for clients, until [`HostListener::pause`].
    pub(crate) fn watch(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.socket, Token::LISTENER, EventFlags::IN)
    }

    /// Stops watching, so that a client that cannot be accepted does not keep the thread busy.
    pub(crate) fn pause(&self, poller: &Poller) {
        let _ = epoll::delete(&poller.epoll, &self.socket);
    }

    /// The next client, if one waits.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => Ok(Some(client.into())),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the guest's connections to `port` lead.
    pub(crate) fn path_of_port(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        // The file may be gone already, with its directory; there is nothing to do about any other failure.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What dialling a host socket came to.
#[derive(Debug)]
pub(crate) enum Dial {
    Connected(UnixStream),
    /// The listener's backlog is full: try again shortly.
    Busy,
    /// Nobody listens there, or not for us.
    Refused(io::Error),
}

/// Connects to a unix socket without waiting.
pub(crate) fn dial(path: &Path) -> Dial {
    let connect = || -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    match connect() {
        Ok(socket) => Dial::Connected(socket.into()),
        Err(Errno::AGAIN | Errno::INTR) => Dial::Busy,
        Err(error) => Dial::Refused(error.into()),
    }
}

/// The endpoints inside this process.
pub(crate) struct Services(Vec<Endpoint>);

struct Endpoint {
    port: u32,
    service: Service,
    running: Arc<AtomicUsize>,
}

/// Counts one running service thread for as long as it lives.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Services {
    pub(crate) fn new(services: Vec<(u32, Service)>) -> Self {
        let endpoint = |(port, service)| Endpoint {
            port,
            service,
            running: Arc::default(),
        };
        Self(services.into_iter().map(endpoint).collect())
    }

    /// Our end of a new stream to the service on `port`; `None` when the port has none.
    pub(crate) fn dial(&self, port: u32) -> Option<io::Result<UnixStream>> {
        let endpoint = self.0.iter().find(|endpoint| endpoint.port == port)?;
        Some(endpoint.dial())
    }
}

impl Endpoint {
    fn dial(&self) -> io::Result<UnixStream> {
        let running = Running(Arc::clone(&self.running));
        if self.running.fetch_add(1, Ordering::SeqCst) >= MAX_SERVICE_THREADS {
            return Err(io::Error::other(
                "the service has as many connections as it takes",
            ));
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let service = Arc::clone(&self.service);
        thread::Builder::new()
            .name(format!("vsock-{}", self.port))
            .spawn(move || {
                let _running = running;
                service(theirs);
            })?;
        Ok(ours)
    }
}

/// One host stream, watched by a [`Poller`].
pub(crate) struct HostStream {
    socket: UnixStream,
    token: Token,
    /// Whether bytes, or the end, may be there to read.
    pub(crate) readable: bool,
    /// Whether the peer is gone altogether, and only what it sent before can still be read.
    pub(crate) hung_up: bool,
    watches_writes: bool,
}

/// What reading came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Bytes(usize),
    End,
    Nothing,
    Failed,
}

/// What writing came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Bytes(usize),
    Full,
    Failed,
}

const READS: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

impl HostStream {
    /// Starts watching a non-blocking stream. It counts as readable until found otherwise.
    pub(crate) fn new(socket: UnixStream, token: Token, poller: &Poller) -> io::Result<Self> {
        poller.add(&socket, token, READS)?;
        Ok(Self {
            socket,
            token,
            readable: true,
            hung_up: false,
            watches_writes: false,
        })
    }

    /// Reads what is there, `buffer.len()` bytes at most.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Received {
        match rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                self.readable = false;
                Received::End
            }
            // Less than asked for does not mean empty: a message with descriptors attached ends a read early.
            Ok((len, _)) => Received::Bytes(len),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Received::Nothing
            }
            Err(Errno::INTR) => Received::Nothing,
            Err(_) => {
                self.readable = false;
                Received::Failed
            }
        }
    }

    /// Writes what fits. A vanished peer is an answer, not a signal.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Sent {
        match rustix::net::send(
            &self.socket,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(len) => Sent::Bytes(len),
            Err(Errno::AGAIN | Errno::INTR) => Sent::Full,
            Err(_) => Sent::Failed,
        }
    }

    /// Asks to be told when writing is possible, or not.
    pub(crate) fn watch_writes(&mut self, watch: bool, poller: &Poller) {
        if self.watches_writes == watch {
            return;
        }
        self.watches_writes = watch;
        let flags = if watch {
            READS.union(EventFlags::OUT)
        } else {
            READS
        };
        let data = EventData::new_u64(self.token.0);
        if let Err(error) = epoll::modify(&poller.epoll, &self.socket, data, flags) {
            complain(&error, "watch a host stream");
        }
    }

    /// Tells the peer that nothing more will be written.
    pub(crate) fn close_write(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    /// Tells the peer that nothing more will be read.
    pub(crate) fn close_read(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }

    /// Looks for the CONNECT line of a new client and takes exactly that; what follows it is stream.
    pub(crate) fn greeting(&mut self) -> Greeting {
        let mut buffer = [0; MAX_GREETING];
        let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let len = match rustix::net::recv(&self.socket, &mut buffer, peek) {
            Ok((0, _)) => return Greeting::Bad,
            Ok((len, _)) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Greeting::Incomplete,
            Err(_) => return Greeting::Bad,
        };
        let Some(end) = buffer[..len].iter().position(|byte| *byte == b'\n') else {
            return if len < MAX_GREETING {
                Greeting::Incomplete
            } else {
                Greeting::Bad
            };
        };
        let Some(port) = parse_greeting(&buffer[..end]) else {
            return Greeting::Bad;
        };
        match rustix::net::recv(&self.socket, &mut buffer[..=end], RecvFlags::DONTWAIT) {
            Ok((taken, _)) if taken == end + 1 => Greeting::Connect(port),
            _ => Greeting::Bad,
        }
    }
}

/// A new client's first words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greeting {
    Connect(u32),
    Incomplete,
    Bad,
}

/// The port in `CONNECT <port>`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line.strip_prefix(b"CONNECT ")?).ok()?;
    // `parse` alone would take a sign.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|endpoint| endpoint.port))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn greetings_are_digits_only() {
        assert_eq!(parse_greeting(b"CONNECT 5000"), Some(5000));
        assert_eq!(parse_greeting(b"CONNECT 4294967295"), Some(u32::MAX));
        let bad: [&[u8]; 9] = [
            b"CONNECT 4294967296",
            b"CONNECT +5",
            b"CONNECT -5",
            b"CONNECT ",
            b"CONNECT",
            b"connect 5",
            b"CONNECT 5 ",
            b"CONNECT 5\r",
            b"CONNECT \xff",
        ];
        for line in bad {
            assert_eq!(parse_greeting(line), None, "{line:?}");
        }
    }

    fn pair() -> (HostStream, UnixStream, Poller) {
        let poller = Poller::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            HostStream::new(ours, Token::FIRST_FREE, &poller).unwrap(),
            theirs,
            poller,
        )
    }

    #[test]
    fn a_greeting_takes_only_its_own_line() {
        let (mut ours, mut theirs, _poller) = pair();
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(ours.greeting(), Greeting::Incomplete);
        theirs.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(ours.greeting(), Greeting::Connect(7));
        let mut rest = [0; 16];
        assert_eq!(ours.receive(&mut rest), Received::Bytes(5));
        assert_eq!(&rest[..5], b"hello");
    }

    #[test]
    fn a_greeting_without_an_end_is_bad() {
        let (mut ours, mut theirs, _poller) = pair();
        theirs.write_all(&[b'C'; MAX_GREETING]).unwrap();
        assert_eq!(ours.greeting(), Greeting::Bad);
    }

    #[test]
    fn a_peer_that_leaves_silently_is_bad() {
        let (mut ours, theirs, _poller) = pair();
        drop(theirs);
        assert_eq!(ours.greeting(), Greeting::Bad);
    }

    #[test]
    fn dialling_nobody_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            dial(&directory.path().join("nobody")),
            Dial::Refused(_)
        ));
    }

    #[test]
    fn a_service_takes_eight_connections_and_more_once_one_ends() {
        let service: Service = Arc::new(|stream| {
            let _ = io::copy(&mut &stream, &mut io::sink());
        });
        let services = Services::new(vec![(9000, service)]);
        assert!(services.dial(9001).is_none());
        let mut streams: Vec<_> = (0..MAX_SERVICE_THREADS)
            .map(|_| services.dial(9000).unwrap().unwrap())
            .collect();
        assert!(services.dial(9000).unwrap().is_err());
        assert!(
            services.dial(9000).unwrap().is_err(),
            "a refusal must not be counted as running"
        );
        streams.pop();
        let end = Instant::now() + Duration::from_secs(5);
        while services.dial(9000).unwrap().is_err() {
            assert!(Instant::now() < end, "the place never became free");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
