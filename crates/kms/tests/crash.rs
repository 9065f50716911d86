//! kill -9 at any moment loses nothing that was acknowledged.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::campaign::Campaign;
use common::{Client, Server, plaintext};
use serde_json::{Value, json};

/// In CI; `ENCLOS_KMS_KILLS` says otherwise.
const KILLS: usize = 20;
const WRITERS: usize = 4;

/// What the server has said yes to.
#[derive(Default)]
struct Acknowledged {
    /// Key id and its last acknowledged description.
    keys: Vec<(String, String)>,
    /// Alias and the key that it points at.
    aliases: Vec<(String, String)>,
    /// Ciphertext and plaintext.
    ciphertexts: Vec<(String, String)>,
    /// Keys that were rotated once.
    rotations: Vec<String>,
    /// Keys with a replica.
    replicas: Vec<String>,
    /// Keys with a policy of their own, and its text.
    policies: Vec<(String, String)>,
    /// Keys and grants on them.
    grants: Vec<(String, String)>,
    /// Keys and grants that were revoked.
    revoked: Vec<(String, String)>,
}

const ELSEWHERE: &str = "us-east-1";

#[test]
fn nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut campaign = Campaign::new(KILLS);
    for round in 0..campaign.kills {
        let server = Server::start(directory.path(), &arguments);
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, stop) = (server.client(), Arc::clone(&stop));
                let acknowledged = Arc::clone(&acknowledged);
                std::thread::spawn(move || {
                    let mut step = 0;
                    while !stop.load(Ordering::Relaxed) {
                        write(&client, &format!("{round}-{writer}-{step}"), &acknowledged);
                        step += 1;
                    }
                })
            })
            .collect();
        // A different moment each time, always under load.
        wait_for_keys(&acknowledged, campaign.answers());
        std::thread::sleep(campaign.delay());
        server.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
    }
    let server = Server::start(directory.path(), &arguments);
    let acknowledged = acknowledged.lock().unwrap();
    assert!(
        acknowledged.keys.len() >= campaign.kills,
        "{} keys are no load",
        acknowledged.keys.len()
    );
    check(&server, &acknowledged);
}

/// Waits until so many more keys are acknowledged.
fn wait_for_keys(acknowledged: &Mutex<Acknowledged>, more: usize) {
    let count = || acknowledged.lock().unwrap().keys.len();
    let (wanted, deadline) = (count() + more, Instant::now() + Duration::from_secs(20));
    while count() < wanted {
        assert!(Instant::now() < deadline, "the server makes no keys");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One step of load. Calls that fail because the server is gone are not acknowledged and not noted.
fn write(client: &Client, name: &str, acknowledged: &Mutex<Acknowledged>) {
    let Some(output) = attempt(
        client,
        "CreateKey",
        json!({ "Description": name, "MultiRegion": true }),
    ) else {
        return;
    };
    let key = output["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    acknowledged
        .lock()
        .unwrap()
        .keys
        .push((key.clone(), name.to_owned()));
    encrypt(client, &key, name, acknowledged);
    if attempt(client, "RotateKeyOnDemand", json!({ "KeyId": key })).is_some() {
        acknowledged.lock().unwrap().rotations.push(key.clone());
    }
    encrypt(client, &key, name, acknowledged);
    let input = json!({ "KeyId": key, "ReplicaRegion": ELSEWHERE });
    if attempt(client, "ReplicateKey", input).is_some() {
        acknowledged.lock().unwrap().replicas.push(key.clone());
    }
    restrict(client, &key, name, acknowledged);
    let alias = format!("alias/{name}");
    let input = json!({ "AliasName": alias, "TargetKeyId": key });
    if attempt(client, "CreateAlias", input).is_some() {
        acknowledged
            .lock()
            .unwrap()
            .aliases
            .push((alias, key.clone()));
    }
    let described = format!("{name} again");
    let input = json!({ "KeyId": key, "Description": described });
    let answered = attempt(client, "UpdateKeyDescription", input).is_some();
    let mut acknowledged = acknowledged.lock().unwrap();
    let entry = acknowledged
        .keys
        .iter_mut()
        .find(|(id, _)| *id == key)
        .unwrap();
    // Without an answer either description may have been stored.
    entry.1 = if answered { described } else { String::new() };
}

/// A policy and two grants, of which one is taken back.
fn restrict(client: &Client, key: &str, name: &str, acknowledged: &Mutex<Acknowledged>) {
    let policy = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": name, "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::000000000000:root" }, "Action": "kms:*", "Resource": "*",
    }]})
    .to_string();
    let input = json!({ "KeyId": key, "Policy": policy });
    if attempt(client, "PutKeyPolicy", input).is_some() {
        let mut acknowledged = acknowledged.lock().unwrap();
        acknowledged.policies.push((key.to_owned(), policy));
    }
    for revoked in [false, true] {
        let role = format!("arn:aws:iam::000000000000:role/{revoked}");
        let input = json!({ "KeyId": key, "GranteePrincipal": role, "Operations": ["Decrypt"] });
        let Some(output) = attempt(client, "CreateGrant", input) else {
            return;
        };
        let grant = output["GrantId"].as_str().unwrap().to_owned();
        if !revoked {
            let mut acknowledged = acknowledged.lock().unwrap();
            acknowledged.grants.push((key.to_owned(), grant));
            continue;
        }
        let input = json!({ "KeyId": key, "GrantId": grant });
        if attempt(client, "RevokeGrant", input).is_some() {
            let mut acknowledged = acknowledged.lock().unwrap();
            acknowledged.revoked.push((key.to_owned(), grant));
        }
    }
}

