//! One event per call, in CloudTrail's shape.
//!
//! A [`Draft`] collects what a handler learns: the key, the enclave's measurements, why access was denied.
//! Only parameters on [`SHOWN`] reach the event; plaintexts, ciphertexts and documents never do.

use std::sync::Arc;

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
    pub(crate) fn row(&self, error: Option<&ApiError>) -> AuditRow {
        let error_code = error.map(|error| cloudtrail_code(error.kind()).to_owned());
        AuditRow {
            time_ms: unix_ms(self.time),
            operation: self.operation.clone(),
            event: self.event(error, error_code.as_deref()).to_string(),
            used: self.used(error),
            error_code,
        }
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

    fn event(&self, error: Option<&ApiError>, error_code: Option<&str>) -> Value {
        let mut event = json!({
            "eventVersion": "1.11",
            "userIdentity": self.identity(),
            "eventTime": self.time.replace_nanosecond(0).unwrap_or(self.time).format(&Rfc3339).unwrap_or_default(),
            "eventSource": if sts::OPERATIONS.contains(&self.operation.as_str()) { "sts.amazonaws.com" } else { "kms.amazonaws.com" },
            "eventName": self.operation,
            "awsRegion": self.region,
            "sourceIPAddress": self.source,
            "userAgent": self.user_agent,
            "requestParameters": self.parameters,
            "responseElements": self.response,
            "requestID": self.request_id,
            "eventID": self.event_id,
            "readOnly": self.is_read_only(),
            "resources": self.resources.iter().map(|arn| resource(arn)).collect::<Vec<_>>(),
            "eventType": "AwsApiCall",
            "managementEvent": true,
            "recipientAccountId": &**self.caller.account(),
            "eventCategory": "Management",
        });
        let Some(members) = event.as_object_mut() else {
            return event;
        };
        if let Some(code) = error_code {
            members.insert("errorCode".to_owned(), code.into());
        }
        if let Some(message) = error.and_then(ApiError::message) {
            members.insert("errorMessage".to_owned(), message.into());
        }
        if let Some(additional) = self.additional() {
            members.insert("additionalEventData".to_owned(), additional);
        }
        event
    }

    /// As in CloudTrail; what asks for credentials changes nothing.
    fn is_read_only(&self) -> bool {
        let looks =
            ops::effect(&self.operation).is_some_and(|effect| effect != ops::Effect::Writes);
        looks || sts::OPERATIONS.contains(&self.operation.as_str())
    }

    fn identity(&self) -> Value {
        let kind = match self.caller.kind() {
            PrincipalKind::Root => "Root",
            PrincipalKind::User => "IAMUser",
            PrincipalKind::Role => "Role",
            PrincipalKind::Session => "AssumedRole",
        };
        let mut identity = json!({
            "type": kind,
            "principalId": self.principal_id,
            "arn": self.caller.as_str(),
            "accountId": &**self.caller.account(),
            "accessKeyId": self.access_key_id,
        });
        if let (Some(session), Some(members)) = (&self.session, identity.as_object_mut()) {
            members.insert("sessionContext".to_owned(), session_context(session));
        }
        identity
    }

    fn additional(&self) -> Option<Value> {
        let mut members = Map::new();
        if let Some(recipient) = &self.recipient {
            members.insert("recipient".to_owned(), recipient.clone());
        }
        if let Some(denial) = &self.denial {
            members.insert("denial".to_owned(), denial.clone());
        }
        (!members.is_empty()).then_some(Value::Object(members))
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

fn resource(arn: &str) -> Value {
    let kind = if arn.contains(":alias/") {
        "AWS::KMS::Alias"
    } else {
        "AWS::KMS::Key"
    };
    json!({ "accountId": arn.split(':').nth(4), "type": kind, "ARN": arn })
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

/// A denial as one line of the log.
pub(crate) fn denial_line(
    reports: &[StatementReport],
    refused: &[(String, measurements::Refusal)],
) -> String {
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
                    "{name} admits the account, but this principal has no identity policy"
                ));
            }
            _ => {}
        }
    }
    let refused = refused.iter();
    parts.extend(refused.map(|(name, refusal)| {
        format!("measurement policy {name:?}: {}", refusal.told().join(", "))
    }));
    if parts.is_empty() {
        return "no statement allows this action to this principal".to_owned();
    }
    parts.join("; ")
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
