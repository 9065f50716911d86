//! Users and roles: their policies, who may assume a role, what a session may be.
//!
//! They are written by `enclos-kms identity`, another process on the same database. As with access keys the server
//! believes a look-up for [`TRUST_FOR`]; then it looks again. A principal that has no entry here has no policies of
//! its own: a key policy or a grant must name it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::digest;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use crate::arn::{PrincipalArn, PrincipalKind};
use crate::authz::{Identity, Named};
use crate::error::ApiError;
use crate::policy::{Policy, PolicyError};
use crate::principals::TRUST_FOR;
use crate::store::{IdentityRow, Store, StoreError};

/// Longest session of a role whose entry says nothing else, in seconds.
pub const MAX_SESSION: i64 = 3600;

/// Most remembered look-ups; beyond it the memory is emptied, never grown.
const REMEMBER: usize = 10_000;

/// Letters of unique ids and access key ids after their prefix, as AWS's (base 32).
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// What is stored about a user or role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Policies by name.
    #[serde(default)]
    pub policies: BTreeMap<String, String>,
    /// The most that its policies can give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<String>,
    /// A role's trust policy: who may assume it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// A role's longest session, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_session: Option<i64>,
    /// Tags: `aws:PrincipalTag/…`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// A user or role, its policies parsed.
#[derive(Debug)]
pub struct Entity {
    /// `AIDA…` or `AROA…`.
    pub unique_id: String,
    /// What is stored.
    pub profile: Profile,
    /// Its policies and boundary.
    pub identity: Arc<Identity>,
    /// Its trust policy.
    pub trust: Option<Policy>,
}

/// A stored user or role cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The store.
    #[error("cannot look up a principal's policies")]
    Store(#[from] StoreError),
    /// Not what this program writes.
    #[error("the entry of {arn} is damaged in the database")]
    Damaged {
        /// Whose.
        arn: String,
        /// How.
        #[source]
        source: serde_json::Error,
    },
    /// Two of one name, which had the same sessions.
    #[error(
        "{arn} and {other} have one name, which AWS allows once in an account; remove one with `enclos-kms identity remove`"
    )]
    Namesakes {
        /// Whose.
        arn: String,
        /// Its namesake.
        other: String,
    },
    /// A policy that this program does not understand.
    #[error("the policy {name:?} of {arn} cannot be read")]
    Policy {
        /// Whose.
        arn: String,
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: PolicyError,
    },
}

impl IdentityError {
    /// What the caller is told.
    pub(crate) fn told(&self) -> ApiError {
        match self {
            Self::Store(error) => ApiError::store(error),
            other => ApiError::internal(other),
        }
    }
}

impl Entity {
    /// Parses what is stored.
    ///
    /// # Errors
    /// If anything of it cannot be used: a Deny that is not understood must not be left out.
    pub fn new(row: &IdentityRow) -> Result<Self, IdentityError> {
        let profile: Profile =
            serde_json::from_str(&row.profile).map_err(|source| IdentityError::Damaged {
                arn: row.arn.clone(),
                source,
            })?;
        let failed = |name: &str, source| IdentityError::Policy {
            arn: row.arn.clone(),
            name: name.to_owned(),
            source,
        };
        let named = |name: &str, text: &str| -> Result<Named, IdentityError> {
            let policy = Policy::parse_identity(text).map_err(|source| failed(name, source))?;
            Ok(Named {
                name: name.to_owned(),
                policy: Arc::new(policy),
            })
        };
        let policies: Result<Vec<_>, _> = profile
            .policies
            .iter()
            .map(|(name, text)| named(name, text))
            .collect();
        let boundary = profile.boundary.as_deref();
        let identity = Identity {
            policies: policies?,
            boundary: boundary.map(|text| named("boundary", text)).transpose()?,
            session: Vec::new(),
        };
        let trust = profile.trust.as_deref().map(Policy::parse_trust);
        Ok(Self {
            unique_id: row.unique_id.clone(),
            identity: Arc::new(identity),
            trust: trust
                .transpose()
                .map_err(|source| failed("trust", source))?,
            profile,
        })
    }
}

/// AWS's unique id of a principal: what an entry says, else one that follows from the ARN.
#[must_use]
pub fn unique_id(arn: &PrincipalArn, entity: Option<&Entity>) -> String {
    match entity {
        Some(entity) => entity.unique_id.clone(),
        None => derived_id(arn),
    }
}

/// A unique id that is always the same for an ARN.
#[must_use]
pub fn derived_id(arn: &PrincipalArn) -> String {
    let prefix = match arn.kind() {
        PrincipalKind::Root => return arn.account().to_string(),
        PrincipalKind::User => "AIDA",
        PrincipalKind::Role | PrincipalKind::Session => "AROA",
    };
    let hash = digest::digest(&digest::SHA256, arn.as_str().as_bytes());
    letters(prefix, hash.as_ref().iter().take(17))
}

/// The first of some ARNs that is another user or role of the same name.
pub(crate) fn namesake<'a>(
    arn: &PrincipalArn,
    mut others: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    others.find(|other| PrincipalArn::parse(other).is_ok_and(|other| arn.is_namesake(&other)))
}

/// A prefix and a letter for each byte.
pub(crate) fn letters<'a>(prefix: &str, bytes: impl Iterator<Item = &'a u8>) -> String {
    let letters = bytes.filter_map(|byte| ALPHABET.get(usize::from(byte % 32)));
    prefix
        .chars()
        .chain(letters.map(|letter| char::from(*letter)))
        .collect()
}

struct Remembered {
    entity: Option<Arc<Entity>>,
    since: Instant,
}

/// All users and roles.
pub struct Identities {
    store: Store,
    remembered: DashMap<String, Remembered>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities")
            .field("remembered", &self.remembered.len())
            .finish_non_exhaustive()
    }
}

impl Identities {
    /// Users and roles of a store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            remembered: DashMap::new(),
        }
    }

    /// A user's or role's entry.
    ///
    /// # Errors
    /// If the store fails or the entry cannot be used.
    pub async fn find(&self, arn: &PrincipalArn) -> Result<Option<Arc<Entity>>, IdentityError> {
        if arn.kind() == PrincipalKind::Root {
            return Ok(None);
        }
        if let Some(entry) = self.remembered.get(arn.as_str())
            && entry.since.elapsed() < TRUST_FOR
        {
            return Ok(entry.entity.clone());
        }
        let since = Instant::now();
        let row = self.store.identity(arn.as_str()).await?;
        if row.is_some() {
            self.check_name(arn).await?;
        }
        let entity = row.as_ref().map(Entity::new).transpose()?.map(Arc::new);
        if self.remembered.len() >= REMEMBER {
            self.remembered.clear();
        }
        let entry = Remembered {
            entity: entity.clone(),
            since,
        };
        self.remembered.insert(arn.to_string(), entry);
        Ok(entity)
    }

    /// Refuses who shares a name: one of the two could be taken for the other.
    async fn check_name(&self, arn: &PrincipalArn) -> Result<(), IdentityError> {
        let others = self.store.identities_ending(arn.name()).await?;
        match namesake(arn, others.iter().map(String::as_str)) {
            Some(other) => Err(IdentityError::Namesakes {
                arn: arn.to_string(),
                other: other.to_owned(),
            }),
            None => Ok(()),
        }
    }
}
