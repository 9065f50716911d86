//! What policies accept, and that three readings of one agree: the judge, the alternatives, the key policy.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::judge::Case as Judged;
use super::normal;
use super::*;
use crate::UnixMillis;

/// 2026-11-22T00:00:00Z.
const NOW: UnixMillis = UnixMillis(1_795_305_600_000);
const NONCE: &[u8] = &[7; 16];

fn index(number: u8) -> PcrIndex {
    PcrIndex::try_from(number).unwrap()
}

/// One of a few values, so that they meet.
fn value(seed: u8) -> PcrValue {
    match seed {
        0 => PcrValue::ZERO,
        seed => PcrValue::ZERO.extend(&[seed]),
    }
}

fn claims(pcrs: &[(u8, PcrValue)]) -> Claims {
    Claims {
        module_id: "i-1-enc1".to_owned(),
        timestamp: UnixMillis(NOW.0 - 1000),
        pcrs: pcrs
            .iter()
            .map(|(number, value)| (index(*number), *value))
            .collect(),
        public_key: None,
        user_data: None,
        nonce: Some(NONCE.to_vec()),
    }
}

/// An image's registers 0, 1 and 2.
fn image(seed: u8) -> Vec<(u8, PcrValue)> {
    (0..3)
        .map(|number| (number, value(seed + number)))
        .collect()
}

fn pcrs(list: &[(u8, PcrValue)]) -> Value {
    let pairs = list
        .iter()
        .map(|(number, value)| (number.to_string(), json!(value)));
    Value::Object(pairs.collect())
}

fn policy(require: &Value) -> Result<Policy, PolicyError> {
    let json = json!({
        "version": 1,
        "measurements": {
            "old": { "pcrs": pcrs(&image(10)), "notAfter": "2026-11-21T23:59:59Z" },
            "now": { "pcrs": pcrs(&image(20)), "notBefore": "2026-11-22T00:00:00Z", "notAfter": "2026-11-22T00:00:00Z" },
            "next": { "pcrs": pcrs(&image(30)), "notBefore": "2026-11-22T00:00:01Z" },
            "debug": { "pcrs": pcrs(&[(0, PcrValue::ZERO)]) },
        },
        "signers": {
            "release": { "pcr8": [value(1), value(2)], "versionPcr": 16 },
            "plain": { "pcr8": [value(3)] },
        },
        "require": require,
    });
    Policy::from_json(json.to_string().as_bytes())
}

fn judge(policy: &Policy, claims: &Claims) -> Result<Accepted, Vec<Reason>> {
    policy.judge(&Judged {
        claims,
        now: NOW,
        nonce: Some(NONCE),
    })
}

fn accepts(require: &Value, claims: &Claims) -> bool {
    judge(&policy(require).unwrap(), claims).is_ok()
}

#[test]
fn measurements_are_accepted_at_their_time() {
    let any = json!({ "measurements": ["old", "now", "next"] });
    let found = judge(&policy(&any).unwrap(), &claims(&image(20))).unwrap();
    assert_eq!(found.matched(), ["now"]);
    for seed in [10, 30] {
        let reasons = judge(&policy(&any).unwrap(), &claims(&image(seed))).unwrap_err();
        assert!(matches!(
            reasons[if seed == 10 { 0 } else { 2 }],
            Reason::NotNow { .. }
        ));
        assert_eq!(reasons.len(), 3, "{reasons:?}");
    }
    // The last second belongs to it, the millisecond after does not.
    let policy = policy(&any).unwrap();
    let at = |now| {
        let claims = &claims(&image(20));
        policy
            .judge(&Judged {
                claims,
                now,
                nonce: None,
            })
            .is_ok()
    };
    assert!(at(NOW) && at(UnixMillis(NOW.0 + 999)));
    assert!(!at(UnixMillis(NOW.0 - 1)) && !at(UnixMillis(NOW.0 + 1000)));
}

