//! What a vmm may still ask of the kernel once its engine runs.
//!
//! From then on everything it handles comes from a guest, or from clients of its socket. It keeps the calls
//! that moving bytes takes; it can no longer start a program, open a file, use any network but unix sockets,
//! make memory executable, signal or trace anyone but its engine. What is not listed fails with EPERM. The
//! filter covers every thread, those that exist and those to come, and cannot be lifted.
//!
//! Each group below says who needs it. `vmm::sandbox::tests` runs the filter in a child process.

use std::collections::BTreeMap;

use libc::{PR_SET_NAME, PROT_EXEC};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// Calls that are harmless whatever their arguments.
const ALLOWED: &[i64] = &[
    // Streams: sockets of clients and services, the link, the console, event descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    // vsock: clients are accepted, services and the gateway's sockets are dialled.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Device threads wait and wake each other.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // The guest's memory arrives as descriptors; the payload's memory is given back.
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // The enclave's log is cut.
    libc::SYS_ftruncate,
    // Sockets are removed when QEMU has connected, and when the device ends.
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    // Threads: start, wait, sleep, end.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Documents, certificates, hash tables.
    libc::SYS_getrandom,
    // The engine: ended and waited for.
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("the filter is not valid")]
    Filter(#[from] seccompiler::BackendError),
    #[error("the kernel refused the filter")]
    Install(#[from] seccompiler::Error),
}

/// Confines all threads of this process, for good.
pub(crate) fn confine() -> Result<(), SandboxError> {
    // Two filters, because the second gives another error: without clone3, whose flags a filter cannot read,
    // the C library falls back to clone, whose flags it can.
    apply_filter_all_threads(&without_clone3()?)?;
    Ok(apply_filter_all_threads(&allow_list()?)?)
}

fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?.try_into()
}

fn allow_list() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone3, Vec::new());
    // Unix sockets only.
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    rules.insert(libc::SYS_socket, vec![argument(0, SeccompCmpOp::Eq, unix)?]);
    rules.insert(
        libc::SYS_socketpair,
        vec![argument(0, SeccompCmpOp::Eq, unix)?],
    );
    // No executable memory.
    let exec = u64::from(PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![argument(2, SeccompCmpOp::MaskedEq(exec), 0)?]);
    }
    // Threads, no processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let threads = argument(0, SeccompCmpOp::MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![threads]);
    // Names of threads.
    let name = u64::from(PR_SET_NAME.unsigned_abs());
    rules.insert(libc::SYS_prctl, vec![argument(0, SeccompCmpOp::Eq, name)?]);
    // A panic within a panic aborts this process.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![argument(0, SeccompCmpOp::Eq, own)?]);
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn argument(
    index: u8,
    operation: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operation, value)?;
    SeccompRule::new(vec![condition])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::sys::map_page;

    const CHILD: &str = "ENCLOS_TEST_SANDBOX_CHILD";

    /// The filter cannot be lifted, so it is tried in a process of its own: this test, run again.
    #[test]
    fn a_confined_process_moves_bytes_and_does_nothing_else() {
        if std::env::var_os(CHILD).is_some() {
            return confined();
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "vmm::sandbox::tests::a_confined_process_moves_bytes_and_does_nothing_else",
            ])
            .args(["--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}{errors}");
        assert!(text.contains("confined, all as expected"), "{text}{errors}");
    }

    fn confined() {
        let (start, started) = channel();
        let earlier = thread::spawn(move || {
            started.recv().unwrap();
            File::open("/proc/self/status").is_err()
        });
        confine().unwrap();
        start.send(()).unwrap();
        assert!(
            earlier.join().unwrap(),
            "threads that existed are confined, too"
        );

        assert!(File::open("/etc/passwd").is_err(), "no files");
        assert!(Command::new("/bin/true").status().is_err(), "no programs");
        assert!(TcpListener::bind("127.0.0.1:0").is_err(), "no network");
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        assert!(map_page(executable).is_err(), "no executable memory");
        assert!(
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT)
                .is_err()
        );

        let (mut left, mut right) = UnixStream::pair().unwrap();
        let writer = thread::Builder::new().name("writer".into());
        let writer = writer
            .spawn(move || left.write_all(b"bytes").unwrap())
            .unwrap();
        let mut bytes = [0; 5];
        right.read_exact(&mut bytes).unwrap();
        writer.join().unwrap();
        assert_eq!(&bytes, b"bytes");
        assert!(map_page(libc::PROT_READ | libc::PROT_WRITE).is_ok());
        println!("confined, all as expected");
    }
}
