//! What the application expects from the machine around it, without knowing that it is in an enclave.
//!
//! ```text
//!   application ──http──▶ 169.254.169.254:80    imds     ──▶ facts ──vsock 9002──▶ gateway
//!   application ──http──▶ 169.254.170.3:80,443  kms      ──▶ TLS  ──vsock 8000──▶ gateway ──▶ KMS
//!   application ──dns───▶ 169.254.170.3:53      dns
//!   client ──▶ gateway ──vsock <port>──▶ ingress ──▶ 127.0.0.1:<port> application
//! ```
//!
//! The agent is one process with one tokio runtime. It says `ready` to init once it listens on everything, so
//! that the application never finds a door closed that opens a moment later.

use std::io::{self, Write};
use std::path::Path;

use enclos_api::config::{ENCLAVE_CONFIG_PATH, EnclaveConfig};

use crate::config::{self, ConfigError};
use crate::init::{AGENT_APP_READY, AGENT_FAILED, AGENT_READY};
use crate::log;
use transport::VsockListener;

pub mod ingress;
pub mod transport;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The measured configuration is unusable.
    #[error("the enclave's configuration is unusable")]
    Config(#[from] ConfigError),
    /// The runtime could not be made.
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    /// A port is taken or forbidden.
    #[error("cannot listen on {what}")]
    Listen {
        /// Address and purpose.
        what: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Runs until the enclave ends; returns only with the reason why it cannot.
pub fn run() -> AgentError {
    let failed = start();
    let Err(error) = failed else {
        return AgentError::Runtime(io::Error::other("ended"));
    };
    let reason = log::chain(&error).replace('\n', " ");
    log::line("enclos-agent", format_args!("{reason}"));
    tell(&format!("{AGENT_FAILED}{reason}"));
    error
}

/// Says a line to init, which reads the other end of standard output.
fn tell(line: &str) {
    drop(
        io::stdout()
            .lock()
            .write_all(format!("{line}\n").as_bytes()),
    );
}

fn start() -> Result<(), AgentError> {
    let config = config::read(Path::new(ENCLAVE_CONFIG_PATH))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(AgentError::Runtime)?;
    runtime.block_on(serve(config))
}

async fn serve(config: EnclaveConfig) -> Result<(), AgentError> {
    listen_for_ingress(&config)?;
    tell(AGENT_READY);
    if let Some(port) = config.ingress.first() {
        ingress::until_ready(*port).await;
        tell(&format!("{AGENT_APP_READY}{port}"));
    }
    std::future::pending().await
}

fn listen_for_ingress(config: &EnclaveConfig) -> Result<(), AgentError> {
    for port in &config.ingress {
        let listener =
            VsockListener::bind(u32::from(*port)).map_err(|source| AgentError::Listen {
                what: format!("vsock port {port} for ingress"),
                source,
            })?;
        tokio::spawn(ingress::serve(listener, *port));
    }
    Ok(())
}
