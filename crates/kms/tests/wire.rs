//! The server as its callers see it: signed requests over HTTP and TLS, errors, limits, the command line.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Client, Server, plaintext};
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::000000000000:role/app";

#[test]
fn encrypt_and_decrypt() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let context = json!({ "tenant": "a", "purpose": "test" });
    let blob = client.encrypt(&key, b"hello", context.clone());
    let output = client.decrypt(&blob, context.clone()).ok();
    assert_eq!(plaintext(&output), b"hello");
    let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    assert_eq!(output["KeyId"], arn);
    assert_eq!(output["EncryptionAlgorithm"], "SYMMETRIC_DEFAULT");
    assert_eq!(output["KeyMaterialId"].as_str().unwrap().len(), 64);

    let other = client.create_key();
    let named = |key: &str| {
        let input = json!({ "CiphertextBlob": blob, "EncryptionContext": context, "KeyId": key });
        client.call("Decrypt", input)
    };
    assert_eq!(plaintext(&named(&key).ok()), b"hello");
    assert_eq!(plaintext(&named(&arn).ok()), b"hello");
    assert_eq!(
        named(&other).error(),
        (
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation."
        )
    );
    for wrong in [
        json!({}),
        json!({ "tenant": "a" }),
        json!({ "tenant": "b", "purpose": "test" }),
    ] {
        assert_eq!(
            client.decrypt(&blob, wrong).error_type(),
            "InvalidCiphertextException"
        );
    }
    let mut bytes = STANDARD.decode(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let damaged = client.decrypt(&STANDARD.encode(&bytes), context);
    assert_eq!(damaged.error_type(), "InvalidCiphertextException");
}

#[test]
fn ciphertexts_of_unknown_keys() {
    let (server, other) = (Server::dev(), Server::dev());
    let key = other.client().create_key();
    let blob = other.client().encrypt(&key, b"x", json!({}));
    let expected = (
        "AccessDeniedException",
        "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.",
    );
    assert_eq!(server.client().decrypt(&blob, json!({})).error(), expected);
    let mut elsewhere = other.client();
    elsewhere.region = "us-east-1".to_owned();
    assert_eq!(elsewhere.decrypt(&blob, json!({})).error(), expected);
}

#[test]
fn data_keys_and_re_encryption() {
    let server = Server::dev();
    let client = server.client();
    let (key, other) = (client.create_key(), client.create_key());
    for (size, length) in [
        (json!({ "KeySpec": "AES_256" }), 32),
        (json!({ "KeySpec": "AES_128" }), 16),
        (json!({ "NumberOfBytes": 1 }), 1),
        (json!({ "NumberOfBytes": 1024 }), 1024),
    ] {
        let mut input = size.clone();
        input["KeyId"] = json!(key);
        let output = client.call("GenerateDataKey", input.clone()).ok();
        assert_eq!(plaintext(&output).len(), length);
        let blob = output["CiphertextBlob"].as_str().unwrap();
        assert_eq!(
            plaintext(&client.decrypt(blob, json!({})).ok()),
            plaintext(&output)
        );
        let without = client.call("GenerateDataKeyWithoutPlaintext", input).ok();
        assert!(without.get("Plaintext").is_none());
        let blob = without["CiphertextBlob"].as_str().unwrap();
        assert_eq!(
            plaintext(&client.decrypt(blob, json!({})).ok()).len(),
            length
        );
    }
    for size in [
        json!({}),
        json!({ "KeySpec": "AES_256", "NumberOfBytes": 32 }),
    ] {
        let mut input = size;
        input["KeyId"] = json!(key);
        let error = client.call("GenerateDataKey", input);
        assert_eq!(
            error.error(),
            (
                "ValidationException",
                "Please specify either number of bytes or key spec."
            )
        );
    }

    let blob = client.encrypt(&key, b"hello", json!({ "a": "1" }));
    let output = client
        .call(
            "ReEncrypt",
            json!({
                "CiphertextBlob": blob, "SourceEncryptionContext": { "a": "1" },
                "DestinationKeyId": other, "DestinationEncryptionContext": { "b": "2" },
            }),
        )
        .ok();
    assert!(output["SourceKeyId"].as_str().unwrap().ends_with(&key));
    assert!(output["KeyId"].as_str().unwrap().ends_with(&other));
    let moved = output["CiphertextBlob"].as_str().unwrap();
    assert_eq!(
        plaintext(&client.decrypt(moved, json!({ "b": "2" })).ok()),
        b"hello"
    );
    assert_eq!(
        client.decrypt(moved, json!({ "a": "1" })).error_type(),
        "InvalidCiphertextException"
    );

    let random = client
        .call("GenerateRandom", json!({ "NumberOfBytes": 24 }))
        .ok();
    assert_eq!(plaintext(&random).len(), 24);
}

