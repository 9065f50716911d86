//! The file: what may be written in it.
//!
//! ```json
//! { "version": 1,
//!   "measurements": {
//!     "app-7": { "pcrs": { "0": "<96 hex>", "1": "…", "2": "…" }, "notAfter": "2027-01-31T00:00:00Z" },
//!     "app-8": { "pcrs": { "0": "<96 hex>", "1": "…", "2": "…" } } },
//!   "signers": {
//!     "release": { "pcr8": ["<96 hex>"], "versionPcr": 16 } },
//!   "require": { "all": [
//!     { "any": [ { "measurements": ["app-7", "app-8"] },
//!                { "signer": { "name": "release", "minimumVersion": 8 } } ] },
//!     { "role": "arn:aws:iam::123456789012:role/backend" },
//!     { "not": { "instance": "i-0123456789abcdef0" } },
//!     { "nonce": "required" },
//!     { "maxAgeSeconds": 60 } ] } }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::normal::{self, TooManyCases};
use crate::pcr::{PcrIndex, PcrValue};
use crate::time::UnixMillis;

/// Longest file in bytes.
pub const MAX_POLICY: usize = 1 << 20;

/// Versions that one condition may span: each costs a hash when a policy is read, and a line in a key policy.
pub const VERSIONS_MAX: u64 = 256;

/// The format's version.
const FORMAT: u32 = 1;

/// First register that an enclave can extend itself.
const FIRST_USER_PCR: u8 = 16;

/// What documents are accepted: see the [module](super) and `docs/attestation-policy.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    version: u32,
    measurements: BTreeMap<String, Measurement>,
    signers: BTreeMap<String, Signer>,
    require: Condition,
}

/// A named set of registers: one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Measurement {
    /// The registers, all of which must be equal.
    pub pcrs: BTreeMap<PcrIndex, PcrValue>,
    /// From when on it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<When>,
    /// The last second in which it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<When>,
}

/// Whose signature on an image counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signer {
    /// PCR8 under each of its certificates; several while one replaces another.
    pub pcr8: BTreeSet<PcrValue>,
    /// The register, 16 to 31, that its images extend with their version and lock; see
    /// [`PcrValue::of_version`](crate::PcrValue::of_version).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_pcr: Option<PcrIndex>,
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Condition {
    /// Each of these.
    All(Vec<Condition>),
    /// At least one of these.
    Any(Vec<Condition>),
    /// Not this. What is forbidden stays forbidden: below `not`, the dates of measurements do not count.
    Not(Box<Condition>),
    /// One of the measurements of these names, at its time.
    Measurements(Vec<String>),
    /// An image that a signer signed.
    Signer(SignedBy),
    /// PCR3 is this role's ARN.
    Role(String),
    /// PCR4 is this instance's id.
    Instance(String),
    /// These registers have these values.
    Pcrs(BTreeMap<PcrIndex, PcrValue>),
    /// The document carries the nonce that the verifier sent.
    Nonce(Required),
    /// The document is at most this old.
    MaxAgeSeconds(u64),
}

/// The only value there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Required {
    /// The nonce must be there and equal.
    Required,
}

/// A signer and the versions of its images that are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedBy {
    /// The signer.
    pub name: String,
    /// The oldest version; the signer needs a `versionPcr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_version: Option<u64>,
    /// The newest; 255 above the oldest unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum_version: Option<u64>,
}

/// A moment in a file: RFC 3339, UTC, whole seconds, such as `2027-01-31T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct When(UnixMillis);

/// Why text is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Longer than any policy.
    #[error("the policy is {found} bytes long, expected at most {MAX_POLICY}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not the JSON of a policy.
    #[error("not a measurement policy")]
    Json(#[source] serde_json::Error),
    /// A newer or unknown format.
    #[error("the policy's version is {found}, expected {FORMAT}")]
    Version {
        /// The version it names.
        found: u32,
    },
    /// A condition names something that is not defined.
    #[error("the policy has no {kind} {name:?}: define it, or correct the name")]
    Undefined {
        /// `measurement` or `signer`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// Something that has to list something is empty.
    #[error("{what} is empty: expected at least one entry")]
    Empty {
        /// What.
        what: String,
    },
    /// A measurement ends before it begins.
    #[error("measurement {name:?} is accepted until {not_after}, before it begins at {not_before}")]
    Backwards {
        /// Its name.
        name: String,
        /// Its begin.
        not_before: When,
        /// Its end.
        not_after: When,
    },
    /// A version is asked for that no register holds, or the range is not one.
    #[error("signer {name:?}: {problem}")]
    Versions {
        /// The signer's name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Age or nonce is forbidden instead of required.
    #[error("{what} below \"not\" forbids what is safe: take it out of the \"not\"")]
    Negated {
        /// `nonce` or `maxAgeSeconds`.
        what: &'static str,
    },
    /// A KMS sends no nonce, and nothing else is asked for.
    #[error(
        "the policy asks for nothing but a nonce, which a KMS does not send: require something of the image too"
    )]
    OnlyNonce,
    /// Its combinations are too many to be judged.
    #[error(transparent)]
    TooComplex(#[from] TooManyCases),
}

/// The file before its names were looked up.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default, deserialize_with = "unique")]
    measurements: BTreeMap<String, Measurement>,
    #[serde(default, deserialize_with = "unique")]
    signers: BTreeMap<String, Signer>,
    require: Condition,
}

