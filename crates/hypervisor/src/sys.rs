//! The operating system calls that need `unsafe`, each wrapped so that no caller does.
//!
//! * [`spawn`]: a child with chosen identity, limits, inherited descriptors and parent-death signal;
//! * [`Signals`]: signals as a descriptor that can be polled;
//! * [`adopt_fd`]: a descriptor that the parent left open for us;
//! * [`cycles`]: the processor's time stamp counter.
#![expect(
    unsafe_code,
    reason = "fork hooks, signal sets and descriptors by number have no safe interface"
)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;

/// An unprivileged identity for a child: user id and group id, no supplementary groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User id, real, effective and saved.
    pub uid: u32,
    /// Group id, real, effective and saved.
    pub gid: u32,
}

/// How [`spawn`] starts a child beyond what [`Command`] says.
#[derive(Debug, Default)]
pub struct Confinement<'a> {
    /// Descriptors the child inherits, under the same numbers. All others are closed at exec.
    pub inherit: &'a [BorrowedFd<'a>],
    /// Working directory, entered before the change of identity: the child need not be able to reach it by path.
    pub directory: Option<BorrowedFd<'a>>,
    /// Identity to change to; `None` keeps the parent's.
    pub identity: Option<Identity>,
    /// The `cgroup.procs` of the cgroup v2 that the child joins, open for writing; `None` leaves it in the parent's.
    pub group: Option<BorrowedFd<'a>>,
    /// Whether the child gets empty network, IPC and host-name namespaces. Needs privileges.
    pub namespaces: bool,
    /// Whether the child leads a process group of its own.
    pub own_group: bool,
    /// Resource limits, soft and hard alike: `RLIMIT_*` number and value. A lower hard limit of ours stays.
    pub limits: &'a [(u32, u64)],
}

/// Starts `command` under `confinement`. The child gets SIGKILL when the *thread* that called this ends,
/// so call it from a thread that lives as long as the process: the main thread.
///
/// # Errors
/// Whatever fork, exec or the steps between them fail with; the child then does not exist.
pub fn spawn(command: &mut Command, confinement: &Confinement<'_>) -> io::Result<Child> {
    let inherit: Vec<RawFd> = confinement.inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let limits = confinement.limits.to_vec();
    let plan = Plan {
        inherit,
        limits,
        directory: confinement.directory.map(|fd| fd.as_raw_fd()),
        group: confinement.group.map(|fd| fd.as_raw_fd()),
        identity: confinement.identity,
        namespaces: confinement.namespaces,
        own_group: confinement.own_group,
        // SAFETY: getpid has no preconditions.
        parent: unsafe { libc::getpid() },
    };
    // SAFETY: `Plan::apply` runs between fork and exec. It only makes system calls on memory that was
    // allocated before the fork: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(move || plan.apply()) };
    command.spawn()
}

/// What the child does to itself between fork and exec.
struct Plan {
    inherit: Vec<RawFd>,
    limits: Vec<(u32, u64)>,
    directory: Option<RawFd>,
    group: Option<RawFd>,
    identity: Option<Identity>,
    namespaces: bool,
    own_group: bool,
    parent: libc::pid_t,
}

impl Plan {
    fn apply(&self) -> io::Result<()> {
        // First, so that whatever follows counts against its limits.
        self.join_group()?;
        self.descriptors()?;
        self.set_limits()?;
        if self.own_group {
            // SAFETY: plain system call on integers.
            check(unsafe { libc::setpgid(0, 0) })?;
        }
        if self.namespaces {
            isolate()?;
        }
        if let Some(directory) = self.directory {
            // SAFETY: the parent keeps it open across the fork, as those above.
            check(unsafe { libc::fchdir(directory) })?;
        }
        if let Some(identity) = self.identity {
            become_user(identity)?;
        }
        self.die_with_parent()
    }

