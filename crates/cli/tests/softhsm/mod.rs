//! A PKCS#11 token in a file. `cargo xtask test` installs SoftHSM.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use std::process::Command;

use crate::daemon::Daemon;

pub(crate) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Makes an empty token, "my token" with PIN 1234; what `SOFTHSM2_CONF` must say to find it.
pub(crate) fn token(daemon: &Daemon) -> String {
    let tokens = daemon.path("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let config =
        format!("directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n");
    let config = daemon.file("softhsm2.conf", config.as_bytes());
    let arguments = ["--init-token", "--free", "--label", "my token"];
    util(&config, &arguments, &["--so-pin", "5678"]);
    config
}

/// Puts a key, PKCS#8 PEM, into the token.
pub(crate) fn import(config: &str, key: &str, label: &str, id: &str) {
    let arguments = ["--import", key, "--token", "my token"];
    util(config, &arguments, &["--label", label, "--id", id]);
}

fn util(config: &str, arguments: &[&str], more: &[&str]) {
    let output = Command::new("softhsm2-util")
        .args(arguments)
        .args(more)
        .args(["--pin", "1234"])
        .env("SOFTHSM2_CONF", config)
        .output();
    let output = output.unwrap_or_else(|error| panic!("softhsm2-util (package softhsm2): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
}
