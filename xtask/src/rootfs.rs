//! The Python examples' root file systems, made once per recipe.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::shell::Shell;
use crate::workspace::Workspace;

const RECIPE: &str = "images/python-rootfs.sh";

/// The archive for `requirements`, from the cache when this recipe has run before.
pub(crate) fn python(workspace: &Workspace, requirements: &str) -> Result<PathBuf> {
    let recipe = workspace.path(RECIPE);
    let requirements = workspace.path(requirements);
    let folder = workspace.cache.join("rootfs");
    let archive = folder.join(format!(
        "python-{}.tar",
        recipe_hash(&[&recipe, &requirements])?
    ));
    if archive.is_file() {
        return Ok(archive);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Written beside its final name, so that an interrupted run leaves nothing that looks finished.
    let partial = archive.with_extension(format!("partial-{}", std::process::id()));
    Shell::new("sh")
        .args([&recipe, &requirements, &partial])
        .read()?;
    fs::rename(&partial, &archive)?;
    Ok(archive)
}

fn recipe_hash(files: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(Sha256::digest(text));
    }
    Ok(hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
