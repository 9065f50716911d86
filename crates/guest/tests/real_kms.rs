//! The whole way: an application's plain call, the agent, the gateway, and Enclos's own KMS that verifies the
//! document and enforces the key's policy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    unreachable_pub,
    dead_code,
    reason = "the support module serves several tests"
)]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enclos_api::config::Kms;
use enclos_attest::document::TrustAnchors;
use enclos_kms::crypto::seal::{self, RootKey};
use enclos_kms::recipient::Trust;
use enclos_kms::server::Listener;
use enclos_kms::service::Service;
use enclos_kms::store::{self, PrincipalRow, Store};
use enclos_kms::tls::{self, ServerCertificate, Source};
use serde_json::{Value, json};
use support::{Answer, RealNsm, SERVER_NAME, World, http, image_pcr, root_pem};
use tokio::sync::watch;

const ADMIN: &str = "arn:aws:iam::000000000000:root";
const ROLE: &str = "arn:aws:iam::000000000000:role/parent";

struct Installation {
    address: SocketAddr,
    ca_pem: String,
    data: tempfile::TempDir,
    _stop: watch::Sender<bool>,
}

impl Installation {
    async fn start() -> Self {
        Self::start_with(false).await
    }

    /// With the extension, or without.
    async fn start_with(attested_signing: bool) -> Self {
        let data = tempfile::tempdir().unwrap();
        let root = RootKey::open(&data.path().join("root.key"), true).unwrap();
        let anchors = TrustAnchors::new()
            .with_root("test", root_pem().as_bytes())
            .unwrap();
        let (store, _writer) = Store::open(data.path()).await.unwrap();
        let service = Service::new(store, root, Trust::new(anchors))
            .await
            .unwrap()
            .with_attested_signing(attested_signing);
        let names =
            tls::certificate_names(&[SERVER_NAME.to_owned()], IpAddr::V4(Ipv4Addr::LOCALHOST));
        let source = Source::Own {
            data: data.path().to_path_buf(),
            names,
        };
        let config = ServerCertificate::new(source)
            .unwrap()
            .server_config(None)
            .unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::tls(listen, config).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(listener.serve(Arc::new(service), stopped));
        let ca_pem = std::fs::read_to_string(tls::ca_path(data.path())).unwrap();
        Self {
            address,
            ca_pem,
            data,
            _stop: stop,
        }
    }

    /// An enclave whose parent is `arn`: the address of its KMS endpoint.
    async fn enclave_of(&self, arn: &str, key: &str) -> (World, SocketAddr) {
        self.enclave_with(arn, key, false).await
    }

    /// The same, of an image that says what its KMS takes documents for.
    async fn enclave_with(
        &self,
        arn: &str,
        key: &str,
        attested_signing: bool,
    ) -> (World, SocketAddr) {
        add_principal(self.data.path(), arn, key).await;
        let world = World::new(self.address).await;
        let text = json!({"AccessKeyId": key, "SecretAccessKey": format!("secret of {key}")});
        std::fs::write(world.credentials(), text.to_string()).unwrap();
        let kms = Kms {
            region: "eu-west-3".into(),
            server_name: SERVER_NAME.into(),
            ca_pem: self.ca_pem.clone(),
            key_arns: Vec::new(),
            attested_signing,
        };
        let endpoint = world.endpoint(kms, Arc::new(RealNsm)).await;
        (world, endpoint)
    }
}

async fn add_principal(data: &Path, arn: &str, key: &str) {
    let mut connection = store::connect(&data.into()).await.unwrap();
    let root = RootKey::open(&data.join("root.key"), false).unwrap();
    let label = seal::access_key_label(key, arn);
    let row = PrincipalRow {
        access_key_id: key.to_owned(),
        arn: arn.to_owned(),
        sealed_secret: root
            .seal(&label, format!("secret of {key}").as_bytes())
            .unwrap(),
        created_ms: 0,
    };
    store::insert_principal(&mut connection, &row)
        .await
        .unwrap();
}

async fn call(endpoint: SocketAddr, action: &str, body: &Value) -> Answer {
    let head = format!(
        "POST / HTTP/1.1\r\nx-amz-target: TrentService.{action}\r\n\
         content-type: application/x-amz-json-1.1"
    );
    http(endpoint, &head, body.to_string().as_bytes()).await
}

