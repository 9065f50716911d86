//! Enclos's processes, started for real and ended for certain.
//!
//! ```text
//!  Workbench   where binaries, root file systems and scratch space are (told by `cargo xtask`)
//!     └─ Stack     one installation: hypervisor, KMS, gateway, each in folders of its own
//!          ├─ Image     an EIF with the example that it came from
//!          ├─ Enclave   a virtual machine; ended when dropped
//!          └─ kms::Client   a caller of the KMS outside of every enclave
//! ```
//!
//! Whatever is started belongs to a value that ends it by process id when dropped; a signal or a panic ends it
//! too. Every wait has a limit and says what it waited for. The demo and the tests share all of it, so what the
//! demo shows is what the tests assert.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod child;
pub mod container;
pub mod control;
pub mod forge;
pub mod http;
pub mod image;
pub mod kms;
pub mod policy;
pub mod stack;
pub mod stories;
pub mod vsock;
pub mod wait;
pub mod workbench;
