//! What becomes of key material: rotated, imported, expired, replicated into other regions.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Client, Reply, Server, blob, create, openssl, plaintext};
use enclos_kms::crypto::seal::RootKey;
use enclos_kms::recipient::Trust;
use enclos_kms::service::{Channel, Request, Service};
use enclos_kms::store::Store;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

fn material(client: &Client, key: &str) -> String {
    let output = client.call("DescribeKey", json!({ "KeyId": key })).ok();
    output["KeyMetadata"]["CurrentKeyMaterialId"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn arn(region: &str, key: &str) -> String {
    format!("arn:aws:kms:{region}:000000000000:key/{key}")
}

// --- rotation ---------------------------------------------------------------------------------------

#[test]
fn old_ciphertexts_open_after_rotations() {
    let mut server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let mut made = Vec::new();
    for round in 0..4_u8 {
        made.push((
            material(&client, &key),
            client.encrypt(&key, &[round], json!({})),
        ));
        let output = client
            .call("RotateKeyOnDemand", json!({ "KeyId": key }))
            .ok();
        assert_eq!(output["KeyId"], arn("eu-west-1", &key));
    }
    let check = |client: &Client| {
        for (round, (id, ciphertext)) in made.iter().enumerate() {
            let output = client.decrypt(ciphertext, json!({})).ok();
            assert_eq!(plaintext(&output), [u8::try_from(round).unwrap()]);
            assert_eq!(output["KeyMaterialId"], json!(id));
        }
    };
    check(&client);
    let ids: std::collections::BTreeSet<_> = made.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 4);
    let moved = client
        .call(
            "ReEncrypt",
            json!({ "CiphertextBlob": made[0].1, "DestinationKeyId": key }),
        )
        .ok();
    assert_eq!(moved["SourceKeyMaterialId"], json!(made[0].0));
    assert_eq!(
        moved["DestinationKeyMaterialId"],
        json!(material(&client, &key))
    );

    let list = |input: Value| client.call("ListKeyRotations", input).ok();
    let rotations = list(json!({ "KeyId": key }));
    assert_eq!(rotations["Rotations"].as_array().unwrap().len(), 4);
    assert_eq!(rotations["Rotations"][0]["RotationType"], "ON_DEMAND");
    assert_eq!(rotations["Rotations"][3]["KeyMaterialState"], "CURRENT");
    let page = list(json!({ "KeyId": key, "Limit": 3, "IncludeKeyMaterial": "ALL_KEY_MATERIAL" }));
    assert_eq!(
        (
            page["Rotations"].as_array().unwrap().len(),
            &page["Truncated"]
        ),
        (3, &json!(true))
    );
    assert_eq!(page["Rotations"][0]["KeyMaterialId"], json!(made[0].0));
    assert!(page["Rotations"][0].get("RotationType").is_none());
    let rest = list(
        json!({ "KeyId": key, "Marker": page["NextMarker"], "IncludeKeyMaterial": "ALL_KEY_MATERIAL" }),
    );
    assert_eq!(
        (
            rest["Rotations"].as_array().unwrap().len(),
            &rest["Truncated"]
        ),
        (2, &json!(false))
    );

    server.stop();
    let again = Server::start(&server.data, &["--listen", "127.0.0.1:0", "--dev"]);
    check(&again.client());
}

#[test]
fn rotation_has_its_limits() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let rotate = || client.call("RotateKeyOnDemand", json!({ "KeyId": key }));
    for _ in 0..25 {
        rotate().ok();
    }
    let text = format!(
        "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: {}",
        arn("eu-west-1", &key)
    );
    assert_eq!(rotate().error(), ("LimitExceededException", text.as_str()));

    let enable = |days: i64| {
        client.call(
            "EnableKeyRotation",
            json!({ "KeyId": key, "RotationPeriodInDays": days }),
        )
    };
    let status = || {
        client
            .call("GetKeyRotationStatus", json!({ "KeyId": key }))
            .ok()
    };
    // Recorded: LocalStack's test_rotate_key_on_demand_with_symmetric_key_and_automatic_rotation_disabled.
    assert_eq!(
        status(),
        json!({ "KeyId": arn("eu-west-1", &key), "KeyRotationEnabled": false })
    );
    assert_eq!(enable(89).error_type(), "ValidationException");
    assert_eq!(enable(2561).error_type(), "ValidationException");
    enable(90).ok();
    assert_eq!(
        (
            &status()["KeyRotationEnabled"],
            &status()["RotationPeriodInDays"]
        ),
        (&json!(true), &json!(90))
    );
    let first = status()["NextRotationDate"].as_f64().unwrap();
    enable(180).ok();
    let day = 86_400.0;
    assert!((status()["NextRotationDate"].as_f64().unwrap() - first - 90.0 * day).abs() < 0.01);
    client.call("DisableKey", json!({ "KeyId": key })).ok();
    assert_eq!(enable(90).error_type(), "DisabledException");
    assert_eq!(rotate().error_type(), "DisabledException");
    assert_eq!(status()["KeyRotationEnabled"], true);
    client.call("EnableKey", json!({ "KeyId": key })).ok();
    client
        .call("DisableKeyRotation", json!({ "KeyId": key }))
        .ok();
    assert_eq!(status()["KeyRotationEnabled"], false);

    let rsa = create(
        &client,
        json!({ "KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY" }),
    );
    // Terraform reads it of every key whose material is ours.
    let status = client.call("GetKeyRotationStatus", json!({ "KeyId": rsa }));
    assert_eq!(
        status.ok(),
        json!({ "KeyId": arn("eu-west-1", &rsa), "KeyRotationEnabled": false })
    );
    for operation in [
        "EnableKeyRotation",
        "DisableKeyRotation",
        "RotateKeyOnDemand",
        "ListKeyRotations",
    ] {
        let refused = client.call(operation, json!({ "KeyId": rsa }));
        assert_eq!(
            refused.error(),
            ("UnsupportedOperationException", ""),
            "{operation}"
        );
    }
    // Recorded: LocalStack's test_rotate_key_on_demand_raises_error_given_key_is_disabled.
    client.call("DisableKey", json!({ "KeyId": rsa })).ok();
    let refused = client.call("RotateKeyOnDemand", json!({ "KeyId": rsa }));
    let text = format!("{} is disabled.", arn("eu-west-1", &rsa));
    assert_eq!(refused.error(), ("DisabledException", text.as_str()));
}

