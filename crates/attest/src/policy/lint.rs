//! What is suspicious in a policy that is otherwise in order.

use std::collections::BTreeSet;

use super::file::{Condition, Policy, When};
use super::normal::{self, Case};
use crate::pcr::PcrIndex;
use crate::time::UnixMillis;

/// One thing that its author may not have meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Documents of debug enclaves, which anything may run in, are accepted.
    #[error(
        "debug images are admitted by [{case}]: pin PCR0, PCR1 and PCR2, or PCR8; PCR3 and PCR4 are the host's, whatever it runs"
    )]
    AdmitsDebug {
        /// The alternative.
        case: String,
    },
    /// Any image at all is accepted.
    #[error(
        "any image is admitted by [{case}]: pin PCR0, PCR1 and PCR2, or PCR8 with a minimum version"
    )]
    AnyImage {
        /// The alternative.
        case: String,
    },
    /// PCR0 does not bind the boundaries between an image's sections.
    #[error(
        "PCR0 without PCR1 and PCR2 in [{case}]: PCR0 alone does not bind where the kernel ends and the application begins"
    )]
    ImageAlone {
        /// The alternative.
        case: String,
    },
    /// Every image that the signer ever signed is accepted, old ones too.
    #[error(
        "PCR8 without a minimum version in [{case}]: an image with a hole that was fixed since passes, too"
    )]
    AnyVersion {
        /// The alternative.
        case: String,
    },
    /// No document can be like this.
    #[error(
        "[{case}] can never hold: it asks a register for two values, or for a time that never is"
    )]
    Contradiction {
        /// The alternative.
        case: String,
    },
    /// A measurement is over.
    #[error("measurement {name:?} has expired at {not_after}: remove it, or give it more time")]
    Expired {
        /// Its name.
        name: String,
        /// Its end.
        not_after: When,
    },
    /// Nothing refers to it.
    #[error("{kind} {name:?} is never used")]
    Unused {
        /// `measurement` or `signer`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// No document is accepted, now or later.
    #[error("the policy accepts nothing: every alternative is contradictory or has expired")]
    AcceptsNothing,
}

impl Policy {
    /// Everything suspicious, at `now`.
    #[must_use]
    pub fn lint(&self, now: UnixMillis) -> Vec<Warning> {
        // Reading the policy has counted its alternatives.
        let cases = normal::cases(self).unwrap_or_default();
        let mut warnings: Vec<_> = cases.iter().flat_map(judge).collect();
        let gone = |case: &Case| case.not_after.is_some_and(|end| end.ends() < now);
        if !cases.iter().any(|case| case.is_possible() && !gone(case)) {
            warnings.push(Warning::AcceptsNothing);
        }
        for (name, measurement) in self.measurements() {
            if let Some(not_after) = measurement.not_after.filter(|end| end.ends() < now) {
                let name = name.clone();
                warnings.push(Warning::Expired { name, not_after });
            }
        }
        warnings.extend(self.unused());
        let mut seen = BTreeSet::new();
        warnings.retain(|warning| seen.insert(warning.to_string()));
        warnings
    }

    fn unused(&self) -> impl Iterator<Item = Warning> {
        let mut used = BTreeSet::new();
        names(self.require(), &mut used);
        let measurements = self.measurements().keys().map(|name| ("measurement", name));
        let all = measurements.chain(self.signers().keys().map(|name| ("signer", name)));
        all.filter(move |(kind, name)| !used.contains(&(*kind, name.as_str())))
            .map(|(kind, name)| Warning::Unused {
                kind,
                name: name.clone(),
            })
    }
}

fn judge(case: &Case) -> Vec<Warning> {
    let text = || case.to_string();
    if !case.is_possible() {
        return vec![Warning::Contradiction { case: text() }];
    }
    let image = [PcrIndex::IMAGE, PcrIndex::BOOT, PcrIndex::APPLICATION];
    let pinned = image.map(|index| case.only(index).is_some());
    let signed = case.only(PcrIndex::SIGNER).is_some();
    let mut warnings = Vec::new();
    // A debug enclave shows zeros in all four.
    let debug = image.into_iter().chain([PcrIndex::SIGNER]);
    if debug.into_iter().all(|index| case.admits_zero(index)) {
        warnings.push(Warning::AdmitsDebug { case: text() });
    }
    match (pinned, signed) {
        ([false, false, false], false) => warnings.push(Warning::AnyImage { case: text() }),
        ([false, ..], true) if case.version.is_none() => {
            warnings.push(Warning::AnyVersion { case: text() });
        }
        ([true, boot, application], _) if !(boot && application) => {
            warnings.push(Warning::ImageAlone { case: text() });
        }
        _ => {}
    }
    warnings
}

/// Every name that a condition uses.
fn names<'a>(condition: &'a Condition, used: &mut BTreeSet<(&'static str, &'a str)>) {
    match condition {
        Condition::All(list) | Condition::Any(list) => {
            list.iter().for_each(|item| names(item, used));
        }
        Condition::Not(inner) => names(inner, used),
        Condition::Measurements(list) => {
            used.extend(list.iter().map(|name| ("measurement", name.as_str())));
        }
        Condition::Signer(signed) => {
            used.insert(("signer", &signed.name));
        }
        _ => {}
    }
}
