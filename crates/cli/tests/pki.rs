//! `enclos pki` on the real binary: what verifiers are told is what documents begin with.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use daemon::{Daemon, Done, run};
use enclos_attest::UnixMillis;
use enclos_attest::pki::Authority;

/// A host's state directory.
struct Host {
    daemon: Daemon,
    dir: String,
}

impl Host {
    fn new() -> Self {
        let daemon = Daemon::none();
        let now = UnixMillis::from(SystemTime::now());
        let authority = Authority::create(now, "eu-west-1", "eu-west-1a", "i-1").unwrap();
        let keys = daemon.file("ca.pem", authority.to_pem().unwrap().as_bytes());
        fs::set_permissions(&keys, Permissions::from_mode(0o600)).unwrap();
        daemon.file("root.pem", authority.root_certificate_pem().as_bytes());
        let dir = keys.strip_suffix("/ca.pem").unwrap().to_owned();
        Self { daemon, dir }
    }

    fn pki(&self, command: &[&str]) -> Done {
        let options = ["--state-dir", &self.dir];
        run(&self.daemon, &[&["pki"], command, &options].concat())
    }

    #[track_caller]
    fn ok(&self, command: &[&str]) -> String {
        let done = self.pki(command);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{command:?}");
        done.stdout
    }

    fn root_file(&self) -> String {
        fs::read_to_string(format!("{}/root.pem", self.dir)).unwrap()
    }
}

#[test]
fn a_root_is_rotated_with_overlap() {
    let host = Host::new();
    let old = host.ok(&["export"]);
    assert_eq!(host.ok(&["export", "--own"]), old);
    assert_eq!(
        host.pki(&["show", "--json"])
            .json()
            .as_array()
            .unwrap()
            .len(),
        4
    );
    host.ok(&["rotate"]);
    let new = host.ok(&["export", "--own"]);
    assert!(new != old && host.ok(&["export"]) == old && host.root_file() == old);
    assert_eq!(
        host.pki(&["show", "--json"])
            .json()
            .as_array()
            .unwrap()
            .len(),
        5
    );
    host.ok(&["drop"]);
    assert!(host.ok(&["export"]) == new && host.root_file() == new);
    let again = host.pki(&["drop"]);
    assert!(
        again.status == 1 && again.stderr.contains("own root already"),
        "{}",
        again.stderr
    );
    let mode = |name: &str| {
        let file = fs::metadata(format!("{}/{name}", host.dir)).unwrap();
        file.permissions().mode() & 0o777
    };
    assert_eq!((mode("ca.pem"), mode("root.pem")), (0o600, 0o644));
}

#[test]
fn a_host_joins_a_fleet() {
    let (fleet, member, other) = (Host::new(), Host::new(), Host::new());
    let root = fleet
        .daemon
        .file("member.pem", member.ok(&["export", "--own"]).as_bytes());
    let endorsement = fleet.ok(&["cross-sign", &root]);
    let file = member
        .daemon
        .file("endorsement.pem", endorsement.as_bytes());
    member.ok(&["adopt", &file]);
    assert_eq!(member.ok(&["export"]), fleet.ok(&["export"]));
    assert!(member.ok(&["show"]).matches("SHA-256").count() == 5);
    let file = other.daemon.file("endorsement.pem", endorsement.as_bytes());
    let before = other.root_file();
    let refused = other.pki(&["adopt", &file]);
    assert!(
        refused.status == 1 && refused.stderr.contains("another root"),
        "{}",
        refused.stderr
    );
    assert_eq!(other.root_file(), before);
    let text = fleet.daemon.file("text.pem", b"no");
    let refused = fleet.pki(&["cross-sign", &text]);
    assert!(
        refused.stderr.contains("is not a certificate"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_running_hypervisors_ca_is_left_alone() {
    let host = Host::new();
    let lock = File::create(format!("{}/ca.lock", host.dir)).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let before = host.ok(&["show"]);
    let refused = host.pki(&["rotate"]);
    assert!(
        refused.status == 1 && refused.stderr.contains("the hypervisor runs"),
        "{}",
        refused.stderr
    );
    assert_eq!(host.ok(&["show"]), before);
    let nowhere = run(&host.daemon, &["pki", "show", "--state-dir", "/nowhere"]);
    assert!(nowhere.status == 1 && nowhere.stderr.contains("cannot read /nowhere/ca.pem"));
}
