//! The project's own commands: `cargo xtask demo`, `test`, `moto`, `clients`, `bindings`, `wasm`, `differential`, `fuzz`, `prepush`,
//! `setup`, `install`, `guest-aarch64`, `bench-boot`.
//!
//! Every command does all of its own set-up. This program stays small and compiles in seconds, because it must run
//! before anything else can: it installs packages, builds the rest and hands over. What needs Enclos's own code
//! (starting its processes, telling the demo's story) lives in the `e2e` crate.

#![forbid(unsafe_code)]

mod bindings;
mod build;
mod clients;
mod cross;
mod debian;
mod direction;
mod fuzz;
mod host;
mod install;
mod peers;
mod prepush;
mod python;
mod report;
mod rootfs;
mod shell;
mod style;
mod wasm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::build::Built;
use crate::report::Report;
use crate::shell::Shell;
use crate::workspace::Workspace;

/// Commands of the Enclos project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// The whole loop in real virtual machines, and everything that must fail.
    Demo {
        /// Leave it running and print the addresses; Ctrl-C ends it.
        #[arg(long)]
        keep: bool,
    },
    /// Unit tests, other people's clients of KMS, images against AWS's own code, bindings, a minute of fuzzing, then end-to-end tests in real virtual machines.
    Test {
        /// Only end-to-end tests whose name contains this; differential tests and bindings are left out then.
        filter: Option<String>,
    },
    /// Two hundred images, written, measured and described by AWS's own tools and by ours.
    Differential,
    /// Every fuzz target for a while, from the committed corpus; a finding fails.
    Fuzz {
        /// For all targets together, building not counted.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Tests of KMS that moto's authors wrote, against ours.
    Moto,
    /// AWS's SDKs in four languages, its command and users of KMS against ours: what one wrote, another reads.
    Clients,
    /// The verifier in Python and Node.js, and other people's verifiers, on the shared vectors.
    Bindings,
    /// The verifier in WebAssembly and its page, built by Debian's packages, on the shared vectors.
    Wasm,
    /// What to run before a change is sent: format, lints, dependencies, style, docs, unit tests.
    Prepush {
        /// Leave the unit tests out.
        #[arg(long)]
        no_tests: bool,
    },
    /// The programs that run inside enclaves, for aarch64, by Debian's cross compiler.
    GuestAarch64,
    /// Installs what is missing and builds everything, nothing else.
    Setup,
    /// Builds, and installs programs and kernel for one's own use.
    Install {
        /// Programs go to `bin/` in there, manual pages and completions to `share/`; `~/.local` unless told otherwise.
        #[arg(long)]
        prefix: Option<std::path::PathBuf>,
    },
    /// Time to the first answer of an enclave, against plain QEMU with the same kernel and files.
    BenchBoot {
        /// Interleaved runs of each.
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
}

/// Seconds of fuzzing in the tests: enough for each target to go through its corpus and a little further.
const FUZZING: u64 = 60;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let workspace = Workspace::find()?;
    let mut report = Report::new();
    match task {
        Task::Prepush { no_tests } => prepush::run(&workspace, &mut report, !no_tests),
        Task::Install { prefix } => install::run(&workspace, &mut report, prefix),
        Task::Moto => {
            report.stage("Debian packages", host::install_missing_for_tests)?;
            moto(&workspace, &mut report)
        }
        Task::Clients => {
            report.stage("Debian packages", host::install_missing_for_tests)?;
            clients::run(&workspace, &mut report)
        }
        Task::Bindings => {
            report.stage("Debian packages", host::install_missing_for_tests)?;
            bindings::run(&workspace, &mut report)
        }
        Task::Wasm => {
            report.stage("Debian packages", host::install_missing_for_tests)?;
            wasm::run(&workspace, &mut report)
        }
        Task::GuestAarch64 => cross::run(&workspace, &mut report),
        Task::Setup => set_up(&workspace, &mut report).map(drop),
        Task::Demo { keep } => {
            let built = set_up(&workspace, &mut report)?;
            let keep = keep.then_some("--keep");
            built.shell(&workspace, "enclos-demo").args(keep).run()
        }
        Task::Test { filter } => test(&workspace, &mut report, filter),
        Task::Differential => {
            report.stage("Debian packages", host::install_missing_for_tests)?;
            report.stage("Host programs", || build::host_programs(&workspace))?;
            peers::differential(&workspace, &mut report)
        }
        Task::Fuzz { seconds } => fuzz::run(&workspace, &mut report, seconds),
        Task::BenchBoot { runs } => {
            let built = set_up(&workspace, &mut report)?;
            let runs = runs.to_string();
            built.shell(&workspace, "enclos-bench-boot").arg(runs).run()
        }
    }
}

/// Everything, or the end-to-end tests that `filter` leaves.
fn test(workspace: &Workspace, report: &mut Report, filter: Option<String>) -> Result<()> {
    prepush::unit_tests(workspace, report)?;
    let built = set_up(workspace, report)?;
    if filter.is_none() {
        on_postgres(workspace, report)?;
        moto(workspace, report)?;
        clients::run(workspace, report)?;
        peers::differential(workspace, report)?;
        bindings::run(workspace, report)?;
        fuzz::run(workspace, report, FUZZING)?;
        if wasm::is_possible() {
            wasm::run(workspace, report)?;
        } else {
            report.heading("WebAssembly: not built, apt has no rustc-web here");
        }
    }
    report.stage("Lean kernel (minutes, once)", || {
        build::lean_kernel(workspace)
    })?;
    end_to_end(workspace, &built, report, filter)
}

fn set_up(workspace: &Workspace, report: &mut Report) -> Result<Built> {
    report.stage("Debian packages", host::install_missing)?;
    build::everything(workspace, report)
}

/// The tests of the KMS again, on PostgreSQL, which here must be there.
fn on_postgres(workspace: &Workspace, report: &mut Report) -> Result<()> {
    report.heading("The KMS on PostgreSQL");
    Shell::cargo(workspace)
        .args(["test", "-p", "enclos-kms", "--no-fail-fast"])
        .env("ENCLOS_KMS_TEST_STORE", "postgres")
        .env("ENCLOS_POSTGRES", "required")
        .run()
}

/// moto's black-box tests of KMS. Those that contradict AWS are listed beside the script.
fn moto(workspace: &Workspace, report: &mut Report) -> Result<()> {
    report.heading("moto's tests of KMS");
    let build = ["build", "-p", "enclos-kms"];
    Shell::cargo(workspace).args(build).run()?;
    Shell::new("python3")
        .arg(workspace.root.join("crates/kms/tests/moto/run.py"))
        .arg("--kms")
        .arg(workspace.target.join("debug/enclos-kms"))
        .run()
}

/// The virtual machines of two tests fill two cores: more at once would only measure the scheduler.
fn end_to_end(
    workspace: &Workspace,
    built: &Built,
    report: &mut Report,
    filter: Option<String>,
) -> Result<()> {
    report.heading("End-to-end tests");
    let cargo = Shell::cargo(workspace).args(["test", "--release", "-p", "enclos-e2e"]);
    let cargo = cargo.args(["--features", "vm", "--no-fail-fast", "--"]);
    let cargo = cargo.args(filter).args(["--test-threads", "2"]);
    built.environment(workspace, cargo).run()
}
