//! Key policies: read, replace, list their one name.

use serde_json::{Value, json};

use crate::arn::PrincipalArn;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::Key;
use crate::policy::{Context, Policy, PolicyError, Question, Verdict};
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
    Ok(json!({ "Policy": key.row.policy, "PolicyName": NAME }))
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
    let _management = call.service.management.lock().await;
    let more = [("kms:BypassPolicyLockoutSafetyCheck", bypass.to_string())];
    let key = super::keys::manage(call, &key_id, &more)?;
    check_name(name)?;
    let policy = Policy::parse(&text).map_err(malformed)?;
    check_lockout(call, &policy, bypass)?;
    warn_of_weak_conditions(&key, &policy);
    super::keys::update(call, &key, |row| row.policy = text).await?;
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
        Some(text) if text.len() > MAX_BYTES => Err(ApiError::new(
            ErrorKind::LimitExceeded,
            format!(
                "The key policy has {} bytes, at most {MAX_BYTES} are allowed.",
                text.len()
            ),
        )),
        _ => Ok(text),
    }
}

/// AWS's error for a policy that is none.
pub(crate) fn malformed(error: PolicyError) -> ApiError {
    ApiError::new(ErrorKind::MalformedPolicyDocument, error.to_string())
}

/// AWS's lockout safety check: the author, or the author's account, must be able to put the next policy.
pub(crate) fn check_lockout(
    call: &Call<'_>,
    policy: &Policy,
    bypass: bool,
) -> Result<(), ApiError> {
    if bypass {
        return Ok(());
    }
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
    Err(ApiError::new(
        ErrorKind::MalformedPolicyDocument,
        "The new key policy will not allow you to update the key policy in the future.",
    ))
}

/// The mistakes that everyone makes once with attestation conditions.
fn warn_of_weak_conditions(key: &Key, policy: &Policy) {
    let prefix = "kms:recipientattestation";
    let keys: Vec<&str> = policy
        .condition_keys("kms:Decrypt")
        .filter(|key| key.starts_with(prefix))
        .collect();
    if keys.contains(&prefix) {
        tracing::warn!(key = %key.arn, "the policy tests kms:RecipientAttestation, which is never present; pin kms:RecipientAttestation:ImageSha384 or a PCR");
    }
    let pins_image = keys.iter().any(|key| {
        ["imagesha384", "pcr0", "pcr1", "pcr2", "pcr8"]
            .iter()
            .any(|pcr| key.ends_with(&format!(":{pcr}")))
    });
    if !keys.is_empty() && !pins_image {
        tracing::warn!(key = %key.arn, "the policy pins no measurement of the image (PCR0, PCR1, PCR2 or PCR8): debug-mode enclaves satisfy it");
    }
}
