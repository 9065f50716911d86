//! Who holds which access key.
//!
//! Access keys are added and removed by `enclos-kms principal`, another process that writes to the same
//! database. The server remembers an access key for [`TRUST_FOR`] and then looks again, so that a removed one
//! stops working within that time and a new one works at once. It remembers as long that an access key is nobody's: who calls
//! with one that does not exist does not keep the database from those who exist.
//!
//! The development credentials `test` / `test` are the root user of account 000000000000. They exist only
//! for requests that arrived on the plain-HTTP loopback listener.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time;
use dashmap::DashMap;
use zeroize::Zeroizing;

use crate::arn::{PrincipalArn, PrincipalArnError};
use crate::crypto::seal::{self, RootKey, UnsealError};
use crate::error::ApiError;
use crate::secret_key::SecretKey;
use crate::store::{PrincipalRow, Store, StoreError};

/// How long a lookup is believed.
pub const TRUST_FOR: Duration = Duration::from_secs(2);

/// Account of the development credentials.
pub const DEV_ACCOUNT: &str = "000000000000";

/// Access key id and secret of the development credentials.
pub const DEV_CREDENTIALS: (&str, &str) = ("test", "test");

/// Most remembered access keys, and most that are remembered to be nobody's; beyond it the memory is emptied, never grown.
const REMEMBER: usize = 10_000;

/// AWS's longest access key id. Nobody has a longer one.
const ID_MAX: usize = 128;

/// A principal and the secret it signs with.
pub struct Principal {
    /// Who.
    pub arn: PrincipalArn,
    /// Secret access key.
    pub secret: Arc<SecretKey>,
}

impl std::fmt::Debug for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Principal")
            .field("arn", &self.arn)
            .finish_non_exhaustive()
    }
}

/// Why an access key could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum PrincipalError {
    /// The store.
    #[error("cannot look up an access key")]
    Store(#[from] StoreError),
    /// Sealed by another root key, or damaged.
    #[error("cannot open a secret access key")]
    Unseal(#[from] UnsealError),
    /// A damaged row.
    #[error("a stored principal has no valid ARN")]
    Arn(#[from] PrincipalArnError),
}

impl PrincipalError {
    /// What the caller is told.
    pub(crate) fn told(&self) -> ApiError {
        match self {
            Self::Store(error) => ApiError::store(error),
            Self::Unseal(UnsealError::Unread(_)) => ApiError::try_again(self),
            other => ApiError::internal(other),
        }
    }
}

struct Remembered {
    principal: Arc<Principal>,
    since: Instant,
}

/// All principals.
pub struct Principals {
    store: Store,
    root: Arc<RootKey>,
    dev: Arc<Principal>,
    remembered: DashMap<String, Remembered>,
    /// Access keys of nobody, and since when that is known.
    nobodys: DashMap<String, Instant>,
}

impl std::fmt::Debug for Principals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Principals")
            .field("remembered", &self.remembered.len())
            .finish_non_exhaustive()
    }
}

impl Principals {
    /// Principals of a store.
    #[must_use]
    pub fn new(store: Store, root: Arc<RootKey>) -> Self {
        let dev = Principal {
            arn: PrincipalArn::root(DEV_ACCOUNT),
            secret: secret(DEV_CREDENTIALS.1.as_bytes().to_vec().into()),
        };
        Self {
            store,
            root,
            dev: Arc::new(dev),
            remembered: DashMap::new(),
            nobodys: DashMap::new(),
        }
    }

    /// Who holds an access key; `None` if nobody.
    ///
    /// # Errors
    /// If the store fails or a secret does not open.
    pub async fn find(
        &self,
        access_key_id: &str,
        dev: bool,
    ) -> Result<Option<Arc<Principal>>, PrincipalError> {
        if dev && is_dev(access_key_id) {
            return Ok(Some(Arc::clone(&self.dev)));
        }
        if let Some(entry) = self.remembered.get(access_key_id)
            && entry.since.elapsed() < TRUST_FOR
        {
            return Ok(Some(Arc::clone(&entry.principal)));
        }
        if access_key_id.len() > ID_MAX || self.is_nobodys(access_key_id) {
            return Ok(None);
        }
        let since = Instant::now();
        let Some(row) = self.store.principal(access_key_id).await? else {
            self.remembered.remove(access_key_id);
            if self.nobodys.len() >= REMEMBER {
                self.nobodys.clear();
            }
            self.nobodys.insert(access_key_id.to_owned(), since);
            return Ok(None);
        };
        self.nobodys.remove(access_key_id);
        let principal = Arc::new(open(&row, &self.root)?);
        if self.remembered.len() >= REMEMBER {
            self.remembered.clear();
        }
        let entry = Remembered {
            principal: Arc::clone(&principal),
            since,
        };
        self.remembered.insert(access_key_id.to_owned(), entry);
        Ok(Some(principal))
    }

    fn is_nobodys(&self, access_key_id: &str) -> bool {
        let since = self.nobodys.get(access_key_id);
        since.is_some_and(|since| since.elapsed() < TRUST_FOR)
    }

    /// Whether this is the holder of the development credentials.
    #[must_use]
    pub fn is_dev(&self, principal: &Arc<Principal>) -> bool {
        Arc::ptr_eq(principal, &self.dev)
    }
}

fn is_dev(access_key_id: &str) -> bool {
    constant_time::verify_slices_are_equal(access_key_id.as_bytes(), DEV_CREDENTIALS.0.as_bytes())
        .is_ok()
}

fn secret(bytes: Zeroizing<Vec<u8>>) -> Arc<SecretKey> {
    Arc::new(SecretKey::new(bytes))
}

fn open(row: &PrincipalRow, root: &RootKey) -> Result<Principal, PrincipalError> {
    let label = seal::access_key_label(&row.access_key_id, &row.arn);
    let opened = root.unseal(&label, &row.sealed_secret);
    Ok(Principal {
        secret: secret(opened.inspect_err(|_| root.note_missed())?),
        arn: PrincipalArn::parse(&row.arn)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{self, Location};

    #[tokio::test]
    async fn the_database_is_not_asked_again_and_again_for_what_is_not_there() {
        const ID: &str = "AKIAAAAAAAAAAAAAAAAA";
        let directory = tempfile::tempdir().unwrap();
        let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
        let (store, _writer) = Store::open(directory.path()).await.unwrap();
        let principals = Principals::new(store, Arc::new(root));
        let is_found = async || principals.find(ID, false).await.unwrap().is_some();
        assert!(!is_found().await && principals.nobodys.contains_key(ID));

        let arn = "arn:aws:iam::111122223333:root";
        let label = seal::access_key_label(ID, arn);
        let row = PrincipalRow {
            access_key_id: ID.to_owned(),
            arn: arn.to_owned(),
            sealed_secret: principals.root.seal(&label, b"secret").unwrap(),
            created_ms: 0,
        };
        let location = Location::from(directory.path());
        let mut connection = store::connect(&location).await.unwrap();
        store::insert_principal(&mut connection, &row)
            .await
            .unwrap();
        let know = |since: Option<Instant>| {
            principals.nobodys.insert(ID.to_owned(), since.unwrap());
        };
        know(Instant::now().checked_add(TRUST_FOR));
        assert!(!is_found().await, "what is known is believed");
        know(Instant::now().checked_sub(TRUST_FOR));
        assert!(is_found().await, "but not for long");
        assert!(!principals.nobodys.contains_key(ID));

        let endless = "A".repeat(ID_MAX + 1);
        assert!(principals.find(&endless, false).await.unwrap().is_none());
        assert!(principals.nobodys.is_empty(), "nor is it remembered");
    }
}
