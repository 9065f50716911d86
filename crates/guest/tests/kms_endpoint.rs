//! The KMS endpoint through the real gateway to a KMS that the test plays, over real TLS.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    unreachable_pub,
    dead_code,
    reason = "the support module serves several tests"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{
    Answer, BrokenNsm, FakeKms, KEY_ARN, RealNsm, SERVER_NAME, World, certificate, http,
    kms_config, nowhere,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn call(address: std::net::SocketAddr, action: &str, body: &Value) -> Answer {
    let head = format!(
        "POST / HTTP/1.1\r\nx-amz-target: TrentService.{action}\r\n\
         content-type: application/x-amz-json-1.1\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=APPS-OWN/x\r\nx-amz-date: 19700101T000000Z"
    );
    http(address, &head, body.to_string().as_bytes()).await
}

fn decrypts(plaintext: &'static [u8]) -> impl Fn(&support::Seen) -> (u16, Value) {
    move |request| {
        (
            200,
            json!({"KeyId": KEY_ARN, "CiphertextForRecipient": request.sealed(plaintext)}),
        )
    }
}

#[tokio::test]
async fn decrypt_is_attested_signed_by_the_role_and_opened() {
    let kms = FakeKms::start(true, decrypts(b"the secret")).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
        .await;
    let answer = call(endpoint, "Decrypt", &json!({"CiphertextBlob": "AQIDBA=="})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.json(),
        json!({"KeyId": KEY_ARN, "Plaintext": STANDARD.encode("the secret")})
    );
    assert_eq!(answer.headers["x-amzn-requestid"], "r-1");
    assert!(!answer.headers.contains_key("x-internal"));

    let seen = kms.last();
    assert_eq!(seen.headers["host"], SERVER_NAME);
    assert_eq!(seen.headers["x-amz-target"], "TrentService.Decrypt");
    assert_eq!(seen.headers["x-amz-security-token"], "token");
    let authorization = &seen.headers["authorization"];
    assert!(
        authorization.contains("Credential=ASIAENCLOS/"),
        "{authorization}"
    );
    assert!(
        authorization.contains("/eu-west-3/kms/aws4_request"),
        "{authorization}"
    );
    for signed in ["host", "x-amz-date", "x-amz-security-token", "x-amz-target"] {
        assert!(authorization.contains(signed), "{signed} is not signed");
    }
    assert_ne!(seen.headers["x-amz-date"], "19700101T000000Z");
}

#[tokio::test]
async fn each_request_has_its_own_key_and_connections_are_used_again() {
    let kms = FakeKms::start(true, decrypts(b"x")).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
        .await;
    for _ in 0..4 {
        assert_eq!(call(endpoint, "Decrypt", &json!({})).await.status, 200);
    }
    let keys: Vec<Vec<u8>> = kms
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(support::Seen::public_key)
        .collect();
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[index + 1..].contains(key), "a key was used twice");
    }
    assert_eq!(kms.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_the_kms_closed_is_replaced() {
    let kms = FakeKms::start(false, decrypts(b"x")).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
        .await;
    for _ in 0..3 {
        let answer = call(endpoint, "Decrypt", &json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(kms.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_refusal_of_the_kms_arrives_unchanged() {
    let refusal = json!({"__type": "AccessDeniedException", "Message": "no, because"});
    let sent = refusal.clone();
    let kms = FakeKms::start(true, move |_| (400, sent.clone())).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
        .await;
    let answer = call(endpoint, "Decrypt", &json!({})).await;
    assert_eq!((answer.status, answer.json()), (400, refusal));
    assert!(!answer.headers.contains_key("x-enclos-error"));
}

#[tokio::test]
async fn other_actions_pass_without_a_document() {
    let kms = FakeKms::start(true, |_| (200, json!({"KeyId": "any"}))).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(BrokenNsm))
        .await;
    let body = json!({"KeyId": "alias/x", "Plaintext": "eA=="});
    let answer = call(endpoint, "Encrypt", &body).await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"KeyId": "any"}))
    );
    assert_eq!(kms.last().body, body);
}

#[tokio::test]
async fn a_ciphertext_encoded_twice_is_decoded_and_warned_about() {
    let kms = FakeKms::start(true, decrypts(b"x")).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
        .await;
    let cipher = STANDARD.encode([0xf1; 90]);
    let body = json!({"CiphertextBlob": STANDARD.encode(&cipher)});
    let answer = call(endpoint, "Decrypt", &body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers["x-enclos-warning"].contains("base64 twice"));
    assert_eq!(kms.last().body["CiphertextBlob"], cipher);
}

