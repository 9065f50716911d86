//! The program as its operator sees it: addresses, files, signals, access keys, a store that fails.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{BINARY, Client, Server, plaintext};
use serde_json::{Value, json};

#[test]
fn access_keys_come_and_go_beside_a_running_server() {
    let server = Server::tls();
    let client = server.principal("arn:aws:iam::111122223333:root");
    let output = client.call("CreateKey", json!({})).ok();
    let arn = output["KeyMetadata"]["Arn"].as_str().unwrap();
    assert!(
        arn.starts_with("arn:aws:kms:eu-west-1:111122223333:key/"),
        "{arn}"
    );

    let list = server.tool(&["principal", "list", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list[0]["AccessKeyId"], json!(client.id));
    assert!(list[0].get("SecretAccessKey").is_none());

    let removed = server.tool(&["principal", "remove", "--access-key-id", &client.id]);
    assert!(removed.status.success());
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.call("ListKeys", json!({})).status == 200 {
        assert!(
            Instant::now() < deadline,
            "a removed access key still works"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        client.call("ListKeys", json!({})).error_type(),
        "UnrecognizedClientException"
    );
    let again = server.tool(&["principal", "remove", "--access-key-id", &client.id]);
    assert_eq!(again.status.code(), Some(1));
    let bad = server.tool(&["principal", "add", "--arn", "alice"]);
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn addresses_that_cannot_be() {
    let server = Server::dev();
    let run = |arguments: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new(BINARY)
            .args(["serve", "--data"])
            .arg(directory.path())
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let busy = server.http.unwrap().to_string();
    let (code, text) = run(&["--dev", "--listen", &busy]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("cannot listen on 127.0.0.1") && text.contains("in use"),
        "{text}"
    );
    for open in ["0.0.0.0:0", "[::]:0"] {
        let (code, text) = run(&["--dev", "--listen", open]);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("loopback only"), "{text}");
        let (code, text) = run(&["--listen", "127.0.0.1:0", "--dev-listen", open]);
        assert_eq!(code, Some(3), "{text}");
    }
    let (code, text) = run(&["--listen", "nowhere"]);
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = run(&[
        "--listen",
        "127.0.0.1:0",
        "--trust-root",
        "/nonexistent.pem",
    ]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("/nonexistent.pem"), "{text}");

    let second = server.tool(&["serve", "--listen", "127.0.0.1:0", "--dev"]);
    assert_eq!(second.status.code(), Some(4));
}

#[test]
fn stopping_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let mut server = Server::start(directory.path(), &arguments);
    let client = server.client();
    let key = client.create_key();
    client
        .call(
            "CreateAlias",
            json!({ "AliasName": "alias/a", "TargetKeyId": key }),
        )
        .ok();
    let blob = client.encrypt(&key, b"kept", json!({}));
    assert_eq!(server.stop(), Some(0));
    let server = Server::start(directory.path(), &arguments);
    let client = server.client();
    assert_eq!(plaintext(&client.decrypt(&blob, json!({})).ok()), b"kept");
    client.encrypt("alias/a", b"x", json!({}));
    let names: Vec<Value> = server
        .audit(5)
        .iter()
        .map(|event| event["eventName"].clone())
        .collect();
    assert_eq!(
        names,
        ["CreateKey", "CreateAlias", "Encrypt", "Decrypt", "Encrypt"]
    );
}

#[test]
fn another_root_key_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let mut server = Server::start(directory.path(), &arguments);
    server.client().create_key();
    assert_eq!(server.stop(), Some(0));
    std::fs::remove_file(directory.path().join("root.key")).unwrap();
    let output = Command::new(BINARY)
        .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--data"])
        .arg(directory.path())
        .args(server.database.iter().flat_map(|url| ["--database", url]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("root.key"), "{text}");
}

#[test]
fn nothing_is_answered_that_cannot_be_stored() {
    // A disk that fails is stood in for by a table that is gone.
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let sql = |text: &str| server.sql(text);
    let status = |operation: &str| {
        client
            .call(operation, json!({ "KeyId": key, "Plaintext": "eA==" }))
            .status
    };
    let health = || client.send("GET", "/health", &[], b"").status;
    assert_eq!(
        (status("Encrypt"), status("DisableKey"), health()),
        (200, 200, 200)
    );
    client.call("EnableKey", json!({ "KeyId": key })).ok();

    sql("ALTER TABLE audit RENAME TO hidden");
    let failed = client.call("DisableKey", json!({ "KeyId": key }));
    assert_eq!(
        (failed.status, failed.error_type()),
        (500, "KMSInternalException")
    );
    assert_eq!(health(), 503);
    // Not even what is in memory is answered while it cannot be audited.
    assert_eq!(status("Encrypt"), 500);

    sql("ALTER TABLE hidden RENAME TO audit");
    // The change that failed was not made.
    assert_eq!((status("Encrypt"), health()), (200, 200));
    let described = client.call("DescribeKey", json!({ "KeyId": key })).ok();
    assert_eq!(described["KeyMetadata"]["KeyState"], "Enabled");
}

#[test]
fn slow_headers_end_a_connection() {
    use std::io::Read as _;
    let server = Server::dev();
    let mut stream = std::net::TcpStream::connect(server.http.unwrap()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\n").unwrap();
    let mut rest = Vec::new();
    // Closed or answered with 408, but not kept until nothing more is waited for.
    let _closed = stream.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_certificate_of_ones_own() {
    let directory = tempfile::tempdir().unwrap();
    let names = vec!["kms.enclos.internal".to_owned()];
    let own = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (
        directory.path().join("c.pem"),
        directory.path().join("k.pem"),
    );
    std::fs::write(&certificate, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (c, k) = (path(&certificate), path(&key));
    let arguments = [
        "--listen",
        "127.0.0.1:0",
        "--dev-listen",
        "127.0.0.1:0",
        "--tls-cert",
        &c,
        "--tls-key",
        &k,
    ];
    let server = Server::start(directory.path(), &arguments);
    let root = server.principal("arn:aws:iam::000000000000:root");
    let client = Client {
        tls: Some(certificate.clone()),
        ..root
    };
    client.call("ListKeys", json!({})).ok();
    assert!(
        !directory.path().join("tls").exists(),
        "no authority is needed"
    );
    drop(server);

    let run = |arguments: &[&str]| {
        let all = ["serve", "--listen", "127.0.0.1:0", "--data"];
        let output = Command::new(BINARY)
            .args(all)
            .arg(directory.path())
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, text) = run(&["--tls-cert", &k, "--tls-key", &k]);
    assert_eq!(code, Some(1));
    assert!(text.contains("holds no certificate in PEM form"), "{text}");
    let (code, text) = run(&["--tls-cert", &c, "--tls-key", "/nonexistent"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("/nonexistent"), "{text}");
    let (code, _) = run(&["--tls-cert", &c]);
    assert_eq!(code, Some(2));
}

#[test]
fn the_authority_stays_and_its_key_is_private() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev-listen", "127.0.0.1:0"];
    let ca = directory.path().join("tls/ca.pem");
    let mut server = Server::start(directory.path(), &arguments);
    let first = std::fs::read(&ca).unwrap();
    assert_eq!(server.stop(), Some(0));
    let server = Server::start(directory.path(), &arguments);
    assert_eq!(std::fs::read(&ca).unwrap(), first);
    // The certificate of this start is of the same authority.
    server
        .principal("arn:aws:iam::000000000000:root")
        .call("ListKeys", json!({}))
        .ok();
    for (file, mode) in [
        ("tls/ca-key.pem", 0o600),
        ("tls/ca.pem", 0o644),
        ("root.key", 0o600),
        ("kms.db", 0o600),
    ] {
        if file == "kms.db" && server.database.is_some() {
            continue;
        }
        let found = std::fs::metadata(directory.path().join(file))
            .unwrap()
            .mode()
            & 0o777;
        assert_eq!(found, mode, "{file} has mode {found:o}");
    }
}

#[test]
fn what_has_not_begun_is_not_done_for_clients_that_hung_up() {
    const GONE: usize = 40;
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let operation = "GenerateDataKeyPairWithoutPlaintext";
    let body = json!({ "KeyId": key, "KeyPairSpec": "RSA_4096" }).to_string();
    let target = format!("TrentService.{operation}");
    let mut streams = Vec::new();
    for _ in 0..GONE {
        let headers = client.signed(&target, body.as_bytes());
        let mut stream = TcpStream::connect(client.address).unwrap();
        let request = common::request("POST", "/", &headers, body.as_bytes());
        stream.write_all(&request).unwrap();
        streams.push(stream);
    }
    // Until they stand in line.
    std::thread::sleep(Duration::from_millis(500));
    drop(streams);
    let pair = json!({ "KeyId": key, "KeyPairSpec": "RSA_2048" });
    client.call(operation, pair).ok();
    let events = server.audit(2);
    let ours = events
        .iter()
        .filter(|event| event["eventName"] == operation);
    let (refused, made): (Vec<_>, Vec<_>) =
        ours.partition(|event| event["errorCode"] != Value::Null);
    assert!(
        refused
            .iter()
            .all(|event| event["errorCode"] == "ThrottlingException")
    );
    assert!(
        made.len() < GONE / 2,
        "{} of {GONE} were made for nobody",
        made.len()
    );
}
