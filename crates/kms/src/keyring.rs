//! Keys and aliases in memory: what every request reads.
//!
//! Filled from the store when the process starts, changed only after the store has made a change durable.
//! Readers get an immutable [`Key`] behind an `Arc`; a change replaces it. The maps are sharded, so that
//! no request waits for another key's.

use std::collections::BTreeSet;
use std::sync::Arc;

use dashmap::DashMap;
use serde_json::{Value, json};
use zeroize::Zeroize as _;

use crate::arn::{KeyRef, Place};
use crate::crypto::blob::MaterialId;
use crate::crypto::seal::{self, RootKey, Secret, UnsealError};
use crate::error::{ApiError, ErrorKind};
use crate::policy::{Policy, PolicyError};
use crate::store::{AliasRow, KeyRow, MaterialRow, Store, StoreError};

/// One version of a key's material.
pub struct Material {
    /// Its public name.
    pub id: MaterialId,
    /// The secret.
    pub secret: Secret,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A key, ready for use.
#[derive(Debug, Clone)]
pub struct Key {
    /// What the store holds about it.
    pub row: KeyRow,
    /// Account and region.
    pub place: Place,
    /// ARN.
    pub arn: Arc<str>,
    /// The policy, parsed.
    pub policy: Arc<Policy>,
    /// All materials, the current one last; never empty.
    materials: Arc<[Material]>,
}

/// AWS's names of a key's states, as far as they exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Usable.
    Enabled,
    /// Switched off.
    Disabled,
    /// Waits for its deletion.
    PendingDeletion,
}

impl KeyState {
    /// As in `KeyMetadata`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
        }
    }
}

/// Why stored keys could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store.
    #[error("cannot read the keys")]
    Store(#[from] StoreError),
    /// A grant.
    #[error(transparent)]
    Grant(#[from] crate::grants::GrantLoadError),
    /// A material does not open.
    #[error("cannot open the material of key {key}")]
    Unseal {
        /// Whose.
        key: String,
        /// Why.
        #[source]
        source: UnsealError,
    },
    /// A material or a key without its other half.
    #[error("key {key} is damaged in the database: {what}")]
    Damaged {
        /// Which.
        key: String,
        /// How.
        what: &'static str,
    },
    /// A policy that this program does not understand.
    #[error("the stored policy of key {key} cannot be read")]
    Policy {
        /// Whose.
        key: String,
        /// Why.
        #[source]
        source: PolicyError,
    },
}

impl Key {
    /// Puts a key together.
    ///
    /// # Errors
    /// If the policy does not parse or there is no material.
    pub fn new(row: KeyRow, materials: Vec<Material>) -> Result<Self, LoadError> {
        if materials.is_empty() {
            return Err(LoadError::Damaged {
                key: row.id,
                what: "it has no material",
            });
        }
        let policy = Policy::parse(&row.policy).map_err(|source| LoadError::Policy {
            key: row.id.clone(),
            source,
        })?;
        let place = Place::new(row.account.as_str(), row.region.as_str());
        let arn = place.key_arn(&row.id).into();
        Ok(Self {
            place,
            arn,
            policy: policy.into(),
            materials: materials.into(),
            row,
        })
    }

    /// The same key with other mutable values.
    ///
    /// # Errors
    /// If the policy does not parse.
    pub fn with_row(&self, row: KeyRow) -> Result<Self, LoadError> {
        let policy = if row.policy == self.row.policy {
            Arc::clone(&self.policy)
        } else {
            let parsed = Policy::parse(&row.policy).map_err(|source| LoadError::Policy {
                key: row.id.clone(),
                source,
            })?;
            Arc::new(parsed)
        };
        Ok(Self {
            row,
            policy,
            ..self.clone()
        })
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> KeyState {
        match (self.row.deletion_ms, self.row.enabled) {
            (Some(_), _) => KeyState::PendingDeletion,
            (None, true) => KeyState::Enabled,
            (None, false) => KeyState::Disabled,
        }
    }

    /// The material that encrypts. [`Key::new`] refuses a key without one.
    #[must_use]
    pub fn current(&self) -> Option<&Material> {
        self.materials.last()
    }

    /// The material of that name.
    #[must_use]
    pub fn material(&self, id: MaterialId) -> Option<&Material> {
        self.materials.iter().find(|material| material.id == id)
    }

    /// Refuses keys that cannot be used now.
    ///
    /// # Errors
    /// `DisabledException` or `KMSInvalidStateException`.
    pub fn usable(&self) -> Result<(), ApiError> {
        match self.state() {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => Err(ApiError::new(
                ErrorKind::Disabled,
                format!("{} is disabled.", self.arn),
            )),
            KeyState::PendingDeletion => Err(self.pending_deletion()),
        }
    }

    /// Refuses keys that wait for deletion.
    ///
    /// # Errors
    /// `KMSInvalidStateException`.
    pub fn not_pending_deletion(&self) -> Result<(), ApiError> {
        match self.state() {
            KeyState::PendingDeletion => Err(self.pending_deletion()),
            _ => Ok(()),
        }
    }

    fn pending_deletion(&self) -> ApiError {
        ApiError::new(
            ErrorKind::KmsInvalidState,
            format!("{} is pending deletion.", self.arn),
        )
    }

    /// `KeyMetadata`.
    #[must_use]
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({
            "AWSAccountId": self.row.account,
            "KeyId": self.row.id,
            "Arn": &*self.arn,
            "CreationDate": seconds(self.row.created_ms),
            "Enabled": self.state() == KeyState::Enabled,
            "Description": self.row.description,
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeyState": self.state().name(),
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
            "KeySpec": "SYMMETRIC_DEFAULT",
            "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
            "MultiRegion": false,
        });
        if let Some(members) = metadata.as_object_mut() {
            if let Some(deletion) = self.row.deletion_ms {
                members.insert("DeletionDate".to_owned(), seconds(deletion).into());
            }
            if let Some(material) = self.current() {
                members.insert(
                    "CurrentKeyMaterialId".to_owned(),
                    material.id.to_string().into(),
                );
            }
        }
        metadata
    }
}

/// Milliseconds as the seconds of AWS's JSON timestamps.
#[must_use]
pub fn seconds(ms: i64) -> f64 {
    std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64()
}

type AliasName = (Place, String);

/// All keys and aliases.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: DashMap<String, Arc<Key>>,
    aliases: DashMap<AliasName, Arc<AliasRow>>,
    /// Names of each key's aliases.
    names: DashMap<String, BTreeSet<String>>,
}

