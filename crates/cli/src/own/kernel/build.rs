//! `enclos kernel build`: a kernel that holds what enclaves need and nothing else.
//!
//! Debian's cloud kernel boots every virtual machine there is. An enclave has a vsock, an NSM and perhaps a serial port: the
//! lean kernel has their drivers built in, no modules, no ACPI, no PCI, and reaches init in less than half of the time. It is made
//! from the source of Debian's own kernel, package `linux-source-6.12`, whose hash apt checks against its signed index,
//! a committed configuration (`kernel/x86_64.config`, `kernel/aarch64.config`), and one line of change (`kernel/nsm-rng.patch`). For
//! another processor than this machine's it is built by Debian's cross compiler.
//!
//! The same source, compiler and linker give the same bytes: user, host, time and build number, which a kernel would
//! otherwise record, are fixed, and it is built inside its source tree, so that no path is recorded either. A kernel also holds its
//! configuration, which names versions of tools: only those that make it count.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use super::apt::Apt;
use super::workplace::Workplace;
use super::{Arch, find, missing_programs, output, put_in_place, root};
use crate::failure::{Failure, Outcome};
use crate::term;

/// The package with Linux's source as Debian builds it.
const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// How a processor's kernel is made.
struct Target {
    /// Options that differ from the kernel's defaults, as `make savedefconfig` writes them.
    config: &'static str,
    /// What make is asked for, and where it leaves that.
    image: &'static str,
    file: &'static str,
    /// The processor as Linux's build names it, what its compiler's name begins with, and the package that has it.
    arch: &'static str,
    prefix: &'static str,
    package: &'static str,
    is_native: bool,
}

impl Target {
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self {
                config: include_str!("../../../kernel/x86_64.config"),
                image: "bzImage",
                file: "arch/x86/boot/bzImage",
                arch: "x86",
                prefix: "x86_64-linux-gnu-",
                package: "gcc-x86-64-linux-gnu",
                is_native: cfg!(target_arch = "x86_64"),
            },
            Arch::Aarch64 => Self {
                config: include_str!("../../../kernel/aarch64.config"),
                image: "Image",
                file: "arch/arm64/boot/Image",
                arch: "arm64",
                prefix: "aarch64-linux-gnu-",
                package: "gcc-aarch64-linux-gnu",
                is_native: cfg!(target_arch = "aarch64"),
            },
        }
    }

    fn need_tools(&self) -> Outcome {
        let compiler = format!("{}gcc", self.prefix);
        let mut packages = missing_programs(&TOOLS);
        if !self.is_native {
            packages.extend(missing_programs(&[(&compiler, self.package)]));
        }
        if !Path::new(LIBELF.0).is_file() {
            packages.push(LIBELF.1);
        }
        if packages.is_empty() {
            return Ok(());
        }
        packages.dedup();
        let packages = packages.join(" ");
        Err(Failure::text("programs that build a kernel are missing")
            .hint(format_args!("on Debian: apt-get install {packages}")))
    }

    /// `make` in the source tree, with nothing of the user's environment that could reach the kernel.
    fn make(&self, source: &Path) -> Command {
        let mut make = Command::new("make");
        make.current_dir(source).env_clear().envs(FIXED);
        make.arg("-s").args(ABSENT);
        if let Some(path) = std::env::var_os("PATH") {
            make.env("PATH", path);
        }
        if !self.is_native {
            make.env("ARCH", self.arch)
                .env("CROSS_COMPILE", self.prefix);
        }
        make
    }

    /// Completes the configuration with the kernel's defaults and checks that nothing was lost on the way.
    fn configure(&self, source: &Path) -> Outcome {
        let path = source.join(".config");
        fs::write(&path, self.config)
            .map_err(|error| Failure::file(None, "write", &path, error))?;
        output(self.make(source).arg("olddefconfig"))?;
        let complete =
            fs::read_to_string(&path).map_err(|error| Failure::file(None, "read", &path, error))?;
        let lost = lost(self.config, &complete);
        if lost.is_empty() {
            return Ok(());
        }
        Err(Failure::text(format_args!(
            "this source does not know what the configuration asks for: {}",
            lost.join(", ")
        ))
        .hint("it is made for Debian's linux-source-6.12; pass that package with --deb"))
    }

    /// The layout that `kernel fetch` leaves too.
    fn keep(&self, source: &Path, work: &Path) -> Outcome<PathBuf> {
        let kept = work.join("kept");
        let modules = kept.join("modules");
        fs::create_dir_all(&modules)
            .map_err(|error| Failure::file(None, "create", &modules, error))?;
        super::keep(&source.join(self.file), &kept.join("vmlinuz"))?;
        super::keep(&source.join(".config"), &kept.join("config"))?;
        let list = modules.join("modules.builtin");
        fs::write(&list, BUILT_IN).map_err(|error| Failure::file(None, "write", &list, error))?;
        Ok(kept)
    }
}