    fn join_group(&self) -> io::Result<()> {
        let Some(group) = self.group else {
            return Ok(());
        };
        let own = b"0";
        // SAFETY: the parent keeps the descriptor open across the fork, and `own` is valid for its length.
        match unsafe { libc::write(group, own.as_ptr().cast(), own.len()) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn descriptors(&self) -> io::Result<()> {
        // SAFETY: marks every descriptor from 3 up close-on-exec; closes nothing, so that std's own pipe
        // to the parent keeps working until exec.
        let marked = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3_u32,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if marked < 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in &self.inherit {
            // SAFETY: the parent keeps these open across the fork (borrowed for the whole of `spawn`).
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
        }
        Ok(())
    }

    fn set_limits(&self) -> io::Result<()> {
        for (resource, value) in &self.limits {
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: `limit` is a valid rlimit for the length of both calls.
            unsafe {
                check(libc::getrlimit(*resource, &raw mut limit))?;
                let value = limit.rlim_max.min(*value);
                limit.rlim_cur = value;
                limit.rlim_max = value;
                check(libc::setrlimit(*resource, &raw const limit))?;
            }
        }
        Ok(())
    }

    /// After the change of identity, because that clears the parent-death signal.
    fn die_with_parent(&self) -> io::Result<()> {
        // SAFETY: plain system calls on integers.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            // The parent may have died before the line above took effect.
            if libc::getppid() != self.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    }
}

/// Containers may forbid new namespaces: what is lost then is defence in depth, so EPERM is no error.
fn isolate() -> io::Result<()> {
    let flags = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    // SAFETY: plain system call; the child has one thread.
    match check(unsafe { libc::unshare(flags) }) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

fn become_user(Identity { uid, gid }: Identity) -> io::Result<()> {
    // SAFETY: plain system calls; a null list with length 0 is allowed.
    unsafe {
        check(libc::setgroups(0, ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes ownership of a descriptor that the parent left open, and marks it close-on-exec.
///
/// # Errors
/// `EBADF` when there is no such descriptor.
pub fn adopt_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl on a number is sound whatever the number.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open (fcntl succeeded), and the caller passes each number once, at the
    // start of `main`, before anything else in this process could own it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocked signals, read from a descriptor.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks `signals` in this thread, and so in every thread it starts later, and opens the descriptor.
    ///
    /// # Errors
    /// From `pthread_sigmask` or `signalfd`.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: `set` is initialised by sigemptyset before use; all pointers are valid for the calls.
        unsafe {
            let mut set = mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                check(libc::sigaddset(&raw mut set, *signal))?;
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            check(fd)?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next pending signal, without waiting.
    ///
    /// # Errors
    /// From `read`.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0_u8; mem::size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            Ok(_) => Ok(Some(i32::from_ne_bytes([
                info[0], info[1], info[2], info[3],
            ]))),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl std::os::fd::AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A child that is dead and not waited for yet: its process id, and the signal that killed it if one did.
/// Looking does not wait for it, so the id stays its own.
#[must_use]
pub fn dead_child() -> Option<(i32, Option<i32>)> {
    // SAFETY: `info` is plain data that may be all zero, valid for the call; waitid fills it for P_ALL with
    // WNOHANG, and leaves si_pid zero when no child is dead. The union fields read are those of SIGCHLD.
    unsafe {
        let mut info = mem::zeroed::<libc::siginfo_t>();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        check(libc::waitid(libc::P_ALL, 0, &raw mut info, flags)).ok()?;
        let killed = matches!(info.si_code, libc::CLD_KILLED | libc::CLD_DUMPED);
        (info.si_pid() != 0).then(|| (info.si_pid(), killed.then(|| info.si_status())))
    }
}

/// The processor's time stamp counter.
#[must_use]
pub fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux leaves it enabled for user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Maps a page of memory with this protection and leaves it mapped: for tests of what is allowed.
#[cfg(test)]
pub(crate) fn map_page(protection: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice, which nothing refers to.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::Stdio;

    use super::*;

    fn run(script: &str, confinement: &Confinement<'_>) -> String {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let output = spawn(&mut command, confinement)
            .unwrap()
            .wait_with_output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_child_inherits_what_it_is_given_and_nothing_else() {
        let (given, kept) = (
            File::open("/dev/null").unwrap(),
            File::open("/dev/null").unwrap(),
        );
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
        let script = format!(
            "[ -e /proc/$$/fd/{} ] && echo given; [ -e /proc/$$/fd/{} ] && echo leaked; true",
            given.as_raw_fd(),
            kept.as_raw_fd()
        );
        let inherit = [given.as_fd()];
        let out = run(
            &script,
            &Confinement {
                inherit: &inherit,
                ..Confinement::default()
            },
        );
        assert_eq!(out, "given\n");
    }

    #[test]
    fn limits_and_group_hold_in_the_child() {
        let limits = [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, 77)];
        let confinement = Confinement {
            limits: &limits,
            own_group: true,
            ..Confinement::default()
        };
        let out = run(
            "ulimit -n; ulimit -c; cut -d' ' -f1,5 /proc/$$/stat",
            &confinement,
        );
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[..2], ["77", "0"]);
        let ids: Vec<&str> = lines[2].split(' ').collect();
        assert_eq!(ids[0], ids[1], "process group is its own");
    }

    #[test]
    fn the_working_directory_is_entered_by_descriptor() {
        let dir = File::open("/proc/self").unwrap();
        let expected = std::fs::read_link("/proc/self").unwrap();
        let confinement = Confinement {
            directory: Some(dir.as_fd()),
            ..Confinement::default()
        };
        let out = run("pwd -P", &confinement);
        assert_eq!(out.trim(), format!("/proc/{}", expected.display()));
    }

    #[test]
    fn a_missing_program_is_reported_to_the_parent() {
        let error = spawn(&mut Command::new("/nonexistent"), &Confinement::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_open_descriptors_are_adopted() {
        assert_eq!(
            adopt_fd(1 << 20).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        assert_eq!(adopt_fd(0).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let file = File::open("/proc/self/comm").unwrap();
        let mut text = String::new();
        let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
        File::from(adopt_fd(fd).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert!(!text.is_empty());
    }

    #[test]
    fn the_cycle_counter_moves() {
        let first = cycles();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(cycles() > first);
    }
}