#[test]
fn dry_runs_change_nothing_and_say_so() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let expected = (
        "DryRunOperationException",
        "The request would have succeeded, but the DryRun option is set.",
    );
    let input = json!({ "KeyId": key, "Plaintext": "eA==", "DryRun": true });
    assert_eq!(client.call("Encrypt", input).error(), expected);
    let input = json!({ "KeyId": key, "KeySpec": "AES_256", "DryRun": true });
    assert_eq!(client.call("GenerateDataKey", input).error(), expected);
}

#[test]
fn the_life_of_a_key() {
    let server = Server::dev();
    let client = server.client();
    let output = client
        .call("CreateKey", json!({ "Description": "first" }))
        .ok();
    let key = output["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let describe =
        || client.call("DescribeKey", json!({ "KeyId": key })).ok()["KeyMetadata"].clone();
    assert_eq!(describe(), output["KeyMetadata"]);
    assert_eq!(describe()["Description"], "first");
    let arn = describe()["Arn"].as_str().unwrap().to_owned();
    let encrypt = || client.call("Encrypt", json!({ "KeyId": key, "Plaintext": "eA==" }));

    client.call("DisableKey", json!({ "KeyId": key })).ok();
    assert_eq!(describe()["KeyState"], "Disabled");
    assert_eq!(
        encrypt().error(),
        ("DisabledException", format!("{arn} is disabled.").as_str())
    );
    client.call("EnableKey", json!({ "KeyId": key })).ok();
    encrypt().ok();

    client
        .call(
            "UpdateKeyDescription",
            json!({ "KeyId": key, "Description": "second" }),
        )
        .ok();
    assert_eq!(describe()["Description"], "second");

    let outside = client.call(
        "ScheduleKeyDeletion",
        json!({ "KeyId": key, "PendingWindowInDays": 6 }),
    );
    assert_eq!(outside.error_type(), "ValidationException");
    let output = client
        .call(
            "ScheduleKeyDeletion",
            json!({ "KeyId": key, "PendingWindowInDays": 7 }),
        )
        .ok();
    assert_eq!(
        (&output["KeyId"], &output["KeyState"]),
        (&json!(arn), &json!("PendingDeletion"))
    );
    assert_eq!(describe()["DeletionDate"], output["DeletionDate"]);
    let pending = format!("{arn} is pending deletion.");
    assert_eq!(
        encrypt().error(),
        ("KMSInvalidStateException", pending.as_str())
    );
    for operation in ["EnableKey", "DisableKey", "ScheduleKeyDeletion"] {
        let error = client.call(operation, json!({ "KeyId": key }));
        assert_eq!(
            error.error(),
            ("KMSInvalidStateException", pending.as_str()),
            "{operation}"
        );
    }
    client
        .call("CancelKeyDeletion", json!({ "KeyId": key }))
        .ok();
    assert_eq!(describe()["KeyState"], "Disabled");
    let again = client.call("CancelKeyDeletion", json!({ "KeyId": key }));
    assert_eq!(again.error_type(), "KMSInvalidStateException");
}

#[test]
fn keys_are_of_their_region() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let mut elsewhere = client.clone();
    elsewhere.region = "us-east-1".to_owned();
    let missing = format!("Key 'arn:aws:kms:us-east-1:000000000000:key/{key}' does not exist");
    let reply = elsewhere.call("DescribeKey", json!({ "KeyId": key }));
    assert_eq!(reply.error(), ("NotFoundException", missing.as_str()));
    let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    let reply = elsewhere.call("DescribeKey", json!({ "KeyId": arn }));
    assert_eq!(
        reply.error(),
        ("NotFoundException", "Invalid arn eu-west-1")
    );
    assert_eq!(
        elsewhere.call("ListKeys", json!({})).ok()["Keys"],
        json!([])
    );
}

