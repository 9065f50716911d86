//! `enclos pki` with the root's key in a PKCS#11 token: SoftHSM's, through its library.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod softhsm;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use daemon::{Daemon, Done, run_with};
use enclos_attest::UnixMillis;
use enclos_attest::pki::Authority;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm};
use softhsm::MODULE;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A host's state directory, and a token with two keys for roots and one that is too short for one.
struct Host {
    daemon: Daemon,
    config: String,
    dir: String,
}

impl Host {
    fn new() -> Self {
        let daemon = Daemon::none();
        let config = softhsm::token(&daemon);
        let import = |label: &str, id: &str, curve: &'static SignatureAlgorithm| {
            let key = KeyPair::generate_for(curve).unwrap();
            let key = daemon.file("key.pem", key.serialize_pem().as_bytes());
            softhsm::import(&config, &key, label, id);
            fs::remove_file(key).unwrap();
        };
        import("first", "01", &PKCS_ECDSA_P384_SHA384);
        import("second", "02", &PKCS_ECDSA_P384_SHA384);
        import("short", "03", &PKCS_ECDSA_P256_SHA256);
        daemon.file("pin", b"1234\n");
        let dir = daemon.path("hypervisor");
        Self {
            daemon,
            config,
            dir,
        }
    }

    fn key(&self, label: &str) -> String {
        let pin = self.daemon.path("pin");
        format!("pkcs11:token=my%20token;object={label}?module-path={MODULE}&pin-source=file:{pin}")
    }

    fn pki(&self, command: &[&str]) -> Done {
        let options = ["--state-dir", &self.dir];
        let variables = [("SOFTHSM2_CONF", self.config.as_str())];
        run_with(
            &self.daemon,
            &[&["pki"], command, &options].concat(),
            &variables,
        )
    }

    #[track_caller]
    fn ok(&self, command: &[&str]) -> String {
        let done = self.pki(command);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{command:?}");
        done.stdout
    }

    #[track_caller]
    fn refused(&self, command: &[&str], reason: &str) {
        let before = self.read("ca.pem");
        let done = self.pki(command);
        assert_eq!(done.status, 1, "{command:?}: {}", done.stdout);
        assert!(done.stderr.contains(reason), "{command:?}: {}", done.stderr);
        assert_eq!(self.read("ca.pem"), before, "{command:?}");
    }

    fn create(&self) {
        self.ok(&[
            "create",
            "--root-key",
            &self.key("first"),
            "--region",
            "eu-west-1",
        ]);
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(format!("{}/{name}", self.dir)).ok()
    }

    fn authority(&self) -> Authority {
        Authority::from_pem(&self.read("ca.pem").unwrap()).unwrap()
    }
}

#[test]
fn a_ca_is_made_whose_root_stays_in_the_token() {
    let host = Host::new();
    host.create();
    let stored = host.read("ca.pem").unwrap();
    assert_eq!(stored.matches("BEGIN PRIVATE KEY").count(), 3);
    assert!(host.authority().root_is_elsewhere());
    assert_eq!(host.ok(&["export"]), host.read("root.pem").unwrap());
    let mode = |name: &str| {
        let file = fs::metadata(format!("{}/{name}", host.dir)).unwrap();
        file.permissions().mode() & 0o777
    };
    assert_eq!((mode("ca.pem"), mode("root.pem")), (0o600, 0o644));
    let create = ["create", "--region", "eu-west-1", "--root-key"];
    let again = host.key("second");
    host.refused(&[&create[..], &[&again]].concat(), "there is a CA already");
}

#[test]
fn the_regions_next_certificate_is_signed_by_the_token() {
    let host = Host::new();
    host.create();
    host.ok(&["renew", "--root-key", &host.key("first")]);
    let file = fs::metadata(format!("{}/region.pem", host.dir)).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let mut authority = host.authority();
    let later = UnixMillis::from(SystemTime::now()).plus(15 * DAY);
    assert!(authority.wants_region(later).is_some());
    let next = host.read("region.pem").unwrap();
    authority.adopt_region(&next, later).unwrap();
    let end = authority.describe()[1].not_after;
    let now = UnixMillis::from(SystemTime::now());
    assert!(
        end > now.plus(19 * DAY) && end < now.plus(21 * DAY),
        "{end}"
    );
}

#[test]
fn what_only_the_root_can_do_asks_for_the_token() {
    let (host, other) = (Host::new(), Host::new());
    host.create();
    other.create();
    let root = other.ok(&["export", "--own"]);
    let root = host.daemon.file("other.pem", root.as_bytes());
    for command in [&["rotate"][..], &["renew"], &["cross-sign", &root]] {
        host.refused(command, "--root-key pkcs11:");
        let wrong = host.key("second");
        host.refused(&[command, &["--root-key", &wrong]].concat(), "another key");
        let short = host.key("short");
        host.refused(
            &[command, &["--root-key", &short]].concat(),
            "not one of P-384",
        );
    }
    let endorsement = host.ok(&["cross-sign", &root, "--root-key", &host.key("first")]);
    let file = other.daemon.file("endorsement.pem", endorsement.as_bytes());
    other.ok(&["adopt", &file]);
    assert_eq!(other.ok(&["export"]), host.ok(&["export"]));
    other.ok(&["drop"]);
}

#[test]
fn a_root_moves_into_a_token_to_another_key_and_back() {
    let host = Host::new();
    let now = UnixMillis::from(SystemTime::now());
    let file = Authority::create(now, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    fs::create_dir(&host.dir).unwrap();
    fs::write(format!("{}/ca.pem", host.dir), &*file.to_pem().unwrap()).unwrap();
    fs::write(
        format!("{}/root.pem", host.dir),
        file.root_certificate_pem(),
    )
    .unwrap();
    host.refused(&["renew"], "the hypervisor renews by itself");
    let (first, second) = (host.key("first"), host.key("second"));
    for (command, elsewhere) in [
        (&["rotate", "--new-root-key", &first][..], true),
        (
            &["rotate", "--root-key", &first, "--new-root-key", &second],
            true,
        ),
        (&["rotate", "--root-key", &second], false),
    ] {
        let old = host.ok(&["export"]);
        host.ok(command);
        assert_eq!(host.ok(&["export"]), old);
        let new = host.ok(&["export", "--own"]);
        host.ok(&["drop"]);
        assert!(new != old && host.ok(&["export"]) == new);
        assert_eq!(host.authority().root_is_elsewhere(), elsewhere);
    }
}
