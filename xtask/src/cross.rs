//! Guest programs for aarch64, built on x86-64 by Debian's compilers, which are unpacked into the cache and not installed.
//!
//! C that crates carry is compiled and all of it linked by the cross compiler. The Rust compiler is the one of the WebAssembly build,
//! and as there the standard library is built with the programs: Debian has it ready for aarch64 only in another machine's package lists.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::debian;
use crate::install::GUEST_PROGRAMS;
use crate::report::Report;
use crate::shell::Shell;
use crate::wasm;
use crate::workspace::Workspace;

/// The cross compiler, and the C library that programs are linked with.
const PACKAGES: [&str; 2] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Folders of the two compilers.
struct Toolchain {
    rust: PathBuf,
    c: PathBuf,
}

/// Builds, checks and names the programs.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let toolchain = report.stage("Debian's compilers for aarch64", || {
        let c = debian::unpack(
            &debian::closure(&PACKAGES)?,
            workspace.cache.join("gcc-aarch64"),
        )?;
        let rust = wasm::toolchain(workspace)?;
        Ok(Toolchain { rust, c })
    })?;
    let folder = workspace.guest_target().join(TARGET).join("release");
    report.stage("Guest programs for aarch64 (static)", || {
        toolchain.cargo(workspace)?.run()?;
        GUEST_PROGRAMS
            .iter()
            .try_for_each(|program| toolchain.check(&folder.join(program)))
    })?;
    report.heading(&format!("Built in {}", folder.display()));
    Ok(())
}

impl Toolchain {
    /// A program of the cross compiler.
    fn gnu(&self, program: &str) -> PathBuf {
        let name = format!("aarch64-linux-gnu-{program}");
        self.c.join("usr/bin").join(name)
    }

    /// Both compilers find their programs and libraries where they were unpacked.
    fn shell(&self, program: PathBuf) -> Result<Shell> {
        let libraries = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
        let libraries = [&self.rust, &self.c].map(|home| home.join(&libraries));
        let path = env::var_os("PATH").unwrap_or_default();
        let programs = [self.c.join("usr/bin")];
        let path = programs.into_iter().chain(env::split_paths(&path));
        let shell = Shell::new(program).env("LD_LIBRARY_PATH", env::join_paths(libraries)?);
        Ok(shell.env("PATH", env::join_paths(path)?))
    }

    fn cargo(&self, workspace: &Workspace) -> Result<Shell> {
        let programs = self.rust.join("usr/bin");
        let cargo = self.shell(programs.join("cargo"))?;
        let cargo = cargo.args(["build", "--quiet", "--locked", "--release", "--bins"]);
        let cargo = cargo.args(["--package", "enclos-guest", "--target", TARGET]);
        let cargo = cargo.args(["-Zbuild-std=std,panic_unwind", "--manifest-path"]);
        let cargo = cargo.arg(workspace.path("Cargo.toml"));
        let cargo = cargo
            .env("RUSTC", programs.join("rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", workspace.guest_target());
        let gcc = self.gnu("gcc");
        let cargo = [
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", &gcc),
            ("CC_aarch64_unknown_linux_gnu", &gcc),
            ("AR_aarch64_unknown_linux_gnu", &self.gnu("ar")),
        ]
        .into_iter()
        .fold(cargo, |cargo, (name, tool)| cargo.env(name, tool));
        let flags = OsString::from("-C target-feature=+crt-static");
        let cargo = cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags);
        // As for x86-64: see `build::guest_cargo`.
        let cargo = cargo.env("AWS_LC_SYS_NO_JITTER_ENTROPY", "1");
        // What a rustup proxy set for the compiler that runs this program.
        Ok(cargo.without(["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO"]))
    }

    /// Refuses what another processor would run, or what needs anything from the image that it runs in.
    fn check(&self, program: &Path) -> Result<()> {
        let readelf = self.shell(self.gnu("readelf"))?;
        let headers = readelf
            .args(["--file-header", "--segments"])
            .arg(program)
            .read()?;
        if !headers.contains("AArch64") || headers.contains("INTERP") {
            bail!(
                "{} is not a static program for aarch64:\n{headers}",
                program.display()
            );
        }
        Ok(())
    }
}
