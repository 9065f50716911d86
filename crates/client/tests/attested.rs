//! Attested TLS: who is spoken with, who is not, and what a session costs.

#![cfg(feature = "tls")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "attested/nonces.rs"]
mod nonces;
mod service;
#[path = "attested/sessions.rs"]
mod sessions;
#[path = "service/tls.rs"]
mod tls;

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use enclos_attest::document::TrustAnchors;
use enclos_attest::policy::Policy;
use enclos_attest::{PcrIndex, UnixMillis};
use enclos_client::attested::{AttestedStream, ChannelRefusal, Clock, Counts};
use enclos_client::http::{Http, HttpError};
use enclos_client::{AttestedTls, AttestedTlsError, Enclave, Endpoint, Session, Verifier};
use service::{MODULE, pcr};
use sessions::Late;
use tls::{Fault, Server};

const LIMIT: Duration = Duration::from_secs(60);

fn verifier(root_pem: &str) -> Verifier {
    let anchors = TrustAnchors::new()
        .with_root("test", root_pem.as_bytes())
        .unwrap();
    (0..3_u16).fold(Verifier::new(anchors), |verifier, at| {
        verifier.expect_pcr(PcrIndex::try_from(at).unwrap(), pcr(at))
    })
}

fn tls(server: &Server) -> AttestedTls {
    AttestedTls::new(verifier(&server.root_pem())).unwrap()
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

fn connect(
    tls: &AttestedTls,
    server: &Server,
) -> Result<AttestedStream<TcpStream>, AttestedTlsError> {
    tls.connect(&server.address.to_string(), dial(server))
}

fn dial(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// One request and its answer over a connection; tickets that came with the answer are taken in.
fn ask(stream: &mut AttestedStream<TcpStream>) -> String {
    let request = b"POST /process HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    while !answer.ends_with('}') {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "the answer breaks off: {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    answer
}

/// A clock that stands still until it is moved.
fn stopped() -> (Arc<AtomicU64>, Clock) {
    let now = Arc::new(AtomicU64::new(UnixMillis::from(SystemTime::now()).0));
    let clock = Arc::clone(&now);
    (
        now,
        Arc::new(move || UnixMillis(clock.load(Ordering::Relaxed))),
    )
}

fn counts(full: u64, resumed: u64, documents: u64) -> Counts {
    let mut counts = Counts::default();
    (counts.full, counts.resumed, counts.documents) = (full, resumed, documents);
    counts
}

#[test]
fn a_request_in_the_open_travels_inside_attested_tls() {
    let server = Server::start(Fault::None);
    let tls = tls(&server);
    let http = Http::attested(LIMIT, &tls);
    let url = format!("{}/process", server.url());
    for _ in 0..2 {
        let answer = http.post(&url, [("content-type", "application/json")], b"{}");
        assert_eq!(answer.unwrap(), b"{\"result\": \"in the open\"}");
    }
    let verdict = tls.verdict(&server.address.to_string()).unwrap();
    assert_eq!(verdict.document().module_id(), MODULE);
    assert_eq!(verdict.document().anchor(), "test");
    assert_eq!(
        server.accepted(),
        1,
        "the connection is used for the second request too"
    );
    assert_eq!(tls.counts(), counts(1, 0, 1));
}

#[test]
fn a_sealed_request_travels_inside_attested_tls_and_its_document_is_fetched_once() {
    let server = Server::start(Fault::None);
    let tls = tls(&server);
    let endpoint = Endpoint::new(&server.url());
    let verifier = verifier(&server.root_pem());
    let session = Session::new(endpoint, verifier, Http::attested(LIMIT, &tls));
    for _ in 0..3 {
        assert_eq!(
            *session.call(b"the question").unwrap(),
            b"answer to the question"
        );
    }
    let paths: Vec<_> = server.heard().into_iter().map(|heard| heard.path).collect();
    assert!(paths[0].starts_with("/attest?nonce="));
    assert_eq!(paths[1..], ["/process", "/process", "/process"]);
    session.forget();
    session.call(b"again").unwrap();
    assert_eq!(server.heard().len(), 6);
}

/// Nothing of the application's may have arrived, and the reason must be this one.
#[track_caller]
fn refused(fault: Fault, reason: &str) {
    let server = Server::start(fault);
    let tls = tls(&server);
    let error = connect(&tls, &server).unwrap_err();
    assert!(chain(&error).contains(reason), "{}", chain(&error));
    let http = Http::attested(LIMIT, &tls);
    let error = http
        .post(&format!("{}/process", server.url()), [], b"a secret")
        .unwrap_err();
    assert!(matches!(error, HttpError::Attested { .. }), "{error:?}");
    assert!(chain(&error).contains(reason), "{}", chain(&error));
    assert_eq!(server.heard().len(), 0);
    assert_eq!(tls.counts().full + tls.counts().resumed, 0);
    assert!(tls.verdict(&server.address.to_string()).is_none());
}

#[test]
fn whoever_copies_a_certificate_cannot_sign_the_handshake() {
    refused(Fault::CopiedCertificate, "BadSignature");
}

#[test]
fn whoever_copies_a_document_has_another_key() {
    refused(Fault::CopiedDocument, "for another key");
}

#[test]
fn documents_for_other_purposes_old_ones_and_those_of_debug_enclaves_are_refused() {
    refused(Fault::OtherPurpose, "not made for a TLS key");
    refused(Fault::Old, "expected at most 300.000 s");
    refused(Fault::Debug, "debug");
}

#[test]
fn there_is_no_other_way_to_be_trusted() {
    refused(Fault::Ordinary, "carries no attestation document");
    refused(Fault::Chain, "the server sent 2 certificates");
    refused(Fault::Tls12, "the TLS handshake failed");
}

#[test]
fn a_debug_enclave_is_spoken_with_when_that_is_asked_for() {
    let server = Server::start(Fault::Debug);
    let anchors = TrustAnchors::new().with_root("test", server.root_pem().as_bytes());
    let verifier = Verifier::new(anchors.unwrap()).allow_debug();
    let stream = connect(&AttestedTls::new(verifier).unwrap(), &server).unwrap();
    assert!(stream.verdict().document().is_debug());
}

#[test]
fn another_image_or_root_is_refused() {
    let server = Server::start(Fault::None);
    let other = verifier(&server.root_pem()).expect_pcr(PcrIndex::try_from(2_u16).unwrap(), pcr(3));
    let error = connect(&AttestedTls::new(other).unwrap(), &server).unwrap_err();
    let AttestedTlsError::Refused(refusal) = &error else {
        panic!("{error:?}")
    };
    assert!(matches!(**refusal, ChannelRefusal::Document(_)));
    assert!(chain(&error).contains("PCR2 is"), "{}", chain(&error));
    let elsewhere = verifier(&service::Signer::new().root_pem());
    let error = connect(&AttestedTls::new(elsewhere).unwrap(), &server).unwrap_err();
    assert!(
        chain(&error).contains("is not trusted"),
        "{}",
        chain(&error)
    );
    assert_eq!(server.heard().len(), 0);
}

#[test]
fn other_urls_and_verifiers_for_records_are_refused() {
    let server = Server::start(Fault::None);
    let http = Http::attested(LIMIT, &tls(&server));
    let error = http
        .get(&format!("http://{}/", server.address))
        .unwrap_err();
    assert!(
        chain(&error).contains("is not an https URL"),
        "{}",
        chain(&error)
    );
    let archival = verifier(&server.root_pem()).archival();
    let error = AttestedTls::new(archival).unwrap_err();
    assert!(matches!(error, AttestedTlsError::Archival));
    let stream = TcpStream::connect(server.address).unwrap();
    let error = tls(&server).connect("no port", stream).unwrap_err();
    assert!(matches!(error, AttestedTlsError::Server { .. }));
}

#[test]
fn a_resumed_handshake_looks_at_no_document() {
    let server = Server::start(Fault::None);
    let tls = tls(&server);
    let mut first = connect(&tls, &server).unwrap();
    assert!(!first.is_resumed());
    ask(&mut first);
    // The certificate has changed meanwhile: a resumed session does not even see it.
    server.renew();
    let mut second = connect(&tls, &server).unwrap();
    assert!(second.is_resumed());
    assert!(Arc::ptr_eq(first.verdict(), second.verdict()));
    ask(&mut second);
    assert!(connect(&tls, &server).unwrap().is_resumed());
    assert_eq!(tls.counts(), counts(1, 2, 1));
}

#[test]
fn a_verdict_that_is_over_takes_its_sessions_along() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let verifier = verifier(&server.root_pem()).max_age(Duration::from_secs(300));
    let tls = AttestedTls::with_clock(verifier, clock).unwrap();
    let mut stream = connect(&tls, &server).unwrap();
    ask(&mut stream);
    let good_until = stream.verdict().good_until();
    now.store(good_until.0, Ordering::Relaxed);
    assert!(stream.holds());
    assert!(connect(&tls, &server).unwrap().is_resumed());
    now.store(good_until.0 + 1, Ordering::Relaxed);
    assert!(!stream.holds());
    assert!(tls.verdict(&server.address.to_string()).is_none());
    // The session is not offered; the certificate is judged, and is as old as the verdict was.
    let error = connect(&tls, &server).unwrap_err();
    assert!(
        chain(&error).contains("expected at most 300.000 s"),
        "{}",
        chain(&error)
    );
    assert_eq!(tls.counts(), counts(1, 1, 2));
    // Once the enclave has renewed its certificate, a full handshake leads to a new verdict. The clock is the server's again.
    now.store(
        UnixMillis::from(SystemTime::now()).0 + 1000,
        Ordering::Relaxed,
    );
    server.renew();
    let stream = connect(&tls, &server).unwrap();
    assert!(!stream.is_resumed());
    assert_eq!(tls.counts(), counts(2, 1, 3));
}

#[test]
fn connections_that_are_kept_end_with_their_verdict() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let tls = AttestedTls::with_clock(verifier(&server.root_pem()), clock).unwrap();
    let http = Http::attested(LIMIT, &tls);
    let url = format!("{}/process", server.url());
    http.post(&url, [], b"{}").unwrap();
    now.fetch_add(301_000, Ordering::Relaxed);
    let error = http.post(&url, [], b"{}").unwrap_err();
    assert!(
        chain(&error).contains("expected at most 300.000 s"),
        "{}",
        chain(&error)
    );
    assert_eq!((server.accepted(), server.heard().len()), (2, 1));
}

#[test]
fn a_policy_that_ends_ends_its_sessions() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let day = 24 * 3600 * 1000;
    let until = UnixMillis::from_secs(now.load(Ordering::Relaxed) / 1000 + 60);
    let until = until.to_string().replace(".000", "");
    let json = format!(
        r#"{{ "version": 1, "measurements": {{ "app": {{ "pcrs": {{ "0": "{}" }}, "notAfter": "{until}" }} }},
             "require": {{ "measurements": ["app"] }} }}"#,
        pcr(0)
    );
    let policy = Policy::from_json(json.as_bytes()).unwrap();
    let verifier = verifier(&server.root_pem()).policy(policy);
    let tls = AttestedTls::with_clock(verifier.max_age(Duration::from_millis(day)), clock).unwrap();
    ask(&mut connect(&tls, &server).unwrap());
    assert!(connect(&tls, &server).unwrap().is_resumed());
    now.fetch_add(62_000, Ordering::Relaxed);
    let error = connect(&tls, &server).unwrap_err();
    assert!(
        chain(&error).contains("policy does not accept"),
        "{}",
        chain(&error)
    );
}

