//! What is legal in a key policy and seldom meant, above all with attestation conditions.
//!
//! Findings are warnings: PutKeyPolicy and CreateKey tell them in a response header and in the log, and refuse the
//! policy only if the server runs with `--strict-policies`.

use std::collections::BTreeSet;
use std::fmt;

use super::condition::Condition;
use super::{Effect, MEASUREMENT_POLICY, Policy, Statement};

/// The common part of the condition keys that look at attestation documents, in lower case.
const ATTESTATION: &str = "kms:recipientattestation";

/// Actions that hand out plaintext or a way to it, and do so without a document if a statement asks for none.
const WAYS_OUT: &[&str] = &[
    "kms:Decrypt",
    "kms:ReEncryptFrom",
    "kms:DeriveSharedSecret",
    "kms:CreateGrant",
];

/// Actions that take documents by the server's extension alone.
const SIGNING: &[&str] = &["kms:Sign", "kms:Verify", "kms:GenerateMac", "kms:VerifyMac"];

/// Those of them that make what others take for the key's holder's. They are ways out where a statement asks for a document
/// for them.
const MAKES_PROOFS: &[&str] = &["kms:Sign", "kms:GenerateMac"];

/// Something to reconsider in a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its fixed name.
    pub code: Code,
    /// The statement, counted from 1.
    pub statement: usize,
    /// The statement's `Sid`.
    pub sid: Option<String>,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// Everyone in every account is admitted, without a condition.
    Anyone,
    /// A condition on a key that no request ever has.
    AbsentKey,
    /// A condition on a document that holds when there is none.
    HoldsWithoutDocument,
    /// A document of a debug-mode enclave satisfies the statement.
    AdmitsDebug,
    /// PCR0 without PCR1 and PCR2: bytes can move between an image's sections without changing PCR0.
    PartialImage,
    /// Identity policies of the account can do without the document that others need.
    DelegationBypass,
    /// The principals of this statement need no document, others do.
    UnattestedAllow,
    /// A measurement policy that the statement names admits more than its author may have meant. Only a server, which
    /// has the files, finds it.
    MeasurementPolicy,
    /// A document is asked for by name for an action that takes none on this server.
    UnattestableAction,
}

impl Code {
    /// As in the response header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::AbsentKey => "absent-key",
            Self::HoldsWithoutDocument => "holds-without-document",
            Self::AdmitsDebug => "admits-debug",
            Self::PartialImage => "partial-image",
            Self::DelegationBypass => "delegation-bypass",
            Self::UnattestedAllow => "unattested-allow",
            Self::MeasurementPolicy => "measurement-policy",
            Self::UnattestableAction => "unattestable-action",
        }
    }

    /// What it means and what to do.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Anyone => "admits everyone of every account; name principals or add a condition",
            Self::AbsentKey => {
                "tests a condition key that no request has; pin kms:RecipientAttestation:ImageSha384 or PCR0 to PCR31"
            }
            Self::HoldsWithoutDocument => {
                "has a condition on an attestation document that also holds without one; use StringEqualsIgnoreCase without IfExists"
            }
            Self::AdmitsDebug => {
                "pins no measurement of the image, so debug-mode enclaves, whose memory their host can read, satisfy it; pin PCR0, PCR1 and PCR2, or PCR8"
            }
            Self::PartialImage => {
                "pins PCR0 without PCR1 and PCR2; PCR0 alone does not bind where an image's sections begin, pin all three"
            }
            Self::DelegationBypass => {
                "lets the account's identity policies get plaintext without a document, grant it, or rewrite this policy; name principals instead of the account"
            }
            Self::UnattestedAllow => {
                "admits its principals without the document that other statements ask for; add the condition or remove the action"
            }
            Self::MeasurementPolicy => {
                "names a measurement policy that admits more images than its author may have meant; see `enclos attest policy lint`"
            }
            Self::UnattestableAction => {
                "asks for a document for Sign, Verify, GenerateMac or VerifyMac, which take none without --attested-signing, so it never admits them; on AWS it never does"
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "statement {}", self.statement)?;
        if let Some(sid) = &self.sid {
            write!(f, " ({sid:?})")?;
        }
        write!(f, " {}", self.code.advice())
    }
}

