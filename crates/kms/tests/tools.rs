//! The tools beside the server: what they show, and what they say of a denial and of a trail that was tampered with.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use common::Server;
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::000000000000:role/app";

fn text(server: &Server, arguments: &[&str]) -> String {
    let output = server.tool(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(server: &Server, arguments: &[&str]) -> Value {
    serde_json::from_str(&text(server, arguments)).unwrap()
}

fn header(reply: &common::Reply, name: &str) -> String {
    let found = reply
        .headers
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}: ")));
    found.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

fn release(pcr: &str) -> Value {
    json!([
        { "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" },
        { "Sid": "Release", "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:Decrypt", "Resource": "*",
          "Condition": { "StringEquals": { pcr: "ab12", "kms:EncryptionContext:tenant": "a" } } }
    ])
}

#[test]
fn a_denial_is_explained() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    root.put_policy(&key, &release("kms:RecipientAttestation:PCR0"))
        .ok();
    let blob = root.encrypt(&key, b"x", json!({ "tenant": "b" }));
    let denied = role.decrypt(&blob, json!({ "tenant": "b" }));
    assert_eq!(denied.error_type(), "AccessDeniedException");
    let id = header(&denied, "x-amzn-requestid");

    let explained = json(&server, &["explain", &id, "--json"]);
    assert_eq!(explained["requestId"], id);
    assert_eq!(explained["principal"], ROLE);
    assert_eq!(explained["action"], "kms:Decrypt");
    let conditions = explained["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 2);
    let of = |key: &str| conditions.iter().find(|c| c["key"] == key).unwrap();
    let pcr = of("kms:RecipientAttestation:PCR0");
    assert_eq!(
        (&pcr["sid"], &pcr["expected"], &pcr["presented"]),
        (&json!("Release"), &json!(["ab12"]), &Value::Null)
    );
    assert_eq!(
        of("kms:EncryptionContext:tenant")["presented"],
        json!(["b"])
    );

    let table = text(&server, &["explain", &id]);
    assert!(table.contains("Conditions that did not hold:"), "{table}");
    let line = |word: &str| {
        table
            .lines()
            .find(|line| line.contains(word))
            .unwrap()
            .to_owned()
    };
    let pcr = line("kms:RecipientAttestation:PCR0");
    assert!(
        pcr.contains("2 Release") && pcr.contains("ab12") && pcr.ends_with("nothing"),
        "{pcr}"
    );

    // A request that was answered has nothing to explain, one that never was is not there.
    let answered = root.call("ListKeys", json!({}));
    server.audit(6);
    let table = text(
        &server,
        &["explain", &header(&answered, "x-amzn-requestid")],
    );
    assert!(
        table.contains("answered") && !table.contains("did not hold"),
        "{table}"
    );
    let nobody = "1234abcd-12ab-34cd-56ef-1234567890ab";
    assert_eq!(server.tool(&["explain", nobody]).status.code(), Some(1));
    assert_eq!(server.tool(&["explain", "x"]).status.code(), Some(2));
}

#[test]
fn a_denial_by_the_callers_own_policies_is_explained() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let policy = server.data.join("policy.json");
    let statement = json!({ "Effect": "Allow", "Action": "kms:*", "Resource": "*",
        "Condition": { "StringEquals": { "kms:EncryptionContext:tenant": "a" } } });
    let text_of = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
    std::fs::write(&policy, text_of).unwrap();
    let option = format!("own={}", policy.display());
    text(
        &server,
        &["identity", "put", "--arn", ROLE, "--policy", &option],
    );
    let key = root.create_key();
    let blob = root.encrypt(&key, b"x", json!({ "tenant": "b" }));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let (denied, explained) = loop {
        let denied = role.decrypt(&blob, json!({ "tenant": "b" }));
        assert_eq!(denied.error_type(), "AccessDeniedException");
        let id = header(&denied, "x-amzn-requestid");
        let explained = json(&server, &["explain", &id, "--json"]);
        // The server takes up new identity policies in a while.
        let found = explained["conditions"]
            .as_array()
            .is_some_and(|c| !c.is_empty());
        if found || std::time::Instant::now() > deadline {
            break (denied, explained);
        }
    };
    let condition = &explained["conditions"][0];
    assert_eq!(
        (&condition["policy"], &condition["presented"]),
        (&json!("own"), &json!(["b"]))
    );
    let id = header(&denied, "x-amzn-requestid");
    let log = std::fs::read_to_string(server.data.join("log")).unwrap();
    let line = log
        .lines()
        .find(|line| line.contains(&id) && line.contains("access denied"));
    let own = r#"identity policy "own" statement 1: StringEquals kms:EncryptionContext:tenant expected a, presented b"#;
    assert!(line.unwrap().contains(own), "{line:?}");
}

#[test]
fn the_trail_verifies_until_someone_touches_it() {
    let server = Server::dev();
    for _ in 0..5 {
        server.client().create_key();
    }
    let verified = json(&server, &["audit", "verify", "--json"]);
    assert_eq!(
        (&verified["verified"], &verified["rows"]),
        (&json!(true), &json!(5))
    );
    assert_eq!(verified["sealedFrom"], 1);
    let head = verified["head"].as_str().unwrap().to_owned();
    server.client().create_key();
    text(&server, &["audit", "verify", "--head", &head]);
    let other = head.replacen(':', ":00", 1);
    assert_eq!(
        server
            .tool(&["audit", "verify", "--head", &other])
            .status
            .code(),
        Some(2)
    );
    let wrong = format!("5:{}", "00".repeat(32));
    assert_eq!(
        server
            .tool(&["audit", "verify", "--head", &wrong])
            .status
            .code(),
        Some(5)
    );

    server.sql("UPDATE audit SET event = replace(event, 'CreateKey', 'ListKeys') WHERE seq = 3");
    let output = server.tool(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(5));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("row 3: it is not the row that was written"),
        "{error}"
    );
}