#[test]
fn another_server_leaves_the_sessions_of_the_first() {
    let servers = [Server::start(Fault::None), Server::start(Fault::None)];
    let anchors = servers.iter().zip(["one", "other"]).fold(
        TrustAnchors::new(),
        |anchors, (server, name)| {
            let root = server.root_pem();
            anchors.with_root(name, root.as_bytes()).unwrap()
        },
    );
    let tls = AttestedTls::new(Verifier::new(anchors)).unwrap();
    for (server, anchor) in servers.iter().zip(["one", "other"]) {
        let mut stream = connect(&tls, server).unwrap();
        ask(&mut stream);
        assert_eq!(stream.verdict().document().anchor(), anchor);
    }
    for server in &servers {
        assert!(connect(&tls, server).unwrap().is_resumed());
        let url = format!("{}/process", server.url());
        let (known, same) = (
            tls.verdict(&server.address.to_string()),
            tls.verdict_of(&url),
        );
        assert!(Arc::ptr_eq(&known.unwrap(), &same.unwrap()));
    }
}

#[test]
fn sessions_belong_to_one_verifier_and_one_port() {
    let (server, other) = (Server::start(Fault::None), Server::start(Fault::None));
    let tls = tls(&server);
    ask(&mut connect(&tls, &server).unwrap());
    // Another verifier starts over, clones do not.
    let error = connect(&tls, &other).unwrap_err();
    assert!(
        chain(&error).contains("is not trusted"),
        "{}",
        chain(&error)
    );
    let own = AttestedTls::new(verifier(&server.root_pem())).unwrap();
    assert!(!connect(&own, &server).unwrap().is_resumed());
    assert!(connect(&tls.clone(), &server).unwrap().is_resumed());
}

#[test]
fn many_threads_share_one_verdict() {
    let server = Server::start(Fault::None);
    let tls = tls(&server);
    ask(&mut connect(&tls, &server).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..4 {
                    ask(&mut connect(&tls, &server).unwrap());
                }
            });
        }
    });
    let counted = tls.counts();
    assert_eq!(counted.documents, 1);
    assert_eq!(counted.full + counted.resumed, 33);
}

#[test]
fn an_enclave_is_connected_to_over_attested_tls_too() {
    let server = Server::start(Fault::None);
    let http = Http::attested(LIMIT, &tls(&server));
    let verifier = verifier(&server.root_pem());
    let enclave = Enclave::connect_with(Endpoint::new(&server.url()), &verifier, http).unwrap();
    assert_eq!(*enclave.call(b"x").unwrap(), b"answer to x");
}