impl Policy {
    /// Reads a policy: JSON, at most [`MAX_POLICY`] bytes.
    ///
    /// # Errors
    /// [`PolicyError`] says what is wrong; a policy that names what it does not define is refused, not ignored.
    pub fn from_json(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_POLICY {
            let found = bytes.len();
            return Err(PolicyError::TooLong { found });
        }
        let file: File = serde_json::from_slice(bytes).map_err(PolicyError::Json)?;
        if file.version != FORMAT {
            let found = file.version;
            return Err(PolicyError::Version { found });
        }
        let policy = Self {
            version: file.version,
            measurements: file.measurements,
            signers: file.signers,
            require: file.require,
        };
        policy.check_names()?;
        normal::cases(&policy)?;
        Ok(policy)
    }

    /// This policy as a KMS applies it, which sends no nonce: as if `nonce` were not written. In `all` the other
    /// conditions decide, in `any` it admits nobody. Whoever this admits, the policy itself admits with the right nonce.
    ///
    /// # Errors
    /// [`PolicyError::OnlyNonce`] when nothing is left.
    pub fn for_kms(&self) -> Result<Self, PolicyError> {
        let require = without_nonce(&self.require).ok_or(PolicyError::OnlyNonce)?;
        Ok(Self {
            require,
            ..self.clone()
        })
    }

    /// What must hold.
    #[must_use]
    pub fn require(&self) -> &Condition {
        &self.require
    }

    /// The named measurements.
    #[must_use]
    pub fn measurements(&self) -> &BTreeMap<String, Measurement> {
        &self.measurements
    }

    /// The named signers.
    #[must_use]
    pub fn signers(&self) -> &BTreeMap<String, Signer> {
        &self.signers
    }

    fn check_names(&self) -> Result<(), PolicyError> {
        for (name, measurement) in &self.measurements {
            not_empty(measurement.pcrs.is_empty(), || {
                format!("measurement {name:?}")
            })?;
            if let (Some(not_before), Some(not_after)) =
                (measurement.not_before, measurement.not_after)
                && not_after < not_before
            {
                let name = name.clone();
                return Err(PolicyError::Backwards {
                    name,
                    not_before,
                    not_after,
                });
            }
        }
        for (name, signer) in &self.signers {
            not_empty(signer.pcr8.is_empty(), || format!("signer {name:?}"))?;
            let version = signer.version_pcr.map(PcrIndex::get);
            if version.is_some_and(|index| index < FIRST_USER_PCR) {
                let name = name.clone();
                let problem =
                    "versionPcr must be 16 to 31, registers that an enclave extends itself";
                return Err(PolicyError::Versions { name, problem });
            }
        }
        self.check_condition(&self.require, false)
    }

    fn check_condition(&self, condition: &Condition, negated: bool) -> Result<(), PolicyError> {
        let all = |list: &[Condition], negated, what: &str| {
            not_empty(list.is_empty(), || format!("{what:?}"))?;
            list.iter()
                .try_for_each(|item| self.check_condition(item, negated))
        };
        match condition {
            Condition::All(list) => all(list, negated, "all"),
            Condition::Any(list) => all(list, negated, "any"),
            Condition::Not(inner) => self.check_condition(inner, true),
            Condition::Measurements(names) => {
                not_empty(names.is_empty(), || {
                    "\"measurements\" of a condition".to_owned()
                })?;
                names
                    .iter()
                    .try_for_each(|name| self.measurement(name).map(|_| ()))
            }
            Condition::Signer(signed) => self.versions(signed).map(|_| ()),
            Condition::Role(text) => not_empty(text.is_empty(), || "\"role\"".to_owned()),
            Condition::Instance(text) => not_empty(text.is_empty(), || "\"instance\"".to_owned()),
            Condition::Pcrs(pcrs) => not_empty(pcrs.is_empty(), || "\"pcrs\"".to_owned()),
            Condition::Nonce(_) if negated => Err(PolicyError::Negated { what: "nonce" }),
            Condition::MaxAgeSeconds(_) if negated => Err(PolicyError::Negated {
                what: "maxAgeSeconds",
            }),
            Condition::Nonce(_) | Condition::MaxAgeSeconds(_) => Ok(()),
        }
    }

