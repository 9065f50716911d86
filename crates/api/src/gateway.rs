//! The gateway's control socket: which host ports lead into which enclave.
//!
//! One [`Request`] frame per connection, answered by one [`Reply`] frame.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::control::Failure;

/// File name of the gateway's control socket in the run directory.
pub const SOCKET_NAME: &str = "gateway.sock";

/// What a client asks of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Listens on a host address and forwards to a port of the enclave, until the enclave ends.
    Publish(Publication),
    /// Lists publications.
    List,
}

/// A host address that leads into an enclave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// The enclave's id.
    pub enclave_id: String,
    /// Host address; port 0 asks for a free one. The reply names the port that was taken.
    pub listen: SocketAddr,
    /// vsock port in the guest, equal to the application's TCP port.
    pub guest_port: u32,
}

/// The gateway's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The publications asked for: the new one, or all.
    Ok(Vec<Publication>),
    /// It was not done: address in use, unknown enclave, …
    Error(Failure),
}