#[test]
fn aliases() {
    let server = Server::dev();
    let client = server.client();
    let (key, other) = (client.create_key(), client.create_key());
    let create = |name: &str, target: &str| {
        client.call(
            "CreateAlias",
            json!({ "AliasName": name, "TargetKeyId": target }),
        )
    };
    create("alias/app", &key).ok();
    let exists =
        "An alias with the name arn:aws:kms:eu-west-1:000000000000:alias/app already exists";
    assert_eq!(
        create("alias/app", &other).error(),
        ("AlreadyExistsException", exists)
    );
    let blob = client.encrypt("alias/app", b"x", json!({}));
    client.encrypt(
        "arn:aws:kms:eu-west-1:000000000000:alias/app",
        b"x",
        json!({}),
    );

    client
        .call(
            "UpdateAlias",
            json!({ "AliasName": "alias/app", "TargetKeyId": other }),
        )
        .ok();
    let described = client
        .call("DescribeKey", json!({ "KeyId": "alias/app" }))
        .ok();
    assert_eq!(described["KeyMetadata"]["KeyId"], json!(other));
    assert_eq!(plaintext(&client.decrypt(&blob, json!({})).ok()), b"x");

    client
        .call("DeleteAlias", json!({ "AliasName": "alias/app" }))
        .ok();
    let missing = (
        "NotFoundException",
        "Alias arn:aws:kms:eu-west-1:000000000000:alias/app is not found.",
    );
    assert_eq!(
        client
            .call("DescribeKey", json!({ "KeyId": "alias/app" }))
            .error(),
        missing
    );
    assert_eq!(
        client
            .call("DeleteAlias", json!({ "AliasName": "alias/app" }))
            .error(),
        missing
    );
    let update = client.call(
        "UpdateAlias",
        json!({ "AliasName": "alias/app", "TargetKeyId": key }),
    );
    assert_eq!(update.error(), missing);
}

#[test]
fn alias_names() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let create = |name: &str, target: &str| {
        let input = json!({ "AliasName": name, "TargetKeyId": target });
        client.call("CreateAlias", input)
    };
    for (name, expected) in [
        (
            "app",
            (
                "ValidationException",
                "Alias must start with the prefix \"alias/\". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html",
            ),
        ),
        (
            "alias/a:b",
            (
                "ValidationException",
                "alias/a:b contains invalid characters for an alias",
            ),
        ),
        ("alias/aws/kms", ("NotAuthorizedException", "")),
        (
            "alias/a b",
            (
                "ValidationException",
                "1 validation error detected: Value 'alias/a b' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$",
            ),
        ),
    ] {
        assert_eq!(create(name, &key).error(), expected, "{name}");
    }
    create("alias/b", &key).ok();
    assert_eq!(
        create("alias/c", "alias/b").error(),
        (
            "ValidationException",
            "Aliases must refer to keys. Not aliases"
        )
    );
}

#[test]
fn keys_are_not_managed_through_aliases() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let alias = json!({ "AliasName": "alias/a", "TargetKeyId": key });
    client.call("CreateAlias", alias).ok();
    let manage = [
        "CancelKeyDeletion",
        "DisableKey",
        "EnableKey",
        "GetKeyPolicy",
        "ListKeyPolicies",
        "ScheduleKeyDeletion",
    ];
    for operation in manage {
        let reply = client.call(operation, json!({ "KeyId": "alias/a" }));
        let expected = ("NotFoundException", "Invalid keyId 'alias/a'");
        assert_eq!(reply.error(), expected, "{operation}");
    }
}

