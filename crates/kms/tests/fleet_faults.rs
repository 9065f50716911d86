//! What happens to a fleet that seldom happens: its database fails over, its change log is cut, its root key is rotated, somebody
//! else answers at its database's address.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::fleet::{ARGUMENTS, Acknowledged, Fleet, check, load, wait_for_more};
use common::postgres::Postgres;
use common::{BINARY, Client, Server, openssl, plaintext};
use serde_json::json;

#[test]
fn a_fail_over_to_a_standby_loses_nothing() {
    let Some(primary) = Postgres::start() else {
        return;
    };
    let first = primary.database("over");
    let standby = primary.standby();
    let mut fleet = Fleet::on(&[first, standby.url("over")], 2);
    let (acknowledged, stop) = (Acknowledged::default(), Arc::new(AtomicBool::new(false)));
    let load = load(&fleet, &acknowledged, &stop, 0);
    wait_for_more(&acknowledged, 20);
    primary.stop();
    standby.promote();
    wait_for_more(&acknowledged, 20);
    stop.store(true, Ordering::Relaxed);
    load.end();
    for node in &mut fleet.nodes {
        node.database = Some(standby.url("over"));
    }
    check(&fleet, &acknowledged, &standby, "over");
    // A node that starts now passes the dead server over.
    let last = acknowledged.lock().unwrap().last().unwrap().1.clone();
    fleet.restart(0);
    fleet.client(0).encrypt(&last, b"x", json!({}));
}

/// Makes every third row of a table fail, at once or when its transaction is committed, with one of PostgreSQL's codes.
fn injected(table: &str, moment: &str, code: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF random() < 0.34 THEN RAISE EXCEPTION 'injected' USING ERRCODE = '{code}'; END IF;
           RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON {table} DEFERRABLE INITIALLY {moment}
           FOR EACH ROW EXECUTE FUNCTION fails()"
    )
}

/// Disk full, an error of the disk, a lost race, a query that was cancelled, and an end of which nobody knows what it was.
#[test]
fn writes_that_fail_in_the_database_lose_nothing() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "fail", 2);
    let acknowledged = Acknowledged::default();
    let mut refused = 0;
    for code in ["53100", "58030", "40001", "57014", "40003"] {
        for (table, moment) in [
            ("keys", "IMMEDIATE"),
            ("audit", "IMMEDIATE"),
            ("audit", "DEFERRED"),
            ("changes", "DEFERRED"),
        ] {
            postgres.psql("fail", &injected(table, moment, code));
            for step in 0..8 {
                let name = format!("{code}-{table}-{moment}-{step}");
                let client = fleet.client(step % 2);
                let reply = client.call("CreateKey", json!({ "Description": name }));
                if reply.status == 200 {
                    let id = reply.body["KeyMetadata"]["KeyId"].as_str().unwrap();
                    acknowledged.lock().unwrap().push((name, id.to_owned()));
                } else {
                    let kind = reply.error_type();
                    let known = ["DependencyTimeoutException", "KMSInternalException"];
                    assert!(reply.status == 500 && known.contains(&kind), "{reply:?}");
                    refused += 1;
                }
            }
            postgres.psql("fail", &format!("DROP TRIGGER fails ON {table}"));
        }
    }
    let made = acknowledged.lock().unwrap().len();
    assert!(
        made >= 40 && refused >= 10,
        "{made} made, {refused} refused"
    );
    for node in 0..2 {
        let client = fleet.client(node);
        let name = json!({ "Description": format!("afterwards {node}") });
        client.call("CreateKey", name).ok();
        assert_eq!(client.send("GET", "/health", &[], b"").status, 200);
    }
    check(&fleet, &acknowledged, &postgres, "fail");
}

/// A certificate authority and a server's certificate of it for one name, made by OpenSSL.
fn certificates(directory: &Path, name: &str) {
    let run = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        openssl(directory, &arguments, b"");
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    run(&format!(
        "{new} -subj /CN=authority -keyout ca.key -out ca.pem"
    ));
    run(&format!(
        "{new} -subj /CN=other -keyout other.key -out other.pem"
    ));
    run(&format!(
        "{new} -subj /CN={name} -addext subjectAltName=DNS:{name} -addext basicConstraints=CA:FALSE -CA ca.pem -CAkey ca.key -keyout server.key -out server.pem"
    ));
}

