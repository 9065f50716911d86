//! Grants: what one principal may do with one key, beside the key's policy.
//!
//! A grant only ever admits. It names a grantee, operations, and constraints on the encryption context; a
//! Deny in any policy still wins (see [`crate::authz`]). Grants are in memory like keys: filled from the store
//! at start, changed by [`crate::memory`] after the store has made a change durable. So a grant is valid as soon as `CreateGrant` has
//! answered, and a grant token is not needed for it: tokens are checked to be ours and otherwise change nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};

use crate::arn::{PrincipalArn, PrincipalKind};
use crate::crypto::seal::{RootKey, SealError};
use crate::store::GrantRow;

/// Key-value pairs that go with a ciphertext.
pub type EncryptionContext = BTreeMap<String, String>;

/// Operations that a grant may hold, in AWS's order.
pub const OPERATIONS: &[&str] = &[
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "Sign",
    "Verify",
    "GetPublicKey",
    "CreateGrant",
    "RetireGrant",
    "DescribeKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateMac",
    "VerifyMac",
    "DeriveSharedSecret",
    "Encapsulate",
    "Decapsulate",
];

/// Operations that a grant's constraints on the encryption context do not touch.
const WITHOUT_CONTEXT: &[&str] = &["DescribeKey", "RetireGrant", "CreateGrant"];

/// Who gets a grant or may retire it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Party {
    /// ARN of an account, user, role or session.
    Principal(String),
    /// Such as `rds.amazonaws.com`. No service calls here, so such a grant admits nobody.
    Service(String),
}

impl Party {
    /// The ARN or the service's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Principal(name) | Self::Service(name) => name,
        }
    }
}

/// What must hold beyond grantee and operation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraints {
    /// The encryption context has these pairs and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<EncryptionContext>,
    /// The encryption context has these pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<EncryptionContext>,
    /// The request is made on behalf of this resource. Only AWS's own services make such requests, so with it a grant admits nobody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_arn: Option<String>,
}

impl Constraints {
    /// AWS's names of the constraints that are set: `kms:GrantConstraintType`.
    #[must_use]
    pub fn types(&self) -> Vec<&'static str> {
        let set = [
            ("EncryptionContextEquals", self.equals.is_some()),
            ("EncryptionContextSubset", self.subset.is_some()),
            ("SourceArn", self.source_arn.is_some()),
        ];
        set.into_iter()
            .filter_map(|(name, set)| set.then_some(name))
            .collect()
    }

    /// Whether everything that satisfies `self` satisfies `outer` too.
    fn within(&self, outer: &Self) -> bool {
        let source = outer.source_arn.is_none() || outer.source_arn == self.source_arn;
        let equals = outer.equals.as_ref().is_none_or(|wanted| {
            let mine = self.equals.as_ref();
            mine.is_some_and(|mine| same(mine, wanted))
        });
        let subset = outer.subset.as_ref().is_none_or(|wanted| {
            let has = |mine: &Option<EncryptionContext>| {
                mine.as_ref().is_some_and(|mine| includes(mine, wanted))
            };
            has(&self.equals) || has(&self.subset)
        });
        source && equals && subset
    }
}

/// Names of pairs are compared without regard to case, in grants alone: values, and all else in KMS, are not.
fn includes(context: &EncryptionContext, wanted: &EncryptionContext) -> bool {
    wanted.iter().all(|(name, value)| {
        let mut pairs = context.iter();
        pairs.any(|(other, found)| other.eq_ignore_ascii_case(name) && found == value)
    })
}

fn same(one: &EncryptionContext, other: &EncryptionContext) -> bool {
    one.len() == other.len() && includes(one, other) && includes(other, one)
}

/// What a `CreateGrant` request asks for. Two requests with the same name and the same terms are one grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Friendly name, which makes repeating a request harmless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who is admitted.
    pub grantee: Party,
    /// Who may retire it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring: Option<Party>,
    /// Account of whoever made it.
    pub issuing_account: String,
    /// Of [`OPERATIONS`].
    pub operations: Vec<String>,
    /// Beyond that.
    #[serde(default)]
    pub constraints: Constraints,
}

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// 64 hex digits.
    pub id: String,
    /// Whose key.
    pub key_id: String,
    /// Creation, milliseconds since 1970.
    pub created_ms: i64,
    /// What it says.
    pub terms: Terms,
}

/// What is asked of a grant.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// Such as `Decrypt`.
    pub operation: &'a str,
    /// The request's encryption context, if the operation has one.
    pub encryption_context: Option<&'a EncryptionContext>,
    /// For `CreateGrant`: the grant that is to be.
    pub new_grant: Option<&'a Terms>,
}

