//! The operations. Each reads its parameters, finds its keys, asks their policies and does its work.

pub(crate) mod aliases;
pub(crate) mod crypto;
pub(crate) mod keys;
pub(crate) mod policies;

use serde_json::Value;

use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::service::Call;

/// Operations of AWS KMS that this server knows by name and refuses.
const UNSUPPORTED: &[&str] = &[
    "ConnectCustomKeyStore",
    "CreateCustomKeyStore",
    "CreateGrant",
    "Decapsulate",
    "DeleteCustomKeyStore",
    "DeleteImportedKeyMaterial",
    "DeriveSharedSecret",
    "DescribeCustomKeyStores",
    "DisableKeyRotation",
    "DisconnectCustomKeyStore",
    "EnableKeyRotation",
    "Encapsulate",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateMac",
    "GetKeyLastUsage",
    "GetKeyRotationStatus",
    "GetParametersForImport",
    "GetPublicKey",
    "ImportKeyMaterial",
    "ListGrants",
    "ListKeyRotations",
    "ListResourceTags",
    "ListRetirableGrants",
    "ReplicateKey",
    "RetireGrant",
    "RevokeGrant",
    "RotateKeyOnDemand",
    "Sign",
    "TagResource",
    "UntagResource",
    "UpdateCustomKeyStore",
    "UpdatePrimaryRegion",
    "Verify",
    "VerifyMac",
];

/// Operations that this server does.
const SUPPORTED: &[&str] = &[
    "CancelKeyDeletion",
    "CreateAlias",
    "CreateKey",
    "Decrypt",
    "DeleteAlias",
    "DescribeKey",
    "DisableKey",
    "EnableKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateRandom",
    "GetKeyPolicy",
    "ListAliases",
    "ListKeyPolicies",
    "ListKeys",
    "PutKeyPolicy",
    "ReEncrypt",
    "ScheduleKeyDeletion",
    "UpdateAlias",
    "UpdateKeyDescription",
];

/// Whether AWS KMS has such an operation.
pub(crate) fn is_known(operation: &str) -> bool {
    SUPPORTED.contains(&operation) || UNSUPPORTED.contains(&operation)
}

/// Runs an operation.
pub(crate) async fn dispatch(
    operation: &str,
    call: &mut Call<'_>,
    input: Input,
) -> Result<Value, ApiError> {
    match operation {
        "CancelKeyDeletion" => keys::cancel_deletion(call, input).await,
        "CreateAlias" => aliases::create(call, input).await,
        "CreateKey" => keys::create(call, input).await,
        "Decrypt" => crypto::decrypt(call, input),
        "DeleteAlias" => aliases::delete(call, input).await,
        "DescribeKey" => keys::describe(call, input),
        "DisableKey" => keys::set_enabled(call, input, false).await,
        "EnableKey" => keys::set_enabled(call, input, true).await,
        "Encrypt" => crypto::encrypt(call, input),
        "GenerateDataKey" => crypto::generate_data_key(call, input, true),
        "GenerateDataKeyWithoutPlaintext" => crypto::generate_data_key(call, input, false),
        "GenerateRandom" => crypto::generate_random(call, input),
        "GetKeyPolicy" => policies::get(call, input),
        "ListAliases" => aliases::list(call, input).await,
        "ListKeyPolicies" => policies::list(call, input),
        "ListKeys" => keys::list(call, input).await,
        "PutKeyPolicy" => policies::put(call, input).await,
        "ReEncrypt" => crypto::re_encrypt(call, input),
        "ScheduleKeyDeletion" => keys::schedule_deletion(call, input).await,
        "UpdateAlias" => aliases::update(call, input).await,
        "UpdateKeyDescription" => keys::update_description(call, input).await,
        other => Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!("{other} is not supported by this version of Enclos KMS."),
        )),
    }
}

/// `Limit` and `Marker` of a list, the marker decoded.
fn page(input: &mut Input, default: i64, max: i64) -> Result<(i64, String), ApiError> {
    let limit = input.integer("Limit", 1, max)?.unwrap_or(default);
    let marker = input.sized_string("Marker", 1, 1024)?;
    Ok((limit, marker.unwrap_or_default()))
}

/// A marker names the last item of the page before.
fn encode_marker(last: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, last)
}

fn decode_marker(marker: &str) -> Result<String, ApiError> {
    base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, marker)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| {
            ApiError::new(
                ErrorKind::InvalidMarker,
                format!("Invalid marker '{marker}'"),
            )
        })
}
