//! Several nodes on one PostgreSQL database: what one acknowledged all know, races have one winner, and neither nodes nor the
//! database lose anything when they die.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::campaign::Campaign;
use common::fleet::{ARGUMENTS, Acknowledged, Fleet, check, load, wait_for_more};
use common::postgres::Postgres;
use common::{BINARY, Client, Reply, Server, plaintext};
use serde_json::{Value, json};

#[test]
fn what_one_node_acknowledged_all_nodes_know() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "know", 2);
    for round in 0..20 {
        let (here, there) = (fleet.client(round % 2), fleet.client((round + 1) % 2));
        let key = here.create_key();
        let blob = there.encrypt(&key, b"x", json!({}));
        here.call("RotateKeyOnDemand", json!({ "KeyId": key })).ok();
        let second = there.encrypt(&key, b"y", json!({}));
        assert_eq!(plaintext(&here.decrypt(&blob, json!({})).ok()), b"x");
        assert_eq!(plaintext(&here.decrypt(&second, json!({})).ok()), b"y");

        let alias = format!("alias/{round}");
        let input = json!({ "AliasName": alias, "TargetKeyId": key });
        here.call("CreateAlias", input).ok();
        let other = there.create_key();
        let input = json!({ "AliasName": alias, "TargetKeyId": other });
        there.call("UpdateAlias", input).ok();
        let shown = here.call("DescribeKey", json!({ "KeyId": alias })).ok();
        assert_eq!(shown["KeyMetadata"]["KeyId"], json!(other));
        there
            .call("DeleteAlias", json!({ "AliasName": alias }))
            .ok();
        let gone = here.call("DescribeKey", json!({ "KeyId": alias }));
        assert_eq!(gone.error_type(), "NotFoundException");

        let grant = json!({
            "KeyId": key, "GranteePrincipal": "arn:aws:iam::000000000000:role/r", "Operations": ["Decrypt"],
        });
        let grant = here.call("CreateGrant", grant).ok();
        let listed = |client: &Client| {
            let output = client.call("ListGrants", json!({ "KeyId": key })).ok();
            output["Grants"].as_array().unwrap().len()
        };
        assert_eq!(listed(&there), 1);
        let input = json!({ "KeyId": key, "GrantId": grant["GrantId"] });
        there.call("RevokeGrant", input).ok();
        assert_eq!(listed(&here), 0);

        here.call("DisableKey", json!({ "KeyId": key })).ok();
        let refused = there.decrypt(&blob, json!({}));
        assert_eq!(refused.error_type(), "DisabledException");
        there.call("EnableKey", json!({ "KeyId": key })).ok();
        assert_eq!(plaintext(&here.decrypt(&blob, json!({})).ok()), b"x");
    }
    fleet.check_trail();
}

#[test]
fn of_nodes_that_race_one_wins() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "race", 2);
    let key = fleet.client(0).create_key();
    for round in 0..10 {
        let create = json!({ "AliasName": format!("alias/{round}"), "TargetKeyId": key });
        let replies = both(&fleet, |client, _| {
            client.call("CreateAlias", create.clone())
        });
        let won = replies.iter().filter(|reply| reply.status == 200).count();
        assert_eq!(won, 1, "{replies:?}");
        let lost = replies.iter().find(|reply| reply.status != 200).unwrap();
        assert_eq!(lost.error_type(), "AlreadyExistsException");
        // Both change the same row, each from what it knows: neither tag may be lost.
        let replies = both(&fleet, |client, node| {
            let tags = json!([{ "TagKey": format!("{round}-{node}"), "TagValue": "v" }]);
            client.call("TagResource", json!({ "KeyId": key, "Tags": tags }))
        });
        assert!(
            replies.iter().all(|reply| reply.status == 200),
            "{replies:?}"
        );
        let replies = both(&fleet, |client, _| {
            client.call("RotateKeyOnDemand", json!({ "KeyId": key }))
        });
        assert!(
            replies.iter().all(|reply| reply.status == 200),
            "{replies:?}"
        );
    }
    for node in 0..2 {
        let client = fleet.client(node);
        let tags = client
            .call("ListResourceTags", json!({ "KeyId": key }))
            .ok();
        assert_eq!(tags["Tags"].as_array().unwrap().len(), 20);
        let rotations = client
            .call("ListKeyRotations", json!({ "KeyId": key }))
            .ok();
        assert_eq!(rotations["Rotations"].as_array().unwrap().len(), 20);
    }
    fleet.check_trail();
}

