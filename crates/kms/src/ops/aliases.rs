//! Aliases: names that point at keys of their place.
//!
//! As on AWS, creating, moving and deleting an alias needs permission on the alias, which only identity
//! policies give, and on every key concerned.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{decode_marker, page, paged};
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::{Key, alias_missing, seconds};
use crate::service::{Call, Facts};
use crate::store::{AliasRow, Change, key_id};

/// Aliases that belong to AWS's own keys.
const RESERVED: &str = "alias/aws/";

/// AWS's quota of aliases of one key.
const PER_KEY: usize = 50;

/// What AWS says of names without the prefix: CreateAlias explains itself, the other operations do not.
const NEEDS_PREFIX: &str = "Alias must start with the prefix \"alias/\". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html";
const INVALID: &str = "Invalid identifier";

/// `CreateAlias`.
pub(crate) async fn create(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let (name, target) = parameters(&mut input, NEEDS_PREFIX)?;
    let _management = call.manage().await?;
    let key = target_key(call, &target)?;
    authorize(call, &name, &key, "kms:CreateAlias")?;
    let arn = call.here.alias_arn(&name);
    if call.service.keys.alias(&call.here, &name).is_some() {
        return Err(ApiError::new(
            ErrorKind::AlreadyExists,
            format!("An alias with the name {arn} already exists"),
        ));
    }
    key.not_pending_deletion()?;
    check_number(call, &key)?;
    let alias = AliasRow {
        account: call.here.account.to_string(),
        region: call.here.region.to_string(),
        name,
        key_id: key.row.id.clone(),
        created_ms: call.now_ms(),
        updated_ms: call.now_ms(),
    };
    call.draft.resources.push(arn);
    call.change(Change::InsertAlias(alias)).await?;
    Ok(Value::Null)
}

/// `UpdateAlias`.
pub(crate) async fn update(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let (name, target) = parameters(&mut input, INVALID)?;
    let _management = call.manage().await?;
    let key = target_key(call, &target)?;
    let (alias, old_key) = existing(call, &name)?;
    authorize(call, &name, &old_key, "kms:UpdateAlias")?;
    authorize(call, &name, &key, "kms:UpdateAlias")?;
    check_same_kind(&name, &old_key, &key)?;
    key.not_pending_deletion()?;
    if key.row.id != old_key.row.id {
        check_number(call, &key)?;
    }
    let alias = AliasRow {
        key_id: key.row.id.clone(),
        updated_ms: call.now_ms(),
        ..AliasRow::clone(&alias)
    };
    call.draft.resources.push(call.here.alias_arn(&name));
    call.change(Change::UpdateAlias(alias)).await?;
    Ok(Value::Null)
}

/// Refuses a key one alias more than AWS lets it have.
fn check_number(call: &Call<'_>, key: &Key) -> Result<(), ApiError> {
    if call.service.keys.alias_names(&key.row.id).len() < PER_KEY {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::LimitExceeded,
        format!("{} has {PER_KEY} aliases, no more are allowed.", key.arn),
    ))
}

/// `DeleteAlias`.
pub(crate) async fn delete(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let name = alias_name(&mut input)?;
    input.finish()?;
    check_name(&name, INVALID)?;
    let _management = call.manage().await?;
    let (_, key) = existing(call, &name)?;
    authorize(call, &name, &key, "kms:DeleteAlias")?;
    call.draft
        .resources
        .extend([call.here.alias_arn(&name), key.arn.to_string()]);
    let (account, region) = (call.here.account.to_string(), call.here.region.to_string());
    call.change(Change::DeleteAlias(account, region, name))
        .await?;
    Ok(Value::Null)
}

