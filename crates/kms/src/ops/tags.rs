//! Tags: set, remove, list.

use serde_json::{Value, json};

use super::{decode_marker, page, paged};
use crate::error::ApiError;
use crate::input::Input;
use crate::keyring::Key;
use crate::service::{Call, Facts};
use crate::store::Change;
use crate::tags::{self, Tags};

/// `TagResource`.
pub(crate) async fn tag(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let given = tags::parameter(&mut input)?;
    let given = input.require("Tags", given);
    input.finish()?;
    let _management = call.manage().await?;
    let key = call.find_own_key(&key_id)?;
    let asked: Vec<_> = given
        .iter()
        .map(|(k, v)| (k.clone(), Some(v.clone())))
        .collect();
    authorize(call, &key, "kms:TagResource", &asked)?;
    let tags = tags::merge(&call.service.tags.of(&key.row.id), &given)?;
    key.not_pending_deletion()?;
    put(call, &key, tags).await
}

/// `UntagResource`. A tag that is not there is no error.
pub(crate) async fn untag(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let keys = tags::keys_parameter(&mut input)?;
    input.finish()?;
    let _management = call.manage().await?;
    let key = call.find_own_key(&key_id)?;
    let asked: Vec<_> = keys.iter().map(|key| (key.clone(), None)).collect();
    authorize(call, &key, "kms:UntagResource", &asked)?;
    key.not_pending_deletion()?;
    let mut tags = Tags::clone(&call.service.tags.of(&key.row.id));
    tags.retain(|name, _| !keys.contains(name));
    put(call, &key, tags).await
}

async fn put(call: &mut Call<'_>, key: &Key, tags: Tags) -> Result<Value, ApiError> {
    let change = Change::SetTags(key.row.id.clone(), tags);
    call.change(change).await?;
    Ok(Value::Null)
}

fn authorize(
    call: &mut Call<'_>,
    key: &Key,
    action: &str,
    asked: &[(String, Option<String>)],
) -> Result<(), ApiError> {
    let facts = Facts {
        request_tags: asked,
        ..Facts::default()
    };
    call.authorize(key, action, &facts)
}

/// `ListResourceTags`.
pub(crate) fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let (limit, marker) = page(&mut input, 50, 1000)?;
    input.finish()?;
    let key = call.find_own_key(&key_id)?;
    call.authorize(&key, "kms:ListResourceTags", &Facts::default())?;
    let after = decode_marker(&call.draft.operation, &marker)?;
    let tags = call.service.tags.of(&key.row.id);
    // A tag's key has at least one character, so the empty marker is before all.
    let rest: Vec<_> = tags.iter().filter(|(name, _)| **name > after).collect();
    let limit = usize::try_from(limit).unwrap_or_default();
    let shown = rest.get(..limit.min(rest.len())).unwrap_or_default();
    let truncated = shown.len() < rest.len();
    let entries: Vec<Value> = shown
        .iter()
        .map(|(name, value)| json!({ "TagKey": name, "TagValue": value }))
        .collect();
    let last = shown.last().filter(|_| truncated);
    Ok(paged(
        call,
        "Tags",
        entries,
        last.map(|(name, _)| name.as_str()),
    ))
}