#[test]
fn lists_come_in_pages() {
    let server = Server::dev();
    let client = server.client();
    let mut keys: Vec<String> = (0..5).map(|_| client.create_key()).collect();
    keys.sort();
    let names: Vec<String> = (0..5).map(|n| format!("alias/a{n}")).collect();
    for (name, key) in names.iter().zip(&keys) {
        client
            .call(
                "CreateAlias",
                json!({ "AliasName": name, "TargetKeyId": key }),
            )
            .ok();
    }
    let all = |operation: &str, list: &str, member: &str, limit: i64| {
        let (mut found, mut pages, mut marker) = (Vec::new(), 0, Value::Null);
        loop {
            let input = json!({ "Limit": limit, "Marker": marker });
            let output = client.call(operation, input).ok();
            let page = output[list].as_array().unwrap().clone();
            found.extend(
                page.iter()
                    .map(|item| item[member].as_str().unwrap().to_owned()),
            );
            pages += 1;
            if output["Truncated"] == json!(false) {
                assert!(output.get("NextMarker").is_none());
                return (found, pages);
            }
            marker = output["NextMarker"].clone();
        }
    };
    assert_eq!(all("ListKeys", "Keys", "KeyId", 2), (keys.clone(), 3));
    assert_eq!(all("ListKeys", "Keys", "KeyId", 5), (keys.clone(), 1));
    assert_eq!(
        all("ListAliases", "Aliases", "AliasName", 3),
        (names.clone(), 2)
    );
    let one = client.call("ListAliases", json!({ "KeyId": keys[3] })).ok();
    assert_eq!(one["Aliases"][0]["AliasName"], json!(names[3]));
    assert_eq!(one["Aliases"].as_array().unwrap().len(), 1);
    for (owners, count) in [(json!(["SELF"]), 5), (json!(["OTHER_ACCOUNTS_VIA_RAM"]), 0)] {
        let output = client
            .call("ListKeys", json!({ "ResourceOwners": owners }))
            .ok();
        assert_eq!(output["Keys"].as_array().unwrap().len(), count);
    }
    let bad = client.call("ListKeys", json!({ "Marker": "§" }));
    assert_eq!(bad.error_type(), "InvalidMarkerException");
    let bad = client.call("ListKeys", json!({ "Limit": 1001 }));
    assert_eq!(
        bad.error(),
        (
            "ValidationException",
            "1 validation error detected: Value '1001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000"
        )
    );
}

/// A marker is of one list: another operation would skip what stands before it.
#[test]
fn markers_are_of_one_list() {
    let server = Server::dev();
    let client = server.client();
    let keys = [client.create_key(), client.create_key()];
    let tags: Vec<Value> = (0..2)
        .map(|n| json!({ "TagKey": format!("t{n}"), "TagValue": "" }))
        .collect();
    let input = json!({ "KeyId": keys[0], "Tags": tags });
    client.call("TagResource", input).ok();
    let page = client.call("ListKeys", json!({ "Limit": 1 })).ok();
    let marker = page["NextMarker"].as_str().unwrap();
    let grantee = "arn:aws:iam::000000000000:root";
    let input = json!({ "KeyId": keys[0], "Marker": marker, "RetiringPrincipal": grantee });
    client.call("ListKeys", json!({ "Marker": marker })).ok();
    for operation in [
        "ListAliases",
        "ListGrants",
        "ListResourceTags",
        "ListKeyRotations",
        "ListRetirableGrants",
    ] {
        let reply = client.call(operation, input.clone());
        let text = format!("Invalid marker '{marker}'");
        let expected = ("InvalidMarkerException", text.as_str());
        assert_eq!(reply.error(), expected, "{operation}");
    }
    let input = json!({ "KeyId": keys[0], "Limit": 1 });
    let page = client.call("ListResourceTags", input).ok();
    let input = json!({ "KeyId": keys[0], "Marker": page["NextMarker"] });
    let rest = client.call("ListResourceTags", input).ok();
    assert_eq!(rest["Tags"], json!([{ "TagKey": "t1", "TagValue": "" }]));
}

#[test]
fn a_key_has_fifty_aliases_at_most() {
    let server = Server::dev();
    let client = server.client();
    let (full, other) = (client.create_key(), client.create_key());
    let create = |name: &str, key: &str| {
        let input = json!({ "AliasName": name, "TargetKeyId": key });
        client.call("CreateAlias", input)
    };
    for number in 0..50 {
        create(&format!("alias/{number}"), &full).ok();
    }
    create("alias/other", &other).ok();
    let point = |name: &str, key: &str| {
        let input = json!({ "AliasName": name, "TargetKeyId": key });
        client.call("UpdateAlias", input)
    };
    let text = format!(
        "arn:aws:kms:eu-west-1:000000000000:key/{full} has 50 aliases, no more are allowed."
    );
    let expected = ("LimitExceededException", text.as_str());
    assert_eq!(create("alias/50", &full).error(), expected);
    assert_eq!(point("alias/other", &full).error(), expected);
    // One that it has already stays, and one that goes makes room.
    point("alias/0", &full).ok();
    point("alias/1", &other).ok();
    point("alias/other", &full).ok();
}

