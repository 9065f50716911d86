//! A policy as alternatives without nesting, which can be looked through: for the linter and for key policies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::file::{Condition, Policy, SignedBy, When};
use crate::pcr::{PcrIndex, PcrValue};

/// Most alternatives: a policy that has more is nobody's to understand, and costs time to look through.
const CASES_MAX: usize = 4096;

/// Too many alternatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the policy has more than {CASES_MAX} combinations: nest less, or put fewer builds of several registers below one \"not\""
)]
pub struct TooManyCases;

/// One way to be accepted: everything in it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) registers: BTreeMap<PcrIndex, Values>,
    pub(super) not_before: Option<When>,
    pub(super) not_after: Option<When>,
    pub(super) max_age: Option<u64>,
    pub(super) nonce: bool,
    /// Measurements and signers that it stands for.
    pub(super) names: BTreeSet<String>,
    /// The register that holds the image's version, if there is a minimum.
    pub(super) version: Option<PcrIndex>,
}

/// What a register may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Values {
    /// One of these; any when `None`.
    pub(super) only: Option<BTreeSet<PcrValue>>,
    /// None of these.
    pub(super) never: BTreeSet<PcrValue>,
}

impl Policy {
    /// Whether a nonce is asked for in any alternative: a client that sends one can then be served by all of them.
    #[must_use]
    pub fn asks_for_nonce(&self) -> bool {
        // Reading the policy has counted its alternatives.
        cases(self).is_ok_and(|cases| cases.iter().any(|case| case.nonce))
    }
}

/// The alternatives of a policy whose names have been looked up.
pub(super) fn cases(policy: &Policy) -> Result<Vec<Case>, TooManyCases> {
    expand(policy, policy.require(), false)
}

fn expand(policy: &Policy, condition: &Condition, not: bool) -> Result<Vec<Case>, TooManyCases> {
    let inner = |list: &[Condition]| -> Result<Vec<Vec<Case>>, TooManyCases> {
        list.iter().map(|item| expand(policy, item, not)).collect()
    };
    match condition {
        Condition::All(list) if not => union(inner(list)?),
        Condition::All(list) => product(inner(list)?),
        Condition::Any(list) if not => product(inner(list)?),
        Condition::Any(list) => union(inner(list)?),
        Condition::Not(condition) => expand(policy, condition, !not),
        Condition::Measurements(names) if not => {
            let builds = names.iter().map(|name| differs(&pcrs_of(policy, name)));
            product(builds.collect())
        }
        Condition::Measurements(names) => {
            Ok(names.iter().map(|name| build(policy, name)).collect())
        }
        Condition::Signer(signed) => Ok(signer(policy, signed, not)),
        Condition::Role(arn) => Ok(register(PcrIndex::ROLE, PcrValue::of_role(arn), not)),
        Condition::Instance(id) => Ok(register(PcrIndex::INSTANCE, PcrValue::of_instance(id), not)),
        Condition::Pcrs(pcrs) if not => Ok(differs(pcrs)),
        Condition::Pcrs(pcrs) => Ok(vec![Case::same(pcrs)]),
        // Reading a policy refuses both below "not".
        Condition::Nonce(_) => Ok(vec![Case {
            nonce: true,
            ..Case::default()
        }]),
        Condition::MaxAgeSeconds(seconds) => Ok(vec![Case {
            max_age: Some(*seconds),
            ..Case::default()
        }]),
    }
}

fn pcrs_of(policy: &Policy, name: &str) -> BTreeMap<PcrIndex, PcrValue> {
    let measurement = policy.measurement(name);
    measurement.map_or_else(|_| BTreeMap::new(), |measurement| measurement.pcrs.clone())
}

fn build(policy: &Policy, name: &str) -> Case {
    let dates = policy.measurement(name).ok();
    Case {
        not_before: dates.and_then(|dates| dates.not_before),
        not_after: dates.and_then(|dates| dates.not_after),
        names: [name.to_owned()].into(),
        ..Case::same(&pcrs_of(policy, name))
    }
}

fn signer(policy: &Policy, signed: &SignedBy, not: bool) -> Vec<Case> {
    let (Ok(signer), Ok(versions)) = (policy.signer(&signed.name), policy.versions(signed)) else {
        return Vec::new();
    };
    let signed_by = (PcrIndex::SIGNER, signer.pcr8.clone());
    let version = versions.as_ref().map(|(index, _)| *index);
    let versions =
        versions.map(|(index, range)| (index, range.map(PcrValue::of_version).collect()));
    let registers = [signed_by].into_iter().chain(versions);
    if not {
        return registers
            .map(|(index, values)| Case::never(index, values))
            .collect();
    }
    let only = |values| Values {
        only: Some(values),
        never: BTreeSet::new(),
    };
    vec![Case {
        registers: registers
            .map(|(index, values)| (index, only(values)))
            .collect(),
        names: [signed.name.clone()].into(),
        version,
        ..Case::default()
    }]
}

