//! Every fuzz target for a while, from the corpus that is committed. A finding fails the command and stays in `fuzz/artifacts`.
//!
//! Built by plain cargo with the compiler's own coverage counters, for which the stable compiler needs no permission, and without a
//! sanitizer: the code is Rust without `unsafe` but for the devices, so what is looked for are panics, endless loops and memory that
//! grows, which libFuzzer finds itself. Inputs that reach something new go into a temporary folder: the committed corpus changes by
//! hand only.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::{GUEST_TRIPLE, Workspace};

/// Manifest of the targets, a workspace of its own.
const MANIFEST: &str = "fuzz/Cargo.toml";

/// LLVM's SanitizerCoverage as libFuzzer reads it: counters in line, their places, and what is compared with what.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// An input that takes longer than this many seconds is a finding.
const TIMEOUT: u32 = 20;

/// Runs the targets one after the other, `seconds` in all.
pub(crate) fn run(workspace: &Workspace, report: &mut Report, seconds: u64) -> Result<()> {
    report.stage("Fuzz targets", || build(workspace))?;
    let targets = targets(workspace)?;
    let count = u64::try_from(targets.len())?;
    let each = (seconds / count).max(1);
    report.heading(&format!("{count} fuzz targets, {each} seconds each"));
    let found: Vec<_> = targets
        .iter()
        .filter(|target| fuzz(workspace, target, each).is_err())
        .map(String::as_str)
        .collect();
    if !found.is_empty() {
        bail!(
            "findings in {}: see fuzz/artifacts, and run the target's program there again with the file",
            found.join(", ")
        );
    }
    Ok(())
}

/// Names of the targets: one source file each.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.path("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn target_folder(workspace: &Workspace) -> PathBuf {
    workspace.target.join("fuzz")
}

/// The triple is named so that build scripts and macros are compiled without counters.
fn build(workspace: &Workspace) -> Result<()> {
    let flags = [COVERAGE.as_slice(), &["--cfg", "fuzzing"]].concat();
    Shell::cargo(workspace)
        .env("CARGO_TARGET_DIR", target_folder(workspace))
        .env("RUSTFLAGS", flags.join(" "))
        .args([
            "build",
            "--quiet",
            "--release",
            "--bins",
            "--target",
            GUEST_TRIPLE,
        ])
        .args(["--manifest-path", MANIFEST])
        .run()
}

fn fuzz(workspace: &Workspace, target: &str, seconds: u64) -> Result<()> {
    let folder = target_folder(workspace);
    let program = folder.join(GUEST_TRIPLE).join("release").join(target);
    let artifacts = workspace.path("fuzz/artifacts").join(target);
    let (new, seeds) = (
        folder.join("new").join(target),
        workspace.path("fuzz/corpus").join(target),
    );
    for folder in [&artifacts, &new] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Shell::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-verbosity=0", "-print_final_stats=1", "-rss_limit_mb=3000"])
        .args([&new, &seeds])
        .run()
}
