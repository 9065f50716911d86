//! `enclos diff`: which input makes two images differ, and which register that moved.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;
use enclos_eif::{Change, Difference, Input, Register, diff};
use serde_json::{Value, json};

use super::condition::Condition;
use crate::failure::{Failure, Outcome};
use crate::nitro::Measured;
use crate::term;

/// Changes of one input that are shown before the rest is only counted; `--json` has all.
const SHOWN: usize = 40;

/// Options of `diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "Kernel, command line and runtime move PCR0 and PCR1; application and configuration move PCR0 and PCR2; the \
                  signer moves PCR8; metadata moves none.\n\nExit status: 0 compared, whatever came of it; 1 an image \
                  cannot be read."
)]
pub(crate) struct Diff {
    /// An image
    #[arg(value_name = "FIRST")]
    first: PathBuf,
    /// The image that it is compared with
    #[arg(value_name = "SECOND")]
    second: PathBuf,
    /// Print JSON, every change included
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Diff) -> Outcome {
    let (mut first, mut second) = (open(&args.first)?, open(&args.second)?);
    let difference = diff(&mut first, &mut second).map_err(|error| {
        let files = format!(
            "cannot compare {} and {}",
            args.first.display(),
            args.second.display()
        );
        Failure::from(anyhow::Error::new(error).context(files))
            .hint("`enclos describe-eif` says what is wrong with an image")
    })?;
    let condition = Condition::of(&Measured::from(&difference.second));
    if args.json {
        return term::json(&as_json(&difference, &condition));
    }
    term::out(&as_text(&difference, &condition)?)
}

fn open(path: &Path) -> Outcome<BufReader<File>> {
    let opened = File::open(path).map_err(|error| Failure::file(None, "open", path, error));
    opened.map(BufReader::new)
}

fn as_json(difference: &Difference, condition: &Condition) -> Value {
    let registers = difference.registers().into_iter().map(|register| {
        let Register { index, before, after } = &register;
        json!({ "register": format!("PCR{index}"), "first": before, "second": after, "moved": register.moved() })
    });
    let changes = difference.changes.iter().map(|change| {
        let Change { input, name, before, after } = change;
        json!({ "input": input, "name": name, "first": before, "second": after, "moves": moves(*input) })
    });
    json!({
        "registers": registers.collect::<Vec<_>>(),
        "changes": changes.collect::<Vec<_>>(),
        "condition_for_second": condition,
    })
}

fn moves(input: Input) -> Vec<String> {
    input
        .registers()
        .iter()
        .map(|index| format!("PCR{index}"))
        .collect()
}

fn as_text(difference: &Difference, condition: &Condition) -> Outcome<String> {
    let mut text = String::new();
    for register in difference.registers() {
        let index = register.index;
        let none = || "none: not signed".to_owned();
        let (moved, after) = (register.moved(), register.after.unwrap_or_else(none));
        if moved {
            let before = register.before.unwrap_or_else(none);
            let _ = writeln!(text, "PCR{index}  - {before}\n      + {after}");
        } else {
            let _ = writeln!(text, "PCR{index}    {after}");
        }
    }
    if difference.changes.is_empty() {
        text += "\nThe images are made of the same inputs.\n";
    }
    for changes in difference.changes.chunk_by(|a, b| a.input == b.input) {
        let input = changes[0].input;
        let moves = match moves(input) {
            moves if moves.is_empty() => "not measured".to_owned(),
            moves => format!("moves {}", moves.join(", ")),
        };
        let _ = writeln!(text, "\n{input} ({moves})");
        changes
            .iter()
            .take(SHOWN)
            .for_each(|change| describe(&mut text, change));
        if let Some(more) = changes.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            let _ = writeln!(text, "  … and {more} more, which --json lists");
        }
    }
    let _ = writeln!(
        text,
        "\nFor the second image. {}\n{}",
        Condition::INTRODUCTION,
        condition.pretty()?
    );
    Ok(text)
}

fn describe(text: &mut String, change: &Change) {
    let sign = match (&change.before, &change.after) {
        (None, _) => '+',
        (_, None) => '-',
        _ => '~',
    };
    if !change.name.is_empty() {
        let _ = writeln!(text, "  {sign} {}", term::printable(&change.name));
    }
    let before = change.before.iter().map(|value| ('-', value));
    for (sign, value) in before.chain(change.after.iter().map(|value| ('+', value))) {
        let _ = writeln!(text, "      {sign} {}", term::printable(value));
    }
}
