//! What time brings: keys are deleted, imported material expires, keys rotate. The caller holds the management lock.

use time::OffsetDateTime;

use super::keys::due_event;
use super::{import, rotation};
use crate::audit::unix_ms;
use crate::error::ApiError;
use crate::keyring::Key;
use crate::service::Service;
use crate::store::{AuditRow, Change, StoreError};

/// Deletes keys whose waiting period is over. With the last replica goes what its primary waited for.
pub(crate) async fn delete_due(
    service: &Service,
    now: OffsetDateTime,
    base: i64,
) -> Result<(), ApiError> {
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
        if let Some((primary, days)) = primary {
            let mut row = primary.row.clone();
            row.pending_days = None;
            row.deletion_ms = Some(unix_ms(now + time::Duration::days(days)));
            changes.push(Change::UpdateKey(row));
        }
        if store(service, changes, due_event("DeleteKey", &key, now)?, base).await? {
            tracing::info!(key = %key.arn, "key deleted, its waiting period is over");
        }
    }
    Ok(())
}

/// Forgets imported material that has expired.
pub(crate) async fn expire_due(
    service: &Service,
    now: OffsetDateTime,
    base: i64,
) -> Result<(), ApiError> {
    let now_ms = unix_ms(now);
    let due = |key: &Key| import::expired(key, now_ms).next().is_some();
    for key in service.keys.select(due) {
        let expired = import::expired(&key, now_ms).cloned();
        let changes = expired.map(|material| import::forgotten(service, &key, material));
        let changes = changes.collect::<Result<Vec<_>, _>>()?;
        let event = due_event("DeleteExpiredKeyMaterial", &key, now)?;
        if store(service, changes, event, base).await? {
            tracing::info!(key = %key.arn, "imported key material has expired and was deleted");
        }
    }
    Ok(())
}

/// Rotates keys whose period is over.
pub(crate) async fn rotate_due(
    service: &Service,
    now: OffsetDateTime,
    base: i64,
) -> Result<(), ApiError> {
    let now_ms = unix_ms(now);
    for key in service.keys.select(|key| rotation::is_due(key, now_ms)) {
        let mut changes = rotation::rotated(service, &key, rotation::AUTOMATIC, now_ms).await?;
        let mut row = key.row.clone();
        row.next_rotation_ms = rotation::next_ms(&key, now_ms);
        changes.push(Change::UpdateKey(row));
        if store(service, changes, due_event("RotateKey", &key, now)?, base).await? {
            tracing::info!(key = %key.arn, "key rotated, its period is over");
        }
    }
    Ok(())
}

/// Makes changes that are due; whether they were still to be made. Where nodes share the database, all of them try.
async fn store(
    service: &Service,
    changes: Vec<Change>,
    audit: AuditRow,
    base: i64,
) -> Result<bool, ApiError> {
    match service.change(changes, audit, Some(base)).await {
        Ok(()) => Ok(true),
        Err(StoreError::Raced | StoreError::Missing) if service.store.is_shared() => Ok(false),
        Err(error) => Err(ApiError::store(&error)),
    }
}
