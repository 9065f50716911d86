//! The privileged side of Enclos: `enclos-hypervisor`, which owns the attestation CA and the machine's
//! partitions, and `enclos-vmm`, one process per enclave.

#![warn(missing_docs)]

pub mod nsm_device;
pub mod vhost_user;
pub mod vsock;
