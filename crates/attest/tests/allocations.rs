//! What verifying a document allocates, counted: a verifier that thousands ask at once must not live in its
//! allocator.

mod common;

use common::{Host, MODULE, NOW, attest, image_pcrs};
use enclos_attest::document::{ChainCache, UnverifiedDocument, VerifyOptions};
use enclos_attest::nsm::Nsm;

/// Most allocations to parse and verify a document (SPECIFICATION.md).
const COLD: u64 = 40;

/// The same, with a chain that is known.
const WARM: u64 = 30;

#[test]
fn a_verification_allocates_less_than_forty_times() {
    let mut host = Host::new(NOW);
    let document = attest(
        &mut Nsm::new(MODULE.to_owned(), &image_pcrs()),
        &mut host,
        Some(&[1; 16]),
    );
    let (anchors, options) = (host.anchors(), VerifyOptions::default());
    let cold = allocation_counter::measure(|| {
        let document = UnverifiedDocument::parse(&document).unwrap();
        document.verify(&anchors, NOW, &options).unwrap();
    });
    let cache = ChainCache::default();
    let cached = || {
        let document = UnverifiedDocument::parse(&document).unwrap();
        document
            .verify_with_cache(&anchors, NOW, &options, &cache)
            .unwrap();
    };
    cached();
    let warm = allocation_counter::measure(cached);
    println!(
        "allocations: cold {}, warm {}",
        cold.count_total, warm.count_total
    );
    assert!(cold.count_total < COLD, "{cold:?}");
    assert!(warm.count_total < WARM, "{warm:?}");
    assert!(warm.count_total < cold.count_total, "{warm:?} {cold:?}");
}
