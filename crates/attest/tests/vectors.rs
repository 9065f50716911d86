//! The shared vectors: one manifest that every implementation walks, in this language and in others.
//!
//! `tests/vectors/manifest.json` names each document, its root, the moment and the options, and the verdict. The documents
//! that are ours come from the generator beside this file, which uses none of the code under test; after a change of
//! it, `ENCLOS_WRITE_VECTORS=1 cargo test -p enclos-attest --test vectors` writes them again.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "the helpers of tests are test code too"
)]

mod generator;
mod registry;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enclos_attest::UnixMillis;
use enclos_attest::document::{ChainCache, TrustAnchors, UnverifiedDocument, VerifyOptions};
use generator::vectors::{self, Vector};
use nsm_nitro_enclave_utils::api::nsm::AttestationDoc;
use nsm_nitro_enclave_utils::time::Time;
use nsm_nitro_enclave_utils::verify::AttestationDocVerifierExt as _;
use serde::{Deserialize, Serialize};

const UTILS: &str = "nsm-nitro-enclave-utils";
const PYTHON: &str = "python";

/// The manifest. Times in milliseconds since 1970.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    version: u32,
    about: String,
    /// Name and file of each root; `aws` is built into verifiers.
    roots: BTreeMap<String, String>,
    documents: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: String,
    rule: String,
    origin: String,
    /// Beside the manifest; absent for a document that may not be copied, see `origin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    root: String,
    at: u64,
    max_age_seconds: u64,
    archival: bool,
    allow_debug: bool,
    accepted: bool,
    /// Part of our refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Verifiers that say otherwise, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    disagreements: BTreeMap<String, String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn manifest() -> Manifest {
    serde_json::from_slice(&std::fs::read(folder().join("manifest.json")).unwrap()).unwrap()
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        match &self.file {
            Some(file) => std::fs::read(folder().join(file)).unwrap(),
            None => registry::qos(),
        }
    }

    fn options(&self) -> VerifyOptions {
        VerifyOptions {
            max_age: Duration::from_secs(self.max_age_seconds),
            archival: self.archival,
            allow_debug: self.allow_debug,
            ..VerifyOptions::default()
        }
    }

    fn judge(&self, roots: &Roots, cache: Option<&ChainCache>) -> Result<(), String> {
        let document = UnverifiedDocument::parse(&self.bytes()).map_err(chain)?;
        let (anchors, now, options) = (
            &roots.anchors[&self.root],
            UnixMillis(self.at),
            self.options(),
        );
        let verdict = match cache {
            Some(cache) => document.verify_with_cache(anchors, now, &options, cache),
            None => document.verify(anchors, now, &options),
        };
        verdict.map(drop).map_err(chain)
    }
}

