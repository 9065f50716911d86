//! What the program says of itself, and when it fails: texts that people read, kept in `snapshots/`.
//!
//! A change of text is accepted with `INSTA_UPDATE=always cargo test -p enclos-hypervisor --test it snapshots`, and reviewed as part of the change.

use std::process::{Command, Stdio};

/// Everything that a command leaves behind on a terminal.
fn session(program: &str, args: &[&str]) -> String {
    let path = match program {
        "enclos-vmm" => env!("CARGO_BIN_EXE_enclos-vmm"),
        _ => env!("CARGO_BIN_EXE_enclos-hypervisor"),
    };
    let done = Command::new(path)
        .args(args)
        .env_clear()
        .env("PATH", "/nowhere")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    let (args, status) = (args.join(" "), done.status.code().unwrap());
    format!("$ {program} {args}\n{said}[status {status}]\n")
}

#[test]
fn help_and_failures_read_as_reviewed() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("host.toml");
    std::fs::write(&config, "[instance]\nid = 7\n").unwrap();
    let (config, state) = (config.to_str().unwrap(), dir.path().to_str().unwrap());
    let cases: [(&str, &[&str]); 11] = [
        ("help", &["--help"]),
        ("failure-nothing", &[]),
        ("failure-command", &["server"]),
        ("failure-pki", &["pki", "make"]),
        ("failure-flag", &["serve", "--config", "x", "--port=1"]),
        ("failure-twice", &["serve", "--config=x", "--config=y"]),
        ("failure-no-value", &["serve", "--config"]),
        (
            "failure-number",
            &[
                "serve",
                "--config=x",
                "--run-dir=x",
                "--state-dir=x",
                "--memory-mib=lots",
            ],
        ),
        (
            "failure-no-config",
            &[
                "serve",
                "--config=/nowhere/host.toml",
                "--run-dir=/nowhere",
                "--state-dir=/nowhere",
            ],
        ),
        (
            "failure-config",
            &[
                "serve",
                "--config",
                config,
                "--run-dir",
                state,
                "--state-dir",
                state,
            ],
        ),
        (
            "failure-pki-show",
            &["pki", "show", "--state-dir", "/nowhere"],
        ),
    ];
    for (name, args) in cases {
        let text = session("enclos-hypervisor", args).replace(state, "<dir>");
        insta::assert_snapshot!(name, text);
    }
    insta::assert_snapshot!("failure-vmm", session("enclos-vmm", &[]));
}
