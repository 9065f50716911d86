//! The root key: rotation under load and kills, retirement, passphrases.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{BINARY, Client, Server, plaintext, postgres};
use enclos_kms::store::{Location, Servers};
use serde_json::{Value, json};

const DEV: [&str; 3] = ["--listen", "127.0.0.1:0", "--dev"];

/// Runs a tool without a terminal, with a passphrase's file if there is one.
fn tool(data: &Path, arguments: &[&str], passphrase: Option<&Path>) -> Output {
    let mut command = Command::new("setsid");
    command
        .arg("--wait")
        .arg(BINARY)
        .args(arguments)
        .arg("--data")
        .arg(data)
        .args(
            postgres::for_directory(data)
                .iter()
                .flat_map(|url| ["--database", url]),
        )
        .stdin(Stdio::null())
        .env_remove("ENCLOS_KMS_PASSPHRASE")
        .env_remove("CREDENTIALS_DIRECTORY");
    if let Some(file) = passphrase {
        command.env("ENCLOS_KMS_PASSPHRASE_FILE", file);
    }
    command.output().unwrap()
}

fn done(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), text)
}

fn states(data: &Path) -> Vec<String> {
    let shown = done(&tool(data, &["root", "show", "--json"], None));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let versions = shown["versions"].as_array().unwrap().iter();
    let state = |version: &Value| version["state"].as_str().unwrap().to_owned();
    versions.map(state).collect()
}

/// How many stored values are sealed under another version than this.
fn sealed_otherwise(data: &Path, version: u32) -> usize {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let location = match postgres::for_directory(data) {
            Some(url) => Servers::parse(&[url], None).unwrap().into(),
            None => Location::from(data),
        };
        let mut connection = enclos_kms::store::connect(&location).await.unwrap();
        let versions = [version];
        let rows = enclos_kms::store::sealed_otherwise(&mut connection, &versions, 100_000);
        rows.await.unwrap().len()
    })
}

fn wait_until_sealed(data: &Path, version: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while sealed_otherwise(data, version) > 0 {
        assert!(Instant::now() < deadline, "not everything is sealed anew");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Keys with a ciphertext each.
fn some_keys(client: &Client, count: usize) -> Vec<String> {
    let blob = |_| client.encrypt(&client.create_key(), b"kept", json!({}));
    (0..count).map(blob).collect()
}

fn all_open(client: &Client, blobs: &[String]) {
    for blob in blobs {
        assert_eq!(plaintext(&client.decrypt(blob, json!({})).ok()), b"kept");
    }
}

#[test]
fn the_root_key_rotates_while_requests_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let server = Server::start(data, &DEV);
    let client = server.client();
    let mut blobs = some_keys(&client, 20);
    let principal = server.principal("arn:aws:iam::000000000000:root");
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (client, blobs, stop) = (client.clone(), blobs.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut made = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                all_open(&client, &blobs);
                made.extend(some_keys(&client, 1));
            }
            made
        })
    };
    assert_eq!(
        done(&tool(data, &["root", "rotate"], None)),
        "version 2 current\n"
    );
    // A tool seals under the new version at once, whether the server has seen it or not.
    let newcomer = server.principal("arn:aws:iam::000000000000:root");
    newcomer.call("ListKeys", json!({})).ok();
    wait_until_sealed(data, 2);
    stop.store(true, Ordering::Relaxed);
    blobs.extend(load.join().unwrap());
    principal.call("ListKeys", json!({})).ok();
    assert_eq!(states(data), ["old", "current"]);

    // Once retired, version 1 opens nothing, and its seals still verify.
    done(&tool(data, &["root", "retire", "--version", "1"], None));
    assert_eq!(states(data), ["retired", "current"]);
    drop(server);
    let mut server = Server::start(data, &DEV);
    all_open(&server.client(), &blobs);
    principal_of(&server, &principal)
        .call("ListKeys", json!({}))
        .ok();
    assert_eq!(server.stop(), Some(0));
    let verified = done(&tool(data, &["audit", "verify"], None));
    assert!(verified.contains("first row with a seal: 1"), "{verified}");
    let events = server.audit(1);
    let names: Vec<_> = events
        .iter()
        .filter_map(|event| event["eventName"].as_str())
        .collect();
    assert!(names.contains(&"RotateRootKey") && names.contains(&"RetireRootKey"));
}

