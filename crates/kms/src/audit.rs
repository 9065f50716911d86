//! One event per call, in CloudTrail's shape.
//!
//! A [`Draft`] collects what a handler learns: the key, the enclave's measurements, why access was denied.
//! Only parameters on [`SHOWN`] reach the event; plaintexts, ciphertexts and documents never do.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::arn::{PrincipalArn, PrincipalKind};
use crate::authz::Layer;
use crate::error::{ApiError, ErrorKind};
use crate::grants::{Grant, Refusal};
use crate::measurements;
use crate::ops;
use crate::policy::{Effect, FailedCondition, Outcome, StatementReport};
use crate::sessions::Session;
use crate::store::{AuditRow, Used};
use crate::sts;

/// Request parameters that an event repeats.
const SHOWN: &[&str] = &[
    "AliasName",
    "BypassPolicyLockoutSafetyCheck",
    "Constraints",
    "CustomerMasterKeySpec",
    "Description",
    "DestinationEncryptionAlgorithm",
    "DestinationEncryptionContext",
    "DestinationKeyId",
    "DryRun",
    "EncapsulationAlgorithm",
    "EncryptionAlgorithm",
    "EncryptionContext",
    "ExpirationModel",
    "GrantId",
    "GranteePrincipal",
    "GranteeServicePrincipal",
    "ImportType",
    "IncludeKeyMaterial",
    "KeyAgreementAlgorithm",
    "KeyId",
    "KeyMaterialDescription",
    "KeyMaterialId",
    "KeyPairSpec",
    "KeySpec",
    "KeyUsage",
    "Limit",
    "MacAlgorithm",
    "Marker",
    "MessageType",
    "MultiRegion",
    "Name",
    "NumberOfBytes",
    "Operations",
    "Origin",
    "PendingWindowInDays",
    "Policy",
    "PolicyName",
    "PrimaryRegion",
    "ReplicaRegion",
    "RetiringPrincipal",
    "RetiringServicePrincipal",
    "RotationPeriodInDays",
    "SigningAlgorithm",
    "SourceEncryptionAlgorithm",
    "SourceEncryptionContext",
    "SourceKeyId",
    "TagKeys",
    "Tags",
    "TargetKeyId",
    "ValidTo",
    "WrappingAlgorithm",
    "WrappingKeySpec",
];

/// An event in the making.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) time: OffsetDateTime,
    pub(crate) event_id: String,
    pub(crate) request_id: String,
    pub(crate) operation: String,
    pub(crate) region: String,
    pub(crate) caller: PrincipalArn,
    pub(crate) access_key_id: String,
    /// The session of temporary credentials.
    pub(crate) session: Option<Arc<Session>>,
    /// `userIdentity.principalId`.
    pub(crate) principal_id: String,
    pub(crate) source: String,
    pub(crate) user_agent: String,
    pub(crate) parameters: Value,
    pub(crate) response: Value,
    /// ARNs of the keys and aliases concerned.
    pub(crate) resources: Vec<String>,
    /// Row ids of the keys that the call computes with.
    pub(crate) used: Vec<String>,
    /// `additionalEventData.recipient`.
    pub(crate) recipient: Option<Value>,
    /// `additionalEventData.denial`.
    pub(crate) denial: Option<Value>,
}

impl Draft {
    /// The finished row.
    ///
    /// # Errors
    /// If the event cannot be written as JSON, which its type does not allow for.
    pub(crate) fn row(&self, error: Option<&ApiError>) -> Result<AuditRow, ApiError> {
        let error_code = error.map(|error| cloudtrail_code(error.kind()));
        let event = Event::new(self, error_code, error.and_then(ApiError::message));
        Ok(AuditRow {
            time_ms: unix_ms(self.time),
            operation: self.operation.clone(),
            event: serde_json::to_string(&event).map_err(|error| ApiError::internal(&error))?,
            used: self.used(error),
            error_code: error_code.map(str::to_owned),
        })
    }

    /// Notes which measurement policies accepted the document.
    pub(crate) fn accepted_by(&mut self, names: Vec<String>) {
        let recipient = self.recipient.as_mut().and_then(Value::as_object_mut);
        if let Some(members) = recipient.filter(|_| !names.is_empty()) {
            members.insert("measurementPolicies".to_owned(), names.into());
        }
    }

