//! What the program says of itself, and when it fails: texts that people read, kept in `snapshots/`.
//!
//! A change of text is accepted with `INSTA_UPDATE=always cargo test -p enclos-gateway --test snapshots`, and reviewed as part of the change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};

/// Everything that a command leaves behind on a terminal; a log line's time is left out.
fn session(args: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_enclos-gateway"))
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8(done.stderr).unwrap();
    let told = match told.split_once(" ERROR ") {
        Some((_time, line)) => format!("ERROR {line}"),
        None => told,
    };
    let (said, status) = (
        String::from_utf8(done.stdout).unwrap(),
        done.status.code().unwrap(),
    );
    let args = args.join(" ");
    format!("$ enclos-gateway {args}\n{said}{told}[status {status}]\n")
}

#[test]
fn help_and_failures_read_as_reviewed() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("host.toml");
    std::fs::write(&config, "[instance]\nid = 7\n").unwrap();
    let config = config.to_str().unwrap();
    let cases: [(&str, &[&str]); 6] = [
        ("help", &["--help"]),
        ("help-serve", &["serve", "--help"]),
        ("failure-nothing", &[]),
        ("failure-flag", &["serve", "--config", "x", "--port", "1"]),
        (
            "failure-no-config",
            &["serve", "--config", "/nowhere/host.toml"],
        ),
        ("failure-config", &["serve", "--config", config]),
    ];
    for (name, args) in cases {
        let text = session(args).replace(folder.path().to_str().unwrap(), "<dir>");
        insta::assert_snapshot!(name, text);
    }
}
