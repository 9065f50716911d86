//! Backups: made while a server serves, whole or refused, restored into an empty place alone.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::postgres::{self, Postgres};
use common::{BINARY, Client, Server, plaintext};
use serde_json::{Value, json};

const DEV: [&str; 3] = ["--listen", "127.0.0.1:0", "--dev"];

fn tool(data: &Path, database: Option<&String>, arguments: &[&str]) -> Output {
    Command::new(BINARY)
        .args(arguments)
        .arg("--data")
        .arg(data)
        .args(database.iter().flat_map(|url| ["--database", url]))
        .env_remove("ENCLOS_KMS_PASSPHRASE_FILE")
        .output()
        .unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn refused(output: &Output, expected: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(expected), "{text}");
}

/// A server on a new place, a file's name for its backup, and what a restored server must still know.
struct Place {
    directory: tempfile::TempDir,
    server: Server,
    key: String,
    blob: String,
    principal: Client,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let server = Server::start(&data, &DEV);
        let client = server.client();
        let key = client.create_key();
        let blob = client.encrypt(&key, b"kept", json!({}));
        client
            .call("RotateKeyOnDemand", json!({ "KeyId": key }))
            .ok();
        let alias = json!({ "AliasName": "alias/kept", "TargetKeyId": key });
        client.call("CreateAlias", alias).ok();
        for number in 0..210 {
            let grantee = format!("arn:aws:iam::000000000000:role/{number}");
            let grant =
                json!({ "KeyId": key, "GranteePrincipal": grantee, "Operations": ["Decrypt"] });
            client.call("CreateGrant", grant).ok();
        }
        let principal = server.principal("arn:aws:iam::000000000000:root");
        Self {
            directory,
            server,
            key,
            blob,
            principal,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn backup(&self, name: &str, more: &[&str]) -> Output {
        let file = self.path(name);
        let mut arguments = vec!["backup", "--json", "--to", file.to_str().unwrap()];
        arguments.extend(more);
        self.server.tool(&arguments)
    }

    /// A new data directory, with this place's root key or none, and a database of its own if the tests are to run on one.
    fn elsewhere(&self, name: &str, root: bool) -> (PathBuf, Option<String>) {
        let data = self.path(name);
        std::fs::create_dir(&data).unwrap();
        if root {
            std::fs::copy(self.server.data.join("root.key"), data.join("root.key")).unwrap();
        }
        let database = postgres::for_directory(&data);
        (data, database)
    }

    fn restore(&self, name: &str, to: &(PathBuf, Option<String>), more: &[&str]) -> Output {
        let file = self.path(name);
        let mut arguments = vec!["restore", file.to_str().unwrap()];
        arguments.extend(more);
        tool(&to.0, to.1.as_ref(), &arguments)
    }

    /// Whether a server there knows what this one knew.
    fn check(&self, to: &(PathBuf, Option<String>)) {
        done(&tool(&to.0, to.1.as_ref(), &["audit", "verify"]));
        let server = Server::start_on(&to.0, to.1.clone(), &DEV);
        let client = server.client();
        let opened = client.decrypt(&self.blob, json!({})).ok();
        assert_eq!(plaintext(&opened), b"kept");
        let shown = client.call("DescribeKey", json!({ "KeyId": "alias/kept" }));
        assert_eq!(shown.ok()["KeyMetadata"]["KeyId"], self.key.as_str());
        let mut principal = self.principal.clone();
        principal.address = server.http.unwrap();
        principal.call("ListKeys", json!({})).ok();
        let events = server.audit(1);
        let names: Vec<_> = events
            .iter()
            .filter_map(|event| event["eventName"].as_str())
            .collect();
        assert!(names.contains(&"Backup") && names.contains(&"Restore"));
    }
}

#[test]
fn a_backup_is_made_under_load_and_restored() {
    let place = Place::new();
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (client, stop) = (place.server.client(), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let key = client.create_key();
                client.encrypt(&key, b"x", json!({}));
            }
        })
    };
    let first = done(&place.backup("first", &[]));
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first["rows"]["grants"], 210);
    let mode = std::fs::metadata(place.path("first"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Nothing can be read in it.
    let bytes = std::fs::read(place.path("first")).unwrap();
    let alias = b"alias/kept";
    assert!(!bytes.windows(alias.len()).any(|window| window == alias));
    refused(&place.backup("first", &[]), "cannot write the backup");

    let there = place.elsewhere("there", true);
    let checked = done(&place.restore("first", &there, &["--check", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&checked).unwrap(), first);
    let restored = done(&place.restore("first", &there, &["--json"]));
    assert_eq!(serde_json::from_str::<Value>(&restored).unwrap(), first);
    place.check(&there);
    refused(&place.restore("first", &there, &[]), "not empty");
}

#[test]
fn a_backup_goes_from_a_file_to_a_database_and_back() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let place = Place::new();
    done(&place.backup("first", &[]));
    let url = (
        place.elsewhere("node", true).0,
        Some(postgres.database("restored")),
    );
    done(&place.restore("first", &url, &[]));
    place.check(&url);
    let again = place.path("again");
    let arguments = ["backup", "--to", again.to_str().unwrap()];
    done(&tool(&url.0, url.1.as_ref(), &arguments));
    let file = (place.elsewhere("file", true).0, None);
    done(&place.restore("again", &file, &[]));
    place.check(&file);
}

#[test]
fn with_a_passphrase_a_backup_is_all_that_is_needed() {
    let place = Place::new();
    let file = |name: &str, text: &str| {
        std::fs::write(place.path(name), text).unwrap();
        place.path(name).to_str().unwrap().to_owned()
    };
    let right = file("right", "correct horse battery\n");
    let wrong = file("wrong", "correct horse staple\n");
    let short = file("short", "horse\n");
    refused(
        &place.backup("short.backup", &["--passphrase-file", &short]),
        "has 5 bytes",
    );
    done(&place.backup("backup", &["--passphrase-file", &right]));
    let there = place.elsewhere("there", false);
    let with = |passphrase| place.restore("backup", &there, &["--passphrase-file", passphrase]);
    refused(&with(&wrong), "not the passphrase that it was made with");
    assert!(!there.0.join("root.key").exists());
    done(&with(&right));
    place.check(&there);
    // A root key that is there already and another one is found out, and stays.
    let other = place.elsewhere("other", false);
    std::fs::write(other.0.join("root.key"), [1; 32]).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(other.0.join("root.key"), mode).unwrap();
    let output = place.restore("backup", &other, &["--passphrase-file", &right]);
    refused(&output, "seal is not this root key's");
    assert_eq!(std::fs::read(other.0.join("root.key")).unwrap(), [1; 32]);
}

#[test]
fn a_backup_that_is_not_whole_or_not_ours_restores_nothing() {
    let place = Place::new();
    done(&place.backup("whole", &[]));
    let whole = std::fs::read(place.path("whole")).unwrap();
    let there = place.elsewhere("there", true);
    let mut middle = whole.clone();
    middle[whole.len() / 2] ^= 1;
    let mut future = whole.clone();
    future[21] = 2;
    let cases: [(&str, &[u8], &str); 6] = [
        ("cut", &whole[..whole.len() - 1], "cut off"),
        ("half", &whole[..whole.len() / 2], "cut off"),
        ("longer", &[&whole, b"x".as_slice()].concat(), "damaged"),
        ("changed", &middle, "was changed, damaged"),
        ("future", &future, "has format 2, this program knows 1"),
        (
            "foreign",
            b"PGDMP\x01\x0e\x00 and so on",
            "no backup of enclos-kms",
        ),
    ];
    for (name, bytes, expected) in cases {
        std::fs::write(place.path(name), bytes).unwrap();
        refused(&place.restore(name, &there, &[]), expected);
        assert!(!there.0.join("kms.db").exists(), "{name}");
    }
    let other = Place::new();
    let elsewhere = other.elsewhere("there", true);
    let whole = place.path("whole");
    let arguments = ["restore", whole.to_str().unwrap()];
    let output = tool(&elsewhere.0, elsewhere.1.as_ref(), &arguments);
    refused(&output, "not the root key that it was made with");
    let bare = place.elsewhere("bare", false);
    refused(&place.restore("whole", &bare, &[]), "copy root.key there");
    done(&place.restore("whole", &there, &[]));
}

#[test]
fn a_backup_of_an_older_root_key_needs_that_version() {
    let mut place = Place::new();
    done(&place.backup("old", &[]));
    done(&place.server.tool(&["root", "rotate"]));
    assert_eq!(place.server.stop(), Some(0));
    place.server = Server::start_on(
        &place.server.data.clone(),
        place.server.database.clone(),
        &DEV,
    );
    // Sealed anew at the start; then the old version can go.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let with_both = place.elsewhere("both", true);
    while !place
        .server
        .tool(&["root", "retire", "--version", "1"])
        .status
        .success()
    {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let without = place.elsewhere("without", true);
    refused(
        &place.restore("old", &without, &[]),
        "under version 1 of the root key",
    );
    done(&place.restore("old", &with_both, &[]));
    place.check(&with_both);
}

#[test]
fn a_root_key_that_was_left_behind_goes_into_no_backup() {
    let mut place = Place::new();
    let secret = place.path("passphrase");
    std::fs::write(&secret, "correct horse battery staple").unwrap();
    let by = ["--passphrase-file", secret.to_str().unwrap()];
    let root = place.server.data.join("root.key");
    let older = std::fs::read(&root).unwrap();
    done(&place.server.tool(&["root", "rotate"]));
    let newer = std::fs::read(&root).unwrap();
    assert_eq!(place.server.stop(), Some(0));
    // As on a node that was missed: what it would back up nobody could restore.
    std::fs::write(&root, older).unwrap();
    let output = place.backup("behind.backup", &by);
    refused(&output, "version 2 of the root key was made current");
    assert!(!place.path("behind.backup").exists());
    // One that is opened by the root key itself may be opened by a newer file.
    done(&place.backup("without.backup", &[]));
    std::fs::write(&root, newer).unwrap();
    done(&place.backup("backup", &by));
}
