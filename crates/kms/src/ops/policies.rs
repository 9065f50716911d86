//! Key policies: read, replace, list their one name.

use serde_json::{Value, json};

use crate::arn::PrincipalArn;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::policy::lint::{Finding, by_measurement, lint, of_signing};
use crate::policy::{Context, Policy, PolicyError, Question, Verdict};
use crate::recipient;
use crate::service::Call;

/// The only name a key policy has.
const NAME: &str = "default";

/// AWS's limit on a key policy, in bytes.
const MAX_BYTES: usize = 32_768;

/// `GetKeyPolicy`.
pub(crate) fn get(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let name = policy_name(&mut input)?;
    input.finish()?;
    let key = super::keys::manage(call, &key_id, &[])?;
    check_name(name)?;
    Ok(json!({ "Policy": &*key.row.policy, "PolicyName": NAME }))
}

/// `ListKeyPolicies`.
pub(crate) fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    super::page(&mut input, 100, 1000)?;
    input.finish()?;
    super::keys::manage(call, &key_id, &[])?;
    Ok(json!({ "PolicyNames": [NAME], "Truncated": false }))
}

/// `PutKeyPolicy`.
pub(crate) async fn put(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let name = policy_name(&mut input)?;
    let text = policy_parameter(&mut input)?;
    let text = input.require("Policy", text);
    let bypass = input.boolean("BypassPolicyLockoutSafetyCheck")?;
    input.finish()?;
    let _management = call.manage().await?;
    let more = [("kms:BypassPolicyLockoutSafetyCheck", bypass.to_string())];
    let key = super::keys::manage(call, &key_id, &more)?;
    check_name(name)?;
    check_new(call, &text, bypass)?;
    super::keys::update(call, &key, |row| row.policy = text.into()).await?;
    Ok(Value::Null)
}

fn policy_name(input: &mut Input) -> Result<Option<String>, ApiError> {
    let word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    input.patterned_string("PolicyName", (1, 128), "[\\w]+", word)
}

fn check_name(name: Option<String>) -> Result<(), ApiError> {
    match name {
        Some(name) if name != NAME => Err(ApiError::not_found("No such policy exists")),
        _ => Ok(()),
    }
}

/// The `Policy` parameter, in AWS's characters and size.
pub(crate) fn policy_parameter(input: &mut Input) -> Result<Option<String>, ApiError> {
    let pattern = "[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+";
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}');
    let text = input.patterned_string("Policy", (1, 131_072), pattern, |text| {
        text.chars().all(allowed)
    })?;
    match &text {
        // What is longer than any parameter of this name has been noted already.
        Some(text) if text.len() > MAX_BYTES && text.chars().count() <= 131_072 => {
            Err(ApiError::new(
                ErrorKind::LimitExceeded,
                format!(
                    "The key policy has {} bytes, at most {MAX_BYTES} are allowed.",
                    text.len()
                ),
            ))
        }
        _ => Ok(text),
    }
}

/// AWS's error for a policy that is none.
pub(crate) fn malformed(error: PolicyError) -> ApiError {
    ApiError::new(ErrorKind::MalformedPolicyDocument, error.to_string())
}

/// Checks a policy that a key is to have.
pub(crate) fn check_new(call: &mut Call<'_>, text: &str, bypass: bool) -> Result<(), ApiError> {
    let policy = Policy::parse(text).map_err(malformed)?;
    check_lockout(call, &policy, bypass)?;
    check_measurements(call, &policy)?;
    check_findings(call, &policy)
}

/// A measurement policy that nobody knows would hold back for ever, and nobody would notice.
fn check_measurements(call: &Call<'_>, policy: &Policy) -> Result<(), ApiError> {
    let measurements = &call.service.measurements;
    let mut names = policy.measurement_policies();
    match names.find(|name| !measurements.has(name)) {
        None => Ok(()),
        Some(name) => Err(ApiError::new(
            ErrorKind::MalformedPolicyDocument,
            format!(
                "The key policy names the measurement policy {name}, which this server does not have."
            ),
        )),
    }
}

/// AWS's lockout safety check: the author, or the author's account, must be able to put the next policy.
fn check_lockout(call: &mut Call<'_>, policy: &Policy, bypass: bool) -> Result<(), ApiError> {
    let context = Context::default();
    let root = PrincipalArn::root(&call.here.account);
    let admits = |principal: &PrincipalArn| {
        let question = Question {
            principal,
            action: "kms:PutKeyPolicy",
            resource: "*",
            context: &context,
        };
        policy.evaluate(&question) == Verdict::Allow
    };
    if admits(&call.caller) || admits(&root) {
        return Ok(());
    }
    if bypass {
        tracing::warn!(request_id = %call.draft.request_id, "the new key policy lets neither its author nor their account replace it");
        call.warnings.push("lockout".to_owned());
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::MalformedPolicyDocument,
        "The new key policy will not allow you to update the key policy in the future.",
    ))
}

/// Tells what is legal and seldom meant, or refuses it if the server is strict.
fn check_findings(call: &mut Call<'_>, policy: &Policy) -> Result<(), ApiError> {
    let mut findings = lint(policy);
    let now = recipient::unix_millis(call.now);
    let measurements = &call.service.measurements;
    findings.extend(by_measurement(policy, |name| {
        measurements.is_suspicious(name, now)
    }));
    if !call.service.attested_signing {
        findings.extend(of_signing(policy));
    }
    if call.service.strict_policies && !findings.is_empty() {
        let texts: Vec<String> = findings.iter().map(Finding::to_string).collect();
        return Err(ApiError::new(
            ErrorKind::MalformedPolicyDocument,
            format!("Refused by --strict-policies: {}", texts.join("; ")),
        ));
    }
    for finding in &findings {
        tracing::warn!(request_id = %call.draft.request_id, code = finding.code.name(), "the new key policy: {finding}");
    }
    let shown = findings
        .iter()
        .map(|finding| format!("{}={}", finding.code.name(), finding.statement));
    call.warnings.extend(shown);
    Ok(())
}
