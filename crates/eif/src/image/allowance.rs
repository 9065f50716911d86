//! What the headers of an archive's entry may take.
//!
//! Names, links and pax records are read into memory before an entry is seen, by lengths that the archive gives: a few
//! kilobytes, packed, stand for gigabytes. So between two entries only so many bytes can be read.
//!
//! ```text
//! next() ─▶ header, long name, pax records, header      at most MAX_HEADERS, and what was left of the entry before
//! entry  ─▶ content                                     without limit here, into a file
//! ```

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use tar::{Entries, Entry, EntryType};

/// Most bytes of one entry's headers: names have 4,096 at most, and the parts of a sparse file 24 each.
const MAX_HEADERS: u64 = 1 << 20;

/// Bytes of an entry that are behind its content.
const PADDING: u64 = 511;

/// Bytes that may be read now, known to the reader below an archive and to whoever reads its entries.
#[derive(Debug, Clone)]
pub(crate) struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    /// For the headers of the first entry.
    pub(crate) fn new() -> Self {
        Self(Rc::new(Cell::new(MAX_HEADERS)))
    }

    /// A reader that keeps to it.
    pub(crate) fn metered<R>(&self, inner: R) -> Metered<R> {
        Metered {
            inner,
            allowance: self.clone(),
        }
    }

    /// The next entry, whose content may then be read.
    pub(crate) fn next<'a, R: Read>(
        &self,
        entries: &mut Entries<'a, R>,
    ) -> Option<io::Result<Entry<'a, R>>> {
        let entry = entries.next();
        self.0.set(u64::MAX);
        entry
    }

    /// Only headers from here on, and what nobody has read of this much content.
    pub(crate) fn headers(&self, content: u64) {
        let read = u64::MAX - self.0.get();
        let unread = content.saturating_sub(read).saturating_add(PADDING);
        self.0.set(MAX_HEADERS.saturating_add(unread));
    }
}

/// Length of an entry's content in the archive, as far as it may be skipped: a sparse file's is not told, but always read.
pub(crate) fn content<R: Read>(entry: &Entry<'_, R>) -> u64 {
    match entry.header().entry_type() {
        EntryType::GNUSparse => 0,
        _ => entry.size(),
    }
}

/// See [`Allowance::metered`].
pub(crate) struct Metered<R> {
    inner: R,
    allowance: Allowance,
}

impl<R> Metered<R> {
    /// The reader below.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Allowance(left) = &self.allowance;
        if left.get() == 0 && !buf.is_empty() {
            let message =
                format!("the name and attributes of one entry have more than {MAX_HEADERS} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let most = usize::try_from(left.get()).map_or(buf.len(), |left| left.min(buf.len()));
        let read = self.inner.read(&mut buf[..most])?;
        left.set(left.get() - u64::try_from(read).unwrap_or(u64::MAX).min(left.get()));
        Ok(read)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
