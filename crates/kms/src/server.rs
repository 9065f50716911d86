//! Sockets: listeners, TLS, HTTP/1.1, limits, shutdown.
//!
//! | limit | value | why |
//! |---|---|---|
//! | body | [`BODY_MAX`] | the largest valid request is a 256 KiB document in base64 with a context |
//! | headers | [`HEADER_TIME`] to arrive, [`HEADER_BYTES`] long | slow or endless headers hold a connection |
//! | body time | [`BODY_TIME`] | slow bodies do too |
//! | connections | [`CONNECTIONS`] at once, and requests whose clients hung up count; further ones wait in the kernel's queue | memory and descriptors |
//! | drain | [`DRAIN`] | a shutdown ends |

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::busy_poll::{BusyPoll, Watched};
use crate::error::{ApiError, ErrorKind};
use crate::presence;
use crate::service::{Answer, Channel, JSON, Request, Service};

/// Longest body, in bytes.
pub const BODY_MAX: usize = 512 * 1024;

/// Longest header block, in bytes.
const HEADER_BYTES: usize = 64 * 1024;

/// How long headers may take.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Most connections at once.
const CONNECTIONS: usize = 4096;

/// How long a shutdown waits for requests under way.
const DRAIN: Duration = Duration::from_secs(10);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const WARNINGS: HeaderName = HeaderName::from_static("x-enclos-policy-warnings");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// A bound socket and what it speaks.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    busy_poll: Arc<BusyPoll>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a listener cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Plain HTTP with known credentials must not leave the machine.
    #[error(
        "development mode is plain HTTP with the credentials test/test and listens on loopback only, not on {0}; use 127.0.0.1 or [::1], or leave out --dev"
    )]
    NotLoopback(SocketAddr),
}

impl Listener {
    /// Plain HTTP on loopback, where the development credentials are valid.
    ///
    /// # Errors
    /// If the address is not loopback or cannot be bound.
    pub async fn dev(address: SocketAddr) -> Result<Self, ListenError> {
        if !address.ip().is_loopback() {
            return Err(ListenError::NotLoopback(address));
        }
        Ok(Self {
            socket: bind(address).await?,
            tls: None,
            busy_poll: BusyPoll::off(),
        })
    }

    /// TLS.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn tls(
        address: SocketAddr,
        config: rustls::ServerConfig,
    ) -> Result<Self, ListenError> {
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        Ok(Self {
            socket: bind(address).await?,
            tls,
            busy_poll: BusyPoll::off(),
        })
    }

    /// Lets threads stay awake for quick clients.
    #[must_use]
    pub fn with_busy_poll(self, busy_poll: Arc<BusyPoll>) -> Self {
        Self { busy_poll, ..self }
    }

    /// The address that was bound, with its real port.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until `stop` says true, then waits for requests under way, but not for ever.
    pub async fn serve(self, service: Arc<Service>, mut stop: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                break;
            };
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = stopping(&mut stop) => break,
            };
            while connections.try_join_next().is_some() {}
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer went away: neither is a reason to stop.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (service, tls, stop) = (Arc::clone(&service), self.tls.clone(), stop.clone());
            let permit = Arc::new(permit);
            // Small answers must not wait for more.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, %peer, "TCP_NODELAY failed");
            }
            let stream = self.busy_poll.watch(stream);
            connections.spawn(serve_stream(stream, peer, tls, (service, permit), stop));
        }
        drop(self.socket);
        drain(connections).await;
    }
}

/// What a connection uses, and the permit that it is counted by until the last of its requests is done.
type Served = (Arc<Service>, Arc<OwnedSemaphorePermit>);

/// Waits for connections, and ends those that take longer than [`DRAIN`]. What they have begun to change is finished: that
/// is a task of its own.
async fn drain(mut connections: JoinSet<()>) {
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all).await.is_ok() {
        return;
    }
    tracing::warn!("connections were still open when the drain time was over");
    connections.shutdown().await;
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Bind { address, source })
}

