//! Entry points for fuzzing: bytes in, and the devices must neither panic nor hang.
//!
//! Both run the devices as they are, on real rings in real guest memory, one step at a time on the caller's
//! thread. The bytes are a little program for the guest; whatever they are, it is a valid one.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use vhost_user_backend::VringMutex;
use vm_memory::GuestAddressSpace;

use crate::{
    nsm_device::Queue,
    vhost_user::{
        Memory,
        test_ring::{self, Descriptor, QUEUE, TestRing},
    },
    vsock::{Bench, Service},
};

const MEMORY: usize = 0x10_0000;
const GUEST_CID: u32 = 16;
const PORT: u32 = 8000;
/// Steps of one program: enough to fill every bound, and over in milliseconds.
const MAX_STEPS: usize = 512;

/// What is left of a program.
struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next `N` bytes, zeros once there are none.
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A descriptor that mostly lies in guest memory.
    fn descriptor(&mut self) -> Descriptor {
        let [kind, flags] = self.array();
        let addr = match kind % 8 {
            0 => u64::from_le_bytes(self.array()),
            _ => u64::from(self.u16()) << 4,
        };
        let len = match kind % 16 {
            8 => u32::from_le_bytes(self.array()),
            _ => u32::from(self.u16()),
        };
        Descriptor {
            addr,
            len,
            flags: u16::from(flags % 8),
            next: self.u16() % (QUEUE + 8),
        }
    }

    fn chain(&mut self) -> Vec<Descriptor> {
        (0..=self.byte() % 4).map(|_| self.descriptor()).collect()
    }
}

/// A guest that sends any packets and any chains, while host clients come, talk and go.
pub fn vsock_packets(program: &[u8]) {
    let Some(mut world) = World::new() else {
        return;
    };
    let mut program = Program(program);
    for _ in 0..MAX_STEPS {
        if program.0.is_empty() {
            break;
        }
        world.step(&mut program);
    }
}

/// A guest with its host, for [`vsock_packets`].
struct World {
    memory: Memory,
    rings: [TestRing; 2],
    vrings: Vec<VringMutex<Memory>>,
    bench: Bench,
    listener: UnixListener,
    streams: Vec<UnixStream>,
    directory: Directory,
}

