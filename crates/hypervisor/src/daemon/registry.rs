//! The enclaves of this host: one lock, one condition, and the only account of what is in use.
//!
//! An entry is made by [`Registry::reserve`] before anything of the enclave exists and is removed by
//! [`Registry::remove`] after nothing of it is left; memory, CPUs, context id, name and user id are held
//! exactly as long as the entry is. There is no second ledger that could disagree.
//!
//! ```text
//!  reserve ──▶ EMPTY ──heartbeat──▶ RUNNING ──▶ remove ──▶ history (the last exits, for late waiters)
//!                └───────── TERMINATING ◀┘ ───────▲
//! ```

mod entry;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use enclos_api::control::{
    BootTimes, Enclave, Event, Exit, Failure, Measurements, RunRequest, Selector, State,
};
use rustix::process::Pid;

use entry::{Entry, Process, millis};

use crate::daemon::resources::{self, CpuGrant, CpuPool, Holder};
use crate::failure::Code;
use crate::link::{FRAME_TIMEOUT, FromVmm, ToVmm};
use crate::wire;

pub(crate) use entry::Past;

/// Enclaves that one host runs at most; each also has a user id of its own.
pub(crate) const MAX_ENCLAVES: usize = 256;

/// Exits remembered for [`Registry::wait_exit`] after the enclave is gone.
const HISTORY: usize = 256;

/// Events that a watcher may lag behind before it is cut off; it then connects again and starts afresh.
const WATCH_BACKLOG: usize = 1024;

/// What this host gives to enclaves, and who it says it is.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    pub(crate) memory_mib: u64,
    pub(crate) cpus: CpuPool,
    pub(crate) instance_id: String,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Root, or the hypervisor's own user.
    pub(crate) privileged: bool,
}

impl Caller {
    pub(crate) fn may_control(&self, owner_uid: u32) -> bool {
        self.privileged || self.uid == owner_uid
    }
}

/// What is known of an image once it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageFacts {
    pub(crate) bytes: u64,
    pub(crate) measurements: Measurements,
    pub(crate) metadata: serde_json::Value,
}

/// What is asked of [`Registry::reserve`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) caller: Caller,
    pub(crate) request: &'a RunRequest,
    pub(crate) image: &'a ImageFacts,
    /// When the request came.
    pub(crate) arrival: Instant,
    /// Where enclaves' directories are.
    pub(crate) enclaves_dir: &'a Path,
    /// Random 64-bit number of the enclave.
    pub(crate) slot: u64,
}

/// What [`Registry::reserve`] gave.
#[derive(Debug, Clone)]
pub(crate) struct Reservation {
    pub(crate) enclave: Enclave,
    pub(crate) slot: u64,
    pub(crate) user_index: u32,
    pub(crate) cpus: CpuGrant,
}

/// The socket to a vmm, shared by everyone who has a word for it.
pub(crate) type Link = Arc<Mutex<UnixStream>>;

#[derive(Debug, Default)]
pub(crate) struct Registry {
    state: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    enclaves: BTreeMap<String, Entry>,
    history: VecDeque<Past>,
    watchers: Vec<Watcher>,
    /// Bytes of images being read, by user.
    intake: BTreeMap<u32, u64>,
    closing: bool,
}

/// The registry's end of a [`Watch`].
#[derive(Debug)]
struct Watcher {
    events: SyncSender<Event>,
    /// Alive for as long as the other end is: a channel does not tell before the next event, and that may never come.
    watch: Weak<()>,
}

/// All that happens, for as long as this is kept.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) events: Receiver<Event>,
    _kept: Arc<()>,
}