/// `ListAliases`.
pub(crate) async fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.key_id("KeyId")?;
    let (limit, marker) = page(&mut input, 50, 100)?;
    input.finish()?;
    call.authorize_without_key("kms:ListAliases")?;
    let after = decode_marker(&call.draft.operation, &marker)?;
    let key = key_id.map(|id| target_key(call, &id)).transpose()?;
    let key_id = key.as_ref().map(|key| key.row.id.as_str());
    let (account, region) = (&call.here.account, &call.here.region);
    let mut rows = call
        .service
        .store
        .list_aliases(account, region, key_id, &after, limit + 1)
        .await
        .map_err(|error| ApiError::store(&error))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let truncated = rows.len() > limit;
    rows.truncate(limit);
    let aliases: Vec<Value> = rows.iter().map(|row| entry(call, row)).collect();
    let last = rows.last().filter(|_| truncated);
    Ok(paged(
        call,
        "Aliases",
        aliases,
        last.map(|row| row.name.as_str()),
    ))
}

fn entry(call: &Call<'_>, row: &AliasRow) -> Value {
    json!({
        "AliasName": row.name,
        "AliasArn": call.here.alias_arn(&row.name),
        "TargetKeyId": key_id(&row.key_id),
        "CreationDate": seconds(row.created_ms),
        "LastUpdatedDate": seconds(row.updated_ms),
    })
}

fn parameters(input: &mut Input, no_prefix: &str) -> Result<(String, String), ApiError> {
    let name = alias_name(input)?;
    let target = input.required_key_id("TargetKeyId")?;
    input.finish()?;
    check_name(&name, no_prefix)?;
    if target.starts_with("alias/") || target.contains(":alias/") {
        return Err(ApiError::validation(
            "Aliases must refer to keys. Not aliases",
        ));
    }
    Ok((name, target))
}

fn alias_name(input: &mut Input) -> Result<String, ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":/_-".contains(&b);
    let matches = |text: &str| !text.is_empty() && text.bytes().all(allowed);
    let name = input.patterned_string("AliasName", (1, 256), "^[a-zA-Z0-9:/_-]+$", matches)?;
    Ok(input.require("AliasName", name))
}

fn check_name(name: &str, no_prefix: &str) -> Result<(), ApiError> {
    match name.strip_prefix("alias/") {
        None => Err(ApiError::validation(no_prefix)),
        Some("") => Err(ApiError::validation(INVALID)),
        Some(_) if name.starts_with(RESERVED) => Err(ApiError::bare(ErrorKind::NotAuthorized)),
        Some(rest) if rest.contains(':') => Err(ApiError::validation(format!(
            "{name} contains invalid characters for an alias"
        ))),
        Some(_) => Ok(()),
    }
}

/// Whoever uses an alias goes on with the same algorithms after it was moved.
fn check_same_kind(name: &str, old: &Key, new: &Key) -> Result<(), ApiError> {
    let key_type = |key: &Key| match key.row.spec {
        spec if spec.is_symmetric_encryption() => "symmetric",
        spec if spec.is_asymmetric() => "asymmetric",
        _ => "HMAC",
    };
    let refused = |what: &str, old: &str, new: &str| {
        ApiError::validation(format!(
            "Alias {name} cannot be changed from a CMK with key {what} {old} to a CMK with key {what} {new}. The key {what} of the current CMK and the new CMK must be the same."
        ))
    };
    if old.row.usage != new.row.usage {
        let (old, new) = (old.row.usage.name(), new.row.usage.name());
        return Err(refused("usage", old, new));
    }
    if key_type(old) != key_type(new) {
        return Err(refused("type", key_type(old), key_type(new)));
    }
    Ok(())
}

fn target_key(call: &mut Call<'_>, target: &str) -> Result<Arc<Key>, ApiError> {
    let key = call.find(target)?;
    call.own(key)
}

fn existing(call: &Call<'_>, name: &str) -> Result<(Arc<AliasRow>, Arc<Key>), ApiError> {
    let alias = call
        .service
        .keys
        .alias(&call.here, name)
        .ok_or_else(|| alias_missing(&call.here, name))?;
    let key = call
        .service
        .keys
        .get(&alias.key_id)
        .ok_or_else(|| alias_missing(&call.here, name))?;
    Ok((alias, key))
}

/// On the alias by the caller's own policies, on the key by its policy too.
fn authorize(call: &mut Call<'_>, name: &str, key: &Key, action: &str) -> Result<(), ApiError> {
    let arn = call.here.alias_arn(name);
    call.authorize_on(action, &arn, &Facts::default())?;
    call.authorize(key, action, &Facts::default())
}
