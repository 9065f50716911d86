//! The life of a key: create, describe, list, switch off, delete.

use std::sync::Arc;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::admit::Use;
use super::{decode_marker, materials, page, paged};
use crate::arn::PrincipalArn;
use crate::audit::{Draft, unix_ms};
use crate::crypto::uuid;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::{Key, KeyState, Material, seconds};
use crate::policy;
use crate::service::{Call, Facts};
use crate::spec::{KeySpec, KeyUsage, Origin};
use crate::store::{AuditRow, Change, KeyRow, key_id};
use crate::tags::{self, Tags};

/// AWS's waiting period in days: least, most, default.
const PENDING_WINDOW: (i64, i64, i64) = (7, 30, 30);

/// What kind of key is asked for.
struct Kind {
    spec: KeySpec,
    usage: KeyUsage,
    origin: Origin,
    multi_region: bool,
}

/// `CreateKey`.
pub(crate) async fn create(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let description = input
        .sized_string("Description", 0, 8192)?
        .unwrap_or_default();
    let policy = super::policies::policy_parameter(&mut input)?;
    let bypass = input.boolean("BypassPolicyLockoutSafetyCheck")?;
    let tags = tags::parameter(&mut input)?.unwrap_or_default();
    let kind = kind(&mut input)?;
    let more = [
        ("kms:BypassPolicyLockoutSafetyCheck", bypass.to_string()),
        ("kms:KeySpec", kind.spec.to_string()),
        ("kms:KeyUsage", kind.usage.to_string()),
        ("kms:KeyOrigin", kind.origin.to_string()),
        ("kms:MultiRegion", kind.multi_region.to_string()),
    ];
    let facts = Facts {
        more: &more,
        ..Facts::default()
    };
    authorize_create(call, &tags, facts)?;
    let tags = tags::merge(&Tags::new(), &tags)?;
    let policy = new_policy(call, policy, bypass)?;
    let (key, mut changes) = new_key(call, kind, description, policy).await?;
    if !tags.is_empty() {
        changes.push(Change::SetTags(key.row.id.clone(), tags));
    }
    let metadata = key.metadata(&[Arc::new(key.clone())]);
    call.draft.resources.push(key.arn.to_string());
    call.draft.response = json!({ "keyMetadata": metadata });
    call.change(changes).await?;
    Ok(json!({ "KeyMetadata": metadata }))
}

/// Asks the caller's own policies about a new key. Tags need a permission of their own, as on AWS.
pub(crate) fn authorize_create(
    call: &mut Call<'_>,
    tags: &[(String, String)],
    facts: Facts<'_>,
) -> Result<(), ApiError> {
    let request_tags: Vec<_> = tags
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.clone())))
        .collect();
    let facts = Facts {
        request_tags: &request_tags,
        ..facts
    };
    call.authorize_on("kms:CreateKey", "*", &facts)?;
    if tags.is_empty() {
        return Ok(());
    }
    call.authorize_on("kms:TagResource", "*", &facts)
}

/// Reads what kind of key is asked for, and ends the reading of parameters.
fn kind(input: &mut Input) -> Result<Kind, ApiError> {
    let spec = input.one_of("KeySpec", KeySpec::NAMES, KeySpec::from_name)?;
    let old = "CustomerMasterKeySpec";
    let old_spec = input.one_of(old, KeySpec::OLD_NAMES, KeySpec::from_name)?;
    let usage = input.one_of("KeyUsage", KeyUsage::NAMES, KeyUsage::from_name)?;
    let origin = input.one_of("Origin", Origin::NAMES, Origin::from_name)?;
    let multi_region = input.boolean("MultiRegion")?;
    input.finish()?;
    if spec.is_some() && old_spec.is_some() {
        return Err(ApiError::validation(
            "You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.",
        ));
    }
    let spec = spec.or(old_spec).unwrap_or(KeySpec::SymmetricDefault);
    let usage = match usage {
        None if !spec.is_symmetric_encryption() => {
            return Err(ApiError::validation(
                "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
            ));
        }
        other => other.unwrap_or(KeyUsage::EncryptDecrypt),
    };
    if spec.algorithms(usage).is_none() {
        return Err(ApiError::validation(format!(
            "KeyUsage {usage} is not compatible with KeySpec {spec}"
        )));
    }
    let kind = Kind {
        spec,
        usage,
        origin: origin.unwrap_or(Origin::AwsKms),
        multi_region,
    };
    check_supported(&kind, input)?;
    Ok(kind)
}

