//! `attestation-doc-validation` on the shared vectors. It trusts AWS's root only, so of the others it is asked that it
//! refuses; and it knows one time, the system's, which `libfaketime` sets for each document.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const NAME: &str = "attestation-doc-validation";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/attest/tests/vectors")
}

/// Debian's package `libfaketime`.
fn faketime() -> Option<PathBuf> {
    let libraries = ["x86_64", "aarch64"].map(|machine| {
        PathBuf::from(format!(
            "/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"
        ))
    });
    libraries.into_iter().find(|path| path.exists())
}

fn accepts(library: &Path, document: &Path, milliseconds: u64) -> bool {
    let judge = Command::new(env!("CARGO_BIN_EXE_evervault"))
        .arg(document)
        .env("LD_PRELOAD", library)
        .env("FAKETIME_FMT", "%s")
        .env("FAKETIME", format!("@{}", milliseconds / 1000))
        .output();
    judge.expect("the judge runs").status.success()
}

#[test]
fn it_agrees_or_the_manifest_says_why() {
    let Some(library) = faketime() else {
        assert!(
            std::env::var_os("ENCLOS_JUDGES").is_none(),
            "required here: apt-get install libfaketime"
        );
        eprintln!("SKIPPED: apt-get install libfaketime");
        return;
    };
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(vectors().join("manifest.json")).unwrap()).unwrap();
    let (mut asked, mut accepted) = (0, 0);
    for entry in manifest["documents"].as_array().unwrap() {
        let Some(file) = entry["file"].as_str() else {
            continue;
        };
        let found = accepts(
            &library,
            &vectors().join(file),
            entry["at"].as_u64().unwrap(),
        );
        let ours = entry["accepted"].as_bool().unwrap();
        let explained = entry["disagreements"].get(NAME).is_some();
        let expected = entry["root"] == "aws" && ours != explained;
        assert_eq!(found, expected, "{}", entry["name"]);
        asked += 1;
        accepted += usize::from(found);
    }
    assert!(asked > 100 && accepted >= 1, "{accepted} of {asked}");
}
