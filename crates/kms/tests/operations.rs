//! What whoever runs the server sees: health, readiness, metrics, a drain, settings from the environment.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{BINARY, Client, Server, postgres};
use serde_json::json;

/// A server with an address for operations, whose log says where that is.
struct Watched {
    child: std::process::Child,
    client: Client,
    operations: SocketAddr,
}

impl Watched {
    fn start(data: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(BINARY)
            .args(["serve", "--dev", "--data"])
            .arg(data)
            .args(
                postgres::for_directory(data)
                    .iter()
                    .flat_map(|url| ["--database", url]),
            )
            .env("ENCLOS_KMS_LISTEN", "127.0.0.1:0")
            .env("ENCLOS_KMS_OPERATIONS_LISTEN", "127.0.0.1:0")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = |what: &str| -> SocketAddr {
            let line = lines.next().expect("the server ended early").unwrap();
            line.strip_prefix(what).unwrap().parse().unwrap()
        };
        let api = address("listening on http://");
        Self {
            operations: address("operations on http://"),
            client: Client::new(api, "test", "test"),
            child,
        }
    }

    /// Status and body of a page.
    fn get(&self, path: &str) -> (u16, String) {
        get(self.operations, path).unwrap()
    }

    fn metric(&self, line: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let found = text.lines().find_map(|found| found.strip_prefix(line));
        found.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, body.to_owned()))
}

#[test]
fn requests_denials_and_documents_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let server = Watched::start(directory.path(), &[]);
    let key = server.client.create_key();
    let blob = server.client.encrypt(&key, b"x", json!({}));
    for _ in 0..3 {
        server.client.decrypt(&blob, json!({})).ok();
    }
    let foreign = "arn:aws:kms:eu-west-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let denied = server
        .client
        .call("DescribeKey", json!({ "KeyId": foreign }));
    assert_eq!(denied.error_type(), "AccessDeniedException");
    let recipient =
        json!({ "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": "AAAA" });
    let input = json!({ "CiphertextBlob": blob, "Recipient": recipient });
    assert_eq!(server.client.call("Decrypt", input).status, 400);
    server.client.call("Invented", json!({}));

    let counted = |operation: &str, result: &str| {
        let labels = format!("operation=\"{operation}\",result=\"{result}\"");
        server.metric(&format!("enclos_kms_requests_total{{{labels}}}"))
    };
    assert_eq!(counted("Decrypt", "ok"), 3.0);
    assert_eq!(counted("Decrypt", "ValidationException"), 1.0);
    assert_eq!(counted("DescribeKey", "AccessDeniedException"), 1.0);
    assert_eq!(counted("unknown", "UnknownOperationException"), 1.0);
    let durations = "enclos_kms_request_duration_seconds_count{operation=\"Decrypt\"}";
    assert_eq!(server.metric(durations), 4.0);
    let refused = "enclos_kms_attestation_documents_total{verdict=\"refused\"}";
    assert_eq!(server.metric(refused), 1.0);
    assert_eq!(server.metric("enclos_kms_store_writable"), 1.0);
    assert_eq!(server.metric("enclos_kms_root_key_version"), 1.0);
    // No key, caller or account.
    let (_, text) = server.get("/metrics");
    assert!(!text.contains(&key) && !text.contains("000000000000") && text.ends_with("# EOF\n"));
    // The API has none of it, and this address none of the API.
    assert_eq!(server.client.send("GET", "/metrics", &[], b"").status, 404);
    assert_eq!(server.get("/").0, 404);
    assert_eq!(
        (server.get("/livez").0, server.get("/readyz").0),
        (200, 200)
    );
}