#[test]
fn a_database_proves_who_it_is() {
    const PASSWORD: &str = "correct horse battery staple";
    let Some(postgres) = Postgres::start() else {
        return;
    };
    postgres.database("tls");
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    certificates(folder, "localhost");
    let port = postgres.listen(
        &folder.join("server.pem"),
        &folder.join("server.key"),
        PASSWORD,
    );
    std::fs::write(folder.join("password"), PASSWORD).unwrap();
    std::fs::write(folder.join("wrong"), "wrong").unwrap();
    let url = |host: &str, authority: &str| {
        let authority = folder.join(authority);
        let authority = authority.display();
        format!("postgres://kms@{host}:{port}/tls?sslrootcert={authority}")
    };
    let refused = |url: &str, password: &str| {
        let output = Command::new(BINARY)
            .args(["serve", "--database", url, "--database-password-file"])
            .arg(folder.join(password))
            .arg("--data")
            .arg(tempfile::tempdir().unwrap().path())
            .args(ARGUMENTS)
            .env_remove("PGPASSWORD")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{url}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains(PASSWORD), "{said}");
        said
    };
    let said = refused(&url("localhost", "other.pem"), "password");
    assert!(said.contains("certificate"), "{said}");
    let said = refused(&url("127.0.0.1", "ca.pem"), "password");
    assert!(said.contains("certificate"), "{said}");
    let said = refused(&url("localhost", "ca.pem"), "wrong");
    assert!(said.contains("password"), "{said}");

    let password = folder.join("password");
    let mut arguments = ARGUMENTS.to_vec();
    arguments.extend(["--database-password-file", password.to_str().unwrap()]);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start_on(data.path(), Some(url("localhost", "ca.pem")), &arguments);
    let client = server.client();
    let blob = client.encrypt(&client.create_key(), b"x", json!({}));
    assert_eq!(plaintext(&client.decrypt(&blob, json!({})).ok()), b"x");
}

#[test]
fn a_node_that_missed_too_many_changes_reads_everything_again() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "prune", 2);
    let (here, there) = (fleet.client(0), fleet.client(1));
    let key = here.create_key();
    let blob = there.encrypt(&key, b"x", json!({}));
    here.call("DisableKey", json!({ "KeyId": key })).ok();
    let missed = here.create_key();
    // As if as many changes had followed as are kept: the next ones cut the log.
    postgres.psql("prune", "UPDATE state SET change_seq = 20998");
    here.create_key();
    here.create_key();
    let kept = postgres.psql("prune", "SELECT min(seq) FROM changes");
    assert_eq!(kept, "20999");
    assert_eq!(
        postgres.psql("prune", "SELECT pruned_seq FROM state"),
        "11000"
    );
    // A change that is computed from what the other node has not seen is not lost, nor does it undo anything.
    let tags = json!([{ "TagKey": "a", "TagValue": "b" }]);
    there
        .call("TagResource", json!({ "KeyId": key, "Tags": tags }))
        .ok();
    let refused = there.decrypt(&blob, json!({}));
    assert_eq!(refused.error_type(), "DisabledException");
    there.encrypt(&missed, b"x", json!({}));
    fleet.check_trail();
}

#[test]
fn how_stale_an_answer_may_be_is_a_choice() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "stale", 1);
    let here = fleet.client(0);
    let key = here.create_key();
    let blob = here.encrypt(&key, b"x", json!({}));
    let patient = |staleness: &str| {
        let directory = tempfile::tempdir().unwrap();
        let root = fleet.directories[0].path().join("root.key");
        std::fs::copy(root, directory.path().join("root.key")).unwrap();
        let mut arguments = ARGUMENTS.to_vec();
        arguments.extend(["--max-staleness", staleness]);
        let database = Some(fleet.urls[0].clone());
        let server = Server::start_on(directory.path(), database, &arguments);
        (server, directory)
    };
    let (slow, _slow) = patient("60000");
    let (quick, _quick) = patient("300");
    for server in [&slow, &quick] {
        let opened = server.client().decrypt(&blob, json!({}));
        assert_eq!(plaintext(&opened.ok()), b"x");
    }
    here.call("DisableKey", json!({ "KeyId": key })).ok();
    let opened = slow.client().decrypt(&blob, json!({}));
    assert_eq!(plaintext(&opened.ok()), b"x", "it need not ask");
    let deadline = Instant::now() + Duration::from_secs(20);
    while quick.client().decrypt(&blob, json!({})).status == 200 {
        assert!(Instant::now() < deadline, "it never asks");
        std::thread::sleep(Duration::from_millis(20));
    }
    // A change is never computed from what is stale, and brings memory up to it.
    let input = json!({ "KeyId": key, "Description": "new" });
    slow.client().call("UpdateKeyDescription", input).ok();
    let refused = slow.client().decrypt(&blob, json!({}));
    assert_eq!(refused.error_type(), "DisabledException");
    let shown = here.call("DescribeKey", json!({ "KeyId": key })).ok();
    assert_eq!(shown["KeyMetadata"]["Enabled"], json!(false));
}

