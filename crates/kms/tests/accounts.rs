//! What another account may do with a key, and what it learns of one that it may do nothing with.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;

use common::{Client, Reply, Server, create};
use enclos_kms::ops::{Effect, OPERATIONS};
use serde_json::{Value, json};

const OWNER: &str = "arn:aws:kms:eu-west-1:000000000000";
const OTHER: &str = "arn:aws:iam::111122223333:root";

/// Operations that name no key, or one by an alias of the caller's own.
const WITHOUT_KEY: &[&str] = &[
    "CreateKey",
    "DeleteAlias",
    "GenerateRandom",
    "ListKeys",
    "ListRetirableGrants",
];

/// AWS's "Cross-account use: No", from its model of the API.
const OWN_ALONE: &[&str] = &[
    "CancelKeyDeletion",
    "CreateAlias",
    "DeleteImportedKeyMaterial",
    "DisableKey",
    "DisableKeyRotation",
    "EnableKey",
    "EnableKeyRotation",
    "GetKeyLastUsage",
    "GetKeyPolicy",
    "GetParametersForImport",
    "ImportKeyMaterial",
    "ListAliases",
    "ListKeyPolicies",
    "ListKeyRotations",
    "ListResourceTags",
    "PutKeyPolicy",
    "ReplicateKey",
    "RotateKeyOnDemand",
    "ScheduleKeyDeletion",
    "TagResource",
    "UntagResource",
    "UpdateAlias",
    "UpdateKeyDescription",
    "UpdatePrimaryRegion",
];

/// Valid inputs of every operation that takes a key, for one key. `own` and `blob` are a key of the caller's and a ciphertext under it.
fn inputs(key: &str, own: &str, blob: &str) -> Vec<(&'static str, Value)> {
    let grant = "ab".repeat(32);
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*" }] })
    .to_string();
    let tags = json!([{ "TagKey": "a", "TagValue": "b" }]);
    let mut inputs: Vec<_> = OPERATIONS
        .iter()
        .filter(|(name, effect)| *effect != Effect::Refused && !WITHOUT_KEY.contains(name))
        .map(|(name, _)| (*name, json!({ "KeyId": key })))
        .collect();
    for (name, input) in &mut inputs {
        let more = match *name {
            "CreateAlias" => json!({ "AliasName": "alias/new", "TargetKeyId": key }),
            "CreateGrant" => json!({ "GranteePrincipal": OTHER, "Operations": ["Decrypt"] }),
            "Decapsulate" => {
                json!({ "EncapsulationAlgorithm": "ML_KEM", "SharedSecretCiphertextBlob": "AAAA" })
            }
            "Decrypt" => json!({ "CiphertextBlob": blob }),
            "DeriveSharedSecret" => json!({ "KeyAgreementAlgorithm": "ECDH", "PublicKey": "AAAA" }),
            "Encapsulate" => json!({ "EncapsulationAlgorithm": "ML_KEM" }),
            "Encrypt" => json!({ "Plaintext": "AAAA" }),
            "GenerateDataKey" | "GenerateDataKeyWithoutPlaintext" => {
                json!({ "KeySpec": "AES_256" })
            }
            "GenerateDataKeyPair" | "GenerateDataKeyPairWithoutPlaintext" => {
                json!({ "KeyPairSpec": "ECC_NIST_P256" })
            }
            "GenerateMac" => json!({ "Message": "AAAA", "MacAlgorithm": "HMAC_SHA_256" }),
            "GetParametersForImport" => {
                json!({ "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048" })
            }
            "ImportKeyMaterial" => json!({ "ImportToken": "AAAA", "EncryptedKeyMaterial": "AAAA",
                "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE" }),
            "PutKeyPolicy" => json!({ "Policy": policy }),
            "ReEncrypt" => {
                json!({ "CiphertextBlob": blob, "SourceKeyId": key, "DestinationKeyId": own })
            }
            "ReplicateKey" => json!({ "ReplicaRegion": "eu-west-2" }),
            "RetireGrant" | "RevokeGrant" => json!({ "GrantId": grant }),
            "Sign" => json!({ "Message": "AAAA", "SigningAlgorithm": "ECDSA_SHA_256" }),
            "TagResource" => json!({ "Tags": tags }),
            "UntagResource" => json!({ "TagKeys": ["a"] }),
            "UpdateAlias" => json!({ "AliasName": "alias/own", "TargetKeyId": key }),
            "UpdateKeyDescription" => json!({ "Description": "" }),
            "UpdatePrimaryRegion" => json!({ "PrimaryRegion": "eu-west-2" }),
            "Verify" => {
                json!({ "Message": "AAAA", "Signature": "AAAA", "SigningAlgorithm": "ECDSA_SHA_256" })
            }
            "VerifyMac" => {
                json!({ "Message": "AAAA", "Mac": "AAAA", "MacAlgorithm": "HMAC_SHA_256" })
            }
            _ => json!({}),
        };
        let members = input.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
    }
    inputs.push(("Decrypt", json!({ "KeyId": key, "CiphertextBlob": "AAAA" })));
    inputs.push((
        "Decrypt",
        json!({ "KeyId": key, "CiphertextBlob": blob, "GrantTokens": ["AAAA"] }),
    ));
    inputs.push((
        "DescribeKey",
        json!({ "KeyId": key, "GrantTokens": ["AAAA"] }),
    ));
    inputs.push((
        "ReEncrypt",
        json!({ "CiphertextBlob": blob, "DestinationKeyId": key }),
    ));
    inputs.push((
        "ReEncrypt",
        json!({ "CiphertextBlob": blob, "SourceKeyId": key, "DestinationKeyId": key }),
    ));
    inputs
}