/// How waiting for a boot ended.
#[derive(Debug)]
pub(crate) enum Boot {
    Up(Box<Enclave>),
    Down(Past),
    TimedOut,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `check` answers, or `limit` has passed.
    fn wait_for<T>(
        &self,
        limit: Option<Duration>,
        mut check: impl FnMut(&mut Inner) -> Option<T>,
    ) -> Option<T> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut inner = self.lock();
        loop {
            if let Some(answer) = check(&mut inner) {
                return Some(answer);
            }
            inner = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    self.changed
                        .wait_timeout(inner, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Admits an image of `bytes` to be copied into memory: half of what enclaves have may be in use for that,
    /// half of that by one user other than root. The place is held until the result is dropped.
    pub(crate) fn admit_image(
        &self,
        caller: Caller,
        bytes: u64,
        total_mib: u64,
    ) -> Result<Intake<'_>, Failure> {
        let mut inner = self.lock();
        let limit = total_mib.saturating_mul(1 << 20) / 2;
        let all: u64 = inner.intake.values().sum();
        let own = inner.intake.entry(caller.uid).or_default();
        let exceeds = |used: u64, limit: u64| used.saturating_add(bytes) > limit;
        if exceeds(all, limit) || (!caller.privileged && exceeds(*own, limit / 2)) {
            return Err(Code::InsufficientMemoryAvailable.because(
                "too many images are being read at this moment; try again when other starts are done",
            ));
        }
        *own += bytes;
        Ok(Intake {
            registry: self,
            uid: caller.uid,
            bytes,
        })
    }

    /// Makes the entry of a new enclave, or refuses.
    pub(crate) fn reserve(
        &self,
        capacity: &Capacity,
        wanted: Wanted<'_>,
    ) -> Result<Reservation, Failure> {
        let mut inner = self.lock();
        inner.admit()?;
        let (enclave, cpus) = inner.choose(capacity, &wanted)?;
        let user_index = inner.free_user_index();
        let pinned = cpus.ids.iter().copied().filter(|_| cpus.pinned);
        let entry = Entry {
            view: enclave.clone(),
            arrival: wanted.arrival,
            user_index,
            pinned: pinned.collect(),
            ready: false,
            link: None,
            process: Process::NotStarted,
            cause: None,
            ended: None,
        };
        inner.enclaves.insert(enclave.id.clone(), entry);
        Ok(Reservation {
            enclave,
            slot: wanted.slot,
            user_index,
            cpus,
        })
    }

    /// The vmm runs as `pid` and listens on `link`.
    pub(crate) fn started(&self, id: &str, pid: Pid, link: Link) {
        let mut inner = self.lock();
        if let Some(entry) = inner.enclaves.get_mut(id) {
            entry.process = Process::Running(pid);
            entry.view.pid = pid.as_raw_nonzero().get().unsigned_abs();
            entry.link = Some(link);
            // A stop that was asked for before there was anything to stop.
            if entry.cause.is_some() {
                entry.kill();
            }
        }
    }

    /// Takes in what a vmm says, except keys.
    pub(crate) fn heard(&self, id: &str, message: FromVmm) {
        let mut inner = self.lock();
        let Some(entry) = inner.enclaves.get_mut(id) else {
            return;
        };
        let event = entry.heard(message);
        if let Some(event) = event {
            inner.publish(&event);
        }
        self.changed.notify_all();
    }

    /// Waits until the enclave is up or gone.
    pub(crate) fn wait_boot(&self, id: &str, limit: Duration) -> Boot {
        let answer = self.wait_for(Some(limit), |inner| match inner.enclaves.get(id) {
            None => {
                let past = inner.past(|exit| exit.id == id);
                Some(Boot::Down(past.cloned().unwrap_or_default()))
            }
            // A vmm that is dead has perhaps said a last word that its supervisor is still reading.
            Some(entry) if entry.ended.is_some() || entry.view.state == State::Terminating => {
                Some(Boot::Down(entry.past()))
            }
            Some(entry) if entry.view.boot.heartbeat_ms.is_some() => {
                Some(Boot::Up(Box::new(entry.view.clone())))
            }
            Some(_) => None,
        });
        answer.unwrap_or(Boot::TimedOut)
    }

    /// All enclaves.
    pub(crate) fn list(&self) -> Vec<Enclave> {
        self.lock()
            .enclaves
            .values()
            .map(|entry| entry.view.clone())
            .collect()
    }

    /// Memory not promised to an enclave, in MiB.
    pub(crate) fn free_memory(&self, total_mib: u64) -> u64 {
        resources::free_mib(total_mib, &self.lock().holders())
    }

    /// The enclave that `selector` names.
    pub(crate) fn find(&self, selector: &Selector) -> Result<Enclave, Failure> {
        self.lock().find(selector)
    }

    /// Starts to stop an enclave at once, for `cause`. The first cause given is the one that is told.
    pub(crate) fn stop(&self, id: &str, cause: &str) {
        self.stop_within(id, cause, 0);
    }

    /// The same, with so many seconds for the application to stop by itself.
    pub(crate) fn stop_within(&self, id: &str, cause: &str, grace_s: u32) {
        let mut inner = self.lock();
        let Some(entry) = inner.enclaves.get_mut(id) else {
            return;
        };
        entry.cause.get_or_insert_with(|| cause.to_owned());
        let event = (std::mem::replace(&mut entry.view.state, State::Terminating)
            != State::Terminating)
            .then(|| entry.changed());
        let (ready, link) = (entry.ready, entry.link.clone());
        if let (true, Some(event)) = (ready, event) {
            inner.publish(&event);
        }
        drop(inner);
        self.changed.notify_all();
        // Outside the registry's lock: a vmm that does not read must not stop the others.
        if let Some(link) = link {
            let _ = say(&link, &ToVmm::Terminate { grace_s }, None);
        }
    }

    /// Kills the vmm and all of its process group, unless it was waited for already.
    pub(crate) fn kill(&self, id: &str) {
        if let Some(entry) = self.lock().enclaves.get(id) {
            entry.kill();
        }
    }

    /// Waits until nothing is left of the enclave; false after `limit`.
    pub(crate) fn wait_gone(&self, id: &str, limit: Duration) -> bool {
        self.wait_for(Some(limit), |inner| {
            (!inner.enclaves.contains_key(id)).then_some(())
        })
        .is_some()
    }

    /// Waits until the vmm's process was waited for; false after `limit`.
    pub(crate) fn wait_reaped(&self, id: &str, limit: Duration) -> bool {
        self.wait_for(Some(limit), |inner| {
            inner
                .enclaves
                .get(id)
                .is_none_or(Entry::is_reaped)
                .then_some(())
        })
        .is_some()
    }

    /// Called with a child that is dead but not yet waited for, so that its id cannot belong to anyone
    /// else: kills the rest of its group, then lets `reap` wait for it.
    pub(crate) fn reaped(&self, pid: Pid, signal: Option<i32>, reap: impl FnOnce()) {
        let mut inner = self.lock();
        let entry = inner
            .enclaves
            .values_mut()
            .find(|entry| entry.process == Process::Running(pid));
        if let Some(entry) = entry {
            entry.kill();
            entry.process = Process::Reaped(signal);
        }
        reap();
        self.changed.notify_all();
    }

    /// Forgets the enclave and tells everyone how it ended.
    pub(crate) fn remove(&self, id: &str) -> Option<Exit> {
        let mut inner = self.lock();
        let entry = inner.enclaves.remove(id)?;
        let past = entry.past();
        let exit = past.exit.clone();
        if inner.history.len() == HISTORY {
            inner.history.pop_front();
        }
        inner.history.push_back(past);
        if entry.ready {
            inner.publish(&Event::Removed(exit.clone()));
        }
        self.changed.notify_all();
        Some(exit)
    }

    /// Waits for the enclave's end, however long that takes; gives up when `abandoned` says so.
    pub(crate) fn wait_exit(
        &self,
        selector: &Selector,
        abandoned: impl Fn() -> bool,
    ) -> Result<Option<Exit>, Failure> {
        let id = match self.find(selector) {
            Ok(enclave) => enclave.id,
            Err(failure) => {
                return self.past_exit(selector).map(Some).ok_or(failure);
            }
        };
        let selector = Selector::Id(id.clone());
        loop {
            if self.wait_gone(&id, Duration::from_secs(1)) {
                return Ok(self.past_exit(&selector));
            }
            if abandoned() {
                return Ok(None);
            }
        }
    }

    fn past_exit(&self, selector: &Selector) -> Option<Exit> {
        let matches = |exit: &Exit| match selector {
            Selector::Id(id) => exit.id == *id,
            Selector::Name(name) => exit.name == *name,
        };
        self.lock().past(matches).map(|past| past.exit.clone())
    }

    /// Has the vmm copy the console to `client`, unless the enclave is ending, and its console with it.
    pub(crate) fn console(&self, id: &str, client: BorrowedFd<'_>) {
        let link = self
            .lock()
            .enclaves
            .get(id)
            .and_then(|entry| entry.link.clone());
        if let Some(link) = link {
            let _ = say(&link, &ToVmm::Console, Some(client));
        }
    }

    /// All that happens from now on, after what is there already.
    pub(crate) fn watch(&self) -> Watch {
        let mut inner = self.lock();
        inner
            .watchers
            .retain(|watcher| watcher.watch.strong_count() > 0);
        let (sender, events) = sync_channel(WATCH_BACKLOG);
        for entry in inner.enclaves.values().filter(|entry| entry.ready) {
            // Never full: fewer enclaves than the backlog has room for.
            let _ = sender.try_send(Event::Added(Box::new(entry.view.clone())));
        }
        let kept = Arc::new(());
        inner.watchers.push(Watcher {
            events: sender,
            watch: Arc::downgrade(&kept),
        });
        Watch {
            events,
            _kept: kept,
        }
    }

    /// Admits no further enclave and stops those that there are.
    pub(crate) fn close(&self, cause: &str) {
        let ids: Vec<String> = {
            let mut inner = self.lock();
            inner.closing = true;
            inner.enclaves.keys().cloned().collect()
        };
        for id in ids {
            self.stop(&id, cause);
        }
    }

    /// Kills every vmm.
    pub(crate) fn kill_all(&self) {
        for entry in self.lock().enclaves.values() {
            entry.kill();
        }
    }

    /// Whether there is no enclave.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().enclaves.is_empty()
    }
}

