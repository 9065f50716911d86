//! Keys and aliases in memory: what every request reads.
//!
//! Filled from the store when the process starts, changed by [`crate::memory`] after the store has made a change durable.
//! Readers get an immutable [`Key`] behind an `Arc`; a change replaces it. The maps are sharded, so that
//! no request waits for another key's.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use serde_json::{Value, json};

use crate::arn::{KeyRef, Place};
use crate::crypto::blob::MaterialId;
use crate::crypto::material::{KeyMaterial, MacKey, MaterialError};
use crate::crypto::pair::KeyPair;
use crate::crypto::seal::{self, RootKey, Secret, UnsealError};
use crate::error::{ApiError, ErrorKind};
use crate::policy::{Policy, PolicyError};
use crate::spec::{Algorithms, Origin};
use crate::store::{self, AliasRow, KeyRow, MaterialRow, StoreError};

/// One version of a key's material.
#[derive(Debug, Clone)]
pub struct Material {
    /// Its public name.
    pub id: MaterialId,
    /// Counts from 1.
    pub version: i64,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// Imported, and not rotated to yet.
    pub pending: bool,
    /// `AUTOMATIC` or `ON_DEMAND` and when, if a rotation made it current.
    pub rotation: Option<(Box<str>, i64)>,
    /// When it expires, milliseconds since 1970.
    pub valid_to_ms: Option<i64>,
    /// What its importer says about it.
    pub description: Option<Box<str>>,
    /// The secret; none when it was deleted or has expired.
    pub secret: Option<Arc<KeyMaterial>>,
}

impl Material {
    /// The row to store, the secret sealed.
    pub(crate) fn row(&self, key: &KeyRow, root: &RootKey) -> Result<MaterialRow, ApiError> {
        let label = seal::material_label(&key.id, self.version, &key.account);
        let sealed = match &self.secret {
            Some(secret) => root
                .seal(&label, secret.to_store())
                .map_err(|error| ApiError::internal(&error))?,
            None => Vec::new(),
        };
        Ok(MaterialRow {
            key_id: key.id.clone(),
            version: self.version,
            material_id: self.id.0.to_vec(),
            sealed,
            created_ms: self.created_ms,
            pending: self.pending,
            rotation: self.rotation.as_ref().map(|(kind, _)| kind.to_string()),
            rotated_ms: self.rotation.as_ref().map(|(_, at)| *at),
            valid_to_ms: self.valid_to_ms,
            description: self.description.as_deref().map(str::to_owned),
        })
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
    /// All materials, oldest first; those that are pending last.
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
    /// A primary key that will wait for its deletion once its replicas are deleted.
    PendingReplicaDeletion,
    /// Has no material, or not all of it.
    PendingImport,
}

impl KeyState {
    /// The state of a key with or without all the materials that belong to it.
    #[must_use]
    pub fn of(row: &KeyRow, is_whole: bool) -> Self {
        if row.deletion_ms.is_some() {
            Self::PendingDeletion
        } else if row.pending_days.is_some() {
            Self::PendingReplicaDeletion
        } else if !is_whole {
            Self::PendingImport
        } else if row.enabled {
            Self::Enabled
        } else {
            Self::Disabled
        }
    }

