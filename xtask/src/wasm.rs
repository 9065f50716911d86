//! The verifier in WebAssembly and the page around it, by a compiler that browsers' packages are built with.
//!
//! No toolchain of rustup's is needed for the target, and nothing is installed: Debian's `rustc-web`, its standard library's
//! source and LLVM's linker are downloaded, checked by apt, and unpacked into the cache. The standard library is built with the
//! module (`-Zbuild-std`), because Debian has none for WebAssembly of this version; `RUSTC_BOOTSTRAP` allows that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::host;
use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;

/// What is asked for by name. The linker's name follows from the compiler's LLVM.
const PACKAGES: [&str; 4] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev",
    "rust-web-src",
];

/// Debian's name of the browser that the page is tested in.
const BROWSER: &str = "chromium";

const TARGET: &str = "wasm32-unknown-unknown";

/// The page's scripts, in the order in which they stand in it.
const SCRIPTS: [(&str, &str); 3] = [
    ("enclos.js", "bindings/wasm/enclos.js"),
    ("verdict.js", "web/verify/verdict.js"),
    ("page.js", "web/verify/page.js"),
];

/// Whether this machine's apt has the compiler.
pub(crate) fn is_possible() -> bool {
    debian::has(&PACKAGES)
}

/// Builds module and page, and walks the shared vectors.
pub(crate) fn run(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let toolchain = report.stage("Debian's compiler for browsers", || toolchain(workspace))?;
    report.heading("WebAssembly");
    let module = build(workspace, &toolchain)?;
    let page = page(workspace, &module)?;
    let test = Shell::new("node").args(["--test", "--test-reporter", "dot"]);
    let test = test.env("ENCLOS_WASM", &module).env("ENCLOS_PAGE", &page);
    let test = test.arg(workspace.path("bindings/wasm/test/enclos.test.js"));
    test.arg(workspace.path("web/verify/test/verdict.test.js"))
        .run()?;
    browser(workspace, report, &page)
}

/// The page as people use it, where there is a browser.
fn browser(workspace: &Workspace, report: &mut Report, page: &Path) -> Result<()> {
    if !host::in_path(BROWSER) {
        report.heading(&format!("The page in a browser: not tested, no {BROWSER}"));
        return Ok(());
    }
    report.heading("The page in a browser");
    let test = Shell::new("node").args(["--test", "--test-reporter", "dot"]);
    let test = test.env("ENCLOS_BROWSER", BROWSER).env("ENCLOS_PAGE", page);
    test.arg(workspace.path("web/verify/test/browser.test.js"))
        .run()
}

/// Where Debian's compiler is unpacked.
pub(crate) fn toolchain(workspace: &Workspace) -> Result<PathBuf> {
    let mut wanted = debian::closure(&PACKAGES)?;
    let llvm = wanted
        .iter()
        .find_map(|package| package.strip_prefix("libllvm"));
    let linker = llvm.map(|version| format!("lld-{version}"));
    wanted.insert(linker.context("rustc-web depends on no libllvm")?);
    debian::unpack(&wanted, workspace.cache.join("rustc-web"))
}

fn build(workspace: &Workspace, toolchain: &Path) -> Result<PathBuf> {
    let target = workspace.target.join("wasm");
    let programs = toolchain.join("usr/bin");
    let libraries = toolchain.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    let linker = one(&toolchain.join("usr/lib"), |name| name.starts_with("llvm-"))?;
    let cargo = Shell::new(programs.join("cargo"));
    let cargo = cargo.args(["build", "--quiet", "--locked", "--profile", "wasm"]);
    let cargo = cargo.args(["--package", "enclos-wasm", "--target", TARGET]);
    let cargo = cargo.args(["-Zbuild-std=std,panic_abort", "--manifest-path"]);
    let cargo = cargo.arg(workspace.path("bindings/Cargo.toml"));
    let cargo = cargo.env("CARGO_TARGET_DIR", &target);
    let cargo = cargo
        .env("RUSTC", programs.join("rustc"))
        .env("RUSTC_BOOTSTRAP", "1");
    let cargo = cargo.env("LD_LIBRARY_PATH", libraries);
    let linker = linker.join("bin/wasm-ld");
    let cargo = cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    // What a rustup proxy set for the compiler that runs this program.
    let cargo = cargo.without(["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO"]);
    cargo.run()?;
    Ok(target.join(TARGET).join("wasm/enclos_wasm.wasm"))
}

/// The only entry of a folder whose name is like this.
fn one(folder: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&is_it) {
            return Ok(entry.path());
        }
    }
    bail!("{} holds no LLVM", folder.display())
}

/// One file that holds everything, so that it works from anywhere.
fn page(workspace: &Workspace, module: &Path) -> Result<PathBuf> {
    let read = |path: &str| {
        let path = workspace.path(path);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let wasm = Shell::new("base64").arg("--wrap=0").arg(module).read()?;
    let mut page = read("web/verify/index.html")?;
    for (name, path) in SCRIPTS {
        page = filled(&page, &format!("/*{{{{{name}}}}}*/"), &read(path)?)?;
    }
    page = filled(&page, "{{enclos.wasm}}", &wasm)?;
    let made = workspace.target.join("wasm/verify.html");
    fs::write(&made, page).with_context(|| format!("cannot write {}", made.display()))?;
    Ok(made)
}

/// `text` with what stands once in place of `mark`.
fn filled(text: &str, mark: &str, what: &str) -> Result<String> {
    match text.split_once(mark) {
        Some((before, after)) if !after.contains(mark) => Ok([before, what, after].concat()),
        _ => bail!("the page has not exactly one {mark}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_its_mark_is_an_error() {
        assert_eq!(filled("a{b}c", "{b}", "x").unwrap(), "axc");
        assert!(filled("ac", "{b}", "x").is_err() && filled("{b}{b}", "{b}", "x").is_err());
    }
}
