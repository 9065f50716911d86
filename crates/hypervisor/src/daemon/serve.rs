//! The main thread: set-up, then one loop over signals, forks to make, connections and dead children.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use enclos_api::config::HostConfig;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use crate::daemon::allocator::{self, AllocatorError, Topology};
use crate::daemon::authority::{AuthorityError, Store};
use crate::daemon::cgroup::{Groups, Unavailable};
use crate::daemon::config::{self, ConfigError};
use crate::daemon::files::{FilesError, RunDir};
use crate::daemon::logs::Logs;
use crate::daemon::registry::{Capacity, Registry};
use crate::daemon::resources::CpuPool;
use crate::daemon::session::{self, Admission};
use crate::daemon::users::{self, UsersError};
use crate::engine::qemu::{self, Installed, ProbeError};
use crate::engine::tsc;
use crate::host;
use crate::log;
use crate::sys::{self, Confinement, Signals};

/// Longest wait for enclaves to end before they are killed, and then for what is left of them to go.
const SHUTDOWN_STEP: Duration = Duration::from_secs(5);

/// Descriptors that are enough for all sessions and enclaves at once.
const MAX_DESCRIPTORS: u64 = 8192;

/// What `serve` was told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The operator's file.
    pub config: PathBuf,
    /// Where the CA is kept.
    pub state_dir: PathBuf,
    /// Where sockets and enclaves' directories are made.
    pub run_dir: PathBuf,
    /// CPUs and memory for enclaves; `None` looks where AWS's allocator does.
    pub allocator: Option<PathBuf>,
    /// Memory for enclaves in MiB; `None` takes the allocator's, else what is available now, less a reserve for the host.
    pub memory_mib: Option<u64>,
    /// QEMU's program; `None` looks in `PATH`.
    pub qemu: Option<PathBuf>,
    /// `enclos-vmm`; `None` looks beside this program.
    pub vmm: Option<PathBuf>,
    /// Time for a guest to send its heartbeat; `None` takes nitro-cli's formula.
    pub boot_timeout: Option<Duration>,
    /// First of the user ids that enclaves run as, when this process is root; `None` finds a range.
    pub uid_base: Option<u32>,
}