fn register(index: PcrIndex, value: PcrValue, not: bool) -> Vec<Case> {
    if not {
        return vec![Case::never(index, [value].into())];
    }
    vec![Case::same(&[(index, value)].into())]
}

fn differs(pcrs: &BTreeMap<PcrIndex, PcrValue>) -> Vec<Case> {
    let never = pcrs
        .iter()
        .map(|(index, value)| Case::never(*index, [*value].into()));
    never.collect()
}

fn union(lists: Vec<Vec<Case>>) -> Result<Vec<Case>, TooManyCases> {
    bounded(lists.into_iter().flatten())
}

fn product(lists: Vec<Vec<Case>>) -> Result<Vec<Case>, TooManyCases> {
    lists
        .into_iter()
        .try_fold(vec![Case::default()], |found, list| {
            bounded(
                found
                    .iter()
                    .flat_map(|case| list.iter().map(|other| case.and(other))),
            )
        })
}

fn bounded(cases: impl Iterator<Item = Case>) -> Result<Vec<Case>, TooManyCases> {
    let cases: Vec<_> = cases.take(CASES_MAX + 1).collect();
    if cases.len() > CASES_MAX {
        return Err(TooManyCases);
    }
    Ok(cases)
}

impl Case {
    fn same(pcrs: &BTreeMap<PcrIndex, PcrValue>) -> Self {
        let registers = pcrs.iter().map(|(index, value)| {
            let only = Some([*value].into());
            let never = BTreeSet::new();
            (*index, Values { only, never })
        });
        Self {
            registers: registers.collect(),
            ..Self::default()
        }
    }

    fn never(index: PcrIndex, never: BTreeSet<PcrValue>) -> Self {
        let values = Values { only: None, never };
        Self {
            registers: [(index, values)].into(),
            ..Self::default()
        }
    }

    /// Both.
    fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (index, values) in &other.registers {
            both.registers.entry(*index).or_default().narrow(values);
        }
        both.not_before = self.not_before.max(other.not_before);
        both.not_after = earlier(self.not_after, other.not_after);
        both.max_age = earlier(self.max_age, other.max_age);
        both.nonce |= other.nonce;
        both.names.extend(other.names.iter().cloned());
        both.version = self.version.or(other.version);
        both
    }

    /// Whether any document can be like this, at any time.
    pub(super) fn is_possible(&self) -> bool {
        let in_order = match (self.not_before, self.not_after) {
            (Some(begin), Some(end)) => begin <= end,
            _ => true,
        };
        in_order && self.registers.values().all(Values::is_possible)
    }

    /// Whether only this register's values are accepted, and which.
    pub(super) fn only(&self, index: PcrIndex) -> Option<&BTreeSet<PcrValue>> {
        self.registers
            .get(&index)
            .and_then(|values| values.only.as_ref())
    }

    /// Whether a document with this register zero can be like this.
    pub(super) fn admits_zero(&self, index: PcrIndex) -> bool {
        self.registers
            .get(&index)
            .is_none_or(|values| values.admits(&PcrValue::ZERO))
    }
}

impl Values {
    fn narrow(&mut self, other: &Self) {
        self.only = match (self.only.take(), &other.only) {
            (Some(mine), Some(others)) => Some(mine.intersection(others).copied().collect()),
            (mine, others) => mine.or_else(|| others.clone()),
        };
        self.never.extend(&other.never);
    }

    fn admits(&self, value: &PcrValue) -> bool {
        !self.never.contains(value) && self.only.as_ref().is_none_or(|only| only.contains(value))
    }

    fn is_possible(&self) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.iter().any(|value| self.admits(value)))
    }
}

/// The smaller of two limits, where there are two.
fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// `app-7, release, PCR3`: names, and registers that are pinned one by one.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = self
            .registers
            .iter()
            .map(|(index, values)| match values.only {
                Some(_) => format!("PCR{index}"),
                None => format!("PCR{index} not"),
            });
        let parts: Vec<_> = self.names.iter().cloned().chain(registers).collect();
        if parts.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&parts.join(", "))
    }
}
