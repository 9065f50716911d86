//! `enclos call --attested-tls` on the real binary, against a server that ends attested TLS.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
#[path = "../../client/tests/service/mod.rs"]
mod service;
#[path = "../../client/tests/service/tls.rs"]
mod tls;

use daemon::{Daemon, Done, run};
use service::{MODULE, pcr};
use tls::{Fault, Server};

fn call(server: &Server, options: &[&str]) -> Done {
    let daemon = Daemon::none();
    let root = daemon.file("root.pem", server.root_pem().as_bytes());
    let (url, pin) = (server.url(), pcr(0).to_string());
    let always = [
        "call", &url, "--root", &root, "--pcr0", &pin, "--data", "a secret",
    ];
    run(&daemon, &[&always, options].concat())
}

#[test]
fn a_call_travels_inside_attested_tls_as_it_is_or_sealed() {
    let server = Server::start(Fault::None);
    let done = call(&server, &["--attested-tls", "--content-type", "text/plain"]);
    let expected = "{\"result\": \"in the open\"}\n";
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (0, expected),
        "{}",
        done.stderr
    );
    let note = format!("verified {MODULE} (root ");
    assert!(done.stderr.starts_with(&note), "{}", done.stderr);
    let heard = server.heard();
    assert_eq!(
        (heard.len(), heard[0].body.as_slice()),
        (1, b"a secret".as_slice())
    );
    assert_eq!(heard[0].headers["content-type"], "text/plain");
    let done = call(&server, &["--attested-tls", "--seal"]);
    assert_eq!(done.stdout, "answer to a secret\n", "{}", done.stderr);
    assert!(server.heard()[1].path.starts_with("/attest?nonce="));
}

#[test]
fn a_call_sends_nothing_to_a_server_that_is_not_attested() {
    for (fault, reason) in [
        (Fault::Ordinary, "carries no attestation document"),
        (Fault::CopiedDocument, "for another key"),
        (Fault::CopiedCertificate, "TLS handshake failed"),
        (Fault::Debug, "debug"),
    ] {
        let server = Server::start(fault);
        let done = call(&server, &["--attested-tls"]);
        assert_eq!((done.status, done.stdout.as_str()), (1, ""));
        assert!(done.stderr.contains("nothing was sent"), "{}", done.stderr);
        assert!(done.stderr.contains(reason), "{}", done.stderr);
        assert!(server.heard().is_empty());
    }
}

#[test]
fn the_web_is_not_fallen_back_to_and_the_other_way_round() {
    let server = Server::start(Fault::None);
    let done = call(&server, &["--wait", "0"]);
    assert_eq!(done.status, 1, "Web PKI knows no such certificate");
    assert!(server.heard().is_empty());
    let done = call(&server, &["--attested-tls", "--tls-nonce"]);
    assert!(done.stderr.starts_with("verified "), "{}", done.stderr);
    let done = call(
        &Server::start(Fault::NoNonces),
        &["--attested-tls", "--tls-nonce"],
    );
    assert!(
        done.stderr.contains("does not answer nonces"),
        "{}",
        done.stderr
    );
    let done = call(&server, &["--seal"]);
    assert_eq!(done.status, 2, "{}", done.stderr);
}
