//! The operations. Each reads its parameters, finds its keys, asks their policies and does its work.

mod admit;
pub(crate) mod agreement;
pub(crate) mod aliases;
pub(crate) mod crypto;
pub(crate) mod data_keys;
pub(crate) mod grants;
pub(crate) mod import;
pub(crate) mod keys;
pub(crate) mod mac;
pub(crate) mod maintenance;
mod materials;
pub(crate) mod policies;
pub(crate) mod regions;
pub(crate) mod rotation;
pub(crate) mod sign;
pub(crate) mod tags;
pub(crate) mod usage;

use serde_json::{Value, json};

use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::service::Call;

/// What an operation does to the KMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Nothing: it looks, or computes with a key.
    Reads,
    /// It changes keys or what belongs to them.
    Writes,
    /// Nothing: AWS KMS could, this server cannot.
    Refused,
}

/// The one list of operations: name, effect, and what runs. From it follow which names are known, which are
/// `readOnly` in the audit trail, and what the fuzzers try.
macro_rules! operations {
    ($($name:literal $effect:ident $(|$call:ident, $input:ident| $run:expr)?;)*) => {
        /// Every operation of AWS KMS and what it does here.
        pub const OPERATIONS: &[(&str, Effect)] = &[$(($name, Effect::$effect)),*];

        /// Runs an operation. What waits does so on the heap: otherwise each of the many calls that never wait would carry room
        /// for the largest that does.
        pub(crate) async fn dispatch(
            operation: &str,
            call: &mut Call<'_>,
            input: Input,
        ) -> Result<Value, ApiError> {
            match operation {
                $($($name => {
                    let ($call, $input) = (call, input);
                    $run
                })?)*
                other => refuse(other),
            }
        }
    };
}

operations! {
    "CancelKeyDeletion" Writes |call, input| Box::pin(keys::cancel_deletion(call, input)).await;
    "ConnectCustomKeyStore" Refused;
    "CreateAlias" Writes |call, input| Box::pin(aliases::create(call, input)).await;
    "CreateCustomKeyStore" Refused;
    "CreateGrant" Writes |call, input| Box::pin(grants::create(call, input)).await;
    "CreateKey" Writes |call, input| Box::pin(keys::create(call, input)).await;
    "Decapsulate" Reads |call, input| agreement::decapsulate(call, input);
    "Decrypt" Reads |call, input| crypto::decrypt(call, input);
    "DeleteAlias" Writes |call, input| Box::pin(aliases::delete(call, input)).await;
    "DeleteCustomKeyStore" Refused;
    "DeleteImportedKeyMaterial" Writes |call, input| Box::pin(import::delete(call, input)).await;
    "DeriveSharedSecret" Reads |call, input| agreement::derive(call, input);
    "DescribeCustomKeyStores" Refused;
    "DescribeKey" Reads |call, input| keys::describe(call, input);
    "DisableKey" Writes |call, input| Box::pin(keys::set_enabled(call, input, false)).await;
    "DisableKeyRotation" Writes |call, input| Box::pin(rotation::disable(call, input)).await;
    "DisconnectCustomKeyStore" Refused;
    "EnableKey" Writes |call, input| Box::pin(keys::set_enabled(call, input, true)).await;
    "EnableKeyRotation" Writes |call, input| Box::pin(rotation::enable(call, input)).await;
    "Encapsulate" Reads |call, input| agreement::encapsulate(call, input);
    "Encrypt" Reads |call, input| crypto::encrypt(call, input);
    "GenerateDataKey" Reads |call, input| data_keys::generate(call, input, true);
    "GenerateDataKeyPair" Reads |call, input| Box::pin(data_keys::generate_pair(call, input, true)).await;
    "GenerateDataKeyPairWithoutPlaintext" Reads |call, input| Box::pin(data_keys::generate_pair(call, input, false)).await;
    "GenerateDataKeyWithoutPlaintext" Reads |call, input| data_keys::generate(call, input, false);
    "GenerateMac" Reads |call, input| mac::generate(call, input);
    "GenerateRandom" Reads |call, input| data_keys::random(call, input);
    "GetKeyLastUsage" Reads |call, input| Box::pin(usage::last(call, input)).await;
    "GetKeyPolicy" Reads |call, input| policies::get(call, input);
    "GetKeyRotationStatus" Reads |call, input| rotation::status(call, input);
    "GetParametersForImport" Reads |call, input| Box::pin(import::parameters(call, input)).await;
    "GetPublicKey" Reads |call, input| sign::public_key(call, input);
    "ImportKeyMaterial" Writes |call, input| Box::pin(import::import(call, input)).await;
    "ListAliases" Reads |call, input| Box::pin(aliases::list(call, input)).await;
    "ListGrants" Reads |call, input| grants::list(call, input);
    "ListKeyPolicies" Reads |call, input| policies::list(call, input);
    "ListKeyRotations" Reads |call, input| rotation::list(call, input);
    "ListKeys" Reads |call, input| Box::pin(keys::list(call, input)).await;
    "ListResourceTags" Reads |call, input| tags::list(call, input);
    "ListRetirableGrants" Reads |call, input| grants::list_retirable(call, input);
    "PutKeyPolicy" Writes |call, input| Box::pin(policies::put(call, input)).await;
    "ReEncrypt" Reads |call, input| crypto::re_encrypt(call, input);
    "ReplicateKey" Writes |call, input| Box::pin(regions::replicate(call, input)).await;
    "RetireGrant" Writes |call, input| Box::pin(grants::retire(call, input)).await;
    "RevokeGrant" Writes |call, input| Box::pin(grants::revoke(call, input)).await;
    "RotateKeyOnDemand" Writes |call, input| Box::pin(rotation::rotate_on_demand(call, input)).await;
    "ScheduleKeyDeletion" Writes |call, input| Box::pin(keys::schedule_deletion(call, input)).await;
    "Sign" Reads |call, input| sign::sign(call, input);
    "TagResource" Writes |call, input| Box::pin(tags::tag(call, input)).await;
    "UntagResource" Writes |call, input| Box::pin(tags::untag(call, input)).await;
    "UpdateAlias" Writes |call, input| Box::pin(aliases::update(call, input)).await;
    "UpdateCustomKeyStore" Refused;
    "UpdateKeyDescription" Writes |call, input| Box::pin(keys::update_description(call, input)).await;
    "UpdatePrimaryRegion" Writes |call, input| Box::pin(regions::update_primary(call, input)).await;
    "Verify" Reads |call, input| sign::verify(call, input);
    "VerifyMac" Reads |call, input| mac::verify(call, input);
}