    /// The keys whose last use this call is: none if it failed, or was a dry run.
    fn used(&self, error: Option<&ApiError>) -> Option<Used> {
        let counts = error.is_none() && !self.used.is_empty();
        let counts = counts && ops::usage::is_use(&self.operation);
        counts.then(|| Used {
            keys: self.used.clone(),
            event_id: self.event_id.clone(),
            request_id: self.request_id.clone(),
        })
    }

    /// As in CloudTrail; what asks for credentials changes nothing.
    fn is_read_only(&self) -> bool {
        let looks =
            ops::effect(&self.operation).is_some_and(|effect| effect != ops::Effect::Writes);
        looks || sts::OPERATIONS.contains(&self.operation.as_str())
    }
}

/// An event as it is written, in CloudTrail's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    event_version: &'static str,
    user_identity: Identity<'a>,
    event_time: String,
    event_source: &'static str,
    event_name: &'a str,
    aws_region: &'a str,
    #[serde(rename = "sourceIPAddress")]
    source_ip_address: &'a str,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    request_parameters: &'a Value,
    response_elements: &'a Value,
    #[serde(skip_serializing_if = "Additional::is_empty")]
    additional_event_data: Additional<'a>,
    #[serde(rename = "requestID")]
    request_id: &'a str,
    #[serde(rename = "eventID")]
    event_id: &'a str,
    read_only: bool,
    resources: Vec<Resource<'a>>,
    event_type: &'static str,
    management_event: bool,
    recipient_account_id: &'a str,
    event_category: &'static str,
}

impl<'a> Event<'a> {
    fn new(draft: &'a Draft, error_code: Option<&'static str>, message: Option<&'a str>) -> Self {
        let second = draft.time.replace_nanosecond(0).unwrap_or(draft.time);
        let of_sts = sts::OPERATIONS.contains(&draft.operation.as_str());
        Self {
            event_version: "1.11",
            user_identity: Identity::new(draft),
            event_time: second.format(&Rfc3339).unwrap_or_default(),
            event_source: if of_sts {
                "sts.amazonaws.com"
            } else {
                "kms.amazonaws.com"
            },
            event_name: &draft.operation,
            aws_region: &draft.region,
            source_ip_address: &draft.source,
            user_agent: &draft.user_agent,
            error_code,
            error_message: message,
            request_parameters: &draft.parameters,
            // What a call that failed would have answered did not come to be.
            response_elements: error_code.map_or(&draft.response, |_| &Value::Null),
            additional_event_data: Additional {
                recipient: draft.recipient.as_ref(),
                denial: draft.denial.as_ref(),
            },
            request_id: &draft.request_id,
            event_id: &draft.event_id,
            read_only: draft.is_read_only(),
            resources: draft
                .resources
                .iter()
                .map(|arn| Resource::new(arn))
                .collect(),
            event_type: "AwsApiCall",
            management_event: true,
            recipient_account_id: draft.caller.account(),
            event_category: "Management",
        }
    }
}

/// Who called.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    r#type: &'static str,
    principal_id: &'a str,
    arn: &'a str,
    account_id: &'a str,
    access_key_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_context: Option<Value>,
}

impl<'a> Identity<'a> {
    fn new(draft: &'a Draft) -> Self {
        Self {
            r#type: match draft.caller.kind() {
                PrincipalKind::Root => "Root",
                PrincipalKind::User => "IAMUser",
                PrincipalKind::Role => "Role",
                PrincipalKind::Session => "AssumedRole",
            },
            principal_id: &draft.principal_id,
            arn: draft.caller.as_str(),
            account_id: draft.caller.account(),
            access_key_id: &draft.access_key_id,
            session_context: draft.session.as_deref().map(session_context),
        }
    }
}

/// What CloudTrail's own members have no room for.
#[derive(Serialize)]
struct Additional<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denial: Option<&'a Value>,
}

impl Additional<'_> {
    fn is_empty(&self) -> bool {
        self.recipient.is_none() && self.denial.is_none()
    }
}

/// A key or an alias.
#[derive(Serialize)]
struct Resource<'a> {
    #[serde(rename = "accountId")]
    account_id: Option<&'a str>,
    r#type: &'static str,
    #[serde(rename = "ARN")]
    arn: &'a str,
}

impl<'a> Resource<'a> {
    fn new(arn: &'a str) -> Self {
        let is_alias = arn.contains(":alias/");
        Self {
            account_id: arn.split(':').nth(4),
            r#type: if is_alias {
                "AWS::KMS::Alias"
            } else {
                "AWS::KMS::Key"
            },
            arn,
        }
    }
}

