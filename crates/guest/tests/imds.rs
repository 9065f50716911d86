//! Instance metadata through the real gateway.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    unreachable_pub,
    dead_code,
    reason = "the support module serves several tests"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use support::{Answer, BrokenNsm, RealNsm, World, gone, http, nowhere, verify};

async fn get(address: SocketAddr, path: &str) -> Answer {
    http(address, &format!("GET {path} HTTP/1.1"), b"").await
}

async fn token(address: SocketAddr, ttl: &str) -> Answer {
    let head =
        format!("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: {ttl}");
    http(address, &head, b"").await
}

#[tokio::test]
async fn version_1_answers_what_sdks_ask() {
    let world = World::new(nowhere().await).await;
    let imds = world.imds(Arc::new(RealNsm)).await;
    for (path, value) in [
        ("/latest/meta-data/instance-id", "i-0123456789abcdef0"),
        ("/latest/meta-data/instance-id/", "404"),
        ("/2021-07-15/meta-data/placement/region", "eu-west-3"),
        (
            "/latest/meta-data/placement/availability-zone",
            "eu-west-3a",
        ),
        ("/latest/meta-data/iam/security-credentials/", "parent"),
        ("/latest/meta-data/iam/security-credentials/other", "404"),
        ("/latest/user-data", "404"),
        ("/other/meta-data", "404"),
        ("/latest", "dynamic/\nmeta-data/"),
    ] {
        let answer = get(imds, path).await;
        assert!(
            answer.text().starts_with(value),
            "{path}: {}",
            answer.text()
        );
    }
    let credentials = get(imds, "/latest/meta-data/iam/security-credentials/parent")
        .await
        .json();
    assert_eq!(credentials["AccessKeyId"], "ASIAENCLOS");
    assert_eq!(credentials["Expiration"], "2099-01-01T00:00:00Z");
    let document = get(imds, "/latest/dynamic/instance-identity/document")
        .await
        .json();
    assert_eq!(document["accountId"], "000000000000");
    assert_eq!(document["region"], "eu-west-3");
}

#[tokio::test]
async fn version_2_wants_a_token_of_its_own() {
    let world = World::new(nowhere().await).await;
    let imds = world.imds(Arc::new(RealNsm)).await;
    let issued = token(imds, "60").await;
    assert_eq!(issued.status, 200);
    assert_eq!(issued.headers["x-aws-ec2-metadata-token-ttl-seconds"], "60");
    let with = |token: &str| {
        format!("GET /latest/meta-data/instance-id HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}")
    };
    assert_eq!(
        http(imds, &with(issued.text()), b"").await.text(),
        "i-0123456789abcdef0"
    );
    assert_eq!(http(imds, &with("forged"), b"").await.status, 401);
    for ttl in ["0", "21601", "x", ""] {
        assert_eq!(token(imds, ttl).await.status, 400, "{ttl}");
    }
    let proxied = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
                   X-Forwarded-For: 10.0.0.1";
    assert_eq!(http(imds, proxied, b"").await.status, 403);
    assert_eq!(
        http(imds, "POST /latest/api/token HTTP/1.1", b"")
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn a_document_is_made_for_each_request() {
    let world = World::new(nowhere().await).await;
    let imds = world.imds(Arc::new(RealNsm)).await;
    let path = "/latest/meta-data/enclave-attestation-document";
    let token = token(imds, "60").await;
    let keyed = format!("{path}?nonce=AQI%3D&user_data=Aw&public_key=BA==");
    let request = format!(
        "GET {keyed} HTTP/1.1\r\nX-aws-ec2-metadata-token: {}",
        token.text()
    );
    let answer = http(imds, &request, b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let document = verify(&STANDARD.decode(answer.text()).unwrap());
    assert_eq!(document.nonce(), Some(&[1, 2][..]));
    assert_eq!(document.user_data(), Some(&[3][..]));
    assert_eq!(document.public_key(), Some(&[4][..]));
    assert_eq!(get(imds, &keyed).await.status, 401, "a GET attests no key");
    assert_eq!(get(imds, &format!("{path}?nonce=AQI")).await.status, 200);
    let reserved = STANDARD.encode(enclos_attest::channel::PURPOSE);
    let answer = get(
        imds,
        &format!("{path}?user_data={}", reserved.replace('=', "%3D")),
    )
    .await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    for query in ["nonce=!", "x=1", "nonce=AQ&nonce=AQ"] {
        let answer = get(imds, &format!("{path}?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
    }
    let broken = world.imds(Arc::new(BrokenNsm)).await;
    let answer = get(broken, path).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("InternalError"));
}

#[tokio::test]
async fn a_parent_that_goes_away_leaves_what_it_said() {
    let world = World::new(nowhere().await).await;
    let imds = world.imds(Arc::new(RealNsm)).await;
    let path = "/latest/meta-data/instance-id";
    assert_eq!(get(imds, path).await.status, 200);
    world.registry.retain(&[]);
    gone(&enclos_gateway::registry::port_path(&world.vsock(), 9002)).await;
    assert_eq!(get(imds, path).await.status, 200);
    let fresh = world.imds(Arc::new(RealNsm)).await;
    let answer = get(fresh, path).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("9002"), "{}", answer.text());
}

#[tokio::test]
async fn rotated_credentials_are_seen_while_the_old_ones_expire() {
    let world = World::new(nowhere().await).await;
    let write = |key: &str| {
        let text = format!(
            r#"{{"AccessKeyId":"{key}","SecretAccessKey":"s","Expiration":"2020-01-01T00:00:00Z"}}"#
        );
        std::fs::write(world.credentials(), text).unwrap();
    };
    let imds = world.imds(Arc::new(RealNsm)).await;
    let path = "/latest/meta-data/iam/security-credentials/parent";
    write("OLD");
    assert_eq!(get(imds, path).await.json()["AccessKeyId"], "OLD");
    write("NEW");
    let rotated = async {
        while get(imds, path).await.json()["AccessKeyId"] != "NEW" {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(support::LIMIT, rotated).await.unwrap();
}
