//! A guest's vsock driver in memory: real rings in real guest memory, driven one step at a time.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use vhost_user_backend::{VringMutex, VringT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::{
    vhost_user::Memory,
    vsock::{
        Service,
        backend::{HostListener, Services},
        device::Engine,
        muxer::Muxer,
        packet::{HEADER_LEN, Header, Op, TYPE_STREAM},
    },
};

pub(super) const GUEST_CID: u32 = 16;
/// What the guest grants per stream.
pub(super) const GUEST_GRANT: u32 = 256 * 1024;
/// Entries per queue.
const QUEUE: u16 = 256;
/// Size of one receive buffer, header included; Linux' are about this large.
const RX_BUFFER: u64 = 3776;
/// Descriptors reserved for one chain to the device.
const TX_CHAIN: u16 = 8;
/// Chains to the device that may be in flight.
const TX_SLOTS: u16 = QUEUE / TX_CHAIN;
const TX_SLOT_BYTES: u64 = 128 * 1024;

const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x2_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x40_0000;
pub(super) const MEMORY: usize = 0x100_0000;

pub(super) const WRITE: u16 = 2;
pub(super) const NEXT: u16 = 1;
pub(super) const INDIRECT: u16 = 4;

/// Where the parts of a queue lie.
#[derive(Clone, Copy)]
struct Layout(u64);

impl Layout {
    fn descriptor(self, index: u16) -> GuestAddress {
        GuestAddress(self.0 + u64::from(index) * 16)
    }
    fn avail(self) -> u64 {
        self.0 + 0x4000
    }
    fn used(self) -> u64 {
        self.0 + 0x8000
    }
}

/// One descriptor as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

pub(super) struct Driver {
    pub(super) engine: Engine,
    pub(super) memory: Memory,
    vrings: Vec<VringMutex<Memory>>,
    directory: TempDir,
    tx_avail: u16,
    rx_avail: u16,
    rx_used: u16,
    /// Receive buffers the driver holds back.
    withheld: VecDeque<u16>,
    /// Packets received and not yet looked at.
    pub(super) inbox: VecDeque<(Header, Vec<u8>)>,
}

impl Driver {
    pub(super) fn new() -> Self {
        Self::with_services(Vec::new())
    }

    pub(super) fn with_services(services: Vec<(u32, Service)>) -> Self {
        let mut driver = Self::without_buffers(services);
        driver.post_all();
        driver.pump();
        driver
    }

    /// A driver that has offered no receive buffers yet.
    pub(super) fn without_buffers(services: Vec<(u32, Service)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let memory: Memory = GuestMemoryAtomic::new(memory);
        let listener = HostListener::bind(directory.path().join("v.sock")).unwrap();
        let muxer = Muxer::new(GUEST_CID, listener, Services::new(services)).unwrap();
        let vrings = vec![vring(&memory, RX_RING), vring(&memory, TX_RING)];
        Self {
            engine: Engine::new(muxer),
            memory,
            vrings,
            directory,
            tx_avail: 0,
            rx_avail: 0,
            rx_used: 0,
            withheld: (0..QUEUE).collect(),
            inbox: VecDeque::new(),
        }
    }

