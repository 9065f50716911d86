//! A disk that is full, a file that is damaged: clear refusals, and nothing that was acknowledged is lost or wrong.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{BINARY, Client, Server, plaintext};
use serde_json::json;

const ARGUMENTS: [&str; 3] = ["--listen", "127.0.0.1:0", "--dev"];

/// A server that may be killed by what is tested.
struct Fragile {
    child: Child,
    client: Option<Client>,
}

impl Fragile {
    /// Starts on a directory; without a client if the server refuses. No file may grow beyond `blocks` of 512 bytes.
    fn start(data: &Path, blocks: Option<u32>) -> Self {
        // An ignored signal stays ignored over exec: writing more is then an error, as on a full disk.
        let limit = blocks.map_or_else(|| "unlimited".to_owned(), |blocks| blocks.to_string());
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &limit]);
        Self::run(command, data)
    }

    /// Starts under strace, which makes system calls fail.
    fn traced(data: &Path, inject: &str) -> Self {
        let mut command = Command::new("strace");
        let output = data.join("calls");
        command.args(["-f", "-qq", "-D", "-e", "trace=pwrite64,fsync,fdatasync"]);
        command.args(["-e", inject, "-o"]).arg(output);
        Self::run(command, data)
    }

    fn run(mut command: Command, data: &Path) -> Self {
        let mut child = command
            .args([BINARY, "serve", "--data"])
            .arg(data)
            .args(ARGUMENTS)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let client = line.trim().strip_prefix("listening on http://");
        let client = client.map(|address| Client::new(address.parse().unwrap(), "test", "test"));
        Self { child, client }
    }

    /// What it said to standard error; it is ended if it has not ended.
    fn end(mut self) -> String {
        if self.client.is_some() {
            self.child.kill().unwrap();
        }
        let mut said = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    for blocks in [700, 1000, 1001, 1500] {
        let directory = tempfile::tempdir().unwrap();
        let server = Fragile::start(directory.path(), Some(blocks));
        let client = server.client.clone().unwrap();
        let mut kept = Vec::new();
        let refused = loop {
            assert!(kept.len() < 2000, "the disk is never full");
            let reply = client.call("CreateKey", json!({ "Description": "x".repeat(500) }));
            if reply.status != 200 {
                break reply;
            }
            let key = reply.body["KeyMetadata"]["KeyId"].as_str().unwrap();
            let input = json!({ "KeyId": key, "Plaintext": "eA==" });
            let blob = client.call("Encrypt", input);
            let blob = blob.body["CiphertextBlob"].as_str().map(str::to_owned);
            kept.push((key.to_owned(), blob));
        };
        assert_eq!(refused.error_type(), "KMSInternalException");
        // A smaller transaction may still have had room: the audit row of the refusal, for example.
        let health = || client.send("GET", "/health", &[], b"").status;
        let full = (0..500).any(|_| {
            client.call("CreateKey", json!({ "Description": "x".repeat(500) }));
            health() == 503
        });
        assert!(full, "it never says that it cannot write");
        let said = server.end();
        assert!(said.contains("a transaction failed"), "{said}");

        assert!(kept.len() >= 3, "{} keys", kept.len());
        let server = Server::start_on(directory.path(), None, &ARGUMENTS);
        let client = server.client();
        for (key, blob) in &kept {
            client.call("DescribeKey", json!({ "KeyId": key })).ok();
            if let Some(blob) = blob {
                assert_eq!(plaintext(&client.decrypt(blob, json!({})).ok()), b"x");
            }
        }
        let verified = server.tool(&["audit", "verify"]);
        assert!(verified.status.success(), "{blocks}");
    }
}

