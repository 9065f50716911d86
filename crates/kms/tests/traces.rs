//! Traces, as a collector gets them: decoded by OpenTelemetry's own types.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{BINARY, Client, Server};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

/// Nothing is awaited longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const DEV: [&str; 3] = ["--listen", "127.0.0.1:0", "--dev"];

/// Sends spans soon.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

/// What was posted to a collector.
struct Post {
    head: String,
    body: Vec<u8>,
}

/// A collector that answers with one status, and what it was sent.
struct Collector {
    address: SocketAddr,
    posts: Receiver<Post>,
    spans: Vec<Span>,
    resource: HashMap<String, String>,
    seen: Vec<u8>,
}

impl Collector {
    fn new(status: &'static str) -> Self {
        Self::with(status, None)
    }

    /// One that proves its name with a certificate, which is its own authority.
    fn tls(authority: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(authority, made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key);
        Self::with("200 OK", Some(Arc::new(config.unwrap())))
    }

    fn with(status: &'static str, tls: Option<Arc<ServerConfig>>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (sender, posts) = channel();
        std::thread::spawn(move || {
            for stream in socket.incoming() {
                let (sender, tls, stream) = (sender.clone(), tls.clone(), stream.unwrap());
                std::thread::spawn(move || {
                    let told = |post| sender.send(post).is_ok();
                    match tls.map(|config| ServerConnection::new(config).unwrap()) {
                        None => serve(BufReader::new(stream), status, told),
                        Some(tls) => {
                            serve(BufReader::new(StreamOwned::new(tls, stream)), status, told);
                        }
                    }
                });
            }
        });
        Self {
            address,
            posts,
            spans: Vec::new(),
            resource: HashMap::new(),
            seen: Vec::new(),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn post(&self) -> Post {
        self.posts.recv_timeout(PATIENCE).unwrap()
    }

    /// Spans, once there are as many, in the order in which they ended.
    fn wait(&mut self, count: usize) -> Vec<Span> {
        while self.spans.len() < count {
            let post = self.post();
            assert!(post.head.contains("content-type: application/x-protobuf"));
            self.take(&post.body);
        }
        self.spans.clone()
    }

    fn take(&mut self, body: &[u8]) {
        let message = ExportTraceServiceRequest::decode(body).unwrap();
        for resource in message.resource_spans {
            self.resource = texts(&resource.resource.unwrap().attributes);
            for scope in resource.scope_spans {
                assert_eq!(scope.scope.unwrap().name, "enclos-kms");
                self.spans.extend(scope.spans);
            }
        }
        self.seen.extend(body);
    }
}

/// Answers one connection's requests until it ends.
fn serve(mut reader: BufReader<impl Read + Write>, status: &str, told: impl Fn(Post) -> bool) {
    while let Some(post) = read(&mut reader) {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let answered = reader.get_mut().write_all(answer.as_bytes());
        if answered.is_err() || !told(post) {
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Post> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    Some(Post { head, body })
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref().unwrap() {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        Any::ArrayValue(list) => list.values.iter().map(text).collect::<Vec<_>>().join(" "),
        other => panic!("{other:?}"),
    }
}

fn texts(attributes: &[KeyValue]) -> HashMap<String, String> {
    let pair = |pair: &KeyValue| (pair.key.clone(), text(pair.value.as_ref().unwrap()));
    attributes.iter().map(pair).collect()
}

fn server(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Server {
    let variables = variables.iter();
    let variables: Vec<_> = variables
        .map(|(name, value)| (*name, Path::new(*value)))
        .collect();
    Server::start_with(directory, &[&DEV, arguments].concat(), &variables)
}

/// How many spans are lost.
fn dropped(server: &Server) -> u64 {
    let metrics = server.metrics();
    let line = "enclos_kms_spans_total{fate=\"dropped\"} ";
    let found = metrics.lines().find_map(|found| found.strip_prefix(line));
    found.map_or(0, |value| value.parse().unwrap())
}

fn encrypt_with(client: &Client, body: &str, headers: &[(&str, &str)]) {
    let mut all = client.signed("TrentService.Encrypt", body.as_bytes());
    let more = headers.iter();
    all.extend(more.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    client.send("POST", "/", &all, body.as_bytes()).ok();
}

#[test]
fn every_request_is_a_span_that_tells_no_secret() {
    let mut collector = Collector::new("200 OK");
    let directory = tempfile::tempdir().unwrap();
    let url = collector.url();
    let server = server(directory.path(), &["--otlp-endpoint", &url], &[SOON]);
    let client = server.client();
    let key = client.create_key();
    let context = json!({ "tenant": "somebody" });
    let body = json!({ "KeyId": key, "Plaintext": "c2VjcmV0IHBsYWludGV4dA==", "EncryptionContext": context });
    let parent = |flags: &str| format!("00-{TRACE}-b7ad6b7169203331-{flags}");
    for flags in ["00", "01"] {
        let headers = [("traceparent", &*parent(flags)), ("tracestate", "vendor=x")];
        encrypt_with(&client, &body.to_string(), &headers);
    }
    let stranger = server.principal("arn:aws:iam::000000000000:role/stranger");
    let denied = stranger.call("Encrypt", json!({ "KeyId": key, "Plaintext": "eA==" }));
    assert_eq!(denied.error_type(), "AccessDeniedException");
    let unknown = client.call("NoSuchThing", json!({}));
    assert_eq!(unknown.error_type(), "UnknownOperationException");
    client.sts("Action=GetCallerIdentity&Version=2011-06-15");

    let spans = collector.wait(5);
    let [created, encrypted, denied, unknown, sts] = spans.try_into().unwrap();
    assert_eq!(collector.resource["service.name"], "enclos-kms");
    assert_eq!(created.name, "CreateKey");
    assert!(created.parent_span_id.is_empty() && created.trace_id.len() == 16);
    assert_eq!(encrypted.name, "Encrypt", "the one before was not sampled");
    assert_eq!(hex::encode(&encrypted.trace_id), TRACE);
    assert_eq!(hex::encode(&encrypted.parent_span_id), "b7ad6b7169203331");
    assert_eq!(encrypted.trace_state, "vendor=x");
    let server_kind = 2;
    assert_eq!((encrypted.span_id.len(), encrypted.kind), (8, server_kind));
    assert!(encrypted.end_time_unix_nano > encrypted.start_time_unix_nano);
    let told = texts(&encrypted.attributes);
    let account = "000000000000";
    assert_eq!(
        (&*told["rpc.service"], &*told["rpc.method"]),
        ("KMS", "Encrypt")
    );
    assert_eq!(told["http.response.status_code"], "200");
    assert_eq!(told["cloud.account.id"], account);
    assert!(told["enclos.kms.key_arns"].starts_with("arn:aws:kms:"));
    assert!(told["enclos.kms.key_arns"].ends_with(&key), "{told:?}");
    assert!(!told.contains_key("error.type"));

    let refused = texts(&denied.attributes);
    assert_eq!(refused["error.type"], "AccessDeniedException");
    assert_eq!(refused["http.response.status_code"], "400");
    assert_eq!(denied.status.unwrap().code, 0, "no failure of the server");
    let id = &refused["aws.request_id"];
    let explained = server.tool(&["explain", id]);
    assert!(explained.status.success(), "the trail has the same id");
    assert_eq!(unknown.name, "unknown");
    assert!(!texts(&unknown.attributes).contains_key("cloud.account.id"));
    let told = texts(&sts.attributes);
    assert_eq!(told["rpc.service"], "STS");
    assert_eq!(
        (&*sts.name, &*told["cloud.account.id"]),
        ("GetCallerIdentity", account)
    );

    for secret in [
        "secret",
        "c2VjcmV0",
        "somebody",
        "tenant",
        "stranger",
        "NoSuchThing",
    ] {
        let mut windows = collector.seen.windows(secret.len());
        assert!(!windows.any(|found| found == secret.as_bytes()), "{secret}");
    }
}

#[test]
fn opentelemetrys_own_variables_are_heard() {
    let mut collector = Collector::new("200 OK");
    let directory = tempfile::tempdir().unwrap();
    let url = collector.url();
    let variables = [
        SOON,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ours"),
        ("OTEL_SERVICE_NAME", "keys"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
    ];
    let server = server(directory.path(), &[], &variables);
    let client = server.client();
    let key = client.create_key();
    let body = json!({ "KeyId": key, "Plaintext": "eA==" }).to_string();
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    encrypt_with(&client, &body, &[("traceparent", &parent)]);
    let post = collector.post();
    assert!(
        post.head.starts_with("post /v1/traces http/1.1\r\n"),
        "{}",
        post.head
    );
    assert!(post.head.contains("x-tenant: ours\r\n"), "{}", post.head);
    collector.take(&post.body);
    let names: Vec<_> = collector.spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["Encrypt"], "only a parent has one sampled");
    assert_eq!(collector.resource["service.name"], "keys");
    assert_eq!(collector.resource["deployment.environment.name"], "test");
}

#[test]
fn a_collector_proves_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("authority.pem");
    let mut collector = Collector::tls(&authority);
    let url = format!("https://localhost:{}", collector.address.port());
    let arguments = ["--otlp-endpoint", &url];
    let trusted = (
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        authority.to_str().unwrap(),
    );
    let server = server(directory.path(), &arguments, &[SOON, trusted]);
    server.client().create_key();
    assert_eq!(collector.wait(1)[0].name, "CreateKey");
    drop(server);

    let other = directory.path().join("other.pem");
    let _other = Collector::tls(&other);
    let trusted = ("OTEL_EXPORTER_OTLP_CERTIFICATE", other.to_str().unwrap());
    let server = self::server(directory.path(), &arguments, &[SOON, trusted]);
    let deadline = Instant::now() + PATIENCE;
    while !server.log().contains("the collector does not take spans") {
        assert!(Instant::now() < deadline, "{}", server.log());
        server.client().call("ListKeys", json!({})).ok();
    }
    assert!(collector.posts.try_recv().is_err());
}

#[test]
fn the_end_sends_what_is_left() {
    let mut collector = Collector::new("200 OK");
    let directory = tempfile::tempdir().unwrap();
    let url = collector.url();
    let late = ("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let mut server = server(directory.path(), &["--otlp-endpoint", &url], &[late]);
    let client = server.client();
    for _ in 0..700 {
        client.call("ListKeys", json!({})).ok();
    }
    assert_eq!(server.stop(), Some(0));
    assert_eq!(collector.wait(700).len(), 700);
}

/// A collector that never answers, one that refuses, one that is not there.
#[test]
fn a_collector_that_takes_nothing_costs_spans_alone() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = Collector::new("503 Service Unavailable");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&silent, &gone].map(|socket| socket.local_addr().unwrap());
    drop(gone);
    for address in [addresses[0], addresses[1], refusing.address] {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("http://{address}");
        let arguments = [
            "--otlp-endpoint",
            &url,
            "--operations-listen",
            "127.0.0.1:0",
        ];
        let variables = [
            SOON,
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ];
        let mut server = server(directory.path(), &arguments, &variables);
        let client = server.client();
        let deadline = Instant::now() + PATIENCE;
        let is_told = || server.log().contains("the collector does not take spans");
        while dropped(&server) == 0 || !is_told() {
            assert!(Instant::now() < deadline, "nothing is lost at {address}");
            for _ in 0..20 {
                client.call("ListKeys", json!({})).ok();
            }
        }
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn without_a_collector_there_are_no_spans() {
    let server = Server::with(&["--operations-listen", "127.0.0.1:0"]);
    server.client().create_key();
    assert!(!server.metrics().contains("enclos_kms_spans_total{"));
    assert!(!server.log().contains("spans"));
}

#[test]
fn settings_that_cannot_be_are_refused_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("nowhere.pem");
    let authority = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    let nothing = ("OTEL_SERVICE_NAME", "");
    let cases = [
        ("localhost:4318", nothing, "expected http://HOST:PORT"),
        (
            "http://c",
            ("OTEL_TRACES_SAMPLER", "xray"),
            "OTEL_TRACES_SAMPLER is \"xray\"",
        ),
        (
            "http://c",
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            "expected http/protobuf",
        ),
        (
            "https://c",
            (authority, nowhere.to_str().unwrap()),
            "cannot read the certificates of the collector's authority",
        ),
    ];
    for (url, (name, value), expected) in cases {
        let output = Command::new(BINARY)
            .args(["config", "check", "--dev", "--listen", "127.0.0.1:0"])
            .args(["--otlp-endpoint", url, "--data"])
            .arg(directory.path())
            .env(name, value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{url}");
        assert!(text.contains(expected), "{text}");
    }
}
