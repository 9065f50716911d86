//! AWS's own programs, which ours are compared with: built once from crates.io, kept in the cache.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;

/// Manifest of the differential tests, a workspace of its own. It is not built `--locked`: it follows the dependencies of the crates
/// that it compares.
pub(crate) const MANIFEST: &str = "e2e/differential/Cargo.toml";

/// One program: its crate, the version that is compared with, its executable.
struct Peer {
    package: &'static str,
    version: &'static str,
    program: &'static str,
    /// What tells the tests where it is.
    variable: &'static str,
}

const PEERS: [Peer; 2] = [
    Peer {
        package: "aws-nitro-enclaves-cli",
        version: "1.5.2",
        program: "nitro-cli",
        variable: "ENCLOS_PEER_NITRO_CLI",
    },
    Peer {
        package: "eif_build",
        version: "0.2.1",
        program: "eif_build",
        variable: "ENCLOS_PEER_EIF_BUILD",
    },
];

/// Installs what is missing. AWS's command takes ten minutes to build, once.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let root = root(workspace);
    // cargo's own record of what it installed there.
    let record = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    for peer in PEERS {
        if record.contains(&format!("\"{} {} ", peer.package, peer.version)) {
            continue;
        }
        let cargo = Shell::cargo(workspace).env("CARGO_TARGET_DIR", root.join("target"));
        let cargo = cargo.args(["install", "--quiet", "--locked", "--force", "--root"]);
        let cargo = cargo.arg(&root).args(["--version", peer.version]);
        cargo.arg(peer.package).run()?;
    }
    // Only the programs are wanted; what they were built from takes gigabytes.
    drop(fs::remove_dir_all(root.join("target")));
    Ok(())
}

/// Two hundred images, written, measured and described by AWS's code and by ours.
pub(crate) fn differential(workspace: &Workspace, report: &mut Report) -> Result<()> {
    report.stage("AWS's own tools (ten minutes, once)", || install(workspace))?;
    report.heading("Differential tests");
    let mut cargo = Shell::cargo(workspace)
        .args(["test", "--quiet", "--manifest-path", MANIFEST])
        .env("ENCLOS_BIN", workspace.host_bins().join("enclos"));
    for peer in PEERS {
        cargo = cargo.env(
            peer.variable,
            root(workspace).join("bin").join(peer.program),
        );
    }
    cargo.run()
}

fn root(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("peers")
}
