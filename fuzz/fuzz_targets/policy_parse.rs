//! Text from a file as a measurement policy: it is read, linted and rendered, whatever it says, and written as it
//! was read.

#![no_main]

use enclos_attest::UnixMillis;
use enclos_attest::policy::{Policy, Warning};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(policy) = Policy::from_json(bytes) else {
        return;
    };
    let warnings = policy.lint(UnixMillis(1_795_305_600_000));
    let rendered = policy.kms_conditions();
    // Every condition block asks for a document: no request without one satisfies it.
    for condition in &rendered.conditions {
        assert!(
            ["StringEqualsIgnoreCase", "Null"]
                .iter()
                .any(|operator| condition.get(operator).is_some())
        );
    }
    assert!(!rendered.conditions.is_empty() || warnings.contains(&Warning::AcceptsNothing));
    let written = serde_json::to_vec(&policy).unwrap_or_default();
    assert!(Policy::from_json(&written).is_ok_and(|again| again == policy));
});
