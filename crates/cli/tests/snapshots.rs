//! What every command says of itself, and what it says when it fails: texts that people read, kept in `snapshots/`.
//!
//! A change of text is accepted with `INSTA_UPDATE=always cargo test -p enclos-cli --test snapshots`, and reviewed as part of the change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod inputs;

use daemon::{Daemon, run_as_nitro_cli, run_copy_with, run_with};
use inputs::Desk;

/// Every command, its words separated by a blank.
const COMMANDS: &[&str] = &[
    "",
    "run-enclave",
    "describe-enclaves",
    "terminate-enclave",
    "console",
    "build-enclave",
    "describe-eif",
    "pcr",
    "sign-eif",
    "explain",
    "attest",
    "attest verify",
    "attest inspect",
    "attest request",
    "attest policy",
    "attest policy lint",
    "attest policy kms",
    "build",
    "plan",
    "diff",
    "eif",
    "eif assemble",
    "eif measure",
    "eif attach",
    "call",
    "doctor",
    "kernel",
    "kernel build",
    "kernel fetch",
    "kernel path",
    "kms",
    "pki",
    "pki show",
    "pki create",
    "pki renew",
    "pki export",
    "pki cross-sign",
    "pki adopt",
    "pki rotate",
    "pki drop",
    "up",
    "down",
    "status",
    "logs",
    "wait",
    "completions",
    "man",
];

fn words(command: &str) -> Vec<&str> {
    command.split_whitespace().collect()
}

/// Everything that a command leaves behind on a terminal, with no daemon beside it, whatever was built.
fn session(daemon: &Daemon, args: &[&str]) -> String {
    let nowhere = daemon.path("nowhere");
    let vars = [
        ("ENCLOS_CACHE_DIR", &*nowhere),
        ("ENCLOS_GUEST_DIR", &*nowhere),
        ("PATH", &*nowhere),
    ];
    let done = run_copy_with(daemon, args, &vars);
    let args = args.join(" ");
    let text = format!(
        "$ enclos {args}\n{}{}[status {}]\n",
        done.stdout, done.stderr, done.status
    );
    daemon.without_paths(&text)
}

#[test]
fn help_of_every_command() {
    let daemon = Daemon::none();
    for command in COMMANDS {
        let name = format!("help-{}", command.replace(' ', "-"));
        let args = [words(command).as_slice(), &["--help"]].concat();
        insta::assert_snapshot!(name, session(&daemon, &args));
    }
}

/// No command is missing above: the list that clap prints names no other.
#[test]
fn the_list_of_commands_is_whole() {
    let daemon = Daemon::none();
    for command in COMMANDS {
        let help = run_with(
            &daemon,
            &[words(command).as_slice(), &["--help"]].concat(),
            &[],
        )
        .stdout;
        let Some((_, rest)) = help.split_once("Commands:\n") else {
            continue;
        };
        let listed = rest.lines().take_while(|line| !line.is_empty());
        // Continued descriptions are indented further than names.
        for line in listed.filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
            let name = line.split_whitespace().next().unwrap();
            let whole = format!("{command} {name}").trim().to_owned();
            assert!(
                name == "help" || COMMANDS.contains(&&*whole),
                "{whole} has no snapshot"
            );
        }
    }
}

#[test]
fn nitro_clis_face() {
    let daemon = Daemon::none();
    let done = run_as_nitro_cli(&daemon, &["--help"]);
    insta::assert_snapshot!("nitro-cli-help", done.stdout);
}

/// Digests are pinned where they are computed; here they would only tell that something else changed.
fn without_digests(text: &str) -> String {
    let is_digest = |word: &str| word.len() >= 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let (mut masked, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len())
            .max(first.len_utf8());
        let (word, tail) = rest.split_at(end);
        masked.push_str(if is_digest(word) { "<digest>" } else { word });
        rest = tail;
    }
    masked
}

/// What commands print that need nothing but files: of one small image, the same on every machine.
#[test]
fn outputs_of_commands_on_images() {
    let desk = Desk::new();
    let eif = desk.build("app.eif");
    desk.0.file("root/bin/app", b"the Application");
    let other = desk.build("other.eif");
    let cases: [(&str, &[&str]); 6] = [
        ("describe-eif", &["describe-eif", "--eif-path", &eif]),
        ("eif-measure", &["eif", "measure", &eif]),
        ("pcr", &["pcr", "--input", &desk.0.path("root/bin/app")]),
        ("diff", &["diff", &eif, &other]),
        ("diff-json", &["diff", &eif, &other, "--json"]),
        ("diff-equal", &["diff", &eif, &eif]),
    ];
    for (name, args) in cases {
        let text = without_digests(&session(&desk.0, args));
        assert!(text.ends_with("[status 0]\n"), "{text}");
        insta::assert_snapshot!(format!("output-{name}"), text);
    }
    let planned = desk.with_inputs("plan", &[]);
    insta::assert_snapshot!("output-plan", without_digests(&planned.stdout));
}