#[test]
fn a_register_that_differs_or_is_absent_is_named() {
    let mut wrong = image(20);
    wrong[2].1 = value(99);
    let require = json!({ "measurements": ["now"] });
    let reasons = judge(&policy(&require).unwrap(), &claims(&wrong)).unwrap_err();
    assert_eq!(
        reasons[0].to_string(),
        format!("not \"now\": PCR2 is {}, expected {}", value(99), value(22))
    );
    let reasons = judge(&policy(&require).unwrap(), &claims(&wrong[..2])).unwrap_err();
    assert!(
        reasons[0]
            .to_string()
            .contains("PCR2 is not in the document")
    );
    assert!(!accepts(
        &json!({ "pcrs": pcrs(&[(16, PcrValue::ZERO)]) }),
        &claims(&image(20))
    ));
}

#[test]
fn signers_have_a_minimum_version() {
    let require = json!({ "signer": { "name": "release", "minimumVersion": 7 } });
    let signed = |signer, version: Option<u64>| {
        let version = version.map(|version| (16, PcrValue::of_version(version)));
        claims(
            &[(8, value(signer))]
                .into_iter()
                .chain(version)
                .collect::<Vec<_>>(),
        )
    };
    for (signer, version, expected) in [
        (1, Some(7), true),
        (2, Some(262), true),
        (1, Some(6), false),
        (1, Some(263), false),
        (3, Some(7), false),
        (1, None, false),
        (0, Some(7), false),
    ] {
        assert_eq!(
            accepts(&require, &signed(signer, version)),
            expected,
            "{signer} {version:?}"
        );
    }
    let any = json!({ "signer": { "name": "release" } });
    assert!(accepts(&any, &signed(1, None)));
    let capped =
        json!({ "signer": { "name": "release", "minimumVersion": 7, "maximumVersion": 8 } });
    assert!(accepts(&capped, &signed(1, Some(8))) && !accepts(&capped, &signed(1, Some(9))));
}

#[test]
fn a_policy_tells_whether_it_asks_for_a_nonce() {
    let asks = |require| policy(&require).unwrap().asks_for_nonce();
    let nonce = json!({ "nonce": "required" });
    assert!(asks(nonce.clone()));
    assert!(asks(json!({ "all": [{ "role": "arn:r" }, nonce] })));
    assert!(asks(json!({ "any": [{ "role": "arn:r" }, nonce] })));
    assert!(!asks(
        json!({ "all": [{ "role": "arn:r" }, { "maxAgeSeconds": 60 }] })
    ));
}

#[test]
fn nonce_age_role_and_instance() {
    let document = claims(&[
        (3, PcrValue::of_role("arn:r")),
        (4, PcrValue::of_instance("i-1")),
    ]);
    assert!(accepts(&json!({ "role": "arn:r" }), &document));
    assert!(!accepts(&json!({ "role": "arn:s" }), &document));
    assert!(accepts(&json!({ "instance": "i-1" }), &document));
    assert!(!accepts(
        &json!({ "not": { "instance": "i-1" } }),
        &document
    ));
    assert!(accepts(&json!({ "maxAgeSeconds": 1 }), &document));
    assert!(!accepts(&json!({ "maxAgeSeconds": 0 }), &document));
    let nonce = policy(&json!({ "nonce": "required" })).unwrap();
    judge(&nonce, &document).unwrap();
    for (sent, carried) in [
        (None, Some(NONCE)),
        (Some(NONCE), None),
        (Some(&[1][..]), Some(NONCE)),
        (None, None),
    ] {
        let mut claims = document.clone();
        claims.nonce = carried.map(<[u8]>::to_vec);
        let case = Judged {
            claims: &claims,
            now: NOW,
            nonce: sent,
        };
        assert!(matches!(
            nonce.judge(&case).unwrap_err()[0],
            Reason::Nonce { .. }
        ));
    }
}

