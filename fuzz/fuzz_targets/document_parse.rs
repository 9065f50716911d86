//! Bytes from the network as an attestation document: parsing and verification return, whatever they are, and
//! nothing verifies under no anchor.

#![no_main]

use enclos_attest::UnixMillis;
use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifyOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = UnverifiedDocument::parse(bytes) else {
        return;
    };
    // The parser's promises about what it lets through.
    let claims = document.unverified_claims();
    assert!(claims.timestamp.0 > 0 && !claims.module_id.is_empty());
    assert!((1..=32).contains(&claims.pcrs.len()));
    let _ = claims.module();
    // Judged at its own time, so that path validation gets as far as the chain allows.
    let archival = VerifyOptions {
        archival: true,
        allow_debug: true,
        ..VerifyOptions::default()
    };
    let now = claims.timestamp;
    let root = document
        .unverified_cabundle()
        .first()
        .map_or(&[][..], Vec::as_slice);
    let anchors = TrustAnchors::new().with_aws();
    let anchors = anchors
        .clone()
        .with_root("its own", root)
        .unwrap_or(anchors);
    let _ = document.clone().verify(&anchors, now, &archival);
    assert!(
        document
            .verify(&TrustAnchors::new(), UnixMillis(now.0), &archival)
            .is_err()
    );
});
