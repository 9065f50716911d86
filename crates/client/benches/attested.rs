//! What attestation costs a TLS connection: full handshakes with a chain that is not known and one that is, resumed ones, and what
//! each of them sends. The same of sealed calls: a document for each, and one for all. `cargo bench -p enclos-client --features tls --bench attested`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and reports by printing"
)]

#[path = "../tests/service/mod.rs"]
mod service;
#[path = "../tests/service/tls.rs"]
mod tls;

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use enclos_attest::document::TrustAnchors;
use enclos_client::attested::AttestedStream;
use enclos_client::http::Http;
use enclos_client::{AttestedTls, Enclave, Endpoint, Session, Verifier};
use service::{Manner, Service};
use tls::{Fault, Server};

/// Over which processor time is averaged.
const EXCHANGES: u32 = 500;

/// A connection that counts what goes over it, and how often this side waits for the other.
struct Counted {
    stream: BufReader<TcpStream>,
    sent: usize,
    received: usize,
    waits: usize,
    asked: bool,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What has arrived already is not waited for.
        if self.stream.buffer().is_empty() {
            self.waits += usize::from(std::mem::take(&mut self.asked));
        }
        let read = self.stream.read(buffer)?;
        self.received += read;
        Ok(read)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.asked = true;
        let written = self.stream.get_mut().write(bytes)?;
        self.sent += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}

fn verifier(root_pem: &str) -> Verifier {
    let anchors = TrustAnchors::new().with_root("bench", root_pem.as_bytes());
    Verifier::new(anchors.unwrap())
}

fn connect(tls: &AttestedTls, server: &Server) -> AttestedStream<Counted> {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_nodelay(true).unwrap();
    let (sent, received, waits, asked) = (0, 0, 0, false);
    let counted = Counted {
        stream: BufReader::with_capacity(1 << 16, stream),
        sent,
        received,
        waits,
        asked,
    };
    tls.connect(&server.address.to_string(), counted).unwrap()
}

/// A request and its answer, with which the tickets for later sessions come.
fn ask(stream: &mut AttestedStream<Counted>) {
    let request = b"POST /process HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).unwrap();
        answer.extend_from_slice(&buffer[..read]);
    }
}

fn exchange(tls: &AttestedTls, server: &Server, resumed: bool) {
    let mut stream = connect(tls, server);
    assert_eq!(stream.is_resumed(), resumed);
    ask(&mut stream);
}

/// Processor time of this thread, which is the client's share and does not depend on who else uses the machine.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Says what a client spends on doing something once.
fn spent<T>(what: &str, mut prepare: impl FnMut() -> T, once: impl Fn(T)) {
    let mut sum = Duration::ZERO;
    for _ in 0..EXCHANGES {
        let prepared = prepare();
        let start = processor_time();
        once(prepared);
        sum += processor_time().saturating_sub(start);
    }
    let each = sum / EXCHANGES;
    println!(
        "{what}: {} us of the client's processor time",
        each.as_micros()
    );
}

/// Says what one handshake takes.
fn report(what: &str, stream: &mut AttestedStream<Counted>) {
    let (waits, sent, received) = {
        let counted = stream.get_mut();
        (counted.waits, counted.sent, counted.received)
    };
    println!("{what}: {waits} round trips, {sent} bytes sent, {received} received");
}

fn handshakes(c: &mut Criterion) {
    let server = Server::start(Fault::None);
    let known = verifier(&server.root_pem());
    let tls = AttestedTls::new(known.clone()).unwrap();
    let mut first = connect(&tls, &server);
    report("full handshake", &mut first);
    ask(&mut first);
    let mut second = connect(&tls, &server);
    assert!(second.is_resumed());
    report("resumed handshake", &mut second);
    ask(&mut second);
    let asking = AttestedTls::new(known.clone()).unwrap();
    let asking = asking.with_nonces().unwrap();
    report(
        "full handshake with a nonce",
        &mut connect(&asking, &server),
    );

    let fresh = |verifier| AttestedTls::new(verifier).unwrap();
    let full = |tls| exchange(&tls, &server, false);
    let nonces = || fresh(known.clone()).with_nonces().unwrap();
    spent(
        "full, chain not known",
        || fresh(verifier(&server.root_pem())),
        full,
    );
    spent("full, chain known", || fresh(known.clone()), full);
    spent("full, with a nonce", nonces, full);
    spent("resumed", || (), |()| exchange(&tls, &server, true));

    let mut group = c.benchmark_group("handshake, request and answer");
    group.bench_function("full, chain not known", |b| {
        b.iter_batched(
            || fresh(verifier(&server.root_pem())),
            full,
            BatchSize::PerIteration,
        );
    });
    group.bench_function("full, chain known", |b| {
        b.iter_batched(|| fresh(known.clone()), full, BatchSize::PerIteration);
    });
    group.bench_function("full, with a nonce", |b| {
        b.iter_batched(nonces, full, BatchSize::PerIteration);
    });
    group.bench_function("resumed", |b| {
        b.iter(|| exchange(&tls, &server, true));
    });
    group.bench_function("a connection that is kept", |b| {
        let mut kept = connect(&tls, &server);
        b.iter(|| ask(&mut kept));
    });
    group.finish();
}

fn sealed(c: &mut Criterion) {
    let service = Service::start(Manner::Honest);
    let endpoint = || Endpoint::new(&service.url());
    let known = verifier(&service.root_pem);
    let once = || {
        let enclave = Enclave::connect(endpoint(), &known).unwrap();
        enclave.call(b"the question").unwrap()
    };
    let session = Session::new(endpoint(), known.clone(), Http::default());
    let again = || session.call(b"the question").unwrap();
    spent("sealed, a document for each", || (), |()| drop(once()));
    spent("sealed, a session", || (), |()| drop(again()));
    let fetched = service.heard("/attest").len();
    println!("documents fetched for {EXCHANGES} and {EXCHANGES} sealed calls: {fetched}");

    let mut group = c.benchmark_group("sealed request and reply");
    group.bench_function("a document for each", |b| b.iter(once));
    group.bench_function("a session", |b| b.iter(again));
    group.finish();
}

criterion_group!(benches, handshakes, sealed);
criterion_main!(benches);
