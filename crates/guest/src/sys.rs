//! The system calls that no safe wrapper offers. Every `unsafe` of this crate is here.

#![expect(
    unsafe_code,
    reason = "raw system calls: vsock addresses, fork, signals, two ioctls"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

pub mod nsm;
pub mod vsock;

/// Turns a `-1` into the error it stands for.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: a sigset_t is plain data, and sigemptyset then gives it its meaning; the pointers are to a
    // local that outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks every signal: they arrive through a [`signal_fd`] instead.
///
/// # Errors
/// The system call's.
pub fn block_all_signals() -> io::Result<()> {
    // SAFETY: `set` is a valid sigset_t for the duration of both calls; the old mask is not asked for.
    let result = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    };
    check(result).map(drop)
}

/// Blocks no signal: what a program expects that is about to be executed, and would otherwise inherit from init.
///
/// # Errors
/// The system call's.
pub fn unblock_all_signals() -> io::Result<()> {
    let set = signal_set(&[]);
    // SAFETY: `set` is a valid sigset_t; the old mask is not asked for.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    check(result).map(drop)
}

/// A descriptor that becomes readable when one of `signals` (all blocked before) is pending.
///
/// # Errors
/// The system call's.
pub fn signal_fd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: `set` is a valid sigset_t.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    let fd = check(fd)?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal by number; real-time signals included.
///
/// # Errors
/// The system call's.
pub fn kill(pid: rustix::process::Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill touches no memory of this process.
    check(unsafe { libc::kill(pid.as_raw_pid(), signal) }).map(drop)
}

/// Which side of a [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The process that called, and the new one's id.
    Parent(rustix::process::Pid),
}

/// Forks. Only for a process with one thread: the child may then use the whole standard library.
///
/// # Errors
/// The system call's; an error too when this process has more than one thread.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "fork with {threads} threads is refused"
        )));
    }
    // SAFETY: the process has one thread, so no lock can be held by a thread that the child lacks.
    let pid = check(unsafe { libc::fork() })?;
    Ok(rustix::process::Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent))
}

/// Gives this process a mount namespace of its own.
///
/// # Errors
/// The system call's.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS changes which mounts this process sees and no memory; descriptors stay valid.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Ends the process at once, without running exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and needs nothing.
    unsafe { libc::_exit(status) }
}

/// `struct rand_pool_info` of `linux/random.h`, with room for [`SEED_LEN`] bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; SEED_LEN],
}

/// Bytes of one seed: what the NSM gives at a time.
pub const SEED_LEN: usize = 256;

/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Credits `seed` to the kernel's random generator and has it reseeded from its pool at once.
///
/// # Errors
/// The system calls'.
pub fn seed_kernel(random: impl AsFd, seed: &[u8; SEED_LEN]) -> io::Result<()> {
    // A quarter of the bits: the CPU's generator and the kernel's own sources count too.
    let info = PoolInfo {
        entropy_count: 512,
        buf_size: 256,
        buf: *seed,
    };
    let fd = random.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `buf_size` bytes after the header, and `info` holds that many.
    check(unsafe { libc::ioctl(fd, RNDADDENTROPY, &raw const info) })?;
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(fd, RNDRESEEDCRNG) }).map(drop)
}

/// A `timeval` as `SO_*TIMEO` options take it; at most a day, never zero (zero would mean "for ever").
fn timeval(timeout: Duration) -> libc::timeval {
    let timeout = timeout.clamp(Duration::from_millis(1), Duration::from_secs(86_400));
    libc::timeval {
        tv_sec: timeout.as_secs().try_into().unwrap_or(86_400),
        tv_usec: timeout.subsec_micros().into(),
    }
}
