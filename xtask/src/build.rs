//! Builds everything that the demo and the end-to-end tests run.

use std::path::PathBuf;

use anyhow::Result;

use crate::host;
use crate::report::Report;
use crate::rootfs;
use crate::shell::Shell;
use crate::workspace::{GUEST_TRIPLE, Workspace};

/// What was built and is not found by a fixed path.
#[derive(Debug)]
pub(crate) struct Built {
    flask_rootfs: PathBuf,
    client_rootfs: PathBuf,
}

const HOST_PACKAGES: [&str; 5] = [
    "enclos-hypervisor",
    "enclos-gateway",
    "enclos-kms",
    "enclos-cli",
    "enclos-e2e",
];

const KERNEL_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// The lean kernel's source.
const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// What the lean kernel's version ends with.
const LEAN: &str = "-enclos";

const GUEST_MANIFESTS: [&str; 2] = ["examples/rust-backend/Cargo.toml", "e2e/guest/Cargo.toml"];

/// Builds everything; what is up to date costs nothing.
pub(crate) fn everything(workspace: &Workspace, report: &mut Report) -> Result<Built> {
    report.stage("Host programs", || host_programs(workspace))?;
    report.stage("Guest programs (static)", || guest_programs(workspace))?;
    report.stage("Kernel", || kernel(workspace))?;
    let flask_rootfs = report.stage("Root file system of the Flask example", || {
        rootfs::python(workspace, "examples/flask-backend/requirements.txt")
    })?;
    let client_rootfs = report.stage("Root file system of the tests' Python clients", || {
        rootfs::python(workspace, "e2e/guest/requirements.txt")
    })?;
    Ok(Built {
        flask_rootfs,
        client_rootfs,
    })
}

pub(crate) fn host_programs(workspace: &Workspace) -> Result<()> {
    let packages = HOST_PACKAGES.iter().flat_map(|package| ["-p", package]);
    let cargo = Shell::cargo(workspace).args(["build", "--quiet", "--release", "--bins"]);
    cargo.args(packages).run()
}

/// Guest programs are static, so that they need nothing from the image that they run in. The flag goes with
/// an explicit `--target`, or it would reach build scripts too.
pub(crate) fn guest_programs(workspace: &Workspace) -> Result<()> {
    guest_cargo(workspace).args(["-p", "enclos-guest"]).run()?;
    for manifest in GUEST_MANIFESTS {
        guest_cargo(workspace)
            .args(["--locked", "--manifest-path", manifest])
            .run()?;
    }
    Ok(())
}

fn guest_cargo(workspace: &Workspace) -> Shell {
    Shell::cargo(workspace)
        .args([
            "build",
            "--quiet",
            "--release",
            "--bins",
            "--target",
            GUEST_TRIPLE,
        ])
        .env("CARGO_TARGET_DIR", workspace.guest_target())
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // Timing jitter as a source of randomness costs seconds on an emulated CPU. Guests have the NSM, which
        // init mixes into the kernel's generator before anything makes keys, and the library takes it from there.
        .env("AWS_LC_SYS_NO_JITTER_ENTROPY", "1")
}

/// A kernel that is in the cache is good enough. One that is not comes from apt, which on a new machine has yet to
/// learn what there is.
pub(crate) fn kernel(workspace: &Workspace) -> Result<()> {
    if !newest_kernel(workspace).is_empty() {
        return Ok(());
    }
    if !host::apt_knows(KERNEL_PACKAGE) {
        host::update_index()?;
    }
    enclos_kernel(workspace, "fetch").read().map(drop)
}

/// The lean kernel, built from source once for a cache. From then on images are built with it.
pub(crate) fn lean_kernel(workspace: &Workspace) -> Result<()> {
    if newest_kernel(workspace).ends_with(LEAN) {
        return Ok(());
    }
    if !host::apt_knows(SOURCE_PACKAGE) {
        host::update_index()?;
    }
    enclos_kernel(workspace, "build").read().map(drop)
}

/// Where the kernel is that images are built with; empty when there is none.
fn newest_kernel(workspace: &Workspace) -> String {
    let path = enclos_kernel(workspace, "path").read();
    path.map(|path| path.trim().to_owned()).unwrap_or_default()
}

fn enclos_kernel(workspace: &Workspace, command: &str) -> Shell {
    let enclos = Shell::new(workspace.host_bins().join("enclos"));
    let enclos = enclos.args(["kernel", command]);
    enclos.env("ENCLOS_CACHE_DIR", &workspace.cache)
}

impl Built {
    /// A host program, told where everything is.
    pub(crate) fn shell(&self, workspace: &Workspace, program: &str) -> Shell {
        self.environment(workspace, Shell::new(workspace.host_bins().join(program)))
    }

    /// Adds to `shell` what the `e2e` crate's `Workbench::from_env` reads.
    pub(crate) fn environment(&self, workspace: &Workspace, shell: Shell) -> Shell {
        shell
            .env("ENCLOS_E2E_SOURCE", &workspace.root)
            .env("ENCLOS_E2E_STATE", &workspace.target)
            .env("ENCLOS_E2E_BIN_DIR", workspace.host_bins())
            .env("ENCLOS_GUEST_DIR", workspace.guest_bins())
            .env("ENCLOS_CACHE_DIR", &workspace.cache)
            .env("ENCLOS_E2E_FLASK_ROOTFS", &self.flask_rootfs)
            .env("ENCLOS_E2E_CLIENT_ROOTFS", &self.client_rootfs)
    }
}
