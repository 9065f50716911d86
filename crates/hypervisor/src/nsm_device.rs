//! The Nitro Secure Module as a vhost-user device: moves requests and replies, understands neither.
//!
//! The kernel's `nsm` driver has one queue. Per transaction it makes two chains available under one kick: the
//! request, which the device reads, then the buffer for the reply, which the device writes; then it waits for
//! both to come back in that order. Answers come from a [`Module`], in production [`enclos_attest`]'s NSM.
//!
//! ```text
//!   request chain ──▶ kept until its reply buffer is here ──┐
//!   reply chain   ──▶ module(request) ──▶ copied in  ───────┴─▶ both given back, one interrupt
//! ```
//!
//! The request is given back only together with its reply: given back earlier, it would wake the driver
//! while the second chain is still on its way. A reply buffer without a request comes back empty; a
//! request without a reply buffer is given back unanswered when the next request arrives. A chain that
//! carries both is answered in place. Requests are copied once and cut at one byte above what the protocol
//! allows, so the module itself sees that they are too large.

use std::{
    io,
    sync::{Arc, Mutex},
};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackend, VringMutex};
use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

use crate::vhost_user::{
    self, Chain, FrontendSocket, Handle, Health, MAX_QUEUE_SIZE, Memory, Ring, StartError,
    VHOST_USER_F_PROTOCOL_FEATURES, lock, snapshot,
};

/// Turns one request into one reply. Called on the device's thread, one request at a time.
pub type Module = Box<dyn FnMut(&[u8]) -> Vec<u8> + Send>;

/// Largest request of the NSM protocol, in bytes (AWS: 0x1000).
const MAX_REQUEST: usize = 0x1000;

/// `{"Error": "BufferTooSmall"}`, for a reply that does not fit the driver's buffer.
const BUFFER_TOO_SMALL: &[u8] = b"\xa1\x65Error\x6eBufferTooSmall";

/// What the device offers. QEMU's carrier accepts indirect descriptors and event indices for the driver without
/// asking us, and fails later if they are missing here.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | VHOST_USER_F_PROTOCOL_FEATURES;

/// The NSM device.
#[derive(Debug, Clone, Copy)]
pub struct Device;

impl Device {
    /// Starts the device: its threads run until QEMU hangs up or the handle stops them.
    ///
    /// # Errors
    /// [`StartError`] when a thread or descriptor cannot be made.
    pub fn start(socket: FrontendSocket, module: Module) -> Result<Handle, StartError> {
        let memory: Memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend {
            memory: memory.clone(),
            queue: Mutex::new(Queue::new(module)),
        });
        vhost_user::start("nsm", socket, backend, memory, |_| Ok(()))
    }
}

struct Backend {
    memory: Memory,
    queue: Mutex<Queue>,
}

/// The state of the one queue.
pub(crate) struct Queue {
    module: Module,
    health: Health,
    chain: Chain,
    pending: Option<Pending>,
}

/// A request that waits for its reply buffer.
struct Pending {
    head: u16,
    request: Vec<u8>,
}

impl Queue {
    pub(crate) fn new(module: Module) -> Self {
        Self {
            module,
            health: Health::Good,
            chain: Chain::default(),
            pending: None,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.health = Health::Good;
        self.pending = None;
    }

    /// Works until the queue is empty and the driver will kick again.
    pub(crate) fn run(&mut self, vring: &VringMutex<Memory>, memory: &GuestMemoryMmap) {
        let Self {
            module,
            health,
            chain,
            pending,
        } = self;
        let Some(mut ring) = Ring::lock(vring, health) else {
            return;
        };
        loop {
            ring.disable_kicks();
            while ring.pop(memory, chain) {
                step(&mut ring, memory, chain, pending, module);
            }
            if !ring.enable_kicks() {
                break;
            }
        }
    }
}

/// Handles one chain.
fn step(
    ring: &mut Ring<'_>,
    memory: &GuestMemoryMmap,
    chain: &Chain,
    pending: &mut Option<Pending>,
    module: &mut Module,
) {
    if !chain.readable.is_empty() {
        if let Some(unanswered) = pending.take() {
            ring.give_back(unanswered.head, 0);
        }
        *pending = Some(Pending {
            head: chain.head,
            request: read_request(memory, chain),
        });
    }
    if chain.writable.is_empty() {
        if chain.readable.is_empty() {
            ring.give_back(chain.head, 0);
        }
        return;
    }
    let Some(Pending { head, request }) = pending.take() else {
        ring.give_back(chain.head, 0);
        return;
    };
    let written = write_reply(memory, chain, &module(&request));
    if head != chain.head {
        ring.give_back(head, 0);
    }
    ring.give_back(chain.head, written);
    ring.notify();
}

/// The request's bytes; empty, and so undecodable, when the chain does not lie in guest memory.
fn read_request(memory: &GuestMemoryMmap, chain: &Chain) -> Vec<u8> {
    let mut request = vec![0; chain.available().min(MAX_REQUEST + 1)];
    if chain.read(memory, 0, &mut request).is_err() {
        request.clear();
    }
    request
}

/// Copies the reply in and says how long it is.
fn write_reply(memory: &GuestMemoryMmap, chain: &Chain, reply: &[u8]) -> usize {
    let capacity = chain.capacity();
    let reply = if reply.len() <= capacity {
        reply
    } else {
        BUFFER_TOO_SMALL
    };
    match chain.write(memory, 0, reply) {
        Ok(()) => reply.len(),
        Err(_) => 0,
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn reset_device(&self) {
        lock(&self.queue).reset();
    }

    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        lock(&self.queue).reset();
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        vrings: &[Self::Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if let Some(vring) = vrings.first() {
            lock(&self.queue).run(vring, &snapshot(&self.memory));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