fn admin() -> Value {
    json!({ "Sid": "Admin", "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" })
}

#[test]
fn policies_bind_roles() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    let blob = root.encrypt(&key, b"secret", json!({ "tenant": "a" }));
    let denial = |because: &str| {
        format!(
            "User: {ROLE} is not authorized to perform: kms:Decrypt on resource: {arn} {because}"
        )
    };
    let decrypt = || role.decrypt(&blob, json!({ "tenant": "a" }));

    // The default policy leaves roles to identity policies, and there are none.
    let text = denial("because no identity-based policy allows the kms:Decrypt action");
    assert_eq!(decrypt().error(), ("AccessDeniedException", text.as_str()));

    let app = |tenant: &str| {
        json!({ "Sid": "App", "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:Decrypt",
                "Resource": "*", "Condition": { "StringEquals": { "kms:EncryptionContext:tenant": tenant } } })
    };
    root.put_policy(&key, &json!([admin(), app("b")])).ok();
    let text = denial("because no resource-based policy allows the kms:Decrypt action");
    assert_eq!(decrypt().error(), ("AccessDeniedException", text.as_str()));

    root.put_policy(&key, &json!([admin(), app("a")])).ok();
    assert_eq!(plaintext(&decrypt().ok()), b"secret");
    let encrypt = role.call("Encrypt", json!({ "KeyId": key, "Plaintext": "eA==" }));
    assert_eq!(encrypt.error_type(), "AccessDeniedException");

    let deny =
        json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*" });
    root.put_policy(&key, &json!([admin(), app("a"), deny]))
        .ok();
    let text = denial("with an explicit deny in a resource-based policy");
    assert_eq!(decrypt().error(), ("AccessDeniedException", text.as_str()));

    // What the caller was not told stands in the audit trail.
    let events = server.audit(10);
    let denied: Vec<&Value> = events
        .iter()
        .filter(|event| event["eventName"] == "Decrypt" && event["errorCode"] == "AccessDenied")
        .collect();
    assert_eq!(denied.len(), 3);
    let statements = &denied[1]["additionalEventData"]["denial"]["statements"];
    assert_eq!(
        statements[1],
        json!({
            "statement": 2, "sid": "App", "effect": "Allow", "outcome": "conditions not met",
            "conditions": [{
                "operator": "StringEquals", "key": "kms:EncryptionContext:tenant",
                "expected": ["b"], "presented": ["a"],
            }],
        })
    );
    assert_eq!(denied[1]["userIdentity"]["arn"], ROLE);
    assert!(
        server
            .log()
            .contains("kms:EncryptionContext:tenant expected b, presented a")
    );
}

