//! Our documents in somebody else's verifier.

mod common;

use std::time::Duration;

use common::{Host, MODULE, NOW, attest, image_pcrs};
use enclos_attest::UnixMillis;
use enclos_attest::document::UnverifiedDocument;
use enclos_attest::nsm::Nsm;
use nsm_nitro_enclave_utils::api::nsm::AttestationDoc;
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
