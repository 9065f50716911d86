//! The privileged side of Enclos: `enclos-hypervisor`, which owns the attestation CA and the machine's
//! partitions, and `enclos-vmm`, one process per enclave.
//!
//! ```text
//!  enclos, enclos-gateway
//!     │ control socket (enclos_api::control): who asks is the kernel's word
//!     ▼
//!  enclos-hypervisor   root        CA keys, image bytes, partitions     [daemon]
//!     │ socket pair (link): launch spec, certificates, milestones
//!     ▼
//!  enclos-vmm          own user    leaf key, NSM, vsock, console        [vmm], [vsock], [nsm_device]
//!     │ vhost-user (vhost_user)
//!     ▼
//!  QEMU                own user    vCPUs and memory, nothing else       [engine]
//! ```
//!
//! | question | where it is answered |
//! |---|---|
//! | what happens when a process dies | [`daemon`] |
//! | what is in the run directory, and whose it is | [`daemon::files`] |
//! | what a guest can make us do | [`vsock`], [`nsm_device`], [`vhost_user`] |
//! | what QEMU is given | [`engine::qemu`] |
//! | what numbers failures have | [`failure`] |
//!
//! No HTTP, no TLS, no async runtime: threads, blocking calls under deadlines, and one `poll` loop. `unsafe` is
//! in `sys` alone.

#![warn(missing_docs)]

pub mod cli;
pub mod daemon;
pub mod engine;
pub mod failure;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod host;
pub mod link;
pub mod log;
pub mod nsm_device;
pub mod probe;
pub mod sys;
pub mod vhost_user;
pub mod vmm;
pub mod vsock;
pub mod wire;

mod allowance;
mod positioned;

/// Name of an enclave's vsock socket in its directory.
pub const VSOCK_SOCKET: &str = "vsock.sock";
