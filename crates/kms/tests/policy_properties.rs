//! What holds for every policy, request and document, tried on many.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use enclos_kms::arn::PrincipalArn;
use enclos_kms::authz::{Ask, Identity, Named, Refused};
use enclos_kms::grants::Reach;
use enclos_kms::policy::{Context, Policy, Question, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

const ACCOUNT: &str = "111122223333";
const ACTIONS: &[&str] = &[
    "kms:Decrypt",
    "kms:Encrypt",
    "kms:CreateGrant",
    "kms:PutKeyPolicy",
];
const RESOURCE: &str = "arn:aws:kms:eu-west-1:111122223333:key/x";

fn principals() -> Vec<PrincipalArn> {
    let parse = |text: &str| PrincipalArn::parse(text).unwrap();
    let role = parse("arn:aws:iam::111122223333:role/app");
    vec![
        parse("arn:aws:iam::111122223333:user/alice"),
        PrincipalArn::session(&role, "one"),
        role,
        PrincipalArn::root(ACCOUNT),
        parse("arn:aws:iam::444455556666:user/eve"),
    ]
}

fn principal() -> impl Strategy<Value = PrincipalArn> {
    prop::sample::select(principals())
}

fn element() -> impl Strategy<Value = Value> {
    let one = prop::sample::select(vec![
        json!("*"),
        json!({ "AWS": "*" }),
        json!({ "AWS": ACCOUNT }),
        json!({ "AWS": "arn:aws:iam::111122223333:user/alice" }),
        json!({ "AWS": ["arn:aws:iam::111122223333:role/app", "444455556666"] }),
        json!({ "AWS": "arn:aws:sts::111122223333:assumed-role/app/one" }),
        json!({ "Service": "ec2.amazonaws.com" }),
    ]);
    (one, any::<bool>()).prop_map(|(value, _)| value)
}

fn condition() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({ "StringEquals": { "k": "a" } }),
        json!({ "StringNotEquals": { "k": ["a", "b"] } }),
        json!({ "ForAllValues:StringLike": { "k": "a*" } }),
        json!({ "ForAnyValue:StringEquals": { "k": ["b"] } }),
        json!({ "Null": { "k": "true" } }),
        json!({ "NumericLessThanIfExists": { "n": "5" } }),
        json!({ "StringEquals": { "k": "${l, 'a'}" } }),
    ])
}

fn actions() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!("kms:*"),
        json!("kms:Decrypt"),
        json!(["kms:Encrypt", "kms:D*"]),
        json!("*"),
    ])
}

/// A statement of a key policy.
fn statement() -> impl Strategy<Value = Value> {
    (any::<bool>(), any::<bool>(), any::<bool>(), element(), actions(), condition()).prop_map(
        |(allow, not_action, not_principal, who, actions, condition)| {
            let principal = if not_principal && !allow { "NotPrincipal" } else { "Principal" };
            let action = if not_action { "NotAction" } else { "Action" };
            let effect = if allow { "Allow" } else { "Deny" };
            json!({ "Effect": effect, principal: who, action: actions, "Resource": "*", "Condition": condition })
        },
    )
}

fn statements() -> impl Strategy<Value = Vec<Value>> {
    prop::collection::vec(statement(), 1..6)
}

fn context() -> impl Strategy<Value = Context> {
    let values = prop::collection::vec(prop::sample::select(vec!["a", "b", "ab"]), 0..3);
    (values, prop::option::of(0..10_i32)).prop_map(|(values, number): (Vec<&str>, Option<i32>)| {
        let mut context = Context::default();
        context.set_list("k", values.into_iter().map(str::to_owned).collect());
        if let Some(number) = number {
            context.set("n", number.to_string());
        }
        context
    })
}

