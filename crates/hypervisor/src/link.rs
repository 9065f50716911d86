//! What `enclos-hypervisor` and an `enclos-vmm` say to each other over the socket pair between them.
//!
//! ```text
//!  hypervisor                          vmm
//!      │ Launch(spec)  ───────────────▶ │   the image is a sealed memfd, inherited
//!      │ ◀──────────────────── Key(spki)│   the leaf key is made there and never leaves
//!      │ Certificate(chain) ──────────▶ │
//!      │ ◀────────────────────── Ready  │   vsock socket exists in the run directory
//!      │ ◀─────────────────── Launched  │   the engine's process runs
//!      │ ◀────────────────── Heartbeat  │   the guest's init said 0xB7
//!      │ ◀────────────────── Report(…)  │   what init reports, any number of times
//!      │ ◀──────────────────── Key(spki)│   hours later: the certificate is about to expire
//!      │ Console + descriptor ────────▶ │   a client follows the console
//!      │ Terminate ───────────────────▶ │
//!      │ ◀───────────────────── Ended   │   last word; the vmm then exits
//! ```
//!
//! Either side's end of file means that the other is gone: the vmm then stops its guest, the hypervisor
//! removes what the vmm left.

use std::path::PathBuf;
use std::time::Duration;

use enclos_api::control::Measurements;
use enclos_api::guest::Report;
use enclos_attest::pki::IssuedLeaf;
use serde::{Deserialize, Serialize};

/// Longest wait for the rest of a frame once its first byte has come, and for a frame to be taken.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// To the vmm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToVmm {
    /// First word: what to run.
    Launch(Box<LaunchSpec>),
    /// The certificate for the key of the last [`FromVmm::Key`].
    Certificate(IssuedLeaf),
    /// Copies the console to the descriptor that comes along.
    Console,
    /// Stops the guest: by the application's stop signal, and by force after this many seconds.
    Terminate {
        /// 0 means by force at once.
        grace_s: u32,
    },
}

/// From the vmm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromVmm {
    /// Public key (DER `SubjectPublicKeyInfo`) that needs a certificate.
    Key(Vec<u8>),
    /// The vsock socket listens; no guest runs yet.
    Ready,
    /// The engine's process was started.
    Launched,
    /// The guest's init is up.
    Heartbeat,
    /// From the guest's init, sanitised.
    Report(Report),
    /// The guest is gone.
    Ended(Ended),
}

/// Everything a vmm needs to know about its enclave. Its working directory is the enclave's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchSpec {
    /// Enclave id, which is also the NSM's module id.
    pub id: String,
    /// Instance id (PCR4).
    pub instance_id: String,
    /// Role ARN (PCR3).
    pub role_arn: Option<String>,
    /// Context id.
    pub cid: u32,
    /// vCPUs.
    pub cpus: u32,
    /// Host CPUs that the engine is pinned to; empty means any.
    pub pinned_to: Vec<u32>,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Console on, PCR0, PCR1, PCR2 and PCR8 zero.
    pub debug: bool,
    /// Measurements of the image.
    pub measurements: Measurements,
    /// The engine's program.
    pub qemu: PathBuf,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u64,
    /// Whether the vmm's standard error is a log of this enclave alone.
    pub own_log: bool,
}

/// How a guest ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// One sentence.
    pub reason: String,
    /// Exit status of the application, if init told one.
    pub status: Option<i32>,
    /// Signal that ended the application, if init told one.
    pub signal: Option<i32>,
    /// Last lines of the console (debug mode) or of the engine's error output.
    pub tail: String,
}
