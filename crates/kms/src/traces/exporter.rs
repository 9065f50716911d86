//! The queue of spans, and the task that sends them.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::settings::Settings;
use crate::metrics::Metrics;

/// What is read of a collector's answer.
const ANSWER_MAX: usize = 64 * 1024;

/// How long the end of the program waits for spans that are left.
const FLUSH: Duration = Duration::from_secs(5);

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The authorities of the collector's certificate.
    #[error("cannot read the certificates of the collector's authority from {path}")]
    Authority {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// TLS.
    #[error("cannot trust the collector's authority")]
    Tls(#[from] rustls::Error),
    /// The system's authorities.
    #[error("this system has no certificate authorities; set OTEL_EXPORTER_OTLP_CERTIFICATE")]
    System(#[source] std::io::Error),
    /// OpenTelemetry's own.
    #[error("spans cannot be sent with these settings")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Puts spans that end into the queue, or drops them.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Counter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends spans in batches.
#[derive(Debug)]
pub struct Exporter {
    spans: mpsc::Receiver<SpanData>,
    collector: SpanExporter,
    /// Spans of the next post.
    batch: Vec<SpanData>,
    /// Spans of the post under way.
    under_way: u64,
    most: usize,
    delay: Duration,
    exported: Counter,
    dropped: Counter,
    /// Whether the last post failed, so that a collector that is away is told once.
    failing: bool,
}

impl Exporter {
    pub(super) fn new(
        settings: &Settings,
        metrics: &Metrics,
    ) -> Result<(Self, Queue), ClientError> {
        let (sender, spans) = mpsc::channel(settings.queue);
        let mut collector = SpanExporter::builder()
            .with_http()
            .with_http_client(Http::new(settings)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.to_string())
            .with_timeout(settings.timeout)
            .build()?;
        collector.set_resource(&resource());
        let made = Self {
            spans,
            collector,
            batch: Vec::new(),
            under_way: 0,
            most: settings.batch,
            delay: settings.delay,
            exported: metrics.spans_exported(),
            dropped: metrics.spans_dropped(),
            failing: false,
        };
        let queue = Queue {
            spans: sender,
            dropped: metrics.spans_dropped(),
        };
        Ok((made, queue))
    }

    /// Sends spans until the end, and then those that are left, for a while.
    pub async fn run(mut self, ended: watch::Receiver<bool>) {
        let too_late = {
            let mut ended = ended.clone();
            async move {
                end_of(&mut ended).await;
                tokio::time::sleep(FLUSH).await;
            }
        };
        tokio::select! {
            () = self.forward(ended) => {}
            () = too_late => {}
        }
        let waiting = std::iter::from_fn(|| self.spans.try_recv().ok()).count();
        let lost = count(waiting + self.batch.len()) + self.under_way;
        if lost > 0 {
            self.dropped.inc_by(lost);
            tracing::warn!(
                spans = lost,
                "the collector did not take the last spans in time"
            );
        }
    }

    async fn forward(&mut self, mut ended: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(self.delay);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.most - self.batch.len();
            tokio::select! {
                biased;
                received = self.spans.recv_many(&mut self.batch, room) => {
                    if received == 0 {
                        return self.send().await;
                    }
                    if self.batch.len() < self.most {
                        continue;
                    }
                }
                _ = tick.tick() => {}
                // Nothing ends a span any more; what is in the queue is all there is.
                () = end_of(&mut ended) => self.spans.close(),
            }
            self.send().await;
        }
    }

    async fn send(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let spans = count(batch.len());
        self.under_way = spans;
        let sent = self.collector.export(batch).await;
        self.under_way = 0;
        match sent {
            Ok(()) => {
                self.exported.inc_by(spans);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                self.dropped.inc_by(spans);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "the collector does not take spans; they are dropped until it does");
                }
            }
        }
    }
}

/// Waits for the end, without the guard that tells of it.
async fn end_of(ended: &mut watch::Receiver<bool>) {
    drop(ended.wait_for(|ended| *ended).await);
}

fn count(spans: usize) -> u64 {
    u64::try_from(spans).unwrap_or(u64::MAX)
}

/// What the spans are of: this program, unless the environment calls it otherwise.
fn resource() -> Resource {
    let (name, version) = ("enclos-kms", env!("CARGO_PKG_VERSION"));
    let named = Resource::builder_empty()
        .with_service_name(name)
        .with_attribute(KeyValue::new("service.version", version))
        .with_detectors(&[
            Box::new(TelemetryResourceDetector),
            Box::new(EnvResourceDetector::new()),
        ]);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(own) if !own.is_empty() => named.with_service_name(own).build(),
        _ => named.build(),
    }
}

/// HTTP/1.1, with TLS or without.
#[derive(Debug)]
struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

impl Http {
    fn new(settings: &Settings) -> Result<Self, ClientError> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(settings)?)
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            timeout: settings.timeout,
        })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = async {
            let answer = self.client.request(request.map(Full::new)).await?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        tokio::time::timeout(self.timeout, sent).await?
    }
}

impl HttpClient for Http {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(self.send(request))
    }
}

/// Who may be the collector: whoever a named authority vouches for, else one of the system's. No authority is looked for when there is
/// no TLS.
fn tls(settings: &Settings) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let plain = settings.endpoint.scheme_str() == Some("http");
    let builder = match &settings.authority {
        None if !plain => builder.with_native_roots().map_err(ClientError::System)?,
        path => builder.with_root_certificates(authorities(path.as_deref())?),
    };
    Ok(builder.with_no_client_auth())
}

fn authorities(path: Option<&std::path::Path>) -> Result<rustls::RootCertStore, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    let Some(path) = path else {
        return Ok(roots);
    };
    let cannot = |source| ClientError::Authority {
        path: path.to_owned(),
        source,
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(cannot)? {
        roots.add(certificate.map_err(cannot)?)?;
    }
    if roots.is_empty() {
        return Err(cannot(rustls_pki_types::pem::Error::NoItemsFound));
    }
    Ok(roots)
}
