//! The serial port of a debug enclave: kept in a ring, copied to whoever follows.
//!
//! ```text
//!  engine ──socket──▶ reader thread ──▶ ring (last 256 KiB) ──▶ follower threads ──▶ clients
//! ```
//!
//! The reader never waits for a client, so a guest can neither be slowed down by one nor fill anything but the
//! ring. A client that does not keep up misses what the ring has dropped, and is told how much that was.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes kept: some four thousand lines, a whole verbose boot.
const RING: usize = 256 << 10;

/// Bytes copied to a client at a time.
const CHUNK: usize = 16 << 10;

/// Clients that may follow at once.
const MAX_FOLLOWERS: usize = 16;

/// Time for a client to take a chunk.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a silent console looks whether its client is still there.
const TICK: Duration = Duration::from_secs(2);

/// A console and its past.
#[derive(Debug, Clone, Default)]
pub struct Console(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ring: Mutex<Ring>,
    changed: Condvar,
    followers: AtomicUsize,
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    /// Offset in the whole stream of the first byte kept.
    start: u64,
    closed: bool,
}

/// What a follower gets next.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// Bytes that are gone.
    missed: u64,
    bytes: Vec<u8>,
    /// Offset of the next piece.
    next: u64,
}

impl Ring {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(RING);
        self.bytes.drain(..excess);
        self.start += count(excess);
    }

    fn end(&self) -> u64 {
        self.start + count(self.bytes.len())
    }

    fn piece(&self, from: u64) -> Piece {
        let at = from.max(self.start);
        let skip = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        let bytes: Vec<u8> = self.bytes.iter().skip(skip).take(CHUNK).copied().collect();
        Piece {
            missed: at - from,
            next: at + count(bytes.len()),
            bytes,
        }
    }
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `source` to its end in a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn read_from(&self, source: UnixStream) -> io::Result<()> {
        let console = self.clone();
        let thread = thread::Builder::new().name("console".into());
        thread.spawn(move || console.fill(source)).map(drop)
    }

    fn fill(&self, mut source: UnixStream) {
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.lock().push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            self.0.changed.notify_all();
        }
        self.close();
    }

    /// Ends the stream: followers get what is left, and then their end of file.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    /// Waits until the source has ended and every follower has all of it, but no longer than `limit`.
    pub fn finish(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let done = || self.lock().closed && self.0.followers.load(Ordering::SeqCst) == 0;
        while !done() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The last `lines` lines, control characters replaced.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let ring = self.lock();
        let from = ring.bytes.len().saturating_sub(CHUNK);
        let bytes: Vec<u8> = ring.bytes.iter().skip(from).copied().collect();
        last_lines(&bytes, lines)
    }

    /// Copies everything kept, and everything that comes, to `client`, in a thread of its own.
    ///
    /// # Errors
    /// When there are too many followers, or the thread cannot be started.
    pub fn follow(&self, client: UnixStream) -> io::Result<()> {
        let place = Place::take(self).ok_or_else(|| io::Error::other("too many followers"))?;
        client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let console = self.clone();
        let thread = thread::Builder::new().name("console-follower".into());
        let spawned = thread.spawn(move || {
            let _place = place;
            // A client that is gone is no one's problem.
            let _ = console.copy_to(client);
        });
        spawned.map(drop)
    }

    fn copy_to(&self, mut client: UnixStream) -> io::Result<()> {
        let mut from = self.lock().start;
        while let Some(piece) = self.next_piece(from, &client) {
            if piece.missed > 0 {
                writeln!(
                    client,
                    "\r\n[{} bytes of console were dropped]\r",
                    piece.missed
                )?;
            }
            client.write_all(&piece.bytes)?;
            from = piece.next;
        }
        Ok(())
    }

    /// Waits for bytes beyond `from`; nothing when the console is over, or the client gone.
    fn next_piece(&self, from: u64, client: &UnixStream) -> Option<Piece> {
        let mut ring = self.lock();
        loop {
            if ring.end() > from {
                return Some(ring.piece(from));
            }
            if ring.closed {
                return None;
            }
            let (next, waited) = self
                .0
                .changed
                .wait_timeout(ring, TICK)
                .unwrap_or_else(PoisonError::into_inner);
            ring = next;
            if waited.timed_out() && crate::wire::hung_up(client) {
                return None;
            }
        }
    }
}

/// One of the places for followers.
struct Place(Console);

impl Place {
    fn take(console: &Console) -> Option<Self> {
        let place = Self(console.clone());
        let taken = console.0.followers.fetch_add(1, Ordering::SeqCst);
        // Dropping the place gives it back.
        (taken < MAX_FOLLOWERS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.followers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The last `lines` lines of `bytes`, without anything that a terminal would obey.
#[must_use]
pub fn last_lines(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    let kept = all[from..]
        .iter()
        .map(|line| crate::log::printable(line.trim_end(), 200));
    kept.collect::<Vec<_>>().join("\n")
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_bytes_and_says_what_is_missing() {
        let mut ring = Ring::default();
        ring.push(&vec![b'a'; RING]);
        assert_eq!(ring.piece(0).missed, 0);
        ring.push(b"bc");
        let piece = ring.piece(0);
        assert_eq!((piece.missed, piece.bytes.len()), (2, CHUNK));
        let end = ring.piece(ring.end() - 2);
        assert_eq!(
            (end.missed, end.bytes.as_slice(), end.next),
            (0, b"bc".as_slice(), ring.end())
        );
        assert_eq!(ring.piece(ring.end()).bytes, b"");
    }

    #[test]
    fn a_follower_gets_past_and_future_and_the_end() {
        let console = Console::default();
        let (mut guest, ours) = UnixStream::pair().unwrap();
        console.read_from(ours).unwrap();
        guest.write_all(b"past ").unwrap();
        while console.lock().end() < 5 {
            thread::yield_now();
        }
        let (client, mut terminal) = UnixStream::pair().unwrap();
        console.follow(client).unwrap();
        guest.write_all(b"future").unwrap();
        drop(guest);
        let mut text = String::new();
        terminal
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        terminal.read_to_string(&mut text).unwrap();
        assert_eq!(text, "past future");
    }

    #[test]
    fn a_flood_is_taken_in_full_although_a_client_does_not_read() {
        let console = Console::default();
        let (mut guest, ours) = UnixStream::pair().unwrap();
        console.read_from(ours).unwrap();
        let (client, _stuck) = UnixStream::pair().unwrap();
        console.follow(client).unwrap();
        guest
            .set_write_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let start = Instant::now();
        for _ in 0..64 {
            guest.write_all(&[b'x'; 64 << 10]).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(console.lock().bytes.len() <= RING);
    }

    #[test]
    fn followers_are_limited_and_places_come_back() {
        let console = Console::default();
        let mut clients = Vec::new();
        for _ in 0..MAX_FOLLOWERS {
            let (client, terminal) = UnixStream::pair().unwrap();
            console.follow(client).unwrap();
            clients.push(terminal);
        }
        let (client, _terminal) = UnixStream::pair().unwrap();
        assert!(console.follow(client).is_err());
        console.close();
        let deadline = Instant::now() + Duration::from_secs(10);
        while console.0.followers.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < deadline, "followers end with the console");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_tail_is_harmless_to_a_terminal() {
        assert_eq!(last_lines(b"one\r\ntwo\x1b[2J\nthree", 2), "two [2J\nthree");
        assert_eq!(last_lines(b"", 3), "");
    }
}
