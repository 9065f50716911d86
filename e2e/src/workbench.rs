//! Where everything is. `cargo xtask` builds it and passes it on in the environment.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Binaries, images' ingredients and scratch space.
#[derive(Debug, Clone)]
pub struct Workbench {
    /// The checkout.
    pub source: PathBuf,
    /// Folder below which scratch folders are made.
    pub state: PathBuf,
    /// Host programs.
    pub bins: PathBuf,
    /// Static programs for enclaves.
    pub guest: PathBuf,
    /// Folder with a folder for each kernel.
    pub kernels: PathBuf,
    /// Root file system with the Flask example's packages.
    pub flask_rootfs: PathBuf,
    /// Root file system with the tests' Python clients.
    pub client_rootfs: PathBuf,
}

impl Workbench {
    /// Reads the environment that `cargo xtask` sets.
    ///
    /// # Errors
    /// A variable is missing: the program was started by hand.
    pub fn from_env() -> Result<Self> {
        Ok(Self {
            source: variable("ENCLOS_E2E_SOURCE")?,
            state: variable("ENCLOS_E2E_STATE")?,
            bins: variable("ENCLOS_E2E_BIN_DIR")?,
            guest: variable("ENCLOS_GUEST_DIR")?,
            kernels: variable("ENCLOS_CACHE_DIR")?.join("kernel"),
            flask_rootfs: variable("ENCLOS_E2E_FLASK_ROOTFS")?,
            client_rootfs: variable("ENCLOS_E2E_CLIENT_ROOTFS")?,
        })
    }

    /// A host program, ready to be given arguments.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.bins.join(name))
    }

    /// A file of the checkout.
    #[must_use]
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.source.join(relative)
    }
}

fn variable(name: &str) -> Result<PathBuf> {
    let value = env::var_os(name);
    let value = value.with_context(|| {
        format!(
            "{name} is not set: start this through `cargo xtask`, which builds what is needed first"
        )
    })?;
    Ok(value.into())
}