/// Why a grant to the caller did not admit a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another operation.
    Operation,
    /// The encryption context is not the one that it demands.
    EncryptionContext,
    /// Only requests of AWS services satisfy it.
    SourceArn,
    /// The new grant would allow more than this one does.
    WiderGrant,
}

/// How a grant reaches the caller, which decides what limits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It names the user or the session itself: nothing but a Deny limits it.
    Direct,
    /// It names the session's role: session policies and permissions boundaries limit it.
    Role,
    /// It names the account, whose identity policies decide.
    Account,
}

impl Grant {
    /// Whether it admits a use by its grantee.
    ///
    /// # Errors
    /// What is in the way.
    pub fn permits(&self, asked: &Use<'_>) -> Result<(), Refusal> {
        let terms = &self.terms;
        if !terms.operations.iter().any(|name| name == asked.operation) {
            return Err(Refusal::Operation);
        }
        let constraints = &terms.constraints;
        if constraints.source_arn.is_some() && asked.operation != "RetireGrant" {
            return Err(Refusal::SourceArn);
        }
        if let Some(new) = asked.new_grant {
            let operations = new
                .operations
                .iter()
                .all(|name| terms.operations.contains(name));
            let narrower = operations && new.constraints.within(constraints);
            return if narrower {
                Ok(())
            } else {
                Err(Refusal::WiderGrant)
            };
        }
        if WITHOUT_CONTEXT.contains(&asked.operation) {
            return Ok(());
        }
        let none = EncryptionContext::new();
        let context = asked.encryption_context.unwrap_or(&none);
        let equal = constraints
            .equals
            .as_ref()
            .is_none_or(|wanted| same(context, wanted));
        let subset = constraints
            .subset
            .as_ref()
            .is_none_or(|wanted| includes(context, wanted));
        if equal && subset {
            Ok(())
        } else {
            Err(Refusal::EncryptionContext)
        }
    }

    /// How it reaches a caller as grantee.
    #[must_use]
    pub fn reaches(&self, caller: &PrincipalArn) -> Option<Reach> {
        reach(&self.terms.grantee, caller)
    }

    /// Whether the caller is its retiring principal.
    #[must_use]
    pub fn retired_by(&self, caller: &PrincipalArn) -> bool {
        let reach = self.terms.retiring.as_ref().and_then(|r| reach(r, caller));
        match reach {
            Some(Reach::Direct | Reach::Role) => true,
            Some(Reach::Account) | None => false,
        }
    }

    /// The row that the store keeps.
    ///
    /// # Errors
    /// If the terms cannot be written as JSON, which their type does not allow for.
    pub fn row(&self) -> Result<GrantRow, serde_json::Error> {
        Ok(GrantRow {
            id: self.id.clone(),
            key_id: self.key_id.clone(),
            created_ms: self.created_ms,
            terms: serde_json::to_string(&self.terms)?,
        })
    }
}

fn reach(party: &Party, caller: &PrincipalArn) -> Option<Reach> {
    let Party::Principal(name) = party else {
        return None;
    };
    let account = PrincipalArn::root(caller.account());
    if *name == **caller.account() || *name == account.as_str() {
        let root = caller.kind() == PrincipalKind::Root;
        return Some(if root { Reach::Direct } else { Reach::Account });
    }
    if name == caller.as_str() {
        let role = caller.kind() == PrincipalKind::Role;
        return Some(if role { Reach::Role } else { Reach::Direct });
    }
    (caller.role() == Some(name.as_str())).then_some(Reach::Role)
}

impl Grant {
    /// A grant as it is stored.
    ///
    /// # Errors
    /// If it is damaged.
    pub(crate) fn load(row: GrantRow) -> Result<Self, GrantLoadError> {
        let id = row.id.clone();
        Self::try_from(row).map_err(|source| GrantLoadError::Damaged { id, source })
    }
}

impl TryFrom<GrantRow> for Grant {
    type Error = serde_json::Error;

    fn try_from(row: GrantRow) -> Result<Self, serde_json::Error> {
        Ok(Self {
            terms: serde_json::from_str(&row.terms)?,
            id: row.id,
            key_id: row.key_id,
            created_ms: row.created_ms,
        })
    }
}