    // --- the host's side ---

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    pub(super) fn path_of_port(&self, port: u32) -> PathBuf {
        self.directory.path().join(format!("v.sock_{port}"))
    }

    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path_of_port(port)).unwrap()
    }

    /// A host client that has said which port it wants.
    pub(super) fn client(&self, greeting: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client.write_all(greeting).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        client
    }

    // --- rings ---

    fn write_u16(&self, at: u64, value: u16) {
        self.memory
            .memory()
            .write_slice(&value.to_le_bytes(), GuestAddress(at))
            .unwrap();
    }

    fn read_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        u16::from_le_bytes(bytes)
    }

    fn write_descriptor(&self, layout: Layout, index: u16, descriptor: Descriptor) {
        self.write_raw(layout.descriptor(index).0, descriptor);
    }

    /// Writes a descriptor anywhere, as for an indirect table.
    pub(super) fn write_raw(&self, at: u64, descriptor: Descriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory
            .memory()
            .write_slice(&bytes, GuestAddress(at))
            .unwrap();
    }

    fn publish(&self, layout: Layout, avail: u16, head: u16) {
        let slot = u64::from(avail % QUEUE);
        self.write_u16(layout.avail() + 4 + slot * 2, head);
        self.write_u16(layout.avail() + 2, avail.wrapping_add(1));
    }

    /// Sets the index of available transmit chains to whatever the test likes.
    pub(super) fn forge_transmit_index(&self, index: u16) {
        self.write_u16(Layout(TX_RING).avail() + 2, index);
    }

    /// How many transmit chains the device has taken over all.
    pub(super) fn transmitted(&self) -> u16 {
        self.read_u16(Layout(TX_RING).used() + 2)
    }

    pub(super) fn transmit_index(&self) -> u16 {
        self.tx_avail
    }

    /// Makes one more receive buffer available; false when all are.
    pub(super) fn post(&mut self) -> bool {
        let Some(index) = self.withheld.pop_front() else {
            return false;
        };
        let addr = RX_BUFFERS + u64::from(index) * 4096;
        let len = u32::try_from(RX_BUFFER).unwrap();
        let descriptor = Descriptor {
            addr,
            len,
            flags: WRITE,
            next: 0,
        };
        self.write_descriptor(Layout(RX_RING), index, descriptor);
        self.publish(Layout(RX_RING), self.rx_avail, index);
        self.rx_avail = self.rx_avail.wrapping_add(1);
        true
    }

    pub(super) fn post_all(&mut self) {
        while self.post() {}
    }

    /// Makes a chain of exactly these descriptors available to the device; `next` is filled in.
    pub(super) fn transmit(&mut self, descriptors: &[Descriptor]) {
        let first = (self.tx_avail % TX_SLOTS) * TX_CHAIN;
        let count = u16::try_from(descriptors.len()).unwrap();
        assert!(count <= TX_CHAIN);
        for (i, mut descriptor) in (0..count).zip(descriptors.iter().copied()) {
            if i + 1 < count {
                descriptor.flags |= NEXT;
                descriptor.next = first + i + 1;
            }
            self.write_descriptor(Layout(TX_RING), first + i, descriptor);
        }
        self.transmit_head(first);
    }

    /// Makes whatever lies at `head` available to the device.
    pub(super) fn transmit_head(&mut self, head: u16) {
        self.publish(Layout(TX_RING), self.tx_avail, head);
        self.tx_avail = self.tx_avail.wrapping_add(1);
    }

    /// First address of the memory that belongs to the next transmit slot.
    pub(super) fn transmit_memory(&self) -> u64 {
        TX_BUFFERS + u64::from(self.tx_avail % TX_SLOTS) * TX_SLOT_BYTES
    }

    /// First descriptor of the next transmit slot.
    pub(super) fn transmit_slot(&self) -> u16 {
        (self.tx_avail % TX_SLOTS) * TX_CHAIN
    }

    /// Queues a packet whose bytes are cut into descriptors at `cuts`.
    pub(super) fn send_cut(&mut self, header: &Header, payload: &[u8], cuts: &[usize]) {
        let bytes = [&header.to_bytes()[..], payload].concat();
        let start = self.transmit_memory();
        self.memory
            .memory()
            .write_slice(&bytes, GuestAddress(start))
            .unwrap();
        let mut ends: Vec<usize> = cuts
            .iter()
            .copied()
            .filter(|cut| *cut < bytes.len())
            .collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut from = 0;
        let mut descriptors = Vec::new();
        for end in ends {
            let addr = start + u64::try_from(from).unwrap();
            let len = u32::try_from(end - from).unwrap();
            descriptors.push(Descriptor {
                addr,
                len,
                flags: 0,
                next: 0,
            });
            from = end;
        }
        self.transmit(&descriptors);
    }

    /// Sends a packet the way Linux does: header apart, payload in pieces; and runs the device.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        self.send_cut(
            header,
            payload,
            &[HEADER_LEN, HEADER_LEN + 4096, HEADER_LEN + 36864],
        );
        self.pump();
    }

    /// Runs the device once and takes in what it has sent; how many packets that was.
    pub(super) fn step(&mut self) -> usize {
        let memory = self.memory.memory();
        self.engine.run(&self.vrings, &memory, true);
        let mut count = 0;
        while self.rx_used != self.read_u16(Layout(RX_RING).used() + 2) {
            let slot = u64::from(self.rx_used % QUEUE);
            let mut element = [0; 8];
            let at = Layout(RX_RING).used() + 4 + slot * 8;
            memory.read_slice(&mut element, GuestAddress(at)).unwrap();
            self.rx_used = self.rx_used.wrapping_add(1);
            let index = u16::from_le_bytes([element[0], element[1]]);
            let len = usize::from(u16::from_le_bytes([element[4], element[5]]));
            self.withheld.push_back(index);
            self.take_in(index, len);
            count += 1;
        }
        count
    }

    fn take_in(&mut self, index: u16, len: usize) {
        let mut bytes = vec![0; len];
        let at = RX_BUFFERS + u64::from(index) * 4096;
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
        let header = Header::parse(header);
        assert_eq!(usize::try_from(header.len).unwrap(), payload.len());
        assert_eq!(header.dst_cid, u64::from(GUEST_CID));
        self.inbox.push_back((header, payload.to_vec()));
    }

    /// Runs the device until nothing more comes, giving every receive buffer back.
    pub(super) fn pump(&mut self) {
        loop {
            let count = self.step();
            self.post_all();
            if count == 0 {
                return;
            }
        }
    }

    /// Runs the device until `done` or five seconds have passed.
    pub(super) fn pump_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            self.pump();
            if done(self) {
                return;
            }
            assert!(
                Instant::now() < end,
                "it did not happen within five seconds"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next packet, which must have come.
    pub(super) fn next(&mut self) -> (Header, Vec<u8>) {
        if self.inbox.is_empty() {
            self.pump_until(|driver| !driver.inbox.is_empty());
        }
        self.inbox.pop_front().unwrap()
    }

    /// The next packet, which must be this and carry nothing.
    pub(super) fn expect(&mut self, op: Op) -> Header {
        let (header, payload) = self.next();
        assert_eq!(Op::from_code(header.op), Some(op), "{header:?}");
        assert!(payload.is_empty());
        header
    }

    /// Nothing has come, and nothing comes.
    pub(super) fn expect_nothing(&mut self) {
        self.pump();
        assert_eq!(self.inbox.front(), None);
    }

    /// A stream from the guest's `port` to the host's `to` that the host has accepted.
    pub(super) fn open(&mut self, port: u32, to: u32) -> Stream {
        let stream = Stream::new(port, to);
        self.send(&stream.header(Op::Request), &[]);
        let response = self.expect(Op::Response);
        Stream {
            granted: response.buf_alloc,
            ..stream
        }
    }
}

