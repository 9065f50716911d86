//! The parent side of enclaves: what forwards bytes and knows nothing.
//!
//! ```text
//!  client ──TCP──▶ publish ──vsock.sock, CONNECT <port>──▶ enclos-vmm ──▶ enclave
//!  KMS ◀──TCP── tunnel ◀──vsock.sock_8000── enclos-vmm ◀── enclave   (TLS, opaque here)
//!                facts ◀──vsock.sock_9002── enclos-vmm ◀── enclave   (who this host is, its role)
//! ```
//!
//! [`watch`] follows the hypervisor: an enclave that appears gets its two sockets, one that goes takes its
//! sockets and published ports along. The gateway parses nothing that it forwards, holds no key and no
//! plaintext; the role's credentials pass through it at each request and are wiped. Whoever takes it over can stop
//! traffic and nothing more.
//!
//! | module | does |
//! |---|---|
//! | [`config`] | reads `host.toml` |
//! | [`watch`] | follows the hypervisor, reconnects |
//! | [`registry`] | enclaves and their sockets and ports |
//! | [`ledger`] | what is published, across restarts |
//! | [`facts`] | answers the agent's question who this host is |
//! | [`tunnel`], [`publish`] | forward bytes, out and in |
//! | [`control`] | the socket that `enclos run-enclave --publish` talks to |
//! | [`pump`] | two streams, half-close, idle limit |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod config;
pub mod control;
pub mod facts;
pub mod ledger;
pub mod publish;
pub mod pump;
pub mod registry;
pub mod server;
pub mod socket;
pub mod tunnel;
pub mod watch;
pub mod wire;