#[test]
fn the_trail_survives_kills_as_a_chain() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    for _ in 0..3 {
        let server = Server::start(directory.path(), &arguments);
        server.client().create_key();
        server.client().call("ListKeys", json!({})).ok();
        server.kill();
    }
    let server = Server::start(directory.path(), &arguments);
    let verified = json(&server, &["audit", "verify", "--json"]);
    assert_eq!(verified["verified"], true);
    assert!(verified["rows"].as_i64().unwrap() >= 3, "{verified}");
}

#[test]
fn what_there_is_can_be_looked_at() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let alias = json!({ "AliasName": "alias/app", "TargetKeyId": key });
    client.call("CreateAlias", alias).ok();
    let tags = json!([{ "TagKey": "team", "TagValue": "red" }]);
    client
        .call("TagResource", json!({ "KeyId": key, "Tags": tags }))
        .ok();
    let grant =
        json!({ "KeyId": key, "GranteePrincipal": ROLE, "Operations": ["Decrypt"], "Name": "one" });
    let grant = client.call("CreateGrant", grant).ok();
    client
        .put_policy(&key, &release("kms:RecipientAttestation"))
        .ok();

    let keys = json(&server, &["keys", "list", "--json"]);
    assert_eq!(
        (&keys[0]["KeyId"], &keys[0]["Aliases"]),
        (&json!(key), &json!(["alias/app"]))
    );
    let shown = json(&server, &["keys", "show", &key, "--json"]);
    assert_eq!(shown["Tags"], json!({ "team": "red" }));
    assert_eq!(shown["Grants"][0]["GrantId"], grant["GrantId"]);
    assert_eq!(shown["Policy"]["Statement"][1]["Sid"], "Release");
    let grants = json(&server, &["grants", "list", "--json"]);
    assert_eq!(
        (&grants[0]["Grantee"], &grants[0]["Name"]),
        (&json!(ROLE), &json!("one"))
    );
    let table = text(&server, &["grants", "list", "--key", &key]);
    assert!(
        table.starts_with("KEY ID ") && table.contains(ROLE),
        "{table}"
    );
    let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    let alias_arn = "arn:aws:kms:eu-west-1:000000000000:alias/app";
    for name in [key.as_str(), &arn, "alias/app", alias_arn] {
        let policy = text(&server, &["policies", "show", name]);
        assert!(policy.contains("\"Release\""), "{policy}");
        let table = text(&server, &["keys", "show", name]);
        for word in [&arn, "alias/app", "team=red", ROLE, "\"Release\""] {
            assert!(table.contains(word), "{word}: {table}");
        }
    }

    let output = server.tool(&["policies", "check-all", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let codes: Vec<&str> = findings
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["code"].as_str().unwrap())
        .collect();
    assert!(codes.contains(&"absent-key"), "{codes:?}");
    assert_eq!(
        server.tool(&["keys", "show", "nothing"]).status.code(),
        Some(1)
    );
}

