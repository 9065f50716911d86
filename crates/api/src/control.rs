//! The hypervisor's control socket.
//!
//! A client connects to [`SOCKET_NAME`] in the run directory and sends one [`Request`] per connection. The
//! hypervisor checks the peer's credentials (`SO_PEERCRED`) and answers with one [`Reply`], except that
//!
//! * [`Request::Run`] is accompanied by the image's open file descriptor (`SCM_RIGHTS`, with the frame's
//!   first byte): the hypervisor never opens a path on a client's behalf;
//! * after `Ok` to [`Request::Console`] the connection carries raw console bytes, host to client, until either
//!   side closes;
//! * [`Request::Watch`] answers `Ok` and then sends an [`Event`] frame for every enclave that runs and for
//!   every later change, until the client closes.
//!
//! Root and the hypervisor's own user may do everything. Another user may describe, and may run, terminate
//! and read the console of enclaves of their own.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// File name of the control socket in the run directory.
pub const SOCKET_NAME: &str = "hypervisor.sock";

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Starts an enclave; answered by [`Success::Started`] once its heartbeat has arrived.
    Run(RunRequest),
    /// Lists enclaves; answered by several [`Success::Enclaves`], the last of them empty.
    Describe,
    /// Stops an enclave; answered by [`Success::Terminated`] once nothing of it is left.
    Terminate {
        /// Which one.
        enclave: Selector,
        /// Seconds that the application has to stop by itself once it got its stop signal, at most
        /// [`MAX_GRACE_S`]; 0 kills the virtual machine at once, as AWS does.
        grace_s: u32,
    },
    /// Follows the console of a debug enclave.
    Console {
        /// Which one.
        enclave: Selector,
    },
    /// Waits until the enclave's exit and tells its reason; answered by [`Success::Exited`].
    Wait {
        /// Which one.
        enclave: Selector,
    },
    /// Streams [`Event`]s.
    Watch,
    /// What this host can do; answered by [`Success::Host`].
    Host,
}

/// Longest time to stop that an application is given, in seconds.
pub const MAX_GRACE_S: u32 = 600;

/// How an enclave is named by a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// By its id, `<instance-id>-enc<hex>`.
    Id(String),
    /// By its name.
    Name(String),
}

/// What to run. The image itself travels as a file descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// [`crate::PROTOCOL_VERSION`] of the client.
    pub protocol: u32,
    /// Name; a duplicate gets `_1`, `_2`, … as AWS does.
    pub name: String,
    /// vCPUs.
    pub cpus: Cpus,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Context id; `None` means the next free one from 16.
    pub cid: Option<u32>,
    /// Console on, PCR0, PCR1, PCR2 and PCR8 zero.
    pub debug: bool,
}

/// vCPUs by number or by host CPU id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cpus {
    /// This many, the hypervisor chooses.
    Count(u32),
    /// Exactly these host CPUs.
    Ids(Vec<u32>),
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It was done.
    Ok(Success),
    /// It was not.
    Error(Failure),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Success {
    /// The enclave's heartbeat arrived.
    Started {
        /// The enclave as it runs now.
        enclave: Box<Enclave>,
        /// What the operator should know, one sentence each (CPUs shared, for example).
        warnings: Vec<String>,
    },
    /// Some of the enclaves, as many as fit into a frame whatever their images say of themselves. More follow
    /// on the same connection, until an empty list.
    Enclaves(Vec<Enclave>),
    /// The enclave is gone, and all it held.
    Terminated {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// The enclave ended.
    Exited(Exit),
    /// The stream of the request follows on this connection.
    Streaming,
    /// What this host can do.
    Host(Box<Host>),
}

/// The answers to [`Request::Describe`], put together.
#[derive(Debug, Default)]
pub struct Enclaves(Vec<Enclave>);

impl Enclaves {
    /// Takes the next answer; after the last one all enclaves, `None` before.
    ///
    /// # Errors
    /// The answer, if it is of another kind.
    pub fn take(&mut self, answer: Success) -> Result<Option<Vec<Enclave>>, Box<Success>> {
        match answer {
            Success::Enclaves(some) if some.is_empty() => Ok(Some(std::mem::take(&mut self.0))),
            Success::Enclaves(some) => {
                self.0.extend(some);
                Ok(None)
            }
            other => Err(Box::new(other)),
        }
    }
}

/// A refusal or failure, in the terms of nitro-cli's error table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Number of AWS's code: 27 is E27, insufficient memory available.
    pub code: u8,
    /// What happened, what was expected, what to do; causes are joined by `: `.
    pub message: String,
}

