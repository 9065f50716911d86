//! What every command says of itself, and when it fails: texts that people read, kept in `snapshots/`.
//!
//! A change of text is accepted with `INSTA_UPDATE=always cargo test -p enclos-kms --test snapshots`, and reviewed as part of the change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enclos-kms"))
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Everything that a command leaves behind on a terminal.
fn session(args: &[&str]) -> String {
    let done = run(args);
    let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    let (args, status) = (args.join(" "), done.status.code().unwrap());
    format!("$ enclos-kms {args}\n{said}[status {status}]\n")
}

/// The commands that the help of `command` lists, in its order.
fn below(command: &[&str]) -> Vec<String> {
    let help = run(&[command, &["--help"]].concat());
    let help = String::from_utf8(help.stdout).unwrap();
    let Some((_, rest)) = help.split_once("Commands:\n") else {
        return Vec::new();
    };
    // Continued descriptions are indented further than names.
    rest.lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn help_of_every_command() {
    let mut pending: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(command) = pending.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let name = format!("help-{}", words.join("-"));
        insta::assert_snapshot!(name, session(&[&words, ["--help"].as_slice()].concat()));
        let inner = below(&words).into_iter();
        pending.extend(inner.map(|name| [command.as_slice(), &[name]].concat()));
    }
}

#[test]
fn failures_of_every_command() {
    let cases: &[(&str, &[&str])] = &[
        ("nothing", &[]),
        ("command", &["server"]),
        ("serve-flag", &["serve", "--port", "1"]),
        (
            "serve-listen",
            &["serve", "--data", "/dev/null/data", "--listen", "here"],
        ),
        ("serve-data", &["serve", "--data", "/dev/null/data"]),
        (
            "principal-list",
            &["principal", "list", "--data", "/dev/null/data"],
        ),
        ("keys-list", &["keys", "list", "--data", "/dev/null/data"]),
        (
            "policies-lint",
            &["policies", "lint", "--data", "/dev/null/data"],
        ),
        (
            "grants-list",
            &["grants", "list", "--data", "/dev/null/data"],
        ),
        ("root-show", &["root", "show", "--data", "/dev/null/data"]),
        (
            "audit-verify",
            &["audit", "verify", "--data", "/dev/null/data"],
        ),
        ("explain", &["explain", "--data", "/dev/null/data"]),
        (
            "move",
            &["move", "--from", "/dev/null/data", "--to", "elsewhere"],
        ),
    ];
    for (name, args) in cases {
        insta::assert_snapshot!(format!("failure-{name}"), session(args));
    }
}