/// Memory held for an image's copy.
#[derive(Debug)]
pub(crate) struct Intake<'a> {
    registry: &'a Registry,
    uid: u32,
    bytes: u64,
}

impl Drop for Intake<'_> {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some(own) = inner.intake.get_mut(&self.uid) {
            *own = own.saturating_sub(self.bytes);
            if *own == 0 {
                inner.intake.remove(&self.uid);
            }
        }
    }
}

impl Inner {
    fn admit(&self) -> Result<(), Failure> {
        if self.closing {
            return Err(Code::Boot.because("the hypervisor is shutting down; start it again first"));
        }
        if self.enclaves.len() >= MAX_ENCLAVES {
            return Err(Code::Boot.because(format!(
                "this host already runs {MAX_ENCLAVES} enclaves, the most it can; terminate one"
            )));
        }
        Ok(())
    }

    /// What a new enclave gets of what the others leave.
    fn choose(
        &self,
        capacity: &Capacity,
        wanted: &Wanted<'_>,
    ) -> Result<(Enclave, CpuGrant), Failure> {
        let Wanted { request, image, .. } = wanted;
        let (holders, total) = (self.holders(), capacity.memory_mib);
        resources::check_memory(request.memory_mib, image.bytes, total, &holders)?;
        let cpus = resources::choose_cpus(&capacity.cpus, &holders, &request.cpus)?;
        let cid = resources::choose_cid(&self.set(|entry| entry.view.cid), request.cid)?;
        let names = self.set(|entry| entry.view.name.clone());
        let name = resources::choose_name(&names, &request.name)?;
        let id = format!("{}-enc{:x}", capacity.instance_id, wanted.slot);
        let enclave = Enclave {
            vsock: wanted.enclaves_dir.join(&id).join(crate::VSOCK_SOCKET),
            id,
            name,
            pid: 0,
            cid,
            cpu_ids: cpus.ids.clone(),
            cpu_count: cpus.count,
            memory_mib: request.memory_mib,
            state: State::Empty,
            debug: request.debug,
            measurements: image.measurements.clone(),
            image: image.metadata.clone(),
            owner_uid: wanted.caller.uid,
            boot: BootTimes {
                measured_ms: Some(millis(wanted.arrival)),
                ..BootTimes::default()
            },
        };
        Ok((enclave, cpus))
    }