async fn serve_stream(
    stream: Watched,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    served: Served,
    stop: watch::Receiver<bool>,
) {
    let Some(acceptor) = tls else {
        return serve_http(stream, peer, Channel::Dev, served, stop).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => serve_http(stream, peer, Channel::Tls, served, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, %peer, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    channel: Channel,
    served: Served,
    mut stop: watch::Receiver<bool>,
) {
    let respond = service_fn(move |request: hyper::Request<Incoming>| {
        let (served, request) = (served.clone(), request.map(Body::asked_for));
        async move { Ok::<_, Infallible>(respond(request, peer, channel, served).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // As AWS writes them: MongoDB's drivers know `Content-Length` in no other case.
        .title_case_headers(true)
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), respond);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %peer, "connection ended early");
    }
}

/// Waits until the server is told to stop, or nobody is left to tell it.
async fn stopping(stop: &mut watch::Receiver<bool>) {
    let _told = stop.wait_for(|stop| *stop).await;
}

async fn respond(
    request: hyper::Request<Body>,
    peer: SocketAddr,
    channel: Channel,
    served: Served,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    if parts.method == Method::GET && parts.uri.path() == "/health" {
        return health(&served.0);
    }
    // GET is for presigned requests to STS, which stand in the query as a whole.
    let known = parts.method == Method::POST
        || (parts.method == Method::GET && parts.uri.query().is_some());
    if !known || parts.uri.path() != "/" {
        return failure(
            &ApiError::bare(ErrorKind::UnknownOperation),
            StatusCode::NOT_FOUND,
        );
    }
    to_the_end(parts, body, (peer, channel), served)
        .await
        .unwrap_or_else(|| {
            tracing::error!("a request's work ended early");
            failure(
                &ApiError::bare(ErrorKind::KmsInternal),
                StatusCode::INTERNAL_SERVER_ERROR,
            )
        })
}

/// Answers at once where nothing has to be waited for, and otherwise in a task of its own: a client that hangs up must not stop
/// a change half-way between disk and memory. The task knows when that happens, because this future is dropped then, and keeps
/// the connection's permit. `None` if the work panicked.
async fn to_the_end(
    parts: Parts,
    body: Body,
    from: (SocketAddr, Channel),
    (service, permit): Served,
) -> Option<Response<Full<Bytes>>> {
    let (client, seen) = watch::channel(());
    // On the heap, because a task is moved several times before it begins.
    let mut work = Box::pin(presence::with_client(seen, async move {
        let answer = answer(parts, body, from, &service).await;
        drop(permit);
        answer
    }));
    let begun = poll_fn(|context| {
        let begin = AssertUnwindSafe(|| work.as_mut().poll(context));
        Poll::Ready(std::panic::catch_unwind(begin))
    });
    match begun.await.ok()? {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => {
            let answer = tokio::spawn(work).await;
            drop(client);
            answer.ok()
        }
    }
}

async fn answer(
    parts: Parts,
    body: Body,
    (peer, channel): (SocketAddr, Channel),
    service: &Service,
) -> Response<Full<Bytes>> {
    let body = match read_body(body).await {
        Ok(body) => body,
        Err(error) => {
            let status = error.kind().status();
            return failure(&error, StatusCode::from_u16(status).unwrap_or_default());
        }
    };
    let request = Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
        // On a socket for both families IPv4 clients appear as ::ffff:a.b.c.d, which is in no network of IPv4.
        source: peer.ip().to_canonical(),
        channel,
    };
    render(service.answer(request).await)
}

/// The body of a request, asked for.
///
/// A connection passes a body on when somebody asks for it, and looks whether anybody does as soon as it has passed on the
/// head. Asked by then, what came in one packet is there when the answer is begun. Asked later, the connection has to be woken.
struct Body {
    first: Option<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

impl Body {
    fn asked_for(mut rest: Incoming) -> Self {
        let mut nobody = Context::from_waker(Waker::noop());
        let first = match Pin::new(&mut rest).poll_frame(&mut nobody) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        };
        Self { first, rest }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_MAX).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            ErrorKind::RequestEntityTooLarge,
            format!("Request body is larger than {BODY_MAX} bytes."),
        )),
        Ok(Err(_)) | Err(_) => Err(ApiError::new(
            ErrorKind::Serialization,
            "The request body ended early or took too long.",
        )),
    }
}

fn health(service: &Service) -> Response<Full<Bytes>> {
    let (status, text) = match service.is_healthy() {
        true => (StatusCode::OK, r#"{"status":"ok"}"#),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            r#"{"status":"the store cannot be written"}"#,
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn failure(error: &ApiError, status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = render(Answer {
        status: status.as_u16(),
        body: error.to_json().to_string().into_bytes(),
        content_type: JSON,
        request_id: crate::crypto::uuid().unwrap_or_default(),
        error: Some(error.kind().code()),
        warnings: Vec::new(),
    });
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        // The rest of the body is not read, so the connection cannot carry another request.
        let close = HeaderValue::from_static("close");
        response
            .headers_mut()
            .insert(hyper::header::CONNECTION, close);
    }
    response
}

fn render(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if let Ok(id) = HeaderValue::from_str(&answer.request_id) {
        headers.insert(REQUEST_ID, id);
    }
    if !answer.warnings.is_empty()
        && let Ok(warnings) = HeaderValue::from_str(&answer.warnings.join(", "))
    {
        headers.insert(WARNINGS, warnings);
    }
    if let Some(error) = answer.error {
        headers.insert(ERROR_TYPE, HeaderValue::from_static(error));
    }
    response
}