async fn ok(endpoint: SocketAddr, action: &str, body: &Value) -> Value {
    let answer = call(endpoint, action, body).await;
    assert_eq!(answer.status, 200, "{action}: {}", answer.text());
    answer.json()
}

/// A key that the admin may use to encrypt, and the role to decrypt from the image with `pcr0` alone.
async fn key_for_image(admin: SocketAddr, pcr0: &str) -> String {
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow", "Principal": {"AWS": ADMIN}, "Resource": "*",
                "Action": ["kms:Encrypt", "kms:PutKeyPolicy", "kms:DescribeKey"],
            },
            {
                "Effect": "Allow", "Principal": {"AWS": ROLE}, "Resource": "*",
                "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
                "Condition": {"StringEqualsIgnoreCase": {
                    "kms:RecipientAttestation:ImageSha384": pcr0,
                }},
            },
        ],
    });
    let created = ok(admin, "CreateKey", &json!({"Policy": policy.to_string()})).await;
    created["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_plain_call_in_the_right_image_gets_its_plaintext() {
    let installation = Installation::start().await;
    let (_admin_world, admin) = installation.enclave_of(ADMIN, "AKIAADMIN").await;
    let (_role_world, role) = installation.enclave_of(ROLE, "AKIAROLE").await;
    let key = key_for_image(admin, &image_pcr().to_string()).await;

    let plaintext = STANDARD.encode("a secret of somebody");
    let sealed = ok(
        admin,
        "Encrypt",
        &json!({"KeyId": key, "Plaintext": plaintext}),
    )
    .await;
    let blob = &sealed["CiphertextBlob"];
    let opened = ok(role, "Decrypt", &json!({"CiphertextBlob": blob})).await;
    assert_eq!(
        (&opened["Plaintext"], &opened["KeyId"]),
        (&json!(plaintext), &json!(key))
    );
    assert!(opened.get("CiphertextForRecipient").is_none());

    let twice = STANDARD.encode(blob.as_str().unwrap());
    let answer = call(
        role,
        "Decrypt",
        &json!({"CiphertextBlob": twice, "KeyId": key}),
    )
    .await;
    assert_eq!(answer.json()["Plaintext"], plaintext);
    assert!(answer.headers.contains_key("x-enclos-warning"));

    let data_key = ok(
        role,
        "GenerateDataKey",
        &json!({"KeyId": key, "KeySpec": "AES_256"}),
    )
    .await;
    let fresh = STANDARD
        .decode(data_key["Plaintext"].as_str().unwrap())
        .unwrap();
    assert_eq!(fresh.len(), 32);
    let blob = &data_key["CiphertextBlob"];
    let again = ok(role, "Decrypt", &json!({"CiphertextBlob": blob})).await;
    assert_eq!(again["Plaintext"], data_key["Plaintext"]);
}

#[tokio::test]
async fn another_image_or_role_is_denied_in_the_kmss_own_words() {
    let installation = Installation::start().await;
    let (_admin_world, admin) = installation.enclave_of(ADMIN, "AKIAADMIN").await;
    let (_role_world, role) = installation.enclave_of(ROLE, "AKIAROLE").await;
    let right = key_for_image(admin, &image_pcr().to_string()).await;
    let other = key_for_image(admin, &"ab".repeat(48)).await;
    for (key, caller) in [(other, role), (right, admin)] {
        let body = json!({"KeyId": key, "Plaintext": "eA=="});
        let sealed = ok(admin, "Encrypt", &body).await;
        let body = json!({"CiphertextBlob": sealed["CiphertextBlob"]});
        let answer = call(caller, "Decrypt", &body).await;
        assert_eq!(answer.status, 400);
        let name = answer.json()["__type"].as_str().unwrap().to_owned();
        assert!(name.ends_with("AccessDeniedException"), "{name}");
        assert!(!answer.headers.contains_key("x-enclos-error"));
    }
}

#[tokio::test]
async fn credentials_that_the_kms_does_not_know_are_its_to_refuse() {
    let installation = Installation::start().await;
    let (world, endpoint) = installation.enclave_of(ROLE, "AKIAROLE").await;
    let text = r#"{"AccessKeyId":"AKIAROLE","SecretAccessKey":"wrong"}"#;
    std::fs::write(world.credentials(), text).unwrap();
    let answer = call(endpoint, "GenerateRandom", &json!({"NumberOfBytes": 16})).await;
    assert_eq!(answer.status, 400);
    assert!(
        !answer.headers.contains_key("x-enclos-error"),
        "{}",
        answer.text()
    );
}

