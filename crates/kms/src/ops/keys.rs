//! The life of a key: create, describe, list, switch off, delete.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::{decode_marker, encode_marker, page};
use crate::arn::PrincipalArn;
use crate::audit::{Draft, unix_ms};
use crate::crypto::blob::MaterialId;
use crate::crypto::seal::{self, Secret};
use crate::crypto::{random, uuid};
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::{Key, KeyState, Material, seconds};
use crate::policy::{self, Policy};
use crate::service::{Call, Facts};
use crate::store::{AuditRow, Change, KeyRow, MaterialRow};
use crate::tags::{self, Tags};

const KEY_SPECS: &[&str] = &[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT",
    "HMAC_224",
    "HMAC_256",
    "HMAC_384",
    "HMAC_512",
    "SM2",
    "ML_DSA_44",
    "ML_DSA_65",
    "ML_DSA_87",
    "ECC_NIST_EDWARDS25519",
    "ML_KEM_512",
    "ML_KEM_768",
    "ML_KEM_1024",
];
const OLD_KEY_SPECS: &[&str] = &[
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "SYMMETRIC_DEFAULT",
    "HMAC_224",
    "HMAC_256",
    "HMAC_384",
    "HMAC_512",
    "SM2",
];
const KEY_USAGES: &[&str] = &[
    "SIGN_VERIFY",
    "ENCRYPT_DECRYPT",
    "GENERATE_VERIFY_MAC",
    "KEY_AGREEMENT",
    "ENCAPSULATE_DECAPSULATE",
];
const ORIGINS: &[&str] = &["AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"];

/// AWS's waiting period in days: least, most, default.
const PENDING_WINDOW: (i64, i64, i64) = (7, 30, 30);

/// `CreateKey`.
pub(crate) async fn create(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let description = input
        .sized_string("Description", 0, 8192)?
        .unwrap_or_default();
    let policy = super::policies::policy_parameter(&mut input)?;
    let bypass = input.boolean("BypassPolicyLockoutSafetyCheck")?;
    let spec = input.choice("KeySpec", KEY_SPECS)?;
    let old_spec = input.choice("CustomerMasterKeySpec", OLD_KEY_SPECS)?;
    let usage = input.choice("KeyUsage", KEY_USAGES)?;
    let origin = input.choice("Origin", ORIGINS)?;
    let tags = tags::parameter(&mut input)?.unwrap_or_default();
    input.finish()?;
    if spec.is_some() && old_spec.is_some() {
        return Err(ApiError::validation(
            "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.",
        ));
    }
    check_supported(
        spec.or(old_spec).as_deref().unwrap_or("SYMMETRIC_DEFAULT"),
        usage.as_deref().unwrap_or("ENCRYPT_DECRYPT"),
        origin.as_deref().unwrap_or("AWS_KMS"),
        &input,
    )?;
    authorize_create(call, &tags, bypass)?;
    let tags = tags::merge(&Tags::new(), &tags)?;
    let policy = match policy {
        Some(text) => {
            let parsed = Policy::parse(&text).map_err(super::policies::malformed)?;
            super::policies::check_lockout(call, &parsed, bypass)?;
            text
        }
        None => policy::default_policy(&call.here.account),
    };
    let (key, mut change) = new_key(call, description, policy)?;
    if !tags.is_empty() {
        let set = Change::SetTags(key.row.id.clone(), tags.clone());
        change = Change::All(vec![change, set]);
    }
    let output = json!({ "KeyMetadata": key.metadata() });
    call.draft.resources.push(key.arn.to_string());
    call.draft.response = json!({ "keyMetadata": key.metadata() });
    call.change(change).await?;
    call.service.tags.put(&key.row.id, tags);
    call.service.keys.put(key);
    Ok(output)
}

/// Tags need a permission of their own, as on AWS.
fn authorize_create(
    call: &mut Call<'_>,
    tags: &[(String, String)],
    bypass: bool,
) -> Result<(), ApiError> {
    let request_tags: Vec<_> = tags
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.clone())))
        .collect();
    let more = [("kms:BypassPolicyLockoutSafetyCheck", bypass.to_string())];
    let facts = Facts {
        more: &more,
        request_tags: &request_tags,
        ..Facts::default()
    };
    call.authorize_on("kms:CreateKey", "*", &facts)?;
    if tags.is_empty() {
        return Ok(());
    }
    call.authorize_on("kms:TagResource", "*", &facts)
}

