//! The policy language and the decision over all policies, as tables: each group names the AWS rule that it checks.
//!
//! | file | what a row is |
//! |---|---|
//! | `policy/conditions.json` | a condition of an Allow statement, a request's context, whether it holds |
//! | `policy/elements.json` | principals, actions, resources; documents and whether they are valid |
//! | `policy/decisions.json` | which policies say what, and what comes out |

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use enclos_kms::arn::PrincipalArn;
use enclos_kms::authz::{Ask, Identity, Layer, Named, Refused};
use enclos_kms::grants::Reach;
use enclos_kms::policy::{Context, Policy, Question, Verdict};
use serde_json::{Value, json};

const USER: &str = "arn:aws:iam::111122223333:user/alice";
const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// The issue that this suite answers asks for so many.
const LEAST: usize = 300;

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name]
        .as_array()
        .unwrap_or_else(|| panic!("no list {name} in {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn document(version: &str, statements: &Value) -> String {
    json!({ "Version": version, "Statement": statements }).to_string()
}

fn key_policy(statements: &Value) -> Policy {
    let text = document("2012-10-17", statements);
    Policy::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// `ARN`, or `session ROLE NAME`.
fn principal(text: &str) -> PrincipalArn {
    match text.split(' ').collect::<Vec<_>>()[..] {
        ["session", role, name] => PrincipalArn::session(&PrincipalArn::parse(role).unwrap(), name),
        _ => PrincipalArn::parse(text).unwrap(),
    }
}

fn context(values: &Value) -> Context {
    let mut context = Context::default();
    for (name, value) in values.as_object().unwrap() {
        match value {
            Value::Array(list) => {
                context.set_list(name, list.iter().map(|v| text(v).to_owned()).collect());
            }
            value => context.set(name, text(value)),
        }
    }
    context
}

/// Counts rows and collects those that came out otherwise, so that one run shows them all.
#[derive(Default)]
struct Tally {
    rows: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn check(&mut self, rule: &Value, row: &Value, found: &str, expected: &str) {
        self.rows += 1;
        if found != expected {
            self.wrong.push(format!(
                "{}\n  {row}\n  expected {expected}, found {found}",
                text(rule)
            ));
        }
    }

    fn finish(self) -> usize {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        self.rows
    }
}

fn conditions() -> usize {
    let mut tally = Tally::default();
    for group in read(include_str!("policy/conditions.json"))
        .as_array()
        .unwrap()
    {
        let version = group["version"].as_str().unwrap_or("2012-10-17");
        let statement = json!([{ "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
            "Condition": group["condition"] }]);
        let policy = Policy::parse(&document(version, &statement)).unwrap();
        for row in list(group, "rows") {
            let context = context(&row[0]);
            let verdict = policy.evaluate(&Question {
                principal: &principal(USER),
                action: "kms:Decrypt",
                resource: KEY,
                context: &context,
            });
            let found = (verdict == Verdict::Allow).to_string();
            tally.check(&group["rule"], row, &found, &row[1].to_string());
        }
    }
    tally.finish()
}

fn elements() -> usize {
    let groups = read(include_str!("policy/elements.json"));
    let mut tally = Tally::default();
    for group in list(&groups, "principals") {
        let mut statement = group["element"].clone();
        for (name, value) in [
            ("Effect", &group["effect"]),
            ("Action", &json!("kms:*")),
            ("Resource", &json!("*")),
        ] {
            statement[name] = value.clone();
        }
        let mut statements = vec![statement];
        if group["effect"] == "Deny" {
            statements.push(
                json!({ "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*" }),
            );
        }
        let policy = key_policy(&statements.into());
        for row in list(group, "rows") {
            let found = ask(&policy, &principal(text(&row[0])), "kms:Decrypt", KEY);
            tally.check(&group["rule"], row, &format!("{found:?}"), text(&row[1]));
        }
    }
    for (kind, member, fixed) in [
        ("actions", "Resource", "*"),
        ("resources", "Action", "kms:*"),
    ] {
        for group in list(&groups, kind) {
            let mut statement = group["element"].clone();
            for (name, value) in [("Effect", "Allow"), ("Principal", "*"), (member, fixed)] {
                statement[name] = json!(value);
            }
            let policy = key_policy(&json!([statement]));
            for row in list(group, "rows") {
                let asked = text(&row[0]);
                let (action, resource) = match kind {
                    "actions" => (asked, KEY),
                    _ => ("kms:Decrypt", asked),
                };
                let found = ask(&policy, &principal(USER), action, resource) == Verdict::Allow;
                tally.check(&group["rule"], row, &found.to_string(), &row[1].to_string());
            }
        }
    }
    for group in list(&groups, "documents") {
        let parse = match text(&group["kind"]) {
            "key" => Policy::parse,
            "identity" => Policy::parse_identity,
            "trust" => Policy::parse_trust,
            other => panic!("{other}"),
        };
        for row in list(group, "rows") {
            let found = parse(&document("2012-10-17", &json!([row[0]]))).is_ok();
            tally.check(&group["rule"], row, &found.to_string(), &row[1].to_string());
        }
    }
    tally.finish()
}

fn ask(policy: &Policy, principal: &PrincipalArn, action: &str, resource: &str) -> Verdict {
    let mut context = Context::default();
    context.set("aws:username", "alice");
    policy.evaluate(&Question {
        principal,
        action,
        resource,
        context: &context,
    })
}

fn caller(word: &str) -> PrincipalArn {
    let account = match word.strip_prefix("foreign-") {
        Some(_) => "444455556666",
        None => "111122223333",
    };
    let arn = |rest: &str| format!("arn:aws:iam::{account}:{rest}");
    match word.trim_start_matches("foreign-") {
        "user" => principal(&arn("user/alice")),
        "session" => principal(&format!("session {} one", arn("role/app"))),
        "root" => principal(&arn("root")),
        other => panic!("{other}"),
    }
}

/// The `Principal` element that a word of a table stands for.
fn named(word: &str, caller: &PrincipalArn) -> Value {
    match word {
        "account" => json!({ "AWS": &**caller.account() }),
        "user" | "session" => json!({ "AWS": caller.as_str() }),
        "role" => json!({ "AWS": caller.role().unwrap() }),
        "anyone" => json!("*"),
        "nobody" => json!({ "AWS": "arn:aws:iam::999999999999:user/nobody" }),
        other => panic!("{other}"),
    }
}

fn of_key(words: &str, caller: &PrincipalArn) -> Policy {
    let statements: Vec<Value> = words
        .split(' ')
        .map(|word| {
            let (effect, who) = match word.strip_prefix("deny:") {
                // A Deny for the user means that user, whoever calls.
                Some("user") => (
                    "Deny",
                    json!({ "AWS": USER.replace("111122223333", caller.account()) }),
                ),
                Some(who) => ("Deny", named(who, caller)),
                None => ("Allow", named(word, caller)),
            };
            json!({ "Effect": effect, "Principal": who, "Action": "kms:Decrypt", "Resource": "*" })
        })
        .collect();
    key_policy(&statements.into())
}

fn own(word: &str) -> Option<Named> {
    let (effect, action) = match word {
        "none" => return None,
        "allow" => ("Allow", "kms:Decrypt"),
        "deny" => ("Deny", "kms:Decrypt"),
        "silent" => ("Allow", "kms:Encrypt"),
        other => panic!("{other}"),
    };
    let text = document(
        "2012-10-17",
        &json!([{ "Effect": effect, "Action": action, "Resource": "*" }]),
    );
    Some(Named {
        name: word.to_owned(),
        policy: Arc::new(Policy::parse_identity(&text).unwrap()),
    })
}

fn shown(decision: Result<(), Refused>) -> String {
    let layer = |layer| match layer {
        Layer::Resource => "resource",
        Layer::Identity => "identity",
        Layer::Boundary => "boundary",
        Layer::Session => "session",
    };
    match decision {
        Ok(()) => "yes".to_owned(),
        Err(Refused::Explicitly(at)) => format!("deny {}", layer(at)),
        Err(Refused::Implicitly(at)) => format!("no {}", layer(at)),
    }
}

fn decisions() -> usize {
    let mut tally = Tally::default();
    for group in list(&read(include_str!("policy/decisions.json")), "groups") {
        for row in list(group, "rows") {
            let word = |column: usize| text(&row[column]);
            let caller = caller(word(0));
            let policy = of_key(word(1), &caller);
            let identity = Identity {
                policies: own(word(2)).into_iter().collect(),
                boundary: own(word(3)),
                session: own(word(4)).into_iter().collect(),
            };
            let grants = || match word(5) {
                "none" => vec![],
                "user" | "session" => vec![Reach::Direct],
                "role" => vec![Reach::Role],
                "account" => vec![Reach::Account],
                other => panic!("{other}"),
            };
            let ask = Ask {
                question: &Question {
                    principal: &caller,
                    action: "kms:Decrypt",
                    resource: KEY,
                    context: &Context::default(),
                },
                policy: &policy,
                identity: &identity,
                same_account: &**caller.account() == "111122223333",
            };
            tally.check(&group["rule"], row, &shown(ask.decide(grants)), word(6));
        }
    }
    tally.finish()
}

#[test]
fn conditions_are_awss() {
    assert!(conditions() > 0);
}

#[test]
fn elements_are_awss() {
    assert!(elements() > 0);
}

#[test]
fn decisions_are_awss() {
    assert!(decisions() > 0);
}

#[test]
fn the_suite_is_not_thinned_out() {
    let rows = conditions() + elements() + decisions();
    assert!(rows >= LEAST, "{rows} rows");
}
