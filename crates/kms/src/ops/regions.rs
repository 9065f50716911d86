//! Multi-Region keys: one key id, one material, a key of its own in every region.

use std::sync::Arc;

use serde_json::{Value, json};

use super::keys::{authorize_create, insertion, manage, new_policy};
use super::policies::policy_parameter;
use crate::arn::Place;
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::{Key, Material};
use crate::service::{Call, Facts};
use crate::spec::Origin;
use crate::store::{Change, KeyRow};
use crate::tags::{self, Tags};

/// AWS's pattern of a region.
const REGION_PATTERN: &str = "^([a-z]+-){2,3}\\d+$";

/// `ReplicateKey`.
pub(crate) async fn replicate(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let region = region_parameter(&mut input, "ReplicaRegion")?;
    let policy = policy_parameter(&mut input)?;
    let bypass = input.boolean("BypassPolicyLockoutSafetyCheck")?;
    let description = input.sized_string("Description", 0, 8192)?;
    let tags = tags::parameter(&mut input)?.unwrap_or_default();
    input.finish()?;
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[("kms:ReplicaRegion", region.clone())])?;
    authorize_replica(call, &key, &region, &tags, bypass)?;
    let tags = tags::merge(&Tags::new(), &tags)?;
    check_primary(&key)?;
    key.usable(call.now_ms())
        .or_else(|error| match key.row.origin {
            // A key without its material may be replicated; a replica gets none anyway.
            Origin::External => key.not_pending_deletion(),
            _ => Err(error),
        })?;
    let place = Place::new(Arc::clone(&key.place.account), region.as_str());
    if place.partition() != key.place.partition() {
        return Err(ApiError::validation(format!(
            "{region} is not a region of partition {}.",
            key.place.partition()
        )));
    }
    if let Some(existing) = call.service.keys.in_region(key.id(), &region) {
        return Err(ApiError::new(
            ErrorKind::AlreadyExists,
            format!("{} already exists.", existing.arn),
        ));
    }
    let row = KeyRow {
        id: format!("{}@{region}", key.id()),
        region,
        created_ms: call.now_ms(),
        description: description.unwrap_or_default(),
        enabled: true,
        deletion_ms: None,
        policy: new_policy(call, policy, bypass)?.into(),
        rotation_days: None,
        next_rotation_ms: None,
        pending_days: None,
        ..key.row.clone()
    };
    let versions = match key.row.origin {
        Origin::External => Vec::new(),
        _ => key.materials().to_vec(),
    };
    insert_replica(call, row, versions, tags).await
}

/// Asks the caller's own policies about a new key in the replica's region.
fn authorize_replica(
    call: &mut Call<'_>,
    key: &Key,
    region: &str,
    tags: &[(String, String)],
    bypass: bool,
) -> Result<(), ApiError> {
    let more = [
        ("kms:BypassPolicyLockoutSafetyCheck", bypass.to_string()),
        ("kms:KeySpec", key.row.spec.to_string()),
        ("kms:KeyUsage", key.row.usage.to_string()),
        ("kms:KeyOrigin", key.row.origin.to_string()),
        ("kms:MultiRegion", true.to_string()),
    ];
    let facts = Facts {
        region: Some(region),
        more: &more,
        ..Facts::default()
    };
    authorize_create(call, tags, facts)
}

async fn insert_replica(
    call: &mut Call<'_>,
    row: KeyRow,
    versions: Vec<Material>,
    tags: Tags,
) -> Result<Value, ApiError> {
    let (replica, mut changes) = insertion(call, row, versions)?;
    let shown: Vec<Value> = tags
        .iter()
        .map(|(name, value)| json!({ "TagKey": name, "TagValue": value }))
        .collect();
    if !tags.is_empty() {
        changes.push(Change::SetTags(replica.row.id.clone(), tags));
    }
    call.draft.resources.push(replica.arn.to_string());
    call.change(changes).await?;
    // A node that cannot look again at once still knows what it has made.
    let replica = Arc::new(replica);
    let mut family = call.service.keys.family(replica.id());
    if !family.iter().any(|key| key.row.id == replica.row.id) {
        family.push(Arc::clone(&replica));
    }
    let mut output = json!({
        "ReplicaKeyMetadata": replica.metadata(&family),
        "ReplicaPolicy": &*replica.row.policy,
    });
    // AWS says nothing of tags that were not asked for.
    if let (false, Some(members)) = (shown.is_empty(), output.as_object_mut()) {
        members.insert("ReplicaTags".to_owned(), shown.into());
    }
    Ok(output)
}

/// `UpdatePrimaryRegion`.
pub(crate) async fn update_primary(
    call: &mut Call<'_>,
    mut input: Input,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let region = region_parameter(&mut input, "PrimaryRegion")?;
    input.finish()?;
    let _management = call.manage().await?;
    let more = [("kms:PrimaryRegion", region.clone())];
    let key = manage(call, &key_id, &more)?;
    check_primary(&key)?;
    key.usable(call.now_ms())?;
    if *key.place.region == *region {
        return Err(ApiError::new(
            ErrorKind::UnsupportedOperation,
            format!("{} is the multi-region primary key already.", key.arn),
        ));
    }
    let replica = call.service.keys.in_region(key.id(), &region);
    let replica = replica.ok_or_else(|| {
        let place = Place::new(Arc::clone(&key.place.account), region.as_str());
        ApiError::not_found(format!("Key '{}' does not exist", place.key_arn(key.id())))
    })?;
    // The new primary's policy has its say too.
    call.draft.resources.push(replica.arn.to_string());
    let facts = Facts {
        more: &more,
        ..Facts::default()
    };
    call.authorize(&replica, "kms:UpdatePrimaryRegion", &facts)?;
    replica.usable(call.now_ms())?;
    let mut changes = Vec::new();
    for member in call.service.keys.family(key.id()) {
        let becomes_primary = member.row.id == replica.row.id;
        // What the primary decides for all goes with the office.
        let row = KeyRow {
            primary_region: Some(region.clone()),
            rotation_days: key.row.rotation_days.filter(|_| becomes_primary),
            next_rotation_ms: key.row.next_rotation_ms.filter(|_| becomes_primary),
            ..member.row.clone()
        };
        changes.push(Change::UpdateKey(row));
    }
    call.change(changes).await?;
    Ok(Value::Null)
}

fn region_parameter(input: &mut Input, name: &str) -> Result<String, ApiError> {
    let region = input.patterned_string(name, (1, 32), REGION_PATTERN, is_region)?;
    Ok(input.require(name, region))
}

/// `REGION_PATTERN`.
fn is_region(text: &str) -> bool {
    let mut parts: Vec<&str> = text.split('-').collect();
    let number = parts.pop().unwrap_or_default();
    let word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    (2..=3).contains(&parts.len())
        && parts.iter().all(word)
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
}

/// Refuses replicas what only their primary has.
pub(crate) fn check_primary(key: &Key) -> Result<(), ApiError> {
    if key.is_primary() {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::UnsupportedOperation,
        format!("{} is not a multi-region primary key.", key.arn),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_their_form() {
        for (text, valid) in [
            ("us-east-1", true),
            ("us-gov-west-1", true),
            ("ap-southeast-12", true),
            ("us-east", false),
            ("us-1", false),
            ("a-b-c-d-1", false),
            ("US-east-1", false),
            ("us--1", false),
            ("", false),
            ("us-east-1 ", false),
        ] {
            assert_eq!(is_region(text), valid, "{text}");
        }
    }
}
