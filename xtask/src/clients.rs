//! Unmodified programs of other people against `enclos-kms`: AWS's SDKs, its command, its Encryption SDKs, users of KMS.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::python;
use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;

/// The tests, and what they need.
const TESTS: &str = "crates/kms/tests/clients";

/// The package around AWS's SDK for Rust.
const RUST: &str = "crates/kms/tests/clients/rust/Cargo.toml";

/// Installs the programs once, builds the server and runs the tests.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let requirements = [format!("{TESTS}/requirements.txt")];
    let requirements = requirements.each_ref().map(String::as_str);
    let python = report.stage("Python's SDKs", || {
        python::environment(workspace, "clients/python", &requirements)
    })?;
    let requirements = format!("{TESTS}/requirements-encryption-cli.txt");
    let cli = report.stage("AWS's Encryption CLI", || {
        python::environment(workspace, "clients/encryption-cli", &[&requirements])
    })?;
    let node = report.stage("Node.js's SDKs", || node(workspace))?;
    report.heading("AWS's own clients of KMS");
    let server = ["build", "--quiet", "-p", "enclos-kms"];
    Shell::cargo(workspace).args(server).run()?;
    let rust = ["build", "--quiet", "--locked", "--manifest-path", RUST];
    Shell::cargo(workspace).args(rust).run()?;
    let built = workspace.target.join("debug");
    Shell::new(python)
        .args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"])
        .arg(workspace.path(TESTS))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("ENCLOS_KMS", built.join("enclos-kms"))
        .env("ENCLOS_CLIENT_RUST", built.join("enclos-kms-client-rust"))
        .env("ENCLOS_NODE_MODULES", node)
        .env(
            "ENCLOS_ENCRYPTION_CLI",
            cli.with_file_name("aws-encryption-cli"),
        )
        .run()
}

/// The folder above `node_modules`, installed again when the lock file changes.
fn node(workspace: &Workspace) -> Result<PathBuf> {
    let home = workspace.cache.join("clients/node");
    let source = workspace.path(TESTS).join("node");
    let lock = source.join("package-lock.json");
    let wanted =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let stamp = home.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(home);
    }
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), home.join(file))
            .with_context(|| format!("cannot copy {file} to {}", home.display()))?;
    }
    let npm = Shell::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]);
    // None of these packages needs a script of its own to be installed.
    let npm = npm.args(["--ignore-scripts", "--prefix"]).arg(&home);
    npm.run()?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(home)
}
