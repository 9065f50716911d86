//! Making key material, and what of it is shared by all that make or change it.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::crypto::blob::MaterialId;
use crate::crypto::material::KeyMaterial;
use crate::crypto::random_array;
use crate::error::{ApiError, ErrorKind};
use crate::keyring::{Key, Material};
use crate::presence;
use crate::service::Service;
use crate::spec::{KeySpec, KeyUsage};
use crate::store::Change;

/// RSA keys that are made at once. More would take time from everybody who makes none.
const AT_ONCE: usize = 2;

/// How long a call waits for its turn: less than SDKs wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

static MAKING: Semaphore = Semaphore::const_new(AT_ONCE);

/// Runs what takes up to seconds where no request waits for it, behind what runs there already.
pub(crate) async fn apart<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = turn(&MAKING, PATIENCE).await?;
    make_in(turn, make).await
}

/// Waits for a turn, for so long at most and no longer than its client is there.
async fn turn(making: &Semaphore, patience: Duration) -> Result<SemaphorePermit<'_>, ApiError> {
    let waiting = tokio::time::timeout(patience, making.acquire());
    match presence::unless_gone(waiting).await? {
        Ok(turn) => turn.map_err(|error| ApiError::internal(&error)),
        Err(_) => Err(ApiError::new(
            ErrorKind::Throttling,
            "More RSA keys are asked for than can be made. Reduce the frequency of your calls.",
        )),
    }
}

/// The turn is over when it is made, whether anybody still waits for it or not.
async fn make_in<T: Send + 'static>(
    turn: SemaphorePermit<'static>,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let making = tokio::task::spawn_blocking(move || {
        let made = make();
        drop(turn);
        made
    });
    making.await.map_err(|error| ApiError::internal(&error))
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

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn a_turn_is_waited_for_while_there_is_patience_and_a_client() {
        static NONE: Semaphore = Semaphore::const_new(0);
        let impatient = turn(&NONE, Duration::ZERO).await.map(drop);
        assert_eq!(impatient.unwrap_err().kind(), ErrorKind::Throttling);
        let (client, seen) = watch::channel(());
        let patient = turn(&NONE, Duration::from_secs(3600));
        let waiting = tokio::spawn(presence::with_client(seen, patient));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(client);
        let refused = waiting.await.unwrap().map(drop).unwrap_err();
        assert!(refused.to_string().contains("hung up"), "{refused}");
    }

    #[tokio::test]
    async fn who_no_longer_waits_does_not_give_the_turn_away() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let taken = turn(&ONE, PATIENCE).await.unwrap();
        let making = tokio::spawn(make_in(taken, move || {
            begin.send(()).unwrap();
            finished.recv()
        }));
        begun.await.unwrap();
        making.abort();
        assert!(making.await.unwrap_err().is_cancelled());
        assert_eq!(ONE.available_permits(), 0);
        finish.send(()).unwrap();
        drop(turn(&ONE, PATIENCE).await.unwrap());
    }
}
