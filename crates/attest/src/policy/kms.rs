//! A policy as condition blocks of a KMS key policy.
//!
//! A key policy has no "or" between operators, so each alternative becomes the condition of a statement of its
//! own. AWS's negated operators hold when a request carries no document at all; each condition that pins no
//! register therefore asks for one with `Null`.

use serde_json::{Map, Value, json};

use super::file::Policy;
use super::normal::{self, Case, Values};
use crate::pcr::{PcrIndex, PcrValue};

/// What a key policy says of a measurement policy, and what it cannot say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsConditions {
    /// `Condition` of one `Allow` statement each: a request has to satisfy one of them.
    pub conditions: Vec<Value>,
    /// What is lost: whoever relies on it has to check it elsewhere.
    pub notes: Vec<KmsNote>,
}

/// Something that a key policy cannot express, or had to be changed for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum KmsNote {
    /// A KMS sends no nonce.
    #[error(
        "the nonce cannot be expressed: a KMS sends none and trusts a document for five minutes; where a nonce alone would admit, it admits nobody"
    )]
    Nonce,
    /// A KMS has an age limit of its own.
    #[error("the age of {seconds} s cannot be expressed: a KMS accepts documents up to 300 s old")]
    MaxAge {
        /// The policy's limit.
        seconds: u64,
    },
    /// An alternative that no document can satisfy has no statement.
    #[error("[{case}] can never hold and has no statement")]
    Contradiction {
        /// The alternative.
        case: String,
    },
    /// Documents of debug enclaves reach a KMS's conditions; `verify` refuses them by default.
    #[error(
        "[{case}] pins no image: zeros in PCR0, PCR1 and PCR2 (debug) are excluded, every other image is admitted"
    )]
    AnyImage {
        /// The alternative.
        case: String,
    },
}

const PREFIX: &str = "kms:RecipientAttestation:PCR";

impl Policy {
    /// This policy for `kms:RecipientAttestation:*`.
    ///
    /// What is below a signer's versions becomes a list of values; dates become `aws:CurrentTime`.
    #[must_use]
    pub fn kms_conditions(&self) -> KmsConditions {
        // Reading the policy has counted its alternatives; without a nonce there are no more. Nothing but a nonce is none.
        let cases = |policy: &Self| normal::cases(policy).unwrap_or_default();
        let cases = self
            .for_kms()
            .map_or_else(|_| Vec::new(), |policy| cases(&policy));
        let mut notes: Vec<_> = cases.iter().flat_map(lost).collect();
        notes.extend(self.asks_for_nonce().then_some(KmsNote::Nonce));
        notes.sort();
        notes.dedup();
        let possible = merged(cases.into_iter().filter(Case::is_possible));
        let conditions = possible.iter().map(condition).collect();
        KmsConditions { conditions, notes }
    }
}

fn lost(case: &Case) -> Vec<KmsNote> {
    if !case.is_possible() {
        let case = case.to_string();
        return vec![KmsNote::Contradiction { case }];
    }
    let age = case.max_age.map(|seconds| KmsNote::MaxAge { seconds });
    let image = [
        PcrIndex::IMAGE,
        PcrIndex::BOOT,
        PcrIndex::APPLICATION,
        PcrIndex::SIGNER,
    ];
    let any = image.into_iter().all(|index| case.only(index).is_none());
    let any = any.then(|| KmsNote::AnyImage {
        case: case.to_string(),
    });
    age.into_iter().chain(any).collect()
}

/// Alternatives that differ in the accepted values of one register become one.
fn merged(cases: impl Iterator<Item = Case>) -> Vec<Case> {
    let mut found: Vec<Case> = Vec::new();
    for mut case in cases {
        // What a key policy cannot say makes no difference in it.
        case.max_age = None;
        case.names.clear();
        let joined = found.iter_mut().any(|earlier| join(earlier, &case));
        if !joined {
            found.push(case);
        }
    }
    found
}

fn join(earlier: &mut Case, case: &Case) -> bool {
    let dates = |case: &Case| (case.not_before, case.not_after);
    if dates(earlier) != dates(case) || !earlier.registers.keys().eq(case.registers.keys()) {
        return false;
    }
    let pairs = earlier.registers.values_mut().zip(case.registers.values());
    let mut different: Vec<_> = pairs.filter(|(a, b)| a != b).collect();
    match different.as_mut_slice() {
        [] => true,
        [(a, b)] => match (&mut a.only, &b.only) {
            (Some(mine), Some(others)) if a.never == b.never => {
                mine.extend(others);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

fn condition(case: &Case) -> Value {
    let mut operators = Map::new();
    let mut add = |operator: &str, key: String, value: Value| {
        let block = operators.entry(operator).or_insert_with(|| json!({}));
        if let Some(block) = block.as_object_mut() {
            block.insert(key, value);
        }
    };
    let mut registers = case.registers.clone();
    for index in [PcrIndex::IMAGE, PcrIndex::BOOT, PcrIndex::APPLICATION] {
        let values = registers.entry(index).or_default();
        if values.only.is_none() {
            // What `verify` refuses unless asked for: a debug enclave.
            values.never.insert(PcrValue::ZERO);
        }
    }
    let pinned = registers.values().any(|values| values.only.is_some());
    for (index, Values { only, never }) in registers {
        let key = format!("{PREFIX}{index}");
        if let Some(only) = only {
            let values: Vec<_> = only.difference(&never).map(ToString::to_string).collect();
            add("StringEqualsIgnoreCase", key, json!(values));
        } else {
            let values: Vec<_> = never.iter().map(ToString::to_string).collect();
            add("StringNotEqualsIgnoreCase", key, json!(values));
        }
    }
    if !pinned {
        add("Null", format!("{PREFIX}0"), json!("false"));
    }
    if let Some(begin) = case.not_before {
        add(
            "DateGreaterThanEquals",
            "aws:CurrentTime".to_owned(),
            json!(begin),
        );
    }
    if let Some(end) = case.not_after {
        add(
            "DateLessThanEquals",
            "aws:CurrentTime".to_owned(),
            json!(end),
        );
    }
    Value::Object(operators)
}
