//! The address for whoever runs the server: health, readiness, metrics. Plain HTTP, apart from the API, on loopback unless told
//! otherwise; it shows no key, caller or account.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process serves |
//! | `/readyz` | 200 if calls can be served and audited; 503 if the store cannot be written, if something stored does not open because the changed `root.key` cannot be read, or if the server stops |
//! | `/metrics` | OpenMetrics |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::server::ListenError;
use crate::service::Service;

/// Most connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 64;

/// How long one connection may last: scrapers and probes make new ones.
const CONNECTION_TIME: Duration = Duration::from_secs(30);

/// Longest header block, in bytes.
const HEADER_BYTES: usize = 16 * 1024;

const MISSED: &str =
    "root.key was changed and cannot be read, and something stored does not open without it\n";
const UNREAD: &str = "ready, but root.key was changed and cannot be read; see the log\n";

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bound address.
#[derive(Debug)]
pub struct Operations(TcpListener);

impl Operations {
    /// Binds the address.
    ///
    /// # Errors
    /// If it is taken, or not ours.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let socket = TcpListener::bind(address).await;
        let socket = socket.map_err(|source| ListenError::Bind { address, source })?;
        Ok(Self(socket))
    }

    /// The address that was bound, with its real port.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers until `ended` says true: longer than the API, so that a drain can be watched.
    pub async fn serve(
        self,
        service: Arc<Service>,
        stopping: watch::Receiver<bool>,
        mut ended: watch::Receiver<bool>,
    ) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = Arc::clone(&connections).acquire_owned().await;
            let accepted = tokio::select! {
                accepted = self.0.accept() => accepted,
                _ = ended.wait_for(|ended| *ended) => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (service, stopping) = (Arc::downgrade(&service), stopping.clone());
            tokio::spawn(async move {
                // Weak: a scraper's connection does not keep the store open.
                let answer = move || {
                    let service = service.upgrade();
                    service.map(|service| (service, *stopping.borrow()))
                };
                connection(stream, answer).await;
                drop(permit);
            });
        }
    }
}

async fn connection(
    stream: TcpStream,
    service: impl Fn() -> Option<(Arc<Service>, bool)> + Send + Sync,
) {
    let respond = service_fn(|request| {
        let response = respond(&request, service());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    // Whatever ends a probe's connection concerns nobody else.
    let _ended = tokio::time::timeout(CONNECTION_TIME, connection).await;
}

fn respond<B>(
    request: &hyper::Request<B>,
    service: Option<(Arc<Service>, bool)>,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
    }
    let ready = match &service {
        None | Some((_, true)) => Err("stopping\n"),
        Some((service, _)) if !service.is_healthy() => Err("the store cannot be written\n"),
        Some((service, _)) if service.root.is_missed() => Err(MISSED),
        Some((service, _)) if service.root.is_unread() => Ok(UNREAD),
        Some(_) => Ok("ready\n"),
    };
    match (request.uri().path(), &service) {
        ("/livez", _) => text(StatusCode::OK, TEXT, "alive\n"),
        ("/readyz", _) => match ready {
            Ok(word) => text(StatusCode::OK, TEXT, word),
            Err(word) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, word),
        },
        ("/metrics", Some((service, _))) => match service.metrics_text() {
            Ok(metrics) => text(StatusCode::OK, OPEN_METRICS, metrics),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "not formatted\n"),
        },
        ("/metrics", None) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n"),
        _ => text(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /livez, /readyz and /metrics\n",
        ),
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