/// A directory that goes with its world.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "enclos-fuzz-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Left-overs in the temporary directory are no finding.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl World {
    fn new() -> Option<Self> {
        let directory = Directory::new()?;
        let memory = test_ring::memory(MEMORY);
        let rings = [0x1_0000, 0x2_0000].map(|base| TestRing::new(&memory, base));
        let vrings = rings.iter().map(TestRing::vring).collect();
        let echo: Service = std::sync::Arc::new(|mut stream| {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte);
            }
        });
        let uds = directory.0.join("v");
        let listener = UnixListener::bind(directory.0.join(format!("v_{PORT}"))).ok()?;
        listener.set_nonblocking(true).ok()?;
        let bench = Bench::new(GUEST_CID, uds, vec![(9000, echo)])?;
        Some(Self {
            memory,
            rings,
            vrings,
            bench,
            listener,
            streams: Vec::new(),
            directory,
        })
    }

    fn step(&mut self, program: &mut Program<'_>) {
        match program.byte() % 32 {
            0..=15 => self.packet(program),
            16..=18 => {
                let (first, chain) = (program.u16() % (QUEUE - 4), program.chain());
                self.rings[1].offer(first, &chain);
            }
            19..=21 => {
                let index = program.u16() % (QUEUE - 4);
                let chain = program.chain();
                self.rings[0].offer(index, &chain);
            }
            22..=24 => self.post(program.byte()),
            25..=30 => self.host(program),
            _ => self.rings[usize::from(program.byte() % 2)].forge_index(program.u16()),
        }
        self.bench.run(&self.vrings, &self.memory.memory());
        while self.rings[0].take().is_some() {}
        while self.rings[1].take().is_some() {}
    }

    /// A packet whose header mostly gets past the first checks.
    fn packet(&mut self, program: &mut Program<'_>) {
        let mut header: [u8; 44] = program.array();
        let choice = program.byte();
        if choice & 1 == 0 {
            header[..8].copy_from_slice(&u64::from(GUEST_CID).to_le_bytes());
            header[8..16].copy_from_slice(&(2 + u64::from(choice >> 1 & 1)).to_le_bytes());
            header[16..20].copy_from_slice(&u32::from(choice >> 6).to_le_bytes());
            let to = if choice & 4 == 0 { PORT } else { 9000 };
            header[20..24].copy_from_slice(&to.to_le_bytes());
            header[28..30].copy_from_slice(&1_u16.to_le_bytes());
            header[30] %= 9;
            header[31] = 0;
            if choice & 8 == 0 {
                // Nothing acknowledged yet, and room for some more.
                header[38..].fill(0);
            }
        }
        let payload = program.byte();
        let at = 0x8_0000;
        self.rings[1].write(at, &header);
        let first = u32::from(program.byte() % 44);
        let rest = 44 - first + u32::from(payload) * 64;
        let chain = [
            Descriptor::readable(at, first),
            Descriptor::readable(at + u64::from(first), rest),
        ];
        self.rings[1].offer(u16::from(payload % 100) * 2, &chain);
    }

    /// Honest receive buffers.
    fn post(&mut self, count: u8) {
        for index in 0..u16::from(count % 32) {
            let addr = 0xa_0000 + u64::from(index) * 4096;
            self.rings[0].offer(index, &[Descriptor::writable(addr, 4096)]);
        }
    }

    fn host(&mut self, program: &mut Program<'_>) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.streams.push(stream);
        }
        let [action, which] = program.array();
        let which = usize::from(which) % self.streams.len().max(1);
        match action % 5 {
            0 => self.client(program),
            1 => {
                if let Some(mut stream) = self.streams.get(which) {
                    let _ = stream.set_nonblocking(true);
                    let _ = stream.write(&[action; 3000]);
                }
            }
            2 => {
                if let Some(mut stream) = self.streams.get(which) {
                    let _ = stream.set_nonblocking(true);
                    let _ = stream.read(&mut [0; 3000]);
                }
            }
            3 => {
                if let Some(stream) = self.streams.get(which) {
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                }
            }
            _ if which < self.streams.len() => drop(self.streams.swap_remove(which)),
            _ => {}
        }
    }

    fn client(&mut self, program: &mut Program<'_>) {
        let Ok(mut client) = UnixStream::connect(self.directory.0.join("v")) else {
            return;
        };
        let greeting = program.byte();
        let _ = match greeting % 4 {
            0 => client.write_all(program.bytes(usize::from(greeting))),
            port => client.write_all(format!("CONNECT {port}\n").as_bytes()),
        };
        self.streams.push(client);
    }
}

/// A guest that offers any chains to the NSM device.
pub fn nsm_queue(program: &[u8]) {
    let mut program = Program(program);
    let reply = vec![7; usize::from(program.u16() % 0x3001)];
    let mut queue = Queue::new(Box::new(move |_| reply.clone()));
    let memory = test_ring::memory(MEMORY);
    let mut ring = TestRing::new(&memory, 0x1_0000);
    let vring = ring.vring();
    for _ in 0..MAX_STEPS {
        if program.0.is_empty() {
            break;
        }
        match program.byte() % 32 {
            31 => ring.forge_index(program.u16()),
            30 => queue.reset(),
            29 => ring.offer_head(program.u16()),
            _ => {
                let (first, chain) = (program.u16() % (QUEUE - 4), program.chain());
                ring.offer(first, &chain);
            }
        }
        queue.run(&vring, &memory.memory());
        while ring.take().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_program_for_the_vsock_device_ends(program in prop::collection::vec(any::<u8>(), 0..4000)) {
            super::vsock_packets(&program);
        }

        #[test]
        fn any_program_for_the_nsm_device_ends(program in prop::collection::vec(any::<u8>(), 0..4000)) {
            super::nsm_queue(&program);
        }
    }
}
