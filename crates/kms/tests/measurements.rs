//! Key policies that name measurement policies: through the real server, its files and its signals.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::enclave::{Enclave, ROLE, attested_decrypt, now, pcr, pinned_key, zero};
use common::{BINARY, Client, Reply, Server};
use enclos_attest::document::Claims;
use enclos_attest::policy::When;
use enclos_attest::{PcrIndex, PcrValue};
use serde_json::{Value, json};

/// An enclave, and a server that has measurement policies in a directory.
struct Site {
    enclave: Enclave,
    files: tempfile::TempDir,
    server: Server,
    role: Client,
}

impl Site {
    fn new(policies: &[(&str, Value)]) -> Self {
        Self::with(policies, &[])
    }

    fn with(policies: &[(&str, Value)], more: &[&str]) -> Self {
        let enclave = Enclave::new();
        let files = tempfile::tempdir().unwrap();
        for (name, policy) in policies {
            write(files.path(), name, &policy.to_string());
        }
        let root = enclave.directory.path().join("root.pem");
        let mut arguments = vec!["--trust-root", root.to_str().unwrap()];
        arguments.extend(["--measurement-policies", files.path().to_str().unwrap()]);
        arguments.extend(more);
        let server = Server::with(&arguments);
        let role = server.principal(ROLE);
        Self {
            enclave,
            files,
            server,
            role,
        }
    }

    /// A key that releases to the role's enclaves that a measurement policy accepts; something encrypted with it.
    fn key(&self, name: &str) -> String {
        pinned_key(&self.server, &by_measurement(name)).1
    }

    fn decrypt(&self, blob: &str) -> Reply {
        attested_decrypt(&self.role, blob, &self.enclave.document())
    }

    fn decrypt_as(&self, blob: &str, change: impl FnOnce(&mut Claims)) -> Reply {
        let mut claims = self.enclave.claims();
        change(&mut claims);
        attested_decrypt(&self.role, blob, &self.enclave.sign(&claims))
    }