/// Status, type and text, in which the name of the key is left out.
fn seen(reply: &Reply, key: &str) -> (u16, String, String) {
    let (kind, text) = reply.error();
    (reply.status, kind.to_owned(), text.replace(key, "KEY"))
}

fn own_key(client: &Client) -> (String, String) {
    let key = client.create_key();
    let blob = client.encrypt(&key, b"x", json!({}));
    let alias = json!({ "AliasName": "alias/own", "TargetKeyId": key });
    client.call("CreateAlias", alias).ok();
    (key, blob)
}

#[test]
fn nobody_learns_which_keys_and_aliases_another_account_has() {
    let server = Server::dev();
    let owner = server.client();
    let stranger = server.principal(OTHER);
    let (own, blob) = own_key(&stranger);
    let mut there = Vec::new();
    for input in [
        json!({}),
        json!({ "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC" }),
        json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY" }),
        json!({ "Origin": "EXTERNAL" }),
    ] {
        there.push(format!("{OWNER}:key/{}", create(&owner, input)));
    }
    let alias = json!({ "AliasName": "alias/there", "TargetKeyId": there[0] });
    owner.call("CreateAlias", alias).ok();
    let nowhere = format!("{OWNER}:key/1234abcd-12ab-34cd-56ef-1234567890ab");
    let mut pairs: Vec<_> = there
        .iter()
        .map(|key| (key.clone(), nowhere.clone()))
        .collect();
    pairs.push((
        format!("{OWNER}:alias/there"),
        format!("{OWNER}:alias/nowhere"),
    ));
    let mut wrong = Vec::new();
    for (there, nowhere) in &pairs {
        let both = inputs(there, &own, &blob)
            .into_iter()
            .zip(inputs(nowhere, &own, &blob));
        for ((operation, about_there), (_, about_nowhere)) in both {
            let exists = seen(&stranger.call(operation, about_there.clone()), there);
            let does_not = seen(&stranger.call(operation, about_nowhere), nowhere);
            if exists != does_not {
                wrong.push(format!(
                    "{operation} {about_there}\n  {exists:?}\n  {does_not:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_refusal_that_no_policy_was_asked_for_is_on_disk_before_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let server = Server::start(directory.path(), &arguments);
    let stranger = server.principal(OTHER);
    let nowhere = format!("{OWNER}:key/1234abcd-12ab-34cd-56ef-1234567890ab");
    let reply = stranger.call("DescribeKey", json!({ "KeyId": nowhere }));
    // It waits for the disk, as one about a key that exists does: the time that an answer takes tells nothing.
    let database = server.database.clone();
    server.kill();
    assert_eq!(reply.error_type(), "AccessDeniedException");
    let server = Server::start_on(directory.path(), database, &arguments);
    let events = server.audit(1);
    assert!(
        events
            .iter()
            .any(|event| event["eventName"] == "DescribeKey")
    );
}

#[test]
fn another_account_manages_nothing_whatever_the_policy_says() {
    let server = Server::dev();
    let owner = server.client();
    let friend = server.principal(OTHER);
    let (own, blob) = own_key(&friend);
    let key = owner.create_key();
    let all = |principal: &str| json!({ "Effect": "Allow", "Principal": { "AWS": principal }, "Action": "kms:*", "Resource": "*" });
    owner
        .put_policy(&key, &json!([all("000000000000"), all(OTHER)]))
        .ok();
    let arn = format!("{OWNER}:key/{key}");
    let mut refused = BTreeSet::new();
    for (operation, input) in inputs(&arn, &own, &blob) {
        let reply = friend.call(operation, input);
        if reply.status != 200 && reply.error_type() == "AccessDeniedException" {
            let text = reply.error().1;
            assert!(
                text.ends_with("explicitly denies access"),
                "{operation}: {text}"
            );
            refused.insert(operation);
        }
    }
    assert_eq!(refused, OWN_ALONE.iter().copied().collect());
    for (operation, input) in [
        ("DescribeKey", json!({ "KeyId": arn })),
        ("GetKeyRotationStatus", json!({ "KeyId": arn })),
        ("ListGrants", json!({ "KeyId": arn })),
        ("Encrypt", json!({ "KeyId": arn, "Plaintext": "AAAA" })),
    ] {
        friend.call(operation, input).ok();
    }
}

#[test]
fn who_may_retire_grants_is_told_to_their_own_account_alone() {
    let server = Server::dev();
    let owner = server.client();
    let stranger = server.principal(OTHER);
    let key = owner.create_key();
    let user = "arn:aws:iam::000000000000:user/alice";
    let parties = [
        ("RetiringPrincipal", user),
        ("RetiringPrincipal", "000000000000"),
        ("RetiringPrincipal", "rds.amazonaws.com"),
        ("RetiringServicePrincipal", "rds.eu-west-1.amazonaws.com"),
    ];
    for (name, party) in parties {
        let grant = json!({ "KeyId": key, "GranteePrincipal": user, "Operations": ["Decrypt"], name: party });
        owner.call("CreateGrant", grant).ok();
    }
    let list = |client: &Client, name: &str, party: &str| {
        let reply = client.call("ListRetirableGrants", json!({ name: party }));
        match reply.status {
            200 => Ok(reply.body["Grants"].as_array().unwrap().len()),
            _ => Err(reply.error_type().to_owned()),
        }
    };
    let denied = Err("AccessDeniedException".to_owned());
    for (name, party) in parties {
        assert_eq!(list(&stranger, name, party), denied, "{party}");
    }
    assert_eq!(list(&owner, "RetiringPrincipal", user), Ok(1));
    assert_eq!(list(&owner, "RetiringPrincipal", "000000000000"), Ok(1));
    // For callers that are AWS services, none of which calls here.
    assert_eq!(list(&owner, parties[3].0, parties[3].1), denied);
    let away = Client {
        region: "eu-west-2".to_owned(),
        ..owner
    };
    assert_eq!(list(&away, "RetiringPrincipal", user), Ok(0));
}
