//! A document for a nonce of the client's own, and what a session saves of it.

use super::*;

fn asking(server: &Server) -> AttestedTls {
    tls(server).with_nonces().unwrap()
}

#[test]
fn each_full_handshake_has_a_nonce_of_its_own() {
    let server = Server::start(Fault::None);
    let nonces = [(); 2].map(|()| {
        let tls = asking(&server);
        let mut stream = connect(&tls, &server).unwrap();
        ask(&mut stream);
        assert_eq!(tls.counts(), counts(1, 0, 1));
        let nonce = stream.verdict().document().nonce().unwrap().to_vec();
        assert_eq!(nonce.len(), 32);
        nonce
    });
    assert_ne!(nonces[0], nonces[1]);
    assert_eq!(server.resumed(), 0);
}

#[test]
fn a_resumed_handshake_needs_no_nonce() {
    let server = Server::start(Fault::None);
    let tls = asking(&server);
    let mut first = connect(&tls, &server).unwrap();
    ask(&mut first);
    let mut second = connect(&tls, &server).unwrap();
    assert!(second.is_resumed());
    assert!(Arc::ptr_eq(first.verdict(), second.verdict()));
    ask(&mut second);
    assert_eq!(tls.counts(), counts(1, 1, 1));
    assert_eq!(server.heard().len(), 2);
}

#[test]
fn sessions_are_not_taken_over_from_a_client_without_nonces() {
    let server = Server::start(Fault::None);
    let plain = tls(&server);
    ask(&mut connect(&plain, &server).unwrap());
    assert!(connect(&plain, &server).unwrap().is_resumed());
    let asking = plain.with_nonces().unwrap();
    let stream = connect(&asking, &server).unwrap();
    assert!(!stream.is_resumed());
    assert!(stream.verdict().document().nonce().is_some());
}

#[test]
fn the_documents_age_is_that_of_the_answer_and_not_of_the_certificate() {
    let server = Server::start(Fault::Old);
    let stream = connect(&asking(&server), &server).unwrap();
    let age = UnixMillis::from(SystemTime::now()).since(stream.verdict().document().timestamp());
    assert!(age.unwrap() < Duration::from_secs(300));
}

#[track_caller]
fn refused(fault: Fault, reason: &str) {
    let server = Server::start(fault);
    let tls = asking(&server);
    let error = connect(&tls, &server).unwrap_err();
    assert!(chain(&error).contains(reason), "{}", chain(&error));
    assert_eq!(server.heard().len(), 0);
    assert_eq!(tls.counts().full + tls.counts().resumed, 0);
    assert!(tls.verdict(&server.address.to_string()).is_none());
}

#[test]
fn whoever_does_not_answer_the_nonce_is_refused() {
    refused(Fault::NoNonces, "does not answer nonces");
    refused(Fault::OtherNonce, "nonce");
    refused(Fault::LongAnswer, "answered a nonce with 4294967295 bytes");
}

#[test]
fn a_nonce_replaces_no_other_rule() {
    refused(Fault::CopiedCertificate, "BadSignature");
    refused(Fault::CopiedDocument, "for another key");
    refused(Fault::Ordinary, "carries no attestation document");
    refused(Fault::Chain, "the server sent 2 certificates");
    refused(Fault::Tls12, "the TLS handshake failed");
}

#[test]
fn a_verdict_that_ends_during_a_resumed_handshake_is_renewed_by_a_nonce() {
    let server = Server::start(Fault::None);
    let (now, clock) = stopped();
    let plain = AttestedTls::with_clock(verifier(&server.root_pem()), clock).unwrap();
    let tls = plain.with_nonces().unwrap();
    // The server's clock goes on; the client's document is of its time.
    let mut first = connect(&tls, &server).unwrap();
    ask(&mut first);
    let good_until = first.verdict().good_until();
    let made = first.verdict().document().timestamp();
    while UnixMillis::from(SystemTime::now()) <= made {
        std::hint::spin_loop();
    }
    let late = Late::new(&server, move || {
        now.store(good_until.0 + 1, Ordering::Relaxed)
    });
    let second = tls.connect(&server.address.to_string(), late).unwrap();
    assert!(second.is_resumed());
    assert!(!Arc::ptr_eq(first.verdict(), second.verdict()));
    assert!(second.holds() && !first.holds());
    assert_eq!(tls.counts(), counts(1, 1, 2));
}