    /// Replaces files, sends SIGHUP, waits for the words that the log must say then.
    fn reload(&self, says: &str) {
        let before = self.server.log().matches(says).count();
        let pid = i32::try_from(self.server.pid()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.server.log().matches(says).count() == before {
            assert!(Instant::now() < deadline, "the log never said {says:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write(&self, name: &str, text: &str) {
        write(self.files.path(), name, text);
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    let file = directory.join(format!("{name}.json"));
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
}

fn by_measurement(name: &str) -> Value {
    json!({ "StringEquals": { "enclos:MeasurementPolicy": name } })
}

fn policy(measurements: &Value, require: &Value) -> Value {
    let signers = json!({ "release": { "pcr8": [pcr(8)], "versionPcr": 16 } });
    json!({ "version": 1, "measurements": measurements, "signers": signers, "require": require })
}

/// What [`Enclave::new`] runs.
fn image() -> Value {
    json!({ "pcrs": { "0": pcr(1), "1": pcr(2), "2": pcr(3) } })
}

fn accepts_image() -> Value {
    policy(
        &json!({ "app": image() }),
        &json!({ "measurements": ["app"] }),
    )
}

fn set(claims: &mut Claims, register: PcrIndex, value: PcrValue) {
    claims.pcrs.insert(register, value);
}

fn denied(reply: &Reply) {
    assert_eq!(reply.error_type(), "AccessDeniedException", "{reply:?}");
}

fn index(number: u8) -> PcrIndex {
    PcrIndex::try_from(number).unwrap()
}

#[test]
fn a_measurement_policy_releases_to_its_image_alone() {
    let site = Site::new(&[("app", accepts_image())]);
    let blob = site.key("app");
    let output = site.decrypt(&blob).ok();
    assert_eq!(site.enclave.open(&output), b"hello enclave");
    denied(&site.decrypt_as(&blob, |claims| set(claims, index(2), pcr(9))));
    denied(&site.role.decrypt(&blob, json!({})));

    let events = site.server.audit(6);
    let decrypts: Vec<_> = events
        .iter()
        .filter(|e| e["eventName"] == "Decrypt")
        .collect();
    let recipient = &decrypts[0]["additionalEventData"]["recipient"];
    assert_eq!(recipient["measurementPolicies"], json!(["app"]));
    let denial = &decrypts[1]["additionalEventData"]["denial"];
    let reason = format!("not \"app\": PCR2 is {}, expected {}", pcr(9), pcr(3));
    assert_eq!(
        denial["measurementPolicies"],
        json!([{ "policy": "app", "reasons": [reason] }])
    );
    let condition = &denial["statements"][1]["conditions"][0];
    assert_eq!(
        (
            &condition["key"],
            &condition["expected"],
            &condition["presented"]
        ),
        (
            &json!("enclos:MeasurementPolicy"),
            &json!(["app"]),
            &Value::Null
        )
    );
    let reason = &decrypts[2]["additionalEventData"]["denial"]["measurementPolicies"][0]["reasons"];
    assert_eq!(
        reason,
        &json!(["the request carries no attestation document"])
    );

    let id = decrypts[1]["requestID"].as_str().unwrap();
    let explained = site.server.tool(&["explain", id]);
    let table = String::from_utf8(explained.stdout).unwrap();
    assert!(
        table.contains("Measurement policies that did not accept"),
        "{table}"
    );
    assert!(table.contains(&format!("expected {}", pcr(3))), "{table}");
}

#[test]
fn a_build_is_rolled_out_and_the_old_one_expires_without_a_new_key_policy() {
    let site = Site::new(&[("app", accepts_image())]);
    let blob = site.key("app");
    let next = |claims: &mut Claims| set(claims, index(0), pcr(7));
    denied(&site.decrypt_as(&blob, next));

    let new = json!({ "pcrs": { "0": pcr(7), "1": pcr(2), "2": pcr(3) } });
    let until = |when: When| {
        let mut old = image();
        old["notAfter"] = json!(when);
        policy(
            &json!({ "app": old, "next": new }),
            &json!({ "measurements": ["app", "next"] }),
        )
    };
    let later: When = "2100-01-01T00:00:00Z".parse().unwrap();
    site.write("app", &until(later).to_string());
    site.reload("measurement policy in use");
    site.decrypt(&blob).ok();
    site.decrypt_as(&blob, next).ok();

    let earlier: When = "2026-01-01T00:00:00Z".parse().unwrap();
    site.write("app", &until(earlier).to_string());
    site.reload("measurement policy in use");
    denied(&site.decrypt(&blob));
    site.decrypt_as(&blob, next).ok();
    assert!(
        site.server
            .log()
            .contains("has expired at 2026-01-01T00:00:00Z")
    );

    // Each state of the files is in the audit trail, before it decided.
    let events = site.server.audit(8);
    let loads = events
        .iter()
        .filter(|e| e["eventName"] == "LoadMeasurementPolicies");
    let digests: Vec<_> = loads
        .map(|event| {
            event["requestParameters"]["policies"]["app"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(digests.len(), 3, "{digests:?}");
    assert!(digests[0] != digests[1] && digests[1] != digests[2]);
}

#[test]
fn a_signers_versions_have_a_minimum() {
    let require = json!({ "signer": { "name": "release", "minimumVersion": 9 } });
    let site = Site::new(&[("signed", policy(&json!({}), &require))]);
    let blob = site.key("signed");
    let signed = |version: u64| {
        move |claims: &mut Claims| {
            claims.pcrs.insert(index(8), pcr(8));
            claims.pcrs.insert(index(16), PcrValue::of_version(version));
        }
    };
    denied(&site.decrypt(&blob));
    denied(&site.decrypt_as(&blob, signed(8)));
    site.decrypt_as(&blob, signed(9)).ok();
}

#[test]
fn age_counts_and_a_nonce_is_nothing() {
    let require = json!({ "all": [
        { "any": [{ "nonce": "required" }, { "measurements": ["app"] }] },
        { "nonce": "required" }, { "maxAgeSeconds": 60 }] });
    let site = Site::new(&[("app", policy(&json!({ "app": image() }), &require))]);
    let blob = site.key("app");
    site.decrypt(&blob).ok();
    let age = |seconds| {
        move |claims: &mut Claims| claims.timestamp = now().minus(Duration::from_secs(seconds))
    };
    site.decrypt_as(&blob, age(30)).ok();
    denied(&site.decrypt_as(&blob, age(90)));
    // Where a nonce alone would admit it admits nobody, also who brings one.
    denied(&site.decrypt_as(&blob, |claims| {
        claims.pcrs.insert(index(0), pcr(9));
        claims.nonce = Some(vec![1; 16]);
    }));
}

#[test]
fn debug_enclaves_satisfy_no_measurement_policy() {
    let role = json!({ "pcrs": { "3": pcr(4) } });
    let zeros = json!({ "pcrs": { "0": zero(), "1": zero(), "2": zero() } });
    let site = Site::new(&[
        ("role", policy(&json!({}), &role)),
        ("zeros", policy(&json!({}), &zeros)),
    ]);
    let debug = |claims: &mut Claims| {
        for number in [0, 1, 2, 8] {
            claims.pcrs.insert(index(number), zero());
        }
    };
    let blob = site.key("role");
    site.decrypt(&blob).ok();
    denied(&site.decrypt_as(&blob, debug));
    denied(&site.decrypt_as(&site.key("zeros"), debug));
    let log = site.server.log();
    assert!(log.contains("the document is of a debug-mode enclave"));
    assert!(!log.contains("a debug-mode enclave was admitted"));
}

#[test]
fn a_broken_file_keeps_the_former_policy_and_a_removed_one_admits_nobody() {
    let site = Site::new(&[("app", accepts_image())]);
    let blob = site.key("app");
    for broken in [
        "{",
        r#"{ "version": 1, "require": { "nonce": "required" } }"#,
        "",
    ] {
        site.write("app", broken);
        site.reload("measurement policy is broken, the former one stays");
        site.decrypt(&blob).ok();
    }
    let file = site.files.path().join("app.json");
    site.write("app", &accepts_image().to_string());
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    site.reload("can be changed by every user (mode 666)");
    site.decrypt(&blob).ok();
    fs::set_permissions(site.files.path(), Permissions::from_mode(0o777)).unwrap();
    site.reload("reading measurement policies again failed");
    site.decrypt(&blob).ok();
    fs::set_permissions(site.files.path(), Permissions::from_mode(0o755)).unwrap();

    fs::remove_file(&file).unwrap();
    site.reload("names a measurement policy that is not here");
    denied(&site.decrypt(&blob));
    assert!(
        site.server
            .log()
            .contains("there is no measurement policy of this name")
    );
    site.write("app", &accepts_image().to_string());
    site.reload("measurement policy in use");
    site.decrypt(&blob).ok();
}

#[test]
fn a_server_does_not_start_with_a_file_that_it_cannot_use() {
    let directory = tempfile::tempdir().unwrap();
    let start = |name: &str, text: &str| {
        let files = tempfile::tempdir().unwrap();
        write(files.path(), name, text);
        let mut command = Command::new(BINARY);
        command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(directory.path()).arg("--measurement-policies");
        let output = command.arg(files.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let valid = accepts_image().to_string();
    for (name, text, expected) in [
        ("app", "{}", "app.json is no measurement policy"),
        (
            "app",
            r#"{ "version": 1, "require": { "nonce": "required" } }"#,
            "nothing but a nonce",
        ),
        ("my app", &valid, "cannot be named by a key policy"),
    ] {
        let said = start(name, text);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn key_policies_name_what_there_is_in_the_forms_that_hold_back() {
    let site = Site::new(&[("app", accepts_image())]);
    let client = site.server.client();
    let key = client.create_key();
    let put = |effect: &str, operator: &str, condition_key: &str, name: &str| {
        let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
        let statement = json!({ "Effect": effect, "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
            "Condition": { operator: { condition_key: name } } });
        client.put_policy(&key, &json!([admin, statement]))
    };
    const KEY: &str = "enclos:MeasurementPolicy";
    put("Allow", "StringEquals", KEY, "app").ok();
    put("Allow", "stringequals", "ENCLOS:measurementpolicy", "app").ok();
    put("Deny", "StringNotEquals", KEY, "app").ok();
    for (effect, operator, condition_key, name, expected) in [
        (
            "Allow",
            "StringEquals",
            KEY,
            "other",
            "this server does not have",
        ),
        (
            "Allow",
            "StringEquals",
            KEY,
            "APP",
            "this server does not have",
        ),
        ("Allow", "StringEquals", KEY, "*", "is no name"),
        (
            "Allow",
            "StringEquals",
            KEY,
            "${aws:username}",
            "is no name",
        ),
        ("Allow", "StringNotEquals", KEY, "app", "takes StringEquals"),
        ("Allow", "StringLike", KEY, "app", "takes StringEquals"),
        (
            "Allow",
            "StringEqualsIfExists",
            KEY,
            "app",
            "takes StringEquals",
        ),
        (
            "Allow",
            "ForAllValues:StringEquals",
            KEY,
            "app",
            "takes StringEquals",
        ),
        ("Allow", "Null", KEY, "true", "takes StringEquals"),
        ("Deny", "StringEquals", KEY, "app", "takes StringNotEquals"),
        (
            "Deny",
            "ForAnyValue:StringNotEquals",
            KEY,
            "app",
            "takes StringNotEquals",
        ),
        (
            "Allow",
            "StringEquals",
            "enclos:MeasurmentPolicy",
            "app",
            "no condition key",
        ),
    ] {
        let reply = put(effect, operator, condition_key, name);
        let (kind, text) = reply.error();
        assert_eq!(
            kind, "MalformedPolicyDocumentException",
            "{operator} {name}"
        );
        assert!(text.contains(expected), "{text}");
    }
    // A key is made with a policy of the same rules.
    let statement = json!({ "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
        "Condition": by_measurement("other") });
    let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
    let text = json!({ "Version": "2012-10-17", "Statement": [admin, statement] }).to_string();
    let reply = client.call("CreateKey", json!({ "Policy": text }));
    assert_eq!(reply.error_type(), "MalformedPolicyDocumentException");
}

#[test]
fn a_deny_keeps_out_who_no_measurement_policy_accepts() {
    let other = policy(
        &json!({}),
        &json!({ "pcrs": { "0": pcr(1), "1": pcr(2), "2": pcr(3), "4": pcr(5) } }),
    );
    let site = Site::new(&[("app", accepts_image()), ("other", other)]);
    let client = site.server.client();
    let key = client.create_key();
    let blob = client.encrypt(&key, b"x", json!({}));
    let allow = json!({ "Effect": "Allow", "Principal": { "AWS": ["000000000000", ROLE] }, "Action": "kms:*", "Resource": "*" });
    let deny = json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*",
        "Condition": { "StringNotEquals": { "enclos:MeasurementPolicy": ["app"] } } });
    let release = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:Decrypt", "Resource": "*",
        "Condition": by_measurement("other") });
    client.put_policy(&key, &json!([allow, deny, release])).ok();
    // "other" accepts as well, and is another name: the Deny looks for "app" among all that accept.
    site.decrypt(&blob).ok();
    denied(&site.decrypt_as(&blob, |claims| set(claims, index(0), pcr(9))));
    denied(&site.role.decrypt(&blob, json!({})));
    denied(&client.decrypt(&blob, json!({})));
    fs::remove_file(site.files.path().join("app.json")).unwrap();
    site.reload("names a measurement policy that is not here");
    denied(&site.decrypt(&blob));
}

#[test]
fn suspicious_measurement_policies_are_told_and_refused_by_strict_servers() {
    let unpinned = policy(&json!({}), &json!({ "pcrs": { "0": pcr(1) } }));
    let files = [("app", accepts_image()), ("partial", unpinned)];
    let statement = |name: &str| {
        json!([
            { "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:PutKeyPolicy", "Resource": "*" },
            { "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:Decrypt", "Resource": "*",
              "Condition": by_measurement(name) }])
    };
    let site = Site::new(&files);
    let client = site.server.client();
    let reply = client.put_policy(&client.create_key(), &statement("partial"));
    assert!(reply.headers.contains("measurement-policy=2"), "{reply:?}");
    assert!(site.server.log().contains("PCR0 without PCR1 and PCR2"));
    reply.ok();
    let reply = client.put_policy(&client.create_key(), &statement("app"));
    assert!(!reply.headers.contains("measurement-policy"), "{reply:?}");
    reply.ok();

    let strict = Site::with(&files, &["--strict-policies"]);
    let client = strict.server.client();
    let reply = client.put_policy(&client.create_key(), &statement("partial"));
    assert!(
        reply
            .error()
            .1
            .contains("a measurement policy that admits more images"),
        "{reply:?}"
    );
}
