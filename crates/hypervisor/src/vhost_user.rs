//! What both devices share: the vhost-user back end's life, and guarded access to a virtqueue.
//!
//! QEMU is the front end: it connects to a unix socket of ours, hands over the guest's memory and the queues'
//! event descriptors, and then only carries interrupts. Each device has two threads:
//!
//! ```text
//!  QEMU ──unix socket──▶ front-end thread  (set-up messages; ends when QEMU hangs up or the handle stops)
//!  guest ──eventfd─────▶ worker thread     (queues, timers, host sockets: all of the device's own work)
//! ```
//!
//! The socket file disappears as soon as QEMU has connected, so nobody else can ever attach to the
//! enclave's memory. When QEMU hangs up, the worker ends and everything the device holds is released.
//!
//! Memory handed over stays under the guest's control. Everything read from it is therefore read once, copied,
//! and checked as a copy; [`Ring`] refuses queues that are not set up, ring indices that make no sense, and
//! chains that are too long, and a queue caught lying is not touched again until it is set up anew.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod test_ring;

use std::{
    fmt, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringEpollHandler, VringMutex,
    VringStateMutGuard, VringT,
};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::log;

/// Guest memory as the front end hands it over; it may be replaced while the guest runs.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Largest queue either device accepts: QEMU's `virtio-mmio` offers 1024 entries.
pub(crate) const MAX_QUEUE_SIZE: usize = 1024;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: the front end may ask for protocol features.
pub(crate) const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Most buffers accepted in one descriptor chain. Linux sends 64 KiB in at most 18; the rest is head-room for
/// other drivers, while a chain built to waste time ends here.
const MAX_CHAIN_BUFFERS: usize = 256;

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket for the front end, or for host clients, could not be made.
    #[error("cannot listen on {}; the directory must exist and be writable", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's context id is taken by convention.
    #[error("guest CID {0} is reserved; expected 4 or more")]
    ReservedCid(u32),
    /// A descriptor, a thread or an event could not be made.
    #[error("cannot set up the device's threads and events")]
    Resources(#[source] io::Error),
    /// The vhost-user library refused.
    #[error("cannot start the vhost-user back end")]
    Backend(#[source] LibraryError),
}

/// Why a device stopped early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Waiting for or accepting QEMU failed.
    #[error("cannot accept the front end's connection")]
    Accept(#[source] io::Error),
    /// QEMU sent something that is not vhost-user.
    #[error("the front end broke the vhost-user protocol")]
    Protocol(#[source] LibraryError),
    /// A thread of the device panicked: our bug.
    #[error("a device thread panicked")]
    Panicked,
}

/// An error of the vhost-user library, which does not implement [`std::error::Error`] itself.
#[derive(Debug)]
pub struct LibraryError(vhost_user_backend::Error);

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for LibraryError {}

/// Where QEMU connects.
#[derive(Debug)]
pub struct FrontendSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl FrontendSocket {
    /// Binds `path`, which must not exist yet.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, StartError> {
        let path = path.into();
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(StartError::Listen { path, source }),
        }
    }
}

impl Drop for FrontendSocket {
    fn drop(&mut self) {
        // The file may be gone already, with its directory; there is nothing to do about any other failure.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A running device. Dropping it stops the device and waits for its threads.
pub struct Handle {
    control: Arc<Control>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Handle {
    /// Stops the device and waits until its threads are gone and its sockets removed.
    ///
    /// # Errors
    /// What made the device stop earlier, if something did.
    pub fn stop(mut self) -> Result<(), ServeError> {
        self.finish()
    }

    /// Whether the device has ended by itself, as it does when QEMU exits.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn finish(&mut self) -> Result<(), ServeError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.control.stop();
        thread.join().map_err(|_| ServeError::Panicked)?
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            log::warn(log::chain(&error));
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// How the handle reaches the front-end thread, in whichever of its two waits that is.
struct Control {
    stopping: AtomicBool,
    wake: OwnedFd,
    connected: Mutex<Option<ShutdownHandle>>,
}

impl Control {
    fn new() -> io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            stopping: AtomicBool::new(false),
            wake,
            connected: Mutex::new(None),
        })
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // A full counter already wakes the thread.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        if let Some(connection) = lock(&self.connected).as_ref() {
            connection.shutdown();
        }
    }

    /// Publishes the connection, so that [`Control::stop`] can cut it.
    fn connected(&self, connection: Option<ShutdownHandle>) {
        let mut slot = lock(&self.connected);
        *slot = connection;
        if let (true, Some(connection)) = (self.stopping.load(Ordering::SeqCst), slot.as_ref()) {
            connection.shutdown();
        }
    }

    /// Waits for QEMU; false if the device was stopped first.
    fn wait_for_frontend(&self, listener: &UnixListener) -> io::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(&self.wake, PollFlags::IN),
                PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if self.stopping.load(Ordering::SeqCst) => return Ok(false),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(true),
                Ok(_) => {}
            }
        }
    }
}

