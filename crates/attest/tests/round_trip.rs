//! From registers to a verified document and back, through the whole chain.

mod common;

use std::time::Duration;

use common::{Host, MODULE, NOW, attest, image_pcrs, verify};
use enclos_attest::PcrIndex;
use enclos_attest::nsm::Nsm;
use enclos_attest::policy::Expectation;

#[test]
fn what_goes_in_comes_out_verified() {
    let mut host = Host::new(NOW);
    let mut nsm = Nsm::new(MODULE.to_owned(), &image_pcrs());
    let document = attest(&mut nsm, &mut host, Some(b"0123456789abcdef"));
    let verified = verify(&document, &host.anchors(), NOW).unwrap();
    assert_eq!(verified.module_id(), MODULE);
    assert_eq!(verified.timestamp(), NOW);
    assert_eq!(verified.anchor(), "test");
    assert_eq!(verified.pcrs().len(), 16);
    assert!(verified.pcrs()[&PcrIndex::SIGNER].is_zero());
    assert_eq!(verified.nonce(), Some(b"0123456789abcdef".as_slice()));
    assert_eq!(verified.public_key(), None);
    assert!(!verified.is_debug());
    let expectation = Expectation {
        pcrs: image_pcrs(),
        nonce: Some(b"0123456789abcdef".to_vec()),
        ..Expectation::default()
    };
    expectation.check(&verified).unwrap();
}

#[test]
fn an_enclave_that_runs_for_weeks_still_attests() {
    let mut host = Host::new(NOW);
    let root = host.authority.root_certificate_der().to_vec();
    let mut nsm = Nsm::new(MODULE.to_owned(), &image_pcrs());
    let anchors = host.anchors();
    for _ in 0..600 {
        host.now = host.now.plus(Duration::from_secs(3601));
        let document = attest(&mut nsm, &mut host, None);
        verify(&document, &anchors, host.now.plus(Duration::from_secs(299))).unwrap();
    }
    assert_eq!(host.authority.root_certificate_der(), root);
}
