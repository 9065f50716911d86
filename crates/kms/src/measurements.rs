//! Measurement policies: files that key policies name, and what they make of a request's document.
//!
//! ```text
//! DIR/app.json ── read, checked ──▶ "app" ◀── StringEquals enclos:MeasurementPolicy app ── a key policy
//!      ▲ SIGHUP: read again           │
//!      └ broken: the former stays     └─▶ judge: verified document, now ─▶ accepted, or every reason why not
//! ```
//!
//! The files are `enclos-attest`'s: the same that clients and `enclos attest verify` read. A name that is not loaded, a
//! request without a document and a debug-mode enclave are refusals; there is no state in which a name admits
//! without a judgement. [`Measurements`] is replaced as a whole, so a request sees one state of all files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest;
use enclos_attest::UnixMillis;
use enclos_attest::policy::{self, MAX_POLICY, Policy, Reason, Warning};

use crate::recipient::Attested;

/// Most files: more are nobody's to know.
const FILES_MAX: usize = 256;

/// Longest name of a policy, in bytes.
const NAME_MAX: usize = 128;

/// Most reasons that one policy's refusal tells; alternatives multiply them.
const REASONS_TOLD: usize = 16;

/// Why a directory or file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MeasurementsError {
    /// The directory or a file cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anybody on this machine could replace it.
    #[error(
        "{path} can be changed by every user (mode {mode:o}): whoever changes it releases keys; chmod o-w it"
    )]
    Writable {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key policy could not name it.
    #[error(
        "{path} cannot be named by a key policy: expected NAME.json of at most {NAME_MAX} letters, digits, dots, hyphens and underscores"
    )]
    Name {
        /// Which.
        path: PathBuf,
    },
    /// More files than [`FILES_MAX`].
    #[error("{path} holds more than {FILES_MAX} measurement policies")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// Not a measurement policy, or not one that a KMS can apply.
    #[error("{path} is no measurement policy; `enclos attest policy lint` looks it through")]
    Policy {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: policy::PolicyError,
    },
}

/// One policy as a KMS applies it.
#[derive(Debug)]
struct Loaded {
    policy: Policy,
    /// SHA-256 of the file, for the audit trail.
    sha256: String,
}

type ByName = BTreeMap<String, Arc<Loaded>>;

/// The measurement policies of a server. None without a directory.
#[derive(Debug, Default)]
pub struct Measurements {
    directory: PathBuf,
    loaded: RwLock<Arc<ByName>>,
}

/// What was read: usable policies, and files that are none.
#[derive(Debug)]
pub struct Reading {
    policies: ByName,
    problems: Vec<(Option<String>, MeasurementsError)>,
}

/// Why a measurement policy does not accept a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such policy.
    Unknown,
    /// The request carried no document.
    NoDocument,
    /// The document is of an enclave in debug mode.
    Debug,
    /// The policy's own reasons.
    Reasons(Vec<Reason>),
}

/// What the measurement policies that a request's policies name made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Those that accept its document.
    pub accepted: Vec<String>,
    /// Those that do not.
    pub refused: Vec<(String, Refusal)>,
}

impl Measurements {
    /// Reads every policy of a directory.
    ///
    /// # Errors
    /// If one cannot be used: a server does not begin with less than it was told.
    pub fn open(directory: &Path) -> Result<Self, MeasurementsError> {
        let Reading { policies, problems } = read(directory)?;
        if let Some((_, problem)) = problems.into_iter().next() {
            return Err(problem);
        }
        Ok(Self {
            directory: directory.to_owned(),
            loaded: RwLock::new(Arc::new(policies)),
        })
    }

    /// Reads the directory again, without using what it finds: a file that is broken keeps its former policy.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn read_again(&self) -> Result<Reading, MeasurementsError> {
        let mut reading = read(&self.directory)?;
        let former = self.current();
        for (name, problem) in &reading.problems {
            let kept = name.as_ref().and_then(|name| former.get_key_value(name));
            let error = crate::error::Chain(problem);
            match kept {
                Some((name, loaded)) => {
                    tracing::error!(%error, name, "measurement policy is broken, the former one stays");
                    reading.policies.insert(name.clone(), Arc::clone(loaded));
                }
                None => tracing::error!(%error, "measurement policy is not used"),
            }
        }
        Ok(reading)
    }

    /// Uses what was read.
    pub fn replace(&self, reading: Reading) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        *loaded = Arc::new(reading.policies);
    }

    /// The names that there are.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.current().contains_key(name)
    }

    /// Names and SHA-256 of the files in use.
    #[must_use]
    pub fn digests(&self) -> BTreeMap<String, String> {
        digests(&self.current())
    }

    /// What is suspicious in one policy.
    #[must_use]
    pub fn warnings(&self, name: &str, now: UnixMillis) -> Vec<Warning> {
        let current = self.current();
        let loaded = current.get(name);
        let warnings = loaded
            .map(|loaded| loaded.policy.lint(now))
            .unwrap_or_default();
        // A debug-mode enclave satisfies none here.
        let moot = |warning: &Warning| matches!(warning, Warning::AdmitsDebug { .. });
        warnings
            .into_iter()
            .filter(|warning| !moot(warning))
            .collect()
    }

    /// Whether a policy admits more than its author may have meant. Entries that are over or unused do not.
    #[must_use]
    pub fn is_suspicious(&self, name: &str, now: UnixMillis) -> bool {
        let wide = |warning: &Warning| {
            matches!(
                warning,
                Warning::AnyImage { .. } | Warning::ImageAlone { .. } | Warning::AnyVersion { .. }
            )
        };
        self.warnings(name, now).iter().any(wide)
    }

    /// Judges a request by the policies of these names.
    #[must_use]
    pub fn judge<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        attested: Option<&Attested>,
        now: UnixMillis,
    ) -> Judgement {
        let current = self.current();
        let mut judgement = Judgement::default();
        for name in names.into_iter().collect::<BTreeSet<_>>() {
            let loaded = current.get(name).ok_or(Refusal::Unknown);
            match loaded.and_then(|loaded| loaded.judge(attested, now)) {
                Ok(()) => judgement.accepted.push(name.to_owned()),
                Err(refusal) => judgement.refused.push((name.to_owned(), refusal)),
            }
        }
        judgement
    }

    fn current(&self) -> Arc<ByName> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&loaded)
    }
}