    pub(super) fn measurement(&self, name: &str) -> Result<&Measurement, PolicyError> {
        let found = self.measurements.get(name);
        found.ok_or_else(|| PolicyError::Undefined {
            kind: "measurement",
            name: name.to_owned(),
        })
    }

    pub(super) fn signer(&self, name: &str) -> Result<&Signer, PolicyError> {
        let found = self.signers.get(name);
        found.ok_or_else(|| PolicyError::Undefined {
            kind: "signer",
            name: name.to_owned(),
        })
    }

    /// The register and the versions that a condition asks for, if it asks for any.
    pub(super) fn versions(
        &self,
        signed: &SignedBy,
    ) -> Result<Option<(PcrIndex, RangeInclusive<u64>)>, PolicyError> {
        let signer = self.signer(&signed.name)?;
        let refuse = |problem| PolicyError::Versions {
            name: signed.name.clone(),
            problem,
        };
        let Some(minimum) = signed.minimum_version else {
            return match signed.maximum_version {
                None => Ok(None),
                Some(_) => Err(refuse("maximumVersion needs minimumVersion")),
            };
        };
        let index = signer
            .version_pcr
            .ok_or_else(|| refuse("minimumVersion needs the signer's versionPcr"))?;
        let newest = minimum.saturating_add(VERSIONS_MAX - 1);
        let maximum = signed.maximum_version.unwrap_or(newest);
        if !(minimum..=newest).contains(&maximum) {
            return Err(refuse(
                "expected maximumVersion from minimumVersion to 255 above it",
            ));
        }
        Ok(Some((index, minimum..=maximum)))
    }
}

impl Measurement {
    /// Whether it is accepted at this moment.
    #[must_use]
    pub fn is_accepted_at(&self, now: UnixMillis) -> bool {
        self.not_before.is_none_or(|begin| begin.begins() <= now)
            && self.not_after.is_none_or(|end| now <= end.ends())
    }
}

impl When {
    /// The first millisecond of its second.
    #[must_use]
    pub fn begins(self) -> UnixMillis {
        self.0
    }

    /// The last millisecond of its second.
    #[must_use]
    pub fn ends(self) -> UnixMillis {
        UnixMillis(self.0.0.saturating_add(999))
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let date = der::DateTime::from_str(text).map_err(|_| {
            format!(
                "{text:?} is not a moment: expected RFC 3339 in UTC, such as 2027-01-31T00:00:00Z"
            )
        })?;
        Ok(Self(UnixMillis::from_secs(date.unix_duration().as_secs())))
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::from_secs(self.0.as_secs());
        match der::DateTime::from_unix_duration(seconds) {
            Ok(date) => date.fmt(f),
            Err(_) => self.0.fmt(f),
        }
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A condition without `nonce`, which is never below `not`; nothing if it asks for nothing else.
fn without_nonce(condition: &Condition) -> Option<Condition> {
    let rest = |list: &[Condition]| {
        let rest: Vec<_> = list.iter().filter_map(without_nonce).collect();
        (!rest.is_empty()).then_some(rest)
    };
    match condition {
        Condition::Nonce(_) => None,
        Condition::All(list) => rest(list).map(Condition::All),
        Condition::Any(list) => rest(list).map(Condition::Any),
        other => Some(other.clone()),
    }
}

fn not_empty(empty: bool, what: impl FnOnce() -> String) -> Result<(), PolicyError> {
    if empty {
        return Err(PolicyError::Empty { what: what() });
    }
    Ok(())
}

/// A map in which no name occurs twice: of two definitions, which one counts would depend on the reader.
fn unique<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    struct Visitor<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of names, none of them twice")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> Result<Self::Value, A::Error> {
            let mut found = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, T>()? {
                if found.contains_key(&name) {
                    let text = format!("{name:?} is defined twice");
                    return Err(serde::de::Error::custom(text));
                }
                found.insert(name, value);
            }
            Ok(found)
        }
    }

    deserializer.deserialize_map(Visitor(std::marker::PhantomData))
}
