//! When a key was last used.

use serde_json::{Value, json};

use super::keys::manage;
use crate::error::ApiError;
use crate::input::Input;
use crate::keyring::seconds;
use crate::service::Call;

/// Operations that count as a use, in AWS's list.
const TRACKED: &[&str] = &[
    "Decapsulate",
    "Decrypt",
    "DeriveSharedSecret",
    "Encapsulate",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "ReEncrypt",
    "Sign",
    "Verify",
    "VerifyMac",
];

/// Whether an operation that succeeds counts as a use of its keys.
pub(crate) fn is_use(operation: &str) -> bool {
    TRACKED.contains(&operation)
}

/// `GetKeyLastUsage`.
pub(crate) async fn last(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let key = manage(call, &key_id, &[])?;
    let store = &call.service.store;
    let last = store.last_use(&key.row.id).await;
    let last = last.map_err(|error| ApiError::store(&error))?;
    let since_ms = store.recording_since_ms().await;
    let since_ms = since_ms.map_err(|error| ApiError::store(&error))?;
    let usage = last.map_or_else(
        || json!({}),
        |last| {
            json!({
                "Operation": last.operation,
                "Timestamp": seconds(last.time_ms),
                "CloudTrailEventId": last.event_id,
                "KmsRequestId": last.request_id,
            })
        },
    );
    Ok(json!({
        "KeyId": &*key.arn,
        "KeyLastUsage": usage,
        "TrackingStartDate": seconds(since_ms.max(key.row.created_ms)),
        "KeyCreationDate": seconds(key.row.created_ms),
    }))
}