/// A denied build stays denied when its date is over.
#[test]
fn what_is_forbidden_stays_forbidden() {
    let require = json!({ "not": { "measurements": ["old"] } });
    let reasons = judge(&policy(&require).unwrap(), &claims(&image(10))).unwrap_err();
    assert!(matches!(&reasons[0], Reason::Forbidden { what } if what.contains("old")));
    assert!(accepts(&require, &claims(&image(20))));
    let twice = json!({ "not": { "not": { "measurements": ["now"] } } });
    assert!(accepts(&twice, &claims(&image(20))) && !accepts(&twice, &claims(&image(30))));
}

#[test]
fn policies_that_do_not_say_what_they_mean_are_refused() {
    let refused = |require: Value| policy(&require).unwrap_err().to_string();
    for (require, reason) in [
        (
            json!({ "measurements": ["none"] }),
            "no measurement \"none\"",
        ),
        (
            json!({ "signer": { "name": "none" } }),
            "no signer \"none\"",
        ),
        (json!({ "measurements": [] }), "is empty"),
        (json!({ "all": [] }), "is empty"),
        (json!({ "any": [] }), "is empty"),
        (json!({ "pcrs": {} }), "is empty"),
        (json!({ "role": "" }), "is empty"),
        (
            json!({ "signer": { "name": "plain", "minimumVersion": 1 } }),
            "versionPcr",
        ),
        (
            json!({ "signer": { "name": "release", "maximumVersion": 1 } }),
            "needs minimumVersion",
        ),
        (
            json!({ "signer": { "name": "release", "minimumVersion": 2, "maximumVersion": 1 } }),
            "expected maximumVersion",
        ),
        (
            json!({ "signer": { "name": "release", "minimumVersion": 2, "maximumVersion": 258 } }),
            "expected maximumVersion",
        ),
        (
            json!({ "not": { "nonce": "required" } }),
            "forbids what is safe",
        ),
        (
            json!({ "not": { "not": { "maxAgeSeconds": 1 } } }),
            "forbids what is safe",
        ),
    ] {
        let text = refused(require);
        assert!(text.contains(reason), "{text}");
    }
    for (text, reason) in [
        ("{}", "missing field"),
        (r#"{"version":2,"require":{"role":"x"}}"#, "version is 2"),
        (
            r#"{"version":1,"require":{"role":"x"},"comment":1}"#,
            "unknown field",
        ),
        (
            r#"{"version":1,"require":{"role":"x","instance":"y"}}"#,
            "expected",
        ),
        (r#"{"version":1,"require":{"nobody":1}}"#, "unknown variant"),
        (
            r#"{"version":1,"measurements":{"a":{"pcrs":{"32":"00"}}},"require":{"role":"x"}}"#,
            "PCR32",
        ),
        (
            r#"{"version":1,"measurements":{"a":{"pcrs":{}}},"require":{"role":"x"}}"#,
            "is empty",
        ),
        (
            r#"{"version":1,"signers":{"a":{"pcr8":[]}},"require":{"role":"x"}}"#,
            "is empty",
        ),
    ] {
        let error = Policy::from_json(text.as_bytes()).unwrap_err();
        let chain = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(chain.contains(reason), "{chain}");
    }
    let zero = "00".repeat(48);
    let twice = format!(
        r#"{{"version":1,"measurements":{{"a":{{"pcrs":{{"0":"{zero}"}}}},"a":{{"pcrs":{{"1":"{zero}"}}}}}},"require":{{"role":"x"}}}}"#
    );
    let error = Policy::from_json(twice.as_bytes()).unwrap_err();
    assert!(format!("{error:?}").contains("defined twice"), "{error:?}");
    let backwards = twice.replacen(
        r#""a":{"#,
        r#""b":{"notBefore":"2027-01-01T00:00:01Z","notAfter":"2027-01-01T00:00:00Z","#,
        1,
    );
    let error = Policy::from_json(backwards.as_bytes()).unwrap_err();
    assert!(matches!(error, PolicyError::Backwards { .. }), "{error:?}");
    assert!(matches!(
        Policy::from_json(&vec![b' '; MAX_POLICY + 1]),
        Err(PolicyError::TooLong { .. })
    ));
    let deny: Vec<_> = (0..8)
        .map(|_| json!({ "not": { "measurements": ["old"] } }))
        .collect();
    assert!(matches!(
        policy(&json!({ "all": deny })),
        Err(PolicyError::TooComplex(_))
    ));
}

#[test]
fn a_policy_is_written_as_it_is_read() {
    let require = json!({ "any": [{ "measurements": ["now"] }, { "not": { "signer": { "name": "release", "minimumVersion": 3 } } }] });
    let policy = policy(&require).unwrap();
    let text = serde_json::to_vec(&policy).unwrap();
    assert_eq!(Policy::from_json(&text).unwrap(), policy);
}

fn lint(require: &Value) -> Vec<Warning> {
    let warnings = policy(require).unwrap().lint(NOW);
    let expected =
        |warning: &Warning| !matches!(warning, Warning::Unused { .. } | Warning::Expired { .. });
    warnings.into_iter().filter(expected).collect()
}

#[test]
fn the_linter_knows_the_classic_mistakes() {
    let good = json!({ "all": [{ "measurements": ["now"] }, { "role": "x" }] });
    assert_eq!(lint(&good), []);
    let good = json!({ "signer": { "name": "release", "minimumVersion": 1 } });
    assert_eq!(lint(&good), []);

    let host = lint(&json!({ "all": [{ "role": "x" }, { "instance": "i-1" }] }));
    assert!(
        matches!(&host[..], [Warning::AdmitsDebug { case }, Warning::AnyImage { .. }] if case == "PCR3, PCR4")
    );
    let pcr0 = lint(&json!({ "pcrs": pcrs(&image(20)[..1]) }));
    assert!(matches!(pcr0[..], [Warning::ImageAlone { .. }]), "{pcr0:?}");
    let pcr01 = lint(&json!({ "pcrs": pcrs(&image(20)[..2]) }));
    assert!(
        matches!(pcr01[..], [Warning::ImageAlone { .. }]),
        "{pcr01:?}"
    );
    let signer = lint(&json!({ "signer": { "name": "plain" } }));
    assert!(
        matches!(signer[..], [Warning::AnyVersion { .. }]),
        "{signer:?}"
    );
    let debug = lint(&json!({ "measurements": ["debug"] }));
    assert!(
        matches!(
            debug[..],
            [Warning::AdmitsDebug { .. }, Warning::ImageAlone { .. }]
        ),
        "{debug:?}"
    );
    let not = lint(&json!({ "not": { "measurements": ["now"] } }));
    assert!(
        not.iter()
            .any(|warning| matches!(warning, Warning::AnyImage { .. })),
        "{not:?}"
    );

    let twice =
        lint(&json!({ "all": [{ "measurements": ["now"] }, { "measurements": ["next"] }] }));
    assert!(
        matches!(
            twice[..],
            [Warning::Contradiction { .. }, Warning::AcceptsNothing]
        ),
        "{twice:?}"
    );
    let never = lint(
        &json!({ "all": [{ "measurements": ["now"] }, { "not": { "pcrs": pcrs(&image(20)[..1]) } }] }),
    );
    assert!(
        matches!(
            never[..],
            [Warning::Contradiction { .. }, Warning::AcceptsNothing]
        ),
        "{never:?}"
    );
    assert_eq!(
        lint(&json!({ "measurements": ["old"] })),
        [Warning::AcceptsNothing]
    );

    let all = policy(&json!({ "measurements": ["old"] }))
        .unwrap()
        .lint(NOW);
    assert!(
        all.iter()
            .any(|w| matches!(w, Warning::Expired { name, .. } if name == "old"))
    );
    let unused = |kind: &str, name: &str| {
        all.iter()
            .any(|w| matches!(w, Warning::Unused { kind: k, name: n } if *k == kind && n == name))
    };
    assert!(
        unused("measurement", "now") && unused("signer", "plain") && !unused("measurement", "old")
    );
}

#[test]
fn key_policies_say_what_they_can() {
    let require = json!({ "all": [
        { "any": [{ "measurements": ["now", "next"] }, { "signer": { "name": "release", "minimumVersion": 5, "maximumVersion": 6 } }] },
        { "not": { "instance": "i-9" } }, { "nonce": "required" }, { "maxAgeSeconds": 60 }] });
    let rendered = policy(&require).unwrap().kms_conditions();
    assert_eq!(
        rendered.notes,
        [KmsNote::Nonce, KmsNote::MaxAge { seconds: 60 }]
    );
    assert_eq!(rendered.conditions.len(), 3);
    let key = |number: u8| format!("kms:RecipientAttestation:PCR{number}");
    let zero = PcrValue::ZERO;
    assert_eq!(
        rendered.conditions[0],
        json!({
            "StringEqualsIgnoreCase": { key(0): [value(20)], key(1): [value(21)], key(2): [value(22)] },
            "StringNotEqualsIgnoreCase": { key(4): [PcrValue::of_instance("i-9")] },
            "DateGreaterThanEquals": { "aws:CurrentTime": "2026-11-22T00:00:00Z" },
            "DateLessThanEquals": { "aws:CurrentTime": "2026-11-22T00:00:00Z" },
        })
    );
    let mut signers = [value(1), value(2)];
    let mut versions = [PcrValue::of_version(5), PcrValue::of_version(6)];
    signers.sort();
    versions.sort();
    assert_eq!(
        rendered.conditions[2],
        json!({
            "StringEqualsIgnoreCase": { key(8): signers, key(16): versions },
            "StringNotEqualsIgnoreCase": {
                key(0): [zero], key(1): [zero], key(2): [zero], key(4): [PcrValue::of_instance("i-9")] },
        })
    );
    // A request without a document must not satisfy "not".
    let not = policy(&json!({ "not": { "role": "x" } }))
        .unwrap()
        .kms_conditions();
    assert_eq!(not.conditions[0]["Null"], json!({ key(0): "false" }));
    assert!(matches!(not.notes[..], [KmsNote::AnyImage { .. }]));
}

/// Statements of a key policy that admit one role, or others.
#[test]
fn alternatives_of_one_register_are_one_statement() {
    let (a, b) = (PcrValue::of_role("a"), PcrValue::of_role("b"));
    let roles = |require: &Value| {
        let conditions = policy(require).unwrap().kms_conditions().conditions;
        let roles = conditions.iter().map(|condition| {
            condition["StringEqualsIgnoreCase"]["kms:RecipientAttestation:PCR3"].clone()
        });
        roles.collect::<Vec<_>>()
    };
    let mut both = [a, b];
    both.sort();
    let any = |list: &[Value]| json!({ "any": list });
    let (role_a, role_b) = (json!({ "role": "a" }), json!({ "role": "b" }));
    assert_eq!(
        roles(&any(&[role_a.clone(), role_b.clone()])),
        [json!(both)]
    );
    assert_eq!(roles(&any(&[role_a.clone(), role_a.clone()])), [json!([a])]);
    // What one alternative excludes, the other may ask for.
    let only_a = json!({ "all": [role_a, { "not": role_b }] });
    assert_eq!(roles(&any(&[only_a, role_b])), [json!([a]), json!([b])]);
}

fn condition() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        prop::sample::subsequence(vec!["old", "now", "next", "debug"], 1..3)
            .prop_map(|names| json!({ "measurements": names })),
        Just(json!({ "signer": { "name": "release", "minimumVersion": 2, "maximumVersion": 3 } })),
        Just(json!({ "signer": { "name": "plain" } })),
        (0..5_u8, 0..4_u8)
            .prop_map(|(number, seed)| json!({ "pcrs": { number.to_string(): value(seed) } })),
        Just(json!({ "role": "r" })),
        Just(json!({ "instance": "i" })),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..3).prop_map(|list| json!({ "all": list })),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|list| json!({ "any": list })),
            inner.prop_map(|inner| json!({ "not": inner })),
        ]
    })
}