/// Why the hypervisor could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What is set aside for enclaves.
    #[error(transparent)]
    Allocator(#[from] AllocatorError),
    /// The run directory.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] ProbeError),
    /// There is no `enclos-vmm`.
    #[error("cannot open {}; install enclos-vmm beside enclos-hypervisor", path.display())]
    NoVmm {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Enclaves cannot have users of their own.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The operating system.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// What every thread of the hypervisor knows.
#[derive(Debug)]
pub(crate) struct Hypervisor {
    pub(crate) config: HostConfig,
    pub(crate) capacity: Capacity,
    pub(crate) run: RunDir,
    pub(crate) authority: Store,
    pub(crate) logs: Logs,
    pub(crate) engine: Installed,
    pub(crate) tsc_khz: u64,
    /// The program of `enclos-vmm`, open: enclaves' users need not be able to reach it by path.
    pub(crate) vmm: File,
    /// Replaces the computed boot timeout.
    pub(crate) boot_timeout: Option<Duration>,
    /// First user id for enclaves; `None` when this process is not root.
    pub(crate) uid_base: Option<u32>,
    /// Which CPU is on which NUMA node.
    pub(crate) topology: Topology,
    /// What enclaves are held by; without it affinity and resource limits are left.
    pub(crate) groups: Result<Groups, Unavailable>,
    pub(crate) registry: Registry,
    pub(crate) forks: Forks,
}

/// Where other threads hand in what the main thread has to fork.
#[derive(Debug)]
pub(crate) struct Forks {
    sender: Sender<Fork>,
    wake: OwnedFd,
}

/// A child to start, and where to say how that went. Whoever may be asked about the child is told of it by `start`: on the main
/// thread, and so before it can be waited for.
pub(crate) struct Fork {
    pub(crate) start: Box<dyn FnOnce() -> io::Result<Pid> + Send>,
    pub(crate) reply: Sender<io::Result<Pid>>,
}

impl Forks {
    /// Has the main thread run `start`, which forks.
    pub(crate) fn run(
        &self,
        start: impl FnOnce() -> io::Result<Pid> + Send + 'static,
    ) -> io::Result<Pid> {
        let (reply, answer) = channel();
        let gone = || io::Error::other("the hypervisor is shutting down");
        let fork = Fork {
            start: Box::new(start),
            reply,
        };
        self.sender.send(fork).map_err(|_| gone())?;
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// See [`ServeError`]; all of them before anything is served.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD])
        .map_err(system("block signals"))?;
    raise_descriptor_limit();
    forbid_core_files();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // An engine whose vmm died becomes our child, so that we see it go.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| system("become a subreaper")(e.into()))?;
    let (hypervisor, forks) = prepare(options)?;
    let listener = hypervisor.run.listen()?;
    listener
        .set_nonblocking(true)
        .map_err(system("configure the control socket"))?;
    let host = &hypervisor.config.instance;
    log::info(format_args!(
        "serving on {}: instance {}, {} MiB, {} CPUs, {}",
        hypervisor.run.socket.display(),
        host.id,
        hypervisor.capacity.memory_mib,
        hypervisor.capacity.cpus.ids.len(),
        hypervisor.engine.version
    ));
    let main = Main {
        hypervisor,
        signals,
        listener,
        forks,
        admission: Admission::default(),
    };
    main.run().map_err(system("wait for events"))
}

/// What the operator set aside; without that, everything but what the host needs.
fn capacity(
    options: &Options,
    config: &HostConfig,
    topology: &Topology,
) -> Result<Capacity, ServeError> {
    let named = options.allocator.as_deref();
    let set_aside = allocator::read(named, topology, host::memory_total_mib())?;
    let cpus = CpuPool {
        set_aside: set_aside.is_some(),
        ids: set_aside
            .as_ref()
            .map_or_else(host::cpus, |set_aside| set_aside.cpus.clone()),
    };
    let memory_mib = options
        .memory_mib
        .or_else(|| set_aside.map(|set_aside| set_aside.memory_mib));
    Ok(Capacity {
        memory_mib: memory_mib.unwrap_or_else(host::memory_for_enclaves_mib),
        cpus,
        instance_id: config.instance.id.clone(),
    })
}

fn prepare(options: &Options) -> Result<(Arc<Hypervisor>, Receiver<Fork>), ServeError> {
    let config = config::read(&options.config)?;
    let engine = qemu::probe(options.qemu.as_deref())?;
    let vmm = find_vmm(options)?;
    let (run, stale) = RunDir::open(&options.run_dir)?;
    for id in stale {
        log::warn(format_args!(
            "removed what an earlier hypervisor left of {id}"
        ));
    }
    let authority = Store::open(&options.state_dir, &config.instance)?;
    let (sender, forks) = channel();
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| system("make an event descriptor")(error.into()))?;
    let topology = Topology::of_this_host();
    let run_dir = run.path().to_owned();
    let hypervisor = Hypervisor {
        capacity: capacity(options, &config, &topology)?,
        config,
        run,
        authority,
        logs: Logs::below(&options.state_dir),
        engine,
        tsc_khz: tsc::measure_khz().map_err(system("measure the time stamp counter"))?,
        vmm,
        boot_timeout: options.boot_timeout,
        uid_base: uid_base(options)?,
        topology,
        // Last: nothing fails from here on that would leave the groups behind.
        groups: groups(&run_dir),
        registry: Registry::default(),
        forks: Forks { sender, wake },
    };
    Ok((Arc::new(hypervisor), forks))
}

/// Enclaves' groups, if there can be any, and a line that says which it is.
fn groups(run_dir: &Path) -> Result<Groups, Unavailable> {
    match Groups::open(run_dir) {
        Ok((groups, stale)) => {
            for id in stale {
                log::warn(format_args!(
                    "removed the cgroup that an earlier hypervisor left of {id}"
                ));
            }
            let held = groups.controllers().join(", ");
            log::info(format_args!("enclaves are held by cgroup v2: {held}"));
            Ok(groups)
        }
        Err(problem) => {
            log::info(format_args!(
                "enclaves are held by affinity and resource limits, not by cgroup v2: {}",
                log::chain(&problem)
            ));
            Err(problem)
        }
    }
}

/// Every session and enclave takes a few descriptors, and the usual soft limit of 1024 is there for programs that
/// use select. What the hard limit does not allow, connections will be refused for.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    let wanted = Rlimit {
        current: Some(hard.unwrap_or(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS)),
        maximum: hard,
    };
    let _ = setrlimit(Resource::Nofile, wanted);
}

