//! Every type that crosses a process boundary in Enclos.
//!
//! | module | who talks | over what |
//! |---|---|---|
//! | [`control`] | `enclos`, `enclos-gateway` → `enclos-hypervisor` | unix socket, [`frame`]s of JSON |
//! | [`gateway`] | `enclos` → `enclos-gateway` | unix socket, [`frame`]s of JSON |
//! | [`guest`] | `enclos-init`, `enclos-agent` → host | vsock to CID 3, [`frame`]s of JSON |
//! | [`config`] | `enclos build` → guest, measured; host configuration file | JSON in the image; TOML on the host |
//!
//! [`error`] is how every process prints an error with its causes, [`signal`] what signals are called.
//!
//! Nothing here does I/O beyond reading and writing one frame on a stream it is given. Wire types refuse
//! unknown fields where the other side is trusted to be the same version, and every message that starts a
//! conversation carries [`PROTOCOL_VERSION`].

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod config;
pub mod control;
pub mod error;
pub mod frame;
pub mod gateway;
pub mod guest;
pub mod log;
pub mod signal;

/// Version of every protocol in this crate. Both sides refuse a different one by name.
pub const PROTOCOL_VERSION: u32 = 1;