#[test]
fn policies_are_checked_when_they_are_put() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let put = |policy: &str| {
        client.call(
            "PutKeyPolicy",
            json!({ "KeyId": key, "PolicyName": "default", "Policy": policy }),
        )
    };
    assert_eq!(put("{").error_type(), "MalformedPolicyDocumentException");
    assert_eq!(put("").error_type(), "ValidationException");
    let lockout = json!([{ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:*", "Resource": "*" }]);
    assert_eq!(
        client.put_policy(&key, &lockout).error(),
        (
            "MalformedPolicyDocumentException",
            "The new key policy will not allow you to update the key policy in the future."
        )
    );
    let policy = json!({ "Version": "2012-10-17", "Statement": lockout }).to_string();
    let bypass = json!({ "KeyId": key, "PolicyName": "default", "Policy": policy, "BypassPolicyLockoutSafetyCheck": true });
    client.call("PutKeyPolicy", bypass).ok();
    assert_eq!(
        client
            .call("GetKeyPolicy", json!({ "KeyId": key }))
            .error_type(),
        "AccessDeniedException"
    );

    let output = client.call("CreateKey", json!({ "Policy": json!({ "Version": "2012-10-17", "Statement": [admin()] }).to_string() })).ok();
    let key = output["KeyMetadata"]["KeyId"].as_str().unwrap();
    let policy = client
        .call(
            "GetKeyPolicy",
            json!({ "KeyId": key, "PolicyName": "default" }),
        )
        .ok();
    let policy: Value = serde_json::from_str(policy["Policy"].as_str().unwrap()).unwrap();
    assert_eq!(policy["Statement"][0], admin());
    let other = client.call(
        "GetKeyPolicy",
        json!({ "KeyId": key, "PolicyName": "other" }),
    );
    assert_eq!(
        other.error(),
        ("NotFoundException", "No such policy exists")
    );
    let names = client.call("ListKeyPolicies", json!({ "KeyId": key })).ok();
    assert_eq!(names["PolicyNames"], json!(["default"]));
}

#[test]
fn what_this_server_cannot_do_it_refuses() {
    let server = Server::dev();
    let client = server.client();
    for input in [
        json!({ "KeySpec": "SM2", "KeyUsage": "ENCRYPT_DECRYPT" }),
        json!({ "Origin": "AWS_CLOUDHSM" }),
        json!({ "Origin": "EXTERNAL", "KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE" }),
    ] {
        assert_eq!(
            client.call("CreateKey", input).error_type(),
            "UnsupportedOperationException"
        );
    }
    client
        .call(
            "CreateKey",
            json!({ "MultiRegion": false, "Tags": [], "KeySpec": "SYMMETRIC_DEFAULT" }),
        )
        .ok();
    assert_eq!(
        client
            .call("DescribeCustomKeyStores", json!({}))
            .error_type(),
        "UnsupportedOperationException"
    );
    assert_eq!(
        client.call("Nonsense", json!({})).error_type(),
        "UnknownOperationException"
    );
}

#[test]
fn signatures_are_checked() {
    let server = Server::tls();
    let client = server.client();
    let list = |client: &Client| client.call("ListKeys", json!({}));
    list(&client).ok();

    let wrong = Client {
        secret: "tesT".to_owned(),
        ..client.clone()
    };
    assert_eq!(list(&wrong).error_type(), "InvalidSignatureException");
    let unknown = Client {
        id: "AKIAUNKNOWN".to_owned(),
        ..client.clone()
    };
    assert_eq!(
        list(&unknown).error(),
        (
            "UnrecognizedClientException",
            "The security token included in the request is invalid."
        )
    );
    for skew in [-301, 301] {
        let skewed = Client {
            skew,
            ..client.clone()
        };
        assert_eq!(
            list(&skewed).error_type(),
            "InvalidSignatureException",
            "{skew}"
        );
    }
    let target = "TrentService.ListKeys";
    let mut headers = client.signed(target, b"{}");
    let changed = client.send("POST", "/", &headers, b"{\"Limit\":1}");
    assert_eq!(changed.error_type(), "InvalidSignatureException");
    headers[2].1 = "TrentService.CreateKey".to_owned();
    let changed = client.send("POST", "/", &headers, b"{}");
    assert_eq!(changed.error_type(), "InvalidSignatureException");
    let unsigned: Vec<_> = client.signed(target, b"{}").into_iter().take(3).collect();
    let reply = client.send("POST", "/", &unsigned, b"{}");
    assert_eq!(
        reply.error(),
        (
            "MissingAuthenticationTokenException",
            "Missing Authentication Token"
        )
    );
    assert_eq!(reply.status, 400);
    assert!(
        reply
            .headers
            .contains("x-amzn-errortype: missingauthenticationtokenexception")
    );
    assert!(reply.headers.contains("x-amzn-requestid: "));

    // Nobody has a session, but emulators' users give the development key a token by habit.
    let token = Some("test".to_owned());
    let with_token = Client {
        token: token.clone(),
        ..client.clone()
    };
    list(&with_token).ok();
    let root = server.principal("arn:aws:iam::000000000000:root");
    list(&root).ok();
    let with_token = Client { token, ..root };
    assert_eq!(
        list(&with_token).error_type(),
        "UnrecognizedClientException"
    );

    // The development credentials stay on the loopback listener.
    let outside = Client {
        address: server.https.unwrap(),
        tls: Some(server.data.join("tls/ca.pem")),
        ..client
    };
    assert_eq!(list(&outside).error_type(), "UnrecognizedClientException");
}

/// MongoDB's drivers know the headers of an answer in this case alone.
#[test]
fn headers_are_written_as_aws_writes_them() {
    let server = Server::dev();
    let client = server.client();
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let reply = String::from_utf8(client.raw(request)).unwrap();
    for header in ["Content-Length: 15", "Content-Type: application/json"] {
        assert!(reply.lines().any(|line| line == header), "{reply}");
    }
}

#[test]
fn bodies_that_are_none() {
    let server = Server::dev();
    let client = server.client();
    for body in [
        &b"{"[..],
        b"[]",
        b"null",
        b"{\"KeyId\":5}",
        b"\xff\xfe",
        b"{\"KeyId\":\"a\"}}",
    ] {
        let reply = client.call_bytes("DescribeKey", body);
        assert_eq!(
            (reply.status, reply.error_type()),
            (400, "SerializationException"),
            "{body:?}"
        );
    }
    let input = json!({ "KeyId": client.create_key(), "Plaintext": "not base64!" });
    assert_eq!(
        client.call("Encrypt", input).error_type(),
        "SerializationException"
    );
    let reply = client.call_bytes("DescribeKey", b"");
    assert_eq!(
        reply.error(),
        (
            "ValidationException",
            "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null"
        )
    );
    let deep = "[".repeat(100_000);
    let reply = client.call_bytes("DescribeKey", format!("{{\"KeyId\":{deep}").as_bytes());
    assert_eq!(reply.error_type(), "SerializationException");

    let reply = client.call_bytes("DescribeKey", &vec![b' '; 512 * 1024 + 1]);
    assert_eq!(
        (reply.status, reply.error_type()),
        (413, "RequestEntityTooLargeException")
    );
    let reply = client.call_bytes(
        "ListKeys",
        &[b" ".repeat(512 * 1024 - 2), b"{}".to_vec()].concat(),
    );
    assert_eq!(reply.status, 200);

    let reply = client.send("GET", "/", &[], b"");
    assert_eq!(
        (reply.status, reply.error_type()),
        (404, "UnknownOperationException")
    );
    let reply = client.send("GET", "/health", &[], b"");
    assert_eq!(
        (reply.status, &reply.body),
        (200, &json!({ "status": "ok" }))
    );
    let garbage = client.raw(b"\x16\x03\x01\x02\x00garbage\r\n\r\n");
    assert!(
        garbage.starts_with(b"HTTP/1.1 400"),
        "{}",
        String::from_utf8_lossy(&garbage)
    );
}

#[test]
fn addresses_are_the_clients_own_on_a_socket_of_both_families() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "[::]:0", "--dev-listen", "127.0.0.1:0"];
    let server = Server::start(directory.path(), &arguments);
    let mut client = server.principal("arn:aws:iam::000000000000:root");
    client.address = ([127, 0, 0, 1], server.https.unwrap().port()).into();
    let key = client.create_key();
    let statements = json!([
        { "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" },
        { "Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*",
          "Condition": { "IpAddress": { "aws:SourceIp": "127.0.0.0/8" } } },
    ]);
    client.put_policy(&key, &statements).ok();
    let reply = client.call("Encrypt", json!({ "KeyId": key, "Plaintext": "AAAA" }));
    assert_eq!(reply.error_type(), "AccessDeniedException");
    let denied = server
        .audit(1)
        .into_iter()
        .find(|event| event["eventName"] == "Encrypt");
    assert_eq!(denied.unwrap()["sourceIPAddress"], "127.0.0.1");
}