/// A key of this kind that the role may use from the image alone.
async fn signing_key(admin: SocketAddr, spec: &str, usage: &str, actions: [&str; 2]) -> String {
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow", "Principal": {"AWS": ADMIN}, "Resource": "*",
                "Action": ["kms:PutKeyPolicy", "kms:DescribeKey"],
            },
            {
                "Effect": "Allow", "Principal": {"AWS": ROLE}, "Resource": "*", "Action": actions,
                "Condition": {"StringEqualsIgnoreCase": {
                    "kms:RecipientAttestation:ImageSha384": image_pcr().to_string(),
                }},
            },
        ],
    });
    let body = json!({"Policy": policy.to_string(), "KeySpec": spec, "KeyUsage": usage});
    let created = ok(admin, "CreateKey", &body).await;
    created["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
}

/// The calls of a stock SDK: what signs and what makes a MAC, and what checks it.
async fn signs(endpoint: SocketAddr, key: &str, mac: &str) -> [Answer; 2] {
    let text = STANDARD.encode("an invoice");
    let sign = json!({"KeyId": key, "Message": text, "SigningAlgorithm": "ECDSA_SHA_256"});
    let make = json!({"KeyId": mac, "Message": text, "MacAlgorithm": "HMAC_SHA_256"});
    let signed = call(endpoint, "Sign", &sign).await;
    let made = call(endpoint, "GenerateMac", &make).await;
    for (answer, request, action, proof, valid) in [
        (&signed, sign, "Verify", "Signature", "SignatureValid"),
        (&made, make, "VerifyMac", "Mac", "MacValid"),
    ] {
        if answer.status == 200 {
            let mut request = request;
            request[proof] = answer.json()[proof].clone();
            assert_eq!(ok(endpoint, action, &request).await[valid], true);
        }
    }
    [signed, made]
}

#[tokio::test]
async fn plain_calls_sign_and_make_macs_from_the_right_image() {
    let installation = Installation::start_with(true).await;
    let (_admin_world, admin) = installation.enclave_of(ADMIN, "AKIAADMIN").await;
    let (_role_world, role) = installation.enclave_with(ROLE, "AKIAROLE", true).await;
    let key = signing_key(
        admin,
        "ECC_NIST_P256",
        "SIGN_VERIFY",
        ["kms:Sign", "kms:Verify"],
    );
    let key = key.await;
    let mac = ["kms:GenerateMac", "kms:VerifyMac"];
    let mac = signing_key(admin, "HMAC_256", "GENERATE_VERIFY_MAC", mac).await;
    let [signed, made] = signs(role, &key, &mac).await;
    assert_eq!(signed.status, 200, "{}", signed.text());
    assert_eq!(signed.json()["KeyId"], key);
    assert!(signed.json().get("CiphertextForRecipient").is_none());
    let made = STANDARD.decode(made.json()["Mac"].as_str().unwrap());
    assert_eq!(made.unwrap().len(), 32);
    // An image that does not say so calls as on AWS, and proves nothing.
    let (_plain_world, plain) = installation.enclave_of(ROLE, "AKIAPLAIN").await;
    for answer in signs(plain, &key, &mac).await {
        let name = answer.json()["__type"].as_str().unwrap().to_owned();
        assert!(name.ends_with("AccessDeniedException"), "{name}");
    }
}

#[tokio::test]
async fn a_signature_of_a_kms_without_the_extension_is_refused() {
    let installation = Installation::start().await;
    let (_world, admin) = installation.enclave_with(ADMIN, "AKIAADMIN", true).await;
    let create = |spec, usage| json!({"KeySpec": spec, "KeyUsage": usage});
    let key = ok(admin, "CreateKey", &create("ECC_NIST_P256", "SIGN_VERIFY")).await;
    let mac = ok(
        admin,
        "CreateKey",
        &create("HMAC_256", "GENERATE_VERIFY_MAC"),
    )
    .await;
    let id = |created: &Value| created["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
    for answer in signs(admin, &id(&key), &id(&mac)).await {
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert!(
            answer.text().contains("--attested-signing"),
            "{}",
            answer.text()
        );
        assert!(answer.headers.contains_key("x-enclos-error"));
    }
}
