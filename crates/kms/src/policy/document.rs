//! A policy document, parsed and checked once when it is put.

use serde_json::{Map, Value};

use super::condition::Condition;
use super::json::Strict;
use super::pattern::Pattern;
use super::{Effect, Policy, Principals, Selector, Statement};
use crate::arn;

/// Why a text is not a key policy. The text goes to the caller after AWS's error type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(String);

fn error(text: impl Into<String>) -> PolicyError {
    PolicyError(text.into())
}

/// Versions of the policy language; variables exist from the second on.
const VERSIONS: [&str; 2] = ["2008-10-17", "2012-10-17"];

/// What a policy is attached to, which decides what its statements must and must not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A key: principals, actions of kms, resources.
    Key,
    /// A user, role or session: no principals, actions of any service, resources.
    Identity,
    /// A role: principals, actions of any service, no resources.
    Trust,
}

pub(super) fn parse(text: &str, kind: Kind) -> Result<Policy, PolicyError> {
    let Strict(value) = serde_json::from_str(text).map_err(|cause| {
        error(format!(
            "The policy is not in the valid JSON format: {cause}"
        ))
    })?;
    let Value::Object(document) = value else {
        return Err(error("Syntax errors in policy: expected a JSON object."));
    };
    known_members(&document, &["Version", "Id", "Statement"])?;
    let variables = match document.get("Version") {
        None => false,
        Some(Value::String(version)) if version == VERSIONS[0] => false,
        Some(Value::String(version)) if version == VERSIONS[1] => true,
        Some(_) => {
            return Err(error(
                "Policy document must be version 2012-10-17 or 2008-10-17.",
            ));
        }
    };
    let statements = match document.get("Statement") {
        Some(Value::Array(list)) if !list.is_empty() => list.iter().collect(),
        Some(statement @ Value::Object(_)) => vec![statement],
        _ => return Err(error("Missing required field Statement")),
    };
    let statements: Result<Vec<_>, _> = statements
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            statement(value, variables, kind)
                .map_err(|PolicyError(text)| error(format!("{text} (statement {})", index + 1)))
        })
        .collect();
    let statements = statements?;
    check_unique_sids(&statements)?;
    Ok(Policy { statements })
}

fn check_unique_sids(statements: &[Statement]) -> Result<(), PolicyError> {
    let mut seen = std::collections::BTreeSet::new();
    for sid in statements
        .iter()
        .filter_map(|statement| statement.sid.as_deref())
    {
        if !sid.is_empty() && !seen.insert(sid) {
            return Err(error(format!(
                "Statement IDs (SID) in a single policy must be unique: {sid}"
            )));
        }
    }
    Ok(())
}

fn statement(value: &Value, variables: bool, kind: Kind) -> Result<Statement, PolicyError> {
    let Value::Object(members) = value else {
        return Err(error(
            "Syntax errors in policy: a statement must be a JSON object.",
        ));
    };
    let names = [
        "Sid",
        "Effect",
        "Principal",
        "NotPrincipal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    ];
    known_members(members, &names)?;
    let sid = match members.get("Sid") {
        None => None,
        Some(Value::String(sid)) => Some(sid.clone()),
        Some(_) => return Err(error("Syntax errors in policy: Sid must be a string.")),
    };
    let effect = match members.get("Effect").and_then(Value::as_str) {
        Some("Allow") => Effect::Allow,
        Some("Deny") => Effect::Deny,
        _ => {
            return Err(error(
                "Syntax errors in policy: Effect must be Allow or Deny.",
            ));
        }
    };
    let principals = principals_of(members, kind)?;
    if principals.negated && effect == Effect::Allow {
        return Err(error(
            "Policy contains a statement with one or more invalid principals: NotPrincipal goes with Deny only.",
        ));
    }
    Ok(Statement {
        sid,
        effect,
        principals,
        actions: actions(members, kind)?,
        resources: resources(members, variables, kind)?,
        conditions: conditions(members.get("Condition"), variables, effect, kind)?,
    })
}

fn known_members(members: &Map<String, Value>, names: &[&str]) -> Result<(), PolicyError> {
    match members.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(error(format!(
            "Syntax errors in policy: unknown element {name:?}."
        ))),
        None => Ok(()),
    }
}

fn one_of<'a>(
    members: &'a Map<String, Value>,
    name: &str,
    negated_name: &str,
) -> Result<Option<(&'a Value, bool)>, PolicyError> {
    match (members.get(name), members.get(negated_name)) {
        (Some(_), Some(_)) => Err(error(format!(
            "Syntax errors in policy: {name} and {negated_name} exclude each other."
        ))),
        (Some(value), None) => Ok(Some((value, false))),
        (None, Some(value)) => Ok(Some((value, true))),
        (None, None) => Ok(None),
    }
}

fn strings(value: &Value, what: &str) -> Result<Vec<String>, PolicyError> {
    let wrong = || {
        error(format!(
            "Syntax errors in policy: {what} must be a string or a list of strings."
        ))
    };
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(list) if !list.is_empty() => list
            .iter()
            .map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}

fn selector(
    members: &Map<String, Value>,
    name: &str,
    negated_name: &str,
    variables: bool,
) -> Result<Option<Selector>, PolicyError> {
    let Some((value, negated)) = one_of(members, name, negated_name)? else {
        return Ok(None);
    };
    let patterns = strings(value, name)?;
    let patterns = patterns
        .iter()
        .map(|text| Pattern::parse(text, variables))
        .collect();
    Ok(Some(Selector { negated, patterns }))
}