/// One enclave as the hypervisor knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enclave {
    /// `<instance-id>-enc<hex>`, the hex unpadded as nitro-cli prints it.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Process id of its `enclos-vmm`.
    pub pid: u32,
    /// Context id of the guest.
    pub cid: u32,
    /// Host CPUs its vCPUs may run on.
    pub cpu_ids: Vec<u32>,
    /// Number of vCPUs.
    pub cpu_count: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Life-cycle state.
    pub state: State,
    /// Whether it runs in debug mode.
    pub debug: bool,
    /// Measurements of the image file, lower-case hex. A debug enclave *attests* zeros instead.
    pub measurements: Measurements,
    /// Name, version and metadata of the image, as its (unmeasured) metadata section says.
    pub image: serde_json::Value,
    /// Host side of its vsock: connect here and send `CONNECT <port>\n`; a listener at `<path>_<port>`
    /// receives the guest's connections to (CID 3, port).
    pub vsock: PathBuf,
    /// User id that started it.
    pub owner_uid: u32,
    /// Time to each stage of the boot.
    pub boot: BootTimes,
}

/// nitro-cli's `State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Being started: no heartbeat yet.
    Empty,
    /// Heartbeat seen.
    Running,
    /// Being stopped.
    Terminating,
}

/// Measurements of an image, lower-case hex of 48 bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measurements {
    /// Whole image.
    pub pcr0: String,
    /// Kernel, command line, first ramdisk.
    pub pcr1: String,
    /// Remaining ramdisks.
    pub pcr2: String,
    /// Signing certificate, when the image is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcr8: Option<String>,
}

/// Milliseconds from the request's arrival to each milestone; `None` until it happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimes {
    /// The image was read, checked and measured.
    pub measured_ms: Option<u64>,
    /// The virtual machine's process was started.
    pub launched_ms: Option<u64>,
    /// The guest's init sent its heartbeat.
    pub heartbeat_ms: Option<u64>,
    /// The application's process was started.
    pub app_started_ms: Option<u64>,
    /// The application accepted a connection on its first ingress port.
    pub app_ready_ms: Option<u64>,
}

/// How an enclave ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Exit status of the application, when it exited by itself.
    pub status: Option<i32>,
    /// Signal that ended the application.
    pub signal: Option<i32>,
    /// One sentence: "the application exited with status 3", "terminated by request", "the VM stopped
    /// without a word from init", …
    pub reason: String,
}

/// What a [`Request::Watch`] sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// An enclave exists whose vsock directory is ready; sent before its guest can have connected, and once
    /// for each running enclave when the watch starts.
    Added(Box<Enclave>),
    /// An enclave's state or boot times changed.
    Changed(Box<Enclave>),
    /// An enclave ended.
    Removed(Exit),
}

/// What a host can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Version of the hypervisor.
    pub version: String,
    /// Engine in use: `qemu`, later `kvm` and `nitro`.
    pub engine: String,
    /// Version line of the engine, such as QEMU's.
    pub engine_version: String,
    /// Instance id (PCR4).
    pub instance_id: String,
    /// Role ARN (PCR3), if one is configured.
    pub role_arn: Option<String>,
    /// Region in the certificates' names.
    pub region: String,
    /// The installation's attestation root, PEM.
    pub root_certificate: String,
    /// Memory for enclaves in MiB: total.
    pub memory_total_mib: u64,
    /// Memory for enclaves in MiB: not yet promised to one.
    pub memory_free_mib: u64,
    /// CPUs for enclaves.
    pub cpu_ids: Vec<u32>,
    /// What holds enclaves to their CPUs and memory.
    pub cgroup: Cgroup,
}

/// Which controllers of cgroup v2 hold enclaves. Where one does not, affinity and resource limits do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Of `cpuset`, `memory` and `pids` those that are used.
    pub controllers: Vec<String>,
    /// Why none is, and what to do.
    pub problem: Option<String>,
}
