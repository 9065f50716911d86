//! `enclos kernel`: the kernels that images are built with, in the cache and never installed.
//!
//! Debian's cloud kernel is fetched. The lean one (see [`build`]) is made from Debian's source, and used from then on.
//!
//! What is kept, below `<cache>/kernel/<version>/`:
//!
//! | file | Debian's, from the package | lean |
//! |---|---|---|
//! | `vmlinuz` | `boot/vmlinuz-<version>` | `bzImage`, or arm64's `Image` |
//! | `config` | `boot/config-<version>` | its complete configuration |
//! | `modules/` | `lib/modules/<version>/` | `modules.builtin`, and no module |
//!
//! A version's directory appears by one rename, whole or not at all.

mod apt;
mod build;
mod workplace;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand, ValueEnum};

use apt::Apt;
use workplace::Workplace;

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// What a lean kernel's version has after its number; that for aarch64 ends with `-arm64` beside it.
const LEAN: &str = "-enclos";

/// The package that depends on the newest 6.12 cloud kernel, but for its ending: the architecture as Debian names it.
const META_PACKAGE: &str = "linux-image-6.12-cloud-";

/// A processor that images are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// As Debian names it.
    fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Whether a directory of the cache holds a kernel for it: Debian's and the lean one for aarch64 both end so.
    fn has(self, name: &OsStr) -> bool {
        let is_arm = name.to_string_lossy().ends_with(Self::Aarch64.debian());
        is_arm == (self == Self::Aarch64)
    }
}

/// `enclos kernel …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// Download Debian's cloud kernel into the cache; does nothing if it is there
    Fetch(Fetch),
    /// Build the lean kernel from Debian's source into the cache; images are built with it from then on
    ///
    /// It boots in half the time: drivers for what an enclave has are built in, and nothing else is. The build takes
    /// minutes, 2 GB of disk for as long, and a compiler.
    Build(build::Build),
    /// Print the directory of the kernel that images are built with: the newest lean one, else the newest
    Path(Where),
}

/// Options of `kernel path`.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// Processor that it is for
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
}

/// Options of `kernel fetch`.
#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// Use this .deb instead of downloading one
    #[arg(long, value_name = "FILE")]
    deb: Option<PathBuf>,
    /// Processor that it is for. The package lists of another than this machine's are fetched for once and not kept
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
}

pub(super) fn run(command: &Kernel) -> Outcome {
    let dir = match command {
        Kernel::Fetch(args) => fetch(args)?,
        Kernel::Build(args) => build::build(args)?,
        Kernel::Path(args) => {
            newest_in(&root()?, args.arch)?.ok_or_else(|| missing_for(args.arch))?
        }
    };
    term::out(&format!("{}\n", dir.display()))
}

/// The failure of every command that needs a kernel and finds none.
pub(crate) fn missing() -> Failure {
    missing_for(Arch::X86_64)
}

fn missing_for(arch: Arch) -> Failure {
    match arch {
        Arch::X86_64 => Failure::text("no kernel is in the cache")
            .hint("fetch Debian's with `enclos kernel fetch`"),
        Arch::Aarch64 => Failure::text("no kernel for aarch64 is in the cache")
            .hint("fetch Debian's with `enclos kernel fetch --arch aarch64`"),
    }
}

/// Directory of the newest lean kernel in the cache, else of the newest of all, for x86-64.
pub(crate) fn newest() -> Outcome<Option<PathBuf>> {
    newest_in(&root()?, Arch::X86_64)
}

/// The same for aarch64.
pub(crate) fn newest_for_aarch64() -> Outcome<Option<PathBuf>> {
    newest_in(&root()?, Arch::Aarch64)
}

fn newest_in(root: &Path, arch: Arch) -> Outcome<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(root) else {
        return Ok(None);
    };
    let dirs = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let complete = dirs.filter(|dir| {
        arch.has(dir.file_name().unwrap_or_default())
            && dir.join("vmlinuz").is_file()
            && !is_partial(dir)
    });
    Ok(complete.max_by_key(|dir| version_key(dir.file_name().unwrap_or_default())))
}

/// A lean kernel before others; version numbers compare as numbers: 6.12.9 is older than 6.12.117.
fn version_key(name: &OsStr) -> (bool, Vec<u64>, String) {
    let name = name.to_string_lossy();
    let numbers = name
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok());
    let lean = name.contains(LEAN);
    (lean, numbers.collect(), name.clone().into_owned())
}

