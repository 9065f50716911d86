//! The attestation CA's files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use enclos_attest::UnixMillis;
use enclos_attest::pki::{Authority, RootKey};
use p384::ecdsa::signature::hazmat::PrehashSigner as _;
use p384::ecdsa::{Signature, SigningKey};
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

/// A root's key that no file of the hypervisor holds.
struct Token {
    key: SigningKey,
    point: Vec<u8>,
}

impl Token {
    fn new(seed: u8) -> Self {
        let key = SigningKey::from_slice(&[seed; 48]).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        let point = point.as_bytes().to_vec();
        Self { key, point }
    }
}

impl RootKey for Token {
    fn point(&self) -> &[u8] {
        &self.point
    }

    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let signature: Signature = self.key.sign_prehash(digest)?;
        Ok(signature.to_bytes().to_vec())
    }
}

#[test]
fn with_its_root_in_a_token_it_takes_the_regions_next_certificate() {
    let mut daemon = Daemon::start(SILENT, 500);
    let region = Authority::from_pem(&fs::read_to_string(daemon.path("state/ca.pem")).unwrap());
    let region = region.unwrap().describe()[1].subject.clone();
    let region = region.split('.').nth(1).unwrap().to_owned();
    daemon.signal(Signal::TERM);
    let write = |name: &str, text: &str| {
        let path = daemon.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    };
    let (token, other) = (Token::new(1), Token::new(2));
    let now = UnixMillis::from(std::time::SystemTime::now());
    let create = |token: &Token| {
        Authority::create_with(now, &region, "elsewhere", "i-00000000000000000", token).unwrap()
    };
    let authority = create(&token);
    write("state/ca.pem", &authority.to_pem().unwrap());
    let subjects = |text: &str| {
        let described = Authority::from_pem(text).unwrap().describe();
        described
            .into_iter()
            .map(|one| one.subject)
            .collect::<Vec<_>>()
    };
    let stored = || fs::read_to_string(daemon.path("state/ca.pem")).unwrap();

    // Without the token it finds its own zone and instance, and says that another region's certificate is not used.
    let foreign = create(&other).next_region(now, None, Some(&other)).unwrap();
    write("state/region.pem", &foreign);
    let before = subjects(&stored());
    let next = authority.next_region(now, None, Some(&token)).unwrap();
    daemon.restart(500);
    assert_eq!(
        daemon.host().root_certificate,
        authority.root_certificate_pem()
    );
    let found = subjects(&fs::read_to_string(daemon.path("state/ca.pem")).unwrap());
    assert!(found[1] == before[1] && found[3] != before[3], "{found:?}");
    assert!(daemon.path("state/region.pem").exists());
    assert!(
        !fs::read_to_string(daemon.path("state/ca.pem"))
            .unwrap()
            .starts_with("-----BEGIN PRIVATE")
    );

    daemon.signal(Signal::TERM);
    let path = daemon.path("state/region.pem");
    fs::write(&path, &*next).unwrap();
    daemon.restart(500);
    let taken = subjects(&fs::read_to_string(daemon.path("state/ca.pem")).unwrap());
    assert!(taken[0] == found[0] && taken[1] != found[1], "{taken:?}");
    assert!(!path.exists());
}