/// Looks a key policy through.
#[must_use]
pub fn lint(policy: &Policy) -> Vec<Finding> {
    let attested = policy.statements.iter().any(looks_at_documents);
    let guarded = |action: &str| policy.statements.iter().any(|s| guards(s, action));
    let mut findings = Vec::new();
    for (index, statement) in policy.statements.iter().enumerate() {
        let mut codes = own_codes(statement);
        if attested && statement.effect == Effect::Allow && !demands_document(statement) {
            codes.extend(bypass(policy, statement, &guarded));
        }
        let codes = codes.into_iter();
        findings.extend(codes.map(|code| finding(code, statement, index + 1)));
    }
    findings
}

/// The statements that admit by a measurement policy of which `suspicious` is true.
pub fn by_measurement(policy: &Policy, suspicious: impl Fn(&str) -> bool) -> Vec<Finding> {
    let numbered = policy.statements.iter().zip(1..);
    let found = numbered.filter(|(statement, _)| {
        let mut names = (statement.conditions.iter()).flat_map(Condition::measurement_policies);
        statement.effect == Effect::Allow && names.any(&suspicious)
    });
    let finding = |(statement, number)| finding(Code::MeasurementPolicy, statement, number);
    found.map(finding).collect()
}

/// The statements that ask for a document, by the action's name, where the server takes none: `kms:*` was not written for
/// Sign alone.
pub fn of_signing(policy: &Policy) -> Vec<Finding> {
    let numbered = policy.statements.iter().zip(1..);
    let named = |statement: &Statement| {
        let mut patterns = statement.actions.patterns.iter();
        let is_signing = |raw: &str| SIGNING.iter().any(|name| raw.eq_ignore_ascii_case(name));
        attests(statement) && !statement.actions.negated && patterns.any(|p| is_signing(p.raw()))
    };
    let found = numbered.filter(|(statement, _)| named(statement));
    let finding = |(statement, number)| finding(Code::UnattestableAction, statement, number);
    found.map(finding).collect()
}

fn finding(code: Code, statement: &Statement, number: usize) -> Finding {
    Finding {
        code,
        statement: number,
        sid: statement.sid.clone(),
    }
}

/// What a statement says about itself alone.
fn own_codes(statement: &Statement) -> BTreeSet<Code> {
    let mut codes = BTreeSet::new();
    let conditions = || statement.conditions.iter();
    if conditions().any(|c| is_absent(c.lower_key())) {
        codes.insert(Code::AbsentKey);
    }
    if statement.effect == Effect::Deny {
        return codes;
    }
    if statement.principals.anyone && statement.conditions.is_empty() {
        codes.insert(Code::Anyone);
    }
    let on_documents = || conditions().filter(|c| is_on_document(c.lower_key()));
    if on_documents().any(|c| !c.demands_value()) {
        codes.insert(Code::HoldsWithoutDocument);
    }
    // No debug-mode enclave satisfies a measurement policy, which is looked through on its own.
    let measured = conditions().any(|c| c.lower_key() == MEASUREMENT_POLICY);
    if demands_document(statement) && !measured {
        let pins = pins(statement);
        let image = ["0", "1", "2", "8"].iter().any(|pcr| pins.contains(pcr));
        if !image {
            codes.insert(Code::AdmitsDebug);
        } else if pins.contains("0") && !(pins.contains("1") && pins.contains("2")) {
            codes.insert(Code::PartialImage);
        }
    }
    codes
}

/// Ways around the document that a statement without such a condition opens.
fn bypass(policy: &Policy, statement: &Statement, guarded: &impl Fn(&str) -> bool) -> Option<Code> {
    let opens = |action: &str| statement.actions.selects_action(action) && !guarded(action);
    let by_document = |action: &str| {
        let mut statements = policy.statements.iter();
        statements.any(|s| attests(s) && s.actions.selects_action(action))
    };
    let proofs = MAKES_PROOFS.iter().filter(|action| by_document(action));
    let way_out = WAYS_OUT.iter().chain(proofs).any(|action| opens(action));
    if !statement.principals.accounts.is_empty() && (way_out || opens("kms:PutKeyPolicy")) {
        return Some(Code::DelegationBypass);
    }
    let named = statement.principals.anyone || !statement.principals.arns.is_empty();
    (named && way_out).then_some(Code::UnattestedAllow)
}

