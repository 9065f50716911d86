//! A policy document of whoever sends one: it parses or it does not, and what parses answers every question.

#![no_main]

use enclos_kms::arn::PrincipalArn;
use enclos_kms::policy::{Context, Policy, Question, lint};
use libfuzzer_sys::fuzz_target;

const PRINCIPAL: &str = "arn:aws:iam::111122223333:role/app";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(role) = PrincipalArn::parse(PRINCIPAL) else {
        return;
    };
    let mut context = Context::default();
    context.set("aws:username", "alice");
    context.set("aws:SourceIp", "10.0.0.1");
    context.add("kms:EncryptionContextKeys", "a");
    context.add("kms:EncryptionContextKeys", "b");
    for parse in [Policy::parse, Policy::parse_identity, Policy::parse_trust] {
        let Ok(policy) = parse(text) else {
            continue;
        };
        for principal in [
            role.clone(),
            PrincipalArn::session(&role, "one"),
            PrincipalArn::root("111122223333"),
        ] {
            let question = Question {
                principal: &principal,
                action: "kms:Decrypt",
                resource: "arn:aws:kms:eu-west-1:111122223333:key/x",
                context: &context,
            };
            let verdict = policy.evaluate(&question);
            assert!(!policy.explain(&question).is_empty(), "{verdict:?}");
        }
        let _findings = lint::lint(&policy);
    }
});