fn registers() -> impl Strategy<Value = Vec<(u8, PcrValue)>> {
    let odd = vec![
        PcrValue::of_role("r"),
        PcrValue::of_instance("i"),
        PcrValue::of_version(2),
    ];
    let any = prop_oneof![
        (0..4_u8).prop_map(value),
        (20..23_u8).prop_map(value),
        (10..13_u8).prop_map(value),
        prop::sample::select(odd),
    ];
    let image = prop_oneof![
        Just(image(20)),
        Just(image(10)),
        Just(image(30)),
        prop::collection::vec(any.clone(), 3).prop_map(|values| (0..3).zip(values).collect()),
    ];
    let others = prop::collection::vec((prop::sample::select(vec![3_u8, 4, 8, 16]), any), 0..5);
    (image, others).prop_map(|(image, others)| {
        BTreeMap::from_iter(image.into_iter().chain(others))
            .into_iter()
            .collect()
    })
}

/// What a KMS does with a condition block: facts about AWS's operators, in as few lines as they take.
fn kms_accepts(condition: &Value, claims: &Claims) -> bool {
    let found = |key: &str| -> Option<String> {
        if key == "aws:CurrentTime" {
            return Some("2026-11-22T00:00:00Z".to_owned());
        }
        let number: u8 = key
            .strip_prefix("kms:RecipientAttestation:PCR")
            .unwrap()
            .parse()
            .unwrap();
        claims.pcrs.get(&index(number)).map(ToString::to_string)
    };
    let holds = |operator: &str, key: &str, expected: &Value| {
        let found = found(key);
        let among = |text: &String| {
            expected
                .as_array()
                .unwrap()
                .iter()
                .any(|value| value == text)
        };
        match operator {
            "StringEqualsIgnoreCase" => found.is_some_and(|text| among(&text)),
            "StringNotEqualsIgnoreCase" => found.is_none_or(|text| !among(&text)),
            "Null" => found.is_some(),
            "DateGreaterThanEquals" => found.unwrap().as_str() >= expected.as_str().unwrap(),
            "DateLessThanEquals" => found.unwrap().as_str() <= expected.as_str().unwrap(),
            other => panic!("{other}"),
        }
    };
    condition
        .as_object()
        .unwrap()
        .iter()
        .all(|(operator, keys)| {
            keys.as_object()
                .unwrap()
                .iter()
                .all(|(key, expected)| holds(operator, key, expected))
        })
}

