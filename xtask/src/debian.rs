//! Debian's packages without installing them: downloaded and checked by apt, unpacked into the cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::host;
use crate::shell::Shell;

/// What a compiler on Debian has anyway, and what none of those that are unpacked needs for its target.
const NOT_NEEDED: [&str; 4] = ["gcc", "clang", "libc-dev", "binutils"];

/// In the names of packages of cross compilers: those look for each other in the folder that they are in, so they are
/// unpacked all of them, installed or not.
const SELF_CONTAINED: [&str; 2] = ["aarch64-linux-gnu", "arm64-cross"];

/// Whether this machine's apt has all of them.
pub(crate) fn has(packages: &[&str]) -> bool {
    packages.iter().all(|package| host::apt_knows(package))
}

/// Packages, and those that they depend on and that are not at hand.
pub(crate) fn closure(packages: &[&str]) -> Result<BTreeSet<String>> {
    if !has(packages) {
        host::update_index()?;
    }
    if !has(packages) {
        bail!(
            "apt has no {}: Debian 12 with its security repository does",
            packages.join(", ")
        );
    }
    let mut wanted = BTreeSet::new();
    packages
        .iter()
        .try_for_each(|package| add(package, &mut wanted))?;
    Ok(wanted)
}

fn add(package: &str, wanted: &mut BTreeSet<String>) -> Result<()> {
    if !wanted.insert(package.to_owned()) {
        return Ok(());
    }
    let depends = Shell::new("apt-cache").args(["depends", package]).read()?;
    for needed in depends.lines().filter_map(dependency) {
        if !NOT_NEEDED.contains(&needed) && (is_self_contained(needed) || !is_installed(needed)) {
            add(needed, wanted)?;
        }
    }
    Ok(())
}

/// `  Depends: name`; not alternatives (`|Depends`) nor virtual packages (`<name>`).
fn dependency(line: &str) -> Option<&str> {
    let (kind, name) = line.trim().split_once(": ")?;
    let needed = matches!(kind, "Depends" | "PreDepends");
    (needed && !name.starts_with('<')).then_some(name)
}

fn is_self_contained(package: &str) -> bool {
    SELF_CONTAINED.iter().any(|part| package.contains(part))
}

fn is_installed(package: &str) -> bool {
    let query = ["-W", "-f", "${db:Status-Status}\n", package];
    let status = Shell::new("dpkg-query").args(query).read();
    status.is_ok_and(|status| status.lines().any(|line| line == "installed"))
}

/// Name and version that apt would take.
fn candidate(package: &str) -> Result<String> {
    let policy = Shell::new("apt-cache").args(["policy", package]).read()?;
    let mut lines = policy.lines();
    let version = lines.find_map(|line| line.trim().strip_prefix("Candidate: "));
    let version = version.with_context(|| format!("apt has no version of {package}"))?;
    Ok(format!("{package} {version}\n"))
}

/// Unpacks packages into `home` and returns it; downloads them again when apt's index has another version.
pub(crate) fn unpack(packages: &BTreeSet<String>, home: PathBuf) -> Result<PathBuf> {
    let versions = packages.iter().map(|package| candidate(package));
    let versions = versions.collect::<Result<Vec<_>>>()?.concat();
    let stamp = home.join("packages");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == versions) {
        return Ok(home);
    }
    drop(fs::remove_dir_all(&home));
    let downloads = home.join("debs");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot make {}", downloads.display()))?;
    let apt = Shell::new("env").arg("-C").arg(&downloads).arg("apt-get");
    let apt = apt.args(["--quiet", "-o", "APT::Sandbox::User=", "download"]);
    apt.args(packages).read()?;
    for entry in fs::read_dir(&downloads)? {
        Shell::new("dpkg-deb")
            .arg("-x")
            .arg(entry?.path())
            .arg(&home)
            .read()?;
    }
    fs::remove_dir_all(&downloads)?;
    fs::write(&stamp, versions).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cross_compiler_is_unpacked_whole() {
        for package in ["gcc-12-aarch64-linux-gnu", "libgcc-12-dev-arm64-cross"] {
            assert!(is_self_contained(package), "{package}");
        }
        assert!(!is_self_contained("libisl23"));
    }

    #[test]
    fn dependencies_are_told_from_alternatives_and_virtual_packages() {
        assert_eq!(dependency("  Depends: libllvm22"), Some("libllvm22"));
        assert_eq!(dependency("  PreDepends: x"), Some("x"));
        for line in [
            "rustc-web",
            " |Depends: gcc",
            "  Depends: <c-compiler>",
            "  Recommends: x",
        ] {
            assert_eq!(dependency(line), None, "{line}");
        }
    }
}