fn vring(memory: &Memory, at: u64) -> VringMutex<Memory> {
    let vring = VringMutex::new(memory.clone(), 1024).unwrap();
    vring.set_queue_size(QUEUE);
    vring
        .set_queue_info(at, Layout(at).avail(), Layout(at).used())
        .unwrap();
    vring.set_queue_event_idx(true);
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    vring
}

/// The guest's end of a stream.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) port: u32,
    pub(super) to: u32,
    pub(super) host_cid: u64,
    /// What the device grants, and has acknowledged.
    pub(super) granted: u32,
    pub(super) acknowledged: u32,
    pub(super) sent: u32,
    /// Bytes received, and consumed by the application.
    pub(super) received: u32,
    pub(super) consumed: u32,
}

impl Stream {
    pub(super) fn new(port: u32, to: u32) -> Self {
        Self {
            port,
            to,
            host_cid: 3,
            granted: 0,
            acknowledged: 0,
            sent: 0,
            received: 0,
            consumed: 0,
        }
    }

    pub(super) fn header(&self, op: Op) -> Header {
        Header {
            src_cid: u64::from(GUEST_CID),
            dst_cid: self.host_cid,
            src_port: self.port,
            dst_port: self.to,
            len: 0,
            kind: TYPE_STREAM,
            op: op.code(),
            flags: 0,
            buf_alloc: GUEST_GRANT,
            fwd_cnt: self.consumed,
        }
    }

    /// A data packet for `payload`.
    pub(super) fn data(&mut self, payload: &[u8]) -> Header {
        let len = u32::try_from(payload.len()).unwrap();
        self.sent = self.sent.wrapping_add(len);
        Header {
            len,
            ..self.header(Op::Data)
        }
    }

    pub(super) fn shutdown(&self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(Op::Shutdown)
        }
    }

    /// How much may be sent.
    pub(super) fn room(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.acknowledged);
        usize::try_from(self.granted - in_flight).unwrap()
    }

    /// Takes the credit fields of a packet, and checks that it respects ours.
    pub(super) fn note(&mut self, header: &Header, payload: &[u8]) {
        self.granted = header.buf_alloc;
        self.acknowledged = header.fwd_cnt;
        self.received = self
            .received
            .wrapping_add(u32::try_from(payload.len()).unwrap());
        assert!(
            self.received.wrapping_sub(self.consumed) <= GUEST_GRANT,
            "our credit is exceeded"
        );
        assert!(
            self.sent.wrapping_sub(self.acknowledged) <= self.granted,
            "forged acknowledgement"
        );
    }
}

/// Reads exactly `len` bytes from the host's end while the device runs.
pub(super) fn read_exact(driver: &mut Driver, stream: &mut UnixStream, len: usize) -> Vec<u8> {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    driver.pump_until(|_| {
        let mut buffer = vec![0; len - bytes.len()];
        if let Ok(count) = stream.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..count]);
        }
        bytes.len() == len
    });
    stream.set_nonblocking(false).unwrap();
    bytes
}

/// Bytes that tell where they belong.
pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 31 + i / 251 + seed * 7) % 256).unwrap())
        .collect()
}
