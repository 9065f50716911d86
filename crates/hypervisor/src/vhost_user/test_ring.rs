//! A driver's side of one virtqueue, for tests and fuzzing: writes descriptors wherever it is told to, true or not.

#![expect(
    clippy::unwrap_used,
    reason = "a driver for tests, whose own mistakes should end the run"
)]

use vhost_user_backend::{VringMutex, VringT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::Memory;

/// Entries per queue.
pub(crate) const QUEUE: u16 = 256;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
#[cfg(test)]
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory of `len` bytes from address 0.
pub(crate) fn memory(len: usize) -> Memory {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), len)]).unwrap();
    GuestMemoryAtomic::new(memory)
}

/// One descriptor as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// One that the device reads.
    pub(crate) fn readable(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            flags: 0,
            next: 0,
        }
    }

    /// One that the device writes.
    pub(crate) fn writable(addr: u64, len: u32) -> Self {
        Self {
            flags: WRITE,
            ..Self::readable(addr, len)
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A queue whose rings lie at `base` and take 48 KiB.
pub(crate) struct TestRing {
    memory: Memory,
    base: u64,
    /// Chains made available so far.
    pub(crate) published: u16,
    /// Used entries taken so far.
    seen: u16,
}

impl TestRing {
    pub(crate) fn new(memory: &Memory, base: u64) -> Self {
        Self {
            memory: memory.clone(),
            base,
            published: 0,
            seen: 0,
        }
    }

    fn avail(&self) -> u64 {
        self.base + 0x4000
    }

    fn used(&self) -> u64 {
        self.base + 0x8000
    }

    /// The device's view of the queue.
    pub(crate) fn vring(&self) -> VringMutex<Memory> {
        let vring = VringMutex::new(self.memory.clone(), 1024).unwrap();
        vring.set_queue_size(QUEUE);
        vring
            .set_queue_info(self.base, self.avail(), self.used())
            .unwrap();
        vring.set_queue_event_idx(true);
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        vring
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    fn read_u16(&self, at: u64) -> u16 {
        self.read(at, 2).try_into().map(u16::from_le_bytes).unwrap()
    }

    /// Writes a descriptor anywhere, as for an indirect table.
    pub(crate) fn write_descriptor(&self, at: u64, descriptor: Descriptor) {
        self.write(at, &descriptor.to_bytes());
    }

    /// Writes `descriptors` into the table from `first` on, linked, and makes the chain available.
    pub(crate) fn offer(&mut self, first: u16, descriptors: &[Descriptor]) {
        let count = u16::try_from(descriptors.len()).unwrap();
        for (i, mut descriptor) in (0..count).zip(descriptors.iter().copied()) {
            if i + 1 < count {
                descriptor.flags |= NEXT;
                descriptor.next = first + i + 1;
            }
            self.write_descriptor(self.base + u64::from(first + i) * 16, descriptor);
        }
        self.offer_head(first);
    }

    /// Makes whatever lies at `head` available.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.published % QUEUE);
        self.write(self.avail() + 4 + slot * 2, &head.to_le_bytes());
        self.published = self.published.wrapping_add(1);
        self.forge_index(self.published);
    }

    /// Sets the index of available chains to whatever the test likes.
    pub(crate) fn forge_index(&self, index: u16) {
        self.write(self.avail() + 2, &index.to_le_bytes());
    }

    /// How many chains the device has given back over all.
    pub(crate) fn returned(&self) -> u16 {
        self.read_u16(self.used() + 2)
    }

    /// The next chain the device has given back: its head, and how much was written.
    pub(crate) fn take(&mut self) -> Option<(u16, usize)> {
        if self.seen == self.returned() {
            return None;
        }
        let element = self.read(self.used() + 4 + u64::from(self.seen % QUEUE) * 8, 8);
        self.seen = self.seen.wrapping_add(1);
        let len = u32::from_le_bytes([element[4], element[5], element[6], element[7]]);
        Some((
            u16::from_le_bytes([element[0], element[1]]),
            usize::try_from(len).unwrap(),
        ))
    }
}