fn chain(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

struct Roots {
    anchors: BTreeMap<String, TrustAnchors>,
    ders: BTreeMap<String, Vec<u8>>,
}

impl Roots {
    fn of(manifest: &Manifest) -> Self {
        let read = |file: &String| std::fs::read(folder().join(file)).unwrap();
        let files = manifest
            .roots
            .iter()
            .map(|(name, file)| (name.clone(), read(file)));
        let ders: BTreeMap<_, _> = files.collect();
        let anchor = |(name, der): (&String, &Vec<u8>)| {
            let anchors = match name.as_str() {
                "aws" => TrustAnchors::new().with_aws(),
                name => TrustAnchors::new().with_root(name, der).unwrap(),
            };
            (name.clone(), anchors)
        };
        Self {
            anchors: ders.iter().map(anchor).collect(),
            ders,
        }
    }
}

#[test]
fn the_vectors_are_what_the_generator_makes() {
    let (expected, files) = generate();
    if std::env::var_os("ENCLOS_WRITE_VECTORS").is_some() {
        for folder_name in ["generated", "roots"] {
            let _ = std::fs::remove_dir_all(folder().join(folder_name));
            std::fs::create_dir_all(folder().join(folder_name)).unwrap();
        }
        for (file, bytes) in &files {
            std::fs::write(folder().join(file), bytes).unwrap();
        }
        let text = serde_json::to_string_pretty(&expected).unwrap();
        std::fs::write(folder().join("manifest.json"), text + "\n").unwrap();
    }
    for (file, bytes) in &files {
        assert_eq!(
            std::fs::read(folder().join(file)).unwrap(),
            *bytes,
            "{file}"
        );
    }
    let found = std::fs::read_dir(folder().join("generated"))
        .unwrap()
        .count();
    assert_eq!(
        found,
        vectors::all().len(),
        "files of vectors that are no more"
    );
    assert_eq!(manifest(), expected);
}

#[test]
fn every_rule_has_a_vector_and_every_vector_a_name() {
    let documents = manifest().documents;
    let names: std::collections::BTreeSet<_> = documents.iter().map(|entry| &entry.name).collect();
    assert_eq!(names.len(), documents.len());
    let broken = documents
        .iter()
        .filter(|entry| !entry.accepted && entry.origin == GENERATOR);
    assert!(broken.count() >= 60);
    assert!(
        documents
            .iter()
            .all(|entry| entry.accepted == entry.reason.is_none())
    );
}

#[test]
fn ours_agrees() {
    let manifest = manifest();
    let (roots, cache) = (Roots::of(&manifest), ChainCache::default());
    for entry in &manifest.documents {
        let cold = entry.judge(&roots, None);
        assert_eq!(cold.is_ok(), entry.accepted, "{}: {cold:?}", entry.name);
        if let (Err(found), Some(reason)) = (&cold, &entry.reason) {
            assert!(
                found.contains(reason),
                "{}: {found:?} lacks {reason:?}",
                entry.name
            );
        }
        // Twice: the second time with whatever the first has left.
        for _ in 0..2 {
            assert_eq!(
                entry.judge(&roots, Some(&cache)),
                cold,
                "{}, cached",
                entry.name
            );
        }
    }
}

#[test]
fn no_other_root_accepts_anything() {
    let manifest = manifest();
    let roots = Roots::of(&manifest);
    for entry in manifest.documents.iter().filter(|entry| entry.accepted) {
        for root in manifest.roots.keys().filter(|root| **root != entry.root) {
            let other = Entry {
                root: root.clone(),
                ..entry.clone()
            };
            assert!(
                other.judge(&roots, None).is_err(),
                "{} under {root}",
                entry.name
            );
        }
    }
}

/// The verdicts of another verifier must be ours, or explained; and what is explained must be so.
fn compare(verifier: &str, verdict: impl Fn(&Entry) -> bool) {
    let differing: Vec<_> = manifest()
        .documents
        .into_iter()
        .filter_map(|entry| {
            let explained = entry.disagreements.contains_key(verifier);
            let differs = verdict(&entry) != entry.accepted;
            (differs != explained)
                .then(|| format!("{}: differs {differs}, explained {explained}", entry.name))
        })
        .collect();
    assert!(differing.is_empty(), "{verifier}: {differing:#?}");
}

#[test]
fn nsm_nitro_enclave_utils_agrees_or_says_why() {
    let roots = Roots::of(&manifest());
    compare(UTILS, |entry| {
        let at = entry.at;
        let time = Time::new(Box::new(move || at));
        let (bytes, root) = (entry.bytes(), roots.ders[&entry.root].clone());
        let judge = move || AttestationDoc::from_cose(&bytes, &root, time).is_ok();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(judge)).unwrap_or(false)
    });
}

/// `oracle.py`: Python's `cryptography` and `cbor2`, written from AWS's text, not from this crate. `cargo xtask bindings`
/// installs them and sets `ENCLOS_JUDGES`: no judge may be missing then.
#[test]
fn a_python_oracle_agrees_or_says_why() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle.py");
    let manifest = folder().join("manifest.json");
    let qos = tempfile(&registry::qos());
    let python = std::env::var_os("ENCLOS_PYTHON").unwrap_or_else(|| "python3".into());
    let done = std::process::Command::new(python)
        .arg(script)
        .arg(manifest)
        .arg(&qos)
        .output();
    let _ = std::fs::remove_file(&qos);
    let done = done.expect("python3 runs");
    let complaint = String::from_utf8_lossy(&done.stderr);
    if done.status.code() == Some(3) {
        let required = std::env::var_os("ENCLOS_JUDGES").is_some();
        assert!(
            !required,
            "required here: pip install -r crates/attest/tests/oracle.txt\n{complaint}"
        );
        eprintln!(
            "SKIPPED: the Python oracle did not run: pip install -r crates/attest/tests/oracle.txt\n{complaint}"
        );
        return;
    }
    assert!(done.status.success(), "{complaint}");
    let verdicts: BTreeMap<String, bool> = serde_json::from_slice(&done.stdout).unwrap();
    compare(PYTHON, |entry| verdicts[&entry.name]);
}

