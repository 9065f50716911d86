//! Grants as callers see them: what they admit, what limits them, how they end.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use common::{Client, Reply, Server, plaintext};
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::000000000000:role/app";
const USER: &str = "arn:aws:iam::000000000000:user/alice";

fn create(client: &Client, key: &str, grantee: &str, operations: &[&str]) -> Value {
    create_with(client, key, grantee, operations, json!({})).ok()
}

fn create_with(
    client: &Client,
    key: &str,
    grantee: &str,
    operations: &[&str],
    more: Value,
) -> Reply {
    let mut input = json!({ "KeyId": key, "GranteePrincipal": grantee, "Operations": operations });
    for (name, value) in more.as_object().unwrap() {
        input[name] = value.clone();
    }
    client.call("CreateGrant", input)
}

fn list(client: &Client, key: &str) -> Vec<Value> {
    let output = client.call("ListGrants", json!({ "KeyId": key })).ok();
    assert_eq!(output["Truncated"], false);
    output["Grants"].as_array().unwrap().clone()
}

fn id(grant: &Value) -> &str {
    grant["GrantId"].as_str().unwrap()
}

#[test]
fn a_grant_admits_its_grantee_at_once_and_nobody_else() {
    let server = Server::tls();
    let root = server.client();
    let (role, user) = (server.principal(ROLE), server.principal(USER));
    let key = root.create_key();
    let blob = root.encrypt(&key, b"secret", json!({}));
    assert_eq!(
        role.decrypt(&blob, json!({})).error_type(),
        "AccessDeniedException"
    );

    let grant = create(&root, &key, ROLE, &["Decrypt"]);
    assert_eq!(id(&grant).len(), 64);
    assert_eq!(plaintext(&role.decrypt(&blob, json!({})).ok()), b"secret");
    assert_eq!(
        user.decrypt(&blob, json!({})).error_type(),
        "AccessDeniedException"
    );
    let encrypt = role.call("Encrypt", json!({ "KeyId": key, "Plaintext": "eA==" }));
    assert_eq!(encrypt.error_type(), "AccessDeniedException");

    let input = json!({ "KeyId": key, "GrantId": id(&grant) });
    assert_eq!(
        role.call("RevokeGrant", input.clone()).error_type(),
        "AccessDeniedException"
    );
    root.call("RevokeGrant", input.clone()).ok();
    assert_eq!(
        role.decrypt(&blob, json!({})).error_type(),
        "AccessDeniedException"
    );
    assert_eq!(
        root.call("RevokeGrant", input).error_type(),
        "NotFoundException"
    );
}

#[test]
fn constraints_bind_the_encryption_context() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let (equal, subset) = (root.create_key(), root.create_key());
    let context = json!({ "tenant": "a" });
    for (key, constraint) in [
        (&equal, "EncryptionContextEquals"),
        (&subset, "EncryptionContextSubset"),
    ] {
        let mut constraints = json!({});
        constraints[constraint] = context.clone();
        create_with(
            &root,
            key,
            ROLE,
            &["Encrypt", "DescribeKey"],
            json!({ "Constraints": constraints }),
        )
        .ok();
        role.call("DescribeKey", json!({ "KeyId": key })).ok();
        let entries = list(&root, key);
        assert_eq!(entries[0]["Constraints"][constraint], context);
    }
    let encrypt = |key: &str, context: Value| {
        let input = json!({ "KeyId": key, "Plaintext": "eA==", "EncryptionContext": context });
        role.call("Encrypt", input).status
    };
    let more = json!({ "tenant": "a", "purpose": "b" });
    assert_eq!(encrypt(&equal, context.clone()), 200);
    assert_eq!(encrypt(&equal, more.clone()), 400);
    assert_eq!(encrypt(&subset, context), 200);
    assert_eq!(encrypt(&subset, more), 200);
    assert_eq!(encrypt(&subset, json!({})), 400);
    let events = server.audit(1);
    let denied = events
        .iter()
        .find(|e| e["errorCode"] == "AccessDenied")
        .unwrap();
    assert_eq!(
        denied["additionalEventData"]["denial"]["grants"][0]["outcome"],
        "its constraint wants another encryption context"
    );
}

