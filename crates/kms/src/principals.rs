//! Who holds which access key.
//!
//! Access keys are added and removed by `enclos-kms principal`, another process that writes to the same
//! database. The server remembers an access key for [`TRUST_FOR`] and then looks again, so that a removed one
//! stops working within that time and a new one works at once.
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
use crate::store::{PrincipalRow, Store, StoreError};

/// How long a lookup is believed.
pub const TRUST_FOR: Duration = Duration::from_secs(2);

/// Account of the development credentials.
pub const DEV_ACCOUNT: &str = "000000000000";

/// Access key id and secret of the development credentials.
pub const DEV_CREDENTIALS: (&str, &str) = ("test", "test");

/// Most remembered access keys; beyond it the memory is emptied, never grown.
const REMEMBER: usize = 10_000;

/// A principal and the secret it signs with.
pub struct Principal {
    /// Who.
    pub arn: PrincipalArn,
    /// Secret access key.
    pub secret: Zeroizing<Vec<u8>>,
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
            secret: DEV_CREDENTIALS.1.as_bytes().to_vec().into(),
        };
        Self {
            store,
            root,
            dev: Arc::new(dev),
            remembered: DashMap::new(),
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
        let since = Instant::now();
        let Some(row) = self.store.principal(access_key_id).await? else {
            self.remembered.remove(access_key_id);
            return Ok(None);
        };
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

fn open(row: &PrincipalRow, root: &RootKey) -> Result<Principal, PrincipalError> {
    let label = seal::access_key_label(&row.access_key_id, &row.arn);
    let secret = root.unseal(&label, &row.sealed_secret)?;
    Ok(Principal {
        arn: PrincipalArn::parse(&row.arn)?,
        secret,
    })
}