fn key_policy(statements: &[Value]) -> Policy {
    let text = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
    Policy::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The same statement for a policy of a principal.
fn without_principal(statement: &Value) -> Value {
    let mut statement = statement.clone();
    let members = statement.as_object_mut().unwrap();
    members.remove("Principal");
    members.remove("NotPrincipal");
    statement
}

fn named(statements: &[Value]) -> Named {
    let statements: Vec<Value> = statements.iter().map(without_principal).collect();
    let text = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
    Named {
        name: "p".to_owned(),
        policy: Arc::new(Policy::parse_identity(&text).unwrap()),
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::ExplicitDeny => 0,
        Verdict::ImplicitDeny => 1,
        Verdict::Delegated => 2,
        Verdict::Allow => 3,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_deny_that_applies_always_wins(
        before in statements(), after in statements(), who in principal(), context in context(), at in 0..4_usize,
    ) {
        let action = ACTIONS[at];
        let deny = json!({ "Effect": "Deny", "Principal": { "AWS": [who.as_str(), &**who.account()] }, "Action": action, "Resource": "*" });
        let all = [before, vec![deny], after].concat();
        let policy = key_policy(&all);
        let question = Question { principal: &who, action, resource: RESOURCE, context: &context };
        prop_assert_eq!(policy.evaluate(&question), Verdict::ExplicitDeny);
    }

    #[test]
    fn the_order_of_statements_means_nothing(
        mut statements in statements(), who in principal(), context in context(), at in 0..4_usize,
    ) {
        let question = Question { principal: &who, action: ACTIONS[at], resource: RESOURCE, context: &context };
        let forward = key_policy(&statements).evaluate(&question);
        statements.reverse();
        prop_assert_eq!(forward, key_policy(&statements).evaluate(&question));
    }

    #[test]
    fn an_allow_never_takes_away_and_a_deny_never_gives(
        statements in statements(), more in statement(), who in principal(), context in context(), at in 0..4_usize,
    ) {
        let question = Question { principal: &who, action: ACTIONS[at], resource: RESOURCE, context: &context };
        let before = rank(key_policy(&statements).evaluate(&question));
        let is_allow = more["Effect"] == "Allow";
        let after = rank(key_policy(&[statements, vec![more]].concat()).evaluate(&question));
        let sound = if is_allow { after >= before } else { after <= before };
        prop_assert!(sound, "{before} {after}");
    }

    #[test]
    fn what_explains_agrees_with_what_decides(
        statements in statements(), who in principal(), context in context(), at in 0..4_usize,
    ) {
        use enclos_kms::policy::{Effect, Outcome};
        let question = Question { principal: &who, action: ACTIONS[at], resource: RESOURCE, context: &context };
        let policy = key_policy(&statements);
        let reports = policy.explain(&question);
        let applied = |effect: Effect, outcome: &Outcome| {
            reports.iter().any(|report| report.effect == effect && report.outcome == *outcome)
        };
        let explained = if applied(Effect::Deny, &Outcome::Applied) {
            Verdict::ExplicitDeny
        } else if applied(Effect::Allow, &Outcome::Applied) {
            Verdict::Allow
        } else if applied(Effect::Allow, &Outcome::AccountOnly) {
            Verdict::Delegated
        } else {
            Verdict::ImplicitDeny
        };
        prop_assert_eq!(policy.evaluate(&question), explained);
    }

    #[test]
    fn limits_never_give_and_a_deny_is_never_outvoted(
        key in statements(), own in statements(), limit in statements(), who in principal(), context in context(),
        at in 0..4_usize, granted in any::<bool>(),
    ) {
        let question = Question { principal: &who, action: ACTIONS[at], resource: RESOURCE, context: &context };
        let policy = key_policy(&key);
        let decide = |identity: &Identity| {
            let ask = Ask { question: &question, policy: &policy, identity, same_account: &**who.account() == ACCOUNT };
            ask.decide(|| if granted { vec![Reach::Role] } else { vec![] })
        };
        let bare = Identity { policies: vec![named(&own)], ..Identity::default() };
        let bounded = Identity { boundary: Some(named(&limit)), ..bare.clone() };
        let session = Identity { session: vec![named(&limit)], ..bare.clone() };
        for limited in [&bounded, &session] {
            prop_assert!(decide(limited).is_err() || decide(&bare).is_ok());
        }
        let denied = policy.evaluate(&question) == Verdict::ExplicitDeny
            || bare.policies[0].policy.evaluate(&question) == Verdict::ExplicitDeny;
        prop_assert_eq!(denied, matches!(decide(&bare), Err(Refused::Explicitly(_))));
    }

    #[test]
    fn any_text_is_a_policy_or_an_error(text in ".{0,200}") {
        let _any = (Policy::parse(&text), Policy::parse_identity(&text), Policy::parse_trust(&text));
    }

    #[test]
    fn any_json_is_a_policy_or_an_error(value in json_value(), who in principal(), context in context()) {
        let text = json!({ "Version": "2012-10-17", "Statement": value }).to_string();
        for policy in [Policy::parse(&text), Policy::parse_identity(&text), Policy::parse_trust(&text)].into_iter().flatten() {
            let question = Question { principal: &who, action: "kms:Decrypt", resource: RESOURCE, context: &context };
            let _total = (policy.evaluate(&question), policy.explain(&question));
        }
    }
}

/// JSON whose names and values are often those of policies.
fn json_value() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "Allow",
        "Deny",
        "*",
        "kms:*",
        "true",
        "5",
        "2026-01-01",
        "10.0.0.0/8",
        "${k}",
        "${",
        "arn:aws:iam::111122223333:root",
    ]);
    let leaf = prop_oneof![
        words.prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        ".{0,8}".prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "Effect",
        "Principal",
        "NotPrincipal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
        "AWS",
        "StringLike",
        "NumericEquals",
        "DateLessThan",
        "IpAddress",
        "Null",
        "Bool",
        "ForAllValues:StringEquals",
        "Sid",
    ]);
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