/// A stored grant cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GrantLoadError {
    /// Not what this program writes.
    #[error("grant {id} is damaged in the database")]
    Damaged {
        /// Which.
        id: String,
        /// How.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Debug, Default)]
struct KeyGrants {
    all: BTreeMap<String, Arc<Grant>>,
    /// By the grantee's name, so that a key with many grants costs a caller only their own.
    by_grantee: HashMap<String, Vec<Arc<Grant>>>,
}

/// All grants.
#[derive(Debug, Default)]
pub struct Grants {
    by_key: DashMap<String, KeyGrants>,
    /// Retiring principal to grant id and key id.
    by_retiring: DashMap<String, BTreeMap<String, String>>,
}

impl Grants {
    /// A grant of a key.
    #[must_use]
    pub fn get(&self, key_id: &str, id: &str) -> Option<Arc<Grant>> {
        self.by_key.get(key_id)?.all.get(id).map(Arc::clone)
    }

    /// Number of a key's grants.
    #[must_use]
    pub fn count(&self, key_id: &str) -> usize {
        self.by_key.get(key_id).map_or(0, |grants| grants.all.len())
    }

    /// A key's grants whose grantee the caller is, each with how it reaches them.
    #[must_use]
    pub fn of(&self, key_id: &str, caller: &PrincipalArn) -> Vec<(Arc<Grant>, Reach)> {
        let Some(grants) = self.by_key.get(key_id) else {
            return Vec::new();
        };
        let root = PrincipalArn::root(caller.account());
        let mut names = vec![caller.as_str(), &**caller.account()];
        if caller.as_str() != root.as_str() {
            names.push(root.as_str());
        }
        names.extend(caller.role());
        names
            .into_iter()
            .filter_map(|name| grants.by_grantee.get(name))
            .flatten()
            .filter_map(|grant| Some((Arc::clone(grant), grant.reaches(caller)?)))
            .collect()
    }

    /// The grant of that name with the same terms.
    #[must_use]
    pub fn same(&self, key_id: &str, terms: &Terms) -> Option<Arc<Grant>> {
        terms.name.as_ref()?;
        let grants = self.by_key.get(key_id)?;
        let of_grantee = grants.by_grantee.get(terms.grantee.name())?;
        of_grantee
            .iter()
            .find(|g| g.terms == *terms)
            .map(Arc::clone)
    }

    /// A key's grants after `after` in the order of their ids, at most `limit`, that `wanted` selects.
    #[must_use]
    pub fn page(
        &self,
        key_id: &str,
        after: &str,
        limit: usize,
        wanted: impl Fn(&Grant) -> bool,
    ) -> Vec<Arc<Grant>> {
        let Some(grants) = self.by_key.get(key_id) else {
            return Vec::new();
        };
        let after = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        grants
            .all
            .range::<str, _>(after)
            .map(|(_, grant)| grant)
            .filter(|grant| wanted(grant))
            .take(limit)
            .map(Arc::clone)
            .collect()
    }

    /// Grants that a principal may retire, after `after` in the order of their ids, at most `limit`, that `wanted` selects.
    #[must_use]
    pub fn retirable(
        &self,
        retiring: &str,
        after: &str,
        limit: usize,
        wanted: impl Fn(&Grant) -> bool,
    ) -> Vec<Arc<Grant>> {
        let Some(ids) = self.by_retiring.get(retiring) else {
            return Vec::new();
        };
        let after = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        ids.range::<str, _>(after)
            .filter_map(|(id, key_id)| self.get(key_id, id))
            .filter(|grant| wanted(grant))
            .take(limit)
            .collect()
    }

    /// Adds a grant. One never changes, so one that is known stays.
    pub(crate) fn put(&self, grant: Grant) {
        if self.get(&grant.key_id, &grant.id).is_some() {
            return;
        }
        let grant = Arc::new(grant);
        if let Some(retiring) = &grant.terms.retiring {
            self.by_retiring
                .entry(retiring.name().to_owned())
                .or_default()
                .insert(grant.id.clone(), grant.key_id.clone());
        }
        let mut grants = self.by_key.entry(grant.key_id.clone()).or_default();
        grants
            .by_grantee
            .entry(grant.terms.grantee.name().to_owned())
            .or_default()
            .push(Arc::clone(&grant));
        grants.all.insert(grant.id.clone(), grant);
    }

    /// Forgets a grant.
    pub(crate) fn remove(&self, key_id: &str, id: &str) {
        let Some(mut grants) = self.by_key.get_mut(key_id) else {
            return;
        };
        let Some(grant) = grants.all.remove(id) else {
            return;
        };
        let grantee = grant.terms.grantee.name();
        if let Some(list) = grants.by_grantee.get_mut(grantee) {
            list.retain(|other| other.id != grant.id);
            if list.is_empty() {
                grants.by_grantee.remove(grantee);
            }
        }
        drop(grants);
        self.forget_retiring(&grant);
    }

    /// All ids of a key's grants.
    pub(crate) fn ids(&self, key_id: &str) -> Vec<String> {
        let grants = self.by_key.get(key_id);
        grants.map_or_else(Vec::new, |grants| grants.all.keys().cloned().collect())
    }

    /// Forgets the grants of a key that is gone.
    pub(crate) fn remove_key(&self, key_id: &str) {
        let Some((_, grants)) = self.by_key.remove(key_id) else {
            return;
        };
        for grant in grants.all.values() {
            self.forget_retiring(grant);
        }
    }

    fn forget_retiring(&self, grant: &Grant) {
        let Some(retiring) = &grant.terms.retiring else {
            return;
        };
        if let Some(mut ids) = self.by_retiring.get_mut(retiring.name()) {
            ids.remove(&grant.id);
        }
        self.by_retiring
            .remove_if(retiring.name(), |_, ids| ids.is_empty());
    }
}

/// What seals grant tokens.
const TOKEN_LABEL: &[u8] = b"enclos-kms grant token";

/// A new token of a grant: unique, opaque, and of no other server.
///
/// # Errors
/// If the system has no randomness.
pub fn token(root: &RootKey, grant: &Grant) -> Result<String, SealError> {
    let name = format!("{}|{}", grant.key_id, grant.id);
    let sealed = root.seal(TOKEN_LABEL, name.as_bytes())?;
    Ok(URL_SAFE_NO_PAD.encode(sealed))
}

/// Key id and grant id of a token; `None` if it is not ours.
#[must_use]
pub fn open_token(root: &RootKey, token: &str) -> Option<(String, String)> {
    let sealed = URL_SAFE_NO_PAD.decode(token).ok()?;
    let name = root.unseal(TOKEN_LABEL, &sealed).ok()?;
    let (key_id, id) = std::str::from_utf8(&name).ok()?.split_once('|')?;
    Some((key_id.to_owned(), id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "arn:aws:iam::111122223333:user/alice";

    fn pairs(pairs: &[(&str, &str)]) -> EncryptionContext {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn grant(id: &str, operations: &[&str], constraints: Constraints) -> Grant {
        Grant {
            id: id.to_owned(),
            key_id: "key".to_owned(),
            created_ms: 0,
            terms: Terms {
                name: None,
                grantee: Party::Principal(USER.to_owned()),
                retiring: Some(Party::Principal("retirer".to_owned())),
                issuing_account: "111122223333".to_owned(),
                operations: operations.iter().map(|name| (*name).to_owned()).collect(),
                constraints,
            },
        }
    }

    fn equals(context: &[(&str, &str)]) -> Constraints {
        Constraints {
            equals: Some(pairs(context)),
            ..Constraints::default()
        }
    }

    fn subset(context: &[(&str, &str)]) -> Constraints {
        Constraints {
            subset: Some(pairs(context)),
            ..Constraints::default()
        }
    }

    #[test]
    fn constraints_look_at_the_encryption_context() {
        let ab = [("a", "1"), ("b", "2")];
        type Row<'a> = (
            Constraints,
            &'a str,
            &'a [(&'a str, &'a str)],
            Result<(), Refusal>,
        );
        let rows: &[Row<'_>] = &[
            (Constraints::default(), "Decrypt", &[], Ok(())),
            (
                Constraints::default(),
                "Encrypt",
                &[],
                Err(Refusal::Operation),
            ),
            (equals(&ab), "Decrypt", &ab, Ok(())),
            (
                equals(&ab),
                "Decrypt",
                &[("a", "1")],
                Err(Refusal::EncryptionContext),
            ),
            (
                equals(&[("a", "1")]),
                "Decrypt",
                &ab,
                Err(Refusal::EncryptionContext),
            ),
            (equals(&[]), "Decrypt", &[], Ok(())),
            (equals(&[]), "Decrypt", &ab, Err(Refusal::EncryptionContext)),
            (subset(&[("a", "1")]), "Decrypt", &ab, Ok(())),
            (
                subset(&[("a", "2")]),
                "Decrypt",
                &ab,
                Err(Refusal::EncryptionContext),
            ),
            (
                subset(&ab),
                "Decrypt",
                &[("a", "1")],
                Err(Refusal::EncryptionContext),
            ),
            (subset(&ab), "DescribeKey", &[], Ok(())),
            // Developer Guide, GrantConstraints: "the key in each key-value pair is not case sensitive, but the value is".
            (equals(&[("A", "1")]), "Decrypt", &[("a", "1")], Ok(())),
            (subset(&[("A", "1")]), "Decrypt", &ab, Ok(())),
            (
                equals(&[("a", "x")]),
                "Decrypt",
                &[("a", "X")],
                Err(Refusal::EncryptionContext),
            ),
            (
                equals(&[("a", "1")]),
                "Decrypt",
                &[("a", "1"), ("A", "1")],
                Err(Refusal::EncryptionContext),
            ),
        ];
        for (constraints, operation, context, expected) in rows {
            let context = pairs(context);
            let asked = Use {
                operation,
                encryption_context: Some(&context),
                new_grant: None,
            };
            let grant = grant("1", &["Decrypt", "DescribeKey"], constraints.clone());
            assert_eq!(
                grant.permits(&asked),
                *expected,
                "{constraints:?} {context:?}"
            );
        }
    }

    #[test]
    fn a_grant_passes_on_no_more_than_it_has() {
        let parent = grant(
            "1",
            &["Decrypt", "Encrypt", "CreateGrant"],
            subset(&[("a", "1")]),
        );
        let rows: &[(&[&str], Constraints, bool)] = &[
            (&["Decrypt"], subset(&[("a", "1")]), true),
            (&["Decrypt"], subset(&[("a", "1"), ("b", "2")]), true),
            (&["Decrypt"], equals(&[("a", "1"), ("b", "2")]), true),
            (&["Decrypt"], equals(&[("a", "2")]), false),
            (&["Decrypt"], equals(&[("A", "1")]), true),
            (&["Decrypt"], Constraints::default(), false),
            (&["Decrypt", "Sign"], subset(&[("a", "1")]), false),
        ];
        for (operations, constraints, permitted) in rows {
            let child = grant("2", operations, constraints.clone());
            let asked = Use {
                operation: "CreateGrant",
                encryption_context: None,
                new_grant: Some(&child.terms),
            };
            assert_eq!(
                parent.permits(&asked).is_ok(),
                *permitted,
                "{operations:?} {constraints:?}"
            );
        }
    }

    #[test]
    fn grantees_are_matched_exactly() {
        let grant = grant("1", &["Decrypt"], Constraints::default());
        let reach = |arn: &str| grant.reaches(&PrincipalArn::parse(arn).unwrap());
        assert_eq!(reach(USER), Some(Reach::Direct));
        assert_eq!(reach("arn:aws:iam::111122223333:user/Alice"), None);
        assert_eq!(reach("arn:aws:iam::111122223333:root"), None);
        let mut account = grant.clone();
        account.terms.grantee = Party::Principal("arn:aws:iam::111122223333:root".to_owned());
        let reach = |arn: &str| account.reaches(&PrincipalArn::parse(arn).unwrap());
        assert_eq!(reach(USER), Some(Reach::Account));
        assert_eq!(reach("arn:aws:iam::111122223333:root"), Some(Reach::Direct));
        assert_eq!(reach("arn:aws:iam::444455556666:root"), None);
    }

    #[test]
    fn the_index_forgets_what_goes() {
        let grants = Grants::default();
        let caller = PrincipalArn::parse(USER).unwrap();
        let all = |_: &Grant| true;
        for id in ["1", "2", "3"] {
            grants.put(grant(id, &["Decrypt"], Constraints::default()));
        }
        assert_eq!(grants.of("key", &caller).len(), 3);
        assert_eq!(grants.page("key", "1", 1, |_| true)[0].id, "2");
        assert_eq!(grants.retirable("retirer", "", 10, all).len(), 3);
        grants.put(grant("2", &["Decrypt"], Constraints::default()));
        assert_eq!(grants.of("key", &caller).len(), 3);
        grants.remove("key", "2");
        assert_eq!(grants.of("key", &caller).len(), 2);
        assert_eq!(grants.retirable("retirer", "1", 10, all)[0].id, "3");
        grants.remove_key("key");
        assert_eq!(grants.count("key"), 0);
        assert!(grants.retirable("retirer", "", 10, all).is_empty());
        assert!(grants.by_retiring.is_empty());
    }

    #[test]
    fn tokens_are_unique_and_ours_alone() {
        let directory = tempfile::tempdir().unwrap();
        let key = |name: &str| RootKey::open(&directory.path().join(name), true).unwrap();
        let (ours, other) = (key("a.key"), key("b.key"));
        let grant = grant("1", &["Decrypt"], Constraints::default());
        let one = token(&ours, &grant).unwrap();
        assert_ne!(one, token(&ours, &grant).unwrap());
        assert_eq!(
            open_token(&ours, &one),
            Some(("key".to_owned(), "1".to_owned()))
        );
        assert_eq!(open_token(&other, &one), None);
        for bad in ["", "x", "AAAA", &one[1..]] {
            assert_eq!(open_token(&ours, bad), None, "{bad}");
        }
    }
}