/// A core file would hold the keys of the certificate authority. (A process that cannot be dumped at all could not start
/// `enclos-vmm` by its descriptor, unless it is root's.)
fn forbid_core_files() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        log::warn(format_args!("core files are not switched off: {error}"));
    }
}

fn find_vmm(options: &Options) -> Result<File, ServeError> {
    let path = match &options.vmm {
        Some(path) => path.clone(),
        None => {
            let program = std::env::current_exe().map_err(system("find this program's file"))?;
            program.with_file_name("enclos-vmm")
        }
    };
    File::open(&path).map_err(|source| ServeError::NoVmm { path, source })
}

fn uid_base(options: &Options) -> Result<Option<u32>, ServeError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    Ok(Some(users::base(options.uid_base)?))
}

struct Main {
    hypervisor: Arc<Hypervisor>,
    signals: Signals,
    listener: UnixListener,
    forks: Receiver<Fork>,
    admission: Admission,
}

impl Main {
    fn run(self) -> io::Result<()> {
        loop {
            self.wait(true, None)?;
            if self.serve_signals()? {
                break;
            }
            self.serve_forks();
            self.accept();
        }
        self.shut_down()
    }

    /// Sleeps until there is something to do.
    fn wait(&self, listening: bool, limit: Option<Duration>) -> io::Result<()> {
        let mut ready = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::new(&self.hypervisor.forks.wake, PollFlags::IN),
        ];
        if listening {
            ready.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut ready, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for dead children; true when it is time to stop.
    fn serve_signals(&self) -> io::Result<bool> {
        let mut stop = false;
        while let Some(signal) = self.signals.next()? {
            stop |= signal == libc::SIGTERM || signal == libc::SIGINT;
        }
        self.reap();
        Ok(stop)
    }

    /// Looks at each dead child before waiting for it: as long as it is not waited for, its process id is its own,
    /// and what else is in its group can be killed safely.
    fn reap(&self) {
        while let Some((pid, signal)) = sys::dead_child() {
            let Some(pid) = Pid::from_raw(pid) else {
                return;
            };
            self.hypervisor.registry.reaped(pid, signal, || {
                let take = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let _ = rustix::process::waitid(WaitId::Pid(pid), take);
            });
        }
    }

    fn serve_forks(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.hypervisor.forks.wake, &mut count);
        for fork in self.forks.try_iter() {
            // Who asked may have given up; the registry knows the child all the same.
            let _ = fork.reply.send((fork.start)());
        }
    }

    fn accept(&self) {
        // Bounded, so that a crowd at the door does not keep us from children and signals.
        for _ in 0..16 {
            match self.listener.accept() {
                Ok((stream, _)) => session::begin(&self.hypervisor, &self.admission, stream),
                Err(_) => return,
            }
        }
    }

    fn shut_down(&self) -> io::Result<()> {
        log::info("stopping: ending all enclaves");
        let _ = std::fs::remove_file(&self.hypervisor.run.socket);
        let registry = &self.hypervisor.registry;
        let closing = Arc::clone(&self.hypervisor);
        let stopper =
            std::thread::spawn(move || closing.registry.close("the hypervisor was stopped"));
        if !self.drain(SHUTDOWN_STEP)? {
            registry.kill_all();
            self.drain(SHUTDOWN_STEP)?;
        }
        if !registry.is_empty() {
            log::warn("some enclaves could not be cleaned up; the next start will");
        }
        drop(stopper);
        if let Ok(groups) = &self.hypervisor.groups {
            groups.close();
        }
        log::info("stopped");
        Ok(())
    }

    /// Goes on waiting for children until no enclave is left; false after `limit`.
    fn drain(&self, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        while !self.hypervisor.registry.is_empty() {
            if Instant::now() > deadline {
                return Ok(false);
            }
            self.wait(false, Some(Duration::from_millis(20)))?;
            self.serve_signals()?;
            self.serve_forks();
        }
        Ok(true)
    }
}

/// Forks a vmm; only the main thread may call this.
pub(crate) fn fork(command: &mut Command, confinement: &Confinement<'_>) -> io::Result<Pid> {
    let child = sys::spawn(command, confinement)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the child has no process id"))
}
