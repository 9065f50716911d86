//! `enclos-kms explain`: why a request was answered as it was, from the audit trail.

use serde_json::{Map, Value, json};

use super::table::Table;
use super::{Data, Failure, print};
use crate::store;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    data: Data,

    /// The request id: `x-amzn-RequestId` of the answer, `requestID` of the event
    #[arg(value_parser = parse_id)]
    request_id: String,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the audit trail has no request {0}; calls that fail before the caller is known (signature, access key) are in the log at level debug only"
)]
struct NoSuchRequest(String);

fn parse_id(text: &str) -> Result<String, String> {
    match crate::arn::is_key_id(text) {
        true => Ok(text.to_owned()),
        false => Err("expected a UUID".to_owned()),
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (mut connection, still) = store::look(&arguments.data.location()?).await?;
    let rows = store::audit_of(&mut connection, &arguments.request_id).await?;
    still.check()?;
    let id = &arguments.request_id;
    let events = rows
        .iter()
        .filter_map(|row| serde_json::from_str::<Value>(&row.event).ok());
    // The id may also stand in what a caller sent; the event's own member decides.
    let event = events
        .into_iter()
        .find(|event| event.get("requestID").and_then(Value::as_str) == Some(id))
        .ok_or_else(|| NoSuchRequest(id.clone()))?;
    if arguments.json {
        print(&format!("{:#}", explanation(&event)))?;
        return Ok(());
    }
    print_summary(&event)?;
    print_conditions(&event)?;
    print_measurements(&event)?;
    print_layers(&event)?;
    Ok(())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("-")
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

const DENIAL: &str = "/additionalEventData/denial";

/// The event, reduced to what decided.
fn explanation(event: &Value) -> Value {
    let mut members = Map::new();
    let mut add = |name: &str, value: Option<&Value>| {
        members.insert(name.to_owned(), value.cloned().unwrap_or_default());
    };
    add("requestId", event.get("requestID"));
    add("time", event.get("eventTime"));
    add("operation", event.get("eventName"));
    add("principal", event.pointer("/userIdentity/arn"));
    add("accessKeyId", event.pointer("/userIdentity/accessKeyId"));
    add("sourceIp", event.get("sourceIPAddress"));
    add("resource", event.pointer("/resources/0/ARN"));
    add("error", event.get("errorCode"));
    add("message", event.get("errorMessage"));
    add("recipient", event.pointer("/additionalEventData/recipient"));
    for name in [
        "action",
        "reason",
        "statements",
        "policies",
        "grants",
        "measurementPolicies",
    ] {
        add(name, event.pointer(&format!("{DENIAL}/{name}")));
    }
    let conditions = conditions(event);
    members.insert("conditions".to_owned(), conditions.into());
    Value::Object(members)
}

/// All conditions that did not hold, each with where it stands.
fn conditions(event: &Value) -> Vec<Value> {
    let of = |policy: &str, statements: &[Value]| -> Vec<Value> {
        let each = statements.iter().flat_map(|statement| {
            list(statement, "/conditions").iter().map(|condition| {
                let mut found = condition.clone();
                if let Some(members) = found.as_object_mut() {
                    members.insert("policy".to_owned(), policy.into());
                    for name in ["statement", "sid", "effect"] {
                        let value = statement.get(name).cloned().unwrap_or_default();
                        members.insert(name.to_owned(), value);
                    }
                }
                found
            })
        });
        each.collect()
    };
    let mut all = of(
        "resource policy",
        list(event, &format!("{DENIAL}/statements")),
    );
    for policy in list(event, &format!("{DENIAL}/policies")) {
        all.extend(of(text(policy, "/policy"), list(policy, "/statements")));
    }
    all
}

fn print_summary(event: &Value) -> Result<(), std::io::Error> {
    let allowed = event.get("errorCode").is_none();
    let result = match allowed {
        true => "answered".to_owned(),
        false => format!(
            "{}: {}",
            text(event, "/errorCode"),
            text(event, "/errorMessage")
        ),
    };
    let mut table = Table::new(&["request", text(event, "/requestID")]);
    table.row(&["time", text(event, "/eventTime")]);
    table.row(&["operation", text(event, "/eventName")]);
    table.row(&["principal", text(event, "/userIdentity/arn")]);
    table.row(&["resource", text(event, "/resources/0/ARN")]);
    table.row(&["result", &result]);
    if event.pointer(DENIAL).is_some() {
        let action = text(event, &format!("{DENIAL}/action"));
        let reason = text(event, &format!("{DENIAL}/reason"));
        table.row(&["refused", &format!("{action} {reason}")]);
    }
    let recipient = event.pointer("/additionalEventData/recipient");
    for (name, value) in recipient.and_then(Value::as_object).into_iter().flatten() {
        let name = name.trim_start_matches("attestationDocument");
        let value = value
            .as_str()
            .map_or_else(|| joined(Some(value)), str::to_owned);
        table.row(&[&format!("enclave {name}"), &value]);
    }
    table.print()
}

fn print_conditions(event: &Value) -> Result<(), std::io::Error> {
    let conditions = conditions(event);
    if conditions.is_empty() {
        return Ok(());
    }
    print("\nConditions that did not hold:")?;
    let mut table = Table::new(&[
        "POLICY",
        "STATEMENT",
        "OPERATOR",
        "KEY",
        "EXPECTED",
        "PRESENTED",
    ]);
    for condition in &conditions {
        table.row(&[
            text(condition, "/policy"),
            &statement_name(condition),
            text(condition, "/operator"),
            text(condition, "/key"),
            &joined(condition.get("expected")),
            &joined(condition.get("presented")),
        ]);
    }
    table.print()
}

fn joined(values: Option<&Value>) -> String {
    match values.and_then(Value::as_array) {
        None => "nothing".to_owned(),
        Some(values) => {
            let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            values.join(", ")
        }
    }
}

/// Why measurement policies did not accept the document.
fn print_measurements(event: &Value) -> Result<(), std::io::Error> {
    let policies = list(event, &format!("{DENIAL}/measurementPolicies"));
    if policies.is_empty() {
        return Ok(());
    }
    print("\nMeasurement policies that did not accept:")?;
    let mut table = Table::new(&["MEASUREMENT POLICY", "REASON"]);
    for policy in policies {
        for reason in list(policy, "/reasons") {
            table.row(&[text(policy, "/policy"), text(reason, "")]);
        }
    }
    table.print()
}

fn statement_name(value: &Value) -> String {
    let number = value
        .get("statement")
        .map(Value::to_string)
        .unwrap_or_default();
    match value.get("sid").and_then(Value::as_str) {
        Some(sid) => format!("{number} {sid}"),
        None => number,
    }
}

fn print_layers(event: &Value) -> Result<(), std::io::Error> {
    let mut table = Table::new(&["POLICY", "STATEMENT", "EFFECT", "OUTCOME"]);
    let mut rows = 0;
    let mut add = |policy: &str, statements: &[Value]| {
        for statement in statements {
            let (name, effect) = (statement_name(statement), text(statement, "/effect"));
            table.row(&[policy, &name, effect, text(statement, "/outcome")]);
            rows += 1;
        }
    };
    add(
        "resource policy",
        list(event, &format!("{DENIAL}/statements")),
    );
    for policy in list(event, &format!("{DENIAL}/policies")) {
        let name = format!("{} ({})", text(policy, "/policy"), text(policy, "/type"));
        add(&name, list(policy, "/statements"));
    }
    for grant in list(event, &format!("{DENIAL}/grants")) {
        let row =
            json!([{ "statement": "", "effect": "Allow", "outcome": text(grant, "/outcome") }]);
        let name = format!("grant {}", text(grant, "/grantId"));
        add(&name, list(&row, ""));
    }
    if rows == 0 {
        return Ok(());
    }
    print("\nWhat was asked:")?;
    table.print()
}