#[test]
fn secrets_stay_out_of_log_and_audit() {
    let server = Server::tls();
    let client = server.client();
    let role = server.principal(ROLE);
    let key = client.create_key();
    let secret = b"a plaintext that must not be seen anywhere";
    let blob = client.encrypt(&key, secret, json!({ "tenant": "a" }));
    client.decrypt(&blob, json!({ "tenant": "a" })).ok();
    role.decrypt(&blob, json!({ "tenant": "a" }));
    let too_long = STANDARD.encode(vec![b'z'; 5000]);
    client.call("Encrypt", json!({ "KeyId": key, "Plaintext": too_long }));
    let audit = server
        .audit(5)
        .iter()
        .map(Value::to_string)
        .collect::<String>();
    let log = server.log();
    assert!(log.contains("TRACE") && audit.contains("tenant"));
    let plain = String::from_utf8_lossy(secret);
    let root_key = std::fs::read(server.data.join("root.key")).unwrap();
    for needle in [
        plain.as_ref(),
        &STANDARD.encode(secret),
        &blob,
        &too_long[..100],
        &role.secret,
        &hex::encode(root_key),
    ] {
        assert!(!log.contains(needle) && !audit.contains(needle), "{needle}");
    }
}

#[test]
fn other_accounts_need_both_sides() {
    let server = Server::tls();
    let owner = server.client();
    let key = owner.create_key();
    let arn = format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    let foreign_root = server.principal("arn:aws:iam::111122223333:root");
    let foreign_role = server.principal("arn:aws:iam::111122223333:role/app");
    let denied = |client: &Client, key: &str| {
        let reply = client.call("DescribeKey", json!({ "KeyId": key }));
        let (kind, text) = reply.error();
        assert_eq!(kind, "AccessDeniedException");
        assert!(
            text.ends_with("or a resource-based policy explicitly denies access"),
            "{text}"
        );
    };
    // A key that exists and one that does not look the same from outside.
    denied(&foreign_root, &arn);
    denied(
        &foreign_root,
        &arn.replace(&key, "1234abcd-12ab-34cd-56ef-1234567890ab"),
    );
    let share = json!({ "Effect": "Allow", "Principal": { "AWS": ["111122223333", "arn:aws:iam::111122223333:role/app"] },
        "Action": "kms:DescribeKey", "Resource": "*" });
    owner.put_policy(&key, &json!([admin(), share])).ok();
    foreign_root
        .call("DescribeKey", json!({ "KeyId": arn }))
        .ok();
    // The role would also need a policy of its own account.
    denied(&foreign_role, &arn);
    // A ciphertext does not tell a stranger which key it is of.
    let blob = owner.encrypt(&key, b"x", json!({}));
    let reply = foreign_root.decrypt(&blob, json!({}));
    let (kind, text) = reply.error();
    assert_eq!(kind, "AccessDeniedException");
    assert!(
        text.starts_with("The ciphertext refers to a customer master key that does not exist"),
        "{text}"
    );
}

