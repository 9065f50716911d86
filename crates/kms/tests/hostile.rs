//! Whatever arrives, the answer is one that the caller caused: never a 5xx, never a panic.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use common::campaign::{Dice, number};
use common::{Client, Server, request};
use enclos_kms::arn::PrincipalArn;
use enclos_kms::crypto::seal::RootKey;
use enclos_kms::ops::OPERATIONS;
use enclos_kms::policy::{Context, Policy, Question};
use enclos_kms::recipient::Trust;
use enclos_kms::service::{Answer, Channel, Request, Service};
use enclos_kms::store::Store;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

const REQUESTS: usize = 10_000;

const MEMBERS: &[&str] = &[
    "AliasName",
    "BypassPolicyLockoutSafetyCheck",
    "CiphertextBlob",
    "CustomKeyStoreId",
    "CustomerMasterKeySpec",
    "Description",
    "DestinationEncryptionContext",
    "DestinationKeyId",
    "DryRun",
    "DryRunModifiers",
    "EncapsulationAlgorithm",
    "EncryptedKeyMaterial",
    "EncryptionAlgorithm",
    "EncryptionContext",
    "ExpirationModel",
    "GrantTokens",
    "ImportToken",
    "ImportType",
    "IncludeKeyMaterial",
    "KeyAgreementAlgorithm",
    "KeyId",
    "KeyMaterialDescription",
    "KeyMaterialId",
    "KeyPairSpec",
    "KeySpec",
    "KeyUsage",
    "Limit",
    "Mac",
    "MacAlgorithm",
    "Marker",
    "Message",
    "MessageType",
    "MultiRegion",
    "NumberOfBytes",
    "Origin",
    "PendingWindowInDays",
    "Plaintext",
    "Policy",
    "PolicyName",
    "PrimaryRegion",
    "PublicKey",
    "Recipient",
    "ReplicaRegion",
    "RotationPeriodInDays",
    "SharedSecretCiphertextBlob",
    "Signature",
    "SigningAlgorithm",
    "SourceEncryptionContext",
    "SourceKeyId",
    "Tags",
    "TargetKeyId",
    "ValidTo",
    "WrappingAlgorithm",
    "WrappingKeySpec",
];

/// Flips, drops or repeats a few bytes.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..=dice.roll(3) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.roll(bytes.len());
        match dice.roll(3) {
            0 => bytes[at] ^= u8::try_from(1 << dice.roll(8)).unwrap(),
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, bytes[at]),
        }
    }
}

async fn send(service: &Service, operation: &str, body: &[u8]) -> Answer {
    let client = Client::new((Ipv4Addr::LOCALHOST, 1).into(), "test", "test");
    let mut headers = HeaderMap::new();
    for (name, value) in client.signed(&format!("TrentService.{operation}"), body) {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.insert(name, HeaderValue::from_str(&value).unwrap());
    }
    let request = Request {
        method: "POST".to_owned(),
        path: "/".to_owned(),
        query: String::new(),
        headers,
        body: body.to_vec().into(),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        channel: Channel::Dev,
    };
    service.answer(request).await
}

async fn must(service: &Service, operation: &str, input: Value) -> Value {
    let answer = send(service, operation, input.to_string().as_bytes()).await;
    assert_eq!(
        answer.status,
        200,
        "{}",
        String::from_utf8_lossy(&answer.body)
    );
    serde_json::from_slice(&answer.body).unwrap()
}

/// Values that are right somewhere and wrong elsewhere.
async fn values(service: &Service) -> Vec<Value> {
    let key = must(service, "CreateKey", json!({})).await["KeyMetadata"].clone();
    let input = json!({ "KeyId": key["KeyId"], "Plaintext": "c2VjcmV0" });
    let blob = must(service, "Encrypt", input).await["CiphertextBlob"].clone();
    let mut pairs = Vec::new();
    for usage in ["SIGN_VERIFY", "KEY_AGREEMENT"] {
        let input = json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": usage, "MultiRegion": true });
        pairs.push(must(service, "CreateKey", input).await["KeyMetadata"]["KeyId"].clone());
    }
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        key["KeyId"].clone(),
        key["Arn"].clone(),
        blob,
        deep,
        json!("alias/a"),
        json!("alias/aws/a"),
        json!("arn:aws:kms:eu-west-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
        json!("arn:::::"),
        json!("c2VjcmV0"),
        json!("AAAA"),
        json!("x".repeat(9000)),
        json!("\u{0}\u{ffff}é🔑"),
        json!(""),
        json!("default"),
        json!("SYMMETRIC_DEFAULT"),
        json!("AES_256"),
        json!("ECC_NIST_P256"),
        json!("KEY_AGREEMENT"),
        json!("SIGN_VERIFY"),
        json!("ECDH"),
        json!("ECDSA_SHA_256"),
        json!("HMAC_SHA_256"),
        json!("EXTERNAL"),
        json!("us-east-1"),
        pairs[0].clone(),
        pairs[1].clone(),
        json!(0),
        json!(-1),
        json!(7),
        json!(1e308),
        json!(32.5),
        json!(u64::MAX),
        json!(true),
        json!(false),
        Value::Null,
        json!([]),
        json!(["a", 5]),
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": 5 }),
        json!({ "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": "AAAA" }),
        json!({ "KeyEncryptionAlgorithm": 5, "AttestationDocument": [] }),
        json!(POLICY),
    ]
}

const POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{"Sid":"A","Effect":"Allow","Principal":{"AWS":["000000000000","arn:aws:iam::000000000000:role/x"]},"Action":["kms:*"],"Resource":"*","Condition":{"ForAnyValue:StringLike":{"kms:EncryptionContextKeys":["a*","${aws:username, 'x'}"]},"NumericLessThan":{"n":5},"IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"Bool":{"aws:SecureTransport":"true"}}},{"Effect":"Deny","NotPrincipal":{"AWS":"000000000000"},"NotAction":"kms:Dec?ypt","Resource":["*"]}]}"#;

#[tokio::test]
async fn no_request_is_answered_with_a_5xx() {
    let directory = tempfile::tempdir().unwrap();
    let (store, writer) = Store::open(directory.path()).await.unwrap();
    let root = RootKey::open(&directory.path().join("root.key"), true).unwrap();
    let service = Service::new(store, root, Trust::default()).await.unwrap();
    let values = values(&service).await;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut answered = 0;
    for number in 0..REQUESTS {
        let members: Map<String, Value> = (0..dice.roll(5))
            .map(|_| ((*dice.pick(MEMBERS)).to_owned(), dice.pick(&values).clone()))
            .collect();
        let mut body = Value::Object(members).to_string().into_bytes();
        if dice.roll(4) == 0 {
            mutate(&mut dice, &mut body);
        }
        let (operation, _) = dice.pick(OPERATIONS);
        let answer = send(&service, operation, &body).await;
        let shown = String::from_utf8_lossy(&body);
        assert!(answer.status < 500, "request {number}: {operation} {shown}");
        answered += usize::from(answer.status == 200);
    }
    assert!(
        answered > REQUESTS / 100,
        "only {answered} requests meant anything"
    );
    drop(service);
    writer.await.unwrap();
}

/// The status that a server answers to some bytes, if it answers at all.
fn status(address: SocketAddr, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    // The server may have seen enough before it has seen everything.
    let _refused = stream.write_all(bytes);
    let mut reply = [0; 12];
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    if stream.read_exact(&mut reply).is_err() {
        // It waits for more, of which there is none.
        let _gone = stream.shutdown(Shutdown::Write);
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.read_exact(&mut reply).ok()?;
    }
    let text = std::str::from_utf8(&reply).unwrap();
    // A message whose version was made an older one gets an answer of that version.
    let (version, status) = text.split_once(' ').unwrap();
    assert!(version.starts_with("HTTP/1."), "{text}");
    Some(status.parse().unwrap())
}

#[test]
fn no_message_is_answered_with_a_5xx() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let address = server.http.unwrap();
    let mut dice = Dice(0x0dd0_2bad_5eed_1234);
    let messages = number("ENCLOS_KMS_MESSAGES").map_or(1_000, |count| count.try_into().unwrap());
    let mut answers = std::collections::BTreeMap::<Option<u16>, usize>::new();
    for sent in 0..messages {
        let (operation, _) = dice.pick(OPERATIONS);
        let body = json!({ "KeyId": key, "Plaintext": "eA==" }).to_string();
        let headers = client.signed(&format!("TrentService.{operation}"), body.as_bytes());
        let mut bytes = request("POST", "/", &headers, body.as_bytes());
        mutate(&mut dice, &mut bytes);
        if dice.roll(20) == 0 {
            bytes.truncate(dice.roll(bytes.len()));
        }
        let status = status(address, &bytes);
        let shown = String::from_utf8_lossy(&bytes);
        assert!(
            status.is_none_or(|status| status < 500),
            "message {sent}: {status:?} to {shown}"
        );
        *answers.entry(status).or_default() += 1;
    }
    assert!(answers.contains_key(&Some(400)), "{answers:?}");
    let none = answers.get(&None).copied().unwrap_or_default();
    assert!(none < messages / 4, "{answers:?}");
    // Of the first key some message may have asked for its deletion.
    client.encrypt(&client.create_key(), b"still serving", json!({}));
    assert!(!server.log().contains("panicked"));
}

#[test]
fn no_policy_panics() {
    let mut dice = Dice(0x0123_4567_89ab_cdef);
    let principal = PrincipalArn::parse("arn:aws:iam::000000000000:role/x").unwrap();
    let mut context = Context::default();
    context.set("kms:EncryptionContextKeys", "ab");
    context.set("aws:SourceIp", "10.0.0.1");
    let mut parsed = 0;
    for _ in 0..20_000 {
        let mut text = POLICY.as_bytes().to_vec();
        mutate(&mut dice, &mut text);
        let Ok(policy) = Policy::parse(&String::from_utf8_lossy(&text)) else {
            continue;
        };
        parsed += 1;
        let question = Question {
            principal: &principal,
            action: "kms:Decrypt",
            resource: "arn:aws:kms:eu-west-1:000000000000:key/x",
            context: &context,
        };
        let verdict = policy.evaluate(&question);
        assert_eq!(policy.explain(&question).len(), 2, "{verdict:?}");
    }
    assert!(parsed > 1_000, "only {parsed} policies were still policies");
}
