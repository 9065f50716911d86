//! The virtio side: queues and guest memory on one hand, the muxer on the other.
//!
//! ```text
//!  transmit queue (1) ──chains──▶ copy header, check, copy payload ──▶ Muxer::receive
//!  receive queue  (0) ◀──chains── copy header and payload  ◀────────── Muxer::next_packet
//!  host sockets, timer ─────────────────────────────────────────────── Muxer::host_events
//! ```
//!
//! Whatever wakes the worker, a round is the same: host events if there are any, a bounded number of chains
//! from the guest, then as many packets to the guest as it has room for. A guest that transmits without end
//! therefore does not keep host streams from being served, nor the other way round. Kicks are asked for
//! only when a queue has run dry and the device waits for it.
//!
//! The event queue (2) is QEMU's own business: it tells the guest about migration, which enclaves have none of.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringMutex};
use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

use super::{
    VsockSpec,
    backend::{HostListener, Services},
    muxer::Muxer,
    packet::{HEADER_LEN, Header, MAX_PAYLOAD, Op},
};
use crate::vhost_user::{
    self, Chain, Handle, Health, MAX_QUEUE_SIZE, Memory, Ring, StartError,
    VHOST_USER_F_PROTOCOL_FEATURES, lock, snapshot,
};

/// Queues as the guest's driver numbers them, named from its side.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: usize = 3;

/// The worker's name for events of host sockets and the timer: the first number beyond the queues' and
/// the worker's own.
const HOST_EVENT: u16 = 4;

/// Chains handled per queue before others get a turn.
const BATCH: usize = 256;

/// Smallest CID a guest may have: 0 to 2 are virtio's, 3 is the parent's.
const FIRST_GUEST_CID: u32 = 4;

/// The vsock device.
#[derive(Debug, Clone, Copy)]
pub struct Device;

impl Device {
    /// Starts the device: host clients can connect, and its threads run until QEMU hangs up or the handle
    /// stops them.
    ///
    /// # Errors
    /// [`StartError`]: a reserved CID, a socket that cannot be bound, no threads or descriptors left.
    pub fn start(spec: VsockSpec) -> Result<Handle, StartError> {
        if spec.guest_cid < FIRST_GUEST_CID || spec.guest_cid == u32::MAX {
            return Err(StartError::ReservedCid(spec.guest_cid));
        }
        let listener = HostListener::bind(spec.uds_path)?;
        let muxer = Muxer::new(spec.guest_cid, listener, Services::new(spec.services))
            .map_err(StartError::Resources)?;
        let events = muxer.as_raw_fd();
        let memory: Memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend {
            guest_cid: u64::from(spec.guest_cid),
            memory: memory.clone(),
            engine: Mutex::new(Engine::new(muxer)),
        });
        vhost_user::start("vsock", spec.frontend, backend, memory, |worker| {
            worker.register_listener(events, EventSet::IN, u64::from(HOST_EVENT))
        })
    }
}

/// Everything a round of work needs besides the queues.
pub(super) struct Engine {
    muxer: Muxer,
    chain: Chain,
    payload: Box<[u8]>,
    health: [Health; QUEUES],
}

impl Engine {
    pub(super) fn new(muxer: Muxer) -> Self {
        let payload = vec![0; MAX_PAYLOAD].into_boxed_slice();
        Self {
            muxer,
            chain: Chain::default(),
            payload,
            health: [Health::Good; QUEUES],
        }
    }

    /// One round of work.
    pub(super) fn run(
        &mut self,
        vrings: &[VringMutex<Memory>],
        memory: &GuestMemoryMmap,
        host_event: bool,
    ) {
        let now = Instant::now();
        let (Some(receive), Some(transmit)) = (vrings.get(RECEIVE), vrings.get(TRANSMIT)) else {
            return;
        };
        self.muxer.set_guest_up(
            Ring::lock(receive, &mut self.health[RECEIVE]).is_some()
                && Ring::lock(transmit, &mut self.health[TRANSMIT]).is_some(),
        );
        if host_event {
            self.muxer.host_events(now);
        }
        self.transmit(transmit, memory, now);
        self.receive(receive, memory, now);
        self.muxer.arm(now);
    }