#[test]
fn new_policies_are_looked_through() {
    let pins = |names: &[&str]| {
        let values: serde_json::Map<String, Value> = names
            .iter()
            .map(|name| {
                (
                    format!("kms:RecipientAttestation:{name}"),
                    json!("ab".repeat(48)),
                )
            })
            .collect();
        json!({ "Sid": "Release", "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:Decrypt",
                "Resource": "*", "Condition": { "StringEqualsIgnoreCase": values } })
    };
    let good = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "NotAction": [
        "kms:Decrypt", "kms:ReEncryptFrom", "kms:DeriveSharedSecret", "kms:CreateGrant", "kms:PutKeyPolicy"],
        "Resource": "*" });
    let put = |server: &Server, statements: Value| {
        let policy = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        let input = json!({ "Policy": policy, "BypassPolicyLockoutSafetyCheck": true });
        server.client().call("CreateKey", input)
    };
    let header = |reply: &common::Reply| {
        reply
            .headers
            .lines()
            .find_map(|line| line.strip_prefix("x-enclos-policy-warnings: "))
            .map(str::to_owned)
    };
    let server = Server::dev();
    let weak = put(&server, json!([admin(), pins(&["PCR3"])]));
    assert_eq!(weak.status, 200);
    assert_eq!(
        header(&weak).unwrap(),
        "delegation-bypass=1, admits-debug=2"
    );
    assert!(server.log().contains("debug-mode enclaves, whose memory"));
    let partial = put(&server, json!([good, pins(&["PCR0"])]));
    assert_eq!(header(&partial).unwrap(), "lockout, partial-image=2");
    let whole = put(&server, json!([good, pins(&["PCR0", "PCR1", "PCR2"])]));
    assert_eq!(header(&whole).unwrap(), "lockout");

    let strict = Server::with(&["--strict-policies"]);
    let refused = put(&strict, json!([good, pins(&["PCR0"])]));
    let (kind, text) = refused.error();
    assert_eq!(kind, "MalformedPolicyDocumentException");
    assert!(
        text.starts_with("Refused by --strict-policies: statement 2 (\"Release\") pins PCR0"),
        "{text}"
    );
    let accepted = put(&strict, json!([good, pins(&["PCR0", "PCR1", "PCR2"])]));
    assert_eq!(accepted.status, 200);
    strict.client().create_key();
}
