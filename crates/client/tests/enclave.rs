//! A client against a service: what is accepted, what is refused and why, and that nothing leaves before.

#![cfg(feature = "verify")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod service;

use std::error::Error;

use enclos_attest::PcrIndex;
use enclos_attest::document::TrustAnchors;
use enclos_attest::policy::Policy;
use enclos_client::{CallError, ConnectError, Enclave, Endpoint, Verifier};
use service::{MODULE, Manner, Service, Signer, pcr};

fn verifier(root_pem: &str) -> Verifier {
    let anchors = TrustAnchors::new()
        .with_root("test", root_pem.as_bytes())
        .unwrap();
    let index = |index: u16| PcrIndex::try_from(index).unwrap();
    (0..3).fold(Verifier::new(anchors), |verifier, at| {
        verifier.expect_pcr(index(at), pcr(at))
    })
}

fn connect(service: &Service) -> Result<Enclave, ConnectError> {
    Enclave::connect(Endpoint::new(&service.url()), &verifier(&service.root_pem))
}

fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// Connecting must fail with a text that holds `reason`, and nothing may have been sent.
#[track_caller]
fn refused(manner: Manner, reason: &str) {
    let service = Service::start(manner);
    let text = chain(&connect(&service).unwrap_err());
    assert!(text.contains(reason), "{text}");
    assert!(service.heard("/process").is_empty());
}

#[test]
fn a_sealed_call_makes_the_round_trip_and_nobody_reads_along() {
    let service = Service::start(Manner::Honest);
    let enclave = connect(&service).unwrap();
    assert_eq!(enclave.document().module_id(), MODULE);
    assert_eq!(
        *enclave.call(b"the question").unwrap(),
        b"answer to the question"
    );
    assert_eq!(*enclave.call(b"another").unwrap(), b"answer to another");
    let heard = service.heard("/process");
    assert_eq!(heard.len(), 2);
    assert!(!heard[0].body.windows(8).any(|window| window == b"question"));
}

#[test]
fn every_connection_sends_a_nonce_of_its_own() {
    let service = Service::start(Manner::Honest);
    connect(&service).unwrap();
    connect(&service).unwrap();
    let heard = service.heard("/attest?nonce=");
    assert_ne!(heard[0].path, heard[1].path);
    assert_eq!(heard[0].path.len(), "/attest?nonce=".len() + 32);
}

#[test]
fn documents_that_are_not_fresh_are_refused() {
    refused(Manner::NoNonce, "nonce is absent");
    let service = Service::start(Manner::Replaying);
    connect(&service).unwrap();
    let text = chain(&connect(&service).unwrap_err());
    assert!(
        text.contains("genuine but not the one expected: nonce is "),
        "{text}"
    );
}

#[test]
fn debug_enclaves_and_services_without_documents_are_refused() {
    refused(Manner::Debug, "debug");
    refused(Manner::Broken, "<html>maintenan");
}

#[test]
fn another_root_is_refused() {
    let service = Service::start(Manner::Honest);
    let other = verifier(&Signer::new().root_pem());
    let error = Enclave::connect(Endpoint::new(&service.url()), &other).unwrap_err();
    assert!(
        chain(&error).contains("is not trusted"),
        "{}",
        chain(&error)
    );
}

#[test]
fn another_image_is_refused_with_every_difference() {
    let service = Service::start(Manner::Honest);
    let wrong = (0..2).fold(verifier(&service.root_pem), |verifier, at| {
        verifier.expect_pcr(PcrIndex::try_from(at).unwrap(), pcr(at + 1))
    });
    let error = Enclave::connect(Endpoint::new(&service.url()), &wrong).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains(&format!("PCR0 is {}, expected {}", pcr(0), pcr(1))),
        "{text}"
    );
    assert!(
        text.contains(&format!("PCR1 is {}, expected {}", pcr(1), pcr(2))),
        "{text}"
    );
}

#[test]
fn a_document_without_a_key_cannot_be_sealed_to() {
    let service = Service::start(Manner::NoKey);
    let enclave = connect(&service).unwrap();
    assert!(matches!(enclave.call(b"x"), Err(CallError::NoKey)));
    assert!(service.heard("/process").is_empty());
}

#[test]
fn a_reply_to_another_request_is_refused() {
    let service = Service::start(Manner::Confused);
    let error = connect(&service).unwrap().call(b"x").unwrap_err();
    assert!(
        chain(&error).contains("the reply answers request"),
        "{}",
        chain(&error)
    );
}

#[test]
fn nobody_there_is_said_with_the_address() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let signer = Signer::new();
    let endpoint = Endpoint::new(&format!("http://{closed}"));
    let text = chain(&Enclave::connect(endpoint, &verifier(&signer.root_pem())).unwrap_err());
    assert!(
        text.contains(&format!("no answer from http://{closed}/attest")),
        "{text}"
    );
}

#[test]
fn a_policy_is_asked_besides_everything_else() {
    let service = Service::start(Manner::Honest);
    let anchors = TrustAnchors::new().with_root("test", service.root_pem.as_bytes());
    let verifier = |pcr2: u16| {
        let json = format!(
            r#"{{ "version": 1,
                 "measurements": {{ "app": {{ "pcrs": {{ "0": "{}", "1": "{}", "2": "{}" }} }} }},
                 "require": {{ "all": [{{ "measurements": ["app"] }}, {{ "nonce": "required" }}] }} }}"#,
            pcr(0),
            pcr(1),
            pcr(pcr2)
        );
        Verifier::new(anchors.as_ref().unwrap().clone())
            .policy(Policy::from_json(json.as_bytes()).unwrap())
    };
    assert!(verifier(2).is_pinned());
    let enclave = Enclave::connect(Endpoint::new(&service.url()), &verifier(2)).unwrap();
    assert_eq!(*enclave.call(b"question").unwrap(), b"answer to question");
    let error = Enclave::connect(Endpoint::new(&service.url()), &verifier(3)).unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("the policy does not accept it: not \"app\": PCR2 is"),
        "{text}"
    );
    let any = Policy::from_json(br#"{"version":1,"require":{"role":"x"}}"#).unwrap();
    assert!(!Verifier::new(TrustAnchors::new()).policy(any).is_pinned());
}