/// Starts the two threads of a device. `prepare` registers the device's own events with the worker's epoll.
pub(crate) fn start<B>(
    name: &str,
    socket: FrontendSocket,
    backend: B,
    memory: Memory,
    prepare: impl FnOnce(&VringEpollHandler<B>) -> io::Result<()>,
) -> Result<Handle, StartError>
where
    B: VhostUserBackend<Bitmap = (), Vring = VringMutex<Memory>> + Clone + 'static,
{
    let control = Arc::new(Control::new().map_err(StartError::Resources)?);
    let daemon = VhostUserDaemon::new(name.to_owned(), backend, memory)
        .map_err(|error| StartError::Backend(LibraryError(error)))?;
    if let Some(worker) = daemon.get_epoll_handlers().first() {
        prepare(worker).map_err(StartError::Resources)?;
    }
    let control_of_thread = Arc::clone(&control);
    let thread = thread::Builder::new()
        .name(format!("{name}-life"))
        .spawn(move || serve(daemon, socket, &control_of_thread))
        .map_err(StartError::Resources)?;
    Ok(Handle {
        control,
        thread: Some(thread),
    })
}

fn serve<B>(
    mut daemon: VhostUserDaemon<B>,
    socket: FrontendSocket,
    control: &Control,
) -> Result<(), ServeError>
where
    B: VhostUserBackend<Bitmap = (), Vring = VringMutex<Memory>> + Clone + 'static,
{
    if !control
        .wait_for_frontend(&socket.listener)
        .map_err(ServeError::Accept)?
    {
        return Ok(());
    }
    let listener = socket.listener.try_clone().map_err(ServeError::Accept)?;
    let started = daemon.start(&mut listener.into());
    started.map_err(|error| ServeError::Protocol(LibraryError(error)))?;
    drop(socket);
    control.connected(daemon.shutdown_handle());
    let ended = daemon.wait();
    control.connected(None);
    match ended {
        Err(error) if !hung_up(&error) => Err(ServeError::Protocol(LibraryError(error))),
        _ => Ok(()),
    }
}

/// How a front end looks that has exited or was killed, between two messages or within one.
fn hung_up(error: &vhost_user_backend::Error) -> bool {
    use vhost::vhost_user::Error as Message;
    matches!(
        error,
        vhost_user_backend::Error::HandleRequest(
            Message::Disconnected | Message::PartialMessage | Message::SocketBroken(_)
        )
    )
}

/// Locks a mutex whose data stays meaningful even if a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One virtqueue, locked for a batch of work.
pub(crate) struct Ring<'a> {
    state: <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G,
    health: &'a mut Health,
    used_something: bool,
}

/// Whether a queue has been caught lying since it was set up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// Nothing wrong so far.
    #[default]
    Good,
    /// The driver's indices made no sense, or its rings are not in its memory; not touched any more.
    Broken,
}

/// A chain taken from a ring: its buffers in order, addresses not yet checked.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// Index to give back in the used ring.
    pub(crate) head: u16,
    /// What the device may read.
    pub(crate) readable: Vec<Buffer>,
    /// What the device may write.
    pub(crate) writable: Vec<Buffer>,
}

/// A piece of guest memory that a descriptor names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    addr: GuestAddress,
    len: usize,
}

/// A chain that no honest driver makes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// The buffers are outside the guest's memory.
    #[error("a descriptor points outside guest memory")]
    Unmapped(#[source] vm_memory::GuestMemoryError),
    /// More was asked for than the chain holds.
    #[error("the chain is too short")]
    TooShort,
}

impl<'a> Ring<'a> {
    /// Locks the queue; `None` while it is not set up, or after it was found broken.
    pub(crate) fn lock(vring: &'a VringMutex<Memory>, health: &'a mut Health) -> Option<Self> {
        let state = vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() || *health == Health::Broken {
            return None;
        }
        Some(Self {
            state,
            health,
            used_something: false,
        })
    }

    /// Takes the next chain into `chain`; false when there is none.
    pub(crate) fn pop(&mut self, memory: &GuestMemoryMmap, chain: &mut Chain) -> bool {
        if !self.has_next(memory) {
            return false;
        }
        let queue = self.state.get_queue_mut();
        let size = queue.size();
        match queue.pop_descriptor_chain(memory) {
            Some(descriptors) if descriptors.head_index() < size => {
                chain.fill(descriptors);
                true
            }
            _ => self.give_up("an available entry names no descriptor"),
        }
    }

    /// Puts the chain taken last back; it is the next one again.
    pub(crate) fn unpop(&mut self) {
        self.state.get_queue_mut().go_to_previous_position();
    }