fn tempfile(bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("enclos-vector-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Ten years, in seconds.
const PATIENT: u64 = 10 * 365 * 24 * 3600;

const GENERATOR: &str = "crates/attest/tests/generator";
const OYSTER: &str = "crate oyster-sdk 0.17.1, src/testcases, Apache-2.0";
const QOS: &str = "crate qos_nsm 0.15.1, src/static/mock_attestation_doc, AGPL-3.0: read from cargo's registry, not copied";

/// The manifest as it should be, and the files that go with it.
fn generate() -> (Manifest, BTreeMap<String, Vec<u8>>) {
    let mut files = BTreeMap::new();
    let aws = include_bytes!("../src/document/aws-root-g1.der").to_vec();
    let emulator = UnverifiedDocument::parse(include_bytes!("vectors/custom.bin")).unwrap();
    let emulator = emulator.unverified_cabundle()[0].clone();
    let roots = [
        ("aws", aws),
        ("emulator", emulator),
        ("vectors", vectors::Authority::new().root_der()),
    ];
    let roots = roots.map(|(name, der)| {
        let file = format!("roots/{name}.der");
        files.insert(file.clone(), der);
        (name.to_owned(), file)
    });
    let mut documents = foreign();
    for vector in vectors::all() {
        let file = format!("generated/{}.bin", vector.name);
        documents.push(entry(&vector, &file));
        files.insert(file, vector.bytes);
    }
    for entry in &mut documents {
        entry.disagreements = generator::disagreements::of(&entry.name);
    }
    let manifest = Manifest {
        version: 1,
        about: "Attestation documents and their verdicts, for every implementation; see ORIGIN.md"
            .to_owned(),
        roots: roots.into(),
        documents,
    };
    (manifest, files)
}

fn entry(vector: &Vector, file: &str) -> Entry {
    Entry {
        name: vector.name.to_owned(),
        rule: vector.rule.to_owned(),
        origin: GENERATOR.to_owned(),
        file: Some(file.to_owned()),
        root: "vectors".to_owned(),
        at: vector.at,
        max_age_seconds: vector.max_age_seconds,
        archival: vector.archival,
        allow_debug: vector.allow_debug,
        accepted: vector.refusal.is_none(),
        reason: vector.refusal.map(str::to_owned),
        disagreements: BTreeMap::new(),
    }
}

/// Genuine documents and an emulator's, at their own time and today.
fn foreign() -> Vec<Entry> {
    let files = [
        ("aws", Some("aws.bin"), OYSTER, "aws"),
        ("aws-pcr16", Some("aws_pcr16.bin"), OYSTER, "aws"),
        ("aws-qos", None, QOS, "aws"),
        ("emulator", Some("custom.bin"), OYSTER, "emulator"),
        (
            "emulator-pcr16",
            Some("custom_pcr16.bin"),
            OYSTER,
            "emulator",
        ),
    ];
    let entries = files.map(|(name, file, origin, root)| {
        let bytes = file.map_or_else(registry::qos, |file| {
            std::fs::read(folder().join(file)).unwrap()
        });
        let at = UnverifiedDocument::parse(&bytes)
            .unwrap()
            .unverified_claims()
            .timestamp
            .0;
        let own = Entry {
            name: name.to_owned(),
            rule: "a genuine document at its own time".to_owned(),
            origin: origin.to_owned(),
            file: file.map(str::to_owned),
            root: root.to_owned(),
            at,
            max_age_seconds: 300,
            archival: false,
            allow_debug: root == "emulator",
            accepted: true,
            reason: None,
            disagreements: BTreeMap::new(),
        };
        let later = Entry {
            name: format!("{name}-later"),
            rule: "a genuine document today".to_owned(),
            at: generator::NOW,
            max_age_seconds: if root == "aws" {
                PATIENT
            } else {
                own.max_age_seconds
            },
            accepted: false,
            // The emulator's certificates last for years.
            reason: Some(
                if root == "aws" {
                    "it is valid until"
                } else {
                    "expected at most 300"
                }
                .to_owned(),
            ),
            ..own.clone()
        };
        let record = Entry {
            name: format!("{name}-record"),
            rule: "a genuine document as a record".to_owned(),
            at: generator::NOW,
            archival: true,
            ..own.clone()
        };
        [own, later, record]
    });
    entries.into_iter().flatten().collect()
}