fn refuse(operation: &str) -> Result<Value, ApiError> {
    Err(ApiError::new(
        ErrorKind::UnsupportedOperation,
        format!("{operation} is not supported by this version of Enclos KMS."),
    ))
}

/// What an operation does; `None` if AWS KMS has none of that name.
pub(crate) fn effect(operation: &str) -> Option<Effect> {
    let at = OPERATIONS
        .binary_search_by_key(&operation, |(name, _)| name)
        .ok()?;
    OPERATIONS.get(at).map(|(_, effect)| *effect)
}

/// `Limit` and `Marker` of a list, the marker decoded.
fn page(input: &mut Input, default: i64, max: i64) -> Result<(i64, String), ApiError> {
    let limit = input.integer("Limit", 1, max)?.unwrap_or(default);
    let marker = input.patterned_string("Marker", (1, 1024), "[\\u0020-\\u00FF]*", |marker| {
        marker.chars().all(|c| matches!(c, '\u{20}'..='\u{ff}'))
    })?;
    Ok((limit, marker.unwrap_or_default()))
}

/// A marker names the operation and the last item of the page before: in another list it would silently skip items.
fn encode_marker(operation: &str, last: &str) -> String {
    let text = format!("{operation}:{last}");
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text)
}

/// A page of a list: its items, and the last of them if there are more.
fn paged(call: &Call<'_>, name: &str, items: Vec<Value>, last: Option<&str>) -> Value {
    let mut output = json!({ name: items, "Truncated": last.is_some() });
    if let (Some(last), Some(members)) = (last, output.as_object_mut()) {
        let marker = encode_marker(&call.draft.operation, last);
        members.insert("NextMarker".to_owned(), marker.into());
    }
    output
}

/// The last item of the page before; empty for the first page.
fn decode_marker(operation: &str, marker: &str) -> Result<String, ApiError> {
    if marker.is_empty() {
        return Ok(String::new());
    }
    base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, marker)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| Some(text.strip_prefix(operation)?.strip_prefix(':')?.to_owned()))
        .ok_or_else(|| invalid_marker(marker))
}

fn invalid_marker(marker: &str) -> ApiError {
    ApiError::new(
        ErrorKind::InvalidMarker,
        format!("Invalid marker '{marker}'"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(OPERATIONS.is_sorted());
        assert_eq!(effect("Encrypt"), Some(Effect::Reads));
        assert_eq!(effect("Nonsense"), None);
    }
}