    /// What every enclave has, those included that are on their way up or down.
    fn holders(&self) -> Vec<Holder> {
        let holder = |entry: &Entry| Holder {
            name: entry.view.name.clone(),
            uid: entry.view.owner_uid,
            memory_mib: entry.view.memory_mib,
            cpus: entry.pinned.clone(),
        };
        self.enclaves.values().map(holder).collect()
    }

    fn set<T: Ord>(&self, of: impl Fn(&Entry) -> T) -> BTreeSet<T> {
        self.enclaves.values().map(of).collect()
    }

    fn free_user_index(&self) -> u32 {
        let taken = self.set(|entry| entry.user_index);
        (0..u32::MAX)
            .find(|index| !taken.contains(index))
            .unwrap_or(u32::MAX)
    }

    fn find(&self, selector: &Selector) -> Result<Enclave, Failure> {
        let found = match selector {
            Selector::Id(id) => self.enclaves.get(id),
            Selector::Name(name) => self
                .enclaves
                .values()
                .find(|entry| entry.view.name == *name),
        };
        found
            .map(|entry| entry.view.clone())
            .ok_or_else(|| unknown(selector))
    }

    /// The last enclave that is gone and matches.
    fn past(&self, matches: impl Fn(&Exit) -> bool) -> Option<&Past> {
        self.history.iter().rev().find(|past| matches(&past.exit))
    }