fn check_supported(kind: &Kind, input: &Input) -> Result<(), ApiError> {
    let unsupported = |what: String| {
        Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!("{what} is not supported by this version of Enclos KMS."),
        ))
    };
    let external = kind.origin == Origin::External;
    if !kind.spec.is_supported() || (external && !kind.spec.is_importable()) {
        return unsupported(format!("KeySpec {} of origin {}", kind.spec, kind.origin));
    }
    if !external && kind.origin != Origin::AwsKms {
        return unsupported(format!("Origin {}", kind.origin));
    }
    let members = ["CustomKeyStoreId", "XksKeyId"];
    match members.into_iter().find(|name| input.is_given(name)) {
        Some(name) => unsupported(name.to_owned()),
        None => Ok(()),
    }
}

/// The policy of a new key: the caller's, checked, or the default.
pub(crate) fn new_policy(
    call: &mut Call<'_>,
    policy: Option<String>,
    bypass: bool,
) -> Result<String, ApiError> {
    match policy {
        Some(text) => {
            super::policies::check_new(call, &text, bypass)?;
            Ok(text)
        }
        None => Ok(policy::default_policy(&call.here.account)),
    }
}

async fn new_key(
    call: &Call<'_>,
    kind: Kind,
    description: String,
    policy: String,
) -> Result<(Key, Vec<Change>), ApiError> {
    let id = uuid().map_err(|error| ApiError::internal(&error))?;
    let row = KeyRow {
        id: match kind.multi_region {
            true => format!("mrk-{}", id.replace('-', "")),
            false => id,
        },
        account: call.here.account.to_string(),
        region: call.here.region.to_string(),
        created_ms: call.now_ms(),
        description,
        enabled: true,
        deletion_ms: None,
        policy: policy.into(),
        spec: kind.spec,
        usage: kind.usage,
        origin: kind.origin,
        primary_region: kind.multi_region.then(|| call.here.region.to_string()),
        rotation_days: None,
        next_rotation_ms: None,
        pending_days: None,
    };
    let mut versions = Vec::new();
    if kind.origin == Origin::AwsKms {
        let material = materials::generate(kind.spec, kind.usage).await?;
        versions.push(materials::version(1, row.created_ms, material)?);
    }
    insertion(call, row, versions)
}

/// A new key and the changes that store it.
pub(crate) fn insertion(
    call: &Call<'_>,
    row: KeyRow,
    versions: Vec<Material>,
) -> Result<(Key, Vec<Change>), ApiError> {
    let mut changes = vec![Change::InsertKey(row.clone())];
    for material in &versions {
        let stored = material.row(&row, &call.service.root)?;
        changes.push(Change::PutMaterial(stored));
    }
    let key = Key::new(row, versions).map_err(|error| ApiError::internal(&error))?;
    Ok((key, changes))
}

/// `DescribeKey`.
pub(crate) fn describe(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.grant_tokens()?;
    input.finish()?;
    let using = Use {
        action: "kms:DescribeKey",
        named: &key_id,
        ..Use::default()
    };
    let key = call.find(&key_id)?;
    using.authorize(call, &key)?;
    Ok(json!({ "KeyMetadata": call.service.keys.metadata(&key) }))
}

/// `ListKeys`.
pub(crate) async fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let (limit, marker) = page(&mut input, 100, 1000)?;
    let owners = input.choices("ResourceOwners", &["SELF", "OTHER_ACCOUNTS_VIA_RAM"])?;
    input.finish()?;
    call.authorize_without_key("kms:ListKeys")?;
    let after = decode_marker(&call.draft.operation, &marker)?;
    // Nothing is shared through Resource Access Manager here.
    if !owners.is_empty() && !owners.iter().any(|owner| owner == "SELF") {
        return Ok(json!({ "Keys": [], "Truncated": false }));
    }
    let (account, region) = (&call.here.account, &call.here.region);
    let mut ids = call
        .service
        .store
        .list_keys(account, region, &after, limit + 1)
        .await
        .map_err(|error| ApiError::store(&error))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let truncated = ids.len() > limit;
    ids.truncate(limit);
    let keys: Vec<Value> = ids
        .iter()
        .map(|id| key_id(id))
        .map(|id| json!({ "KeyId": id, "KeyArn": call.here.key_arn(id) }))
        .collect();
    let last = ids.last().filter(|_| truncated);
    Ok(paged(call, "Keys", keys, last.map(|id| id.as_str())))
}