/// The NSM's driver takes virtio type 4 too.
const PATCH: &str = include_str!("../../../kernel/nsm-rng.patch");

/// What a kernel records of its build.
const FIXED: [(&str, &str); 5] = [
    ("KBUILD_BUILD_USER", "enclos"),
    ("KBUILD_BUILD_HOST", "enclos"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("LC_ALL", "C"),
];

/// Programs that the build does not run, but whose versions its configuration would have, and the kernel with it, from wherever they
/// are installed.
const ABSENT: [&str; 2] = ["RUSTC=no-rustc", "PAHOLE=no-pahole"];

/// Programs that the build runs, and the packages that have them.
const TOOLS: [(&str, &str); 9] = [
    ("gcc", "gcc"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("patch", "patch"),
    ("xz", "xz-utils"),
    ("tar", "tar"),
    ("perl", "perl"),
];

/// Header of the library that the kernel's own build tools need.
const LIBELF: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");

/// Drivers that a guest's init looks for, as `modules.builtin` lists them: there is nothing to load.
const BUILT_IN: &str = "kernel/drivers/virtio/virtio_mmio.ko\n\
                        kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko\n\
                        kernel/drivers/misc/nsm.ko\n";

/// Options of `kernel build`.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// Use this linux-source-6.12 .deb instead of downloading one
    #[arg(long, value_name = "FILE")]
    deb: Option<PathBuf>,
    /// Compilers that run at once; by default one per CPU
    #[arg(short, long, value_name = "N")]
    jobs: Option<u32>,
    /// Processor that it is for; another than this machine's needs Debian's cross compiler
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
}

pub(super) fn build(args: &Build) -> Outcome<PathBuf> {
    let target = Target::of(args.arch);
    target.need_tools()?;
    let root = root()?;
    fs::create_dir_all(&root).map_err(|error| Failure::file(None, "create", &root, error))?;
    let workplace = Workplace::new(&root)?;
    let work = workplace.path();
    let deb = match &args.deb {
        Some(deb) => deb.clone(),
        None => {
            term::note(format_args!("downloading {SOURCE_PACKAGE} (about 150 MB)"));
            Apt::of_this_machine().download(SOURCE_PACKAGE, work)?
        }
    };
    let source = unpack(&deb, work)?;
    patch(&source)?;
    target.configure(&source)?;
    let release = output(target.make(&source).arg("kernelrelease"))?;
    let release = release.trim();
    let jobs = jobs(args.jobs);
    term::note(format_args!(
        "building Linux {release} with {jobs} at once; this takes minutes"
    ));
    let mut make = target.make(&source);
    output(make.args([&format!("-j{jobs}"), target.image]))?;
    let kept = target.keep(&source, work)?;
    put_in_place(&kept, &root.join(release))
}

fn jobs(asked: Option<u32>) -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    asked
        .unwrap_or_else(|| u32::try_from(cpus).unwrap_or(1))
        .max(1)
}

