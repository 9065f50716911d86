//! `enclos kernel`: Debian's cloud kernel, in the cache and never installed.
//!
//! `apt-get download` checks the package's hash against the signed index. It does so only when the repository
//! is trusted, so the download refuses unauthenticated packages, and the file is compared once more with
//! the hash that
//! apt's index names. What is kept, below `<cache>/kernel/<version>/`:
//!
//! | file | from the package |
//! |---|---|
//! | `vmlinuz` | `boot/vmlinuz-<version>` |
//! | `config` | `boot/config-<version>` |
//! | `modules/` | `lib/modules/<version>/` |
//!
//! A version's directory appears by one rename, whole or not at all.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};

use crate::dirs;
use crate::failure::{Failure, Outcome};
use crate::term;

/// The package that depends on the newest 6.12 cloud kernel.
const META_PACKAGE: &str = "linux-image-6.12-cloud-amd64";

/// `enclos kernel …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Kernel {
    /// Download Debian's cloud kernel into the cache; does nothing if it is there
    Fetch(Fetch),
    /// Print the directory of the newest kernel in the cache
    Path,
}

/// Options of `kernel fetch`.
#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// Use this .deb instead of downloading one
    #[arg(long, value_name = "FILE")]
    deb: Option<PathBuf>,
}

pub(super) fn run(command: &Kernel) -> Outcome {
    let dir = match command {
        Kernel::Fetch(args) => fetch(args)?,
        Kernel::Path => newest()?.ok_or_else(missing)?,
    };
    term::out(&format!("{}\n", dir.display()))
}

/// The failure of every command that needs a kernel and finds none.
pub(crate) fn missing() -> Failure {
    Failure::text("no kernel is in the cache").hint("fetch Debian's with `enclos kernel fetch`")
}

/// Directory of the newest kernel in the cache.
pub(crate) fn newest() -> Outcome<Option<PathBuf>> {
    newest_in(&root()?)
}

fn newest_in(root: &Path) -> Outcome<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(root) else {
        return Ok(None);
    };
    let dirs = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let complete = dirs.filter(|dir| dir.join("vmlinuz").is_file() && !is_partial(dir));
    Ok(complete.max_by_key(|dir| version_key(dir.file_name().unwrap_or_default())))
}

/// Version numbers compare as numbers: 6.12.9 is older than 6.12.117.
fn version_key(name: &OsStr) -> (Vec<u64>, String) {
    let name = name.to_string_lossy();
    let numbers = name
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok());
    (numbers.collect(), name.clone().into_owned())
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
    let work = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(&root)?;
    if let Some(deb) = &args.deb {
        return unpack(deb, work.path(), &root);
    }
    need_apt()?;
    let package = resolve_package()?;
    if let Some(present) = present(&root, &package) {
        term::note(format_args!("{package} is in the cache already"));
        return Ok(present);
    }
    term::note(format_args!(
        "downloading {package} (about 35 MB) into {}",
        root.display()
    ));
    let deb = download(&package, work.path())?;
    unpack(&deb, work.path(), &root)
}

fn present(root: &Path, package: &str) -> Option<PathBuf> {
    let dir = root.join(package.strip_prefix("linux-image-")?);
    dir.join("vmlinuz").is_file().then_some(dir)
}

fn need_apt() -> Outcome {
    let missing: Vec<_> = ["apt-get", "apt-cache", "dpkg-deb"]
        .into_iter()
        .filter(|tool| dirs::in_path(tool).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::text(format_args!("not a Debian-like system: {} not found", missing.join(", "))).hint(
        "download linux-image-6.12.*-cloud-amd64 from https://packages.debian.org/bookworm/linux-image-6.12-cloud-amd64 \
         and pass the file with --deb (needs dpkg-deb, package dpkg)",
    ))
}

