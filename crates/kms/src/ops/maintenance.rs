//! What time brings: keys are deleted, imported material expires, keys rotate. The caller holds the management lock.

use time::OffsetDateTime;

use super::keys::due_event;
use super::{import, rotation};
use crate::audit::unix_ms;
use crate::error::ApiError;
use crate::keyring::Key;
use crate::service::Service;
use crate::store::{AuditRow, Change};
use crate::tags::Tags;

/// Deletes keys whose waiting period is over. With the last replica goes what its primary waited for.
pub(crate) async fn delete_due(service: &Service, now: OffsetDateTime) -> Result<(), ApiError> {
    let now_ms = unix_ms(now);
    let due = |key: &Key| key.row.deletion_ms.is_some_and(|at| at <= now_ms);
    for key in service.keys.select(due) {
        let mut changes = vec![Change::DeleteKey(key.row.id.clone())];
        let family = service.keys.family(key.id());
        let mut others = family.iter().filter(|other| other.row.id != key.row.id);
        let primary = match (others.next(), others.next()) {
            (Some(primary), None) => primary.row.pending_days.map(|days| (primary, days)),
            _ => None,
        };
        let mut started = None;
        if let Some((primary, days)) = primary {
            let mut row = primary.row.clone();
            row.pending_days = None;
            row.deletion_ms = Some(unix_ms(now + time::Duration::days(days)));
            changes.push(Change::UpdateKey(row.clone()));
            let changed = primary.with_row(row);
            started = Some(changed.map_err(|error| ApiError::internal(&error))?);
        }
        store(service, changes, due_event("DeleteKey", &key, now)).await?;
        service.keys.remove(&key);
        service.grants.remove_key(&key.row.id);
        service.tags.put(&key.row.id, Tags::new());
        started.into_iter().for_each(|key| service.keys.put(key));
        tracing::info!(key = %key.arn, "key deleted, its waiting period is over");
    }
    Ok(())
}

/// Forgets imported material that has expired.
pub(crate) async fn expire_due(service: &Service, now: OffsetDateTime) -> Result<(), ApiError> {
    let now_ms = unix_ms(now);
    let due = |key: &Key| import::first_expired(key, now_ms).is_some();
    for key in service.keys.select(due) {
        let mut key = Key::clone(&key);
        let mut changes = Vec::new();
        while let Some(material) = import::first_expired(&key, now_ms).cloned() {
            let change;
            (key, change) = import::forgotten(service, &key, material)?;
            changes.push(change);
        }
        let event = due_event("DeleteExpiredKeyMaterial", &key, now);
        store(service, changes, event).await?;
        tracing::info!(key = %key.arn, "imported key material has expired and was deleted");
        service.keys.put(key);
    }
    Ok(())
}

/// Rotates keys whose period is over.
pub(crate) async fn rotate_due(service: &Service, now: OffsetDateTime) -> Result<(), ApiError> {
    let now_ms = unix_ms(now);
    for key in service.keys.select(|key| rotation::is_due(key, now_ms)) {
        let (keys, mut changes) =
            rotation::rotated(service, &key, rotation::AUTOMATIC, now_ms).await?;
        let mut row = key.row.clone();
        row.next_rotation_ms = rotation::next_ms(&key, now_ms);
        changes.push(Change::UpdateKey(row.clone()));
        store(service, changes, due_event("RotateKey", &key, now)).await?;
        for member in keys {
            let member = match member.row.id == row.id {
                true => member
                    .with_row(row.clone())
                    .map_err(|error| ApiError::internal(&error))?,
                false => member,
            };
            service.keys.put(member);
        }
        tracing::info!(key = %key.arn, "key rotated, its period is over");
    }
    Ok(())
}

async fn store(service: &Service, changes: Vec<Change>, audit: AuditRow) -> Result<(), ApiError> {
    let stored = service.store.change(changes, audit).await;
    stored.map_err(|error| ApiError::internal(&error))
}
