//! Where things are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The checkout and the folders that builds write to.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// `CARGO_TARGET_DIR`, else `target/` in the checkout.
    pub(crate) target: PathBuf,
    /// What is fetched once and kept between checkouts: kernels, root file systems.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("xtask lies in the workspace")?;
        if !root.join("Cargo.lock").is_file() {
            bail!(
                "{} is no longer a checkout of Enclos: run `cargo xtask` from one",
                root.display()
            );
        }
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Ok(Self {
            root: root.to_owned(),
            target: std::path::absolute(target)?,
            cache: cache_dir()?,
        })
    }

    /// Release binaries for the host.
    pub(crate) fn host_bins(&self) -> PathBuf {
        self.target.join("release")
    }

    /// Target folder of static programs that run inside enclaves.
    pub(crate) fn guest_target(&self) -> PathBuf {
        self.target.join("guest")
    }

    /// Static release programs that run inside enclaves.
    pub(crate) fn guest_bins(&self) -> PathBuf {
        self.guest_target().join(GUEST_TRIPLE).join("release")
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }
}

/// Static glibc: the triple that every Rust installation on Debian has, so nothing is downloaded for it.
pub(crate) const GUEST_TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// As `enclos` itself: `ENCLOS_CACHE_DIR`, else `~/.cache/enclos`.
fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("ENCLOS_CACHE_DIR") {
        return Ok(std::path::absolute(PathBuf::from(dir))?);
    }
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = base
        .or_else(home)
        .context("neither ENCLOS_CACHE_DIR nor HOME is set")?;
    Ok(base.join("enclos"))
}