/// The package with the kernel in it, which the meta-package depends on.
fn resolve_package() -> Outcome<String> {
    let listed = output(Command::new("apt-cache").args(["depends", "--important", META_PACKAGE]));
    let listed = listed.map_err(|failure| {
        failure.hint("on Debian 12 the package comes from bookworm-security; run `apt-get update` if its lists are old")
    })?;
    parse_depends(&listed).ok_or_else(|| {
        Failure::text(format_args!("{META_PACKAGE} is not in apt's package lists"))
            .hint("on Debian 12 it comes from bookworm-security: check /etc/apt/sources.list*, then run `apt-get update`")
    })
}

fn parse_depends(listed: &str) -> Option<String> {
    let names = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .map(str::trim)
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// Refuses whatever apt cannot authenticate, whatever the machine's configuration allows.
const APT_STRICT: [&str; 6] = [
    "-o",
    "APT::Get::AllowUnauthenticated=false",
    "-o",
    "Acquire::AllowInsecureRepositories=false",
    "-o",
    "Acquire::AllowWeakRepositories=false",
];

fn download(package: &str, work: &Path) -> Outcome<PathBuf> {
    let uris = output(Command::new("apt-get").args(APT_STRICT).args([
        "download",
        "--print-uris",
        package,
    ]))?;
    let expected = parse_sha256(&uris).ok_or_else(|| {
        Failure::text(format_args!("apt's index names no SHA-256 for {package}"))
            .hint("run `apt-get update`; a repository without SHA-256 is not used")
    })?;
    // As root, apt would hand the download to a user that cannot write here, and warn.
    let sandbox = ["-o", "APT::Sandbox::User=root"];
    output(
        Command::new("apt-get")
            .args(APT_STRICT)
            .args(sandbox)
            .args(["download", package])
            .current_dir(work),
    )?;
    let deb = find(work, |name| name.ends_with(".deb"))
        .ok_or_else(|| Failure::text("apt-get download succeeded but left no .deb"))?;
    let found = sha256(&deb)?;
    if found != expected {
        return Err(Failure::text(format_args!(
            "{package} has SHA-256 {found}, but apt's index says {expected}: not used"
        )));
    }
    Ok(deb)
}

/// From `'uri' name size SHA256:hex`.
fn parse_sha256(uris: &str) -> Option<String> {
    let word = uris
        .split_whitespace()
        .find_map(|word| word.strip_prefix("SHA256:"))?;
    (word.len() == 64).then(|| word.to_ascii_lowercase())
}

fn sha256(path: &Path) -> Outcome<String> {
    let bytes = fs::read(path).map_err(|error| Failure::file(None, "read", path, error))?;
    Ok(hex::encode(Sha256::digest(bytes)))
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
    let last = stderr
        .trim()
        .lines()
        .last()
        .unwrap_or("it printed nothing")
        .to_owned();
    Err(Failure::from(anyhow::anyhow!(last))
        .context(format!("{program} failed ({})", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_package_is_read_from_apts_answer() {
        let listed =
            "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(
            parse_depends(listed).as_deref(),
            Some("linux-image-6.12.117+deb12-cloud-amd64")
        );
        assert_eq!(parse_depends("linux-image-6.12-cloud-amd64\n"), None);
    }

    #[test]
    fn only_a_whole_sha256_counts() {
        let hash = "5195b288dec79e2981d6b84457f38b7ce7310a2d702930ec7d07209c7f78ce37";
        assert_eq!(
            parse_sha256(&format!("'http://x/y.deb' y.deb 34307256 SHA256:{hash}")).as_deref(),
            Some(hash)
        );
        assert_eq!(
            parse_sha256("'http://x/y.deb' y.deb 34307256 SHA256:5195"),
            None
        );
        assert_eq!(
            parse_sha256("'http://x/y.deb' y.deb 34307256 MD5Sum:0"),
            None
        );
    }

    #[test]
    fn the_newest_complete_kernel_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(newest_in(&root.path().join("none")).unwrap(), None);
        for name in ["6.12.9-cloud", "6.12.117-cloud", ".fetch-7.0"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("vmlinuz"), "").unwrap();
        }
        fs::create_dir(root.path().join("6.13.0-cloud")).unwrap();
        assert_eq!(
            newest_in(root.path()).unwrap(),
            Some(root.path().join("6.12.117-cloud"))
        );
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
