//! Keeps memory out of swap and out of core files.
//!
//! `mlockall` is all or nothing for a process, and that is what is used: keys are in the memory of libraries too. With
//! `MCL_ONFAULT` pages are locked as they are touched, so that untouched stacks cost nothing. An unprivileged process
//! may lock `RLIMIT_MEMLOCK` bytes, and an allocation beyond fails; so without the privilege and with a limit nothing is locked, and that is
//! said. systemd: `LimitMEMLOCK=infinity`.

use std::io::Write as _;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Why memory may be swapped out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryLockError {
    /// The limit.
    #[error(
        "memory is not locked: RLIMIT_MEMLOCK is {0} bytes, expected no limit, or the capability CAP_IPC_LOCK; with systemd set LimitMEMLOCK=infinity, else switch swap off or encrypt it"
    )]
    Limited(u64),
    /// The system call.
    #[error("memory is not locked")]
    Refused(#[source] std::io::Error),
}

/// Locks all memory, now and from now on.
///
/// # Errors
/// If the system does not let it; nothing is locked then.
pub(crate) fn lock() -> Result<(), MemoryLockError> {
    let limit = getrlimit(Resource::Memlock);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let refused = |error| MemoryLockError::Refused(std::io::Error::from(error));
    setrlimit(Resource::Memlock, raised).map_err(refused)?;
    if let Some(bytes) = limit.maximum
        && !may_lock()
    {
        return Err(MemoryLockError::Limited(bytes));
    }
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(all).map_err(refused)
}

/// Whether limits do not count for this process.
fn may_lock() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// A core file would hold every key. Both limits are inherited by nobody: there are no child processes.
pub(crate) fn forbid_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limit = setrlimit(Resource::Core, none);
    let dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if limit.is_err() || dumpable.is_err() {
        let _closed = writeln!(
            std::io::stderr(),
            "enclos-kms: core dumps could not be switched off"
        );
    }
}