fn session_context(session: &Session) -> Value {
    let issued = OffsetDateTime::from_unix_timestamp(session.claims.issued);
    let issued = issued.ok().and_then(|time| time.format(&Rfc3339).ok());
    let mut context = json!({
        "attributes": { "creationDate": issued, "mfaAuthenticated": "false" },
    });
    let Some(members) = context.as_object_mut() else {
        return context;
    };
    if session.principal.kind() == PrincipalKind::Role {
        let issuer = json!({
            "type": "Role",
            "principalId": session.claims.entry_id,
            "arn": session.principal.as_str(),
            "accountId": &**session.principal.account(),
            "userName": session.principal.name(),
        });
        members.insert("sessionIssuer".to_owned(), issuer);
    }
    if let Some(source) = &session.claims.source_identity {
        members.insert("sourceIdentity".to_owned(), source.as_str().into());
    }
    context
}

/// CloudTrail has names of its own for some errors.
fn cloudtrail_code(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::AccessDenied => "AccessDenied",
        other => other.code(),
    }
}

/// The parameters that may be shown, named as CloudTrail names them.
pub(crate) fn shown_parameters(members: &Map<String, Value>) -> Value {
    let shown: Map<String, Value> = members
        .iter()
        .filter(|(name, _)| SHOWN.contains(&name.as_str()))
        .map(|(name, value)| (crate::input::lower_first(name), value.clone()))
        .collect();
    if shown.is_empty() {
        Value::Null
    } else {
        Value::Object(shown)
    }
}

/// What the key policy's statements, the caller's own policies and grants made of a denied call.
pub(crate) fn denial(
    action: &str,
    reason: &str,
    reports: &[StatementReport],
    own: &[(Layer, String, Vec<StatementReport>)],
    grants: &[(Arc<Grant>, Refusal)],
) -> Value {
    let mut denial = json!({
        "action": action,
        "reason": reason,
        "statements": reports.iter().map(statement).collect::<Vec<_>>(),
    });
    let Some(members) = denial.as_object_mut() else {
        return denial;
    };
    if !own.is_empty() {
        let policies: Vec<Value> = own
            .iter()
            .map(|(layer, name, reports)| {
                json!({
                    "policy": name,
                    "type": layer_name(*layer),
                    "statements": reports.iter().map(statement).collect::<Vec<_>>(),
                })
            })
            .collect();
        members.insert("policies".to_owned(), policies.into());
    }
    if !grants.is_empty() {
        let grants: Vec<Value> = grants
            .iter()
            .take(GRANTS_SHOWN)
            .map(|(grant, refusal)| json!({ "grantId": grant.id, "outcome": refusal_text(*refusal) }))
            .collect();
        members.insert("grants".to_owned(), grants.into());
    }
    denial
}

/// Adds why each measurement policy that was asked did not accept.
pub(crate) fn add_measurements(denial: &mut Value, refused: &[(String, measurements::Refusal)]) {
    let refused = refused.iter();
    let refused =
        refused.map(|(name, refusal)| json!({ "policy": name, "reasons": refusal.told() }));
    let refused: Vec<Value> = refused.collect();
    if let Some(members) = denial.as_object_mut().filter(|_| !refused.is_empty()) {
        members.insert("measurementPolicies".to_owned(), refused.into());
    }
}

/// Most grants that a denial explains.
const GRANTS_SHOWN: usize = 20;

fn layer_name(layer: Layer) -> &'static str {
    match layer {
        Layer::Resource => "resource",
        Layer::Identity => "identity",
        Layer::Boundary => "permissions boundary",
        Layer::Session => "session",
    }
}

fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Operation => "is about other operations",
        Refusal::EncryptionContext => "its constraint wants another encryption context",
        Refusal::SourceArn => "its SourceArn constraint is for requests of AWS services",
        Refusal::WiderGrant => "the new grant would allow more than it does",
    }
}