fn looks_at_documents(statement: &Statement) -> bool {
    let mut keys = statement.conditions.iter().map(Condition::lower_key);
    keys.any(|key| key.starts_with(ATTESTATION) || key == MEASUREMENT_POLICY)
}

/// Whether a statement admits those alone who have a document.
fn attests(statement: &Statement) -> bool {
    statement.effect == Effect::Allow && demands_document(statement)
}

/// Whether an Allow needs a document to apply.
fn demands_document(statement: &Statement) -> bool {
    let mut conditions = statement.conditions.iter();
    conditions.any(|c| is_on_document(c.lower_key()) && c.demands_value())
}

/// Whether a Deny refuses an action to everyone who has no document.
fn guards(statement: &Statement, action: &str) -> bool {
    let everyone = statement.principals.anyone && !statement.principals.negated;
    let all_keys = statement.resources.patterns.iter().any(|p| p.raw() == "*");
    // One condition only: with a second one the Deny would apply to fewer requests.
    let [condition] = statement.conditions.as_slice() else {
        return false;
    };
    statement.effect == Effect::Deny
        && everyone
        && all_keys
        && !statement.resources.negated
        && statement.actions.selects_action(action)
        && is_on_document(condition.lower_key())
        && condition.holds_when_absent()
}

/// The registers that a statement pins to values of an image that is not in debug mode.
fn pins(statement: &Statement) -> BTreeSet<&str> {
    let conditions = statement.conditions.iter().filter(|c| c.demands_value());
    conditions
        .filter(|c| !c.raw_values().any(is_loose))
        .filter_map(|c| register(c.lower_key()))
        .collect()
}

/// Zero is what a debug-mode enclave presents; a wildcard may match it.
fn is_loose(value: &str) -> bool {
    value.chars().all(|c| matches!(c, '0' | '*' | '?'))
}

/// Whether a condition key has a value only if the request carries a document.
fn is_on_document(lower_key: &str) -> bool {
    lower_key == MEASUREMENT_POLICY || register(lower_key).is_some()
}

/// The register that a condition key looks at.
fn register(lower_key: &str) -> Option<&str> {
    let name = lower_key.strip_prefix(ATTESTATION)?.strip_prefix(':')?;
    if name == "imagesha384" {
        return Some("0");
    }
    let number = name.strip_prefix("pcr")?;
    let valid = number
        .parse::<u8>()
        .is_ok_and(|n| n < 32 && n.to_string() == number);
    valid.then_some(number)
}