/// What both nodes answer to calls at the same time.
fn both(fleet: &Fleet, call: impl Fn(&Client, usize) -> Reply + Sync) -> Vec<Reply> {
    std::thread::scope(|scope| {
        let call = &call;
        let calls: Vec<_> = (0..2)
            .map(|node| {
                let client = fleet.client(node);
                scope.spawn(move || call(&client, node))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

#[test]
fn a_node_needs_the_root_key_of_the_others() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "root", 1);
    let directory = tempfile::tempdir().unwrap();
    let refused = || {
        let output = Command::new(BINARY)
            .arg("serve")
            .arg("--data")
            .arg(directory.path())
            .args(["--database", &fleet.urls[0]])
            .args(ARGUMENTS)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = refused();
    assert!(text.contains("copy root.key"), "{text}");
    let other = Server::start_on(directory.path(), None, &ARGUMENTS);
    drop(other);
    let text = refused();
    assert!(text.contains("another root key"), "{text}");
}

#[test]
fn a_database_that_restarts_loses_nothing() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "restart", 2);
    let (acknowledged, stop) = (Acknowledged::default(), Arc::new(AtomicBool::new(false)));
    let load = load(&fleet, &acknowledged, &stop, 0);
    for round in 0..3 {
        wait_for_more(&acknowledged, 10 + round);
        postgres.stop();
        std::thread::sleep(Duration::from_millis(300));
        postgres.run();
    }
    wait_for_more(&acknowledged, 10);
    stop.store(true, Ordering::Relaxed);
    load.end();
    check(&fleet, &acknowledged, &postgres, "restart");
}

#[test]
fn a_database_that_is_gone_is_told_and_found_again() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "gone", 1);
    let client = fleet.client(0);
    let key = client.create_key();
    let encrypt = || {
        let input = json!({ "KeyId": key, "Plaintext": "eA==" });
        client.call("Encrypt", input)
    };
    let health = || client.send("GET", "/health", &[], b"").status;
    encrypt().ok();
    postgres.stop();
    let refused = encrypt();
    let said = (refused.status, refused.error_type());
    assert_eq!(said, (500, "DependencyTimeoutException"));
    wait_until("a health that tells", || health() == 503);
    postgres.run();
    let deadline = Instant::now() + Duration::from_secs(20);
    while health() != 200 {
        assert!(Instant::now() < deadline, "{}", fleet.nodes[0].log());
        std::thread::sleep(Duration::from_millis(50));
    }
    encrypt().ok();
    fleet.check_trail();
}

#[test]
fn nodes_that_die_lose_nothing() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut fleet = Fleet::new(&postgres, "die", 2);
    let acknowledged = Acknowledged::default();
    let mut campaign = Campaign::new(10);
    for round in 0..campaign.kills {
        let stop = Arc::new(AtomicBool::new(false));
        let load = load(&fleet, &acknowledged, &stop, round);
        wait_for_more(&acknowledged, campaign.answers());
        std::thread::sleep(campaign.delay());
        fleet.restart(round % 2);
        stop.store(true, Ordering::Relaxed);
        load.end();
    }
    check(&fleet, &acknowledged, &postgres, "die");
}