fn unpack(deb: &Path, work: &Path) -> Outcome<PathBuf> {
    let tree = work.join("tree");
    output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&tree))?;
    let archives = tree.join("usr/src");
    let archive = find(&archives, |name| {
        name.starts_with("linux-source-") && name.ends_with(".tar.xz")
    });
    let archive = archive.ok_or_else(|| {
        Failure::text(format_args!(
            "{} holds no usr/src/linux-source-*.tar.xz",
            deb.display()
        ))
    })?;
    let sources = work.join("source");
    fs::create_dir(&sources).map_err(|error| Failure::file(None, "create", &sources, error))?;
    let mut tar = Command::new("tar");
    output(tar.arg("-xJf").arg(&archive).arg("-C").arg(&sources))?;
    find(&sources, |name| name.starts_with("linux-source-"))
        .ok_or_else(|| Failure::text(format_args!("{} holds no source", archive.display())))
}

/// Applies the patch to the letter: a source that it does not fit is not built.
fn patch(source: &Path) -> Outcome {
    let mut patch = Command::new("patch");
    patch
        .args(["--strip=1", "--fuzz=0", "--quiet"])
        .current_dir(source);
    let mut child = patch.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(PATCH.as_bytes())?;
    }
    if child.wait()?.success() {
        return Ok(());
    }
    Err(Failure::text("nsm-rng.patch does not fit this source")
        .hint("it is made for Debian's linux-source-6.12; pass that package with --deb"))
}

/// Options of `wanted` that `complete` has otherwise. One that is off may also be absent.
fn lost<'a>(wanted: &'a str, complete: &str) -> Vec<&'a str> {
    let has = |line: &str| complete.lines().any(|other| other == line);
    let off = |line: &str| {
        let name = line.strip_prefix("# ")?.strip_suffix(" is not set")?;
        let on = format!("{name}=");
        Some(!complete.lines().any(|other| other.starts_with(&on)))
    };
    let lines = wanted.lines().filter(|line| !line.is_empty());
    lines
        .filter(|line| !off(line).unwrap_or_else(|| has(line)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_the_source_changed_is_named() {
        let complete = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=m\nCONFIG_E=100\n";
        assert_eq!(
            lost(
                "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\n",
                complete
            ),
            [""; 0]
        );
        assert_eq!(
            lost(
                "CONFIG_D=y\n# CONFIG_A is not set\nCONFIG_F=y\nCONFIG_E=10\n",
                complete
            ),
            [
                "CONFIG_D=y",
                "# CONFIG_A is not set",
                "CONFIG_F=y",
                "CONFIG_E=10"
            ]
        );
    }

    #[test]
    fn the_configurations_are_an_enclaves() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let config = Target::of(arch).config;
            for line in [
                "CONFIG_NSM=y",
                "CONFIG_VIRTIO_VSOCKETS=y",
                "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y",
                "CONFIG_TUN=y",
                "# CONFIG_BLOCK is not set",
            ] {
                assert!(
                    config.lines().any(|other| other == line),
                    "{arch:?}: {line}"
                );
            }
            assert!(!config.contains("CONFIG_MODULES=y") && !config.contains("=m\n"));
        }
        let x86 = Target::of(Arch::X86_64).config;
        assert!(x86.contains("# CONFIG_ACPI is not set\n"));
    }

    /// A kernel holds its configuration, and with it whatever Linux's build finds out about the machine that it runs on.
    #[test]
    fn the_machine_adds_nothing_to_the_kernel() {
        let make = Target::of(Arch::X86_64).make(Path::new("/"));
        let args: Vec<_> = make.get_args().filter_map(|arg| arg.to_str()).collect();
        assert_eq!(args, ["-s", "RUSTC=no-rustc", "PAHOLE=no-pahole"]);
        let names: Vec<_> = make
            .get_envs()
            .filter_map(|(name, _)| name.to_str())
            .collect();
        let fixed = FIXED.map(|(name, _)| name);
        assert!(
            names
                .iter()
                .all(|name| *name == "PATH" || fixed.contains(name)),
            "{names:?}"
        );
    }

    #[test]
    fn a_package_without_source_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("no.deb");
        fs::write(&deb, "!<arch>\n").unwrap();
        let failure = unpack(&deb, dir.path()).unwrap_err();
        assert!(failure.render("enclos").contains("dpkg-deb failed"));
    }
}
