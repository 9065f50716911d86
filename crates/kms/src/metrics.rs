//! What an operator watches: requests, how long they take, what they end in, documents, the store.
//!
//! Labels are names of operations, of errors and of states, all from fixed lists. No key, account or caller is ever in one: who may
//! read the metrics learns how much is done, not with what. What is not an operation counts as `unknown`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::{ops, sts};

/// Upper ends of the histogram's buckets, in seconds: from what a decryption takes to what an RSA key takes.
const BUCKETS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    operation: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fate {
    fate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// A counter of seconds.
pub(crate) type Seconds = Counter<f64, AtomicU64>;

#[derive(Debug, Clone)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Ended, Counter>,
    durations: Family<Operation, Histogram, Buckets>,
    documents: Family<Verdict, Counter>,
    waiting: Gauge,
    store: Gauge,
    locked: Gauge,
    root: Gauge,
    unread: Gauge,
    spans: Family<Fate, Counter>,
    busy_poll: Family<Outcome, Seconds>,
}

/// What is looked up when somebody asks.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// Audit rows and changes that wait for the store.
    pub waiting: usize,
    /// Whether the last transaction succeeded.
    pub store_writable: bool,
    /// Current version of the root key.
    pub root_key_version: u32,
    /// Whether `root.key` was changed and cannot be read.
    pub root_key_unread: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("enclos_kms");
        let made = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(Buckets),
            documents: Family::default(),
            waiting: Gauge::default(),
            store: Gauge::default(),
            locked: Gauge::default(),
            root: Gauge::default(),
            unread: Gauge::default(),
            spans: Family::default(),
            busy_poll: Family::default(),
            registry: Registry::default(),
        };
        let help = "Requests by operation and result: ok, or the error's code";
        registry.register("requests", help, made.requests.clone());
        let help = "Time from a request's last byte to its answer";
        registry.register_with_unit(
            "request_duration",
            help,
            Unit::Seconds,
            made.durations.clone(),
        );
        let help = "Attestation documents by verdict: verified or refused";
        registry.register("attestation_documents", help, made.documents.clone());
        let help = "Audit rows and changes that wait to be written";
        registry.register("store_waiting", help, made.waiting.clone());
        let help = "1 if the last transaction succeeded";
        registry.register("store_writable", help, made.store.clone());
        let help = "1 if memory is locked against swapping";
        registry.register("memory_locked", help, made.locked.clone());
        let help = "Version of the root key that new values are sealed under";
        registry.register("root_key_version", help, made.root.clone());
        let help =
            "1 if root.key was changed and cannot be read: its token does not answer, for example";
        registry.register("root_key_unread", help, made.unread.clone());
        let help =
            "Spans by fate: exported to the collector, or dropped because it was away or too slow";
        registry.register("spans", help, made.spans.clone());
        let help = "Time that threads stayed awake for a next request, by outcome: met or missed";
        registry.register_with_unit("busy_poll", help, Unit::Seconds, made.busy_poll.clone());
        Self { registry, ..made }
    }
}

impl Metrics {
    /// Counts a request. `operation` is as the caller named it, `error` the error's code.
    pub fn request(&self, operation: &str, error: Option<&'static str>, took: Duration) {
        let operation = known(operation);
        let result = error.unwrap_or("ok");
        self.requests
            .get_or_create(&Ended { operation, result })
            .inc();
        self.durations
            .get_or_create(&Operation { operation })
            .observe(took.as_secs_f64());
    }

    /// Counts an attestation document.
    pub fn document(&self, verified: bool) {
        let verdict = if verified { "verified" } else { "refused" };
        self.documents.get_or_create(&Verdict { verdict }).inc();
    }

    /// Notes whether memory is locked.
    pub fn memory_locked(&self, locked: bool) {
        self.locked.set(i64::from(locked));
    }

    /// What counts spans of one fate.
    fn spans(&self, fate: &'static str) -> Counter {
        self.spans.get_or_create_owned(&Fate { fate })
    }

    /// Counts spans that a collector took.
    pub(crate) fn spans_exported(&self) -> Counter {
        self.spans("exported")
    }

    /// Counts spans that are lost.
    pub(crate) fn spans_dropped(&self) -> Counter {
        self.spans("dropped")
    }

    /// What counts the time that threads stayed awake with one outcome.
    pub(crate) fn busy_poll(&self, outcome: &'static str) -> Seconds {
        self.busy_poll.get_or_create_owned(&Outcome { outcome })
    }

    /// Everything in the text format of OpenMetrics.
    ///
    /// # Errors
    /// If the text cannot be formatted, which would be a defect.
    pub fn text(&self, state: State) -> Result<String, std::fmt::Error> {
        self.waiting
            .set(i64::try_from(state.waiting).unwrap_or(i64::MAX));
        self.store.set(i64::from(state.store_writable));
        self.root.set(i64::from(state.root_key_version));
        self.unread.set(i64::from(state.root_key_unread));
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// The operation's own name, from the lists of those that there are.
pub(crate) fn known(operation: &str) -> &'static str {
    let kms = ops::OPERATIONS.iter().map(|(name, _)| *name);
    kms.chain(sts::OPERATIONS.iter().copied())
        .find(|name| *name == operation)
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: State = State {
        waiting: 3,
        store_writable: true,
        root_key_version: 2,
        root_key_unread: true,
    };

    #[test]
    fn requests_are_counted_by_operation_and_result() {
        let metrics = Metrics::default();
        metrics.request("Decrypt", None, Duration::from_millis(2));
        metrics.request("Decrypt", Some("AccessDeniedException"), Duration::ZERO);
        metrics.request("AssumeRole", None, Duration::ZERO);
        metrics.document(false);
        let text = metrics.text(STATE).unwrap();
        for line in [
            "enclos_kms_requests_total{operation=\"Decrypt\",result=\"ok\"} 1",
            "enclos_kms_requests_total{operation=\"Decrypt\",result=\"AccessDeniedException\"} 1",
            "enclos_kms_requests_total{operation=\"AssumeRole\",result=\"ok\"} 1",
            "enclos_kms_request_duration_seconds_bucket{le=\"0.0025\",operation=\"Decrypt\"} 2",
            "enclos_kms_attestation_documents_total{verdict=\"refused\"} 1",
            "enclos_kms_store_waiting 3",
            "enclos_kms_store_writable 1",
            "enclos_kms_root_key_version 2",
            "enclos_kms_root_key_unread 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn callers_cannot_add_labels() {
        let metrics = Metrics::default();
        for number in 0..1000 {
            metrics.request(&format!("Invented{number}"), None, Duration::ZERO);
        }
        let text = metrics.text(STATE).unwrap();
        let requests = "enclos_kms_requests_total{";
        let series = text.lines().filter(|line| line.starts_with(requests));
        assert_eq!(series.count(), 1, "{text}");
        assert!(text.contains("operation=\"unknown\",result=\"ok\"} 1000"));
    }
}