fn check_supported(spec: &str, usage: &str, origin: &str, input: &Input) -> Result<(), ApiError> {
    let unsupported = |what: String| {
        Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!("{what} is not supported by this version of Enclos KMS."),
        ))
    };
    if spec == "SYMMETRIC_DEFAULT" && usage != "ENCRYPT_DECRYPT" {
        return Err(ApiError::validation(format!(
            "KeyUsage {usage} is not compatible with KeySpec {spec}"
        )));
    }
    if spec != "SYMMETRIC_DEFAULT" {
        return unsupported(format!("KeySpec {spec}"));
    }
    if origin != "AWS_KMS" {
        return unsupported(format!("Origin {origin}"));
    }
    let members = ["CustomKeyStoreId", "XksKeyId", "MultiRegion"];
    match members.into_iter().find(|name| input.is_given(name)) {
        Some(name) => unsupported(name.to_owned()),
        None => Ok(()),
    }
}

fn new_key(
    call: &Call<'_>,
    description: String,
    policy: String,
) -> Result<(Key, Change), ApiError> {
    let internal = |error: &dyn std::error::Error| ApiError::internal(error);
    let id = uuid().map_err(|error| internal(&error))?;
    let mut secret = Secret::default();
    random(&mut *secret).map_err(|error| internal(&error))?;
    let mut material_id = [0; 32];
    random(&mut material_id).map_err(|error| internal(&error))?;
    let account = &*call.here.account;
    let created_ms = call.now_ms();
    let sealed = call
        .service
        .root
        .seal(&seal::material_label(&id, 1, account), &*secret)
        .map_err(|error| internal(&error))?;
    let row = KeyRow {
        id: id.clone(),
        account: account.to_owned(),
        region: call.here.region.to_string(),
        created_ms,
        description,
        enabled: true,
        deletion_ms: None,
        policy,
    };
    let material_row = MaterialRow {
        key_id: id,
        version: 1,
        material_id: material_id.to_vec(),
        sealed,
        created_ms,
    };
    let material = Material {
        id: MaterialId(material_id),
        secret,
    };
    let key = Key::new(row.clone(), vec![material]).map_err(|error| internal(&error))?;
    Ok((key, Change::InsertKey(row, material_row)))
}

/// `DescribeKey`.
pub(crate) fn describe(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.grant_tokens()?;
    input.finish()?;
    let key = call.find(&key_id)?;
    call.authorize(&key, "kms:DescribeKey", &Facts::default())?;
    Ok(json!({ "KeyMetadata": key.metadata() }))
}

/// `ListKeys`.
pub(crate) async fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let (limit, marker) = page(&mut input, 100, 1000)?;
    input.finish()?;
    call.authorize_without_key("kms:ListKeys")?;
    let after = decode_marker(&marker)?;
    let (account, region) = (&call.here.account, &call.here.region);
    let mut ids = call
        .service
        .store
        .list_keys(account, region, &after, limit + 1)
        .await
        .map_err(|error| ApiError::internal(&error))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let truncated = ids.len() > limit;
    ids.truncate(limit);
    let keys: Vec<Value> = ids
        .iter()
        .map(|id| json!({ "KeyId": id, "KeyArn": call.here.key_arn(id) }))
        .collect();
    let mut output = json!({ "Keys": keys, "Truncated": truncated });
    if truncated && let (Some(last), Some(members)) = (ids.last(), output.as_object_mut()) {
        members.insert("NextMarker".to_owned(), encode_marker(last).into());
    }
    Ok(output)
}

/// `EnableKey` and `DisableKey`.
pub(crate) async fn set_enabled(
    call: &mut Call<'_>,
    mut input: Input,
    enabled: bool,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let _management = call.service.management.lock().await;
    let key = call.find_by_key_id(&key_id)?;
    let action = if enabled {
        "kms:EnableKey"
    } else {
        "kms:DisableKey"
    };
    call.authorize(&key, action, &Facts::default())?;
    key.not_pending_deletion()?;
    update(
        call,
        &key,
        KeyRow {
            enabled,
            ..key.row.clone()
        },
    )
    .await?;
    Ok(Value::Null)
}