fn encrypt(client: &Client, key: &str, text: &str, acknowledged: &Mutex<Acknowledged>) {
    let input = json!({ "KeyId": key, "Plaintext": base64(text) });
    if let Some(output) = attempt(client, "Encrypt", input) {
        let blob = output["CiphertextBlob"].as_str().unwrap().to_owned();
        let mut acknowledged = acknowledged.lock().unwrap();
        acknowledged.ciphertexts.push((blob, text.to_owned()));
    }
}

/// The body of a success; `None` if the connection broke.
fn attempt(client: &Client, operation: &str, input: Value) -> Option<Value> {
    let reply = client.try_call(operation, &input)?;
    Some(reply.ok())
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

fn check(server: &Server, acknowledged: &Acknowledged) {
    let client = server.client();
    for (key, description) in &acknowledged.keys {
        let output = client.call("DescribeKey", json!({ "KeyId": key })).ok();
        let found = output["KeyMetadata"]["Description"].as_str().unwrap();
        assert!(
            description.is_empty() || found == description,
            "{key}: {found} {description}"
        );
        client.encrypt(key, b"still usable", json!({}));
    }
    for (blob, text) in &acknowledged.ciphertexts {
        assert_eq!(
            plaintext(&client.decrypt(blob, json!({})).ok()),
            text.as_bytes()
        );
    }
    for (alias, key) in &acknowledged.aliases {
        let output = client.call("DescribeKey", json!({ "KeyId": alias })).ok();
        assert_eq!(output["KeyMetadata"]["KeyId"], json!(key));
    }
    for key in &acknowledged.rotations {
        let input = json!({ "KeyId": key });
        let output = client.call("ListKeyRotations", input).ok();
        assert_eq!(output["Rotations"].as_array().unwrap().len(), 1, "{key}");
    }
    check_permissions(&client, acknowledged);
    let mut elsewhere = client.clone();
    elsewhere.region = ELSEWHERE.to_owned();
    for key in &acknowledged.replicas {
        let there = client.encrypt(key, b"there", json!({}));
        let opened = elsewhere.decrypt(&there, json!({})).ok();
        assert_eq!(plaintext(&opened), b"there");
    }
    let verified = server.tool(&["audit", "verify"]);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    // Every acknowledged change has its audit row, and each row is whole.
    let events = server.audit(acknowledged.keys.len());
    let created = events
        .iter()
        .filter(|event| event["eventName"] == "CreateKey");
    let created: std::collections::BTreeSet<&str> = created
        .map(|event| {
            event["responseElements"]["keyMetadata"]["KeyId"]
                .as_str()
                .unwrap()
        })
        .collect();
    for (key, _) in &acknowledged.keys {
        assert!(created.contains(key.as_str()), "no audit row for key {key}");
    }
}

fn check_permissions(client: &Client, acknowledged: &Acknowledged) {
    for (key, policy) in &acknowledged.policies {
        let output = client.call("GetKeyPolicy", json!({ "KeyId": key })).ok();
        assert_eq!(output["Policy"], json!(policy), "{key}");
    }
    let has = |key: &str, grant: &str| {
        let output = client.call("ListGrants", json!({ "KeyId": key })).ok();
        let mut grants = output["Grants"].as_array().unwrap().iter();
        grants.any(|listed| listed["GrantId"] == json!(grant))
    };
    for (key, grant) in &acknowledged.grants {
        assert!(has(key, grant), "{key}: {grant} is lost");
    }
    for (key, grant) in &acknowledged.revoked {
        assert!(!has(key, grant), "{key}: {grant} is back");
    }
}
