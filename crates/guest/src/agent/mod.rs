//! What the application expects from the machine around it, without knowing that it is in an enclave.
//!
//! ```text
//!   application ──http──▶ 169.254.169.254:80    imds     ──▶ facts ──vsock 9002──▶ gateway
//!   application ──http──▶ 169.254.170.3:80,443  kms      ──▶ TLS  ──vsock 8000──▶ gateway ──▶ KMS
//!   application ──dns───▶ 169.254.170.3:53      dns
//!   client ──▶ gateway ──vsock <port>──▶ ingress ──▶ 127.0.0.1:<port> application
//!                                           └ channel: attested TLS ends here, on the ports that the image says
//!   application ──pipe──▶ app_log ──vsock 9003──▶ the enclave's log on the host, if the image says so
//! ```
//!
//! The agent is one process with one tokio runtime. It says `ready` to init once it listens on everything, so
//! that the application never finds a door closed that opens a moment later.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use enclos_api::config::{ENCLAVE_CONFIG_PATH, EnclaveConfig, Kms, ROOTFS_PATH};
use tokio::net::{TcpListener, UdpSocket};

use crate::config::{self, ConfigError};
use crate::init::env::CA_BUNDLE;
use crate::init::{AGENT_APP_READY, AGENT_FAILED, AGENT_LOGGED, AGENT_READY};
use crate::kms_names::{self, IMDS_ADDRESS, SERVICE_ADDRESS};
use crate::log;
use channel::{Channel, ChannelError};
use dns::Zone;
use facts::Facts;
use identity::{Identity, IdentityError};
use imds::Imds;
use kms::keys::Keys;
use kms::upstream::UpstreamConfigError;
use kms::{Endpoint, NoKms};
use nsm::Nsm;
use transport::{Dial, VsockListener, VsockParent};

pub mod app_log;
pub mod channel;
pub mod dns;
pub mod facts;
pub mod http;
pub mod identity;
pub mod imds;
pub mod ingress;
pub mod kms;
pub mod nsm;
pub mod transport;
mod wire;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The measured configuration is unusable.
    #[error("the enclave's configuration is unusable")]
    Config(#[from] ConfigError),
    /// The runtime could not be made.
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    /// There is no randomness.
    #[error("there is no randomness")]
    Random,
    /// The configured KMS is unusable.
    #[error("the enclave's KMS cannot be used")]
    Kms(#[from] UpstreamConfigError),
    /// The certificate for the KMS endpoint could not be made.
    #[error("cannot stand in for the KMS")]
    Identity(#[from] IdentityError),
    /// The key of attested TLS could not be made.
    #[error("attested TLS cannot be offered")]
    Channel(#[from] ChannelError),
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
    let Err(error) = start() else {
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
    if config.process.log_to_host {
        forward_output().map_err(AgentError::Runtime)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(AgentError::Runtime)?;
    runtime.block_on(serve(config))
}

/// Hands the application's output on, on a thread of its own: it is on standard input here.
fn forward_output() -> io::Result<()> {
    let thread = std::thread::Builder::new().name("app-log".into());
    thread
        .spawn(|| {
            let host = app_log::connect();
            app_log::forward(io::stdin().lock(), host, io::stderr());
            tell(AGENT_LOGGED);
        })
        .map(drop)
}

async fn serve(config: EnclaveConfig) -> Result<(), AgentError> {
    let parent: Arc<dyn Dial> = Arc::new(VsockParent);
    let nsm: Arc<dyn Nsm> = Arc::new(nsm::Device);
    let facts = Arc::new(Facts::new(Arc::clone(&parent)));
    let imds = Imds::new(Arc::clone(&facts), Arc::clone(&nsm)).map_err(|_| AgentError::Random)?;
    let listener = listen(IMDS_ADDRESS, 80, "instance metadata").await?;
    tokio::spawn(http::serve(listener, None, Arc::new(imds)));
    let attester = Arc::clone(&nsm);
    match &config.kms {
        Some(kms) => serve_kms(kms, facts, nsm, parent).await?,
        None => {
            let listener = listen(SERVICE_ADDRESS, 80, "KMS").await?;
            tokio::spawn(http::serve(listener, None, Arc::new(NoKms)));
        }
    }
    serve_names(config.kms.as_ref()).await?;
    listen_for_ingress(&config, attester)?;
    tell(AGENT_READY);
    if let Some(port) = config.ingress.first() {
        ingress::until_ready(*port).await;
        tell(&format!("{AGENT_APP_READY}{port}"));
    }
    std::future::pending().await
}

async fn serve_kms(
    kms: &Kms,
    facts: Arc<Facts>,
    nsm: Arc<dyn Nsm>,
    parent: Arc<dyn Dial>,
) -> Result<(), AgentError> {
    let keys = Keys::start().map_err(AgentError::Runtime)?;
    let endpoint = Arc::new(Endpoint::new(kms.clone(), facts, nsm, keys, parent)?);
    let identity = Identity::new(&kms_names::names(&kms.region))?;
    identity.write_bundle(Path::new(ROOTFS_PATH), Path::new(CA_BUNDLE))?;
    let plain = listen(SERVICE_ADDRESS, 80, "KMS").await?;
    let secure = listen(SERVICE_ADDRESS, 443, "KMS with TLS").await?;
    tokio::spawn(http::serve(plain, None, Arc::clone(&endpoint)));
    tokio::spawn(http::serve(secure, Some(identity.acceptor()?), endpoint));
    Ok(())
}

async fn serve_names(kms: Option<&Kms>) -> Result<(), AgentError> {
    let names = kms
        .map(|kms| kms_names::names(&kms.region))
        .unwrap_or_default();
    let zone = Arc::new(Zone::new(&names));
    let address = SocketAddr::from((SERVICE_ADDRESS, 53));
    let socket = UdpSocket::bind(address).await;
    let socket = socket.map_err(|source| no_listener("names", address, source))?;
    let listener = listen(SERVICE_ADDRESS, 53, "names").await?;
    tokio::spawn(dns::serve_udp(socket, Arc::clone(&zone)));
    tokio::spawn(dns::serve_tcp(listener, zone));
    Ok(())
}

async fn listen(host: Ipv4Addr, port: u16, what: &str) -> Result<TcpListener, AgentError> {
    let address = SocketAddr::from((host, port));
    TcpListener::bind(address)
        .await
        .map_err(|source| no_listener(what, address, source))
}

fn no_listener(what: &str, address: SocketAddr, source: io::Error) -> AgentError {
    AgentError::Listen {
        what: format!("{address} for {what}"),
        source,
    }
}

fn listen_for_ingress(config: &EnclaveConfig, nsm: Arc<dyn Nsm>) -> Result<(), AgentError> {
    let wanted = !config.attested_tls.is_empty();
    let channel = wanted.then(|| Channel::new(nsm)).transpose()?.map(Arc::new);
    for port in &config.ingress {
        let listener =
            VsockListener::bind(u32::from(*port)).map_err(|source| AgentError::Listen {
                what: format!("vsock port {port} for ingress"),
                source,
            })?;
        let attested = config.attested_tls.contains(port);
        let channel = channel.clone().filter(|_| attested);
        tokio::spawn(ingress::serve(listener, *port, channel));
    }
    Ok(())
}