fn resources(
    members: &Map<String, Value>,
    variables: bool,
    kind: Kind,
) -> Result<Selector, PolicyError> {
    let selector = selector(members, "Resource", "NotResource", variables)?;
    match (selector, kind) {
        (Some(_), Kind::Trust) => Err(error("Has prohibited field Resource")),
        (None, Kind::Trust) => Ok(Selector {
            negated: false,
            patterns: vec![Pattern::parse("*", false)],
        }),
        (Some(selector), _) => Ok(selector),
        (None, _) => Err(error("Policy statement must contain resources.")),
    }
}

fn actions(members: &Map<String, Value>, kind: Kind) -> Result<Selector, PolicyError> {
    let actions = selector(members, "Action", "NotAction", false)?
        .ok_or_else(|| error("Policy statement must contain actions."))?;
    for pattern in &actions.patterns {
        let raw = pattern.raw();
        let (vendor, name) = raw.split_once(':').unwrap_or_default();
        let known = match kind {
            Kind::Key => vendor.eq_ignore_ascii_case("kms"),
            Kind::Identity | Kind::Trust => !vendor.is_empty(),
        };
        if (!known || name.is_empty()) && raw != "*" {
            let of = if kind == Kind::Key { " of kms" } else { "" };
            return Err(error(format!(
                "Policy contains a statement with an invalid action: {raw:?} is no action{of}."
            )));
        }
    }
    Ok(actions)
}

/// Who a statement is about. A policy of a principal is about that principal.
fn principals_of(members: &Map<String, Value>, kind: Kind) -> Result<Principals, PolicyError> {
    if kind != Kind::Identity {
        return principals(members);
    }
    match one_of(members, "Principal", "NotPrincipal")? {
        Some(_) => Err(error("Policy document should not specify a principal.")),
        None => Ok(Principals {
            anyone: true,
            ..Principals::default()
        }),
    }
}

fn principals(members: &Map<String, Value>) -> Result<Principals, PolicyError> {
    let invalid = |what: &str| {
        error(format!(
            "Policy contains a statement with one or more invalid principals: {what}."
        ))
    };
    let (value, negated) = one_of(members, "Principal", "NotPrincipal")?
        .ok_or_else(|| error("Missing required field Principal"))?;
    let mut principals = Principals {
        negated,
        ..Principals::default()
    };
    match value {
        Value::String(text) if text == "*" => principals.anyone = true,
        Value::Object(kinds) if !kinds.is_empty() => {
            for (kind, value) in kinds {
                let names = strings(value, "Principal")?;
                match kind.as_str() {
                    "AWS" => add_aws(&mut principals, names).map_err(|name| invalid(&name))?,
                    // No service, identity provider or canonical user ever calls here, so they match nobody.
                    "Service" | "Federated" | "CanonicalUser" => {}
                    other => return Err(invalid(other)),
                }
            }
        }
        other => return Err(invalid(&other.to_string())),
    }
    Ok(principals)
}

fn add_aws(principals: &mut Principals, names: Vec<String>) -> Result<(), String> {
    for name in names {
        if name == "*" {
            principals.anyone = true;
        } else if arn::is_account(&name) {
            principals.accounts.push(name);
        } else if let Some(account) = root_account(&name) {
            principals.accounts.push(account.to_owned());
        } else if is_principal_arn(&name) {
            principals.arns.push(name);
        } else {
            return Err(name);
        }
    }
    Ok(())
}

fn root_account(name: &str) -> Option<&str> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts[..] {
        ["arn", partition, "iam", "", account, "root"]
            if partition.starts_with("aws") && arn::is_account(account) =>
        {
            Some(account)
        }
        _ => None,
    }
}

/// Users, roles and assumed-role sessions; as on AWS no wildcards.
fn is_principal_arn(name: &str) -> bool {
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    let ["arn", partition, service, "", account, resource] = parts[..] else {
        return false;
    };
    let kinds: &[&str] = match service {
        "iam" => &["user/", "role/"],
        "sts" => &["assumed-role/", "federated-user/"],
        _ => return false,
    };
    partition.starts_with("aws")
        && arn::is_account(account)
        && !resource.contains(['*', '?'])
        && kinds
            .iter()
            .any(|kind| resource.len() > kind.len() && resource.starts_with(kind))
}

fn conditions(
    value: Option<&Value>,
    variables: bool,
    effect: Effect,
    kind: Kind,
) -> Result<Vec<Condition>, PolicyError> {
    let mut conditions = Vec::new();
    let operators = match value {
        None => return Ok(conditions),
        Some(Value::Object(operators)) => operators,
        Some(_) => {
            return Err(error(
                "Syntax errors in policy: Condition must be a JSON object.",
            ));
        }
    };
    for (operator, keys) in operators {
        let Value::Object(keys) = keys else {
            return Err(error(format!(
                "Syntax errors in policy: {operator} must hold condition keys."
            )));
        };
        for (key, values) in keys {
            let values = condition_values(values).ok_or_else(|| {
                error(format!(
                    "Syntax errors in policy: {operator} {key} must be a value or a list of values."
                ))
            })?;
            let condition = Condition::parse(operator, key, &values, variables)
                .and_then(|condition| condition.own_key(effect, kind))
                .map_err(|text| error(format!("Syntax errors in policy: {text}.")))?;
            conditions.push(condition);
        }
    }
    Ok(conditions)
}

/// Condition values may be strings, numbers or booleans.
fn condition_values(value: &Value) -> Option<Vec<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    };
    match value {
        Value::Array(list) => list.iter().map(scalar).collect(),
        other => Some(vec![scalar(other)?]),
    }
}
