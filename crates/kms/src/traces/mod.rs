//! Traces: one OpenTelemetry span for each request, sent to a collector.
//!
//! ```text
//! request ─▶ Tracer::begin ─▶ … answer … ─▶ Tracer::end ─▶ queue, bounded ─▶ Exporter ─▶ OTLP over HTTP
//!            traceparent                                   full: dropped      a task of its own
//! ```
//!
//! Spans, sampling, the message and its retries are OpenTelemetry's own crates'. Ours is the queue, because theirs does not
//! tell how many spans it dropped. A request only ever tries to put its span into the queue, so a collector that is slow or away
//! costs a counter. A span holds what the audit trail has of a call without its parameters; no plaintext, ciphertext,
//! document, encryption context, alias or caller is in one.

mod exporter;
mod settings;

use hyper::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use crate::metrics::{self, Metrics};
use crate::service::{Answer, Request};
use crate::sts;

pub use exporter::{ClientError, Exporter};
pub use settings::{Settings, SettingsError};

/// Longest `tracestate` that is taken along: what W3C wants to be kept at least, because a caller chooses it and queued spans hold it.
const TRACE_STATE_MAX: usize = 512;

/// What makes spans.
#[derive(Debug)]
pub struct Tracer {
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    /// Its end would be the queue's.
    _provider: SdkTracerProvider,
}

/// What is known of a call beside its answer.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// The caller's account, once the signature was right.
    pub(crate) account: Option<String>,
    /// ARNs of the keys that were found.
    pub(crate) keys: Vec<String>,
}

/// The headers of a request, as far as traces look at them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        let usable = match key {
            "traceparent" => is_parent(value),
            "tracestate" => value.len() <= TRACE_STATE_MAX,
            _ => true,
        };
        usable.then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .map(hyper::header::HeaderName::as_str)
            .collect()
    }
}

/// Whether a `traceparent` has its four parts whole: the propagator would take shorter ids, and ones with a sign.
fn is_parent(value: &str) -> bool {
    let is_hex = |part: &str| {
        let mut bytes = part.bytes();
        bytes.all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let lengths = value
        .split('-')
        .take(4)
        .map(|part| is_hex(part).then_some(part.len()));
    lengths.eq([2, 32, 16, 2].map(Some))
}

impl Tracer {
    /// What makes spans, and what is to send them.
    ///
    /// # Errors
    /// If the settings lead to no client.
    pub fn new(settings: &Settings, metrics: &Metrics) -> Result<(Self, Exporter), ClientError> {
        let (exporter, queue) = Exporter::new(settings, metrics)?;
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .build();
        let made = Self {
            tracer: provider.tracer("enclos-kms"),
            propagator: TraceContextPropagator::new(),
            _provider: provider,
        };
        Ok((made, exporter))
    }

    /// Begins a request's span, in the trace that its headers name.
    pub(crate) fn begin(&self, request: &Request, named: &str) -> Span {
        let parent = self.propagator.extract(&Headers(&request.headers));
        let operation = metrics::known(named);
        let service = match sts::is_for(request) {
            true => "STS",
            false => "KMS",
        };
        let builder = SpanBuilder::from_name(operation)
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.system", "aws-api"),
                KeyValue::new("rpc.service", service),
                KeyValue::new("rpc.method", operation),
            ]);
        self.tracer.build_with_context(builder, &parent)
    }

    /// Ends a request's span.
    pub(crate) fn end(mut span: Span, answer: &Answer, facts: Facts) {
        if !span.is_recording() {
            return;
        }
        let status = i64::from(answer.status);
        span.set_attribute(KeyValue::new("http.response.status_code", status));
        let id = answer.request_id.clone();
        span.set_attribute(KeyValue::new("aws.request_id", id));
        if let Some(account) = facts.account {
            span.set_attribute(KeyValue::new("cloud.account.id", account));
        }
        if !facts.keys.is_empty() {
            let keys: Vec<StringValue> = facts.keys.into_iter().map(StringValue::from).collect();
            let keys = Value::Array(Array::String(keys));
            span.set_attribute(KeyValue::new("enclos.kms.key_arns", keys));
        }
        if let Some(error) = answer.error {
            span.set_attribute(KeyValue::new("error.type", error));
        }
        // What the caller did wrong is no error of the server's span.
        if answer.status >= 500 {
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TraceContextExt as _;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn state(parent: &str, state: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", state.parse().unwrap());
        let context = TraceContextPropagator::new().extract(&Headers(&headers));
        let span = context.span().span_context().clone();
        span.is_valid().then(|| span.trace_state().header())
    }

    #[test]
    fn a_parent_is_taken_from_headers_that_are_well_formed_and_short() {
        assert_eq!(state(PARENT, "a=b"), Some("a=b".to_owned()));
        let long = format!("a={}", "x".repeat(TRACE_STATE_MAX));
        assert_eq!(state(PARENT, &long), Some(String::new()));
        let later = PARENT.replacen("00", "01", 1) + "-more";
        assert_eq!(state(&later, "a=b"), Some("a=b".to_owned()));
        for bad in [
            String::new(),
            "00-0af7-b7ad-01".to_owned(),
            format!("{PARENT}-more"),
            PARENT.to_uppercase(),
            PARENT.replacen("00", "ff", 1),
            PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            PARENT.replace("b7ad", "b7ax"),
            PARENT.replace("b7ad", "+7ad"),
        ] {
            assert_eq!(state(&bad, "a=b"), None, "{bad}");
        }
    }
}
