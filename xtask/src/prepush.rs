//! What every change must pass before it is sent.

use anyhow::Result;

use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;
use crate::{direction, host, style};

/// Runs every check, cheapest first.
pub(crate) fn run(workspace: &Workspace, report: &mut Report, tests: bool) -> Result<()> {
    report.stage("Format", || format(workspace))?;
    report.stage("Direction of dependencies", || direction::check(workspace))?;
    report.stage("Sizes of files and functions", || style::check(workspace))?;
    report.stage("Clippy", || clippy(workspace))?;
    report.stage("Documentation", || documentation(workspace))?;
    deny(workspace, report)?;
    if tests {
        unit_tests(workspace, report)?;
    }
    Ok(())
}

/// Runs the unit tests of the workspace, some of which need programs of the host. The end-to-end tests stay out: they need
/// the crate feature `vm`.
pub(crate) fn unit_tests(workspace: &Workspace, report: &mut Report) -> Result<()> {
    report.stage("Debian packages", host::install_missing_for_tests)?;
    report.heading("Unit tests");
    Shell::cargo(workspace)
        .args(["test", "--workspace", "--no-fail-fast"])
        .run()
}

/// Workspaces of their own: what runs inside enclaves is built for another target; AWS's library links what ours may not.
/// Not checked `--locked`: some follow the dependencies of our own crates.
const OTHER_MANIFESTS: [&str; 6] = [
    "examples/rust-backend/Cargo.toml",
    "e2e/guest/Cargo.toml",
    "e2e/differential/Cargo.toml",
    "bindings/Cargo.toml",
    "benches/attest-peers/Cargo.toml",
    "crates/kms/tests/clients/rust/Cargo.toml",
];

/// Formatted as the others, and not linted: only libFuzzer's flags make programs of them.
const FUZZ_MANIFEST: &str = "fuzz/Cargo.toml";

fn format(workspace: &Workspace) -> Result<()> {
    Shell::cargo(workspace)
        .args(["fmt", "--all", "--check"])
        .run()?;
    for manifest in OTHER_MANIFESTS.into_iter().chain([FUZZ_MANIFEST]) {
        Shell::cargo(workspace)
            .args(["fmt", "--all", "--check", "--manifest-path", manifest])
            .run()?;
    }
    Ok(())
}

fn clippy(workspace: &Workspace) -> Result<()> {
    let cargo = Shell::cargo(workspace).args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    cargo
        .args(["--all-features", "--", "-D", "warnings"])
        .run()?;
    for manifest in OTHER_MANIFESTS {
        let cargo = Shell::cargo(workspace).args(["clippy", "--quiet", "--all-targets"]);
        cargo
            .args(["--manifest-path", manifest, "--", "-D", "warnings"])
            .run()?;
    }
    Ok(())
}

/// A link to a private item is text for readers of the public documentation and a link for those of the source: both are
/// right. A link to nothing is not.
fn documentation(workspace: &Workspace) -> Result<()> {
    let cargo = Shell::cargo(workspace).args(["doc", "--quiet", "--workspace", "--no-deps"]);
    cargo
        .env(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        )
        .run()
}

/// Licences, sources and duplicates by deny.toml. cargo-deny takes minutes to build, so it is used where it is
/// installed and its absence is said, not hidden. Advisories are left out: their database is on the Internet.
fn deny(workspace: &Workspace, report: &mut Report) -> Result<()> {
    if !Shell::cargo(workspace)
        .args(["deny", "--version"])
        .succeeds()
    {
        report
            .heading("Licences and sources: not checked, `cargo install cargo-deny` is not there");
        return Ok(());
    }
    report.stage("Licences and sources", || {
        let cargo = Shell::cargo(workspace).args(["deny", "--log-level", "error"]);
        cargo.args(["check", "bans", "licenses", "sources"]).run()
    })
}
