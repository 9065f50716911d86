//! Changes as statements. Each says what it touched, so that memories can follow: the id of a key's row, or that and the
//! id of one of its grants (a key can have thousands, which then are not all read again).

use super::database::Value;
use super::root_versions::refuse_sealed;
use super::rows::{ALIAS, AliasRow, KEY, KeyRow, MATERIAL, MaterialRow};
use super::{Change, Connection, GrantRow, StoreError, Tags};

/// Makes changes, in their order; what they touched.
pub(super) async fn apply_all(
    connection: &mut Connection,
    changes: &[Change],
) -> Result<Vec<String>, StoreError> {
    let mut touched = Vec::with_capacity(changes.len());
    for change in changes {
        touched.extend(apply(connection, change).await?);
    }
    touched.sort();
    touched.dedup();
    Ok(touched)
}

async fn apply(connection: &mut Connection, change: &Change) -> Result<Vec<String>, StoreError> {
    let touched = match change {
        Change::InsertKey(key) => {
            insert_key(connection, key).await?;
            &key.id
        }
        Change::UpdateKey(key) => {
            update_key(connection, key).await?;
            &key.id
        }
        Change::PutMaterial(material) => {
            put_material(connection, material).await?;
            &material.key_id
        }
        Change::DeleteMaterial(key_id, version) => {
            let sql = "DELETE FROM materials WHERE key_id = $1 AND version = $2";
            one_row(connection, sql, &[key_id.into(), (*version).into()]).await?;
            key_id
        }
        Change::DeleteKey(id) => {
            one_row(connection, "DELETE FROM keys WHERE id = $1", &[id.into()]).await?;
            id
        }
        Change::InsertAlias(alias) => {
            insert_alias(connection, alias).await?;
            &alias.key_id
        }
        Change::UpdateAlias(alias) => return update_alias(connection, alias).await,
        Change::DeleteAlias(account, region, name) => {
            let sql = "DELETE FROM aliases WHERE account = $1 AND region = $2 AND name = $3 RETURNING key_id";
            let values = [account.into(), region.into(), name.into()];
            return one_key(connection, sql, &values).await;
        }
        Change::InsertGrant(grant) => {
            insert_grant(connection, grant).await?;
            return Ok(vec![grant_subject(&grant.key_id, &grant.id)]);
        }
        Change::DeleteGrant(id) => {
            let sql = "DELETE FROM grants WHERE id = $1 RETURNING key_id";
            let keys = one_key(connection, sql, &[id.into()]).await?;
            return Ok(keys.iter().map(|key| grant_subject(key, id)).collect());
        }
        Change::SetTags(key_id, tags) => {
            set_tags(connection, key_id, tags).await?;
            key_id
        }
    };
    Ok(vec![touched.clone()])
}

/// What a change of a grant touches. Neither id holds the separator.
fn grant_subject(key_id: &str, id: &str) -> String {
    format!("{key_id}#{id}")
}

/// The grant that was touched, if it was one.
pub(super) fn touched_grant(subject: &str) -> Option<(&str, &str)> {
    subject.split_once('#')
}

/// The key id that a key, its replicas and all their grants share.
pub(super) fn family(subject: &str) -> &str {
    subject.split(['@', '#']).next().unwrap_or_default()
}

async fn insert_key(connection: &mut Connection, key: &KeyRow) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO keys ({KEY}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
    );
    let values = [
        (&key.id).into(),
        (&key.account).into(),
        (&key.region).into(),
        key.created_ms.into(),
        (&key.description).into(),
        key.enabled.into(),
        key.deletion_ms.into(),
        (&*key.policy).into(),
        key.spec.name().into(),
        key.usage.name().into(),
        key.origin.name().into(),
        (&key.primary_region).into(),
        key.rotation_days.into(),
        key.next_rotation_ms.into(),
        key.pending_days.into(),
    ];
    one_row(connection, &sql, &values).await
}

async fn update_key(connection: &mut Connection, key: &KeyRow) -> Result<(), StoreError> {
    let sql = "UPDATE keys SET description = $1, enabled = $2, deletion_ms = $3, policy = $4, primary_region = $5,
               rotation_days = $6, next_rotation_ms = $7, pending_days = $8 WHERE id = $9";
    let values = [
        (&key.description).into(),
        key.enabled.into(),
        key.deletion_ms.into(),
        (&*key.policy).into(),
        (&key.primary_region).into(),
        key.rotation_days.into(),
        key.next_rotation_ms.into(),
        key.pending_days.into(),
        (&key.id).into(),
    ];
    one_row(connection, sql, &values).await
}

