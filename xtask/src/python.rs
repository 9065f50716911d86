//! Python packages for tests, apart from the system's.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::Shell;
use crate::workspace::Workspace;

/// A Python of our own in the cache, with the packages of these requirements files; made again when they change.
pub(crate) fn environment(
    workspace: &Workspace,
    name: &str,
    requirements: &[&str],
) -> Result<PathBuf> {
    let home = workspace.cache.join(name);
    let python = home.join("bin/python");
    let files: Vec<_> = requirements
        .iter()
        .map(|file| workspace.path(file))
        .collect();
    let texts = files.iter().map(|file| {
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
    });
    let wanted = texts.collect::<Result<Vec<_>>>()?.concat();
    let stamp = home.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let venv = Shell::new("python3").args(["-m", "venv", "--clear"]);
    venv.arg(&home).run()?;
    let mut pip = Shell::new(&python).args(["-m", "pip", "--disable-pip-version-check"]);
    pip = pip.args(["--quiet", "install"]);
    for file in &files {
        pip = pip.arg("--requirement").arg(file);
    }
    pip.run()?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}