/// Whether a key is spelled like one of an attestation document and is none. NitroTPM's keys exist on AWS; no document
/// of an enclave has them.
fn is_absent(lower_key: &str) -> bool {
    lower_key.starts_with(ATTESTATION) && register(lower_key).is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ROLE: &str = "arn:aws:iam::111122223333:role/app";

    fn codes(statements: &Value) -> Vec<(usize, &'static str)> {
        let text = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        let findings = lint(&Policy::parse(&text).unwrap());
        findings
            .iter()
            .map(|f| (f.statement, f.code.name()))
            .collect()
    }

    fn allow(action: &Value, condition: &Value) -> Value {
        json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": action, "Resource": "*", "Condition": condition })
    }

    fn pinned(pcrs: &[&str]) -> Value {
        let mut keys = serde_json::Map::new();
        for pcr in pcrs {
            keys.insert(format!("kms:RecipientAttestation:{pcr}"), json!("ab12"));
        }
        allow(
            &json!("kms:Decrypt"),
            &json!({ "StringEqualsIgnoreCase": keys }),
        )
    }

    #[test]
    fn measurements() {
        let rows: &[(&[&str], &[&str])] = &[
            (&["PCR0", "PCR1", "PCR2"], &[]),
            (&["ImageSha384", "PCR1", "PCR2", "PCR3"], &[]),
            (&["PCR8"], &[]),
            (&["PCR8", "PCR3"], &[]),
            (&["PCR1"], &[]),
            (&["PCR3"], &["admits-debug"]),
            (&["PCR3", "PCR4"], &["admits-debug"]),
            (&["PCR16"], &["admits-debug"]),
            (&["PCR0"], &["partial-image"]),
            (&["ImageSha384", "PCR3"], &["partial-image"]),
            (&["PCR0", "PCR1"], &["partial-image"]),
            (&["PCR32"], &["absent-key"]),
            (&["NitroTPMPCR4"], &["absent-key"]),
        ];
        for (pcrs, expected) in rows {
            let expected: Vec<_> = expected.iter().map(|code| (1, *code)).collect();
            let found: Vec<_> = codes(&json!([pinned(pcrs)]))
                .into_iter()
                .filter(|(_, code)| *code != "unattested-allow")
                .collect();
            assert_eq!(found, expected, "{pcrs:?}");
        }
    }

    #[test]
    fn conditions_that_do_not_hold_anything_back() {
        let decrypt = json!("kms:Decrypt");
        let key = "kms:RecipientAttestation:PCR0";
        let rows = [
            (
                json!({ "Null": { "kms:RecipientAttestation": "false" } }),
                vec!["absent-key", "unattested-allow"],
            ),
            (
                json!({ "StringNotEquals": { key: "ab" } }),
                vec!["holds-without-document", "unattested-allow"],
            ),
            (
                json!({ "StringEqualsIfExists": { key: "ab" } }),
                vec!["holds-without-document", "unattested-allow"],
            ),
            (
                json!({ "ForAllValues:StringEquals": { key: "ab" } }),
                vec!["holds-without-document", "unattested-allow"],
            ),
            (json!({ "StringLike": { key: "*" } }), vec!["admits-debug"]),
            (
                json!({ "StringEquals": { key: "0".repeat(96) } }),
                vec!["admits-debug"],
            ),
            (json!({ "Null": { key: "false" } }), vec!["admits-debug"]),
        ];
        for (condition, expected) in rows {
            let found: Vec<_> = codes(&json!([allow(&decrypt, &condition)]));
            let found: Vec<_> = found.iter().map(|(_, code)| *code).collect();
            assert_eq!(found, expected, "{condition}");
        }
    }

    #[test]
    fn ways_around_the_document() {
        let attested = pinned(&["PCR0", "PCR1", "PCR2"]);
        let account = |action: Value| json!({ "Effect": "Allow", "Principal": { "AWS": "111122223333" }, "Action": action, "Resource": "*" });
        let none = json!({});
        let admin = json!(["kms:DescribeKey", "kms:ScheduleKeyDeletion"]);
        let rows = [
            (
                vec![attested.clone(), account(json!("kms:*"))],
                vec![(2, "delegation-bypass")],
            ),
            (
                vec![attested.clone(), account(json!("kms:ReEncrypt*"))],
                vec![(2, "delegation-bypass")],
            ),
            (
                vec![attested.clone(), account(json!("kms:PutKeyPolicy"))],
                vec![(2, "delegation-bypass")],
            ),
            (vec![attested.clone(), account(admin.clone())], vec![]),
            (
                vec![attested.clone(), allow(&json!("kms:Decrypt"), &none)],
                vec![(2, "unattested-allow")],
            ),
            (
                vec![attested.clone(), allow(&json!("kms:CreateGrant"), &none)],
                vec![(2, "unattested-allow")],
            ),
            (
                vec![attested.clone(), allow(&json!("kms:PutKeyPolicy"), &none)],
                vec![],
            ),
            // Without attestation in the policy its default is no finding.
            (vec![account(json!("kms:*"))], vec![]),
        ];
        for (statements, expected) in rows {
            assert_eq!(codes(&json!(statements)), expected, "{statements:?}");
        }
    }

    #[test]
    fn a_deny_without_a_document_closes_the_ways() {
        let attested = pinned(&["PCR0", "PCR1", "PCR2"]);
        let decrypt = allow(&json!("kms:Decrypt"), &json!({}));
        let deny = |condition: Value| json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:*", "Resource": "*", "Condition": condition });
        let key = "kms:RecipientAttestation:PCR0";
        for closing in [
            json!({ "Null": { key: "true" } }),
            json!({ "StringNotEquals": { key: "ab" } }),
        ] {
            assert_eq!(codes(&json!([attested, decrypt, deny(closing)])), []);
        }
        for open in [
            json!({ "StringEquals": { key: "ab" } }),
            json!({ "Null": { key: "true" }, "Bool": { "aws:SecureTransport": "true" } }),
        ] {
            assert_eq!(
                codes(&json!([attested, decrypt, deny(open)])),
                [(2, "unattested-allow")]
            );
        }
    }

    #[test]
    fn measurement_policies_ask_for_a_document() {
        let key = "enclos:MeasurementPolicy";
        let measured = allow(
            &json!("kms:Decrypt"),
            &json!({ "StringEquals": { key: "app" } }),
        );
        assert_eq!(codes(&json!([measured])), []);
        let decrypt = allow(&json!("kms:Decrypt"), &json!({}));
        assert_eq!(
            codes(&json!([measured, decrypt])),
            [(2, "unattested-allow")]
        );
        let deny = json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:*", "Resource": "*",
            "Condition": { "StringNotEquals": { key: "app" } } });
        assert_eq!(codes(&json!([measured, decrypt, deny])), []);
        let text = json!({ "Version": "2012-10-17", "Statement": [decrypt, measured, deny] });
        let policy = Policy::parse(&text.to_string()).unwrap();
        let found = by_measurement(&policy, |name| name == "app");
        assert_eq!(found.iter().map(|f| f.statement).collect::<Vec<_>>(), [2]);
        assert_eq!(by_measurement(&policy, |_| false), []);
    }

    #[test]
    fn signing_asks_for_a_document_where_a_statement_does() {
        let image = json!({ "StringEqualsIgnoreCase": {
            "kms:RecipientAttestation:PCR0": "ab", "kms:RecipientAttestation:PCR1": "ab", "kms:RecipientAttestation:PCR2": "ab",
        } });
        let attested = |action: Value| allow(&action, &image);
        let plain = |action: Value| allow(&action, &json!({}));
        let deny = json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:Sign", "Resource": "*",
            "Condition": { "Null": { "kms:RecipientAttestation:PCR0": "true" } } });
        let unattested = [(2, "unattested-allow")].as_slice();
        let rows = [
            (
                attested(json!("kms:Sign")),
                plain(json!("kms:Sign")),
                unattested,
            ),
            (
                attested(json!("kms:*")),
                plain(json!("kms:GenerateMac")),
                unattested,
            ),
            (
                attested(json!("kms:Sign")),
                plain(json!("kms:GenerateMac")),
                &[],
            ),
            (
                attested(json!("kms:Decrypt")),
                plain(json!("kms:Sign")),
                &[],
            ),
            // Whoever has the public key can verify.
            (
                attested(json!("kms:Verify")),
                plain(json!("kms:Verify")),
                &[],
            ),
            (attested(json!("kms:Sign")), deny.clone(), &[]),
        ];
        for (first, second, expected) in rows {
            assert_eq!(codes(&json!([first, second])), expected, "{first} {second}");
        }
        let closed = json!([attested(json!("kms:Sign")), plain(json!("kms:Sign")), deny]);
        assert_eq!(codes(&closed), []);

        let rows = [
            (attested(json!(["kms:Decrypt", "kms:sign"])), &[1][..]),
            (attested(json!("kms:VerifyMac")), &[1]),
            (attested(json!("kms:*")), &[]),
            (attested(json!("kms:Decrypt")), &[]),
            (plain(json!("kms:Sign")), &[]),
            (deny, &[]),
        ];
        for (statement, expected) in rows {
            let text = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
            let found = of_signing(&Policy::parse(&text).unwrap());
            let found: Vec<_> = found.iter().map(|f| f.statement).collect();
            assert_eq!(found, expected, "{statement}");
        }
    }

    #[test]
    fn everyone() {
        let anyone =
            json!([{ "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*" }]);
        assert_eq!(codes(&anyone), [(1, "anyone")]);
        let text = json!({ "Version": "2012-10-17", "Statement": anyone }).to_string();
        let finding = lint(&Policy::parse(&text).unwrap()).remove(0);
        assert!(
            finding
                .to_string()
                .starts_with("statement 1 admits everyone")
        );
    }
}
