//! A policy applied to a document, with every reason for a refusal.

use std::time::Duration;

use super::file::{Condition, Policy, SignedBy, When};
use super::{Mismatch, describe, pcr_of};
use crate::document::{Claims, VerifiedDocument};
use crate::pcr::{PcrIndex, PcrValue};
use crate::time::UnixMillis;

/// A document that a policy accepts. Only [`Policy::check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    matched: Vec<String>,
}

/// One reason why a policy refuses a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It is not this build.
    #[error("not {name:?}: {mismatch}")]
    Measurement {
        /// The measurement's name.
        name: String,
        /// The first register that differs.
        mismatch: Box<Mismatch>,
    },
    /// It is this build, but no longer or not yet accepted.
    #[error("{name:?} is accepted from {} until {}, and it is {now}", moment(.not_before.as_ref()), moment(.not_after.as_ref()))]
    NotNow {
        /// The measurement's name.
        name: String,
        /// Its begin.
        not_before: Option<When>,
        /// Its end.
        not_after: Option<When>,
        /// The verifier's time.
        now: UnixMillis,
    },
    /// Somebody else signed the image, or nobody.
    #[error("not signed by {name:?}: PCR8 is {}", register(.found.as_ref()))]
    Signer {
        /// The signer's name.
        name: String,
        /// PCR8 of the document.
        found: Option<PcrValue>,
    },
    /// The image's version is not accepted, or not in the document.
    #[error("not version {minimum} to {maximum} of {name:?}: PCR{index} is {}", register(.found.as_ref()))]
    Version {
        /// The signer's name.
        name: String,
        /// The oldest version accepted.
        minimum: u64,
        /// The newest.
        maximum: u64,
        /// The register that holds the version.
        index: PcrIndex,
        /// Its value.
        found: Option<PcrValue>,
    },
    /// A register differs.
    #[error(transparent)]
    Register(Box<Mismatch>),
    /// The nonce is not the one that was sent, or none was sent.
    #[error("nonce is {}, expected {}", describe(.found.as_deref()), describe(.expected.as_deref()))]
    Nonce {
        /// What was sent with the request; none is no nonce to compare with.
        expected: Option<Vec<u8>>,
        /// What the document holds.
        found: Option<Vec<u8>>,
    },
    /// Too old for this policy.
    #[error("the document is {} s old, expected at most {} s", .age.as_secs(), .max_age.as_secs())]
    TooOld {
        /// Its age.
        age: Duration,
        /// The limit.
        max_age: Duration,
    },
    /// What holds is forbidden.
    #[error("it is what the policy forbids: {what}")]
    Forbidden {
        /// The condition below `not`, as JSON.
        what: String,
    },
}

impl Accepted {
    /// Names of the measurements and signers that the document was recognised by.
    #[must_use]
    pub fn matched(&self) -> &[String] {
        &self.matched
    }
}

/// A document and its circumstances.
pub(super) struct Case<'a> {
    pub(super) claims: &'a Claims,
    pub(super) now: UnixMillis,
    pub(super) nonce: Option<&'a [u8]>,
}

impl Policy {
    /// Whether the document is accepted at `now`. `nonce` is what it was asked for with, if it was.
    ///
    /// # Errors
    /// Every reason; for alternatives, the reason of each.
    pub fn check(
        &self,
        document: &VerifiedDocument,
        now: UnixMillis,
        nonce: Option<&[u8]>,
    ) -> Result<Accepted, Vec<Reason>> {
        let claims = document.claims();
        self.judge(&Case { claims, now, nonce })
    }

    pub(super) fn judge(&self, case: &Case<'_>) -> Result<Accepted, Vec<Reason>> {
        let matched = self.holds(self.require(), case)?;
        Ok(Accepted { matched })
    }

    fn holds(&self, condition: &Condition, case: &Case<'_>) -> Result<Vec<String>, Vec<Reason>> {
        let one = |result: Result<(), Reason>| result.map(|()| Vec::new()).map_err(|r| vec![r]);
        let register = |index, value| {
            let mismatch = pcr_of(case.claims, index, value).map(Box::new);
            mismatch.map_or(Ok(()), |mismatch| Err(Reason::Register(mismatch)))
        };
        match condition {
            Condition::All(list) => every(list.iter().map(|item| self.holds(item, case))),
            Condition::Any(list) => first(list.iter().map(|item| self.holds(item, case))),
            Condition::Not(inner) => self.forbids(inner, case),
            Condition::Measurements(names) => {
                first(names.iter().map(|name| self.is_build(name, case)))
            }
            Condition::Signer(signed) => self.is_signed(signed, case),
            Condition::Role(arn) => one(register(PcrIndex::ROLE, PcrValue::of_role(arn))),
            Condition::Instance(id) => one(register(PcrIndex::INSTANCE, PcrValue::of_instance(id))),
            Condition::Pcrs(pcrs) => every(
                pcrs.iter()
                    .map(|(index, value)| one(register(*index, *value))),
            ),
            Condition::Nonce(_) => one(nonce(case)),
            Condition::MaxAgeSeconds(seconds) => one(age(case, Duration::from_secs(*seconds))),
        }
    }

