//! `cargo xtask demo`: the whole loop in real virtual machines, told to a person.
//!
//! Two backends, each in an enclave, work on data that their host cannot read; the KMS gives the key to them and
//! to nothing else. Then everything that must fail is tried, and the demo fails if any of it succeeds.

#![forbid(unsafe_code)]

mod backends;
mod page;
mod refusals;

use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use enclos_e2e::child;
use enclos_e2e::image::Builder;
use enclos_e2e::stack::Stack;
use enclos_e2e::workbench::Workbench;

use crate::page::Page;

/// The whole loop in real virtual machines, and everything that must fail.
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave it running and print the addresses; Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            page::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    child::end_all_on_signal()?;
    let began = Instant::now();
    let bench = Workbench::from_env()?;
    let mut page = Page::live();
    page.heading("An installation: hypervisor, gateway, KMS");
    let stack = Stack::start(&bench)?;
    let builder = Builder::new(&bench, stack.dir.join("images"), stack.kms.ca())?;
    page.installation(&stack);

    // The Python image boots on one core while the small one's story is told from the other.
    let (rust, flask) = thread::scope(|scope| {
        let flask = scope.spawn(|| backends::flask(&stack, &builder));
        let rust = backends::rust(&stack, &builder, &mut page);
        let flask = flask
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (rust, flask)
    });
    let rust = rust.context("the Rust backend")?;
    let (flask, told) = flask.context("the Flask backend")?;
    page.append(told);

    page.heading("What must fail, and why it did");
    refusals::all(&stack, &builder, &rust, &mut page)?;
    page.total(began.elapsed());
    if arguments.keep {
        page.addresses(
            &stack,
            &[("rust-backend", &rust.enclave), ("flask-backend", &flask)],
        );
        child::until_signal();
    }
    Ok(())
}