    /// Sends to every watcher that keeps up, and cuts off the others.
    fn publish(&mut self, event: &Event) {
        self.watchers
            .retain(|watcher| watcher.events.try_send(event.clone()).is_ok());
    }
}

/// Says something to a vmm; false when it does not listen.
pub(crate) fn say(link: &Link, message: &ToVmm, descriptor: Option<BorrowedFd<'_>>) -> bool {
    let stream = link.lock().unwrap_or_else(PoisonError::into_inner);
    wire::send(&stream, message, descriptor, FRAME_TIMEOUT).is_ok()
}

fn unknown(selector: &Selector) -> Failure {
    match selector {
        Selector::Id(id) => Code::NoSuchEnclave.because(format!(
            "no enclave has the id {id:?}; describe-enclaves lists those that run"
        )),
        Selector::Name(name) => Code::Naming.because(format!(
            "no enclave has the name {name:?}; describe-enclaves lists those that run"
        )),
    }
}

#[cfg(test)]
mod tests {
    use enclos_api::control::Cpus;

    use super::*;
    use crate::link::Ended;

    const OWNER: Caller = Caller {
        uid: 1000,
        gid: 1000,
        privileged: false,
    };

    fn capacity() -> Capacity {
        Capacity {
            memory_mib: 1024,
            cpus: CpuPool {
                ids: vec![0, 1],
                set_aside: false,
            },
            instance_id: "i-0123456789abcdef0".to_owned(),
        }
    }

    fn request(memory_mib: u64) -> RunRequest {
        RunRequest {
            protocol: enclos_api::PROTOCOL_VERSION,
            name: "app".to_owned(),
            cpus: Cpus::Count(1),
            memory_mib,
            cid: None,
            debug: false,
        }
    }

    fn reserve(registry: &Registry, memory_mib: u64, slot: u64) -> Result<Reservation, Failure> {
        let image = ImageFacts {
            bytes: 1,
            ..ImageFacts::default()
        };
        registry.reserve(
            &capacity(),
            Wanted {
                caller: OWNER,
                request: &request(memory_mib),
                image: &image,
                arrival: Instant::now(),
                enclaves_dir: Path::new("/run/enclos/enclaves"),
                slot,
            },
        )
    }

    #[test]
    fn what_an_entry_holds_is_free_once_it_is_removed() {
        let registry = Registry::default();
        let first = reserve(&registry, 512, 0x1a).unwrap();
        assert_eq!(first.enclave.id, "i-0123456789abcdef0-enc1a");
        let second = reserve(&registry, 512, 2).unwrap();
        assert_eq!(
            (second.enclave.cid, second.enclave.name.as_str()),
            (17, "app_1")
        );
        assert_ne!(first.user_index, second.user_index);
        assert_eq!(reserve(&registry, 64, 3).unwrap_err().code, 27);
        registry.remove(&first.enclave.id).unwrap();
        let third = reserve(&registry, 512, 4).unwrap();
        assert_eq!(
            (third.enclave.cid, third.enclave.name.as_str()),
            (16, "app")
        );
        assert_eq!(third.user_index, first.user_index);
    }

    #[test]
    fn images_being_read_are_bounded_per_user_and_in_all() {
        const MIB: u64 = 1 << 20;
        let registry = Registry::default();
        let other = Caller { uid: 1001, ..OWNER };
        let root = Caller {
            uid: 0,
            privileged: true,
            ..OWNER
        };
        let first = registry.admit_image(OWNER, 256 * MIB, 1024).unwrap();
        assert_eq!(registry.admit_image(OWNER, 1, 1024).unwrap_err().code, 27);
        let second = registry.admit_image(other, 255 * MIB, 1024).unwrap();
        let third = registry.admit_image(root, MIB, 1024).unwrap();
        assert_eq!(registry.admit_image(root, 1, 1024).unwrap_err().code, 27);
        drop(first);
        assert!(registry.admit_image(OWNER, MIB, 1024).is_ok());
        drop((second, third));
        assert!(registry.admit_image(root, 512 * MIB, 1024).is_ok());
    }

