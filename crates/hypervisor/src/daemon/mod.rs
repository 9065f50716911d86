//! `enclos-hypervisor serve`: partitions, images, the CA, and one `enclos-vmm` per enclave.
//!
//! ```text
//!  client ──unix socket──▶ session thread ──reserve──▶ registry ◀──reap── main thread
//!                             │  image copied,             ▲               (forks, signals,
//!                             │  sealed, measured          │                accepts, waits)
//!                             ▼                            │
//!                          start ──▶ main thread forks ──▶ enclos-vmm
//!                             │                            │ socket pair (link.rs)
//!                             └──▶ supervisor thread ◀─────┘
//! ```
//!
//! * **Happy path.** A session takes the image in, reserves what it needs, makes the enclave's directory, has the
//!   main thread fork the vmm, and leaves it to a supervisor thread, which answers the vmm's requests for
//!   certificates and notes its milestones. The session waits for the heartbeat and answers the client.
//! * **A guest that does not come up** is stopped after the boot timeout; the session answers E36 with the vmm's
//!   last word.
//! * **A vmm that dies**, for whatever reason, takes its engine with it three times over: the engine's
//!   parent-death signal, the vmm's devices gone, and SIGKILL to the process group before the vmm is waited
//!   for. The supervisor then removes the directory and the registry's entry, in that order.
//! * **A hypervisor that dies** takes its vmms with it by their parent-death signal, which names a thread:
//!   that is why the main thread forks. What lies around then is removed at the next start.
//!
//! The main thread never blocks on anything but its `poll`, so that dead children are always waited for.

pub mod allocator;
pub mod authority;
pub mod config;
pub mod files;
pub mod serve;
pub mod users;

pub(crate) mod cgroup;
mod image;
mod logs;
mod registry;
mod resources;
mod run;
mod session;
mod supervisor;
