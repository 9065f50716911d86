//! Packages from the distribution's repositories, downloaded and never installed.
//!
//! `apt-get download` checks the package's hash against the signed index. It does so only when the repository is trusted, so
//! the download refuses unauthenticated packages, and the file is compared once more with the hash that apt's index names.
//!
//! Packages for another processor than the machine's are not in its lists. For those, lists of their own are fetched into a
//! temporary folder, from the same sources and under the same keys; the machine's own are not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Arch, find, missing_programs, output};
use crate::failure::{Failure, Outcome};
use crate::term;

/// Refuses whatever apt cannot authenticate, whatever the machine's configuration allows.
const STRICT: [&str; 3] = [
    "APT::Get::AllowUnauthenticated=false",
    "Acquire::AllowInsecureRepositories=false",
    "Acquire::AllowWeakRepositories=false",
];

/// apt with its package lists.
pub(super) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The machine's own.
    pub(super) fn of_this_machine() -> Self {
        let options = STRICT.map(str::to_owned).to_vec();
        Self { options }
    }

    /// With the packages for a processor; `folder` is for lists that have to be fetched.
    pub(super) fn for_arch(arch: Arch, folder: &Path) -> Outcome<Self> {
        let mut apt = Self::of_this_machine();
        if arch == Arch::X86_64 {
            return Ok(apt);
        }
        check_tools(&format!("a kernel for {}", arch.debian()))?;
        let (state, cache) = (folder.join("apt/state"), folder.join("apt/cache"));
        for folder in [state.join("lists/partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&folder)
                .map_err(|error| Failure::file(None, "create", &folder, error))?;
        }
        apt.options.extend([
            format!("APT::Architecture={}", arch.debian()),
            format!("APT::Architectures={}", arch.debian()),
            format!("Dir::State={}", state.display()),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", cache.display()),
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ]);
        term::note(format_args!(
            "fetching the package lists for {}",
            arch.debian()
        ));
        output(apt.command("apt-get").args(["--quiet", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option.as_str()]);
        }
        command
    }

    /// The package with the kernel in it, which the meta-package depends on.
    pub(super) fn depended_on(&self, meta: &str) -> Outcome<String> {
        check_tools(meta)?;
        let mut apt = self.command("apt-cache");
        let listed = output(apt.args(["depends", "--important", meta]));
        let listed = listed.map_err(|failure| {
            failure.hint("on Debian 12 the package comes from bookworm-security; run `apt-get update` if its lists are old")
        })?;
        parse_depends(&listed).ok_or_else(|| {
            Failure::text(format_args!("{meta} is not in apt's package lists"))
                .hint("on Debian 12 it comes from bookworm-security: check /etc/apt/sources.list*, then run `apt-get update`")
        })
    }

    /// Puts a package into `folder`, if it is what apt's index says.
    pub(super) fn download(&self, package: &str, folder: &Path) -> Outcome<PathBuf> {
        check_tools(package)?;
        let apt = || {
            let mut apt = self.command("apt-get");
            apt.current_dir(folder);
            apt
        };
        let uris = output(apt().args(["download", "--print-uris", package]))?;
        let expected = parse_sha256(&uris).ok_or_else(|| {
            Failure::text(format_args!("apt's index names no SHA-256 for {package}"))
                .hint("run `apt-get update`; a repository without SHA-256 is not used")
        })?;
        // As root, apt would hand the download to a user that cannot write here, and warn.
        output(apt().args(["-o", "APT::Sandbox::User=root", "download", package]))?;
        let deb = find(folder, |name| name.ends_with(".deb"))
            .ok_or_else(|| Failure::text("apt-get download succeeded but left no .deb"))?;
        let found = sha256(&deb)?;
        if found != expected {
            return Err(Failure::text(format_args!(
                "{package} has SHA-256 {found}, but apt's index says {expected}: not used"
            )));
        }
        Ok(deb)
    }
}

/// Whether this is a system with apt.
fn check_tools(package: &str) -> Outcome {
    let tools = ["apt-get", "apt-cache", "dpkg-deb"].map(|name| (name, name));
    let missing = missing_programs(&tools);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::text(format_args!("not a Debian-like system: {} not found", missing.join(", "))).hint(format_args!(
        "download {package} from https://packages.debian.org/bookworm/kernel/ and pass the file with --deb (needs \
         dpkg-deb, package dpkg)"
    )))
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
}
