//! Where other verifiers say otherwise, and why. The tests hold both: that they do, and that nobody else does.

use std::collections::BTreeMap;

const UTILS: &str = "nsm-nitro-enclave-utils";
const PYTHON: &str = "python";
const EVERVAULT: &str = "attestation-doc-validation";

/// Verifier, reason, documents.
const DISAGREEMENTS: &[(&str, &str, &[&str])] = &[
    (
        EVERVAULT,
        "refuses: it has no mode for records of the past",
        &["aws-record", "aws-pcr16-record", "aws-qos-record"],
    ),
    (
        EVERVAULT,
        "refuses: it wants 1 to 512 bytes of user_data, and AWS's module signs others, too",
        &["aws-pcr16"],
    ),
    (
        UTILS,
        "refuses: it has no mode for records of the past",
        &[
            "aws-record",
            "aws-pcr16-record",
            "aws-qos-record",
            "good-archival",
        ],
    ),
    (
        UTILS,
        "refuses: it reads untagged documents only",
        &["good-tagged"],
    ),
    (
        UTILS,
        "accepts: it bounds no lengths",
        &[
            "too-long",
            "module-id-empty",
            "public-key-empty",
            "public-key-long",
            "user-data-long",
            "nonce-long",
        ],
    ),
    (
        UTILS,
        "accepts: its decoder takes text for bytes, and bytes for text",
        &["module-id-bytes", "nonce-text"],
    ),
    (
        UTILS,
        "accepts: digest may name SHA-256 and SHA-512, too",
        &["digest-sha256"],
    ),
    (
        UTILS,
        "accepts: it does not look at the timestamp",
        &[
            "timestamp-zero",
            "old",
            "future",
            "future-for-ever",
            "emulator-later",
            "emulator-pcr16-later",
            "archival-outside-leaf",
        ],
    ),
    (
        UTILS,
        "accepts: it counts, numbers and measures no registers",
        &[
            "pcrs-empty",
            "pcrs-33",
            "pcr-32",
            "pcr-32-bytes",
            "pcr-47-bytes",
            "pcr-64-bytes",
        ],
    ),
    (
        UTILS,
        "accepts: of a register twice, the last counts",
        &["pcr-twice"],
    ),
    (
        UTILS,
        "accepts: it skips nitrotpm_pcrs",
        &["nitrotpm-and-pcrs"],
    ),
    (
        UTILS,
        "accepts: it leaves registers to its caller",
        &[
            "debug-pcr0",
            "debug-pcr1",
            "debug-pcr2",
            "pcr0-absent",
            "pcr1-absent",
            "pcr2-absent",
        ],
    ),
    (
        UTILS,
        "accepts: it builds a path from name and key of the root it was given, in whatever order, and does not look at the \
         root's certificate in the bundle",
        &[
            "root-expired",
            "bundle-reversed",
            "bundle-without-root",
            "bundle-swapped",
        ],
    ),
    (
        UTILS,
        "accepts: it does not compare key identifiers",
        &["key-identifier"],
    ),
    (
        UTILS,
        "accepts: it does not look at keyUsage",
        &[
            "ca-without-usage",
            "ca-usage-signature",
            "ca-usage-crl",
            "leaf-cert-sign",
            "leaf-without-usage",
            "leaf-usage",
        ],
    ),
    (
        UTILS,
        "accepts: it does not look at a leaf's pathLen",
        &["leaf-path-length"],
    ),
    (
        UTILS,
        "accepts: it processes nameConstraints, which are about host names that no leaf here has",
        &["ca-critical-name-constraints"],
    ),
    (
        UTILS,
        "accepts: compressed points are points",
        &["key-compressed"],
    ),
    (
        PYTHON,
        "accepts: cbor2 ignores what follows an item",
        &["trailing-byte", "payload-trailing-byte"],
    ),
    (
        PYTHON,
        "accepts: cbor2 keeps the last of two equal keys",
        &["key-twice", "pcr-twice"],
    ),
    (
        PYTHON,
        "accepts: cryptography decodes compressed and hybrid points and does not tell",
        &["key-compressed", "key-hybrid"],
    ),
];

pub fn of(name: &str) -> BTreeMap<String, String> {
    let found = DISAGREEMENTS
        .iter()
        .filter(|(_, _, names)| names.contains(&name));
    found
        .map(|(verifier, reason, _)| ((*verifier).to_owned(), (*reason).to_owned()))
        .collect()
}