impl Reading {
    /// Names and SHA-256 of the files that would be in use.
    #[must_use]
    pub fn digests(&self) -> BTreeMap<String, String> {
        digests(&self.policies)
    }
}

impl Loaded {
    fn judge(&self, attested: Option<&Attested>, now: UnixMillis) -> Result<(), Refusal> {
        let attested = attested.ok_or(Refusal::NoDocument)?;
        if attested.is_debug() {
            return Err(Refusal::Debug);
        }
        // There is no nonce: `for_kms` has taken it out.
        let judged = self.policy.check(attested.document(), now, None);
        judged.map(|_| ()).map_err(Refusal::Reasons)
    }
}

impl Refusal {
    /// In words, at most [`REASONS_TOLD`] reasons and how many there are more.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let one = |text: &str| vec![text.to_owned()];
        let Self::Reasons(reasons) = self else {
            return match self {
                Self::Unknown => one("there is no measurement policy of this name"),
                Self::NoDocument => one("the request carries no attestation document"),
                _ => one("the document is of a debug-mode enclave"),
            };
        };
        let mut told: Vec<_> = reasons
            .iter()
            .take(REASONS_TOLD)
            .map(Reason::to_string)
            .collect();
        if let Some(more) = reasons
            .len()
            .checked_sub(REASONS_TOLD)
            .filter(|more| *more > 0)
        {
            told.push(format!("and {more} more"));
        }
        told
    }
}

fn digests(policies: &ByName) -> BTreeMap<String, String> {
    let each = policies.iter();
    each.map(|(name, loaded)| (name.clone(), loaded.sha256.clone()))
        .collect()
}

/// Whether a key policy may name a measurement policy like this.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=NAME_MAX).contains(&text.len()) && !text.starts_with('.') && text.chars().all(known)
}

fn read(directory: &Path) -> Result<Reading, MeasurementsError> {
    let io = |source| MeasurementsError::Io {
        path: directory.to_owned(),
        source,
    };
    let metadata = fs::metadata(directory).map_err(io)?;
    check_mode(directory, &metadata)?;
    let mut reading = Reading {
        policies: ByName::new(),
        problems: Vec::new(),
    };
    let mut files = 0_usize;
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        files += 1;
        if files > FILES_MAX {
            let path = directory.to_owned();
            return Err(MeasurementsError::TooMany { path });
        }
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let Some(name) = name.filter(|name| is_name(name)).map(str::to_owned) else {
            let problem = MeasurementsError::Name { path };
            reading.problems.push((None, problem));
            continue;
        };
        match load(&path) {
            Ok(loaded) => drop(reading.policies.insert(name, Arc::new(loaded))),
            Err(problem) => reading.problems.push((Some(name), problem)),
        }
    }
    Ok(reading)
}

fn load(path: &Path) -> Result<Loaded, MeasurementsError> {
    let failed = |source| MeasurementsError::Io {
        path: path.to_owned(),
        source,
    };
    // Opening a pipe would wait for its other end.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let file = File::open(path).map_err(failed)?;
    check_mode(path, &file.metadata().map_err(failed)?)?;
    let mut bytes = Vec::new();
    // One byte more than a policy may have: the parser says that it is too long.
    let limit = u64::try_from(MAX_POLICY)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    let policy = Policy::from_json(&bytes).and_then(|policy| policy.for_kms());
    let policy = policy.map_err(|source| MeasurementsError::Policy {
        path: path.to_owned(),
        source,
    })?;
    let sha256 = hex::encode(digest::digest(&digest::SHA256, &bytes));
    Ok(Loaded { policy, sha256 })
}

/// Refuses what every user may write.
fn check_mode(path: &Path, metadata: &fs::Metadata) -> Result<(), MeasurementsError> {
    let mode = metadata.mode() & 0o7777;
    if mode & 0o002 != 0 {
        let path = path.to_owned();
        return Err(MeasurementsError::Writable { path, mode });
    }
    Ok(())
}