    /// As in `KeyMetadata`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::PendingReplicaDeletion => "PendingReplicaDeletion",
            Self::PendingImport => "PendingImport",
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
    /// A material that is not of its key's kind.
    #[error("the material of key {key} is damaged")]
    Material {
        /// Whose.
        key: String,
        /// How.
        #[source]
        source: MaterialError,
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

impl LoadError {
    /// Whether it may pass once `root.key` can be read.
    pub(crate) fn is_unread(&self) -> bool {
        let unread = |source: &UnsealError| matches!(source, UnsealError::Unread(_));
        matches!(self, Self::Unseal { source, .. } if unread(source))
    }
}

impl Key {
    /// Puts a key together.
    ///
    /// # Errors
    /// If the policy does not parse or there is no material where this server made it.
    pub fn new(row: KeyRow, materials: Vec<Material>) -> Result<Self, LoadError> {
        if materials.is_empty() && row.origin == Origin::AwsKms {
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
        let arn = place.key_arn(store::key_id(&row.id)).into();
        Ok(Self {
            place,
            arn,
            policy: policy.into(),
            materials: materials.into(),
            row,
        })
    }

    /// Puts a key together from what is stored.
    ///
    /// # Errors
    /// If anything of it cannot be used; nothing is skipped.
    pub(crate) fn open(
        row: KeyRow,
        materials: Vec<MaterialRow>,
        root: &RootKey,
    ) -> Result<Self, LoadError> {
        let opened = materials
            .into_iter()
            .map(|material| open_material(material, &row, root));
        let opened = opened.collect::<Result<Vec<_>, _>>()?;
        Self::new(row, opened)
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

    /// Its key id, which replicas share.
    #[must_use]
    pub fn id(&self) -> &str {
        store::key_id(&self.row.id)
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> KeyState {
        KeyState::of(&self.row, self.is_whole())
    }

    /// Whether all materials that belong to it are here.
    fn is_whole(&self) -> bool {
        let mut own = self.materials.iter().filter(|material| !material.pending);
        self.current().is_some() && own.all(|material| material.secret.is_some())
    }

    /// All materials, oldest first.
    #[must_use]
    pub fn materials(&self) -> &[Material] {
        &self.materials
    }

    /// The material that encrypts; its secret may be gone.
    #[must_use]
    pub fn current(&self) -> Option<&Material> {
        self.materials.iter().rfind(|material| !material.pending)
    }

    /// The material that the next rotation makes current.
    #[must_use]
    pub fn pending(&self) -> Option<&Material> {
        self.materials.iter().find(|material| material.pending)
    }

    /// The material of that name.
    #[must_use]
    pub fn material(&self, id: MaterialId) -> Option<&Material> {
        self.materials.iter().find(|material| material.id == id)
    }

    /// The secret that encrypts, and its name.
    pub(crate) fn symmetric(&self) -> Option<(MaterialId, &Secret)> {
        let material = self.current()?;
        Some((material.id, symmetric(material)?))
    }

    /// The secret of that name.
    pub(crate) fn symmetric_material(&self, id: MaterialId) -> Option<&Secret> {
        symmetric(self.material(id)?)
    }

    /// The key pair, if it is one.
    pub(crate) fn pair(&self) -> Option<&KeyPair> {
        match self.current()?.secret.as_deref()? {
            KeyMaterial::Pair(pair) => Some(pair),
            _ => None,
        }
    }

    /// The HMAC key, if it is one.
    pub(crate) fn mac(&self) -> Option<&MacKey> {
        match self.current()?.secret.as_deref()? {
            KeyMaterial::Mac(key) => Some(key),
            _ => None,
        }
    }

    /// What it can do.
    #[must_use]
    pub fn algorithms(&self) -> Algorithms {
        self.row.spec.algorithms(self.row.usage).unwrap_or_default()
    }

    /// Whether it is one of a family of multi-Region keys.
    #[must_use]
    pub fn is_multi_region(&self) -> bool {
        self.row.primary_region.is_some()
    }

    /// Whether it is the primary of its family.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.row.primary_region.as_deref() == Some(&*self.place.region)
    }

    /// Refuses keys that cannot be used now.
    ///
    /// # Errors
    /// `DisabledException` or `KMSInvalidStateException`.
    pub fn usable(&self, now_ms: i64) -> Result<(), ApiError> {
        self.not_pending_deletion()?;
        self.not_pending_import(now_ms)?;
        match self.state() {
            KeyState::Disabled => Err(ApiError::new(
                ErrorKind::Disabled,
                format!("{} is disabled.", self.arn),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses keys that wait for deletion.
    ///
    /// # Errors
    /// `KMSInvalidStateException`.
    pub fn not_pending_deletion(&self) -> Result<(), ApiError> {
        match self.state() {
            KeyState::PendingDeletion => Err(self.invalid_state("pending deletion")),
            KeyState::PendingReplicaDeletion => Err(self.invalid_state("pending replica deletion")),
            _ => Ok(()),
        }
    }

    /// Refuses keys without their material. What has expired is gone at once, even before it is swept up.
    ///
    /// # Errors
    /// `KMSInvalidStateException`.
    pub fn not_pending_import(&self, now_ms: i64) -> Result<(), ApiError> {
        let expired = |material: &Material| material.valid_to_ms.is_some_and(|at| at <= now_ms);
        if !self.is_whole() || self.materials.iter().any(expired) {
            return Err(self.invalid_state("pending import"));
        }
        Ok(())
    }

    fn invalid_state(&self, state: &str) -> ApiError {
        ApiError::new(
            ErrorKind::KmsInvalidState,
            format!("{} is {state}.", self.arn),
        )
    }

    /// `KeyMetadata`. The family are all keys of its id, itself among them, if it is a multi-Region key.
    #[must_use]
    pub fn metadata(&self, family: &[Arc<Self>]) -> Value {
        let mut metadata = json!({
            "AWSAccountId": self.row.account,
            "KeyId": self.id(),
            "Arn": &*self.arn,
            "CreationDate": seconds(self.row.created_ms),
            "Enabled": self.state() == KeyState::Enabled,
            "Description": self.row.description,
            "KeyUsage": self.row.usage.name(),
            "KeyState": self.state().name(),
            "Origin": self.row.origin.name(),
            "KeyManager": "CUSTOMER",
            "CustomerMasterKeySpec": self.row.spec.name(),
            "KeySpec": self.row.spec.name(),
            "MultiRegion": self.is_multi_region(),
        });
        self.add_algorithms(&mut metadata);
        let mut add = |name: &str, value: Option<Value>| {
            if let (Some(value), Some(members)) = (value, metadata.as_object_mut()) {
                members.insert(name.to_owned(), value);
            }
        };
        add(
            "DeletionDate",
            self.row.deletion_ms.map(|at| seconds(at).into()),
        );
        add(
            "PendingDeletionWindowInDays",
            self.row.pending_days.map(Into::into),
        );
        if self.row.spec.is_symmetric_encryption() {
            let id = self.current().map(|material| material.id.to_string());
            add("CurrentKeyMaterialId", id.map(Into::into));
        }
        if self.row.origin == Origin::External && self.is_whole() {
            let own = self.materials.iter().filter(|material| !material.pending);
            let valid_to = own.filter_map(|material| material.valid_to_ms).min();
            add("ExpirationModel", Some(expiration_model(valid_to).into()));
            add("ValidTo", valid_to.map(|at| seconds(at).into()));
        }
        if self.is_multi_region() {
            add("MultiRegionConfiguration", Some(self.regions(family)));
        }
        metadata
    }

    /// Adds the lists of algorithms that are not empty, as `KeyMetadata` and `GetPublicKey` show them.
    pub(crate) fn add_algorithms(&self, output: &mut Value) {
        let algorithms = self.algorithms();
        let encryption: Vec<_> = algorithms.encryption.iter().map(|a| a.name()).collect();
        let signing: Vec<_> = algorithms.signing.iter().map(|a| a.name()).collect();
        let mac: Vec<_> = algorithms.mac.iter().map(|a| a.name()).collect();
        let lists = [
            ("EncryptionAlgorithms", encryption),
            ("SigningAlgorithms", signing),
            ("MacAlgorithms", mac),
            ("KeyAgreementAlgorithms", algorithms.agreement.to_vec()),
            ("EncapsulationAlgorithms", algorithms.encapsulation.to_vec()),
        ];
        for (name, list) in lists {
            if let (false, Some(members)) = (list.is_empty(), output.as_object_mut()) {
                members.insert(name.to_owned(), list.into());
            }
        }
    }

    fn regions(&self, family: &[Arc<Self>]) -> Value {
        let entry = |key: &Arc<Self>| json!({ "Arn": &*key.arn, "Region": &*key.place.region });
        let (primary, replicas): (Vec<_>, Vec<_>) = family.iter().partition(|key| key.is_primary());
        json!({
            "MultiRegionKeyType": if self.is_primary() { "PRIMARY" } else { "REPLICA" },
            "PrimaryKey": primary.first().map(|key| entry(key)),
            "ReplicaKeys": replicas.into_iter().map(entry).collect::<Vec<_>>(),
        })
    }
}

/// AWS's name of what becomes of imported material.
pub(crate) fn expiration_model(valid_to_ms: Option<i64>) -> &'static str {
    match valid_to_ms {
        Some(_) => "KEY_MATERIAL_EXPIRES",
        None => "KEY_MATERIAL_DOES_NOT_EXPIRE",
    }
}

fn symmetric(material: &Material) -> Option<&Secret> {
    match material.secret.as_deref()? {
        KeyMaterial::Symmetric(key) => Some(&key.0),
        _ => None,
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
    /// Row ids of each multi-Region key id.
    families: DashMap<String, BTreeSet<String>>,
    /// Policies by their text: keys that have the same one share it.
    policies: DashMap<Arc<str>, Weak<Policy>>,
    /// Which reading of `root.key` it was that did not open all stored keys; 0 if they are all here.
    incomplete: AtomicU64,
}

impl Keyring {
    /// Finds the key that a reference names.
    ///
    /// # Errors
    /// `NotFoundException` with AWS's text; `DependencyTimeoutException` if it may be one that does not open yet.
    pub fn find(&self, reference: &KeyRef) -> Result<Arc<Key>, ApiError> {
        self.lookup(reference).map_err(|error| self.missing(error))
    }

    /// What is said of a key that is not here: that error, or that it may be one that does not open yet.
    pub(crate) fn missing(&self, error: ApiError) -> ApiError {
        match self.incomplete() {
            None => error,
            Some(_) => ApiError::try_again(&error),
        }
    }

    fn lookup(&self, reference: &KeyRef) -> Result<Arc<Key>, ApiError> {
        let missing = |arn| ApiError::not_found(format!("Key '{arn}' does not exist"));
        match reference {
            KeyRef::Key(place, id) => self
                .in_region(id, &place.region)
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

    /// The key of that id in a region. Of multi-Region keys there may be one in each.
    #[must_use]
    pub fn in_region(&self, id: &str, region: &str) -> Option<Arc<Key>> {
        let here = |key: &Arc<Key>| *key.place.region == *region;
        match self.get(id).filter(here) {
            Some(key) => Some(key),
            None => self.family(id).into_iter().find(here),
        }
    }

    /// All keys of a multi-Region key id, in all regions; none for other ids.
    #[must_use]
    pub fn family(&self, id: &str) -> Vec<Arc<Key>> {
        let rows = self.families.get(id).map(|rows| rows.clone());
        let rows = rows.unwrap_or_default();
        rows.iter().filter_map(|row_id| self.get(row_id)).collect()
    }

    /// The primary of a key's family: the key itself if it has none.
    #[must_use]
    pub fn primary(&self, key: &Arc<Key>) -> Arc<Key> {
        let primary = self
            .family(key.id())
            .into_iter()
            .find(|key| key.is_primary());
        primary.unwrap_or_else(|| Arc::clone(key))
    }

    /// `KeyMetadata` of a key.
    pub(crate) fn metadata(&self, key: &Key) -> Value {
        key.metadata(&self.family(key.id()))
    }

    /// A key by the id of its row.
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

    /// Keys of which that holds.
    pub(crate) fn select(&self, due: impl Fn(&Key) -> bool) -> Vec<Arc<Key>> {
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
    pub(crate) fn put(&self, mut key: Key) {
        self.share_policy(&mut key);
        if key.is_multi_region() {
            self.families
                .entry(key.id().to_owned())
                .or_default()
                .insert(key.row.id.clone());
        }
        self.keys.insert(key.row.id.clone(), Arc::new(key));
    }

    /// Gives a key the policy that others have in memory already, if there is one of the same text.
    fn share_policy(&self, key: &mut Key) {
        let known = self.policies.get(&key.row.policy).and_then(|entry| {
            let policy = entry.value().upgrade()?;
            Some((Arc::clone(entry.key()), policy))
        });
        if let Some((text, policy)) = known {
            (key.row.policy, key.policy) = (text, policy);
            return;
        }
        // What no key has any more is forgotten before it outnumbers the keys.
        if self.policies.len() > 2 * self.keys.len() {
            self.policies.retain(|_, policy| policy.strong_count() > 0);
        }
        let text = Arc::clone(&key.row.policy);
        self.policies.insert(text, Arc::downgrade(&key.policy));
    }

    /// Which reading of `root.key` did not open all stored keys; none if they are all here.
    pub(crate) fn incomplete(&self) -> Option<u64> {
        Some(self.incomplete.load(Ordering::Acquire)).filter(|reading| *reading != 0)
    }

    /// Notes that stored keys are not here, with the reading of `root.key` that did not open them, or that they all are.
    pub(crate) fn set_incomplete(&self, reading: Option<u64>) {
        self.incomplete
            .store(reading.unwrap_or(0), Ordering::Release);
    }

    /// Forgets a key and its aliases.
    pub(crate) fn remove(&self, key: &Key) {
        self.keys.remove(&key.row.id);
        if let Some(mut rows) = self.families.get_mut(key.id()) {
            rows.remove(&key.row.id);
        }
        self.families.remove_if(key.id(), |_, rows| rows.is_empty());
        for name in self.alias_names(&key.row.id) {
            self.remove_alias(&key.place, &name);
        }
    }

    /// Adds an alias or points it elsewhere.
    pub(crate) fn put_alias(&self, alias: AliasRow) {
        let place = Place::new(alias.account.as_str(), alias.region.as_str());
        let (name, key_id) = (alias.name.clone(), alias.key_id.clone());
        // Replaced in one step: who looks it up meanwhile finds the old one or the new one.
        let old = self.aliases.insert((place, name.clone()), Arc::new(alias));
        if let Some(old) = old.filter(|old| old.key_id != key_id)
            && let Some(mut names) = self.names.get_mut(&old.key_id)
        {
            names.remove(&name);
        }
        self.names.entry(key_id).or_default().insert(name);
    }

    /// Forgets those aliases of a key that are not among these.
    pub(crate) fn keep_aliases(&self, key_id: &str, kept: &[AliasRow]) {
        let Some(key) = self.get(key_id) else {
            return;
        };
        for name in self.alias_names(key_id) {
            if !kept.iter().any(|alias| alias.name == name) {
                self.remove_alias(&key.place, &name);
            }
        }
    }

    /// Forgets an alias.
    fn remove_alias(&self, place: &Place, name: &str) {
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

fn open_material(row: MaterialRow, key: &KeyRow, root: &RootKey) -> Result<Material, LoadError> {
    let secret = match row.sealed.as_slice() {
        [] => None,
        sealed => Some(open_secret(sealed, row.version, key, root)?),
    };
    let id = <[u8; 32]>::try_from(row.material_id.as_slice()).map_err(|_| LoadError::Damaged {
        key: key.id.clone(),
        what: "a material id is not 32 bytes",
    })?;
    Ok(Material {
        id: MaterialId(id),
        version: row.version,
        created_ms: row.created_ms,
        pending: row.pending,
        rotation: row.rotation.map(Into::into).zip(row.rotated_ms),
        valid_to_ms: row.valid_to_ms,
        description: row.description.map(Into::into),
        secret,
    })
}

fn open_secret(
    sealed: &[u8],
    version: i64,
    key: &KeyRow,
    root: &RootKey,
) -> Result<Arc<KeyMaterial>, LoadError> {
    let label = seal::material_label(&key.id, version, &key.account);
    let bytes = root
        .unseal(&label, sealed)
        .map_err(|source| LoadError::Unseal {
            key: key.id.clone(),
            source,
        })?;
    let secret = KeyMaterial::stored(key.spec, key.usage, bytes);
    secret.map(Arc::new).map_err(|source| LoadError::Material {
        key: key.id.clone(),
        source,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::policy::default_policy;

    /// A key without material.
    pub(crate) fn row(id: &str) -> KeyRow {
        KeyRow {
            id: id.to_owned(),
            account: "111122223333".to_owned(),
            region: "eu-west-1".to_owned(),
            created_ms: 0,
            description: String::new(),
            enabled: true,
            deletion_ms: None,
            policy: default_policy("111122223333").into(),
            spec: crate::spec::KeySpec::SymmetricDefault,
            usage: crate::spec::KeyUsage::EncryptDecrypt,
            origin: Origin::External,
            primary_region: None,
            rotation_days: None,
            next_rotation_ms: None,
            pending_days: None,
        }
    }

    #[test]
    fn keys_of_the_same_policy_share_it_and_others_are_forgotten() {
        let keys = Keyring::default();
        let put = |id: &str, policy: String| {
            let policy = policy.into();
            keys.put(Key::new(KeyRow { policy, ..row(id) }, Vec::new()).unwrap());
            keys.get(id).unwrap()
        };
        let of = |account: u64| default_policy(&format!("{account:012}"));
        let (one, two) = (put("one", of(1)), put("two", of(1)));
        assert!(Arc::ptr_eq(&one.policy, &two.policy));
        assert!(Arc::ptr_eq(&one.row.policy, &two.row.policy));
        for account in 2..100 {
            let three = put("three", of(account));
            assert_eq!(*three.row.policy, of(account));
            assert_eq!(*three.policy, Policy::parse(&of(account)).unwrap());
        }
        assert!(keys.policies.len() < 10, "{}", keys.policies.len());
        assert!(Arc::ptr_eq(&one.policy, &put("four", of(1)).policy));
    }
}