/// As the API shows them: states that follow from more than the switch, and replicas under the key id that they share.
#[test]
fn keys_have_the_state_and_the_id_that_the_api_shows() {
    let server = Server::dev();
    let client = server.client();
    let create = |input: Value| {
        let made = client.call("CreateKey", input).ok();
        made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    };
    let imported = create(json!({ "Origin": "EXTERNAL" }));
    let key = create(json!({ "MultiRegion": true }));
    let input = json!({ "KeyId": key, "ReplicaRegion": "us-east-1" });
    client.call("ReplicateKey", input).ok();
    client
        .call("ScheduleKeyDeletion", json!({ "KeyId": key }))
        .ok();
    let keys = json(&server, &["keys", "list", "--json"]);
    let found: Vec<_> = keys
        .as_array()
        .unwrap()
        .iter()
        .map(|key| {
            let text = |name: &str| key[name].as_str().unwrap();
            (text("KeyId"), text("Region"), text("State"))
        })
        .collect();
    assert_eq!(
        found,
        [
            (imported.as_str(), "eu-west-1", "PendingImport"),
            (&key, "eu-west-1", "PendingReplicaDeletion"),
            (&key, "us-east-1", "Enabled"),
        ]
    );
    let output = server.tool(&["keys", "show", &key]);
    let error = String::from_utf8(output.stderr).unwrap();
    let replica = format!("arn:aws:kms:us-east-1:000000000000:key/{key}");
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains(&replica), "{error}");
    let shown = json(&server, &["keys", "show", &replica, "--json"]);
    assert_eq!(
        (&shown["Arn"], &shown["PrimaryRegion"]),
        (&json!(replica), &json!("eu-west-1"))
    );
}

/// What callers write stands on one line of the log and of the table, and moves no cursor.
#[test]
fn callers_write_no_lines_of_their_own() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    root.put_policy(&key, &release("kms:RecipientAttestation:PCR0"))
        .ok();
    let evil = "b\nforged line \u{1b}[31m\u{202e}";
    let blob = root.encrypt(&key, b"x", json!({ "tenant": evil }));
    let denied = role.decrypt(&blob, json!({ "tenant": evil }));
    assert_eq!(denied.error_type(), "AccessDeniedException");
    let id = header(&denied, "x-amzn-requestid");
    root.call("DescribeKey", json!({ "KeyId": evil }));
    server.audit(6);
    let table = text(&server, &["audit", "--failed"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].contains("REQUEST ID") && lines[1].contains(&id));
    assert!(
        lines
            .iter()
            .skip(1)
            .all(|line| line.contains("b forged line"))
    );
    let log = std::fs::read_to_string(server.data.join("log")).unwrap();
    let line = log.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.contains("presented b forged line"), "{line}");
    for text in [&table, &log] {
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
    }
}

#[test]
fn the_data_directory_is_a_variable_of_every_tool() {
    let server = Server::dev();
    server.client().create_key();
    for arguments in [
        &["audit"] as &[&str],
        &["audit", "--last", "1"],
        &["audit", "verify"],
        &["keys", "list"],
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_enclos-kms"));
        let command = command.args(arguments).env("ENCLOS_KMS_DATA", &server.data);
        let database = server.database.iter().flat_map(|url| ["--database", url]);
        let output = command.args(database).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
    }
}

#[test]
fn what_the_tools_change_is_in_the_trail() {
    let server = Server::tls();
    let role = server.principal(ROLE);
    text(
        &server,
        &["identity", "put", "--arn", ROLE, "--tag", "team=red"],
    );
    text(&server, &["identity", "remove", "--arn", ROLE]);
    text(
        &server,
        &["principal", "remove", "--access-key-id", &role.id],
    );
    let events = server.audit(4);
    let names: Vec<&str> = events
        .iter()
        .map(|event| event["eventName"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "CreateAccessKey",
            "PutIdentity",
            "DeleteIdentity",
            "DeleteAccessKey"
        ]
    );
    assert_eq!(events[0]["userIdentity"]["type"], "Local");
    assert_eq!(
        events[0]["requestParameters"],
        json!({ "arn": ROLE, "accessKeyId": role.id })
    );
    assert_eq!(
        events[1]["requestParameters"]["Tags"],
        json!({ "team": "red" })
    );
    assert!(
        !events
            .iter()
            .any(|event| event.to_string().contains(&role.secret))
    );
    // Tool and server write one chain.
    server.client().create_key();
    assert_eq!(
        json(&server, &["audit", "verify", "--json"])["verified"],
        true
    );
}