#[test]
fn a_nonce_is_nothing_to_a_kms() {
    let image = json!({ "pcrs": pcrs(&image(20)) });
    let nonce = json!({ "nonce": "required" });
    let rows = [
        (
            json!({ "all": [image, nonce] }),
            Some(json!({ "all": [image] })),
        ),
        // As an alternative it opens nothing.
        (
            json!({ "any": [nonce, image] }),
            Some(json!({ "any": [image] })),
        ),
        (
            json!({ "all": [{ "any": [{ "all": [nonce] }] }, image] }),
            Some(json!({ "all": [image] })),
        ),
        (json!({ "any": [{ "all": [nonce, nonce] }] }), None),
        (nonce.clone(), None),
    ];
    for (require, left) in rows {
        let policy = policy(&require).unwrap();
        let kms = policy.for_kms();
        let found = kms
            .as_ref()
            .ok()
            .map(|kms| serde_json::to_value(kms.require()).unwrap());
        assert_eq!(found, left, "{require}");
        let rendered = policy.kms_conditions();
        assert_eq!(
            rendered.conditions.len(),
            usize::from(left.is_some()),
            "{require}"
        );
        assert!(rendered.notes.contains(&KmsNote::Nonce), "{require}");
    }
}

/// `condition` with a nonce asked for beside it, or instead of it, at some places.
fn with_nonces() -> impl Strategy<Value = Value> {
    let nonce = || json!({ "nonce": "required" });
    let leaf = prop_oneof![3 => condition().boxed(), 1 => Just(nonce()).boxed()];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let list = prop::collection::vec(inner, 1..4);
        prop_oneof![
            list.clone().prop_map(|list| json!({ "all": list })),
            list.prop_map(|list| json!({ "any": list })),
        ]
    })
}

