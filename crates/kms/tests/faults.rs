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
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &limit])
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
        self.child.wait().unwrap();
        said
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
        assert_eq!(client.send("GET", "/health", &[], b"").status, 503);
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
