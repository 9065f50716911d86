//! A genuine document that may not be copied: it is read where cargo unpacks the crate that holds it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The document in `qos_nsm`, from cargo's registry; fetched on first use.
pub fn qos() -> Vec<u8> {
    let found = find_qos().or_else(|| {
        fetch_qos();
        find_qos()
    });
    let path = found.expect(
        "the source of qos_nsm 0.15.1 is not in cargo's registry: run `cargo fetch --manifest-path \
         crates/attest/tests/vectors/qos_nsm/Cargo.toml` with access to crates.io",
    );
    std::fs::read(path).unwrap()
}

fn find_qos() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry/src")).ok()?;
    let paths = registries.flatten().map(|registry| {
        registry
            .path()
            .join("qos_nsm-0.15.1/src/static/mock_attestation_doc")
    });
    paths.into_iter().find(|path| path.exists())
}

fn fetch_qos() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/qos_nsm/Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let fetch = Command::new(cargo)
        .arg("fetch")
        .arg("--locked")
        .arg("--manifest-path")
        .arg(manifest)
        .spawn();
    wait(fetch.unwrap(), Duration::from_secs(120));
}

fn wait(mut child: Child, limit: Duration) {
    let deadline = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