#[test]
fn a_damaged_page_is_never_served() {
    const PAGE: usize = 4096;
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start_on(directory.path(), None, &ARGUMENTS);
    let client = server.client();
    let made: Vec<_> = (0..30)
        .map(|_| {
            let key = client.create_key();
            let blob = client.encrypt(&key, b"x", json!({}));
            (key, blob)
        })
        .collect();
    assert_eq!(server.stop(), Some(0));
    let whole = std::fs::read(directory.path().join("kms.db")).unwrap();
    let log = directory.path().join("kms.db-wal");
    assert!(!log.exists(), "a clean stop leaves one file");
    let mut refused = 0;
    for page in 0..whole.len() / PAGE {
        let mut damaged = whole.clone();
        for byte in damaged.iter_mut().skip(page * PAGE).take(PAGE) {
            *byte ^= 0x5a;
        }
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(
            directory.path().join("root.key"),
            copy.path().join("root.key"),
        )
        .unwrap();
        std::fs::write(copy.path().join("kms.db"), damaged).unwrap();
        let server = Fragile::start(copy.path(), None);
        if let Some(client) = &server.client {
            // A page that holds no key: what is answered is right.
            for (_, blob) in &made {
                let reply = client.decrypt(blob, json!({}));
                if reply.status == 200 {
                    assert_eq!(plaintext(&reply.body), b"x", "page {page}");
                } else {
                    assert_eq!(reply.error_type(), "KMSInternalException", "page {page}");
                }
            }
            server.end();
        } else {
            refused += 1;
            let said = server.end();
            assert!(said.contains("enclos-kms: "), "page {page}: {said}");
        }
    }
    assert!(refused > 3, "{refused} pages were refused");
}

/// Every so manieth write is made to fail; each one with `ENCLOS_KMS_STEP=1`.
fn step() -> usize {
    let step = std::env::var("ENCLOS_KMS_STEP").ok();
    step.map_or(9, |step| step.parse().unwrap())
}

/// Keys with a ciphertext each, as far as the server says yes; how often it said no.
fn some_load(client: &Client) -> (Vec<String>, usize) {
    let (mut kept, mut refused) = (Vec::new(), 0);
    for _ in 0..12 {
        let reply = client.call("CreateKey", json!({}));
        if reply.status == 200 {
            let key = reply.body["KeyMetadata"]["KeyId"].as_str().unwrap();
            let input = json!({ "KeyId": key, "Plaintext": "eA==" });
            let reply = client.call("Encrypt", input);
            kept.extend(reply.body["CiphertextBlob"].as_str().map(str::to_owned));
        } else {
            assert_eq!(reply.error_type(), "KMSInternalException");
            refused += 1;
        }
    }
    (kept, refused)
}

/// Makes a call fail once or from some moment on, and looks at what is left.
fn fails(inject: &str) -> (usize, usize) {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start_on(directory.path(), None, &ARGUMENTS);
    let client = server.client();
    let before = client.encrypt(&client.create_key(), b"x", json!({}));
    assert_eq!(server.stop(), Some(0));
    let server = Fragile::traced(directory.path(), inject);
    let Some(client) = server.client.clone() else {
        let said = server.end();
        assert!(said.contains("enclos-kms: "), "{inject}: {said}");
        return (0, 1);
    };
    let (mut kept, refused) = some_load(&client);
    server.end();
    kept.push(before);
    let server = Server::start_on(directory.path(), None, &ARGUMENTS);
    let client = server.client();
    for blob in &kept {
        assert_eq!(plaintext(&client.decrypt(blob, json!({})).ok()), b"x");
    }
    client.create_key();
    let verified = server.tool(&["audit", "verify"]);
    assert!(verified.status.success(), "{inject}");
    (kept.len(), refused)
}

#[test]
fn writes_that_fail_lose_nothing() {
    if Command::new("strace").arg("-V").output().is_err() {
        // `cargo xtask test` sees to it that there is one.
        eprintln!("SKIPPED: no strace: apt-get install strace");
        return;
    }
    let (mut kept, mut refused) = (0, 0);
    let mut count = |inject: &str| {
        let (some, none) = fails(&format!("inject={inject}"));
        kept += some;
        refused += none;
    };
    // Each connection to the file has a thread of its own, and each thread counts for itself: what fails once is tried again on
    // another and succeeds, what fails from some call on fails there too, as on a disk that can be read alone.
    for number in (1..120).step_by(step()) {
        count(&format!("pwrite64:error=EIO:when={number}"));
    }
    for number in (1..40).step_by(step()) {
        count(&format!("pwrite64:error=EROFS:when={number}+"));
    }
    for number in (1..12).step_by(step().div_ceil(2)) {
        count(&format!("fsync,fdatasync:error=EIO:when={number}"));
        count(&format!("fsync,fdatasync:error=EIO:when={number}+"));
    }
    assert!(kept > 50 && refused > 50, "{kept} kept, {refused} refused");
}