proptest! {
    /// A KMS admits nobody whom the policy would not admit with the right nonce.
    #[test]
    fn a_kms_is_never_laxer(require in with_nonces(), registers in registers()) {
        let Ok(policy) = policy(&require) else { return Ok(()) };
        let claims = claims(&registers);
        let kms = policy.for_kms();
        if kms.as_ref().is_ok_and(|kms| judge(kms, &claims).is_ok()) {
            prop_assert!(judge(&policy, &claims).is_ok(), "{require}");
        }
        let rendered = policy.kms_conditions();
        if rendered.conditions.iter().any(|condition| kms_accepts(condition, &claims)) {
            prop_assert!(judge(&policy, &claims).is_ok(), "{require}");
        }
        prop_assert!(kms.is_ok() || rendered.conditions.is_empty(), "{require}");
    }

    /// The tree, its alternatives and the key policy made of them accept the same documents.
    #[test]
    fn judge_and_key_policy_agree(require in condition(), registers in registers()) {
        let Ok(policy) = policy(&require) else { return Ok(()) };
        let claims = claims(&registers);
        let judged = judge(&policy, &claims).is_ok();
        let rendered = policy.kms_conditions();
        let kms = rendered.conditions.iter().any(|condition| kms_accepts(condition, &claims));
        // A key policy refuses debug documents, unless the policy asks for zeros; so does `verify`.
        if claims.is_debug() && judged && !kms {
            return Ok(());
        }
        prop_assert_eq!(judged, kms, "{} {:?} {:#?}", require, registers, rendered);
    }

    /// A policy that the linter says accepts nothing accepts nothing.
    #[test]
    fn what_the_linter_calls_dead_is_dead(require in condition(), registers in registers()) {
        let Ok(policy) = policy(&require) else { return Ok(()) };
        if policy.lint(NOW).contains(&Warning::AcceptsNothing) {
            prop_assert!(judge(&policy, &claims(&registers)).is_err());
        }
        prop_assert!(normal::cases(&policy).is_ok());
    }

    #[test]
    fn any_bytes_are_a_policy_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Policy::from_json(&bytes);
    }
}

