//! `enclos-hypervisor probe`: what this machine can do, as JSON for `enclos doctor`.

use std::path::Path;

use enclos_api::control::Cgroup;
use serde::Serialize;

use crate::daemon::cgroup::{self, Groups};
use crate::engine::kvm::{self, Verdict};
use crate::engine::qemu;
use crate::engine::tsc;
use crate::{host, log};

/// What was found. Every `problem` is a sentence that says what to do.
#[derive(Debug, Serialize)]
pub struct Probe {
    /// Version of the hypervisor.
    pub version: &'static str,
    /// The `qemu` engine.
    pub qemu: Qemu,
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: Option<u64>,
    /// All memory in MiB.
    pub memory_total_mib: u64,
    /// Memory that is available now in MiB.
    pub memory_available_mib: u64,
    /// CPUs that may be used.
    pub cpu_ids: Vec<u32>,
    /// What would hold enclaves of a hypervisor that is started from here.
    pub cgroup: Cgroup,
}

/// The `qemu` engine.
#[derive(Debug, Serialize)]
pub struct Qemu {
    /// Whether enclaves can run on it.
    pub usable: bool,
    /// QEMU's program.
    pub program: Option<String>,
    /// First line of its `--version`.
    pub version: Option<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// `/dev/kvm`. This release has no engine that uses it.
#[derive(Debug, Serialize)]
pub struct Kvm {
    /// Whether it runs kernel code, right and at full speed.
    pub works: bool,
    /// What was seen when a few instructions were run in a throw-away machine.
    pub verdict: String,
}

/// Looks at this machine; `qemu` names a program other than the one in `PATH`.
#[must_use]
pub fn probe(qemu: Option<&Path>) -> Probe {
    let verdict = kvm::probe();
    Probe {
        version: env!("CARGO_PKG_VERSION"),
        qemu: probe_qemu(qemu),
        kvm: Kvm {
            works: matches!(verdict, Verdict::Works(_)),
            verdict: verdict.to_string(),
        },
        tsc_khz: tsc::measure_khz().ok(),
        memory_total_mib: host::memory_total_mib(),
        memory_available_mib: host::memory_available_mib(),
        cpu_ids: host::cpus(),
        cgroup: cgroup::describe(Groups::look().as_deref()),
    }
}

fn probe_qemu(named: Option<&Path>) -> Qemu {
    match qemu::probe(named) {
        Ok(found) => Qemu {
            usable: true,
            program: Some(found.program.display().to_string()),
            version: Some(found.version),
            problem: None,
        },
        Err(error) => Qemu {
            usable: false,
            program: None,
            version: None,
            problem: Some(log::chain(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_qemu_is_a_problem_with_a_remedy() {
        let probe = probe(Some(Path::new("/nonexistent/qemu")));
        assert!(!probe.qemu.usable);
        assert!(probe.qemu.problem.unwrap().contains("/nonexistent/qemu"));
        assert!(!probe.cpu_ids.is_empty());
    }
}