/// Finds the key that a management operation names and asks its policy. As on AWS it is one of the caller's account, whatever a policy
/// gives to others. The caller holds the management lock.
pub(crate) fn manage(
    call: &mut Call<'_>,
    key_id: &str,
    more: &[(&str, String)],
) -> Result<Arc<Key>, ApiError> {
    let key = call.find_own_key(key_id)?;
    let action = format!("kms:{}", call.draft.operation);
    let facts = Facts {
        more,
        ..Facts::default()
    };
    call.authorize(&key, &action, &facts)?;
    Ok(key)
}

/// `EnableKey` and `DisableKey`.
pub(crate) async fn set_enabled(
    call: &mut Call<'_>,
    mut input: Input,
    enabled: bool,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[])?;
    key.not_pending_deletion()?;
    key.not_pending_import(call.now_ms())?;
    update(call, &key, |row| row.enabled = enabled).await?;
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
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[])?;
    key.not_pending_deletion()?;
    update(call, &key, |row| row.description = description).await?;
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
    let _management = call.manage().await?;
    let condition = "kms:ScheduleKeyDeletionPendingWindowInDays";
    let key = manage(call, &key_id, &[(condition, days.to_string())])?;
    key.not_pending_deletion()?;
    // A primary key waits for the deletion of its replicas first, however long that takes.
    let has_replicas = key.is_primary() && call.service.keys.family(key.id()).len() > 1;
    let deletion_ms = (!has_replicas).then(|| unix_ms(call.now + Duration::days(days)));
    let state = match deletion_ms {
        Some(_) => KeyState::PendingDeletion,
        None => KeyState::PendingReplicaDeletion,
    };
    let mut output = json!({
        "KeyId": &*key.arn,
        "KeyState": state.name(),
        "PendingWindowInDays": days,
    });
    call.draft.response = json!({ "keyId": &*key.arn, "deletionDate": deletion_ms.map(seconds) });
    if let (Some(at), Some(members)) = (deletion_ms, output.as_object_mut()) {
        members.insert("DeletionDate".to_owned(), seconds(at).into());
    }
    let change = |row: &mut KeyRow| {
        row.deletion_ms = deletion_ms;
        row.pending_days = has_replicas.then_some(days);
        row.enabled = false;
    };
    update(call, &key, change).await?;
    Ok(output)
}

/// `CancelKeyDeletion`. The key comes back disabled, as on AWS.
pub(crate) async fn cancel_deletion(
    call: &mut Call<'_>,
    mut input: Input,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[])?;
    if key.not_pending_deletion().is_ok() {
        return Err(ApiError::new(
            ErrorKind::KmsInvalidState,
            format!("{} is not pending deletion.", key.arn),
        ));
    }
    let change = |row: &mut KeyRow| {
        row.deletion_ms = None;
        row.pending_days = None;
        row.enabled = false;
    };
    update(call, &key, change).await?;
    Ok(json!({ "KeyId": &*key.arn }))
}

/// Stores a key's new values. The caller holds the management lock.
pub(crate) async fn update(
    call: &mut Call<'_>,
    key: &Key,
    change: impl FnOnce(&mut KeyRow),
) -> Result<(), ApiError> {
    let mut row = key.row.clone();
    change(&mut row);
    call.change(Change::UpdateKey(row)).await
}

/// The audit row of what happens to a key because its time has come. Nobody calls; the account itself stands for it.
///
/// # Errors
/// As [`Draft::row`].
pub(crate) fn due_event(
    operation: &str,
    key: &Key,
    now: OffsetDateTime,
) -> Result<AuditRow, ApiError> {
    let draft = Draft {
        time: now,
        event_id: uuid().unwrap_or_default(),
        request_id: String::new(),
        operation: operation.to_owned(),
        region: key.row.region.clone(),
        caller: PrincipalArn::root(&key.row.account),
        access_key_id: String::new(),
        session: None,
        principal_id: key.row.account.clone(),
        source: "AWS Internal".to_owned(),
        user_agent: "AWS Internal".to_owned(),
        parameters: Value::Null,
        response: Value::Null,
        resources: vec![key.arn.to_string()],
        used: Vec::new(),
        recipient: None,
        denial: None,
    };
    draft.row(None)
}
