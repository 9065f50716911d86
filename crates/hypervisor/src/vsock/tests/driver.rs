//! A guest's vsock driver in memory: real rings in real guest memory, driven one step at a time.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use vhost_user_backend::VringMutex;
use vm_memory::GuestAddressSpace;

use crate::{
    vhost_user::{
        Memory,
        test_ring::{self, Descriptor, QUEUE, TestRing},
    },
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
/// Size of one receive buffer, header included; Linux' are about this large.
const RX_BUFFER: u32 = 3776;
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

pub(super) struct Driver {
    pub(super) engine: Engine,
    pub(super) memory: Memory,
    vrings: Vec<VringMutex<Memory>>,
    directory: TempDir,
    pub(super) tx: TestRing,
    rx: TestRing,
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
        let memory = test_ring::memory(MEMORY);
        let (rx, tx) = (
            TestRing::new(&memory, RX_RING),
            TestRing::new(&memory, TX_RING),
        );
        let listener = HostListener::bind(directory.path().join("v.sock")).unwrap();
        let muxer = Muxer::new(GUEST_CID, listener, Services::new(services)).unwrap();
        let vrings = vec![rx.vring(), tx.vring()];
        Self {
            engine: Engine::new(muxer),
            memory,
            vrings,
            directory,
            tx,
            rx,
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

    /// Makes one more receive buffer available; false when all are.
    pub(super) fn post(&mut self) -> bool {
        let Some(index) = self.withheld.pop_front() else {
            return false;
        };
        let addr = RX_BUFFERS + u64::from(index) * 4096;
        self.rx
            .offer(index, &[Descriptor::writable(addr, RX_BUFFER)]);
        true
    }

    pub(super) fn post_all(&mut self) {
        while self.post() {}
    }

    /// Makes a chain of exactly these descriptors available to the device.
    pub(super) fn transmit(&mut self, descriptors: &[Descriptor]) {
        assert!(descriptors.len() <= usize::from(TX_CHAIN));
        self.tx.offer(self.transmit_slot(), descriptors);
    }

    /// First address of the memory that belongs to the next transmit slot.
    pub(super) fn transmit_memory(&self) -> u64 {
        TX_BUFFERS + u64::from(self.tx.published % TX_SLOTS) * TX_SLOT_BYTES
    }

    /// First descriptor of the next transmit slot.
    pub(super) fn transmit_slot(&self) -> u16 {
        (self.tx.published % TX_SLOTS) * TX_CHAIN
    }

    /// Queues a packet whose bytes are cut into descriptors at `cuts`.
    pub(super) fn send_cut(&mut self, header: &Header, payload: &[u8], cuts: &[usize]) {
        let bytes = [&header.to_bytes()[..], payload].concat();
        let start = self.transmit_memory();
        self.tx.write(start, &bytes);
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
        while let Some((index, len)) = self.rx.take() {
            self.withheld.push_back(index);
            self.take_in(index, len);
            count += 1;
        }
        count
    }

    fn take_in(&mut self, index: u16, len: usize) {
        let bytes = self.rx.read(RX_BUFFERS + u64::from(index) * 4096, len);
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