impl Keyring {
    /// Reads everything from the store.
    ///
    /// # Errors
    /// If anything stored cannot be used; nothing is skipped.
    pub async fn load(store: &Store, root: &RootKey) -> Result<Self, LoadError> {
        let ring = Self::default();
        let mut materials = store.materials().await?.into_iter().peekable();
        let mut keys = store.keys().await?;
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        for key in keys {
            let mut own = Vec::new();
            while let Some(row) = materials.next_if(|row| row.key_id == key.id) {
                own.push(open_material(&row, &key.account, root)?);
            }
            ring.put(Key::new(key, own)?);
        }
        for alias in store.aliases().await? {
            ring.put_alias(alias);
        }
        Ok(ring)
    }

    /// Finds the key that a reference names.
    ///
    /// # Errors
    /// `NotFoundException` with AWS's text.
    pub fn find(&self, reference: &KeyRef) -> Result<Arc<Key>, ApiError> {
        let missing = |arn| ApiError::not_found(format!("Key '{arn}' does not exist"));
        match reference {
            KeyRef::Key(place, id) => self
                .get(id)
                .filter(|key| key.place == *place)
                .ok_or_else(|| missing(place.key_arn(id))),
            KeyRef::Alias(place, name) => {
                let alias = self
                    .alias(place, name)
                    .ok_or_else(|| alias_missing(place, name))?;
                self.get(&alias.key_id)
                    .ok_or_else(|| alias_missing(place, name))
            }
        }
    }

    /// A key by its id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Key>> {
        self.keys.get(id).map(|entry| Arc::clone(entry.value()))
    }

    /// An alias.
    #[must_use]
    pub fn alias(&self, place: &Place, name: &str) -> Option<Arc<AliasRow>> {
        let entry = self.aliases.get(&(place.clone(), name.to_owned()))?;
        Some(Arc::clone(entry.value()))
    }

    /// Names of a key's aliases.
    #[must_use]
    pub fn alias_names(&self, key_id: &str) -> Vec<String> {
        self.names
            .get(key_id)
            .map(|names| names.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Keys whose waiting period is over.
    #[must_use]
    pub fn due(&self, now_ms: i64) -> Vec<Arc<Key>> {
        let due = |key: &Key| key.row.deletion_ms.is_some_and(|at| at <= now_ms);
        self.keys
            .iter()
            .filter(|key| due(key))
            .map(|key| Arc::clone(key.value()))
            .collect()
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds or replaces a key.
    pub(crate) fn put(&self, key: Key) {
        self.keys.insert(key.row.id.clone(), Arc::new(key));
    }

    /// Forgets a key and its aliases.
    pub(crate) fn remove(&self, key: &Key) {
        self.keys.remove(&key.row.id);
        for name in self.alias_names(&key.row.id) {
            self.remove_alias(&key.place, &name);
        }
    }

    /// Adds an alias or points it elsewhere.
    pub(crate) fn put_alias(&self, alias: AliasRow) {
        let place = Place::new(alias.account.as_str(), alias.region.as_str());
        self.remove_alias(&place, &alias.name);
        self.names
            .entry(alias.key_id.clone())
            .or_default()
            .insert(alias.name.clone());
        self.aliases
            .insert((place, alias.name.clone()), Arc::new(alias));
    }

    /// Forgets an alias.
    pub(crate) fn remove_alias(&self, place: &Place, name: &str) {
        let Some((_, alias)) = self.aliases.remove(&(place.clone(), name.to_owned())) else {
            return;
        };
        if let Some(mut names) = self.names.get_mut(&alias.key_id) {
            names.remove(name);
        }
    }
}

/// AWS's answer when an alias does not exist.
pub(crate) fn alias_missing(place: &Place, name: &str) -> ApiError {
    ApiError::not_found(format!("Alias {} is not found.", place.alias_arn(name)))
}

fn open_material(row: &MaterialRow, account: &str, root: &RootKey) -> Result<Material, LoadError> {
    let label = seal::material_label(&row.key_id, row.version, account);
    let bytes = root
        .unseal(&label, &row.sealed)
        .map_err(|source| LoadError::Unseal {
            key: row.key_id.clone(),
            source,
        })?;
    let damaged = |what| LoadError::Damaged {
        key: row.key_id.clone(),
        what,
    };
    let mut secret = Secret::default();
    if bytes.len() != secret.len() {
        secret.zeroize();
        return Err(damaged("a material is not 32 bytes"));
    }
    secret.copy_from_slice(&bytes);
    let id = <[u8; 32]>::try_from(row.material_id.as_slice())
        .map_err(|_| damaged("a material id is not 32 bytes"))?;
    Ok(Material {
        id: MaterialId(id),
        secret,
    })
}