#[test]
fn limits_of_a_file_hold_on_both_sides() {
    let mut text = br#"{ "version": 1, "require": { "role": "x" } }"#.to_vec();
    text.resize(MAX_POLICY, b' ');
    assert!(Policy::from_json(&text).is_ok());
    text.push(b' ');
    let refused = Policy::from_json(&text);
    assert!(matches!(refused, Err(PolicyError::TooLong { found }) if found == MAX_POLICY + 1));
    for (register, good) in [(15, false), (16, true), (31, true)] {
        let file = json!({ "version": 1, "signers": { "s": { "pcr8": [value(1)], "versionPcr": register } },
            "require": { "signer": { "name": "s", "minimumVersion": 1 } } });
        let read = Policy::from_json(file.to_string().as_bytes());
        assert_eq!(read.is_ok(), good, "{register}");
    }
}

#[test]
fn the_linter_finds_names_wherever_they_are_used() {
    let nested = json!({ "any": [{ "measurements": ["now"] },
        { "all": [{ "signer": { "name": "plain" } }, { "not": { "measurements": ["debug"] } }] }] });
    let unused = |require: &Value| -> Vec<String> {
        let warnings = policy(require).unwrap().lint(NOW).into_iter();
        let name = |warning| match warning {
            Warning::Unused { name, .. } => Some(name),
            _ => None,
        };
        warnings.filter_map(name).collect()
    };
    assert_eq!(unused(&nested), ["next", "old", "release"]);
    let none = unused(&json!({ "role": "x" }));
    assert_eq!(none, ["debug", "next", "now", "old", "plain", "release"]);
    let [Warning::AnyVersion { case }] = &lint(&json!({ "signer": { "name": "plain" } }))[..]
    else {
        panic!("a signer without a version");
    };
    assert_eq!(case, "plain, PCR8");
    let [Warning::Contradiction { case }, _] =
        &lint(&json!({ "all": [{ "measurements": ["now"] }, { "measurements": ["next"] }] }))[..]
    else {
        panic!("a register cannot have two values");
    };
    assert_eq!(case, "next, now, PCR0, PCR1, PCR2");
}

