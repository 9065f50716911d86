//! What the tables hold.

use std::sync::Arc;

use super::StoreError;
use super::database::Record;
use crate::spec::{KeySpec, KeyUsage, Origin};

/// A key's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Key id; of a replica, the key id, `@` and its region. See [`key_id`].
    pub id: String,
    /// Account.
    pub account: String,
    /// Region.
    pub region: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Description.
    pub description: String,
    /// Not disabled.
    pub enabled: bool,
    /// When it will be deleted.
    pub deletion_ms: Option<i64>,
    /// Policy document. Most keys have the same one, which is in memory once.
    pub policy: Arc<str>,
    /// What kind of key.
    pub spec: KeySpec,
    /// What it may do.
    pub usage: KeyUsage,
    /// Where its material comes from.
    pub origin: Origin,
    /// Of a multi-Region key, where its primary is.
    pub primary_region: Option<String>,
    /// Period of automatic rotation in days, when it is on.
    pub rotation_days: Option<i64>,
    /// When it rotates next, milliseconds since 1970.
    pub next_rotation_ms: Option<i64>,
    /// Waiting period in days of a primary that waits for its replicas' deletion.
    pub pending_days: Option<i64>,
}

/// The key id in a row's id: replicas of one key share it.
#[must_use]
pub fn key_id(row_id: &str) -> &str {
    row_id.split_once('@').map_or(row_id, |(id, _)| id)
}

/// One version of a key's material, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaterialRow {
    /// Id of the key's row.
    pub key_id: String,
    /// Counts from 1.
    pub version: i64,
    /// 32 bytes.
    pub material_id: Vec<u8>,
    /// Under the root key; empty when it was deleted or has expired.
    pub sealed: Vec<u8>,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Imported, and not rotated to yet.
    pub pending: bool,
    /// `AUTOMATIC` or `ON_DEMAND`, if a rotation made it current.
    pub rotation: Option<String>,
    /// When that was, milliseconds since 1970.
    pub rotated_ms: Option<i64>,
    /// When it expires, milliseconds since 1970.
    pub valid_to_ms: Option<i64>,
    /// What its importer says about it.
    pub description: Option<String>,
}

/// An alias's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    /// Account.
    pub account: String,
    /// Region.
    pub region: String,
    /// `alias/…`.
    pub name: String,
    /// Where it points.
    pub key_id: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Last change, milliseconds since 1970.
    pub updated_ms: i64,
}

/// A grant's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    /// Grant id.
    pub id: String,
    /// Whose key.
    pub key_id: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// [`crate::grants::Terms`] as JSON.
    pub terms: String,
}

/// An access key's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalRow {
    /// Access key id.
    pub access_key_id: String,
    /// IAM ARN.
    pub arn: String,
    /// Secret access key under the root key.
    pub sealed_secret: Vec<u8>,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
}

/// Columns of a [`KeyRow`], in the order in which [`key_row`] reads them.
pub(super) const KEY: &str = "id, account, region, created_ms, description, enabled, deletion_ms, policy, spec, usage, origin,
    primary_region, rotation_days, next_rotation_ms, pending_days";

pub(super) fn key_row(row: &Record) -> Result<KeyRow, StoreError> {
    let id: String = row.get(0)?;
    let damaged = |column, value: &str| StoreError::Damaged {
        key: id.clone(),
        column,
        value: value.to_owned(),
    };
    let (spec, usage, origin): (String, String, String) = (row.get(8)?, row.get(9)?, row.get(10)?);
    Ok(KeyRow {
        account: row.get(1)?,
        region: row.get(2)?,
        created_ms: row.get(3)?,
        description: row.get(4)?,
        enabled: row.get(5)?,
        deletion_ms: row.get(6)?,
        policy: row.get::<String>(7)?.into(),
        spec: KeySpec::from_name(&spec).ok_or_else(|| damaged("spec", &spec))?,
        usage: KeyUsage::from_name(&usage).ok_or_else(|| damaged("usage", &usage))?,
        origin: Origin::from_name(&origin).ok_or_else(|| damaged("origin", &origin))?,
        primary_region: row.get(11)?,
        rotation_days: row.get(12)?,
        next_rotation_ms: row.get(13)?,
        pending_days: row.get(14)?,
        id,
    })
}

/// Columns of a [`MaterialRow`].
pub(super) const MATERIAL: &str = "key_id, version, material_id, sealed, created_ms, pending, rotation, rotated_ms, valid_to_ms, description";

pub(super) fn material_row(row: &Record) -> Result<MaterialRow, StoreError> {
    Ok(MaterialRow {
        key_id: row.get(0)?,
        version: row.get(1)?,
        material_id: row.get(2)?,
        sealed: row.get(3)?,
        created_ms: row.get(4)?,
        pending: row.get(5)?,
        rotation: row.get(6)?,
        rotated_ms: row.get(7)?,
        valid_to_ms: row.get(8)?,
        description: row.get(9)?,
    })
}

/// Columns of an [`AliasRow`].
pub(super) const ALIAS: &str = "account, region, name, key_id, created_ms, updated_ms";

pub(super) fn alias_row(row: &Record) -> Result<AliasRow, StoreError> {
    Ok(AliasRow {
        account: row.get(0)?,
        region: row.get(1)?,
        name: row.get(2)?,
        key_id: row.get(3)?,
        created_ms: row.get(4)?,
        updated_ms: row.get(5)?,
    })
}

/// Columns of a [`PrincipalRow`].
pub(super) const PRINCIPAL: &str = "access_key_id, arn, sealed_secret, created_ms";

pub(super) fn principal_row(row: &Record) -> Result<PrincipalRow, StoreError> {
    Ok(PrincipalRow {
        access_key_id: row.get(0)?,
        arn: row.get(1)?,
        sealed_secret: row.get(2)?,
        created_ms: row.get(3)?,
    })
}

/// Columns of a [`GrantRow`].
pub(super) const GRANT: &str = "id, key_id, created_ms, terms";

pub(super) fn grant_row(row: &Record) -> Result<GrantRow, StoreError> {
    Ok(GrantRow {
        id: row.get(0)?,
        key_id: row.get(1)?,
        created_ms: row.get(2)?,
        terms: row.get(3)?,
    })
}
