//! Our documents in somebody else's verifier, our messages in AWS's own types.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are test code too")]

mod common;

use std::time::Duration;

use common::{Host, MODULE, NOW, attest, image_pcrs};
use enclos_attest::document::UnverifiedDocument;
use enclos_attest::nsm::Nsm;
use enclos_attest::{PcrValue, UnixMillis};
use nsm_nitro_enclave_utils::api::ByteBuf;
use nsm_nitro_enclave_utils::api::nsm::{AttestationDoc, Digest, ErrorCode, Request, Response};
use nsm_nitro_enclave_utils::time::Time;
use nsm_nitro_enclave_utils::verify::{AttestationDocVerifierExt, ErrorKind};

const AWS: &[u8] = include_bytes!("vectors/aws.bin");

fn at(time: UnixMillis) -> Time {
    Time::new(Box::new(move || time.0))
}

#[test]
fn it_accepts_what_we_issue() {
    let mut host = Host::new(NOW);
    let mut nsm = Nsm::new(MODULE.to_owned(), &image_pcrs());
    let document = attest(&mut nsm, &mut host, Some(b"nonce"));
    let root = host.authority.root_certificate_der();
    let seen = AttestationDoc::from_cose(&document, root, at(NOW)).unwrap();
    assert_eq!(seen.module_id, MODULE);
    assert_eq!(seen.timestamp, NOW.0);
    assert_eq!(seen.nonce.unwrap().as_slice(), b"nonce");
    assert!(seen.public_key.is_none() && seen.user_data.is_none());
    for (index, value) in image_pcrs() {
        assert_eq!(seen.pcrs[&index.as_usize()].as_slice(), value.as_ref());
    }
}

#[test]
fn it_refuses_ours_under_another_root_and_after_their_time() {
    let mut host = Host::new(NOW);
    let mut nsm = Nsm::new(MODULE.to_owned(), &image_pcrs());
    let document = attest(&mut nsm, &mut host, None);
    let aws = UnverifiedDocument::parse(AWS)
        .unwrap()
        .unverified_cabundle()[0]
        .clone();
    let error = AttestationDoc::from_cose(&document, &aws, at(NOW)).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Verification);
    let root = host.authority.root_certificate_der();
    let late = NOW.plus(Duration::from_secs(4 * 3600));
    let error = AttestationDoc::from_cose(&document, root, at(late)).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Verification);
}

/// Asks as AWS's client library does and reads the answer with its types.
fn ask(nsm: &mut Nsm, host: &mut Host, request: &Request) -> Response {
    let mut bytes = Vec::new();
    ciborium::into_writer(request, &mut bytes).unwrap();
    ciborium::from_reader(nsm.handle(&bytes, host).as_slice()).unwrap()
}

#[test]
fn awss_own_types_read_every_answer() {
    let mut host = Host::new(NOW);
    let mut nsm = Nsm::new(MODULE.to_owned(), &image_pcrs());
    let mut ask = |request| ask(&mut nsm, &mut host, &request);

    let Response::DescribeNSM {
        module_id,
        max_pcrs,
        locked_pcrs,
        digest,
        ..
    } = ask(Request::DescribeNSM)
    else {
        panic!()
    };
    assert_eq!(
        (module_id.as_str(), max_pcrs, digest),
        (MODULE, 32, Digest::SHA384)
    );
    assert_eq!(locked_pcrs, (0..16).collect());

    let Response::GetRandom { random } = ask(Request::GetRandom) else {
        panic!()
    };
    assert_eq!(random.len(), 256);

    let Response::ExtendPCR { data } = ask(Request::ExtendPCR {
        index: 16,
        data: vec![1, 2],
    }) else {
        panic!()
    };
    let expected = PcrValue::ZERO.extend(&[1, 2]);
    assert_eq!(data, expected.as_ref());
    assert!(matches!(
        ask(Request::LockPCR { index: 16 }),
        Response::LockPCR
    ));
    let Response::DescribePCR { lock: true, data } = ask(Request::DescribePCR { index: 16 }) else {
        panic!()
    };
    assert_eq!(data, expected.as_ref());
    assert!(matches!(
        ask(Request::LockPCRs { range: 20 }),
        Response::LockPCRs
    ));

    let Response::Attestation { document } = ask(Request::Attestation {
        user_data: Some(ByteBuf::from(b"data".to_vec())),
        nonce: None,
        public_key: Some(ByteBuf::from(b"key".to_vec())),
    }) else {
        panic!()
    };
    let document = UnverifiedDocument::parse(&document).unwrap();
    let claims = document.unverified_claims();
    assert_eq!(claims.pcrs.len(), 20);
    assert_eq!(claims.user_data.as_deref(), Some(b"data".as_slice()));
    assert_eq!(claims.public_key.as_deref(), Some(b"key".as_slice()));
}

#[test]
fn awss_own_types_read_every_refusal() {
    let mut host = Host::new(NOW);
    let mut nsm = Nsm::new(MODULE.to_owned(), &image_pcrs());
    let mut ask = |request| ask(&mut nsm, &mut host, &request);

    assert!(matches!(
        ask(Request::DescribePCR { index: 32 }),
        Response::Error(ErrorCode::InvalidIndex)
    ));
    assert!(matches!(
        ask(Request::LockPCR { index: 15 }),
        Response::Error(ErrorCode::ReadOnlyIndex)
    ));
    let long = Request::ExtendPCR {
        index: 20,
        data: vec![0; 4096],
    };
    assert!(matches!(
        ask(long),
        Response::Error(ErrorCode::InputTooLarge)
    ));
    let long = ByteBuf::from(vec![0; 1025]);
    let long = Request::Attestation {
        user_data: None,
        nonce: Some(long),
        public_key: None,
    };
    assert!(matches!(
        ask(long),
        Response::Error(ErrorCode::InvalidArgument)
    ));
}
