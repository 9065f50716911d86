//! Rotation: new material for a key, on demand and when its period is over. Old material goes on decrypting.

use std::sync::Arc;

use serde_json::{Value, json};

use super::keys::{manage, update};
use super::{decode_marker, invalid_marker, materials, page, paged};
use crate::error::{ApiError, ErrorKind};
use crate::input::Input;
use crate::keyring::{Key, KeyState, Material, expiration_model, seconds};
use crate::service::{Call, Facts, Service};
use crate::spec::{KeyUsage, Origin};
use crate::store::Change;

/// AWS's period of automatic rotation in days: least, most, default.
const PERIOD: (i64, i64, i64) = (90, 2560, 365);

/// AWS's limit on on-demand rotations of one key.
const ON_DEMAND_MAX: usize = 25;

const DAY_MS: i64 = 86_400_000;

/// What made a material current.
const ON_DEMAND: &str = "ON_DEMAND";
pub(crate) const AUTOMATIC: &str = "AUTOMATIC";

/// `EnableKeyRotation`.
pub(crate) async fn enable(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let (least, most, default) = PERIOD;
    let days = input.integer("RotationPeriodInDays", least, most)?;
    input.finish()?;
    let _management = call.manage().await?;
    let days_shown = days.unwrap_or(default).to_string();
    let key = manage(call, &key_id, &[("kms:RotationPeriodInDays", days_shown)])?;
    check_automatic(&key)?;
    key.usable(call.now_ms())?;
    check_primary(&key)?;
    let now_ms = call.now_ms();
    let days = days.or(key.row.rotation_days).unwrap_or(default);
    let change = |row: &mut crate::store::KeyRow| {
        // A new period counts from where the old one did: the last rotation, or when rotation was switched on.
        let since = match (row.next_rotation_ms, row.rotation_days) {
            (Some(next), Some(old)) => next - old * DAY_MS,
            _ => now_ms,
        };
        row.rotation_days = Some(days);
        row.next_rotation_ms = Some((since + days * DAY_MS).max(now_ms));
    };
    update(call, &key, change).await?;
    Ok(Value::Null)
}

/// `DisableKeyRotation`.
pub(crate) async fn disable(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[])?;
    check_automatic(&key)?;
    key.usable(call.now_ms())?;
    check_primary(&key)?;
    let change = |row: &mut crate::store::KeyRow| {
        row.rotation_days = None;
        row.next_rotation_ms = None;
    };
    update(call, &key, change).await?;
    Ok(Value::Null)
}

/// `GetKeyRotationStatus`: of keys that cannot rotate too. AWS's documentation shows a key id, AWS answers with the ARN.
pub(crate) fn status(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    // The one operation on keys themselves that AWS has for keys of other accounts too.
    let key = call.find_by_key_id(&key_id)?;
    call.authorize(&key, "kms:GetKeyRotationStatus", &Facts::default())?;
    let primary = call.service.keys.primary(&key);
    let waits = key.not_pending_deletion().is_err();
    let days = primary.row.rotation_days.filter(|_| !waits);
    let mut output = json!({ "KeyId": &*key.arn, "KeyRotationEnabled": days.is_some() });
    if let (Some(days), Some(members)) = (days, output.as_object_mut()) {
        members.insert("RotationPeriodInDays".to_owned(), days.into());
        let next = primary.row.next_rotation_ms.map(seconds);
        members.insert("NextRotationDate".to_owned(), next.into());
    }
    Ok(output)
}

/// `RotateKeyOnDemand`.
pub(crate) async fn rotate_on_demand(
    call: &mut Call<'_>,
    mut input: Input,
) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    input.finish()?;
    let _management = call.manage().await?;
    let key = manage(call, &key_id, &[])?;
    // Here AWS looks at the state before it looks at the kind.
    key.usable(call.now_ms())?;
    check_rotates(&key)?;
    check_primary(&key)?;
    let on_demand = |material: &&Material| {
        let rotation = material.rotation.as_ref();
        rotation.is_some_and(|(kind, _)| **kind == *ON_DEMAND)
    };
    if key.materials().iter().filter(on_demand).count() >= ON_DEMAND_MAX {
        return Err(ApiError::new(
            ErrorKind::LimitExceeded,
            format!(
                "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: {}",
                key.arn
            ),
        ));
    }
    let changes = rotated(call.service, &key, ON_DEMAND, call.now_ms()).await?;
    call.change(changes).await?;
    Ok(json!({ "KeyId": &*key.arn }))
}

/// `ListKeyRotations`.
pub(crate) fn list(call: &mut Call<'_>, mut input: Input) -> Result<Value, ApiError> {
    let key_id = input.required_key_id("KeyId")?;
    let which = input.choice(
        "IncludeKeyMaterial",
        &["ALL_KEY_MATERIAL", "ROTATIONS_ONLY"],
    )?;
    let (limit, marker) = page(&mut input, 100, 1000)?;
    input.finish()?;
    let key = manage(call, &key_id, &[])?;
    check_rotates(&key)?;
    let after = match marker.as_str() {
        "" => 0,
        marker => decode_marker(&call.draft.operation, marker)?
            .parse()
            .map_err(|_| invalid_marker(marker))?,
    };
    let all = which.as_deref() == Some("ALL_KEY_MATERIAL");
    let mut listed: Vec<&Material> = key
        .materials()
        .iter()
        .filter(|material| all || material.rotation.is_some())
        .filter(|material| material.version > after)
        .collect();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let truncated = listed.len() > limit;
    listed.truncate(limit);
    let entries: Vec<Value> = listed
        .iter()
        .map(|material| entry(call.service, &key, material))
        .collect();
    let last = listed.last().filter(|_| truncated);
    let last = last.map(|material| material.version.to_string());
    Ok(paged(call, "Rotations", entries, last.as_deref()))
}