#[tokio::test]
async fn replies_that_do_not_belong_to_the_request_are_refused() {
    let other = KEY_ARN.replace("8888", "9999");
    let replies = [
        json!({"KeyId": KEY_ARN, "Plaintext": "eA=="}),
        json!({"KeyId": other, "CiphertextForRecipient": "AA=="}),
        json!({"KeyId": KEY_ARN, "CiphertextForRecipient": "AA=="}),
        json!("text"),
    ];
    for reply in replies {
        let sent = reply.clone();
        let kms = FakeKms::start(true, move |_| (200, sent.clone())).await;
        let world = World::new(kms.address).await;
        let endpoint = world
            .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
            .await;
        let answer = call(endpoint, "Decrypt", &json!({})).await;
        assert_eq!(answer.status, 502, "{reply}");
        assert_eq!(answer.json()["__type"], "KMSInternalException");
        assert_eq!(answer.headers["x-enclos-error"], "agent");
        assert!(
            answer.json()["message"]
                .as_str()
                .unwrap()
                .starts_with("enclos-agent: ")
        );
    }
}

#[tokio::test]
async fn only_the_measured_authority_and_name_are_the_kms() {
    let kms = FakeKms::start(true, decrypts(b"x")).await;
    let world = World::new(kms.address).await;
    let (foreign, _) = certificate(SERVER_NAME);
    let mut misnamed = kms_config(&kms.ca_pem);
    misnamed.server_name = "kms.eu-west-3.amazonaws.com".into();
    for config in [kms_config(&foreign), misnamed] {
        let endpoint = world.endpoint(config, Arc::new(RealNsm)).await;
        let answer = call(endpoint, "Decrypt", &json!({})).await;
        assert_eq!(answer.status, 504);
        assert!(answer.text().contains("certificate"), "{}", answer.text());
    }
    assert!(kms.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_kms_or_parent_that_is_away_is_told() {
    let (ca, _) = certificate(SERVER_NAME);
    let world = World::new(nowhere().await).await;
    let endpoint = world.endpoint(kms_config(&ca), Arc::new(RealNsm)).await;
    let answer = call(endpoint, "Decrypt", &json!({})).await;
    assert_eq!(answer.json()["__type"], "DependencyTimeoutException");
    world.registry.retain(&[]);
    let endpoint = world.endpoint(kms_config(&ca), Arc::new(RealNsm)).await;
    let answer = call(endpoint, "Decrypt", &json!({})).await;
    assert_eq!(answer.json()["__type"], "ServiceUnavailableException");
    assert_eq!(answer.status, 503);
}

#[tokio::test]
async fn a_parent_without_credentials_and_an_nsm_without_documents_are_told() {
    let kms = FakeKms::start(true, decrypts(b"x")).await;
    let world = World::new(kms.address).await;
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(BrokenNsm))
        .await;
    let answer = call(endpoint, "Decrypt", &json!({})).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("InternalError"));
    std::fs::remove_file(world.credentials()).unwrap();
    let endpoint = world
        .endpoint(kms_config(&kms.ca_pem), Arc::new(RealNsm))
        .await;
    let answer = call(endpoint, "Decrypt", &json!({})).await;
    assert_eq!(answer.json()["__type"], "UnrecognizedClientException");
    assert!(answer.text().contains("credentials_file"));
}

/// MongoDB's drivers know the headers of an answer in this case alone.
#[tokio::test]
async fn headers_are_written_as_aws_writes_them() {
    let (ca, _) = certificate(SERVER_NAME);
    let world = World::new(nowhere().await).await;
    let endpoint = world.endpoint(kms_config(&ca), Arc::new(RealNsm)).await;
    let mut stream = TcpStream::connect(endpoint).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    for header in ["Content-Length: ", "Content-Type: "] {
        assert!(
            answer.lines().any(|line| line.starts_with(header)),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_is_no_call_is_refused() {
    let (ca, _) = certificate(SERVER_NAME);
    let world = World::new(nowhere().await).await;
    let endpoint = world.endpoint(kms_config(&ca), Arc::new(RealNsm)).await;
    for head in [
        "GET / HTTP/1.1",
        "POST / HTTP/1.1",
        "POST /x HTTP/1.1\r\nx-amz-target: TrentService.Decrypt",
        "POST / HTTP/1.1\r\nx-amz-target: DynamoDB_20120810.GetItem",
    ] {
        let answer = http(endpoint, head, b"").await;
        assert_eq!(answer.status, 400, "{head}");
        assert_eq!(answer.json()["__type"], "UnknownOperationException");
    }
    let head = "POST / HTTP/1.1\r\nx-amz-target: TrentService.Encrypt";
    let answer = http(endpoint, head, &vec![b'x'; (1 << 20) + 1]).await;
    assert_eq!(answer.status, 413);
}
