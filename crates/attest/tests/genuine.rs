//! Genuine documents of AWS, and documents of an emulator with another root.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the helpers of tests are test code too"
)]

mod common;
mod registry;

use std::time::Duration;

use common::{NOW, verify};
use enclos_attest::document::{
    AWS_ANCHOR, CertificateError, TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyError,
    VerifyOptions,
};
use enclos_attest::pki::Authority;
use enclos_attest::{PcrIndex, UnixMillis};

const AWS: &[u8] = include_bytes!("vectors/aws.bin");
const AWS_PCR16: &[u8] = include_bytes!("vectors/aws_pcr16.bin");
const CUSTOM: &[u8] = include_bytes!("vectors/custom.bin");
const CUSTOM_PCR16: &[u8] = include_bytes!("vectors/custom_pcr16.bin");

#[test]
fn genuine_documents_verify_at_their_own_time() {
    for document in genuine() {
        let timestamp = timestamp(&document);
        let live = verify(&document, &aws(), timestamp).unwrap();
        assert_eq!(live.anchor(), AWS_ANCHOR);
        let archival = verify_with(&document, &aws(), NOW, &archival()).unwrap();
        assert_eq!(archival.claims(), live.claims());
        assert_eq!(live.claims().module().unwrap().0[..2], *"i-");
    }
}

#[test]
fn genuine_documents_are_refused_now() {
    for document in genuine() {
        let error = verify(&document, &aws(), NOW).unwrap_err();
        assert!(matches!(error, VerifyError::TooOld { .. }), "{error:?}");
        // Whoever lifts the age limit still meets the expired certificates.
        let patient = VerifyOptions {
            max_age: Duration::MAX,
            ..VerifyOptions::default()
        };
        let error = verify_with(&document, &aws(), NOW, &patient).unwrap_err();
        let VerifyError::Certificate {
            source: CertificateError::Expired { .. },
            ..
        } = error
        else {
            panic!("{error:?}")
        };
    }
}

#[test]
fn genuine_documents_are_refused_under_any_other_root() {
    let other = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let other = TrustAnchors::new()
        .with_root("own", other.root_certificate_der())
        .unwrap();
    let region = UnverifiedDocument::parse(AWS)
        .unwrap()
        .unverified_cabundle()[1]
        .clone();
    assert!(
        TrustAnchors::new()
            .with_root("AWS's region", &region)
            .is_err()
    );
    for document in genuine() {
        for anchors in [&other, &TrustAnchors::new()] {
            let error = verify(&document, anchors, timestamp(&document)).unwrap_err();
            assert!(
                matches!(error, VerifyError::UntrustedRoot { .. }),
                "{error:?}"
            );
        }
    }
}

#[test]
fn a_locked_user_register_is_in_the_document() {
    let document = verify(AWS_PCR16, &aws(), timestamp(AWS_PCR16)).unwrap();
    let user = PcrIndex::try_from(16_u16).unwrap();
    assert!(!document.pcrs()[&user].is_zero());
    assert_eq!(document.pcrs().len(), 17);
    let without = verify(AWS, &aws(), timestamp(AWS)).unwrap();
    assert_eq!(
        without
            .pcrs()
            .keys()
            .map(|index| index.get())
            .collect::<Vec<_>>(),
        Vec::from_iter(0..16)
    );
}

/// Every bit counts: of the envelope, the payload, the certificates, the signature.
#[test]
fn a_flipped_bit_anywhere_is_found() {
    let timestamp = timestamp(AWS);
    for position in (0..AWS.len()).step_by(3) {
        let mut altered = AWS.to_vec();
        altered[position] ^= 1 << (position % 8);
        let Ok(document) = UnverifiedDocument::parse(&altered) else {
            continue;
        };
        let options = VerifyOptions {
            max_age: Duration::MAX,
            ..VerifyOptions::default()
        };
        document.verify(&aws(), timestamp, &options).unwrap_err();
    }
}

#[test]
fn an_emulators_documents_verify_under_its_root_only() {
    for document in [CUSTOM, CUSTOM_PCR16] {
        let at = timestamp(document);
        let error = verify(document, &aws(), at).unwrap_err();
        assert!(
            matches!(error, VerifyError::UntrustedRoot { .. }),
            "{error:?}"
        );
        let root = UnverifiedDocument::parse(document)
            .unwrap()
            .unverified_cabundle()[0]
            .clone();
        let anchors = TrustAnchors::new().with_root("emulator", &root).unwrap();
        // It emulates a debug enclave.
        let error = verify(document, &anchors, at).unwrap_err();
        assert!(
            matches!(
                error,
                VerifyError::Debug {
                    index: PcrIndex::IMAGE
                }
            ),
            "{error:?}"
        );
        let debug = VerifyOptions {
            allow_debug: true,
            ..VerifyOptions::default()
        };
        let verified = verify_with(document, &anchors, at, &debug).unwrap();
        assert!(verified.is_debug());
        assert_eq!(verified.anchor(), "emulator");
    }
}

fn genuine() -> [Vec<u8>; 3] {
    [AWS.to_vec(), AWS_PCR16.to_vec(), registry::qos()]
}

fn aws() -> TrustAnchors {
    TrustAnchors::new().with_aws()
}

fn archival() -> VerifyOptions {
    VerifyOptions {
        archival: true,
        ..VerifyOptions::default()
    }
}

fn timestamp(document: &[u8]) -> UnixMillis {
    UnverifiedDocument::parse(document)
        .unwrap()
        .unverified_claims()
        .timestamp
}

fn verify_with(
    document: &[u8],
    anchors: &TrustAnchors,
    now: UnixMillis,
    options: &VerifyOptions,
) -> Result<VerifiedDocument, VerifyError> {
    UnverifiedDocument::parse(document)
        .unwrap()
        .verify(anchors, now, options)
}