/// AWS's refusal as Terraform's provider cites it; that provider sends both members, one of them empty.
#[test]
fn a_grant_has_one_constraint_on_the_encryption_context() {
    let server = Server::dev();
    let root = server.client();
    let key = root.create_key();
    let with = |constraints: Value| {
        let more = json!({ "Constraints": constraints });
        create_with(&root, &key, ROLE, &["Decrypt"], more)
    };
    let (some, none) = (json!({ "tenant": "a" }), json!({}));
    let both = with(json!({ "EncryptionContextEquals": some, "EncryptionContextSubset": some }));
    let text = "More than one constraint supplied";
    assert_eq!(both.error(), ("ValidationException", text));
    for (name, other) in [
        ("EncryptionContextEquals", "EncryptionContextSubset"),
        ("EncryptionContextSubset", "EncryptionContextEquals"),
    ] {
        let id = with(json!({ name: some, other: none })).ok()["GrantId"].clone();
        let entries = list(&root, &key);
        let made = entries.iter().find(|entry| entry["GrantId"] == id).unwrap();
        assert_eq!(made["Constraints"], json!({ name: some }));
    }
    // Alone, it admits requests without an encryption context.
    let alone = with(json!({ "EncryptionContextEquals": none })).ok()["GrantId"].clone();
    let entries = list(&root, &key);
    let made = entries.iter().find(|entry| entry["GrantId"] == alone);
    assert_eq!(
        made.unwrap()["Constraints"],
        json!({ "EncryptionContextEquals": {} })
    );
}

#[test]
fn a_deny_wins_over_a_grant() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    create(&root, &key, ROLE, &["DescribeKey"]);
    role.call("DescribeKey", json!({ "KeyId": key })).ok();
    let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
    let deny = json!({ "Effect": "Deny", "Principal": { "AWS": ROLE }, "Action": "kms:DescribeKey", "Resource": "*" });
    root.put_policy(&key, &json!([admin, deny])).ok();
    let reply = role.call("DescribeKey", json!({ "KeyId": key }));
    assert!(
        reply
            .error()
            .1
            .ends_with("with an explicit deny in a resource-based policy")
    );
}

#[test]
fn a_name_makes_repeating_harmless() {
    let server = Server::dev();
    let root = server.client();
    let key = root.create_key();
    let named = |name: &str, operations: &[&str]| {
        create_with(&root, &key, ROLE, operations, json!({ "Name": name })).ok()
    };
    let first = named("one", &["Decrypt"]);
    let again = named("one", &["Decrypt"]);
    assert_eq!(first["GrantId"], again["GrantId"]);
    assert_ne!(first["GrantToken"], again["GrantToken"]);
    assert_ne!(named("one", &["Encrypt"])["GrantId"], first["GrantId"]);
    assert_ne!(named("two", &["Decrypt"])["GrantId"], first["GrantId"]);
    let unnamed = || create(&root, &key, ROLE, &["Decrypt"]);
    assert_ne!(unnamed()["GrantId"], unnamed()["GrantId"]);
    assert_eq!(list(&root, &key).len(), 5);
}

#[test]
fn tokens_are_checked() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    let grant = create(&root, &key, ROLE, &["DescribeKey", "RetireGrant"]);
    let describe = |token: &Value| {
        role.call(
            "DescribeKey",
            json!({ "KeyId": key, "GrantTokens": [token] }),
        )
    };
    describe(&grant["GrantToken"]).ok();
    let invalid = ("InvalidGrantTokenException", "Grant token is invalid.");
    assert_eq!(describe(&json!("nonsense")).error(), invalid);
    let retire = |token: &Value| role.call("RetireGrant", json!({ "GrantToken": token }));
    assert_eq!(retire(&json!("nonsense")).error(), invalid);
    retire(&grant["GrantToken"]).ok();
    // The token is still ours, but stands for nothing.
    assert_eq!(
        describe(&grant["GrantToken"]).error_type(),
        "AccessDeniedException"
    );
    assert_eq!(
        retire(&grant["GrantToken"]).error_type(),
        "NotFoundException"
    );
}

