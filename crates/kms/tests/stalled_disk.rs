//! A disk that hangs, SQLite's: a library of our own makes what is written and flushed wait for as long as a file exists.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use common::postgres::is_the_store;
use common::{Client, Reply, Server, WITH_READINESS, plaintext, readiness, until};
use serde_json::json;

/// A data directory on a disk that hangs when it is told to.
struct Disk {
    directory: tempfile::TempDir,
    library: PathBuf,
    stalled: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("stalled_disk.so");
        common::library("stalled_disk.c", &library);
        std::fs::create_dir(directory.path().join("data")).unwrap();
        Self {
            library,
            stalled: directory.path().join("stalled"),
            directory,
        }
    }

    fn serve(&self) -> Server {
        let environment = [
            ("LD_PRELOAD", self.library.as_path()),
            ("STALLED_DISK", &self.stalled),
        ];
        let data = self.directory.path().join("data");
        Server::launch(&data, None, &WITH_READINESS, &environment)
    }

    fn stall(&self) {
        std::fs::write(&self.stalled, "").unwrap();
    }

    fn go_on(&self) {
        std::fs::remove_file(&self.stalled).unwrap();
    }
}

/// A change that is asked for and cannot be stored.
fn changing(client: &Client, description: &'static str) -> JoinHandle<Option<Reply>> {
    let client = client.clone();
    let input = json!({ "Description": description });
    std::thread::spawn(move || client.try_call("CreateKey", &input))
}

fn encrypt(client: &Client, key: &str) -> Reply {
    client.call("Encrypt", json!({ "KeyId": key, "Plaintext": "eA==" }))
}

#[track_caller]
fn is_told_to_try_again(reply: &Reply) {
    let told = (reply.status, reply.error_type());
    assert_eq!(told, (500, "DependencyTimeoutException"));
}

fn healthy(client: &Client) -> bool {
    client.send("GET", "/health", &[], b"").status == 200
}

#[test]
fn a_disk_that_hangs_is_told_and_loses_nothing() {
    if is_the_store() {
        return;
    }
    let disk = Disk::new();
    let server = disk.serve();
    let client = server.client();
    let key = client.create_key();
    let blob = client.encrypt(&key, b"x", json!({}));
    disk.stall();
    let change = changing(&client, "stalled");
    // What needs no disk goes on, as long as its audit row will be there in a moment.
    let sealed = encrypt(&client, &key).ok()["CiphertextBlob"].clone();
    until("readiness does not tell", || {
        readiness(&server)
            .starts_with("HTTP/1.1 503 ")
            .then_some(())
    });
    assert!(readiness(&server).contains("the store cannot be written"));
    assert!(!healthy(&client) && server.metrics().contains("enclos_kms_store_writable 0"));
    // Nothing is answered any more whose audit row nobody can promise.
    is_told_to_try_again(&encrypt(&client, &key));
    is_told_to_try_again(&change.join().unwrap().unwrap());
    // Again, now that it is known.
    is_told_to_try_again(&changing(&client, "later").join().unwrap().unwrap());
    is_told_to_try_again(&client.decrypt(&blob, json!({})));

    disk.go_on();
    until("it does not go on", || healthy(&client).then_some(()));
    assert!(readiness(&server).ends_with("ready\n"));
    let sealed = sealed.as_str().unwrap();
    for blob in [blob.as_str(), sealed] {
        assert_eq!(plaintext(&client.decrypt(blob, json!({})).ok()), b"x");
    }
    client.create_key();
    // Nobody was told what became of the first change; the trail says the same as the database.
    let listed = client.call("ListKeys", json!({})).ok();
    let listed = listed["Keys"].as_array().unwrap().len();
    let events = server.audit(0);
    let succeeded = |name: &str| {
        let named = events.iter().filter(|event| event["eventName"] == name);
        named.filter(|event| event["errorCode"].is_null()).count()
    };
    assert_eq!(succeeded("CreateKey"), listed);
    assert!(succeeded("Encrypt") >= 2, "{events:?}");
    let verified = server.tool(&["audit", "verify"]);
    assert!(verified.status.success());
}

#[test]
fn a_server_ends_though_its_disk_hangs() {
    if is_the_store() {
        return;
    }
    let disk = Disk::new();
    let mut server = disk.serve();
    let client = server.client();
    let key = client.create_key();
    let blob = client.encrypt(&key, b"x", json!({}));
    disk.stall();
    let change = changing(&client, "stalled");
    encrypt(&client, &key).ok();
    // `TimeoutStopSec` is 30 s. A process that waits for the disk would never end.
    assert_eq!(server.stop_within(Duration::from_secs(60)), Some(1));
    drop(change.join());
    let log = server.log();
    assert!(
        log.contains("audit rows could not be stored, they follow"),
        "{log}"
    );
    let row = |line: &&str| line.contains("audit event=") && line.contains("Encrypt");
    assert!(log.lines().filter(row).count() >= 1, "{log}");

    disk.go_on();
    let server = disk.serve();
    let client = server.client();
    assert_eq!(plaintext(&client.decrypt(&blob, json!({})).ok()), b"x");
    client.create_key();
    let verified = server.tool(&["audit", "verify"]);
    assert!(verified.status.success());
}