#[test]
fn state_moves_from_a_file_to_a_database_and_back() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Server::start_on(first.path(), None, &ARGUMENTS);
    let client = server.client();
    let key = client.create_key();
    let blob = client.encrypt(&key, b"x", json!({}));
    client
        .call("RotateKeyOnDemand", json!({ "KeyId": key }))
        .ok();
    let alias = json!({ "AliasName": "alias/moves", "TargetKeyId": key });
    client.call("CreateAlias", alias).ok();
    let tags = json!([{ "TagKey": "a", "TagValue": "b" }]);
    client
        .call("TagResource", json!({ "KeyId": key, "Tags": tags }))
        .ok();
    for number in 0..450 {
        let grant = json!({ "KeyId": key, "GranteePrincipal": format!("arn:aws:iam::000000000000:role/{number}"), "Operations": ["Decrypt"] });
        client.call("CreateGrant", grant).ok();
    }
    let principal = server.principal("arn:aws:iam::000000000000:root");
    let since = client.call("GetKeyLastUsage", json!({ "KeyId": key })).ok();
    let url = postgres.database("moved");
    let move_to = |from: &str, to: &str| {
        Command::new(BINARY)
            .args(["move", "--from", from, "--to", to])
            .output()
            .unwrap()
    };
    let (here, there) = (
        first.path().to_str().unwrap(),
        second.path().to_str().unwrap(),
    );
    // Not while somebody serves.
    assert_eq!(move_to(here, &url).status.code(), Some(4));
    assert_eq!(server.stop(), Some(0));
    let heads: Vec<String> = [(here, url.as_str()), (&url, there)]
        .into_iter()
        .map(|(from, to)| {
            if to == there {
                let root = first.path().join("root.key");
                std::fs::copy(root, second.path().join("root.key")).unwrap();
            }
            let output = move_to(from, to);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("grants: 450"), "{text}");
            let (_, head) = text.split_once("head: ").unwrap();
            head.lines().next().unwrap().to_owned()
        })
        .collect();
    assert_eq!(heads.first(), heads.last());
    // Nothing is mixed.
    let again = move_to(here, &url);
    assert_eq!(again.status.code(), Some(1));
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(said.contains("not empty"), "{said}");
    let places = [(first.path(), Some(url.clone())), (second.path(), None)];
    for (data, database) in places {
        let server = Server::start_on(data, database, &ARGUMENTS);
        let client = server.client();
        assert_eq!(plaintext(&client.decrypt(&blob, json!({})).ok()), b"x");
        let shown = client
            .call("DescribeKey", json!({ "KeyId": "alias/moves" }))
            .ok();
        assert_eq!(shown["KeyMetadata"]["KeyId"], json!(key));
        let now = client.call("GetKeyLastUsage", json!({ "KeyId": key })).ok();
        assert_eq!(now["TrackingStartDate"], since["TrackingStartDate"]);
        let known = Client::new(server.http.unwrap(), &principal.id, &principal.secret);
        known.call("ListKeys", json!({})).ok();
        let head = heads.first().unwrap();
        let output = server.tool(&["audit", "verify", "--head", head]);
        assert!(output.status.success());
    }
}

#[test]
fn a_database_that_went_back_is_not_followed() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let fleet = Fleet::new(&postgres, "back", 1);
    let client = fleet.client(0);
    let key = client.create_key();
    postgres.psql("back", "UPDATE state SET change_seq = 0");
    let refused: Value = client.call("DescribeKey", json!({ "KeyId": key })).body;
    assert_eq!(refused["__type"], "KMSInternalException");
    let log = fleet.nodes[0].log();
    assert!(log.contains("acknowledged changes are lost"), "{log}");
}

/// How many keys' materials are sealed under each version of the root key.
fn materials_under(postgres: &Postgres, name: &str, version: u32) -> usize {
    let sql = format!(
        "SELECT count(*) FROM materials WHERE substr(sealed, 1, 4) = decode('{version:08x}', 'hex')"
    );
    postgres.psql(name, &sql).parse().unwrap()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_node_that_misses_a_rotation_cannot_undo_it() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut fleet = Fleet::new(&postgres, "missed", 2);
    let key = fleet.client(0).create_key();
    let blob = fleet.client(0).encrypt(&key, b"kept", json!({}));
    let files: Vec<_> = fleet
        .directories
        .iter()
        .map(|node| node.path().join("root.key"))
        .collect();
    let root = |fleet: &Fleet, arguments: &[&str]| {
        let output = fleet.nodes[0].tool(&[&["root"][..], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    };
    root(&fleet, &["rotate", "--prepare"]);
    std::fs::copy(&files[0], &files[1]).unwrap();
    root(&fleet, &["rotate"]);
    wait_until("sealed anew", || {
        materials_under(&postgres, "missed", 2) == 1
    });
    // The other node looks at everything as soon as it has started, and leaves it.
    fleet.restart(1);
    wait_until("told", || {
        fleet.nodes[1].log().contains("seals under a newer version")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(materials_under(&postgres, "missed", 1), 0);
    let refused = fleet.nodes[1].tool(&["root", "retire", "--version", "2"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("has made version 2 current"), "{said}");

    root(&fleet, &["retire", "--version", "1"]);
    let missed = fleet.client(1);
    let refused = missed.call("CreateKey", json!({}));
    assert_eq!(refused.error_type(), "KMSInternalException");
    let log = fleet.nodes[1].log();
    assert!(
        log.contains("is retired") && log.contains("copy root.key"),
        "{log}"
    );
    assert_eq!(plaintext(&missed.decrypt(&blob, json!({})).ok()), b"kept");
    std::fs::copy(&files[0], &files[1]).unwrap();
    wait_until("taken up", || {
        missed.call("CreateKey", json!({})).status == 200
    });
    assert_eq!(materials_under(&postgres, "missed", 1), 0);
    for node in 0..2 {
        fleet.restart(node);
    }
    assert_eq!(
        plaintext(&fleet.client(1).decrypt(&blob, json!({})).ok()),
        b"kept"
    );
    fleet.check_trail();
}
