//! Installs what a host needs to build and run enclaves.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;
use crate::host;
use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;

const HOST_PROGRAMS: [&str; 5] = [
    "enclos",
    "enclos-hypervisor",
    "enclos-vmm",
    "enclos-gateway",
    "enclos-kms",
];

pub(crate) const GUEST_PROGRAMS: [&str; 2] = ["enclos-init", "enclos-agent"];

/// Builds, and copies to `<prefix>/bin`. Guest programs go to `guest/` beside the others, where `enclos build` looks.
pub(crate) fn run(
    workspace: &Workspace,
    report: &mut Report,
    prefix: Option<PathBuf>,
) -> Result<()> {
    report.stage("Debian packages", host::install_missing)?;
    report.stage("Host programs", || build::host_programs(workspace))?;
    report.stage("Guest programs (static)", || {
        build::guest_programs(workspace)
    })?;
    report.stage("Kernel", || build::kernel(workspace))?;
    let prefix = prefix.map_or_else(home_prefix, Ok)?;
    let bin = prefix.join("bin");
    report.stage("Copy", || {
        copy_all(&workspace.host_bins(), &bin, &HOST_PROGRAMS)?;
        copy_all(&workspace.guest_bins(), &bin.join("guest"), &GUEST_PROGRAMS)?;
        link(Path::new("enclos"), &bin.join("nitro-cli"))
    })?;
    report.stage("Manual pages, completions", || {
        manual(&bin.join("enclos"), &prefix.join("share"))
    })?;
    report.heading(&format!("Installed in {}", bin.display()));
    if !host::searches(&bin) {
        report.heading(&format!(
            "The shell does not look there yet: export PATH={}:$PATH",
            bin.display()
        ));
    }
    Ok(())
}

/// Where each shell looks below a prefix's `share/`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/enclos"),
    ("zsh", "zsh/site-functions/_enclos"),
    ("fish", "fish/vendor_completions.d/enclos.fish"),
];

fn manual(enclos: &Path, share: &Path) -> Result<()> {
    Shell::new(enclos)
        .arg("man")
        .arg(share.join("man/man1"))
        .run()?;
    for (shell, file) in COMPLETIONS {
        let file = share.join(file);
        let script = Shell::new(enclos).args(["completions", shell]).read()?;
        let folder = file.parent().unwrap_or(share);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, script))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn home_prefix() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: say where with --prefix")?;
    Ok(Path::new(&home).join(".local"))
}

/// A program that runs cannot be written to; it can be replaced.
fn copy_all(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for name in names {
        let (source, partial) = (from.join(name), to.join(format!(".{name}.new")));
        fs::copy(&source, &partial)
            .and_then(|_| fs::rename(&partial, to.join(name)))
            .with_context(|| format!("cannot copy {} to {}", source.display(), to.display()))?;
    }
    Ok(())
}

/// AWS's own nitro-cli stays, if there is one.
fn link(target: &Path, name: &Path) -> Result<()> {
    if name.symlink_metadata().is_ok() {
        return Ok(());
    }
    symlink(target, name).with_context(|| format!("cannot create {}", name.display()))
}