#[test]
fn the_linter_counts_the_last_moment_as_before_the_end() {
    let dated = policy(&json!({ "measurements": ["now"] })).unwrap();
    let at = |millis| {
        let over = |warning: &Warning| match warning {
            Warning::AcceptsNothing => true,
            Warning::Expired { name, .. } => name == "now",
            _ => false,
        };
        let warnings = dated.lint(UnixMillis(NOW.0 + millis));
        warnings.iter().filter(|warning| over(warning)).count()
    };
    assert_eq!((at(999), at(1000)), (0, 2));
}

#[test]
fn what_is_forbidden_of_a_build_is_each_of_its_registers() {
    let cases = |require| normal::cases(&policy(&require).unwrap()).unwrap();
    let not = cases(json!({ "not": { "measurements": ["now", "next"] } }));
    assert_eq!(not.len(), 9, "one of three registers of each differs");
    assert!(not.iter().all(|case| case.names.is_empty()));
    let not = cases(json!({ "not": { "all": [{ "role": "x" }, { "instance": "y" }] } }));
    assert_eq!(not.len(), 2);
    let not = cases(json!({ "not": { "any": [{ "role": "x" }, { "instance": "y" }] } }));
    assert_eq!(not.len(), 1);
}

#[test]
fn reasons_name_what_was_found() {
    let reason = |require: Value, pcrs: &[(u8, PcrValue)]| {
        let reasons = judge(&policy(&require).unwrap(), &claims(pcrs)).unwrap_err();
        reasons[0].to_string()
    };
    let signer = || json!({ "signer": { "name": "plain" } });
    let found = reason(signer(), &[(8, value(9))]);
    assert_eq!(
        found,
        format!("not signed by \"plain\": PCR8 is {}", value(9))
    );
    let absent = reason(signer(), &[]);
    assert_eq!(
        absent,
        "not signed by \"plain\": PCR8 is not in the document"
    );
    let late = reason(json!({ "measurements": ["old"] }), &image(10));
    assert!(
        late.starts_with("\"old\" is accepted from ever until 2026-11-21T23:59:59"),
        "{late}"
    );
}

#[test]
fn the_last_alternative_that_is_allowed_is_counted() {
    let two = json!({ "any": [{ "role": "a" }, { "role": "b" }] });
    let most = json!({ "all": vec![two; 12] });
    assert_eq!(normal::cases(&policy(&most).unwrap()).unwrap().len(), 4096);
    let more = policy(&json!({ "any": [most, { "role": "c" }] }));
    assert!(matches!(more, Err(PolicyError::TooComplex(_))));
}

#[test]
fn dates_that_do_not_meet_can_never_hold() {
    let lint = |begin: &str| {
        let file = json!({ "version": 1, "require": { "all": [{ "measurements": ["a"] }, { "measurements": ["b"] }] },
            "measurements": { "a": { "pcrs": pcrs(&image(20)), "notAfter": "2026-11-23T00:00:00Z" },
                "b": { "pcrs": pcrs(&[(8, value(1))]), "notBefore": begin } } });
        let policy = Policy::from_json(file.to_string().as_bytes()).unwrap();
        policy.lint(NOW)
    };
    assert_eq!(lint("2026-11-23T00:00:00Z"), []);
    let apart = lint("2026-11-23T00:00:01Z");
    assert!(
        matches!(
            apart[..],
            [Warning::Contradiction { .. }, Warning::AcceptsNothing]
        ),
        "{apart:?}"
    );
}