fn entry(service: &Service, key: &Arc<Key>, material: &Material) -> Value {
    let current = key
        .current()
        .is_some_and(|current| current.id == material.id);
    let state = match (material.pending, current) {
        (true, _) if !everywhere(service, key, material) => {
            "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
        }
        (true, _) => "PENDING_ROTATION",
        (false, true) => "CURRENT",
        (false, false) => "NON_CURRENT",
    };
    let mut entry = json!({
        "KeyId": key.id(),
        "KeyMaterialId": material.id.to_string(),
        "KeyMaterialState": state,
    });
    let Some(members) = entry.as_object_mut() else {
        return entry;
    };
    let mut add = |name: &str, value: Value| members.insert(name.to_owned(), value);
    if let Some((kind, at)) = &material.rotation {
        add("RotationType", (&**kind).into());
        add("RotationDate", seconds(*at).into());
    }
    if key.row.origin == Origin::External {
        let imported = material.secret.is_some();
        let state = if imported {
            "IMPORTED"
        } else {
            "PENDING_IMPORT"
        };
        add("ImportState", state.into());
        if imported {
            add(
                "ExpirationModel",
                expiration_model(material.valid_to_ms).into(),
            );
        }
        if let Some(at) = material.valid_to_ms {
            add("ValidTo", seconds(at).into());
        }
        if let Some(text) = &material.description {
            add("KeyMaterialDescription", (&**text).into());
        }
    }
    entry
}

/// Whether all regions of a key have imported this material.
fn everywhere(service: &Service, key: &Arc<Key>, material: &Material) -> bool {
    let has = |member: &Arc<Key>| {
        let known = member.material(material.id);
        known.is_some_and(|known| known.secret.is_some())
    };
    let family = service.keys.family(key.id());
    family.iter().all(has)
}

/// The changes that give a key and its replicas new current material.
pub(crate) async fn rotated(
    service: &Service,
    key: &Arc<Key>,
    kind: &str,
    now_ms: i64,
) -> Result<Vec<Change>, ApiError> {
    let material = match key.row.origin {
        Origin::External => imported(service, key)?,
        _ => {
            let secret = materials::generate(key.row.spec, KeyUsage::EncryptDecrypt).await?;
            materials::version(0, now_ms, secret)?
        }
    };
    let mut members = service.keys.family(key.id());
    if members.is_empty() {
        members.push(Arc::clone(key));
    }
    let mut changes = Vec::new();
    for member in members {
        let known = member.material(material.id).map(|known| known.version);
        let own = Material {
            version: known.unwrap_or_else(|| materials::next_version(&member)),
            pending: false,
            rotation: Some((kind.into(), now_ms)),
            ..member.material(material.id).unwrap_or(&material).clone()
        };
        changes.push(materials::put(service, &member, own)?);
    }
    Ok(changes)
}

/// The imported material that waits for a rotation.
fn imported(service: &Service, key: &Arc<Key>) -> Result<Material, ApiError> {
    let pending = key
        .pending()
        .filter(|material| !key.is_multi_region() || everywhere(service, key, material));
    pending.cloned().ok_or_else(|| {
        ApiError::new(
            ErrorKind::KmsInvalidState,
            format!(
                "No available key material pending rotation for the key: {}.",
                key.arn
            ),
        )
    })
}

/// Whether a key whose period is over rotates now: not while it is disabled or waits for its deletion.
pub(crate) fn is_due(key: &Key, now_ms: i64) -> bool {
    key.state() == KeyState::Enabled
        && key.row.rotation_days.is_some()
        && key.row.next_rotation_ms.is_some_and(|at| at <= now_ms)
}

/// When a key that rotates now rotates next.
pub(crate) fn next_ms(key: &Key, now_ms: i64) -> Option<i64> {
    key.row.rotation_days.map(|days| now_ms + days * DAY_MS)
}

/// Only keys for symmetric encryption rotate.
fn check_rotates(key: &Key) -> Result<(), ApiError> {
    if key.row.spec.is_symmetric_encryption() {
        return Ok(());
    }
    Err(ApiError::bare(ErrorKind::UnsupportedOperation))
}

/// Only material that this server makes rotates by itself.
fn check_automatic(key: &Key) -> Result<(), ApiError> {
    check_rotates(key)?;
    if key.row.origin == Origin::AwsKms {
        return Ok(());
    }
    Err(wrong_origin(key))
}

/// AWS's refusal of operations that are for keys of the other origin.
pub(crate) fn wrong_origin(key: &Key) -> ApiError {
    ApiError::new(
        ErrorKind::UnsupportedOperation,
        format!(
            "{} origin is {} which is not valid for this operation.",
            key.arn, key.row.origin
        ),
    )
}

/// Of multi-Region keys, the primary decides for all.
fn check_primary(key: &Key) -> Result<(), ApiError> {
    match key.is_multi_region() {
        true => super::regions::check_primary(key),
        false => Ok(()),
    }
}