#[test]
fn who_may_retire() {
    let server = Server::tls();
    let (root, role, user) = (
        server.client(),
        server.principal(ROLE),
        server.principal(USER),
    );
    let key = root.create_key();
    let grant = || {
        let more = json!({ "RetiringPrincipal": USER });
        create_with(&root, &key, ROLE, &["Decrypt"], more).ok()
    };
    let retire = |client: &Client, grant: &Value| {
        let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
        client.call(
            "RetireGrant",
            json!({ "KeyId": arn, "GrantId": grant["GrantId"] }),
        )
    };
    let (one, two) = (grant(), grant());
    let listed = root
        .call(
            "ListRetirableGrants",
            json!({ "RetiringPrincipal": USER, "Limit": 1 }),
        )
        .ok();
    assert_eq!(listed["Truncated"], true);
    let rest = root
        .call(
            "ListRetirableGrants",
            json!({ "RetiringPrincipal": USER, "Marker": listed["NextMarker"] }),
        )
        .ok();
    assert_eq!(rest["Grants"].as_array().unwrap().len(), 1);
    // The grantee only if the grant says so, the retiring principal and the account always.
    assert_eq!(retire(&role, &one).error_type(), "AccessDeniedException");
    retire(&user, &one).ok();
    retire(&root, &two).ok();
    assert!(list(&root, &key).is_empty());
    let reply = root.call("RetireGrant", json!({ "KeyId": key }));
    assert_eq!(
        reply.error(),
        (
            "ValidationException",
            "You must specify either GrantToken or both GrantId and KeyId."
        )
    );
}

#[test]
fn a_grantee_passes_on_no_more_than_it_has() {
    let server = Server::tls();
    let (root, role, user) = (
        server.client(),
        server.principal(ROLE),
        server.principal(USER),
    );
    let key = root.create_key();
    create(&root, &key, ROLE, &["DescribeKey", "CreateGrant"]);
    let wider = create_with(&role, &key, USER, &["DescribeKey", "Decrypt"], json!({}));
    assert_eq!(wider.error_type(), "AccessDeniedException");
    create(&role, &key, USER, &["DescribeKey"]);
    user.call("DescribeKey", json!({ "KeyId": key })).ok();
}

#[test]
fn grants_are_checked_for_form() {
    let server = Server::dev();
    let root = server.client();
    let key = root.create_key();
    let many: serde_json::Map<String, Value> =
        (0..9).map(|n| (n.to_string(), json!("x"))).collect();
    let rows = [
        (json!({ "Operations": ["Decrypt"] }), "ValidationException"),
        (json!({ "GranteePrincipal": ROLE }), "ValidationException"),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": ["DECRYPT"] }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": [] }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": ["CreateGrant"] }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": ["Sign"] }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": "Decrypt" }),
            "SerializationException",
        ),
        (
            json!({ "GranteePrincipal": "bob", "Operations": ["Decrypt"] }),
            "InvalidArnException",
        ),
        (
            json!({ "GranteePrincipal": "arn:aws:iam::000000000000:group/x", "Operations": ["Decrypt"] }),
            "InvalidArnException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": ["Decrypt"], "Name": "a b" }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": ["Decrypt"], "Constraints": { "EncryptionContextSubset": many } }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "GranteeServicePrincipal": "rds.us-east-1.amazonaws.com", "Operations": ["Decrypt"] }),
            "ValidationException",
        ),
        (
            json!({ "GranteeServicePrincipal": "rds.us-east-1.amazonaws.com", "Operations": ["Decrypt"] }),
            "ValidationException",
        ),
        (
            json!({ "GranteePrincipal": ROLE, "Operations": ["Decrypt"], "DryRun": true }),
            "DryRunOperationException",
        ),
    ];
    for (mut input, expected) in rows {
        input["KeyId"] = json!(key);
        let reply = root.call("CreateGrant", input.clone());
        assert_eq!(reply.error_type(), expected, "{input}");
    }
    let text = "Grants must not contain only the CreateGrant operation.";
    let only = create_with(&root, &key, ROLE, &["CreateGrant"], json!({}));
    assert_eq!(only.error(), ("ValidationException", text));
    assert!(list(&root, &key).is_empty());
    for operation in ["RevokeGrant", "ListGrants"] {
        let reply = root.call(operation, json!({ "KeyId": key, "GrantId": "x" }));
        assert_eq!(reply.error_type(), "InvalidGrantIdException");
    }
    root.call("DisableKey", json!({ "KeyId": key })).ok();
    let disabled = create_with(&root, &key, ROLE, &["Decrypt"], json!({}));
    assert_eq!(disabled.error_type(), "DisabledException");
}