// --- time, which is given to the service ------------------------------------------------------------

struct InProcess {
    service: Service,
    _directory: tempfile::TempDir,
}

impl InProcess {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(directory.path()).await.unwrap();
        let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
        let service = Service::new(store, root, Trust::default()).await.unwrap();
        Self {
            service,
            _directory: directory,
        }
    }

    async fn call(&self, operation: &str, input: Value) -> Reply {
        self.call_in("eu-west-1", operation, input).await
    }

    async fn call_in(&self, region: &str, operation: &str, input: Value) -> Reply {
        let mut client = Client::new((Ipv4Addr::LOCALHOST, 1).into(), "test", "test");
        client.region = region.to_owned();
        let body = input.to_string();
        let mut headers = HeaderMap::new();
        for (name, value) in client.signed(&format!("TrentService.{operation}"), body.as_bytes()) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_str(&value).unwrap());
        }
        let request = Request {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            query: String::new(),
            headers,
            body: body.into(),
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            channel: Channel::Dev,
        };
        let answer = self.service.answer(request).await;
        Reply {
            status: answer.status,
            headers: String::new(),
            body: serde_json::from_slice(&answer.body).unwrap_or_default(),
        }
    }

    async fn key(&self, input: Value) -> String {
        let output = self.call("CreateKey", input).await.ok();
        output["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }

    async fn describe(&self, key: &str) -> Value {
        let output = self.call("DescribeKey", json!({ "KeyId": key })).await;
        output.ok()["KeyMetadata"].clone()
    }

    /// What happens in some days.
    async fn in_days(&self, days: i64) {
        let now = OffsetDateTime::now_utc() + Duration::days(days);
        self.service.maintain(now).await.unwrap();
    }
}

#[tokio::test]
async fn keys_rotate_when_their_period_is_over() {
    let kms = InProcess::new().await;
    let key = kms.key(json!({})).await;
    let other = kms.key(json!({})).await;
    let enable = json!({ "KeyId": key, "RotationPeriodInDays": 90 });
    kms.call("EnableKeyRotation", enable).await.ok();
    let first = kms.describe(&key).await["CurrentKeyMaterialId"].clone();
    let encrypt = json!({ "KeyId": key, "Plaintext": "eA==" });
    let old = kms.call("Encrypt", encrypt).await.ok();

    kms.in_days(89).await;
    assert_eq!(kms.describe(&key).await["CurrentKeyMaterialId"], first);
    kms.in_days(91).await;
    let second = kms.describe(&key).await["CurrentKeyMaterialId"].clone();
    assert_ne!(second, first);
    // Once, and again after another period.
    kms.in_days(92).await;
    assert_eq!(kms.describe(&key).await["CurrentKeyMaterialId"], second);
    kms.in_days(182).await;
    assert_ne!(kms.describe(&key).await["CurrentKeyMaterialId"], second);
    let list = kms
        .call("ListKeyRotations", json!({ "KeyId": key }))
        .await
        .ok();
    assert_eq!(list["Rotations"].as_array().unwrap().len(), 2);
    assert_eq!(list["Rotations"][0]["RotationType"], "AUTOMATIC");
    let input = json!({ "CiphertextBlob": old["CiphertextBlob"] });
    assert_eq!(
        kms.call("Decrypt", input).await.ok()["KeyMaterialId"],
        first
    );

    // A disabled key waits; enabled again, it is rotated at once.
    kms.call("DisableKey", json!({ "KeyId": key })).await.ok();
    let third = kms.describe(&key).await["CurrentKeyMaterialId"].clone();
    kms.in_days(400).await;
    assert_eq!(kms.describe(&key).await["CurrentKeyMaterialId"], third);
    kms.call("EnableKey", json!({ "KeyId": key })).await.ok();
    kms.in_days(400).await;
    assert_ne!(kms.describe(&key).await["CurrentKeyMaterialId"], third);
    let list = kms
        .call("ListKeyRotations", json!({ "KeyId": other }))
        .await
        .ok();
    assert_eq!(list["Rotations"], json!([]));
}

#[tokio::test]
async fn a_primary_waits_for_its_replicas() {
    let kms = InProcess::new().await;
    let key = kms.key(json!({ "MultiRegion": true })).await;
    kms.call(
        "ReplicateKey",
        json!({ "KeyId": key, "ReplicaRegion": "us-east-1" }),
    )
    .await
    .ok();
    let schedule = json!({ "KeyId": key, "PendingWindowInDays": 7 });
    let output = kms.call("ScheduleKeyDeletion", schedule.clone()).await.ok();
    assert_eq!(output["KeyState"], "PendingReplicaDeletion");
    assert!(output.get("DeletionDate").is_none());
    kms.in_days(100).await;
    let metadata = kms.describe(&key).await;
    assert_eq!(
        (
            &metadata["KeyState"],
            &metadata["PendingDeletionWindowInDays"]
        ),
        (&json!("PendingReplicaDeletion"), &json!(7))
    );
    kms.call_in("us-east-1", "ScheduleKeyDeletion", schedule)
        .await
        .ok();
    kms.in_days(8).await;
    let gone = kms
        .call_in("us-east-1", "DescribeKey", json!({ "KeyId": key }))
        .await;
    assert_eq!(gone.error_type(), "NotFoundException");
    // Now its own waiting period begins.
    let metadata = kms.describe(&key).await;
    assert_eq!(
        (
            &metadata["KeyState"],
            metadata.get("PendingDeletionWindowInDays")
        ),
        (&json!("PendingDeletion"), None)
    );
    kms.in_days(14).await;
    kms.describe(&key).await;
    kms.in_days(16).await;
    let gone = kms.call("DescribeKey", json!({ "KeyId": key })).await;
    assert_eq!(gone.error_type(), "NotFoundException");
}

#[tokio::test]
async fn imported_material_expires() {
    let kms = InProcess::new().await;
    let directory = tempfile::tempdir().unwrap();
    let key = kms.key(json!({ "Origin": "EXTERNAL" })).await;
    let parameters = |algorithm: &str| json!({ "KeyId": key, "WrappingAlgorithm": algorithm, "WrappingKeySpec": "RSA_2048" });
    let offer = kms
        .call("GetParametersForImport", parameters("RSAES_OAEP_SHA_256"))
        .await
        .ok();
    let valid_to = OffsetDateTime::now_utc() + Duration::days(3);
    let import = json!({ "KeyId": key, "ImportToken": offer["ImportToken"], "ValidTo": valid_to.unix_timestamp(),
        "EncryptedKeyMaterial": STANDARD.encode(oaep(directory.path(), &offer, "sha256", &[7; 32])) });
    kms.call("ImportKeyMaterial", import.clone()).await.ok();
    let metadata = kms.describe(&key).await;
    assert_eq!(metadata["ExpirationModel"], "KEY_MATERIAL_EXPIRES");
    assert_eq!(
        metadata["ValidTo"].as_f64().unwrap(),
        valid_to.unix_timestamp() as f64
    );
    kms.in_days(2).await;
    assert_eq!(kms.describe(&key).await["KeyState"], "Enabled");
    kms.in_days(4).await;
    let metadata = kms.describe(&key).await;
    assert_eq!(
        (&metadata["KeyState"], metadata.get("ExpirationModel")),
        (&json!("PendingImport"), None)
    );
    kms.call("ImportKeyMaterial", import).await.ok();
    assert_eq!(kms.describe(&key).await["KeyState"], "Enabled");
}

// --- import -----------------------------------------------------------------------------------------

/// Wraps material as its owner would.
fn oaep(directory: &Path, offer: &Value, digest: &str, material: &[u8]) -> Vec<u8> {
    std::fs::write(directory.join("wrapping"), blob(offer, "PublicKey")).unwrap();
    let (md, mgf) = (
        format!("rsa_oaep_md:{digest}"),
        format!("rsa_mgf1_md:{digest}"),
    );
    let arguments = [
        "pkeyutl",
        "-encrypt",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        "wrapping",
        "-pkeyopt",
        "rsa_padding_mode:oaep",
        "-pkeyopt",
        &md,
        "-pkeyopt",
        &mgf,
    ];
    openssl(directory, &arguments, material)
}

/// Wraps material under an AES key, and that with RSA.
fn oaep_and_aes(directory: &Path, offer: &Value, digest: &str, material: &[u8]) -> Vec<u8> {
    let aes = [0x5a; 32];
    let arguments = [
        "enc",
        "-id-aes256-wrap-pad",
        "-K",
        &hex::encode(aes),
        "-iv",
        "A65959A6",
    ];
    let wrapped = openssl(directory, &arguments, material);
    [oaep(directory, offer, digest, &aes), wrapped].concat()
}

struct Owner {
    client: Client,
    directory: tempfile::TempDir,
}

impl Owner {
    fn new(server: &Server) -> Self {
        Self {
            client: server.client(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn offer(&self, key: &str, algorithm: &str, spec: &str) -> Value {
        let input =
            json!({ "KeyId": key, "WrappingAlgorithm": algorithm, "WrappingKeySpec": spec });
        self.client.call("GetParametersForImport", input).ok()
    }

    fn import(&self, key: &str, algorithm: &str, material: &[u8], more: Value) -> Reply {
        let offer = self.offer(key, algorithm, "RSA_3072");
        let digest = if algorithm.ends_with("_1") {
            "sha1"
        } else {
            "sha256"
        };
        let wrapped = match algorithm.starts_with("RSA_AES") {
            true => oaep_and_aes(self.directory.path(), &offer, digest, material),
            false => oaep(self.directory.path(), &offer, digest, material),
        };
        self.import_wrapped(key, &offer, &wrapped, more)
    }

    fn import_wrapped(&self, key: &str, offer: &Value, wrapped: &[u8], more: Value) -> Reply {
        let mut input = json!({ "KeyId": key, "ImportToken": offer["ImportToken"],
            "EncryptedKeyMaterial": STANDARD.encode(wrapped), "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE" });
        for (name, value) in more.as_object().unwrap() {
            input[name] = value.clone();
        }
        self.client.call("ImportKeyMaterial", input)
    }

    fn state(&self, key: &str) -> Value {
        let output = self
            .client
            .call("DescribeKey", json!({ "KeyId": key }))
            .ok();
        output["KeyMetadata"]["KeyState"].clone()
    }
}

#[test]
fn symmetric_material_in_every_wrapping() {
    let server = Server::dev();
    let owner = Owner::new(&server);
    let client = &owner.client;
    for algorithm in [
        "RSAES_OAEP_SHA_1",
        "RSAES_OAEP_SHA_256",
        "RSA_AES_KEY_WRAP_SHA_1",
        "RSA_AES_KEY_WRAP_SHA_256",
    ] {
        let key = create(client, json!({ "Origin": "EXTERNAL" }));
        let pending = format!("{} is pending import.", arn("eu-west-1", &key));
        let encrypt = || client.call("Encrypt", json!({ "KeyId": key, "Plaintext": "eA==" }));
        assert_eq!(
            encrypt().error(),
            ("KMSInvalidStateException", pending.as_str())
        );
        assert_eq!(
            client.call("EnableKey", json!({ "KeyId": key })).error(),
            ("KMSInvalidStateException", pending.as_str())
        );
        let output = owner.import(&key, algorithm, &[9; 32], json!({})).ok();
        assert_eq!(
            (
                output["KeyId"].clone(),
                output["KeyMaterialId"].as_str().unwrap().len()
            ),
            (json!(arn("eu-west-1", &key)), 64)
        );
        let ciphertext = encrypt().ok()["CiphertextBlob"].clone();

        let deleted = client
            .call("DeleteImportedKeyMaterial", json!({ "KeyId": key }))
            .ok();
        assert_eq!(deleted["KeyMaterialId"], output["KeyMaterialId"]);
        assert_eq!(owner.state(&key), "PendingImport");
        assert_eq!(encrypt().error_type(), "KMSInvalidStateException");
        let other = owner.import(&key, algorithm, &[8; 32], json!({}));
        assert_eq!(other.error_type(), "IncorrectKeyMaterialException");
        owner.import(&key, algorithm, &[9; 32], json!({})).ok();
        let opened = client.decrypt(ciphertext.as_str().unwrap(), json!({})).ok();
        assert_eq!(plaintext(&opened), b"x");
    }
}

#[test]
fn what_cannot_be_imported() {
    let server = Server::dev();
    let owner = Owner::new(&server);
    let client = &owner.client;
    let key = create(client, json!({ "Origin": "EXTERNAL" }));
    let other = create(client, json!({ "Origin": "EXTERNAL" }));
    let own = client.create_key();
    let offer = owner.offer(&key, "RSAES_OAEP_SHA_256", "RSA_2048");
    let path = owner.directory.path();
    let wrapped = oaep(path, &offer, "sha256", &[1; 32]);
    let kind = |reply: Reply| reply.error_type().to_owned();
    assert_eq!(
        kind(owner.import_wrapped(&other, &offer, &wrapped, json!({}))),
        "InvalidImportTokenException"
    );
    assert_eq!(
        kind(owner.import_wrapped(&key, &json!({ "ImportToken": "AAAA" }), &wrapped, json!({}))),
        "InvalidImportTokenException"
    );
    let wrong = oaep(path, &offer, "sha1", &[1; 32]);
    assert_eq!(
        kind(owner.import_wrapped(&key, &offer, &wrong, json!({}))),
        "InvalidCiphertextException"
    );
    assert_eq!(
        kind(owner.import_wrapped(&key, &offer, b"x", json!({}))),
        "InvalidCiphertextException"
    );
    let short = oaep(path, &offer, "sha256", &[1; 31]);
    assert_eq!(
        kind(owner.import_wrapped(&key, &offer, &short, json!({}))),
        "IncorrectKeyMaterialException"
    );
    let expires = json!({ "ExpirationModel": "KEY_MATERIAL_EXPIRES" });
    assert_eq!(
        owner
            .import_wrapped(&key, &offer, &wrapped, expires)
            .error(),
        (
            "ValidationException",
            "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"
        )
    );
    for valid_to in [1, 9_999_999_999_i64] {
        let input = json!({ "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": valid_to });
        assert_eq!(
            kind(owner.import_wrapped(&key, &offer, &wrapped, input)),
            "ValidationException"
        );
    }
    let text = format!(
        "{} origin is AWS_KMS which is not valid for this operation.",
        arn("eu-west-1", &own)
    );
    let input = json!({ "KeyId": own, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048" });
    assert_eq!(
        client.call("GetParametersForImport", input).error(),
        ("UnsupportedOperationException", text.as_str())
    );
    assert_eq!(
        client
            .call("DeleteImportedKeyMaterial", json!({ "KeyId": own }))
            .error(),
        ("UnsupportedOperationException", text.as_str())
    );
    assert_eq!(owner.state(&key), "PendingImport");
    // None of the refusals used the token up.
    owner.import_wrapped(&key, &offer, &wrapped, json!({})).ok();
}

#[test]
fn imported_key_pairs_and_mac_keys() {
    let server = Server::dev();
    let owner = Owner::new(&server);
    let (client, path) = (&owner.client, owner.directory.path());
    let made = [
        (
            "RSA_2048",
            "SIGN_VERIFY",
            "RSA_AES_KEY_WRAP_SHA_256",
            vec!["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        ),
        (
            "RSA_2048",
            "ENCRYPT_DECRYPT",
            "RSA_AES_KEY_WRAP_SHA_1",
            vec!["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        ),
        (
            "ECC_NIST_P256",
            "SIGN_VERIFY",
            "RSAES_OAEP_SHA_256",
            vec!["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        ),
        (
            "ECC_NIST_P521",
            "KEY_AGREEMENT",
            "RSAES_OAEP_SHA_256",
            vec!["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"],
        ),
        (
            "ECC_SECG_P256K1",
            "SIGN_VERIFY",
            "RSAES_OAEP_SHA_1",
            vec![
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:secp256k1",
            ],
        ),
        (
            "ECC_NIST_EDWARDS25519",
            "SIGN_VERIFY",
            "RSAES_OAEP_SHA_256",
            vec!["-algorithm", "ED25519"],
        ),
    ];
    for (spec, usage, algorithm, arguments) in made {
        let arguments = [
            vec!["genpkey", "-outform", "DER", "-out", "private.der"],
            arguments,
        ]
        .concat();
        openssl(path, &arguments, b"");
        let pkcs8 = openssl(
            path,
            &[
                "pkcs8",
                "-topk8",
                "-nocrypt",
                "-inform",
                "DER",
                "-in",
                "private.der",
                "-outform",
                "DER",
            ],
            b"",
        );
        let public = openssl(
            path,
            &[
                "pkey",
                "-inform",
                "DER",
                "-in",
                "private.der",
                "-pubout",
                "-outform",
                "DER",
            ],
            b"",
        );
        let key = create(
            client,
            json!({ "Origin": "EXTERNAL", "KeySpec": spec, "KeyUsage": usage }),
        );
        let output = owner.import(&key, algorithm, &pkcs8, json!({})).ok();
        assert!(output.get("KeyMaterialId").is_none());
        let shown = client.call("GetPublicKey", json!({ "KeyId": key })).ok();
        assert_eq!(blob(&shown, "PublicKey"), public, "{spec} {usage}");
        // The material of such a key never changes.
        let wrong = create(
            client,
            json!({ "Origin": "EXTERNAL", "KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY" }),
        );
        let refused = owner.import(&wrong, "RSA_AES_KEY_WRAP_SHA_256", &pkcs8, json!({}));
        assert_eq!(refused.error_type(), "IncorrectKeyMaterialException");
    }
    let rsa = create(
        client,
        json!({ "Origin": "EXTERNAL", "KeySpec": "RSA_4096", "KeyUsage": "SIGN_VERIFY" }),
    );
    openssl(
        path,
        &[
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-outform",
            "DER",
            "-out",
            "private.der",
        ],
        b"",
    );
    let pkcs8 = openssl(
        path,
        &[
            "pkcs8",
            "-topk8",
            "-nocrypt",
            "-inform",
            "DER",
            "-in",
            "private.der",
            "-outform",
            "DER",
        ],
        b"",
    );
    let refused = owner.import(&rsa, "RSA_AES_KEY_WRAP_SHA_256", &pkcs8, json!({}));
    assert_eq!(refused.error_type(), "IncorrectKeyMaterialException");

    let hmac = create(
        client,
        json!({ "Origin": "EXTERNAL", "KeySpec": "HMAC_384", "KeyUsage": "GENERATE_VERIFY_MAC" }),
    );
    owner
        .import(&hmac, "RSAES_OAEP_SHA_256", &[3; 48], json!({}))
        .ok();
    let input =
        json!({ "KeyId": hmac, "Message": STANDARD.encode("x"), "MacAlgorithm": "HMAC_SHA_384" });
    let key = format!("hexkey:{}", hex::encode([3; 48]));
    let expected = openssl(
        path,
        &[
            "dgst", "-sha384", "-mac", "HMAC", "-macopt", &key, "-binary",
        ],
        b"x",
    );
    assert_eq!(
        blob(&client.call("GenerateMac", input).ok(), "Mac"),
        expected
    );
}

#[test]
fn imported_material_rotates_on_demand() {
    let server = Server::dev();
    let owner = Owner::new(&server);
    let client = &owner.client;
    let key = create(client, json!({ "Origin": "EXTERNAL" }));
    let rotate = || client.call("RotateKeyOnDemand", json!({ "KeyId": key }));
    let key_arn = arn("eu-west-1", &key);
    assert_eq!(
        rotate().error(),
        (
            "KMSInvalidStateException",
            format!("{key_arn} is pending import.").as_str()
        )
    );
    let import =
        |byte: u8, more: Value| owner.import(&key, "RSAES_OAEP_SHA_256", &[byte; 32], more);
    let new = json!({ "ImportType": "NEW_KEY_MATERIAL", "KeyMaterialDescription": "the next" });
    let first = import(1, json!({})).ok()["KeyMaterialId"].clone();
    let text = format!("No available key material pending rotation for the key: {key_arn}.");
    assert_eq!(
        rotate().error(),
        ("KMSInvalidStateException", text.as_str())
    );
    let old = client.encrypt(&key, b"old", json!({}));

    assert_eq!(
        import(1, new.clone()).error_type(),
        "IncorrectKeyMaterialException"
    );
    let second = import(2, new.clone()).ok()["KeyMaterialId"].clone();
    let third = import(3, new).error().1.to_owned();
    assert!(third.starts_with("New key material (id: "), "{third}");
    assert!(third.ends_with(&format!(") cannot be imported into KMS key {key_arn}, because another key material (id: {}) is pending rotation.", second.as_str().unwrap())), "{third}");
    assert_eq!(json!(material(client, &key)), first);
    rotate().ok();
    assert_eq!(json!(material(client, &key)), second);
    assert_eq!(plaintext(&client.decrypt(&old, json!({})).ok()), b"old");
    let list = client
        .call(
            "ListKeyRotations",
            json!({ "KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL" }),
        )
        .ok();
    assert_eq!(list["Rotations"][1]["KeyMaterialDescription"], "the next");
    assert_eq!(list["Rotations"][0]["KeyMaterialState"], "NON_CURRENT");

    // The key needs all of its material.
    client
        .call(
            "DeleteImportedKeyMaterial",
            json!({ "KeyId": key, "KeyMaterialId": first }),
        )
        .ok();
    assert_eq!(owner.state(&key), "PendingImport");
    let named = import(2, json!({ "KeyMaterialId": first }));
    assert_eq!(named.error_type(), "IncorrectKeyMaterialException");
    import(1, json!({ "KeyMaterialId": first })).ok();
    assert_eq!(owner.state(&key), "Enabled");
    assert_eq!(plaintext(&client.decrypt(&old, json!({})).ok()), b"old");
}

// --- regions ----------------------------------------------------------------------------------------

fn in_region(client: &Client, region: &str) -> Client {
    Client {
        region: region.to_owned(),
        ..client.clone()
    }
}

#[test]
fn replicas_open_each_others_ciphertexts() {
    let mut server = Server::dev();
    let ireland = server.client();
    let virginia = in_region(&ireland, "us-east-1");
    let oregon = in_region(&ireland, "us-west-2");
    let key = create(
        &ireland,
        json!({ "MultiRegion": true, "Description": "first" }),
    );
    assert!(key.starts_with("mrk-"));
    let before = ireland.encrypt(&key, b"before", json!({}));
    assert_eq!(
        virginia
            .call("DescribeKey", json!({ "KeyId": key }))
            .error_type(),
        "NotFoundException"
    );
    let replicate = |from: &Client, to: &str| {
        from.call(
            "ReplicateKey",
            json!({ "KeyId": key, "ReplicaRegion": to, "Description": to,
            "Tags": [{ "TagKey": "where", "TagValue": to }] }),
        )
    };
    let output = replicate(&ireland, "us-east-1").ok();
    assert_eq!(output["ReplicaKeyMetadata"]["Arn"], arn("us-east-1", &key));
    assert_eq!(output["ReplicaTags"][0]["TagValue"], "us-east-1");
    // Recorded: LocalStack's test_replicate_key.
    let untagged = ireland.call(
        "ReplicateKey",
        json!({ "KeyId": create(&ireland, json!({ "MultiRegion": true })), "ReplicaRegion": "sa-east-1" }),
    );
    assert_eq!(untagged.ok().get("ReplicaTags"), None);
    replicate(&ireland, "us-west-2").ok();
    assert_eq!(
        replicate(&ireland, "us-west-2").error_type(),
        "AlreadyExistsException"
    );
    assert_eq!(
        replicate(&ireland, "eu-west-1").error_type(),
        "AlreadyExistsException"
    );
    assert_eq!(
        replicate(&ireland, "cn-north-1").error_type(),
        "ValidationException"
    );
    assert_eq!(
        replicate(&ireland, "moon").error_type(),
        "ValidationException"
    );
    let text = format!(
        "{} is not a multi-region primary key.",
        arn("us-east-1", &key)
    );
    assert_eq!(
        replicate(&virginia, "eu-west-2").error(),
        ("UnsupportedOperationException", text.as_str())
    );

    let metadata =
        virginia.call("DescribeKey", json!({ "KeyId": key })).ok()["KeyMetadata"].clone();
    assert_eq!(
        (&metadata["Description"], &metadata["KeyId"]),
        (&json!("us-east-1"), &json!(key))
    );
    assert_eq!(
        metadata["MultiRegionConfiguration"],
        json!({
            "MultiRegionKeyType": "REPLICA",
            "PrimaryKey": { "Arn": arn("eu-west-1", &key), "Region": "eu-west-1" },
            "ReplicaKeys": [
                { "Arn": arn("us-east-1", &key), "Region": "us-east-1" },
                { "Arn": arn("us-west-2", &key), "Region": "us-west-2" },
            ],
        })
    );
    assert_eq!(
        virginia.call("ListKeys", json!({})).ok()["Keys"],
        json!([{ "KeyId": key, "KeyArn": arn("us-east-1", &key) }])
    );
    virginia
        .call(
            "CreateAlias",
            json!({ "AliasName": "alias/a", "TargetKeyId": key }),
        )
        .ok();
    assert_eq!(
        virginia.call("ListAliases", json!({})).ok()["Aliases"][0]["TargetKeyId"],
        json!(key)
    );
    let there = virginia.encrypt("alias/a", b"there", json!({}));
    for client in [&ireland, &virginia, &oregon] {
        assert_eq!(
            plaintext(&client.decrypt(&before, json!({})).ok()),
            b"before"
        );
        let opened = client.decrypt(&there, json!({})).ok();
        assert_eq!(
            (plaintext(&opened), &opened["KeyId"]),
            (b"there".to_vec(), &json!(arn(&client.region, &key)))
        );
    }

    // The primary rotates for all; states and policies are each key's own.
    assert_eq!(
        virginia
            .call("RotateKeyOnDemand", json!({ "KeyId": key }))
            .error(),
        ("UnsupportedOperationException", text.as_str())
    );
    ireland
        .call("RotateKeyOnDemand", json!({ "KeyId": key }))
        .ok();
    assert_eq!(material(&ireland, &key), material(&oregon, &key));
    ireland
        .call("EnableKeyRotation", json!({ "KeyId": key }))
        .ok();
    assert_eq!(
        oregon
            .call("GetKeyRotationStatus", json!({ "KeyId": key }))
            .ok()["KeyRotationEnabled"],
        true
    );
    oregon.call("DisableKey", json!({ "KeyId": key })).ok();
    assert_eq!(
        oregon.decrypt(&before, json!({})).error_type(),
        "DisabledException"
    );
    ireland.decrypt(&before, json!({})).ok();

    let update = |client: &Client, to: &str| {
        client.call(
            "UpdatePrimaryRegion",
            json!({ "KeyId": key, "PrimaryRegion": to }),
        )
    };
    assert_eq!(
        update(&ireland, "ap-south-1").error_type(),
        "NotFoundException"
    );
    let text = format!(
        "{} is the multi-region primary key already.",
        arn("eu-west-1", &key)
    );
    assert_eq!(
        update(&ireland, "eu-west-1").error(),
        ("UnsupportedOperationException", text.as_str())
    );
    update(&ireland, "us-east-1").ok();
    let kind = |client: &Client| {
        let output = client.call("DescribeKey", json!({ "KeyId": key })).ok();
        output["KeyMetadata"]["MultiRegionConfiguration"]["MultiRegionKeyType"].clone()
    };
    assert_eq!(
        (kind(&ireland), kind(&virginia), kind(&oregon)),
        (json!("REPLICA"), json!("PRIMARY"), json!("REPLICA"))
    );
    assert_eq!(
        update(&ireland, "us-east-1").error_type(),
        "UnsupportedOperationException"
    );
    virginia
        .call("RotateKeyOnDemand", json!({ "KeyId": key }))
        .ok();

    server.stop();
    let again = Server::start(&server.data, &["--listen", "127.0.0.1:0", "--dev"]);
    let virginia = in_region(&again.client(), "us-east-1");
    assert_eq!(kind(&virginia), "PRIMARY");
    assert_eq!(
        plaintext(&virginia.decrypt(&before, json!({})).ok()),
        b"before"
    );
    assert_eq!(
        virginia
            .call("GetKeyRotationStatus", json!({ "KeyId": key }))
            .ok()["KeyRotationEnabled"],
        true
    );
    assert_eq!(material(&virginia, &key), material(&again.client(), &key));
}

#[test]
fn a_replica_becomes_the_primary_if_its_own_policy_admits_it() {
    let server = Server::dev();
    let ireland = server.client();
    let virginia = in_region(&ireland, "us-east-1");
    let key = create(&ireland, json!({ "MultiRegion": true }));
    let account = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
    let refused = json!([account, { "Effect": "Deny", "Principal": "*", "Action": "kms:UpdatePrimaryRegion", "Resource": "*" }]);
    let input = json!({ "KeyId": key, "ReplicaRegion": "us-east-1" });
    ireland.call("ReplicateKey", input).ok();
    virginia.put_policy(&key, &refused).ok();
    let update = || {
        let input = json!({ "KeyId": key, "PrimaryRegion": "us-east-1" });
        ireland.call("UpdatePrimaryRegion", input)
    };
    assert_eq!(update().error_type(), "AccessDeniedException");
    virginia.put_policy(&key, &json!([account])).ok();
    update().ok();
}

#[test]
fn a_replica_is_a_new_key_in_its_own_region() {
    const USER: &str = "arn:aws:iam::000000000000:user/alice";
    let server = Server::dev();
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "kms:*", "Resource": "*" },
        { "Effect": "Deny", "Action": "kms:CreateKey", "Resource": "*",
          "Condition": { "StringEquals": { "aws:RequestedRegion": "us-east-1" } } },
        { "Effect": "Deny", "Action": "kms:CreateKey", "Resource": "*",
          "Condition": { "StringEquals": { "aws:RequestedRegion": "us-west-1", "kms:KeySpec": "SYMMETRIC_DEFAULT",
            "kms:KeyUsage": "ENCRYPT_DECRYPT", "kms:KeyOrigin": "AWS_KMS", "kms:MultiRegion": "true" } } },
    ] });
    let path = server.data.join("policy.json");
    std::fs::write(&path, policy.to_string()).unwrap();
    let named = format!("a={}", path.display());
    let output = server.tool(&["identity", "put", "--arn", USER, "--policy", &named]);
    assert!(output.status.success());
    let user = server.principal(USER);
    let key = create(&user, json!({ "MultiRegion": true }));
    let replicate = |region: &str| {
        let input = json!({ "KeyId": key, "ReplicaRegion": region });
        user.call("ReplicateKey", input)
    };
    for region in ["us-east-1", "us-west-1"] {
        assert_eq!(replicate(region).error_type(), "AccessDeniedException");
    }
    replicate("us-west-2").ok();
}

#[test]
fn multi_region_keys_of_other_kinds() {
    let server = Server::dev();
    let (ireland, virginia) = (server.client(), in_region(&server.client(), "us-east-1"));
    let key = create(
        &ireland,
        json!({ "MultiRegion": true, "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY" }),
    );
    ireland
        .call(
            "ReplicateKey",
            json!({ "KeyId": key, "ReplicaRegion": "us-east-1" }),
        )
        .ok();
    let sign = json!({ "KeyId": key, "Message": "eA==", "SigningAlgorithm": "ECDSA_SHA_256" });
    let mut verify = sign.clone();
    verify["Signature"] = virginia.call("Sign", sign).ok()["Signature"].clone();
    assert_eq!(ireland.call("Verify", verify).ok()["SignatureValid"], true);
}

#[test]
fn imported_material_goes_to_every_region() {
    let server = Server::dev();
    let owner = Owner::new(&server);
    let away = Owner {
        client: in_region(&owner.client, "us-east-1"),
        directory: tempfile::tempdir().unwrap(),
    };
    let key = create(
        &owner.client,
        json!({ "MultiRegion": true, "Origin": "EXTERNAL" }),
    );
    let import = |owner: &Owner, byte: u8, more: Value| {
        owner.import(&key, "RSAES_OAEP_SHA_256", &[byte; 32], more)
    };
    import(&owner, 1, json!({})).ok();
    owner
        .client
        .call(
            "ReplicateKey",
            json!({ "KeyId": key, "ReplicaRegion": "us-east-1" }),
        )
        .ok();
    assert_eq!(away.state(&key), "PendingImport");
    assert_eq!(
        import(&away, 2, json!({})).error_type(),
        "IncorrectKeyMaterialException"
    );
    import(&away, 1, json!({})).ok();
    let ciphertext = owner.client.encrypt(&key, b"x", json!({}));
    away.client.decrypt(&ciphertext, json!({})).ok();

    import(&owner, 2, json!({ "ImportType": "NEW_KEY_MATERIAL" })).ok();
    let state = || {
        let list = owner
            .client
            .call(
                "ListKeyRotations",
                json!({ "KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL" }),
            )
            .ok();
        list["Rotations"][1]["KeyMaterialState"].clone()
    };
    assert_eq!(state(), "PENDING_MULTI_REGION_IMPORT_AND_ROTATION");
    let rotate = || {
        owner
            .client
            .call("RotateKeyOnDemand", json!({ "KeyId": key }))
    };
    assert_eq!(rotate().error_type(), "KMSInvalidStateException");
    import(&away, 2, json!({ "ImportType": "EXISTING_KEY_MATERIAL" })).ok();
    assert_eq!(state(), "PENDING_ROTATION");
    rotate().ok();
    assert_eq!(material(&owner.client, &key), material(&away.client, &key));
    away.client.decrypt(&ciphertext, json!({})).ok();
}

// --- last use ---------------------------------------------------------------------------------------

#[test]
fn the_last_use_is_known_and_survives_kill_nine() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let server = Server::start(directory.path(), &arguments);
    let client = server.client();
    let (key, other) = (client.create_key(), client.create_key());
    let last = |client: &Client, key: &str| {
        let output = client.call("GetKeyLastUsage", json!({ "KeyId": key })).ok();
        assert_eq!(output["KeyId"], arn("eu-west-1", key));
        assert_eq!(output["TrackingStartDate"], output["KeyCreationDate"]);
        output["KeyLastUsage"].clone()
    };
    assert_eq!(last(&client, &key), json!({}));
    let ciphertext = client.encrypt(&key, b"x", json!({}));
    assert_eq!(last(&client, &key)["Operation"], "Encrypt");
    // What changes nothing, fails or is a dry run is no use.
    client.call("DescribeKey", json!({ "KeyId": key })).ok();
    client
        .call(
            "Decrypt",
            json!({ "CiphertextBlob": ciphertext, "DryRun": true }),
        )
        .error_type();
    client
        .decrypt(&ciphertext, json!({ "a": "1" }))
        .error_type();
    assert_eq!(last(&client, &key)["Operation"], "Encrypt");
    client
        .call(
            "ReEncrypt",
            json!({ "CiphertextBlob": ciphertext, "DestinationKeyId": other }),
        )
        .ok();
    let used = last(&client, &key);
    assert_eq!(
        (&used["Operation"], &used),
        (&json!("ReEncrypt"), &last(&client, &other))
    );
    let events = server.audit(9);
    let event = events
        .iter()
        .find(|event| event["eventName"] == "ReEncrypt")
        .unwrap();
    assert_eq!(used["CloudTrailEventId"], event["eventID"]);
    assert_eq!(used["KmsRequestId"], event["requestID"]);
    server.kill();
    let again = Server::start(directory.path(), &arguments);
    assert_eq!(last(&again.client(), &other), used);
}