    /// Takes packets from the guest; if there are more than a batch, comes back later.
    fn transmit(&mut self, vring: &VringMutex<Memory>, memory: &GuestMemoryMmap, now: Instant) {
        let Self {
            muxer,
            chain,
            payload,
            health,
        } = self;
        let Some(mut ring) = Ring::lock(vring, &mut health[TRANSMIT]) else {
            return;
        };
        ring.disable_kicks();
        for _ in 0..BATCH {
            if !ring.pop(memory, chain) {
                if !ring.enable_kicks() {
                    return;
                }
                ring.disable_kicks();
                continue;
            }
            take_packet(muxer, memory, chain, payload, now);
            ring.give_back(chain.head, 0);
        }
        muxer.wake();
    }

    /// Hands packets to the guest while there are any and it has room.
    fn receive(&mut self, vring: &VringMutex<Memory>, memory: &GuestMemoryMmap, now: Instant) {
        let Self {
            muxer,
            chain,
            health,
            ..
        } = self;
        let Some(mut ring) = Ring::lock(vring, &mut health[RECEIVE]) else {
            return;
        };
        ring.disable_kicks();
        for _ in 0..BATCH {
            if !muxer.has_output() {
                return;
            }
            if !ring.pop(memory, chain) {
                // Out of room: the driver kicks when it has made some.
                if ring.enable_kicks() {
                    ring.disable_kicks();
                    continue;
                }
                return;
            }
            let room = chain.capacity().saturating_sub(HEADER_LEN);
            if room == 0 {
                ring.give_back(chain.head, 0);
                continue;
            }
            let Some((header, payload)) = muxer.next_packet(room, now) else {
                ring.unpop();
                return;
            };
            let written = put_packet(memory, chain, &header, payload);
            ring.give_back(chain.head, written);
        }
        muxer.wake();
    }

    /// Forgets all streams, and what was wrong with the queues.
    fn reset(&mut self) {
        self.muxer.reset();
        self.health = [Health::Good; QUEUES];
    }
}

/// Copies one packet out of guest memory and passes it on, if its lengths make sense.
fn take_packet(
    muxer: &mut Muxer,
    memory: &GuestMemoryMmap,
    chain: &Chain,
    buffer: &mut [u8],
    now: Instant,
) {
    let mut header = [0; HEADER_LEN];
    if chain.read(memory, 0, &mut header).is_err() {
        return;
    }
    let header = Header::parse(&header);
    let len = if header.op == Op::Data.code() {
        header.len
    } else {
        0
    };
    let payload = usize::try_from(len)
        .ok()
        .and_then(|len| buffer.get_mut(..len));
    match payload.map(|payload| (chain.read(memory, HEADER_LEN, payload), payload)) {
        Some((Ok(()), payload)) => muxer.receive(&header, payload, now),
        _ => muxer.refuse_packet(&header),
    }
}

/// Copies one packet into guest memory; how many bytes that was.
fn put_packet(memory: &GuestMemoryMmap, chain: &Chain, header: &Header, payload: &[u8]) -> usize {
    let header = chain.write(memory, 0, &header.to_bytes());
    match header.and_then(|()| chain.write(memory, HEADER_LEN, payload)) {
        Ok(()) => HEADER_LEN + payload.len(),
        // A driver that offers memory it does not have loses what it would have received.
        Err(_) => 0,
    }
}

struct Backend {
    guest_cid: u64,
    memory: Memory,
    engine: Mutex<Engine>,
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | VHOST_USER_F_PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn reset_device(&self) {
        lock(&self.engine).reset();
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        lock(&self.engine).reset();
        Ok(())
    }

    /// The configuration space is the guest's CID, eight bytes.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.guest_cid.to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        config
            .get(start..end)
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = snapshot(&self.memory);
        lock(&self.engine).run(vrings, &memory, event == HOST_EVENT);
        Ok(())
    }
}

/// A device without threads, for fuzzing: every step is the caller's.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) struct Bench(Engine);

#[cfg(any(test, feature = "fuzzing"))]
impl Bench {
    /// A device for the guest with this CID; `None` when its socket cannot be bound.
    pub(crate) fn new(
        guest_cid: u32,
        uds: std::path::PathBuf,
        services: Vec<(u32, super::Service)>,
    ) -> Option<Self> {
        let listener = HostListener::bind(uds).ok()?;
        let muxer = Muxer::new(guest_cid, listener, Services::new(services)).ok()?;
        Some(Self(Engine::new(muxer)))
    }

    /// One round of work.
    pub(crate) fn run(&mut self, vrings: &[VringMutex<Memory>], memory: &GuestMemoryMmap) {
        self.0.run(vrings, memory, true);
    }
}
