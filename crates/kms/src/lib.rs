//! Enclos KMS: AWS KMS's wire protocol, key policies that are enforced, keys released to attested enclaves.
//!
//! ```text
//! server ── bytes ──▶ service ──▶ sigv4 ─ input ─ ops ─▶ policy      who may, under which conditions
//! (HTTP, TLS)            │                    │    └───▶ recipient   which enclave asks (enclos-attest)
//!                        │                    └────────▶ keyring     keys in memory
//!                        └─ audit row ─▶ store ◀─ changes            SQLite or PostgreSQL, sealed under the root key
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`service`] | one request from bytes to answer |
//! | [`sigv4`] | signatures |
//! | [`policy`] | the policy language |
//! | [`grants`] | grants |
//! | [`measurements`] | measurement policies, which key policies name |
//! | [`authz`] | the decision over all policies and grants |
//! | `authn`, `sts` | who calls; temporary credentials |
//! | [`recipient`] | attestation documents and sealed answers |
//! | [`crypto`] | sealing at rest, ciphertexts, CMS |
//! | [`store`] | durability |
//! | `durable` | files that are whole before they have their name |
//! | `reseal` | what a rotation of the root key leaves to do |
//! | [`keyring`], [`principals`], [`identities`], [`sessions`] | what is held in memory |
//! | `memory` | how that follows the store |
//! | [`server`], [`tls`] | sockets |
//! | [`busy_poll`] | waiting for a connection's next request |
//! | [`operations`], [`metrics`], [`traces`] | health, readiness, metrics, spans |
//! | [`cli`] | the `enclos-kms` program |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod arn;
mod audit;
mod authn;
pub mod authz;
pub mod busy_poll;
pub mod cli;
pub mod crypto;
mod durable;
pub mod error;
pub mod grants;
pub mod identities;
mod input;
pub mod keyring;
pub mod limits;
pub mod measurements;
mod memory;
mod memory_lock;
pub mod metrics;
pub mod operations;
pub mod ops;
pub mod policy;
mod presence;
pub mod principals;
pub mod recipient;
mod reseal;
pub mod secret_key;
pub mod server;
pub mod service;
pub mod sessions;
pub mod sigv4;
pub mod spec;
pub mod store;
mod sts;
pub mod tags;
pub mod tls;
pub mod traces;
