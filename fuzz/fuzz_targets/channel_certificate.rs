//! A TLS certificate from any server: read without a panic, and nothing verifies without its anchor.
#![no_main]

use enclos_attest::channel::ChannelCertificate;
use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifyOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(certificate) = ChannelCertificate::parse(bytes) else {
        return;
    };
    assert_eq!(certificate.spki_der().len(), 120);
    let Ok(document) = UnverifiedDocument::parse(certificate.document()) else {
        return;
    };
    let at = document.unverified_claims().timestamp;
    let options = VerifyOptions {
        allow_debug: true,
        ..VerifyOptions::default()
    };
    assert!(document.verify(&TrustAnchors::new(), at, &options).is_err());
});