    /// Whether the driver has made a chain available. An index further ahead than the queue is long is a lie.
    pub(crate) fn has_next(&mut self, memory: &GuestMemoryMmap) -> bool {
        if *self.health == Health::Broken {
            return false;
        }
        let queue = self.state.get_queue();
        match queue.avail_idx(memory, Ordering::Acquire) {
            Ok(index) => match index.0.wrapping_sub(queue.next_avail()) {
                0 => false,
                ahead if ahead <= queue.size() => true,
                _ => self.give_up("the available index is further ahead than the queue is long"),
            },
            Err(_) => self.give_up("the available ring is outside guest memory"),
        }
    }

    /// Gives a chain back with `written` bytes in it.
    pub(crate) fn give_back(&mut self, head: u16, written: usize) {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        match self.state.add_used(head, written) {
            Ok(()) => self.used_something = true,
            Err(_) => {
                self.give_up("the used ring is outside guest memory");
            }
        }
    }

    /// Interrupts the guest if anything was given back and the driver wants to know.
    pub(crate) fn notify(&mut self) {
        if !std::mem::take(&mut self.used_something) {
            return;
        }
        if self.state.needs_notification().unwrap_or(true) {
            // A full event counter already carries the interrupt.
            let _ = self.state.signal_used_queue();
        }
    }

    /// Asks the driver to be quiet, while the device is working through the queue anyway.
    pub(crate) fn disable_kicks(&mut self) {
        if self.state.disable_notification().is_err() {
            self.give_up("the used ring is outside guest memory");
        }
    }

    /// Asks to be told of new chains again; true if one has arrived meanwhile.
    pub(crate) fn enable_kicks(&mut self) -> bool {
        match self.state.enable_notification() {
            Ok(pending) => pending && *self.health == Health::Good,
            Err(_) => self.give_up("the used ring is outside guest memory"),
        }
    }

    fn give_up(&mut self, why: &str) -> bool {
        if *self.health == Health::Good {
            // Once per process: a guest can set its queues up anew as often as it likes.
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                log::warn(format_args!(
                    "the enclave's driver broke a virtqueue, which is ignored now: {why}"
                ));
            });
        }
        *self.health = Health::Broken;
        false
    }
}

impl Drop for Ring<'_> {
    fn drop(&mut self) {
        self.notify();
    }
}

impl Chain {
    fn fill(&mut self, descriptors: DescriptorChain<&GuestMemoryMmap>) {
        self.head = descriptors.head_index();
        self.readable.clear();
        self.writable.clear();
        for descriptor in descriptors.take(MAX_CHAIN_BUFFERS) {
            let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            let buffer = Buffer {
                addr: descriptor.addr(),
                len,
            };
            match descriptor.is_write_only() {
                true => self.writable.push(buffer),
                false => self.readable.push(buffer),
            }
        }
    }

    /// How many bytes the device may write.
    pub(crate) fn capacity(&self) -> usize {
        self.writable
            .iter()
            .fold(0, |sum, buffer| sum.saturating_add(buffer.len))
    }

    /// How many bytes the driver says are there to read.
    pub(crate) fn available(&self) -> usize {
        self.readable
            .iter()
            .fold(0, |sum, buffer| sum.saturating_add(buffer.len))
    }

    /// Copies out from `offset`; exactly `out.len()` bytes.
    pub(crate) fn read(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), ChainError> {
        let mut done = 0;
        for (addr, len) in pieces(&self.readable, offset, out.len()) {
            let piece = &mut out[done..done + len];
            memory
                .read_slice(piece, addr)
                .map_err(ChainError::Unmapped)?;
            done += len;
        }
        if done == out.len() {
            Ok(())
        } else {
            Err(ChainError::TooShort)
        }
    }

    /// Copies `bytes` in at `offset`.
    pub(crate) fn write(
        &self,
        memory: &GuestMemoryMmap,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), ChainError> {
        let mut done = 0;
        for (addr, len) in pieces(&self.writable, offset, bytes.len()) {
            let piece = &bytes[done..done + len];
            memory
                .write_slice(piece, addr)
                .map_err(ChainError::Unmapped)?;
            done += len;
        }
        if done == bytes.len() {
            Ok(())
        } else {
            Err(ChainError::TooShort)
        }
    }
}

/// The parts of `buffers` that hold the bytes `offset..offset + len`.
fn pieces(
    buffers: &[Buffer],
    mut offset: usize,
    mut len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    buffers.iter().filter_map(move |buffer| {
        let skip = offset.min(buffer.len);
        offset -= skip;
        let take = len.min(buffer.len - skip);
        len -= take;
        let skip = u64::try_from(skip).ok()?;
        // An address that wraps around ends the chain early: the caller finds it too short.
        let addr = buffer.addr.0.checked_add(skip)?;
        (take > 0).then_some((GuestAddress(addr), take))
    })
}

/// The guest memory of this moment; held for one batch of work.
pub(crate) fn snapshot(memory: &Memory) -> impl std::ops::Deref<Target = GuestMemoryMmap> + use<> {
    memory.memory()
}