/// The same principal at the address of another start.
fn principal_of(server: &Server, principal: &Client) -> Client {
    let mut client = principal.clone();
    client.address = server.http.unwrap();
    client
}

#[test]
fn kills_in_the_middle_of_rotations_lose_nothing() {
    const ROUNDS: u32 = 8;
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let mut blobs = Vec::new();
    let mut mixed = 0;
    for round in 1..=ROUNDS {
        let server = Server::start(data, &DEV);
        let client = server.client();
        all_open(&client, &blobs);
        blobs.extend(some_keys(&client, 40));
        done(&tool(data, &["root", "rotate"], None));
        // The server begins to seal anew within two seconds: once it has begun, it dies.
        let (version, all) = (round + 1, blobs.len());
        let deadline = Instant::now() + Duration::from_secs(30);
        while sealed_otherwise(data, version) == all {
            assert!(Instant::now() < deadline, "nothing is sealed anew");
        }
        server.kill();
        mixed += u32::from(sealed_otherwise(data, version) > 0);
    }
    assert!(mixed > 0, "no kill was in the middle");
    let server = Server::start(data, &DEV);
    all_open(&server.client(), &blobs);
    wait_until_sealed(data, ROUNDS + 1);
    all_open(&server.client(), &blobs);
    drop(server);
    done(&tool(data, &["audit", "verify"], None));
}

#[test]
fn a_version_is_not_retired_while_something_needs_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let mut server = Server::start(data, &DEV);
    some_keys(&server.client(), 1);
    assert_eq!(server.stop(), Some(0));
    let retire = |version| {
        let arguments = ["root", "retire", "--version", version];
        refused(&tool(data, &arguments, None))
    };
    done(&tool(data, &["root", "rotate", "--prepare"], None));
    assert_eq!(states(data), ["current", "prepared"]);
    assert!(retire("1").1.contains("there is no old version 1"));
    done(&tool(data, &["root", "rotate"], None));
    assert_eq!(states(data), ["old", "current"]);
    let (status, text) = retire("1");
    assert!(
        status == 1 && text.contains("still sealed under version 1"),
        "{text}"
    );
    let server = Server::start(data, &DEV);
    wait_until_sealed(data, 2);
    drop(server);
    assert_eq!(retire("1").0, 0);
}

/// A file with a passphrase.
fn passphrase(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("{text}\n")).unwrap();
    path
}

