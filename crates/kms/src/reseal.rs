//! What a rotation of the root key leaves to do: every sealed value goes under its current version.
//!
//! Nodes of one database do not rotate at the same instant, and one may be missed. So a value only ever goes up: what is under
//! a version that this node knows to be newer than its own current one stays as it is.
//!
//! Values are replaced one by one, each in a transaction of its own, while requests are served. A process that dies in between
//! leaves values of both versions, which both open; the next one goes on.

use crate::crypto::seal::{
    RootKey, SealError, UnsealError, access_key_label, material_label, named_version,
};
use crate::store::{self, Connection, SealedRow, Secret, StoreError};

/// Values read at a time.
const PAGE: i64 = 100;

/// Why values stay under an older version.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResealError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value that does not open.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// No randomness.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Seals everything under the root key's current version that is under an older one; how many values that were.
///
/// # Errors
/// If the database fails, the current version is retired or a value does not open; what was done stays done. The connection
/// is then to be given up.
pub(crate) async fn all(connection: &mut Connection, root: &RootKey) -> Result<u64, ResealError> {
    let mut done = 0;
    loop {
        let rows = store::sealed_otherwise(connection, &root.current_and_newer(), PAGE).await?;
        if rows.is_empty() {
            return Ok(done);
        }
        for row in &rows {
            let label = label(row);
            let plaintext = root.unseal(&label, &row.sealed)?;
            // A version that was not known before this value was opened may be one to leave alone.
            let known = root.current_and_newer();
            if named_version(&row.sealed).is_some_and(|version| known.contains(&version)) {
                continue;
            }
            let sealed = root.seal(&label, &plaintext)?;
            done += u64::from(store::reseal(connection, row, &sealed).await?);
        }
    }
}

fn label(row: &SealedRow) -> Vec<u8> {
    match &row.secret {
        Secret::Material {
            key_id,
            version,
            account,
        } => material_label(key_id, *version, account),
        Secret::AccessKey { access_key_id, arn } => access_key_label(access_key_id, arn),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::crypto::root_file::RootFile;
    use crate::store::{Location, PrincipalRow, Store};

    /// Two nodes' root keys: both know version 2, for the second alone it is current.
    fn nodes(directory: &Path) -> (RootKey, RootKey) {
        let (missed, ahead) = (directory.join("missed"), directory.join("ahead"));
        drop(RootKey::open(&missed, true).unwrap());
        let mut file = RootFile::read(&missed, None, false).unwrap();
        file.current = file.add(0).unwrap();
        file.write(&ahead).unwrap();
        file.current = 1;
        file.write(&missed).unwrap();
        let open = |path| RootKey::open(path, false).unwrap();
        (open(&missed), open(&ahead))
    }

    async fn database(directory: &Path) -> Connection {
        let (store, writer) = Store::open(directory).await.unwrap();
        drop(store);
        writer.await.unwrap();
        store::connect(&Location::from(directory)).await.unwrap()
    }

    async fn add(connection: &mut Connection, id: &str, root: &RootKey) -> Result<(), StoreError> {
        let arn = "arn:aws:iam::111122223333:root";
        let row = PrincipalRow {
            access_key_id: id.to_owned(),
            arn: arn.to_owned(),
            sealed_secret: root.seal(&access_key_label(id, arn), b"secret").unwrap(),
            created_ms: 0,
        };
        store::insert_principal(connection, &row).await
    }

    async fn versions(connection: &mut Connection) -> Vec<Option<u32>> {
        let rows = store::principals(connection).await.unwrap();
        let version = |row: &PrincipalRow| named_version(&row.sealed_secret);
        rows.iter().map(version).collect()
    }

    #[tokio::test]
    async fn a_node_that_was_missed_does_not_undo_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let (missed, ahead) = nodes(directory.path());
        let mut connection = database(directory.path()).await;
        add(&mut connection, "A", &missed).await.unwrap();
        add(&mut connection, "B", &ahead).await.unwrap();
        assert_eq!(all(&mut connection, &missed).await.unwrap(), 0);
        assert_eq!(versions(&mut connection).await, [Some(1), Some(2)]);
        assert_eq!(all(&mut connection, &ahead).await.unwrap(), 1);
        assert_eq!(all(&mut connection, &missed).await.unwrap(), 0);
        assert_eq!(versions(&mut connection).await, [Some(2), Some(2)]);
    }

    #[tokio::test]
    async fn a_newer_version_that_is_met_first_in_a_value_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("late");
        let late = RootKey::open(&path, true).unwrap();
        let mut file = RootFile::read(&path, None, false).unwrap();
        file.current = file.add(0).unwrap();
        let elsewhere = directory.path().join("ahead");
        file.write(&elsewhere).unwrap();
        let ahead = RootKey::open(&elsewhere, false).unwrap();
        let mut connection = database(directory.path()).await;
        add(&mut connection, "A", &ahead).await.unwrap();
        file.current = 1;
        file.write(&path).unwrap();
        assert_eq!(all(&mut connection, &late).await.unwrap(), 0);
        assert_eq!(versions(&mut connection).await, [Some(2)]);
    }

    #[tokio::test]
    async fn nothing_is_stored_under_a_retired_version() {
        let directory = tempfile::tempdir().unwrap();
        let (missed, ahead) = nodes(directory.path());
        let mut connection = database(directory.path()).await;
        add(&mut connection, "A", &ahead).await.unwrap();
        store::put_retired_root(&mut connection, 1).await.unwrap();
        // Whatever is told later, it stays retired.
        store::put_current_root(&mut connection, 1).await.unwrap();
        let refused = add(&mut connection, "B", &missed).await;
        assert!(matches!(refused, Err(StoreError::RetiredRoot(1))));
        let rows = store::sealed_otherwise(&mut connection, &[1], 1).await;
        let rows = rows.unwrap();
        let row = rows.first().unwrap();
        let under_1 = missed.seal(&label(row), b"secret").unwrap();
        let refused = store::reseal(&mut connection, row, &under_1).await;
        assert!(matches!(refused, Err(StoreError::RetiredRoot(1))));
        assert_eq!(versions(&mut connection).await, [Some(2)]);
    }
}
