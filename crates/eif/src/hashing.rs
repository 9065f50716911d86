//! Hashing beside reading and writing: each digest has a thread of its own, and all of them read the same buffers.
//!
//! ```text
//! read or produce ─▶ chunk ─┬─▶ written, CRC
//!                           ├─▶ PCR0, with PCR1 on the way
//!                           └─▶ PCR2
//! ```
//!
//! SHA-384 is most of the work of measuring and cannot be split, so everything else is kept off its threads. Chunks are
//! shared, not copied, and used again once every thread is through with them: the queues bound the memory, whatever the
//! length of what is hashed.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use aws_lc_rs::digest::{Algorithm, Context, Digest, SHA384};
use enclos_attest::PcrValue;

use crate::format::SectionKind;
use crate::measure::Measurements;

/// Bytes of a chunk: large enough that system calls and hand-over do not show, small enough for the caches.
pub(crate) const CHUNK: usize = 256 << 10;

/// Chunks that wait for a thread at most: enough that no thread waits while another one has to share its processor.
const QUEUE: usize = 16;

/// Bytes that several threads read.
pub(crate) type Chunk = Arc<Vec<u8>>;

/// Chunks to fill, again and again.
pub(crate) struct Chunks {
    /// One for each place in a queue, one that is being hashed and one that is being filled.
    shared: [Option<Chunk>; QUEUE + 2],
    next: usize,
}

impl Default for Chunks {
    fn default() -> Self {
        Self {
            shared: [const { None }; QUEUE + 2],
            next: 0,
        }
    }
}

impl Chunks {
    /// An empty buffer, an old one if nobody reads it any more.
    pub(crate) fn empty(&mut self) -> Vec<u8> {
        let old = self.shared[self.next]
            .take()
            .and_then(|chunk| Arc::try_unwrap(chunk).ok());
        let mut buffer = old.unwrap_or_else(|| Vec::with_capacity(CHUNK));
        buffer.clear();
        buffer
    }

    /// The filled buffer for all to read.
    pub(crate) fn share(&mut self, buffer: Vec<u8>) -> Chunk {
        let chunk = Arc::new(buffer);
        self.shared[self.next] = Some(Arc::clone(&chunk));
        self.next = (self.next + 1) % self.shared.len();
        chunk
    }
}

enum Order {
    Add(Chunk),
    Note,
}

/// What a thread hashed.
pub(crate) struct Hashed {
    /// Everything.
    pub(crate) all: Digest,
    /// Everything before [`HashThread::note`].
    pub(crate) noted: Option<Digest>,
}

/// A thread that hashes what it is given.
pub(crate) struct HashThread {
    orders: SyncSender<Order>,
    thread: JoinHandle<Hashed>,
}

impl HashThread {
    pub(crate) fn start(algorithm: &'static Algorithm) -> Self {
        let (orders, received) = sync_channel(QUEUE);
        let thread = thread::spawn(move || hash(algorithm, &received));
        Self { orders, thread }
    }

    pub(crate) fn add(&self, chunk: Chunk) -> io::Result<()> {
        self.order(Order::Add(chunk))
    }

    /// Keeps the digest of what was added so far.
    pub(crate) fn note(&self) -> io::Result<()> {
        self.order(Order::Note)
    }

    fn order(&self, order: Order) -> io::Result<()> {
        let ended = |_| io::Error::other("the hashing thread ended early");
        self.orders.send(order).map_err(ended)
    }

    pub(crate) fn finish(self) -> io::Result<Hashed> {
        drop(self.orders);
        let panicked = |_| io::Error::other("the hashing thread panicked");
        self.thread.join().map_err(panicked)
    }
}

fn hash(algorithm: &'static Algorithm, orders: &Receiver<Order>) -> Hashed {
    let mut context = Context::new(algorithm);
    let mut noted = None;
    for order in orders {
        match order {
            Order::Add(chunk) => context.update(&chunk),
            Order::Note => noted = Some(context.clone().finish()),
        }
    }
    Hashed {
        all: context.finish(),
        noted,
    }
}

/// PCR0, PCR1 and PCR2. PCR1's input is a prefix of PCR0's, so two threads do for three registers.
pub(crate) struct Registers {
    whole: HashThread,
    rest: HashThread,
    ramdisks: usize,
}

impl Registers {
    pub(crate) fn start() -> Self {
        Self {
            whole: HashThread::start(&SHA384),
            rest: HashThread::start(&SHA384),
            ramdisks: 0,
        }
    }

    /// Notes that a section begins.
    pub(crate) fn begin(&mut self, kind: SectionKind) -> io::Result<()> {
        if kind == SectionKind::Ramdisk {
            self.ramdisks += 1;
            if self.ramdisks == 2 {
                self.whole.note()?;
            }
        }
        Ok(())
    }

    /// Data of the section that began last.
    pub(crate) fn add(&self, kind: SectionKind, chunk: Chunk) -> io::Result<()> {
        if kind == SectionKind::Ramdisk && self.ramdisks > 1 {
            self.rest.add(Arc::clone(&chunk))?;
        }
        match kind {
            SectionKind::Kernel | SectionKind::Cmdline | SectionKind::Ramdisk => {
                self.whole.add(chunk)
            }
            SectionKind::Signature | SectionKind::Metadata => Ok(()),
        }
    }

    /// The registers, without PCR8.
    pub(crate) fn finish(self) -> io::Result<Measurements> {
        let whole = self.whole.finish()?;
        let rest = self.rest.finish()?;
        Ok(Measurements {
            pcr0: register(&whole.all),
            pcr1: register(whole.noted.as_ref().unwrap_or(&whole.all)),
            pcr2: register(&rest.all),
            pcr8: None,
        })
    }
}

/// A digest extended into zeros.
fn register(digest: &Digest) -> PcrValue {
    let mut bytes = [0; 48];
    bytes.copy_from_slice(digest.as_ref());
    PcrValue::measured(&bytes)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};

    use super::*;

    #[test]
    fn chunks_are_used_again_only_when_nobody_reads_them() {
        let mut chunks = Chunks::default();
        let mut held = Vec::new();
        for number in 0..50_u8 {
            let mut buffer = chunks.empty();
            assert!(buffer.is_empty());
            buffer.push(number);
            let chunk = chunks.share(buffer);
            if number % 3 == 0 {
                held.push((number, chunk));
            }
        }
        for (number, chunk) in held {
            assert_eq!(*chunk, [number]);
        }
    }

    #[test]
    fn a_thread_hashes_everything_in_order_and_notes_on_the_way() {
        let mut chunks = Chunks::default();
        let thread = HashThread::start(&SHA256);
        let mut all = Vec::new();
        for number in 0..200_u8 {
            let mut buffer = chunks.empty();
            buffer.resize(usize::from(number) * 7, number);
            all.extend_from_slice(&buffer);
            thread.add(chunks.share(buffer)).unwrap();
            if number == 99 {
                thread.note().unwrap();
            }
        }
        let hashed = thread.finish().unwrap();
        let half = (0..100).map(|number| number * 7).sum();
        assert_eq!(hashed.all.as_ref(), digest(&SHA256, &all).as_ref());
        let noted = hashed.noted.unwrap();
        assert_eq!(noted.as_ref(), digest(&SHA256, &all[..half]).as_ref());
    }
}