#[test]
fn a_passphrase_protects_the_root_key() {
    let directory = tempfile::tempdir().unwrap();
    let data = &directory.path().join("data");
    std::fs::create_dir(data).unwrap();
    let right = passphrase(directory.path(), "right", "correct horse battery");
    let wrong = passphrase(directory.path(), "wrong", "correct horse staple");
    let short = passphrase(directory.path(), "short", "horse");
    let protect = |file: &Path, with| {
        let file = file.to_str().unwrap();
        tool(data, &["root", "protect", "--passphrase-file", file], with)
    };
    let (status, text) = refused(&protect(&short, None));
    assert!(status == 1 && text.contains("has 5 bytes"), "{text}");
    done(&protect(&right, None));
    let stored = std::fs::read_to_string(data.join("root.key")).unwrap();
    assert!(
        stored.contains("\"memory_kib\"") && stored.contains("\"salt\""),
        "{stored}"
    );
    let mode = std::fs::metadata(data.join("root.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let environment = [("ENCLOS_KMS_PASSPHRASE_FILE", right.as_path())];
    let mut server = Server::start_with(data, &DEV, &environment);
    let blobs = some_keys(&server.client(), 3);
    // The server takes up a new version without being asked for the passphrase again.
    std::fs::rename(&right, directory.path().join("moved")).unwrap();
    let moved = directory.path().join("moved");
    done(&tool(data, &["root", "rotate"], Some(&moved)));
    wait_until_sealed(data, 2);
    all_open(&server.client(), &blobs);
    assert_eq!(server.stop(), Some(0));

    let serve = ["serve", "--dev", "--listen", "127.0.0.1:0"];
    let (status, text) = refused(&tool(data, &serve, Some(&wrong)));
    assert!(
        status == 6 && text.contains("the passphrase is not the one"),
        "{text}"
    );
    let (status, text) = refused(&tool(data, &serve, None));
    assert!(
        status == 6 && text.contains("ENCLOS_KMS_PASSPHRASE_FILE"),
        "{text}"
    );
    let (status, text) = refused(&tool(data, &serve, Some(&right)));
    assert!(
        status == 6 && text.contains("cannot read the passphrase"),
        "{text}"
    );

    // Another passphrase, then none.
    done(&protect(&wrong, Some(&moved)));
    assert_eq!(refused(&tool(data, &serve, Some(&moved))).0, 6);
    done(&tool(
        data,
        &["root", "protect", "--file-mode"],
        Some(&wrong),
    ));
    let server = Server::start(data, &DEV);
    all_open(&server.client(), &blobs);
}

/// Whoever types a passphrase types it once for each command: here it comes out of a pipe that is filled once.
#[test]
fn a_tool_asks_for_the_passphrase_once() {
    let directory = tempfile::tempdir().unwrap();
    let data = &directory.path().join("data");
    std::fs::create_dir(data).unwrap();
    let file = passphrase(directory.path(), "passphrase", "correct horse battery");
    let by = ["root", "protect", "--passphrase-file"];
    let name = file.to_str().unwrap();
    done(&tool(data, &[&by[..], &[name]].concat(), None));
    let environment = [("ENCLOS_KMS_PASSPHRASE_FILE", file.as_path())];
    drop(Server::start_with(data, &DEV, &environment));
    let pipe = directory.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let arn = "arn:aws:iam::000000000000:role/app";
    for arguments in [
        &["root", "rotate", "--prepare"][..],
        &["root", "rotate"],
        &["principal", "add", "--arn", arn],
        &["identity", "put", "--arn", arn],
        &["identity", "remove", "--arn", arn],
        &[
            "backup",
            "--to",
            directory.path().join("b").to_str().unwrap(),
        ],
    ] {
        let writer = {
            let pipe = pipe.clone();
            std::thread::spawn(move || std::fs::write(pipe, "correct horse battery\n").unwrap())
        };
        let bounded = ["10", BINARY];
        let mut command = Command::new("timeout");
        let database = postgres::for_directory(data);
        command
            .args(bounded)
            .args(arguments)
            .arg("--data")
            .arg(data)
            .args(database.iter().flat_map(|url| ["--database", url]))
            .env("ENCLOS_KMS_PASSPHRASE_FILE", &pipe);
        done(&command.output().unwrap());
        writer.join().unwrap();
    }
}

#[test]
fn a_damaged_file_is_named_and_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    drop(Server::start(data, &DEV));
    done(&tool(data, &["root", "rotate"], None));
    let path = data.join("root.key");
    let whole = std::fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        (
            "\"current\": 2",
            "\"current\": 3",
            "its current version, 3, is not there",
        ),
        ("\"version\": 2", "\"version\": 1", "out of order"),
        ("root key 1", "root key 9", "its format is"),
        ("}", "", "root.key is damaged"),
    ] {
        let damaged = whole.replace(from, to);
        assert_ne!(damaged, whole);
        std::fs::write(&path, &damaged).unwrap();
        let serve = ["serve", "--dev", "--listen", "127.0.0.1:0"];
        let (status, text) = refused(&tool(data, &serve, None));
        assert!(status == 1 && text.contains(expected), "{status} {text}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
    }
}

#[test]
fn memory_is_locked_or_it_is_said() {
    let server = Server::dev();
    let log = server.log();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let locked = locked
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .unwrap();
    assert_eq!(
        locked == 0,
        log.contains("memory is not locked"),
        "{locked} {log}"
    );

    // Without the capability and with a limit it cannot be. Only root has the capability, and can give it up.
    let directory = tempfile::tempdir().unwrap();
    let mut command = match rustix::process::getuid().is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]);
            command.arg("prlimit");
            command
        }
        false => Command::new("prlimit"),
    };
    let output = command
        .args(["--memlock=65536:65536", BINARY])
        .args([
            "serve",
            "--dev",
            "--require-locked-memory",
            "--listen",
            "127.0.0.1:0",
            "--data",
        ])
        .arg(directory.path())
        .output()
        .unwrap();
    let (status, text) = refused(&output);
    assert!(
        status == 1 && text.contains("LimitMEMLOCK=infinity"),
        "{status} {text}"
    );
}
