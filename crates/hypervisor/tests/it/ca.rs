//! The attestation CA's files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Daemon, SILENT};

#[test]
fn the_root_outlives_the_daemon_and_is_public_while_its_key_is_not() {
    let mut daemon = Daemon::start(SILENT, 500);
    let root = daemon.host().root_certificate;
    assert!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
    let mode = |name: &str| daemon.path(name).metadata().unwrap().mode() & 0o777;
    assert_eq!(
        (mode("state/ca.pem"), mode("state/root.pem")),
        (0o600, 0o644)
    );
    assert_eq!(
        fs::read_to_string(daemon.path("state/root.pem")).unwrap(),
        root
    );
    let shown = Command::new(env!("CARGO_BIN_EXE_enclos-hypervisor"))
        .args(["pki", "show", "--state-dir"])
        .arg(daemon.path("state"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), root);
    daemon.signal(Signal::KILL);
    daemon.restart(500);
    assert_eq!(daemon.host().root_certificate, root);
}

#[test]
fn a_ca_that_others_could_read_or_that_is_damaged_is_not_used_and_not_replaced() {
    let mut daemon = Daemon::start(SILENT, 500);
    daemon.signal(Signal::TERM);
    let keys = daemon.path("state/ca.pem");
    let good = fs::read(&keys).unwrap();
    fs::set_permissions(&keys, Permissions::from_mode(0o644)).unwrap();
    let output = daemon.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("can be read by others"));

    fs::set_permissions(&keys, Permissions::from_mode(0o600)).unwrap();
    fs::write(&keys, &good[..good.len() / 2]).unwrap();
    let output = daemon.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("restore it from a backup"), "{message}");
    assert_eq!(fs::read(&keys).unwrap(), good[..good.len() / 2]);
}