/// A request of two bytes that the server has begun to wait for.
fn awaited_body(server: &Watched) -> TcpStream {
    let mut stream = TcpStream::connect(server.client.address).unwrap();
    let head = "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

#[test]
fn a_drain_can_be_watched_and_ends_cleanly() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Watched::start(directory.path(), &[]);
    // A request whose body is still on its way keeps the drain open.
    let mut slow = awaited_body(&server);
    slow.write_all(b"{").unwrap();
    let key = server.client.create_key();
    server.terminate();
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.get("/readyz") != (503, "stopping\n".to_owned()) {
        assert!(Instant::now() < deadline, "the server stays ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.get("/livez").0, 200);
    while TcpStream::connect(server.client.address).is_ok() {
        assert!(Instant::now() < deadline, "it still accepts");
    }
    // The request under way is answered.
    slow.write_all(b"}").unwrap();
    let mut answer = String::new();
    slow.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let status = server.child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(get(server.operations, "/livez").is_err());
    // What was answered is on disk.
    let again = Server::start(directory.path(), &["--listen", "127.0.0.1:0", "--dev"]);
    again
        .client()
        .call("DescribeKey", json!({ "KeyId": key }))
        .ok();
}

#[test]
fn a_drain_that_somebody_holds_up_ends_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Watched::start(directory.path(), &[]);
    let _stuck = awaited_body(&server);
    let started = Instant::now();
    server.terminate();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(started.elapsed() > Duration::from_secs(8), "not held up");
}

#[test]
fn settings_come_from_the_environment_too() {
    let directory = tempfile::tempdir().unwrap();
    let server = Watched::start(directory.path(), &[("ENCLOS_KMS_RATE_LIMIT", "1")]);
    let throttled = (0..50).any(|_| {
        let reply = server.client.call("ListKeys", json!({}));
        reply.status != 200 && reply.error_type() == "ThrottlingException"
    });
    assert!(throttled);
    let output = Command::new(BINARY)
        .args(["serve", "--dev", "--data"])
        .arg(directory.path())
        .env("ENCLOS_KMS_LISTEN", "nowhere")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn settings_come_from_a_file_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.toml");
    let data = directory.path().join("data").display().to_string();
    let write = |more: &str| {
        let text = format!("dev = true\ndata = {data:?}\nlisten = '127.0.0.1:0'\n{more}\n");
        std::fs::write(&path, text).unwrap();
    };
    let run = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(BINARY);
        command.args(words).arg("--config").arg(&path);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), output.stdout, said)
    };
    write("rate_limit = 7\nstrict_policies = true\ntrust_aws = true");
    let words = ["config", "check", "--json", "--max-staleness", "5"];
    let (status, shown, said) = run(&words, &[("ENCLOS_KMS_RATE_LIMIT", "9")]);
    assert_eq!(status, Some(0), "{said}");
    let shown: Vec<serde_json::Value> = serde_json::from_slice(&shown).unwrap();
    for (key, value, source) in [
        ("data", data.as_str(), "file"),
        ("strict_policies", "true", "file"),
        ("rate_limit", "9", "environment"),
        ("max_staleness", "5", "flag"),
        ("server_name", "kms.enclos.internal", "default"),
    ] {
        let setting = json!({ "key": key, "value": value, "source": source });
        assert!(shown.contains(&setting), "{setting}: {shown:?}");
    }
    let table = run(&["config", "check"], &[]).1;
    assert!(String::from_utf8(table).unwrap().starts_with("SETTING "));
    // What a start would refuse is refused here, without a directory being made.
    write("trust_root = '/no/such.pem'");
    let (status, _, said) = run(&["config", "check"], &[]);
    assert!(status == Some(1) && said.contains("/no/such.pem"), "{said}");
    write("operation_listen = '127.0.0.1:0'");
    for words in [&["serve"][..], &["config", "check"]] {
        let (status, _, said) = run(words, &[]);
        let expected =
            ":4: there is no setting `operation_listen`; did you mean `operations_listen`?";
        assert!(status == Some(2) && said.contains(expected), "{said}");
    }
    assert!(!Path::new(&data).exists());
    // The one that is installed is one.
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/enclos-kms.toml");
    std::fs::copy(dist, &path).unwrap();
    let (status, _, said) = run(&["config", "check"], &[]);
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    let Ok(analyze) = Command::new("systemd-analyze").arg("--version").output() else {
        return;
    };
    let version = String::from_utf8_lossy(&analyze.stdout);
    let version = version
        .split(' ')
        .nth(1)
        .and_then(|number| number.parse().ok());
    // Debian 12 has 252; older ones know neither encrypted credentials nor `--offline`.
    if version.unwrap_or(0) < 250 {
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/enclos-kms.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("enclos-kms.service");
    std::fs::write(&path, unit.replace("/usr/local/bin/enclos-kms", BINARY)).unwrap();
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let own: Vec<_> = said
        .lines()
        .filter(|line| line.contains("enclos-kms"))
        .collect();
    assert!(own.is_empty(), "{own:?}");
}
