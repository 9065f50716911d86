//! Waiting awake for a quick client's next request: at a socket, what KVM calls halt polling.
//!
//! To wake a thread that sleeps takes several times as long as to answer a request. A client that sends its next request as soon
//! as it has read an answer is served faster by a thread that stays awake for it. So a read that would sleep, after an answer was
//! written, first tries again for a short while:
//!
//! ```text
//! answer written ─▶ read: nothing ─▶ window open, and nobody else was answered meanwhile?
//!                                      yes ─▶ try, give the processor to whoever wants it, try … ─▶ bytes: read
//!                                      no ──▶ sleep, as ever                                    └▶ time over: sleep, as ever
//! ```
//!
//! The runtime is asked first, and has the task's waker before anything is tried: what arrives is told to it whether or not it was
//! read here already. So it may be told of bytes that are gone, which costs one read that finds nothing, and no wake-up
//! can be lost. Waits for a handshake, a body or the rest of a head do not follow an answer, and sleep.
//!
//! | bound | why |
//! |---|---|
//! | [`Window`], for each connection | nobody is awake for a client that comes late or seldom |
//! | one connection: none other was answered since its answer before | several keep threads awake without help |
//! | one thread of the process at a time, none where there is one processor | everybody else keeps a processor |
//! | after each attempt the processor is offered to other threads | they need not wait for the end of a time slice |
//! | hyper's sixteen requests, then other tasks have their turn | they wait for sixteen windows at most |

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::metrics::{Metrics, Seconds};

/// The first window of a connection whose client turned out to be quick: KVM's.
const FIRST: Duration = Duration::from_micros(10);

/// Most bytes that an attempt reads: what hyper asks for, until requests are larger.
const READ: usize = 8 * 1024;

/// How long a thread stays awake for a connection, learnt from how long its client let it wait.
///
/// A wait within the window leaves it as it is; a longer one that it could have covered doubles it; one that is longer than
/// the longest window closes it. So a client has to be quick several times before anybody is awake for it.
#[derive(Debug, Clone, Copy)]
struct Window {
    longest: Duration,
    open: Duration,
}

impl Window {
    fn new(longest: Duration) -> Self {
        Self {
            longest,
            open: Duration::ZERO,
        }
    }

    fn is_open(self) -> bool {
        !self.open.is_zero()
    }

    /// Learns from a wait that took so long.
    fn learn(&mut self, took: Duration) {
        if took > self.longest {
            self.open = Duration::ZERO;
        } else if took > self.open {
            self.open = (self.open * 2).max(FIRST).min(self.longest);
        }
    }
}

/// What the connections of a process share.
#[derive(Debug, Default)]
pub struct BusyPoll {
    longest: Duration,
    connections: AtomicU64,
    /// The connection that was answered last.
    answered: AtomicU64,
    is_taken: AtomicBool,
    met: Seconds,
    missed: Seconds,
}

impl BusyPoll {
    /// Stays awake for so long at most; never if that is zero, or where there is one processor.
    #[must_use]
    pub fn new(longest: Duration, metrics: &Metrics) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::on(processors, longest, metrics)
    }

    /// Never stays awake.
    #[must_use]
    pub fn off() -> Arc<Self> {
        Arc::default()
    }

    fn on(processors: usize, longest: Duration, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            longest: if processors > 1 {
                longest
            } else {
                Duration::ZERO
            },
            met: metrics.busy_poll("met"),
            missed: metrics.busy_poll("missed"),
            ..Self::default()
        })
    }

    /// A connection whose reads may stay awake.
    pub(crate) fn watch(self: &Arc<Self>, stream: TcpStream) -> Watched {
        Watched {
            stream,
            number: self.connections.fetch_add(1, Ordering::Relaxed) + 1,
            window: Window::new(self.longest),
            has_answered: false,
            waits_since: None,
            shared: Arc::clone(self),
        }
    }

    fn is_off(&self) -> bool {
        self.longest.is_zero()
    }

    /// Notes that a connection was answered; whether the one before was the same.
    fn answered_alone(&self, number: u64) -> bool {
        // Looked at first: a connection that is alone has nothing to write.
        self.answered.load(Ordering::Relaxed) == number
            || self.answered.swap(number, Ordering::Relaxed) == number
    }

    /// The one turn to stay awake, unless a thread has it.
    fn turn(&self) -> Option<Turn<'_>> {
        let taken = self.is_taken.swap(true, Ordering::Relaxed);
        (!taken).then_some(Turn(self))
    }
}

/// Held by the thread that stays awake.
struct Turn<'a>(&'a BusyPoll);

impl Turn<'_> {
    /// Reads, or finds that nothing comes in time.
    fn read(
        self,
        stream: &TcpStream,
        (since, until): (Instant, Instant),
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = buffer.remaining().min(READ);
        let room = buffer.initialize_unfilled_to(length);
        let read = try_until(until, || attempt(stream, room));
        let spent = match read {
            Poll::Ready(_) => &self.0.met,
            Poll::Pending => &self.0.missed,
        };
        spent.inc_by(since.elapsed().as_secs_f64());
        read.map_ok(|count| buffer.advance(count))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::Relaxed);
    }
}

/// Tries at least once, and until something is there or the time is over. Others may have the processor in between.
fn try_until<T>(until: Instant, mut attempt: impl FnMut() -> Poll<T>) -> Poll<T> {
    loop {
        let found = attempt();
        if found.is_ready() || Instant::now() >= until {
            return found;
        }
        std::thread::yield_now();
    }
}

/// Reads what is there now, if anything.
fn attempt(stream: &TcpStream, room: &mut [u8]) -> Poll<io::Result<usize>> {
    match rustix::net::recv(stream, room, RecvFlags::DONTWAIT) {
        Ok((_, count)) => Poll::Ready(Ok(count)),
        Err(Errno::AGAIN | Errno::INTR) => Poll::Pending,
        Err(error) => Poll::Ready(Err(error.into())),
    }
}

/// A connection that knows when it waits for its client's next request.
#[derive(Debug)]
pub(crate) struct Watched {
    stream: TcpStream,
    number: u64,
    window: Window,
    /// Something was written since the last read.
    has_answered: bool,
    /// When the wait for the next request began.
    waits_since: Option<Instant>,
    shared: Arc<BusyPoll>,
}

impl Watched {
    /// There is nothing to read. After an answer, that is where the wait for the next request begins.
    fn wait(&mut self, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Nothing is read into no room, which would look like the end.
        if !self.has_answered || self.shared.is_off() || buffer.remaining() == 0 {
            return Poll::Pending;
        }
        self.has_answered = false;
        let since = Instant::now();
        self.waits_since = Some(since);
        if !self.shared.answered_alone(self.number) || !self.window.is_open() {
            return Poll::Pending;
        }
        match self.shared.turn() {
            Some(turn) => turn.read(&self.stream, (since, since + self.window.open), buffer),
            None => Poll::Pending,
        }
    }

    /// Something was read, or never will be: the wait is over.
    fn has_read(&mut self) {
        self.has_answered = false;
        if let Some(since) = self.waits_since.take() {
            self.window.learn(since.elapsed());
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            read = self.wait(buffer);
        }
        if read.is_ready() {
            self.has_read();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[path = "busy_poll_tests.rs"]
mod tests;
