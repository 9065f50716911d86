//! Making key material, and what of it is shared by all that make or change it.

use std::sync::Arc;

use aws_lc_rs::digest;
use tokio::sync::Semaphore;

use crate::crypto::blob::MaterialId;
use crate::crypto::material::KeyMaterial;
use crate::crypto::random_array;
use crate::error::ApiError;
use crate::keyring::{Key, Material};
use crate::service::Service;
use crate::spec::{KeySpec, KeyUsage};
use crate::store::Change;

/// RSA keys that are made at once. More would take time from everybody who makes none.
const AT_ONCE: usize = 2;

static MAKING: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs what takes up to seconds where no request waits for it, behind what runs there already.
pub(crate) async fn apart<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let _permit = MAKING
        .acquire()
        .await
        .map_err(|error| ApiError::internal(&error))?;
    tokio::task::spawn_blocking(make)
        .await
        .map_err(|error| ApiError::internal(&error))
}

/// Makes key material; RSA keys apart.
pub(crate) async fn generate(spec: KeySpec, usage: KeyUsage) -> Result<KeyMaterial, ApiError> {
    let made = match spec {
        KeySpec::Rsa2048 | KeySpec::Rsa3072 | KeySpec::Rsa4096 => {
            apart(move || KeyMaterial::generate(spec, usage)).await?
        }
        _ => KeyMaterial::generate(spec, usage),
    };
    made.map_err(|error| ApiError::internal(&error))
}

/// A version of a key made from material that is current at once.
pub(crate) fn version(
    version: i64,
    created_ms: i64,
    secret: KeyMaterial,
) -> Result<Material, ApiError> {
    let id = random_array().map_err(|error| ApiError::internal(&error))?;
    Ok(Material {
        id: MaterialId(id),
        version,
        created_ms,
        pending: false,
        rotation: None,
        valid_to_ms: None,
        description: None,
        secret: Some(Arc::new(secret)),
    })
}

/// The id of imported material: of the key id and the material itself, so that the same material is known again.
pub(crate) fn imported_id(key: &Key, secret: &KeyMaterial) -> MaterialId {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"enclos-kms imported material|");
    context.update(key.id().as_bytes());
    context.update(b"|");
    context.update(secret.to_store());
    let mut id = [0; 32];
    id.copy_from_slice(context.finish().as_ref());
    MaterialId(id)
}

/// Number of the next version.
pub(crate) fn next_version(key: &Key) -> i64 {
    let last = key.materials().iter().map(|material| material.version);
    last.max().unwrap_or(0) + 1
}

/// The change that gives a key one material more, or replaces one.
pub(crate) fn put(service: &Service, key: &Key, material: Material) -> Result<Change, ApiError> {
    Ok(Change::PutMaterial(material.row(&key.row, &service.root)?))
}
