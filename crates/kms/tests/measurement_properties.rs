//! The KMS's judgement, the key policy that a measurement policy is rendered as, and the judge of clients agree.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;

use common::enclave::{Enclave, MODULE, now, pcr};
use enclos_attest::document::{Claims, TrustAnchors};
use enclos_attest::policy::Policy as Measured;
use enclos_attest::{PcrIndex, PcrValue};
use enclos_kms::arn::PrincipalArn;
use enclos_kms::measurements::Measurements;
use enclos_kms::policy::{Context, Policy, Question, Verdict};
use enclos_kms::recipient::{Attested, Trust};
use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const NONCE: &[u8] = b"sent by the verifier";

fn index(number: u8) -> PcrIndex {
    PcrIndex::try_from(number).unwrap()
}

fn image(seed: u8) -> Value {
    json!({ "0": pcr(seed), "1": pcr(seed), "2": pcr(seed) })
}

fn file(require: &Value) -> String {
    let policy = json!({
        "version": 1,
        "measurements": {
            "old": { "pcrs": image(1), "notAfter": "2026-01-01T00:00:00Z" },
            "now": { "pcrs": image(2), "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2100-01-01T00:00:00Z" },
            "next": { "pcrs": image(3), "notBefore": "2100-01-01T00:00:00Z" },
        },
        "signers": { "release": { "pcr8": [pcr(1), pcr(2)], "versionPcr": 16 } },
        "require": require,
    });
    policy.to_string()
}

fn condition() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        prop::sample::subsequence(vec!["old", "now", "next"], 1..3)
            .prop_map(|names| json!({ "measurements": names })),
        Just(json!({ "signer": { "name": "release", "minimumVersion": 2, "maximumVersion": 3 } })),
        (0..5_u8, 0..4_u8)
            .prop_map(|(number, seed)| json!({ "pcrs": { number.to_string(): pcr(seed) } })),
        Just(json!({ "role": "r" })),
    ];
    let negated = leaf.clone().prop_map(|leaf| json!({ "not": leaf }));
    let nonce = Just(json!({ "nonce": "required" }));
    let leaf = prop_oneof![6 => leaf, 2 => negated, 1 => nonce];
    leaf.prop_recursive(3, 10, 3, |inner| {
        let list = prop::collection::vec(inner, 1..3);
        prop_oneof![
            list.clone().prop_map(|list| json!({ "all": list })),
            list.prop_map(|list| json!({ "any": list })),
        ]
    })
}

fn registers() -> impl Strategy<Value = BTreeMap<PcrIndex, PcrValue>> {
    let others = prop_oneof![
        (0..4_u8).prop_map(pcr),
        Just(PcrValue::of_role("r")),
        Just(PcrValue::of_version(2)),
    ];
    let others = prop::collection::btree_map(prop::sample::select(vec![3, 4, 8, 16]), others, 0..5);
    let odd = prop::option::of((0..3_u8, 0..4_u8));
    (1..4_u8, odd, others).prop_map(|(seed, odd, others)| {
        let image = (0..3_u8).map(|number| (number, pcr(seed)));
        let odd = odd.map(|(number, value)| (number, pcr(value)));
        let all = image.chain(odd).chain(others);
        all.map(|(number, value)| (index(number), value)).collect()
    })
}

/// The rendered conditions, evaluated by this KMS's own policy language.
fn key_policy_admits(policy: &Measured, attested: &Attested) -> bool {
    let allow = |condition: &Value| {
        json!({ "Effect": "Allow", "Principal": { "AWS": "111122223333" }, "Action": "kms:Decrypt", "Resource": "*",
                "Condition": condition })
    };
    let statements: Vec<_> = policy
        .kms_conditions()
        .conditions
        .iter()
        .map(allow)
        .collect();
    if statements.is_empty() {
        return false;
    }
    let text = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
    let mut context = Context::default();
    for (number, value) in attested.document().pcrs() {
        context.set(
            &format!("kms:RecipientAttestation:PCR{number}"),
            value.to_string(),
        );
    }
    let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap();
    context.set("aws:CurrentTime", time);
    let question = Question {
        principal: &PrincipalArn::root("111122223333"),
        action: "kms:Decrypt",
        resource: "*",
        context: &context,
    };
    Policy::parse(&text).unwrap().evaluate(&question) == Verdict::Allow
}

#[test]
fn kms_key_policy_and_client_agree() {
    let enclave = Enclave::new();
    let root = std::fs::read(enclave.directory.path().join("root.pem")).unwrap();
    let trust = Trust::new(TrustAnchors::new().with_root("test", &root).unwrap());
    let files = tempfile::tempdir().unwrap();
    let admitted = Cell::new(0);
    proptest!(ProptestConfig::with_cases(400), |(require in condition(), pcrs in registers())| {
        let text = file(&require);
        let policy = Measured::from_json(text.as_bytes()).unwrap();
        std::fs::write(files.path().join("app.json"), &text).unwrap();
        let Ok(measurements) = Measurements::open(files.path()) else {
            prop_assert!(policy.for_kms().is_err(), "{require}");
            return Ok(());
        };
        let claims = Claims {
            module_id: MODULE.to_owned(),
            timestamp: now(),
            pcrs: pcrs.into_iter().collect(),
            nonce: Some(NONCE.to_vec()),
            ..enclave.claims()
        };
        let attested = trust.verify(&enclave.sign(&claims), OffsetDateTime::now_utc()).unwrap();
        let judgement = measurements.judge(["app"], Some(&attested), now());
        let native = judgement.accepted == ["app"];
        if attested.is_debug() {
            prop_assert!(!native);
        } else {
            prop_assert_eq!(native, key_policy_admits(&policy, &attested), "{}", &require);
        }
        if native {
            admitted.set(admitted.get() + 1);
            // Never laxer than a client that got the nonce it sent.
            let client = policy.check(attested.document(), now(), Some(NONCE));
            prop_assert!(client.is_ok(), "{require} {client:?}");
        }
        prop_assert!(measurements.judge(["app"], None, now()).accepted.is_empty());
        prop_assert!(measurements.judge(["App", "ap"], Some(&attested), now()).accepted.is_empty());
    });
    let admitted = admitted.get();
    assert!(
        admitted > 20,
        "only {admitted} of 400 documents were admitted: the test tests nothing"
    );
}