/// Encrypts and decrypts on all nodes until it is told to stop; every ciphertext that was made.
fn sealing_load(
    fleet: &Fleet,
    stop: &Arc<AtomicBool>,
) -> Vec<std::thread::JoinHandle<Vec<String>>> {
    let clients: Vec<Client> = (0..fleet.nodes.len())
        .map(|node| fleet.client(node))
        .collect();
    (0..clients.len())
        .map(|own| {
            let (clients, stop) = (clients.clone(), Arc::clone(stop));
            std::thread::spawn(move || {
                let mut made = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = clients[own].create_key();
                    for client in &clients {
                        made.push(client.encrypt(&key, b"kept", json!({})));
                    }
                    let client = &clients[(own + 1) % clients.len()];
                    opens(client, made.iter().rev().take(4));
                }
                made
            })
        })
        .collect()
}

fn opens<'a>(client: &Client, blobs: impl Iterator<Item = &'a String>) {
    for blob in blobs {
        assert_eq!(plaintext(&client.decrypt(blob, json!({})).ok()), b"kept");
    }
}

/// Gives the first node's root key to the others, each at once.
fn share_root(fleet: &Fleet) {
    let (first, others) = fleet.directories.split_first().unwrap();
    for other in others {
        let staged = other.path().join("root.new");
        std::fs::copy(first.path().join("root.key"), &staged).unwrap();
        std::fs::rename(staged, other.path().join("root.key")).unwrap();
    }
}

fn root(fleet: &Fleet, arguments: &[&str]) -> bool {
    let mut all = vec!["root"];
    all.extend(arguments);
    fleet.nodes[0].tool(&all).status.success()
}

#[test]
fn the_root_key_of_a_fleet_rotates_under_load() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut fleet = Fleet::new(&postgres, "rotate", 2);
    let principal = fleet.nodes[0].principal("arn:aws:iam::000000000000:root");
    let stop = Arc::new(AtomicBool::new(false));
    let load = sealing_load(&fleet, &stop);
    std::thread::sleep(Duration::from_millis(300));
    assert!(root(&fleet, &["rotate", "--prepare"]));
    share_root(&fleet);
    // Nodes read the file every two seconds; what they do not know yet they could not open.
    std::thread::sleep(Duration::from_secs(3));
    assert!(root(&fleet, &["rotate"]));
    share_root(&fleet);
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::Relaxed);
    let mut blobs = Vec::new();
    for writer in load {
        blobs.extend(writer.join().unwrap());
    }
    assert!(blobs.len() > 20, "{} ciphertexts are no load", blobs.len());
    fleet.restart(1);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !root(&fleet, &["retire", "--version", "1"]) {
        assert!(Instant::now() < deadline, "not everything is sealed anew");
        std::thread::sleep(Duration::from_millis(100));
    }
    share_root(&fleet);
    // Started with the new version alone, each opens what any node ever sealed.
    for number in 0..2 {
        fleet.restart(number);
        opens(&fleet.client(number), blobs.iter());
    }
    let known = Client::new(fleet.client(1).address, &principal.id, &principal.secret);
    known.call("ListKeys", json!({})).ok();
    // One that never got the new file is told so.
    let old = node_of_another_root(&fleet);
    assert!(old.contains("root.key"), "{old}");
    fleet.check_trail();
}

/// What a node says that comes with a root key of its own.
fn node_of_another_root(fleet: &Fleet) -> String {
    let directory = tempfile::tempdir().unwrap();
    drop(Server::start_on(directory.path(), None, &ARGUMENTS));
    let output = Command::new(BINARY)
        .args(["serve", "--database", &fleet.urls[0], "--data"])
        .arg(directory.path())
        .args(ARGUMENTS)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}
