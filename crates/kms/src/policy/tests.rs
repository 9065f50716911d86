//! One row per rule of AWS's policy language: a condition or statement, what is asked, what comes out.

use super::*;

const ACCOUNT: &str = "111122223333";
const ROLE: &str = "arn:aws:iam::111122223333:role/app";
const OTHER_ROLE: &str = "arn:aws:iam::111122223333:role/other";
const USER: &str = "arn:aws:iam::111122223333:user/alice";
const ROOT: &str = "arn:aws:iam::111122223333:root";
const FOREIGN: &str = "arn:aws:iam::444455556666:role/app";
const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

use Verdict::{Allow, Delegated, ExplicitDeny, ImplicitDeny};

fn policy(statements: &str) -> Policy {
    let text = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
    Policy::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn context(pairs: &[(&str, &[&str])]) -> Context {
    let mut context = Context::default();
    for (key, values) in pairs {
        context.set_list(
            key,
            values.iter().map(|value| (*value).to_owned()).collect(),
        );
    }
    context
}

fn ask(policy: &Policy, principal: &str, action: &str, context: &Context) -> Verdict {
    let principal = PrincipalArn::parse(principal).unwrap();
    policy.evaluate(&Question {
        principal: &principal,
        action,
        resource: KEY,
        context,
    })
}

fn check_principals(rows: &[(&str, &str, Verdict)]) {
    for (principal, who, expected) in rows {
        let policy = policy(&format!(
            r#"{{"Effect":"Allow","Principal":{principal},"Action":"kms:*","Resource":"*"}}"#
        ));
        let verdict = ask(&policy, who, "kms:Decrypt", &Context::default());
        assert_eq!(verdict, *expected, "{principal} asked by {who}");
    }
}

#[test]
fn principals() {
    check_principals(&[
        // A role is admitted by its own ARN alone.
        (
            r#"{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            ROLE,
            Allow,
        ),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            OTHER_ROLE,
            ImplicitDeny,
        ),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            ROOT,
            ImplicitDeny,
        ),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            FOREIGN,
            ImplicitDeny,
        ),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:user/alice"}"#,
            USER,
            Allow,
        ),
        (
            r#"{"AWS":["arn:aws:iam::111122223333:role/other","arn:aws:iam::111122223333:role/app"]}"#,
            ROLE,
            Allow,
        ),
        // ARNs are compared with case.
        (
            r#"{"AWS":"arn:aws:iam::111122223333:role/App"}"#,
            ROLE,
            ImplicitDeny,
        ),
    ]);
}