/// A typical mistake with every command that can be used wrongly.
#[test]
fn failures_of_every_command() {
    let daemon = Daemon::none();
    let eif = daemon.file("broken.eif", b".eif and nothing more");
    let text = daemon.file("text", b"text");
    let cases: [(&str, &[&str]); 57] = [
        ("run-enclave-nothing", &["run-enclave"]),
        (
            "run-enclave-cpus",
            &["run-enclave", "--memory", "512", "--eif-path", &eif],
        ),
        ("sign-eif-nothing", &["sign-eif"]),
        (
            "run-enclave-no-image",
            &[
                "run-enclave",
                "--cpu-count",
                "2",
                "--memory",
                "512",
                "--eif-path",
                "none.eif",
            ],
        ),
        (
            "run-enclave-no-daemon",
            &[
                "run-enclave",
                "--cpu-count",
                "2",
                "--memory",
                "512",
                "--eif-path",
                &eif,
            ],
        ),
        (
            "run-enclave-both-cpus",
            &[
                "run-enclave",
                "--cpu-count",
                "2",
                "--cpu-ids",
                "1",
                "--memory",
                "512",
                "--eif-path",
                &eif,
            ],
        ),
        (
            "run-enclave-memory",
            &[
                "run-enclave",
                "--cpu-count",
                "2",
                "--memory",
                "1.5G",
                "--eif-path",
                &eif,
            ],
        ),
        (
            "run-enclave-cid",
            &[
                "run-enclave",
                "--cpu-count",
                "2",
                "--memory",
                "1G",
                "--eif-path",
                &eif,
                "--enclave-cid",
                "3",
            ],
        ),
        ("run-enclave-config", &["run-enclave", "--config", &text]),
        ("describe-enclaves", &["describe-enclaves"]),
        (
            "terminate-enclave",
            &["terminate-enclave", "--enclave-name", "app"],
        ),
        ("terminate-enclave-nothing", &["terminate-enclave"]),
        ("console", &["console", "--enclave-id", "i-0-enc1"]),
        (
            "build-enclave",
            &[
                "build-enclave",
                "--docker-uri",
                "localhost:1/app:1",
                "--output-file",
                "x.eif",
            ],
        ),
        (
            "build-enclave-key",
            &[
                "build-enclave",
                "--docker-uri",
                "app",
                "--output-file",
                "x.eif",
                "--private-key",
                "k",
            ],
        ),
        ("describe-eif", &["describe-eif", "--eif-path", &eif]),
        ("describe-eif-other", &["describe-eif", "--eif-path", &text]),
        ("pcr", &["pcr", "--signing-certificate", &text]),
        ("pcr-missing", &["pcr", "--input", "none"]),
        (
            "sign-eif",
            &[
                "sign-eif",
                "--eif-path",
                &eif,
                "--signing-certificate",
                &text,
                "--private-key",
                &text,
            ],
        ),
        ("explain", &["explain", "--error-code", "E61"]),
        ("explain-e27", &["explain", "--error-code", "E27"]),
        ("explain-e44", &["explain", "--error-code", "E44"]),
        ("build", &["build", "rootfs:none", "--output", "x.eif"]),
        ("build-nothing", &["build", "--output", "x.eif"]),
        ("plan", &["plan", "app"]),
        ("diff", &["diff", &eif, &text]),
        (
            "eif-assemble",
            &[
                "eif",
                "assemble",
                "--kernel",
                &text,
                "--cmdline",
                "",
                "--ramdisk",
                &text,
                "--output",
                "x.eif",
            ],
        ),
        ("eif-measure", &["eif", "measure", &eif]),
        (
            "eif-attach",
            &[
                "eif",
                "attach",
                &eif,
                "--signing-certificate",
                &text,
                "--signature",
                &text,
            ],
        ),
        ("attest-verify", &["attest", "verify", &text]),
        ("attest-inspect", &["attest", "inspect", &text]),
        (
            "attest-request",
            &[
                "attest",
                "request",
                "http://127.0.0.1:1/",
                "--nonce",
                "hex:00ff",
                "--output",
                "x",
            ],
        ),
        ("call", &["call", "http://127.0.0.1:1/", "--data", "x"]),
        ("attest-policy-lint", &["attest", "policy", "lint", &text]),
        ("kernel-path", &["kernel", "path"]),
        ("pki-show", &["pki", "show", "--state-dir", "/nowhere"]),
        ("pki-adopt", &["pki", "adopt", &text]),
        ("logs", &["logs", "app"]),
        ("wait", &["wait", "--enclave-name", "app"]),
        ("completions", &["completions", "tcsh"]),
        ("attest-policy-kms", &["attest", "policy", "kms", &text]),
        ("doctor", &["doctor", "--jsno"]),
        ("down", &["down", "everything"]),
        ("kernel-build", &["kernel", "build", "--sauce"]),
        ("kernel-fetch", &["kernel", "fetch", "--deb"]),
        ("kms", &["kms", "keys", "list"]),
        ("man", &["man"]),
        (
            "pki-cross-sign",
            &["pki", "cross-sign", "--state-dir", "/nowhere", &text],
        ),
        (
            "pki-create",
            &[
                "pki",
                "create",
                "--state-dir",
                "/nowhere",
                "--root-key",
                "token",
                "--region",
                "eu-west-3",
            ],
        ),
        (
            "pki-renew",
            &[
                "pki",
                "renew",
                "--state-dir",
                "/nowhere",
                "--root-key",
                "token",
            ],
        ),
        ("pki-drop", &["pki", "drop", "--state-dir", "/nowhere"]),
        ("pki-export", &["pki", "export", "--state-dir", "/nowhere"]),
        ("pki-rotate", &["pki", "rotate", "--state-dir", "/nowhere"]),
        ("status", &["status", "app"]),
        ("up", &["up"]),
        ("up-wrong", &["up", "--kmss"]),
    ];
    for (name, args) in cases {
        insta::assert_snapshot!(format!("failure-{name}"), session(&daemon, args));
    }
}