    fn is_build(&self, name: &str, case: &Case<'_>) -> Result<Vec<String>, Vec<Reason>> {
        let name = name.to_owned();
        let Ok(measurement) = self.measurement(&name) else {
            // Reading the policy has looked the name up.
            return Err(Vec::new());
        };
        let mut registers = measurement.pcrs.iter();
        let mismatch = registers.find_map(|(index, value)| pcr_of(case.claims, *index, *value));
        if let Some(mismatch) = mismatch.map(Box::new) {
            return Err(vec![Reason::Measurement { name, mismatch }]);
        }
        if !measurement.is_accepted_at(case.now) {
            return Err(vec![Reason::NotNow {
                name,
                not_before: measurement.not_before,
                not_after: measurement.not_after,
                now: case.now,
            }]);
        }
        Ok(vec![name])
    }

    fn is_signed(&self, signed: &SignedBy, case: &Case<'_>) -> Result<Vec<String>, Vec<Reason>> {
        let name = signed.name.clone();
        let (Ok(signer), Ok(versions)) = (self.signer(&name), self.versions(signed)) else {
            // Reading the policy has looked both up.
            return Err(Vec::new());
        };
        let found = case.claims.pcrs.get(&PcrIndex::SIGNER).copied();
        if !found.is_some_and(|found| signer.pcr8.contains(&found)) {
            return Err(vec![Reason::Signer { name, found }]);
        }
        if let Some((index, mut versions)) = versions {
            let (minimum, maximum) = (*versions.start(), *versions.end());
            let found = case.claims.pcrs.get(&index).copied();
            if !versions.any(|version| found == Some(PcrValue::of_version(version))) {
                return Err(vec![Reason::Version {
                    name,
                    minimum,
                    maximum,
                    index,
                    found,
                }]);
            }
        }
        Ok(vec![name])
    }

    /// The negation of `condition`; dates of measurements do not count in it.
    fn forbids(&self, condition: &Condition, case: &Case<'_>) -> Result<Vec<String>, Vec<Reason>> {
        let forbidden = || {
            let what = serde_json::to_string(condition).unwrap_or_default();
            vec![Reason::Forbidden { what }]
        };
        let negation = match condition {
            Condition::All(list) => first(list.iter().map(|item| self.forbids(item, case))),
            Condition::Any(list) => every(list.iter().map(|item| self.forbids(item, case))),
            Condition::Not(inner) => return self.holds(inner, case),
            Condition::Measurements(names) => {
                let same = |name: &String| {
                    let Ok(measurement) = self.measurement(name) else {
                        return true;
                    };
                    let mut registers = measurement.pcrs.iter();
                    registers.all(|(index, value)| case.claims.pcrs.get(index) == Some(value))
                };
                if names.iter().any(same) {
                    Err(Vec::new())
                } else {
                    Ok(Vec::new())
                }
            }
            other => match self.holds(other, case) {
                Ok(_) => Err(Vec::new()),
                Err(_) => Ok(Vec::new()),
            },
        };
        negation.map_err(|_| forbidden())
    }
}

/// All must hold; of the refusals, every reason.
fn every(
    results: impl Iterator<Item = Result<Vec<String>, Vec<Reason>>>,
) -> Result<Vec<String>, Vec<Reason>> {
    let (mut matched, mut reasons, mut refused) = (Vec::new(), Vec::new(), false);
    for result in results {
        match result {
            Ok(names) => matched.extend(names),
            Err(more) => {
                refused = true;
                reasons.extend(more);
            }
        }
    }
    if refused { Err(reasons) } else { Ok(matched) }
}

/// One must hold; if none does, the reasons of all.
fn first(
    results: impl Iterator<Item = Result<Vec<String>, Vec<Reason>>>,
) -> Result<Vec<String>, Vec<Reason>> {
    let mut reasons = Vec::new();
    for result in results {
        match result {
            Ok(names) => return Ok(names),
            Err(more) => reasons.extend(more),
        }
    }
    Err(reasons)
}

fn nonce(case: &Case<'_>) -> Result<(), Reason> {
    let (expected, found) = (case.nonce, case.claims.nonce.as_deref());
    if expected.is_some() && found == expected {
        return Ok(());
    }
    Err(Reason::Nonce {
        expected: expected.map(<[u8]>::to_vec),
        found: found.map(<[u8]>::to_vec),
    })
}

fn age(case: &Case<'_>, max_age: Duration) -> Result<(), Reason> {
    match case.now.since(case.claims.timestamp) {
        Some(age) if age > max_age => Err(Reason::TooOld { age, max_age }),
        _ => Ok(()),
    }
}

fn register(value: Option<&PcrValue>) -> String {
    value.map_or_else(|| "not in the document".to_owned(), PcrValue::to_string)
}

fn moment(when: Option<&When>) -> String {
    when.map_or_else(|| "ever".to_owned(), When::to_string)
}