#[test]
fn accounts_and_anyone() {
    check_principals(&[
        // An account admits its root user, and leaves its users and roles to identity policies.
        (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, ROOT, Allow),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:root"}"#,
            ROLE,
            Delegated,
        ),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:root"}"#,
            USER,
            Delegated,
        ),
        (
            r#"{"AWS":"arn:aws:iam::111122223333:root"}"#,
            FOREIGN,
            ImplicitDeny,
        ),
        (r#"{"AWS":"111122223333"}"#, ROOT, Allow),
        (r#"{"AWS":"111122223333"}"#, ROLE, Delegated),
        (r#"{"AWS":"444455556666"}"#, FOREIGN, Delegated),
        // Anyone is anyone.
        (r#""*""#, ROLE, Allow),
        (r#""*""#, FOREIGN, Allow),
        (r#"{"AWS":"*"}"#, FOREIGN, Allow),
        (r#"{"AWS":["*"]}"#, USER, Allow),
        // Services and identity providers never call here.
        (r#"{"Service":"ec2.amazonaws.com"}"#, ROLE, ImplicitDeny),
        (
            r#"{"Service":"ec2.amazonaws.com","AWS":"arn:aws:iam::111122223333:role/app"}"#,
            ROLE,
            Allow,
        ),
        (
            r#"{"Federated":"cognito-identity.amazonaws.com"}"#,
            ROLE,
            ImplicitDeny,
        ),
    ]);
}

#[test]
fn denied_principals() {
    let deny = |member: &str| {
        policy(&format!(
            r#"{{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}},
               {{"Effect":"Deny",{member},"Action":"kms:*","Resource":"*"}}"#
        ))
    };
    let cases = [
        (r#""Principal":"*""#, ROLE, ExplicitDeny),
        (
            r#""Principal":{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            ROLE,
            ExplicitDeny,
        ),
        (
            r#""Principal":{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            OTHER_ROLE,
            Allow,
        ),
        // In a Deny an account stands for everyone in it.
        (r#""Principal":{"AWS":"111122223333"}"#, ROLE, ExplicitDeny),
        (r#""Principal":{"AWS":"111122223333"}"#, ROOT, ExplicitDeny),
        (r#""Principal":{"AWS":"111122223333"}"#, FOREIGN, Allow),
        // NotPrincipal spares those it names, and of an account it names the root user alone.
        (
            r#""NotPrincipal":{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            ROLE,
            Allow,
        ),
        (
            r#""NotPrincipal":{"AWS":"arn:aws:iam::111122223333:role/app"}"#,
            OTHER_ROLE,
            ExplicitDeny,
        ),
        (
            r#""NotPrincipal":{"AWS":"arn:aws:iam::111122223333:root"}"#,
            ROOT,
            Allow,
        ),
        (
            r#""NotPrincipal":{"AWS":"arn:aws:iam::111122223333:root"}"#,
            ROLE,
            ExplicitDeny,
        ),
    ];
    for (member, who, expected) in cases {
        let verdict = ask(&deny(member), who, "kms:Decrypt", &Context::default());
        assert_eq!(verdict, expected, "{member} asked by {who}");
    }
}

#[test]
fn actions() {
    let cases = [
        (r#""Action":"kms:Decrypt""#, "kms:Decrypt", Allow),
        (r#""Action":"kms:Decrypt""#, "kms:Encrypt", ImplicitDeny),
        (r#""Action":"KMS:decrypt""#, "kms:Decrypt", Allow),
        (r#""Action":"kms:*""#, "kms:GenerateDataKey", Allow),
        (r#""Action":"*""#, "kms:GenerateDataKey", Allow),
        (
            r#""Action":["kms:Encrypt","kms:Dec*"]"#,
            "kms:Decrypt",
            Allow,
        ),
        (
            r#""Action":"kms:GenerateDataKey*""#,
            "kms:GenerateDataKeyWithoutPlaintext",
            Allow,
        ),
        (
            r#""Action":"kms:GenerateDataKey""#,
            "kms:GenerateDataKeyWithoutPlaintext",
            ImplicitDeny,
        ),
        (r#""Action":"kms:ReEncrypt*""#, "kms:ReEncryptFrom", Allow),
        (r#""Action":"kms:?ncrypt""#, "kms:Encrypt", Allow),
        (r#""Action":"kms:?ncrypt""#, "kms:ReEncryptTo", ImplicitDeny),
        (r#""NotAction":"kms:Decrypt""#, "kms:Decrypt", ImplicitDeny),
        (r#""NotAction":"kms:Decrypt""#, "kms:Encrypt", Allow),
        (
            r#""NotAction":["kms:De*","kms:En*"]"#,
            "kms:Encrypt",
            ImplicitDeny,
        ),
        (
            r#""NotAction":["kms:De*","kms:En*"]"#,
            "kms:PutKeyPolicy",
            Allow,
        ),
    ];
    for (member, action, expected) in cases {
        let policy = policy(&format!(
            r#"{{"Effect":"Allow","Principal":"*",{member},"Resource":"*"}}"#
        ));
        assert_eq!(
            ask(&policy, ROLE, action, &Context::default()),
            expected,
            "{member} {action}"
        );
    }
}

#[test]
fn resources() {
    let arn = format!(r#""Resource":"{KEY}""#);
    let cases = [
        (r#""Resource":"*""#, Allow),
        (arn.as_str(), Allow),
        (r#""Resource":"arn:aws:kms:*:111122223333:key/*""#, Allow),
        (
            r#""Resource":["arn:aws:kms:us-east-1:*","arn:aws:kms:eu-west-1:*"]"#,
            Allow,
        ),
        (
            r#""Resource":"arn:aws:kms:us-east-1:111122223333:key/*""#,
            ImplicitDeny,
        ),
        (r#""NotResource":"arn:aws:kms:us-east-1:*""#, Allow),
        (r#""NotResource":"*""#, ImplicitDeny),
    ];
    for (member, expected) in cases {
        let policy = policy(&format!(
            r#"{{"Effect":"Allow","Principal":"*","Action":"kms:*",{member}}}"#
        ));
        let verdict = ask(&policy, ROLE, "kms:Decrypt", &Context::default());
        assert_eq!(verdict, expected, "{member}");
    }
}

const PCR0: &[(&str, &[&str])] = &[
    ("kms:RecipientAttestation:ImageSha384", &["ab12"]),
    ("kms:RecipientAttestation:PCR0", &["ab12"]),
    ("kms:RecipientAttestation:PCR3", &["cd34"]),
];
const ONE: &[(&str, &[&str])] = &[("k", &["Red"])];
const MANY: &[(&str, &[&str])] = &[("k", &["Red", "Blue"])];
const NONE: &[(&str, &[&str])] = &[];

/// Conditions of an Allow statement: what the request has, and whether it is admitted.
type Row = (
    &'static str,
    &'static [(&'static str, &'static [&'static str])],
    bool,
);

fn check(rows: &[Row]) {
    for (condition, present, admitted) in rows {
        let policy = policy(&format!(
            r#"{{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Condition":{condition}}}"#
        ));
        let verdict = ask(&policy, ROLE, "kms:Decrypt", &context(present));
        assert_eq!(verdict == Allow, *admitted, "{condition} with {present:?}");
    }
}

#[test]
fn string_conditions() {
    check(&[
        (r#"{"StringEquals":{"k":"Red"}}"#, ONE, true),
        (r#"{"StringEquals":{"k":"red"}}"#, ONE, false),
        (r#"{"StringEquals":{"k":"R*"}}"#, ONE, false),
        (r#"{"StringEquals":{"k":["Green","Red"]}}"#, ONE, true),
        (r#"{"StringEquals":{"k":[]}}"#, ONE, false),
        (r#"{"StringEquals":{"k":"Red"}}"#, NONE, false),
        (r#"{"StringEquals":{"K":"Red"}}"#, ONE, true),
        (r#"{"StringNotEquals":{"k":"Red"}}"#, ONE, false),
        (r#"{"StringNotEquals":{"k":"red"}}"#, ONE, true),
        (r#"{"StringNotEquals":{"k":["Green","Red"]}}"#, ONE, false),
        (r#"{"StringNotEquals":{"k":["Green","Blue"]}}"#, ONE, true),
        // A negated operator holds when the key is absent.
        (r#"{"StringNotEquals":{"k":"Red"}}"#, NONE, true),
        (r#"{"StringEqualsIgnoreCase":{"k":"rED"}}"#, ONE, true),
        (r#"{"StringEqualsIgnoreCase":{"k":"rEDd"}}"#, ONE, false),
        (r#"{"StringEqualsIgnoreCase":{"k":"red"}}"#, NONE, false),
        (r#"{"StringNotEqualsIgnoreCase":{"k":"rED"}}"#, ONE, false),
        (r#"{"StringNotEqualsIgnoreCase":{"k":"x"}}"#, ONE, true),
        (r#"{"StringLike":{"k":"R*"}}"#, ONE, true),
        (r#"{"StringLike":{"k":"r*"}}"#, ONE, false),
        (r#"{"StringLike":{"k":"?ed"}}"#, ONE, true),
        (r#"{"StringLike":{"k":"*"}}"#, NONE, false),
        (r#"{"StringNotLike":{"k":"R*"}}"#, ONE, false),
        (r#"{"StringNotLike":{"k":"G*"}}"#, ONE, true),
        (r#"{"StringNotLike":{"k":"G*"}}"#, NONE, true),
        // Operator names are matched without case, as AWS accepts them.
        (r#"{"stringequals":{"k":"Red"}}"#, ONE, true),
        // All operators and all keys must hold.
        (
            r#"{"StringEquals":{"k":"Red"},"StringLike":{"k":"B*"}}"#,
            ONE,
            false,
        ),
        (r#"{"StringEquals":{"k":"Red","l":"x"}}"#, ONE, false),
        (
            r#"{"StringEquals":{"k":"Red"},"StringLike":{"k":"R*"}}"#,
            ONE,
            true,
        ),
    ]);
}

#[test]
fn if_exists_and_null() {
    check(&[
        (r#"{"StringEqualsIfExists":{"k":"Red"}}"#, NONE, true),
        (r#"{"StringEqualsIfExists":{"k":"Red"}}"#, ONE, true),
        (r#"{"StringEqualsIfExists":{"k":"Blue"}}"#, ONE, false),
        (r#"{"StringNotEqualsIfExists":{"k":"Red"}}"#, ONE, false),
        (r#"{"BoolIfExists":{"k":"true"}}"#, NONE, true),
        (r#"{"Null":{"k":"true"}}"#, NONE, true),
        (r#"{"Null":{"k":"true"}}"#, ONE, false),
        (r#"{"Null":{"k":"false"}}"#, ONE, true),
        (r#"{"Null":{"k":false}}"#, NONE, false),
        (r#"{"Null":{"k":["true","false"]}}"#, NONE, true),
        // The bare key never exists: a policy that tests it admits nobody (aws-nitro-enclaves-sdk-c issue 157).
        (
            r#"{"Null":{"kms:RecipientAttestation":"false"}}"#,
            PCR0,
            false,
        ),
        (
            r#"{"Null":{"kms:RecipientAttestation:PCR0":"false"}}"#,
            PCR0,
            true,
        ),
    ]);
}

#[test]
fn set_operators() {
    check(&[
        (r#"{"ForAnyValue:StringEquals":{"k":"Blue"}}"#, MANY, true),
        (r#"{"ForAnyValue:StringEquals":{"k":"Green"}}"#, MANY, false),
        (r#"{"ForAnyValue:StringEquals":{"k":"Blue"}}"#, NONE, false),
        (
            r#"{"ForAnyValue:StringEqualsIfExists":{"k":"Blue"}}"#,
            NONE,
            true,
        ),
        (r#"{"ForAllValues:StringEquals":{"k":"Blue"}}"#, MANY, false),
        (
            r#"{"ForAllValues:StringEquals":{"k":["Blue","Red"]}}"#,
            MANY,
            true,
        ),
        (
            r#"{"ForAllValues:StringEquals":{"k":["Blue","Red","Green"]}}"#,
            MANY,
            true,
        ),
        // Nothing presented is all of nothing.
        (r#"{"ForAllValues:StringEquals":{"k":"Blue"}}"#, NONE, true),
        (
            r#"{"ForAnyValue:StringNotEquals":{"k":"Blue"}}"#,
            MANY,
            true,
        ),
        (
            r#"{"ForAllValues:StringNotEquals":{"k":"Blue"}}"#,
            MANY,
            false,
        ),
        (
            r#"{"ForAllValues:StringNotEquals":{"k":"Green"}}"#,
            MANY,
            true,
        ),
        (r#"{"ForAllValues:StringLike":{"k":"*e*"}}"#, MANY, true),
        // Without a set operator, an Allow wants every value to hold.
        (r#"{"StringEquals":{"k":"Blue"}}"#, MANY, false),
        (r#"{"StringEquals":{"k":["Blue","Red"]}}"#, MANY, true),
        (r#"{"StringNotEquals":{"k":"Blue"}}"#, MANY, false),
    ]);
}

#[test]
fn under_deny_one_of_several_values_is_enough() {
    let policy = policy(
        r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"},
           {"Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*",
            "Condition":{"StringNotEquals":{"kms:EncryptionContext:tenant":"a"}}}"#,
    );
    let key = "kms:encryptioncontext:tenant";
    for (values, expected) in [
        (&["a"][..], Allow),
        (&["b"][..], ExplicitDeny),
        (&["a", "b"][..], ExplicitDeny),
        (&[][..], ExplicitDeny),
    ] {
        let verdict = ask(&policy, ROLE, "kms:Decrypt", &context(&[(key, values)]));
        assert_eq!(verdict, expected, "{values:?}");
    }
}

#[test]
fn other_operators() {
    const NUMBER: &[(&str, &[&str])] = &[("n", &["7"])];
    const TRUE: &[(&str, &[&str])] = &[("b", &["true"])];
    const ADDRESS: &[(&str, &[&str])] = &[("ip", &["10.1.2.3"])];
    const V6: &[(&str, &[&str])] = &[("ip", &["2001:db8::1"])];
    const ARN: &[(&str, &[&str])] = &[("a", &["arn:aws:iam::111122223333:role/team/app"])];
    const DATE: &[(&str, &[&str])] = &[("t", &["2026-11-22T04:00:00Z"])];
    check(&[
        (r#"{"NumericEquals":{"n":"7"}}"#, NUMBER, true),
        (r#"{"NumericEquals":{"n":7}}"#, NUMBER, true),
        (r#"{"NumericEquals":{"n":"7.0"}}"#, NUMBER, true),
        (r#"{"NumericNotEquals":{"n":"7"}}"#, NUMBER, false),
        (r#"{"NumericNotEquals":{"n":"8"}}"#, NONE, true),
        (r#"{"NumericLessThan":{"n":"7"}}"#, NUMBER, false),
        (r#"{"NumericLessThanEquals":{"n":"7"}}"#, NUMBER, true),
        (r#"{"NumericGreaterThan":{"n":"6"}}"#, NUMBER, true),
        (r#"{"NumericGreaterThanEquals":{"n":"8"}}"#, NUMBER, false),
        (r#"{"NumericEquals":{"k":"7"}}"#, ONE, false),
        (r#"{"Bool":{"b":"true"}}"#, TRUE, true),
        (r#"{"Bool":{"b":true}}"#, TRUE, true),
        (r#"{"Bool":{"b":"FALSE"}}"#, TRUE, false),
        (r#"{"Bool":{"b":"true"}}"#, NONE, false),
        (r#"{"IpAddress":{"ip":"10.0.0.0/8"}}"#, ADDRESS, true),
        (r#"{"IpAddress":{"ip":"10.1.2.3"}}"#, ADDRESS, true),
        (r#"{"IpAddress":{"ip":"10.1.2.4/31"}}"#, ADDRESS, false),
        (r#"{"IpAddress":{"ip":"0.0.0.0/0"}}"#, ADDRESS, true),
        (r#"{"IpAddress":{"ip":"::/0"}}"#, ADDRESS, false),
        (r#"{"IpAddress":{"ip":"2001:db8::/32"}}"#, V6, true),
        (r#"{"NotIpAddress":{"ip":"10.0.0.0/8"}}"#, ADDRESS, false),
        (r#"{"NotIpAddress":{"ip":"10.0.0.0/8"}}"#, NONE, true),
        (
            r#"{"ArnEquals":{"a":"arn:aws:iam::111122223333:role/team/app"}}"#,
            ARN,
            true,
        ),
        (
            r#"{"ArnLike":{"a":"arn:aws:iam::*:role/team/*"}}"#,
            ARN,
            true,
        ),
        (r#"{"ArnLike":{"a":"arn:aws:iam::*"}}"#, ARN, false),
        (r#"{"ArnLike":{"a":"arn:*:role/team/app"}}"#, ARN, false),
        (r#"{"ArnNotLike":{"a":"arn:aws:iam::*:user/*"}}"#, ARN, true),
        (
            r#"{"DateGreaterThan":{"t":"2026-11-22T03:59:59Z"}}"#,
            DATE,
            true,
        ),
        (
            r#"{"DateLessThan":{"t":"2026-11-22T03:59:59Z"}}"#,
            DATE,
            false,
        ),
        (r#"{"DateEquals":{"t":"1795320000"}}"#, DATE, true),
        (r#"{"DateGreaterThan":{"t":"2026-11-22"}}"#, DATE, true),
        (r#"{"BinaryEquals":{"k":"Red"}}"#, ONE, true),
    ]);
}

#[test]
fn attestation_conditions() {
    check(&[
        (
            r#"{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:ImageSha384":"AB12"}}"#,
            PCR0,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:PCR0":"ab12"}}"#,
            PCR0,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:pcr0":"ab12"}}"#,
            PCR0,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:PCR0":["ff","ab12"]}}"#,
            PCR0,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:PCR0":"ab13"}}"#,
            PCR0,
            false,
        ),
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:PCR0":"ab12","kms:RecipientAttestation:PCR3":"cd34"}}"#,
            PCR0,
            true,
        ),
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:PCR0":"ab12","kms:RecipientAttestation:PCR3":"cd35"}}"#,
            PCR0,
            false,
        ),
        // A PCR that the document does not hold, and a request without document, match nothing …
        (
            r#"{"StringEquals":{"kms:RecipientAttestation:PCR16":"00"}}"#,
            PCR0,
            false,
        ),
        (
            r#"{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:PCR0":"ab12"}}"#,
            NONE,
            false,
        ),
        // … except under a negated operator.
        (
            r#"{"StringNotEqualsIgnoreCase":{"kms:RecipientAttestation:PCR0":"ff"}}"#,
            NONE,
            true,
        ),
    ]);
}

#[test]
fn the_usual_deny_of_unattested_decrypt() {
    let policy = policy(
        r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/app"},"Action":"kms:Decrypt","Resource":"*"},
           {"Sid":"OnlyThisImage","Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*",
            "Condition":{"StringNotEqualsIgnoreCase":{"kms:RecipientAttestation:ImageSha384":"AB12"}}}"#,
    );
    assert_eq!(ask(&policy, ROLE, "kms:Decrypt", &context(PCR0)), Allow);
    assert_eq!(
        ask(&policy, ROLE, "kms:Decrypt", &context(NONE)),
        ExplicitDeny
    );
    let other = context(&[("kms:RecipientAttestation:ImageSha384", &["ab13"])]);
    assert_eq!(ask(&policy, ROLE, "kms:Decrypt", &other), ExplicitDeny);
    assert_eq!(
        ask(&policy, ROLE, "kms:Encrypt", &context(PCR0)),
        ImplicitDeny
    );
}

#[test]
fn variables_are_of_the_newer_version() {
    let with = |version: &str| {
        let text = format!(
            r#"{{{version}"Statement":{{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*",
               "Condition":{{"StringEquals":{{"k":"${{aws:username}}"}}}}}}}}"#
        );
        Policy::parse(&text).unwrap()
    };
    let named = context(&[("k", &["alice"]), ("aws:username", &["alice"])]);
    let literal = context(&[("k", &["${aws:username}"]), ("aws:username", &["alice"])]);
    assert_eq!(
        ask(
            &with(r#""Version":"2012-10-17","#),
            USER,
            "kms:Encrypt",
            &named
        ),
        Allow
    );
    assert_eq!(
        ask(
            &with(r#""Version":"2008-10-17","#),
            USER,
            "kms:Encrypt",
            &named
        ),
        ImplicitDeny
    );
    assert_eq!(ask(&with(""), USER, "kms:Encrypt", &literal), Allow);
}

#[test]
fn deny_wins_in_any_order() {
    let allow = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#;
    let deny = r#"{"Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*"}"#;
    for statements in [format!("{allow},{deny}"), format!("{deny},{allow}")] {
        let policy = policy(&statements);
        assert_eq!(
            ask(&policy, ROOT, "kms:Decrypt", &Context::default()),
            ExplicitDeny
        );
        assert_eq!(
            ask(&policy, ROOT, "kms:Encrypt", &Context::default()),
            Allow
        );
    }
}

#[test]
fn a_direct_allow_outranks_a_delegation_in_any_order() {
    let account =
        r#"{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}"#;
    let direct = r#"{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/app"},"Action":"kms:Decrypt","Resource":"*"}"#;
    for statements in [format!("{account},{direct}"), format!("{direct},{account}")] {
        let policy = policy(&statements);
        assert_eq!(
            ask(&policy, ROLE, "kms:Decrypt", &Context::default()),
            Allow
        );
        assert_eq!(
            ask(&policy, ROLE, "kms:Encrypt", &Context::default()),
            Delegated
        );
    }
}

#[test]
fn the_default_policy_is_the_accounts() {
    let policy = Policy::parse(&default_policy(ACCOUNT)).unwrap();
    assert_eq!(
        ask(&policy, ROOT, "kms:PutKeyPolicy", &Context::default()),
        Allow
    );
    assert_eq!(
        ask(&policy, ROLE, "kms:Decrypt", &Context::default()),
        Delegated
    );
    assert_eq!(
        ask(&policy, FOREIGN, "kms:Decrypt", &Context::default()),
        ImplicitDeny
    );
}

#[test]
fn explanations_name_statement_and_condition() {
    let policy = policy(
        r#"{"Sid":"Admin","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"},
           {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/other"},"Action":"kms:*","Resource":"*"},
           {"Sid":"App","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/app"},"Action":"kms:Decrypt","Resource":"*",
            "Condition":{"StringEquals":{"kms:RecipientAttestation:PCR0":["aa","bb"],"kms:RecipientAttestation:PCR3":"cd34","kms:EncryptionContext:t":"x"}}},
           {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/app"},"Action":"kms:Encrypt","Resource":"*"}"#,
    );
    let principal = PrincipalArn::parse(ROLE).unwrap();
    let context = context(PCR0);
    let question = Question {
        principal: &principal,
        action: "kms:Decrypt",
        resource: KEY,
        context: &context,
    };
    let reports = policy.explain(&question);
    let outcomes: Vec<&Outcome> = reports.iter().map(|report| &report.outcome).collect();
    let failed = |key: &str, expected: &[&str], presented: Option<&[&str]>| FailedCondition {
        operator: "StringEquals".to_owned(),
        key: key.to_owned(),
        expected: expected.iter().map(|text| (*text).to_owned()).collect(),
        presented: presented.map(|list| list.iter().map(|text| (*text).to_owned()).collect()),
    };
    let conditions = Outcome::Conditions(vec![
        failed("kms:EncryptionContext:t", &["x"], None),
        failed(
            "kms:RecipientAttestation:PCR0",
            &["aa", "bb"],
            Some(&["ab12"]),
        ),
    ]);
    assert_eq!(
        outcomes,
        [
            &Outcome::AccountOnly,
            &Outcome::OtherPrincipal,
            &conditions,
            &Outcome::OtherAction
        ]
    );
    assert_eq!(
        (reports[2].number, reports[2].sid.as_deref()),
        (3, Some("App"))
    );
    let line = crate::audit::denial_line(&reports, &[], &[]);
    assert!(
        line.contains(r#"statement 3 ("App"): StringEquals kms:RecipientAttestation:PCR0 expected aa or bb, presented ab12"#),
        "{line}"
    );
    assert!(
        line.contains("kms:EncryptionContext:t expected x, presented nothing"),
        "{line}"
    );
}

#[test]
fn malformed_policies() {
    let statement =
        |members: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{{{members}}}]}}"#);
    let condition = |condition: &str| {
        statement(&format!(
            r#""Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Condition":{condition}"#
        ))
    };
    let cases = [
        (String::new(), "not in the valid JSON format"),
        ("[]".to_owned(), "expected a JSON object"),
        ("{}".to_owned(), "Missing required field Statement"),
        (r#"{"Statement":[]}"#.to_owned(), "Missing required field Statement"),
        (r#"{"Statement":[5]}"#.to_owned(), "a statement must be a JSON object"),
        (r#"{"Version":"2020-01-01","Statement":[]}"#.to_owned(), "must be version 2012-10-17"),
        (r#"{"Versoin":"2012-10-17","Statement":[]}"#.to_owned(), "unknown element \"Versoin\""),
        (statement(r#""Principal":"*","Action":"kms:*","Resource":"*""#), "Effect must be Allow or Deny"),
        (statement(r#""Effect":"allow","Principal":"*","Action":"kms:*","Resource":"*""#), "Effect must be Allow or Deny"),
        (statement(r#""Effect":"Allow","Action":"kms:*","Resource":"*""#), "Missing required field Principal"),
        (statement(r#""Effect":"Allow","Principal":"*","Resource":"*""#), "must contain actions"),
        (statement(r#""Effect":"Allow","Principal":"*","Action":"kms:*""#), "must contain resources"),
        (statement(r#""Effect":"Allow","Principal":"*","Action":[],"Resource":"*""#), "Action must be a string"),
        (statement(r#""Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"*""#), "no action of kms"),
        (statement(r#""Effect":"Allow","Principal":"*","Action":"kms:","Resource":"*""#), "no action of kms"),
        (statement(r#""Effect":"Allow","Principal":"*","Action":"kms:*","NotAction":"kms:*","Resource":"*""#), "exclude each other"),
        (statement(r#""Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Conditions":{}"#), "unknown element \"Conditions\""),
        (statement(r#""Effect":"Allow","Principal":"alice","Action":"kms:*","Resource":"*""#), "invalid principals"),
        (statement(r#""Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/*"},"Action":"kms:*","Resource":"*""#), "invalid principals"),
        (statement(r#""Effect":"Allow","Principal":{"AWS":"arn:aws:iam::1111:root"},"Action":"kms:*","Resource":"*""#), "invalid principals"),
        (statement(r#""Effect":"Allow","Principal":{"Aws":"*"},"Action":"kms:*","Resource":"*""#), "invalid principals"),
        (statement(r#""Effect":"Allow","NotPrincipal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*""#), "NotPrincipal goes with Deny only"),
        (condition("[]"), "Condition must be a JSON object"),
        (condition(r#"{"StringEquals":"x"}"#), "StringEquals must hold condition keys"),
        (condition(r#"{"StringSame":{"k":"v"}}"#), "unknown condition operator \"StringSame\""),
        (condition(r#"{"ForSomeValues:StringEquals":{"k":"v"}}"#), "unknown set operator \"ForSomeValues\""),
        (condition(r#"{"NullIfExists":{"k":"true"}}"#), "Null takes neither"),
        (condition(r#"{"Null":{"k":"maybe"}}"#), "cannot compare with \"maybe\""),
        (condition(r#"{"NumericEquals":{"k":"x"}}"#), "cannot compare with \"x\""),
        (condition(r#"{"IpAddress":{"k":"10.0.0.0/33"}}"#), "cannot compare with"),
        (condition(r#"{"DateEquals":{"k":"yesterday"}}"#), "cannot compare with"),
        (condition(r#"{"StringEquals":{"k":{"a":"b"}}}"#), "must be a value or a list of values"),
        (condition(r#"{"StringEquals":{"":"b"}}"#), "empty condition key"),
        // A repeated name would silently drop a condition.
        (condition(r#"{"StringEquals":{"k":"a"},"StringEquals":{"l":"b"}}"#), "occurs twice"),
        (r#"{"Statement":[{"Sid":"a","Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"},{"Sid":"a","Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*"}]}"#.to_owned(), "must be unique"),
    ];
    for (text, expected) in cases {
        let error = Policy::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_deny_holds_where_its_variable_has_no_value_and_is_negated() {
    let allow = r#"{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}"#;
    let with = |member: &str| {
        let deny = format!(r#"{{"Effect":"Deny","Principal":"*","Action":"kms:*",{member}}}"#);
        policy(&format!("{allow},{deny}"))
    };
    let condition = with(r#""Resource":"*","Condition":{"StringNotEquals":{"k":"${aws:absent}"}}"#);
    let resource = with(r#""NotResource":"arn:aws:kms:*:*:key/${aws:absent}""#);
    for (policy, context) in [
        (&condition, context(&[("k", &["x"])])),
        (&condition, context(&[])),
        (&resource, context(&[])),
    ] {
        assert_eq!(ask(policy, USER, "kms:Decrypt", &context), ExplicitDeny);
    }
}
