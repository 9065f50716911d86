//! Connections to the KMS: TLS that ends here, over vsock, kept alive and used again.
//!
//! The only roots are those of the measured configuration, and so is the name that the certificate must have: neither
//! the parent nor whoever sits between can answer in the KMS's place.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use enclos_api::config::Kms;
use enclos_api::guest::KMS_PORT;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::agent::transport::Dial;

/// How long connecting and the TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the KMS may take over one request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest reply; the largest of KMS, a page of a list, is far below.
const MAX_REPLY: usize = 1 << 20;

/// Idle connections that are kept, and how long: less than servers and the gateway keep theirs.
const MAX_IDLE: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the configuration names no usable KMS.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamConfigError {
    /// `ca_pem` holds no certificate.
    #[error("[kms] ca holds no PEM certificate")]
    NoRoots,
    /// `ca_pem` holds something that is no certificate.
    #[error("[kms] ca holds a certificate that cannot be read")]
    Roots(#[source] rustls::Error),
    /// `server_name` is none.
    #[error("[kms] server_name {0:?} is no DNS name or address")]
    ServerName(String),
    /// The TLS library refuses its own defaults.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// Why the KMS did not answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The tunnel or the TLS handshake failed.
    #[error("cannot connect to the KMS (vsock CID 3, port 8000, then TLS)")]
    Connect(#[source] io::Error),
    /// The tunnel or the TLS handshake took too long.
    #[error("no connection to the KMS within {} s (vsock CID 3, port 8000, then TLS)", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// The connection failed in the middle.
    #[error("the connection to the KMS failed")]
    Http(#[source] hyper::Error),
    /// The reply is too long or broke off.
    #[error("the KMS's reply broke off, or is longer than {MAX_REPLY} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The KMS took too long.
    #[error("the KMS did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    Timeout,
}

/// A connection that is idle.
#[derive(Debug)]
struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// The KMS.
#[derive(Debug)]
pub struct Upstream {
    parent: Arc<dyn Dial>,
    tls: Arc<ClientConfig>,
    name: ServerName<'static>,
    idle: Mutex<Vec<Idle>>,
}

impl Upstream {
    /// The KMS of the measured configuration, behind `parent`.
    ///
    /// # Errors
    /// See [`UpstreamConfigError`].
    pub fn new(kms: &Kms, parent: Arc<dyn Dial>) -> Result<Self, UpstreamConfigError> {
        let name = ServerName::try_from(kms.server_name.clone())
            .map_err(|_| UpstreamConfigError::ServerName(kms.server_name.clone()))?;
        let tls = Arc::new(client_config(&kms.ca_pem)?);
        Ok(Self {
            parent,
            tls,
            name,
            idle: Mutex::default(),
        })
    }

    /// Sends a request and reads its reply.
    ///
    /// An idle connection may turn out to be closed: a request that it did not take goes over a new one.
    ///
    /// # Errors
    /// See [`UpstreamError`].
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, UpstreamError> {
        timeout(REPLY_TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| UpstreamError::Timeout)?
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, UpstreamError> {
        while let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return self.read(sender, response).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(UpstreamError::Http(error.into_error())),
                },
            }
        }
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let mut sender = connected.map_err(|_| UpstreamError::ConnectTimeout)??;
        let response = sender
            .send_request(request)
            .await
            .map_err(UpstreamError::Http)?;
        self.read(sender, response).await
    }

    async fn read(
        &self,
        sender: SendRequest<Full<Bytes>>,
        response: Response<hyper::body::Incoming>,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_REPLY)
            .collect()
            .await
            .map_err(UpstreamError::Body)?;
        self.keep(sender);
        Ok(Response::from_parts(parts, body.to_bytes()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, UpstreamError> {
        let stream = self
            .parent
            .dial(KMS_PORT)
            .await
            .map_err(UpstreamError::Connect)?;
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        let connecting = tls.connect(self.name.clone(), stream);
        let stream = connecting.await.map_err(UpstreamError::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Http)?;
        // Ends with the last sender, or with the other side; either is told by the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() < IDLE_TIMEOUT && !idle.sender.is_closed());
        idle.pop().map(|idle| idle.sender)
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !sender.is_closed() && idle.len() < MAX_IDLE {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
    }
}

/// TLS that trusts these roots and nobody else.
fn client_config(ca_pem: &str) -> Result<ClientConfig, UpstreamConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|_| UpstreamConfigError::NoRoots)?;
        roots.add(certificate).map_err(UpstreamConfigError::Roots)?;
    }
    if roots.is_empty() {
        return Err(UpstreamConfigError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(UpstreamConfigError::Tls)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::transport::Boxed;
    use tokio::net::UnixStream;

    /// A parent that never lets anybody through.
    #[derive(Debug)]
    struct Silent;

    impl Dial for Silent {
        fn dial(&self, _: u32) -> Boxed<'_, io::Result<UnixStream>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_comes_is_told_as_such() {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        let kms = Kms {
            region: "eu-west-3".into(),
            server_name: "kms.example".into(),
            ca_pem: ca.pem(),
            key_arns: Vec::new(),
            attested_signing: false,
        };
        let upstream = Upstream::new(&kms, Arc::new(Silent)).unwrap();
        let error = upstream.send(Request::default()).await.unwrap_err();
        assert!(error.to_string().contains("within 10 s"), "{error}");
    }
}
