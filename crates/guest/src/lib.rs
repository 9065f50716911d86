//! What runs inside an enclave beside the application.
//!
//! ```text
//! enclos-init (PID 1)                          enclos-agent
//!   mounts, modules, loopback, entropy           169.254.169.254:80   instance metadata
//!   heartbeat        → CID 3:9000                169.254.170.3:80,443 KMS with attestation
//!   life cycle       → CID 3:9001                169.254.170.3:53     names of the KMS
//!   starts agent, then the application           vsock <port>         → 127.0.0.1:<port>
//!   reaps, reports the exit, stops the VM        CID 3:8000, 9002     KMS tunnel, instance facts
//! ```
//!
//! [`init`] is synchronous and single-threaded; [`agent`] is one tokio runtime. Both are measured in PCR1 with
//! the kernel; what they are configured with, [`enclos_api::config::EnclaveConfig`], is measured with the
//! application in PCR2. `unsafe` lives in [`sys`] alone.

#![warn(missing_docs)]

pub mod agent;
pub mod config;
pub mod init;
pub mod kms_names;
pub mod log;
pub mod sys;
