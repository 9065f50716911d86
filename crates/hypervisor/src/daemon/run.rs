//! Starting an enclave: from a request with a descriptor to a heartbeat, or to a reason and nothing left.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use enclos_api::PROTOCOL_VERSION;
use enclos_api::control::{Enclave, Failure, RunRequest, Success};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::cli::BOOT_TIMEOUT_VARIABLE;
use crate::daemon::cgroup::{Group, Limits};
use crate::daemon::files::FilesError;
use crate::daemon::image::{self, Candidate, Image};
use crate::daemon::registry::{Boot, Caller, Link, Reservation, Wanted};
use crate::daemon::serve::{self, Hypervisor};
use crate::daemon::supervisor::{self, Supervisor};
use crate::failure::Code;
use crate::link::{LaunchSpec, ToVmm};
use crate::log;
use crate::sys::{Confinement, Identity};

/// Resource limits of a vmm and its engine: no core files with an enclave's memory in them, and room for
/// their sockets and threads, but not for a fork bomb.
const LIMITS: &[(u32, u64)] = &[
    (libc::RLIMIT_CORE, 0),
    (libc::RLIMIT_NOFILE, 4096),
    (libc::RLIMIT_MEMLOCK, 0),
];

/// Threads and processes of one enclave's user.
const MAX_TASKS: u64 = 512;

/// Runs an enclave for `caller`.
pub(crate) fn run(
    hypervisor: &Arc<Hypervisor>,
    caller: Caller,
    request: &RunRequest,
    image: OwnedFd,
    arrival: Instant,
) -> Result<Success, Failure> {
    if request.protocol != PROTOCOL_VERSION {
        return Err(Code::InvalidCommand.because(format!(
            "the client speaks protocol {}, this hypervisor {PROTOCOL_VERSION}; install the same release of both",
            request.protocol
        )));
    }
    let candidate = Candidate::new(image, hypervisor.capacity.memory_mib)?;
    let intake =
        hypervisor
            .registry
            .admit_image(caller, candidate.bytes, hypervisor.capacity.memory_mib)?;
    let image = image::take_in(candidate)?;
    let slot = random_slot().map_err(|error| Code::ProcessSpawn.because(error.to_string()))?;
    let wanted = Wanted {
        caller,
        request,
        image: &image.facts,
        arrival,
        enclaves_dir: &hypervisor.run.enclaves,
        slot,
    };
    let reservation = hypervisor.registry.reserve(&hypervisor.capacity, wanted)?;
    let bytes = image.facts.bytes;
    if let Err(error) = start(hypervisor, caller, &reservation, image) {
        supervisor::release(hypervisor, &reservation.enclave.id);
        return Err(Code::ProcessSpawn.because(log::chain(&error)));
    }
    // The copy is the vmm's now, and goes when it is unpacked.
    drop(intake);
    let enclave = await_heartbeat(hypervisor, &reservation.enclave, bytes)?;
    let warnings = reservation.cpus.warning.into_iter().collect();
    Ok(Success::Started {
        enclave: Box::new(enclave),
        warnings,
    })
}

/// 64 random bits, the highest set: the id's hex then has sixteen digits, padded or not.
fn random_slot() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes) | 1 << 63)
}

