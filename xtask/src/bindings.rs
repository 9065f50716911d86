//! The verifier in other languages and beside other verifiers: all of them on the same vectors.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::python;
use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;

/// The bindings' workspace.
const MANIFEST: &str = "bindings/Cargo.toml";

/// The package that holds the other verifiers.
const PEERS: &str = "benches/attest-peers/Cargo.toml";

/// The package with the server that tests in Python speak with, and the server.
const SERVER: [&str; 4] = ["-p", "enclos-bindings", "--example", "attested_server"];

/// What Python needs, installed apart from the system.
const REQUIREMENTS: [&str; 2] = [
    "bindings/python/requirements.txt",
    "crates/attest/tests/oracle.txt",
];

/// Builds the bindings and walks the shared vectors in every language and with every judge.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let python = report.stage("Python's packages", || {
        python::environment(workspace, "python", &REQUIREMENTS)
    })?;
    report.heading("Bindings: Node.js");
    let build = ["build", "--quiet", "--locked", "--manifest-path", MANIFEST];
    // Python's is maturin's to build: cargo would link a library of Python's, which an extension does not need.
    let for_node = ["-p", "enclos-node"];
    Shell::cargo(workspace).args(build).args(for_node).run()?;
    node(workspace)?;
    report.heading("Bindings: Python");
    Shell::cargo(workspace).args(build).args(SERVER).run()?;
    wheel(workspace, &python)?;
    report.heading("Judges of the shared vectors");
    judges(workspace, &python)
}

fn node(workspace: &Workspace) -> Result<()> {
    let package = workspace.path("bindings/node");
    let built = workspace.target.join("debug/libenclos_node.so");
    let native = package.join("enclos.node");
    fs::copy(&built, &native).with_context(|| format!("cannot copy {}", built.display()))?;
    let test = Shell::new("node").args(["--test", "--test-reporter", "dot"]);
    test.arg(package.join("test/enclos.test.js")).run()
}

fn wheel(workspace: &Workspace, python: &Path) -> Result<()> {
    let wheels = workspace.target.join("wheels/enclos");
    drop(fs::remove_dir_all(&wheels));
    let maturin = Shell::new(python).args(["-m", "maturin", "build", "--quiet", "--locked"]);
    let maturin = maturin.env("CARGO_TARGET_DIR", &workspace.target);
    let maturin = maturin.arg("--manifest-path");
    let maturin = maturin.arg(workspace.path("bindings/python/Cargo.toml"));
    maturin.arg("--out").arg(&wheels).run()?;
    let pip = Shell::new(python).args(["-m", "pip", "--quiet", "install", "--force-reinstall"]);
    let pip = pip.args(["--no-index", "--no-deps", "--find-links"]);
    pip.arg(&wheels).arg("enclos").run()?;
    let package = workspace.path("bindings/python");
    let tests = Shell::new(python).args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"]);
    let server = workspace.target.join("debug/examples/attested_server");
    let tests = tests.env("ENCLOS_ATTESTED_SERVER", server);
    tests.arg(&package).run()?;
    let types = Shell::new(python).args(["-m", "mypy", "--cache-dir=/dev/null"]);
    let types = types
        .arg("--config-file")
        .arg(package.join("pyproject.toml"));
    types.arg(package.join("tests")).run()
}

/// With `ENCLOS_JUDGES` set, no judge may be missing.
fn judges(workspace: &Workspace, python: &Path) -> Result<()> {
    let vectors = [
        "test",
        "--quiet",
        "-p",
        "enclos-attest",
        "--test",
        "vectors",
    ];
    let vectors = Shell::cargo(workspace)
        .args(vectors)
        .env("ENCLOS_JUDGES", "required");
    vectors.env("ENCLOS_PYTHON", python).run()?;
    let peers = ["test", "--quiet", "--locked", "--manifest-path", PEERS];
    Shell::cargo(workspace)
        .args(peers)
        .env("ENCLOS_JUDGES", "required")
        .run()
}