#[test]
fn conditions_look_at_the_new_grant() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
    let may = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:CreateGrant", "Resource": "*",
        "Condition": {
            "ForAllValues:StringEquals": { "kms:GrantOperations": ["Encrypt", "Decrypt"] },
            "StringEquals": { "kms:GrantConstraintType": "EncryptionContextSubset", "kms:GranteePrincipal": USER,
                "kms:RetiringPrincipal": ROLE },
            "Bool": { "kms:GrantIsForAWSResource": "false" } } });
    root.put_policy(&key, &json!([admin, may])).ok();
    let good = json!({ "KeyId": key, "GranteePrincipal": USER, "RetiringPrincipal": ROLE, "Operations": ["Decrypt"],
        "Constraints": { "EncryptionContextSubset": { "a": "b" } } });
    role.call("CreateGrant", good.clone()).ok();
    for (member, value) in [
        ("GranteePrincipal", json!(ROLE)),
        ("RetiringPrincipal", json!(USER)),
        ("RetiringPrincipal", Value::Null),
        ("Operations", json!(["Decrypt", "DescribeKey"])),
        (
            "Constraints",
            json!({ "EncryptionContextEquals": { "a": "b" } }),
        ),
        ("Constraints", Value::Null),
    ] {
        let mut input = good.clone();
        input[member] = value;
        let reply = role.call("CreateGrant", input.clone());
        assert_eq!(reply.error_type(), "AccessDeniedException", "{input}");
    }
}

#[test]
fn grants_outlive_the_process_and_go_with_their_key() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let server = Server::start(directory.path(), &arguments);
    let key = server.client().create_key();
    let grant = create(&server.client(), &key, ROLE, &["Decrypt"]);
    let revoked = create(&server.client(), &key, ROLE, &["Decrypt"]);
    let input = json!({ "KeyId": key, "GrantId": revoked["GrantId"] });
    server.client().call("RevokeGrant", input).ok();
    server.kill();
    let server = Server::start(directory.path(), &arguments);
    let entries = list(&server.client(), &key);
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!(entry["GrantId"], grant["GrantId"]);
    assert_eq!(entry["GranteePrincipal"], ROLE);
    assert_eq!(entry["Operations"], json!(["Decrypt"]));
    assert_eq!(entry["IssuingAccount"], "arn:aws:iam::000000000000:root");
    assert_eq!(
        entry["KeyId"],
        format!("arn:aws:kms:eu-west-1:000000000000:key/{key}")
    );
}

#[test]
fn a_grant_reaches_over_accounts() {
    let server = Server::tls();
    let root = server.client();
    let foreign = "arn:aws:iam::111122223333:role/app";
    let role = server.principal(foreign);
    let key = root.create_key();
    let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    create(&root, &key, foreign, &["DescribeKey"]);
    role.call("DescribeKey", json!({ "KeyId": arn })).ok();
    assert_eq!(
        role.call("GetKeyPolicy", json!({ "KeyId": arn }))
            .error_type(),
        "AccessDeniedException"
    );
}