    #[test]
    fn watchers_see_added_changed_removed_once_each() {
        let registry = Registry::default();
        let id = reserve(&registry, 64, 1).unwrap().enclave.id;
        let early = registry.watch();
        assert!(
            early.events.try_recv().is_err(),
            "nothing to tell before the directory is ready"
        );
        registry.heard(&id, FromVmm::Ready);
        registry.heard(&id, FromVmm::Ready);
        let late = registry.watch();
        registry.heard(&id, FromVmm::Heartbeat);
        registry.heard(&id, FromVmm::Heartbeat);
        registry.remove(&id);
        for watcher in [early.events, late.events] {
            assert!(matches!(watcher.try_recv().unwrap(), Event::Added(_)));
            let Event::Changed(enclave) = watcher.try_recv().unwrap() else {
                panic!("changed")
            };
            assert_eq!(enclave.state, State::Running);
            assert!(matches!(watcher.try_recv().unwrap(), Event::Removed(_)));
            assert!(watcher.try_recv().is_err());
        }
    }

    #[test]
    fn watchers_that_are_gone_are_forgotten_though_nothing_happens() {
        let registry = Registry::default();
        let stays = registry.watch();
        for _ in 0..100 {
            drop(registry.watch());
        }
        assert!(registry.lock().watchers.len() <= 2);
        let id = reserve(&registry, 64, 1).unwrap().enclave.id;
        registry.heard(&id, FromVmm::Ready);
        assert!(matches!(stays.events.try_recv().unwrap(), Event::Added(_)));
    }

    #[test]
    fn a_boot_that_ends_early_tells_the_vmms_last_word() {
        let registry = Registry::default();
        let id = reserve(&registry, 64, 1).unwrap().enclave.id;
        assert!(matches!(
            registry.wait_boot(&id, Duration::from_millis(1)),
            Boot::TimedOut
        ));
        let ended = Ended {
            reason: "no kernel".into(),
            tail: "panic".into(),
            ..Ended::default()
        };
        registry.heard(&id, FromVmm::Ended(ended));
        let told = || {
            let Boot::Down(past) = registry.wait_boot(&id, Duration::ZERO) else {
                panic!("down")
            };
            (past.exit.reason, past.tail)
        };
        let expected = ("no kernel".to_owned(), "panic".to_owned());
        assert_eq!(told(), expected);
        registry.remove(&id);
        assert_eq!(told(), expected, "also when it is gone already");
    }

    #[test]
    fn the_first_cause_of_a_stop_is_the_one_told_to_late_waiters_too() {
        let registry = Registry::default();
        let id = reserve(&registry, 64, 1).unwrap().enclave.id;
        registry.stop(&id, "terminated by request");
        registry.stop(&id, "the hypervisor shut down");
        registry.remove(&id);
        let exit = registry
            .wait_exit(&Selector::Id(id), || true)
            .unwrap()
            .unwrap();
        assert_eq!(exit.reason, "terminated by request");
        let by_name = registry
            .wait_exit(&Selector::Name("app".into()), || true)
            .unwrap()
            .unwrap();
        assert_eq!(by_name, exit);
        let none = registry
            .wait_exit(&Selector::Name("other".into()), || true)
            .unwrap_err();
        assert_eq!(none.code, 58);
    }

    #[test]
    fn a_closing_host_admits_nobody() {
        let registry = Registry::default();
        registry.close("the hypervisor shut down");
        assert_eq!(reserve(&registry, 64, 1).unwrap_err().code, 36);
        assert!(registry.is_empty());
    }

    #[test]
    fn only_owners_and_the_privileged_control_an_enclave() {
        assert!(OWNER.may_control(1000));
        assert!(!OWNER.may_control(1001));
        assert!(
            Caller {
                privileged: true,
                ..OWNER
            }
            .may_control(1001)
        );
    }
}