async fn put_material(
    connection: &mut Connection,
    material: &MaterialRow,
) -> Result<(), StoreError> {
    refuse_sealed(connection, &material.sealed).await?;
    let sql = format!(
        "INSERT INTO materials ({MATERIAL}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
         ON CONFLICT (key_id, version) DO UPDATE SET material_id = excluded.material_id, sealed = excluded.sealed,
            created_ms = excluded.created_ms, pending = excluded.pending, rotation = excluded.rotation,
            rotated_ms = excluded.rotated_ms, valid_to_ms = excluded.valid_to_ms, description = excluded.description"
    );
    let values = [
        (&material.key_id).into(),
        material.version.into(),
        material.material_id.as_slice().into(),
        material.sealed.as_slice().into(),
        material.created_ms.into(),
        material.pending.into(),
        (&material.rotation).into(),
        material.rotated_ms.into(),
        material.valid_to_ms.into(),
        (&material.description).into(),
    ];
    one_row(connection, &sql, &values).await
}

async fn insert_alias(connection: &mut Connection, alias: &AliasRow) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO aliases ({ALIAS}) VALUES ($1, $2, $3, $4, $5, $6)");
    let values = [
        (&alias.account).into(),
        (&alias.region).into(),
        (&alias.name).into(),
        (&alias.key_id).into(),
        alias.created_ms.into(),
        alias.updated_ms.into(),
    ];
    one_row(connection, &sql, &values).await
}

/// Points an alias elsewhere: the key that it leaves is touched too.
async fn update_alias(
    connection: &mut Connection,
    alias: &AliasRow,
) -> Result<Vec<String>, StoreError> {
    let place: [Value<'_>; 3] = [
        (&alias.account).into(),
        (&alias.region).into(),
        (&alias.name).into(),
    ];
    let sql = "SELECT key_id FROM aliases WHERE account = $1 AND region = $2 AND name = $3";
    let mut touched = one_key(connection, sql, &place).await?;
    let sql = "UPDATE aliases SET key_id = $1, updated_ms = $2 WHERE account = $3 AND region = $4 AND name = $5";
    let [account, region, name] = place;
    let values = [
        (&alias.key_id).into(),
        alias.updated_ms.into(),
        account,
        region,
        name,
    ];
    one_row(connection, sql, &values).await?;
    touched.push(alias.key_id.clone());
    Ok(touched)
}

async fn insert_grant(connection: &mut Connection, grant: &GrantRow) -> Result<(), StoreError> {
    let sql = "INSERT INTO grants (id, key_id, created_ms, terms) VALUES ($1, $2, $3, $4)";
    let values = [
        (&grant.id).into(),
        (&grant.key_id).into(),
        grant.created_ms.into(),
        (&grant.terms).into(),
    ];
    one_row(connection, sql, &values).await
}

async fn set_tags(
    connection: &mut Connection,
    key_id: &str,
    tags: &Tags,
) -> Result<(), StoreError> {
    let text = serde_json::to_string(tags).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let sql = "INSERT INTO tags (key_id, tags) VALUES ($1, $2)
               ON CONFLICT (key_id) DO UPDATE SET tags = excluded.tags";
    one_row(connection, sql, &[key_id.into(), (&text).into()]).await
}

/// The key that a statement about one row names.
async fn one_key(
    connection: &mut Connection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<Vec<String>, StoreError> {
    match connection.row(sql, values).await? {
        Some(row) => Ok(vec![row.get(0)?]),
        None => Err(StoreError::Missing),
    }
}

async fn one_row(
    connection: &mut Connection,
    sql: &str,
    values: &[Value<'_>],
) -> Result<(), StoreError> {
    match connection.execute(sql, values).await {
        Ok(1) => Ok(()),
        Ok(_) => Err(StoreError::Missing),
        Err(StoreError::Database(sqlx::Error::Database(error)))
            if error.is_unique_violation() || error.is_foreign_key_violation() =>
        {
            Err(StoreError::Conflict)
        }
        Err(error) => Err(error),
    }
}