/// Runs a tool as somebody who may write nothing in a directory: root too, without the capability to do so all the same.
fn look(data: &Path, arguments: &[&str]) -> Output {
    let mut command = match rustix::process::getuid().is_root() {
        true => {
            let mut command = Command::new("setpriv");
            let given_up = "-dac_override,-dac_read_search";
            command.args(["--bounding-set", given_up, "--inh-caps", given_up]);
            command.arg(common::BINARY);
            command
        }
        false => Command::new(common::BINARY),
    };
    command.args(arguments).arg("--data").arg(data);
    command.output().unwrap()
}

/// Takes from everybody, and with `true` gives back to its owner, the right to write a directory and what is in it.
fn let_write(data: &Path, may: bool) {
    let (directory, file) = if may { (0o700, 0o600) } else { (0o500, 0o400) };
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(data, 0o700);
    for entry in std::fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            set(&path, file);
        }
    }
    set(data, directory);
}

#[track_caller]
fn looked(data: &Path, arguments: &[&str]) -> String {
    let output = look(data, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What every tool that only looks says of a directory that it cannot look at.
#[track_caller]
fn refused(data: &Path, word: &str) {
    for arguments in [&["audit"][..], &["audit", "verify"], &["keys", "list"]] {
        let output = look(data, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(word), "{arguments:?}: {errors}");
    }
}

#[test]
fn where_nothing_can_be_written_one_can_still_look() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let mut server = Server::start(data, &arguments);
    if server.database.is_some() {
        return;
    }
    let client = server.client();
    let key = client.create_key();
    let denied = server
        .principal(ROLE)
        .call("DescribeKey", json!({ "KeyId": key }));
    let id = header(&denied, "x-amzn-requestid");
    let all = |data: &Path| {
        let trail = looked(data, &["audit", "--json"]);
        assert!(
            trail.contains("CreateKey") && trail.contains(&id),
            "{trail}"
        );
        assert!(looked(data, &["audit"]).contains("CreateAccessKey"));
        assert!(looked(data, &["explain", &id]).contains("DescribeKey"));
        assert!(looked(data, &["keys", "list"]).contains(&key));
        assert!(looked(data, &["grants", "list"]).contains("GRANTEE"));
        assert!(looked(data, &["principal", "list"]).contains(ROLE));
        looked(data, &["identity", "list"]);
        looked(data, &["audit", "verify"])
    };

    // A server writes meanwhile: what is only in its log is seen.
    let_write(data, false);
    let running = all(data);
    assert!(std::fs::metadata(data.join("kms.db-wal")).unwrap().len() > 0);
    let_write(data, true);

    // Copied while it runs, without the index of the log: the end of the trail would be missing.
    let copy = tempfile::tempdir().unwrap();
    for name in ["kms.db", "kms.db-wal", "root.key"] {
        std::fs::copy(data.join(name), copy.path().join(name)).unwrap();
    }
    let_write(copy.path(), false);
    refused(
        copy.path(),
        "are in kms.db-wal beside it, which cannot be read",
    );
    let_write(copy.path(), true);
    assert_eq!(all(copy.path()), running);

    // At rest the file is all there is.
    assert_eq!(server.stop(), Some(0));
    assert!(!data.join("kms.db-wal").exists());
    let_write(data, false);
    assert_eq!(all(data), running);
    // What has to write says so.
    let output = look(data, &["principal", "add", "--arn", ROLE]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("cannot be written, which this command has to"),
        "{errors}"
    );
    let made: Vec<_> = std::fs::read_dir(data).unwrap().collect();
    let_write(data, true);
    assert_eq!(made.len(), std::fs::read_dir(data).unwrap().count());

    // Of an older program, which this one would bring up to date first.
    let newest = "(SELECT MAX(version) FROM schema_migrations)";
    server.sql(&format!(
        "DELETE FROM schema_migrations WHERE version = {newest}"
    ));
    let_write(data, false);
    refused(data, "cannot write here to bring it there");
    let_write(data, true);
    let hidden = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(data, hidden).unwrap();
    refused(data, "cannot be read, and nothing can be written there");
    let_write(data, true);
    std::fs::write(data.join("kms.db"), "no database").unwrap();
    let_write(data, false);
    refused(data, "cannot be read, and nothing can be written there");
    let_write(data, true);
}