fn is_partial(dir: &Path) -> bool {
    dir.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn root() -> Outcome<PathBuf> {
    Ok(dirs::cache()?.join("kernel"))
}

fn fetch(args: &Fetch) -> Outcome<PathBuf> {
    let root = root()?;
    fs::create_dir_all(&root).map_err(|error| Failure::file(None, "create", &root, error))?;
    let work = Workplace::new(&root)?;
    if let Some(deb) = &args.deb {
        return unpack(deb, work.path(), &root);
    }
    let apt = Apt::for_arch(args.arch, work.path())?;
    let package = apt.depended_on(&format!("{META_PACKAGE}{}", args.arch.debian()))?;
    if let Some(present) = present(&root, &package) {
        term::note(format_args!("{package} is in the cache already"));
        return Ok(present);
    }
    term::note(format_args!(
        "downloading {package} (about 35 MB) into {}",
        root.display()
    ));
    let deb = apt.download(&package, work.path())?;
    unpack(&deb, work.path(), &root)
}

fn present(root: &Path, package: &str) -> Option<PathBuf> {
    let dir = root.join(package.strip_prefix("linux-image-")?);
    dir.join("vmlinuz").is_file().then_some(dir)
}

/// Programs that are not there, by the package that has them.
fn missing_programs(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let missing = programs
        .iter()
        .filter(|(name, _)| dirs::in_path(name).is_none());
    missing.map(|(_, package)| *package).collect()
}

/// Moves what is needed of the package into place.
fn unpack(deb: &Path, work: &Path, root: &Path) -> Outcome<PathBuf> {
    let tree = work.join("tree");
    output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&tree))?;
    let boot = tree.join("boot");
    let vmlinuz = find(&boot, |name| name.starts_with("vmlinuz-"))
        .ok_or_else(|| Failure::text(format_args!("{} holds no boot/vmlinuz-*", deb.display())))?;
    let name = vmlinuz.file_name().unwrap_or_default().to_string_lossy();
    let version = name.trim_start_matches("vmlinuz-").to_owned();
    let kept = work.join("kept");
    fs::create_dir(&kept).map_err(|error| Failure::file(None, "create", &kept, error))?;
    let modules = [
        tree.join("lib/modules").join(&version),
        tree.join("usr/lib/modules").join(&version),
    ];
    let modules = modules.into_iter().find(|dir| dir.is_dir());
    let modules =
        modules.ok_or_else(|| Failure::text(format_args!("{} holds no modules", deb.display())))?;
    keep(&vmlinuz, &kept.join("vmlinuz"))?;
    keep(
        &boot.join(format!("config-{version}")),
        &kept.join("config"),
    )?;
    keep(&modules, &kept.join("modules"))?;
    put_in_place(&kept, &root.join(version))
}

/// Another process may have put the same version there in the meantime; then that one stays.
fn put_in_place(kept: &Path, target: &Path) -> Outcome<PathBuf> {
    match fs::rename(kept, target) {
        Err(_) if target.join("vmlinuz").is_file() => Ok(target.to_owned()),
        Err(error) => Err(Failure::file(None, "create", target, error)),
        Ok(()) => Ok(target.to_owned()),
    }
}

fn keep(from: &Path, to: &Path) -> Outcome {
    fs::rename(from, to).map_err(|error| Failure::file(None, "move", from, error))
}

fn find(dir: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| wanted(&name.to_string_lossy()))
    })
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| Failure::from(error).context(format!("cannot run {program}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let why = why(&stderr).unwrap_or("it printed nothing").to_owned();
    Err(Failure::from(anyhow::anyhow!(why))
        .context(format!("{program} failed ({})", output.status)))
}

/// The line that says why a program failed: the first that speaks of an error, else the last. What make itself says comes after
/// that, and is that something failed.
fn why(stderr: &str) -> Option<&str> {
    let lines = || {
        stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let mut own = lines().filter(|line| !line.starts_with("make"));
    let error = own
        .clone()
        .find(|line| line.to_lowercase().contains("error"));
    error
        .or_else(|| own.next_back())
        .or_else(|| lines().next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_says_why_is_found() {
        let gcc = "warning: old\na.c:1:2: error: no such thing\n    1 | x\nmake[2]: *** [a.o] Error 1\nmake: *** [all] Error 2\n";
        assert_eq!(why(gcc), Some("a.c:1:2: error: no such thing"));
        assert_eq!(
            why("note: one\nE: Unable to locate\n"),
            Some("E: Unable to locate")
        );
        assert_eq!(why("make: *** no rule\n"), Some("make: *** no rule"));
        assert_eq!(why("\n"), None);
    }

    #[test]
    fn the_newest_complete_kernel_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(
            newest_in(&root.path().join("none"), Arch::X86_64).unwrap(),
            None
        );
        for name in ["6.12.9-cloud", "6.12.117-cloud", ".work-7.0"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("vmlinuz"), "").unwrap();
        }
        fs::create_dir(root.path().join("6.13.0-cloud")).unwrap();
        let arm = root.path().join("6.12.118-cloud-arm64");
        fs::create_dir(&arm).unwrap();
        fs::write(arm.join("vmlinuz"), "").unwrap();
        let newest_arm = || newest_in(root.path(), Arch::Aarch64).unwrap();
        assert_eq!(newest_arm(), Some(arm));
        let newest = || newest_in(root.path(), Arch::X86_64).unwrap();
        assert_eq!(newest(), Some(root.path().join("6.12.117-cloud")));
        let lean = root.path().join("6.12.90-enclos");
        fs::create_dir(&lean).unwrap();
        fs::write(lean.join("vmlinuz"), "").unwrap();
        assert_eq!(newest(), Some(lean.clone()));
        let lean_arm = root.path().join("6.12.90-enclos-arm64");
        fs::create_dir(&lean_arm).unwrap();
        fs::write(lean_arm.join("vmlinuz"), "").unwrap();
        assert_eq!((newest(), newest_arm()), (Some(lean), Some(lean_arm)));
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let failure = output(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]))
            .unwrap_err();
        let text = failure.render("enclos");
        assert!(
            text.contains("sh failed (exit status: 3)") && text.contains("because: two"),
            "{text}"
        );
        assert!(output(&mut Command::new("no-such-program")).is_err());
    }
}