fn statement(report: &StatementReport) -> Value {
    let effect = match report.effect {
        Effect::Allow => "Allow",
        Effect::Deny => "Deny",
    };
    let (outcome, conditions) = match &report.outcome {
        Outcome::Applied => ("applied", &[][..]),
        Outcome::AccountOnly => (
            "names the account, whose identity policies would decide",
            &[][..],
        ),
        Outcome::OtherPrincipal => ("is about other principals", &[][..]),
        Outcome::OtherAction => ("is about other actions", &[][..]),
        Outcome::OtherResource => ("is about other keys", &[][..]),
        Outcome::Conditions(failed) => ("conditions not met", failed.as_slice()),
    };
    let mut value = json!({
        "statement": report.number,
        "effect": effect,
        "outcome": outcome,
    });
    if let Some(members) = value.as_object_mut() {
        if let Some(sid) = &report.sid {
            members.insert("sid".to_owned(), sid.as_str().into());
        }
        if !conditions.is_empty() {
            let conditions = conditions.iter().map(condition).collect::<Vec<_>>();
            members.insert("conditions".to_owned(), conditions.into());
        }
    }
    value
}

fn condition(failed: &FailedCondition) -> Value {
    json!({
        "operator": failed.operator,
        "key": failed.key,
        "expected": failed.expected,
        "presented": failed.presented,
    })
}

/// A denial as one line of the log: the key policy's statements, the caller's own policies, measurement policies.
pub(crate) fn denial_line(
    reports: &[StatementReport],
    own: &[(Layer, String, Vec<StatementReport>)],
    refused: &[(String, measurements::Refusal)],
) -> String {
    let mut parts = statement_lines(reports);
    for (layer, name, reports) in own {
        let lines = statement_lines(reports).into_iter();
        parts.extend(lines.map(|line| format!("{} policy {name:?} {line}", layer_name(*layer))));
    }
    parts.extend(refused.iter().map(|(name, refusal)| {
        format!("measurement policy {name:?}: {}", refusal.told().join(", "))
    }));
    if parts.is_empty() {
        return "no statement allows this action to this principal".to_owned();
    }
    parts.join("; ")
}

/// What those of a policy's statements say that were about the question.
fn statement_lines(reports: &[StatementReport]) -> Vec<String> {
    let mut parts = Vec::new();
    for report in reports {
        let name = match &report.sid {
            Some(sid) => format!("statement {} ({sid:?})", report.number),
            None => format!("statement {}", report.number),
        };
        match &report.outcome {
            Outcome::Conditions(failed) if report.effect == Effect::Allow => {
                parts.extend(
                    failed
                        .iter()
                        .map(|failed| format!("{name}: {}", condition_line(failed))),
                );
            }
            Outcome::Applied if report.effect == Effect::Deny => {
                parts.push(format!("{name} denies"))
            }
            Outcome::AccountOnly => {
                parts.push(format!(
                    "{name} leaves it to the account's identity policies, which do not allow it"
                ));
            }
            _ => {}
        }
    }
    parts
}

fn condition_line(failed: &FailedCondition) -> String {
    let presented = match &failed.presented {
        None => "nothing".to_owned(),
        Some(values) => values.join(", "),
    };
    format!(
        "{} {} expected {}, presented {presented}",
        failed.operator,
        failed.key,
        failed.expected.join(" or ")
    )
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn draft() -> Draft {
        Draft {
            time: OffsetDateTime::UNIX_EPOCH,
            event_id: "event".to_owned(),
            request_id: "request".to_owned(),
            operation: "CreateKey".to_owned(),
            region: "us-east-1".to_owned(),
            caller: PrincipalArn::root("000000000000"),
            access_key_id: "AKIA".to_owned(),
            session: None,
            principal_id: "000000000000".to_owned(),
            source: "127.0.0.1".to_owned(),
            user_agent: String::new(),
            parameters: json!({ "description": "d" }),
            response: json!({ "keyMetadata": {} }),
            resources: vec!["arn:aws:kms:us-east-1:000000000000:key/k".to_owned()],
            used: Vec::new(),
            recipient: None,
            denial: None,
        }
    }

    #[test]
    fn a_failed_call_has_an_error_and_no_response() {
        let event = |error: Option<&ApiError>| -> Value {
            serde_json::from_str(&draft().row(error).unwrap().event).unwrap()
        };
        let made = event(None);
        assert_eq!(made["responseElements"], json!({ "keyMetadata": {} }));
        assert!(made.get("errorCode").is_none() && made.get("additionalEventData").is_none());
        let failed = event(Some(&ApiError::new(ErrorKind::AccessDenied, "no")));
        assert_eq!(failed["responseElements"], Value::Null);
        assert_eq!(failed["errorCode"], "AccessDenied");
        assert_eq!(failed["errorMessage"], "no");
    }
}