/// Why a vmm could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("cannot make the socket pair to the enclave's vmm")]
    Socket(#[source] io::Error),
    #[error("cannot open the enclave's directory")]
    Directory(#[source] io::Error),
    #[error("cannot make the enclave's cgroup")]
    Group(#[source] io::Error),
    #[error("cannot start enclos-vmm")]
    Fork(#[source] io::Error),
    #[error("cannot start the enclave's supervisor thread")]
    Thread(#[source] io::Error),
}

fn start(
    hypervisor: &Arc<Hypervisor>,
    caller: Caller,
    reservation: &Reservation,
    image: Image,
) -> Result<(), StartError> {
    let id = &reservation.enclave.id;
    let identity = hypervisor
        .uid_base
        .map(|base| base + reservation.user_index);
    let identity = identity.map(|id| Identity { uid: id, gid: id });
    let dir = hypervisor.run.make_enclave_dir(id, identity, caller.gid)?;
    let (ours, theirs) = UnixStream::pair().map_err(StartError::Socket)?;
    let stream = ours.try_clone().map_err(StartError::Socket)?;
    let link: Link = Arc::new(Mutex::new(ours));
    let child = VmmChild {
        socket: theirs,
        image: image.file,
        directory: File::open(&dir).map_err(StartError::Directory)?,
        log: hypervisor.logs.begin(&reservation.enclave, caller.gid),
        identity,
        group: make_group(hypervisor, reservation)?,
    };
    let own_log = child.log.is_some();
    let fork = fork_vmm(hypervisor, id, child, Arc::clone(&link));
    let pid = hypervisor.forks.run(fork).map_err(StartError::Fork)?;
    let supervisor = Supervisor {
        hypervisor: Arc::clone(hypervisor),
        id: id.clone(),
        slot: reservation.slot,
        pid,
        link,
        stream,
    };
    let launch = ToVmm::Launch(Box::new(launch_spec(hypervisor, reservation, own_log)));
    let thread = thread::Builder::new().name("supervisor".into());
    match thread.spawn(move || supervisor.run(launch)) {
        Ok(_) => Ok(()),
        Err(error) => {
            hypervisor.registry.kill(id);
            Err(StartError::Thread(error))
        }
    }
}

/// What a vmm is started with.
struct VmmChild {
    socket: UnixStream,
    image: File,
    directory: File,
    /// Where it says what happens; `None`: where the hypervisor does.
    log: Option<File>,
    identity: Option<Identity>,
    /// Where it is held, if there are cgroups.
    group: Option<Group>,
}

/// The enclave's cgroup, with the limits of what it was granted.
fn make_group(
    hypervisor: &Hypervisor,
    reservation: &Reservation,
) -> Result<Option<Group>, StartError> {
    let Ok(groups) = &hypervisor.groups else {
        return Ok(None);
    };
    let Reservation { enclave, cpus, .. } = reservation;
    let cpus = if cpus.pinned {
        cpus.ids.clone()
    } else {
        Vec::new()
    };
    let limits = Limits {
        nodes: hypervisor.topology.nodes_of(&cpus),
        cpus,
        memory_mib: enclave.memory_mib,
        tasks: MAX_TASKS,
    };
    let group = groups.make(&enclave.id, &limits);
    group.map(Some).map_err(StartError::Group)
}

impl VmmChild {
    /// Forks; on the main thread.
    fn start(&self, program: &File) -> io::Result<Pid> {
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command
            .arg0("enclos-vmm")
            .env_clear()
            .arg(format!("--link={}", self.socket.as_raw_fd()))
            .arg(format!("--image={}", self.image.as_raw_fd()))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(log) = &self.log {
            command.stderr(log.try_clone()?);
        }
        let mut limits = LIMITS.to_vec();
        if self.identity.is_some() {
            // Counted per user: meaningless when the user is shared with the rest of the session.
            limits.push((libc::RLIMIT_NPROC, MAX_TASKS));
        }
        let confinement = Confinement {
            inherit: &[self.socket.as_fd(), self.image.as_fd()],
            directory: Some(self.directory.as_fd()),
            identity: self.identity,
            group: self.group.as_ref().map(Group::entrance),
            namespaces: self.identity.is_some(),
            own_group: true,
            limits: &limits,
        };
        serve::fork(&mut command, &confinement)
    }
}

/// What the main thread does to start a vmm: fork, and enter the child into the registry before anyone
/// could wait for it.
fn fork_vmm(
    hypervisor: &Arc<Hypervisor>,
    id: &str,
    child: VmmChild,
    link: Link,
) -> impl FnOnce() -> io::Result<Pid> + Send + 'static {
    let (hypervisor, id) = (Arc::clone(hypervisor), id.to_owned());
    move || {
        let pid = child.start(&hypervisor.vmm)?;
        hypervisor.registry.started(&id, pid, link);
        Ok(pid)
    }
}

fn launch_spec(hypervisor: &Hypervisor, reservation: &Reservation, own_log: bool) -> LaunchSpec {
    let Reservation { enclave, cpus, .. } = reservation;
    LaunchSpec {
        id: enclave.id.clone(),
        instance_id: hypervisor.config.instance.id.clone(),
        role_arn: hypervisor.config.role.as_ref().map(|role| role.arn.clone()),
        cid: enclave.cid,
        cpus: cpus.count,
        pinned_to: if cpus.pinned {
            cpus.ids.clone()
        } else {
            Vec::new()
        },
        memory_mib: enclave.memory_mib,
        debug: enclave.debug,
        measurements: enclave.measurements.clone(),
        qemu: hypervisor.engine.program.clone(),
        tsc_khz: hypervisor.tsc_khz,
        own_log,
    }
}

fn await_heartbeat(
    hypervisor: &Hypervisor,
    enclave: &Enclave,
    image_bytes: u64,
) -> Result<Enclave, Failure> {
    let id = &enclave.id;
    let computed = || Duration::from_millis(boot_timeout_ms(image_bytes, enclave.memory_mib));
    let limit = hypervisor.boot_timeout.unwrap_or_else(computed);
    let (reason, tail) = match hypervisor.registry.wait_boot(id, limit) {
        Boot::Up(enclave) => {
            let milliseconds = enclave.boot.heartbeat_ms.unwrap_or_default();
            log::info(format_args!(
                "{id} ({}) is up after {milliseconds} ms",
                enclave.name
            ));
            return Ok(*enclave);
        }
        Boot::Down(past) => (past.exit.reason, past.tail),
        Boot::TimedOut => {
            let reason = format!(
                "no heartbeat within {} ms; {BOOT_TIMEOUT_VARIABLE} sets another limit",
                limit.as_millis()
            );
            hypervisor.registry.stop(id, &reason);
            (reason, String::new())
        }
    };
    supervisor_done(hypervisor, id);
    Err(Code::Boot.because(describe_failure(&reason, &tail, enclave.debug)))
}

/// A failed start leaves nothing behind by the time it is answered.
fn supervisor_done(hypervisor: &Hypervisor, id: &str) {
    const LIMIT: Duration = Duration::from_secs(10);
    if !hypervisor.registry.wait_gone(id, LIMIT) {
        hypervisor.registry.kill(id);
        hypervisor.registry.wait_gone(id, LIMIT);
    }
}

fn describe_failure(reason: &str, tail: &str, debug: bool) -> String {
    let mut message = format!("the enclave did not come up: {reason}");
    if !tail.is_empty() {
        message.push_str("\nlast output:\n");
        message.push_str(tail);
    } else if !debug {
        message.push_str("; run it with --debug-mode to see its console");
    }
    message
}

/// nitro-cli's formula.
fn boot_timeout_ms(image_bytes: u64, memory_mib: u64) -> u64 {
    const STEP_MS: u64 = 90_000;
    const GIB: u64 = 1 << 30;
    let steps = |bytes: u64, size: u64| 1 + bytes.saturating_sub(1) / size;
    let memory_bytes = memory_mib.saturating_mul(1 << 20);
    STEP_MS.saturating_mul(steps(image_bytes, 6 * GIB) + steps(memory_bytes, 100 * GIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_timeout_is_nitros() {
        assert_eq!(boot_timeout_ms(1, 64), 180_000);
        assert_eq!(boot_timeout_ms(6 << 30, 100 << 10), 180_000);
        assert_eq!(boot_timeout_ms((6 << 30) + 1, 100 << 10), 270_000);
        assert_eq!(boot_timeout_ms(6 << 30, (100 << 10) + 1), 270_000);
    }

    #[test]
    fn slots_have_sixteen_digits_and_differ() {
        let (first, second) = (random_slot().unwrap(), random_slot().unwrap());
        assert_ne!(first, second);
        assert_eq!(format!("{first:x}").len(), 16);
    }

    #[test]
    fn a_failure_says_where_to_look_next() {
        assert!(describe_failure("why", "", false).contains("--debug-mode"));
        assert!(describe_failure("why", "panic", false).ends_with("panic"));
        assert!(!describe_failure("why", "", true).contains("--debug-mode"));
    }
}
