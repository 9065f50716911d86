//! The programs' own faces: arguments, exit statuses, messages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use crate::harness::{Daemon, SILENT, write_config, write_engine};

fn hypervisor(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_enclos-hypervisor"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn message(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn wrong_usage_has_status_2_and_failure_1() {
    let output = hypervisor(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(message(&output).contains("--config is missing"));
    let config = "--config=/nonexistent/host.toml";
    let output = hypervisor(&["serve", config, "--state-dir=x", "--run-dir=x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message(&output).contains("/nonexistent/host.toml"),
        "{}",
        message(&output)
    );
    assert_eq!(hypervisor(&["--help"]).status.code(), Some(0));
    let output = Command::new(env!("CARGO_BIN_EXE_enclos-hypervisor"))
        .env("ENCLOS_BOOT_TIMEOUT_MS", "soon")
        .args(["serve", "--config=x", "--state-dir=x", "--run-dir=x"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message(&output).contains("ENCLOS_BOOT_TIMEOUT_MS is \"soon\""));
}

#[test]
fn a_host_without_qemu_says_which_package_to_install() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path());
    let output = Command::new(env!("CARGO_BIN_EXE_enclos-hypervisor"))
        .env("PATH", dir.path())
        .args(["serve", "--config"])
        .arg(dir.path().join("host.toml"))
        .arg("--run-dir")
        .arg(dir.path().join("run"))
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message(&output).contains("install the package qemu-system-x86"));
}

#[test]
fn a_second_hypervisor_in_the_same_run_directory_is_refused() {
    let daemon = Daemon::start(SILENT, 500);
    let output = daemon.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message(&output).contains("another enclos-hypervisor, or `enclos pki`, uses"),
        "{}",
        message(&output)
    );
    daemon.assert_clean();
}

#[test]
fn the_probe_is_json_for_doctor() {
    let dir = tempfile::tempdir().unwrap();
    write_engine(dir.path(), SILENT);
    let qemu = dir.path().join("qemu");
    let output = hypervisor(&["probe", "--qemu", qemu.to_str().unwrap()]);
    assert!(output.status.success());
    let probe: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(probe["qemu"]["usable"], true);
    assert_eq!(probe["qemu"]["version"], "QEMU emulator version 7.2.0");
    assert!(probe["memory_total_mib"].as_u64().unwrap() > 0);
}

#[test]
fn a_vmm_started_by_hand_explains_itself() {
    let output = Command::new(env!("CARGO_BIN_EXE_enclos-vmm"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message(&output).contains("started by enclos-hypervisor"));
}

#[test]
fn what_cannot_be_used_is_named() {
    let daemon = Daemon::start(SILENT, 500);
    let output = daemon.command().arg("--vmm=/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message(&output).contains("cannot open /nonexistent"));
    let open = daemon.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let config = daemon.path("host.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_enclos-hypervisor"))
        .args(["serve", "--config"])
        .arg(config)
        .arg("--qemu")
        .arg(daemon.path("qemu"))
        .arg("--run-dir")
        .arg(&open)
        .arg("--state-dir")
        .arg(daemon.path("state2"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message(&output).contains("can be written by others"));
}
