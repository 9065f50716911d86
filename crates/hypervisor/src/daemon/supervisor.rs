//! One thread per enclave: hears its vmm out, and cleans up after it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use enclos_api::frame::FrameError;
use rustix::process::{Pid, test_kill_process_group};

use crate::allowance::Allowance;
use crate::daemon::files;
use crate::daemon::registry::{Link, say};
use crate::daemon::serve::Hypervisor;
use crate::link::{FRAME_TIMEOUT, FromVmm, ToVmm};
use crate::log;
use crate::wire;

/// Time for a vmm that has said its last word, or has hung up, to exit by itself.
const EXIT_GRACE: Duration = Duration::from_secs(3);

/// Time for killed processes to be gone; their memory is given back in it.
const KILL_GRACE: Duration = Duration::from_secs(30);

/// Messages that a vmm may send in a burst, and how fast that allowance is restored: far above what a life
/// cycle has, far below what would occupy the hypervisor.
const BURST: u32 = 256;
const RESTORED_PER_SECOND: f64 = 8.0;

/// An enclave under supervision.
pub(crate) struct Supervisor {
    pub(crate) hypervisor: Arc<Hypervisor>,
    pub(crate) id: String,
    pub(crate) slot: u64,
    pub(crate) pid: Pid,
    pub(crate) link: Link,
    /// The same socket, for reading.
    pub(crate) stream: UnixStream,
}

impl Supervisor {
    /// Runs until nothing of the enclave is left.
    pub(crate) fn run(self, launch: ToVmm) {
        if say(&self.link, &launch, None) {
            self.listen();
        }
        self.clean_up();
    }

    fn listen(&self) {
        let mut allowance = Allowance::new(BURST, RESTORED_PER_SECOND);
        let mut certified = false;
        loop {
            match self.hear() {
                Ok(FromVmm::Key(spki)) => certified |= self.certify(&spki, certified),
                Ok(message) => {
                    let last = matches!(message, FromVmm::Ended(_));
                    self.hypervisor.registry.heard(&self.id, message);
                    if last {
                        return;
                    }
                }
                Err(FrameError::Closed) => return,
                Err(error) => {
                    log::warn(format_args!("{}: its vmm: {}", self.id, log::chain(&error)));
                    return;
                }
            }
            if !allowance.take(1) {
                log::warn(format_args!(
                    "{}: its vmm talks too much and is stopped",
                    self.id
                ));
                return;
            }
        }
    }

    /// Waits without limit for a frame to begin, and not long for it to end.
    fn hear(&self) -> Result<FromVmm, FrameError> {
        wire::wait_readable(&self.stream, None)?;
        Ok(wire::receive(&self.stream, FRAME_TIMEOUT)?.0)
    }

    /// Issues a certificate, and says whether it did. A vmm that has one uses it for as long as it is good, and asks again.
    fn certify(&self, spki: &[u8], has_one: bool) -> bool {
        match self.hypervisor.authority.issue(spki, &self.id, self.slot) {
            Ok(chain) => say(&self.link, &ToVmm::Certificate(chain), None),
            Err(error) => {
                log::error(format_args!("{}: {}", self.id, log::chain(&error)));
                if !has_one {
                    self.hypervisor
                        .registry
                        .stop(&self.id, "its key could not be certified");
                }
                false
            }
        }
    }

    fn clean_up(self) {
        let Self {
            hypervisor,
            id,
            pid,
            ..
        } = self;
        let registry = &hypervisor.registry;
        if !registry.wait_reaped(&id, EXIT_GRACE) {
            registry.kill(&id);
            registry.wait_reaped(&id, KILL_GRACE);
        }
        if !wait_group_gone(pid) {
            log::error(format_args!(
                "{id}: processes of its group {pid} cannot be killed"
            ));
        }
        release(&hypervisor, &id);
    }
}

/// Removes an enclave's cgroup with all that is in it, its directory, and then its entry, which frees everything it held.
pub(crate) fn release(hypervisor: &Hypervisor, id: &str) {
    if let Ok(groups) = &hypervisor.groups {
        match groups.remove(id) {
            Ok(false) => {}
            Ok(true) => log::warn(format_args!(
                "{id}: the kernel killed a process of it that took more than the memory.max of its cgroup"
            )),
            Err(error) => log::error(format_args!("{id}: cannot remove its cgroup: {error}")),
        }
    }
    let dir = hypervisor.run.enclaves.join(id);
    if let Err(error) = files::remove_dir(&dir) {
        log::error(format_args!(
            "{id}: cannot remove {}: {error}",
            dir.display()
        ));
    }
    if let Some(exit) = hypervisor.registry.remove(id) {
        log::info(format_args!("{id} ({}) ended: {}", exit.name, exit.reason));
        hypervisor.logs.end(id, &exit.reason);
    }
}

/// Waits until the group has no member. The main thread waits for all of them: they are its children, or
/// become so when their vmm dies.
fn wait_group_gone(group: Pid) -> bool {
    let deadline = Instant::now() + KILL_GRACE;
    while test_kill_process_group(group).is_ok() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}