/// `UpdateKeyDescription`.
pub(crate) async fn update_description(
    call: &mut Call<'_>,
    mut input: Input,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let description = input.required_string("Description", 0, 8192)?;
    input.finish()?;
    let _management = call.service.management.lock().await;
    let key = call.find_by_key_id(&key_id)?;
    call.authorize(&key, "kms:UpdateKeyDescription", &Facts::default())?;
    key.not_pending_deletion()?;
    update(
        call,
        &key,
        KeyRow {
            description,
            ..key.row.clone()
        },
    )
    .await?;
    Ok(Value::Null)
}

/// `ScheduleKeyDeletion`.
pub(crate) async fn schedule_deletion(
    call: &mut Call<'_>,
    mut input: Input,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let days = input.integer("PendingWindowInDays", 1, 365)?;
    input.finish()?;
    let (least, most, default) = PENDING_WINDOW;
    let days = days.unwrap_or(default);
    if !(least..=most).contains(&days) {
        return Err(ApiError::validation(format!(
            "PendingWindowInDays must be between {least} and {most} (inclusive)"
        )));
    }
    let _management = call.service.management.lock().await;
    let key = call.find_by_key_id(&key_id)?;
    let more = [(
        "kms:ScheduleKeyDeletionPendingWindowInDays",
        days.to_string(),
    )];
    let facts = Facts {
        more: &more,
        ..Facts::default()
    };
    call.authorize(&key, "kms:ScheduleKeyDeletion", &facts)?;
    key.not_pending_deletion()?;
    let deletion_ms = unix_ms(call.now + Duration::days(days));
    let output = json!({
        "KeyId": &*key.arn,
        "DeletionDate": seconds(deletion_ms),
        "KeyState": KeyState::PendingDeletion.name(),
        "PendingWindowInDays": days,
    });
    call.draft.response = json!({ "keyId": &*key.arn, "deletionDate": seconds(deletion_ms) });
    update(
        call,
        &key,
        KeyRow {
            deletion_ms: Some(deletion_ms),
            enabled: false,
            ..key.row.clone()
        },
    )
    .await?;
    Ok(output)
}

/// `CancelKeyDeletion`. The key comes back disabled, as on AWS.
pub(crate) async fn cancel_deletion(
    call: &mut Call<'_>,
    mut input: Input,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let _management = call.service.management.lock().await;
    let key = call.find_by_key_id(&key_id)?;
    call.authorize(&key, "kms:CancelKeyDeletion", &Facts::default())?;
    if key.state() != KeyState::PendingDeletion {
        return Err(ApiError::new(
            ErrorKind::KmsInvalidState,
            format!("{} is not pending deletion.", key.arn),
        ));
    }
    update(
        call,
        &key,
        KeyRow {
            deletion_ms: None,
            enabled: false,
            ..key.row.clone()
        },
    )
    .await?;
    Ok(json!({ "KeyId": &*key.arn }))
}

/// Stores a key's new values, then lets requests see them. The caller holds the management lock.
pub(crate) async fn update(call: &mut Call<'_>, key: &Key, row: KeyRow) -> Result<(), ApiError> {
    let changed = key
        .with_row(row.clone())
        .map_err(|error| ApiError::internal(&error))?;
    call.change(Change::UpdateKey(row)).await?;
    call.service.keys.put(changed);
    Ok(())
}

/// The audit row of a key that is deleted because its time has come. Nobody calls; the account itself stands for it.
pub(crate) fn deletion_event(key: &Key, now: OffsetDateTime) -> AuditRow {
    let draft = Draft {
        time: now,
        event_id: uuid().unwrap_or_default(),
        request_id: String::new(),
        operation: "DeleteKey".to_owned(),
        region: key.row.region.clone(),
        caller: PrincipalArn::root(&key.row.account),
        access_key_id: String::new(),
        source: "AWS Internal".to_owned(),
        user_agent: "AWS Internal".to_owned(),
        parameters: Value::Null,
        response: Value::Null,
        resources: vec![key.arn.to_string()],
        recipient: None,
        denial: None,
    };
    draft.row(None)
}
