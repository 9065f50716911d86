//! Keys released to attested enclaves, and to nobody else: documents of an authority made here, answers opened by
//! OpenSSL.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::enclave::{
    Enclave, MODULE, ROLE, attested_decrypt, now, pcr, pinned_key, recipient, zero,
};
use common::{Server, blob, create, openssl};
use enclos_attest::PcrIndex;
use enclos_attest::document::Claims;
use enclos_attest::pki::LeafKey;
use serde_json::{Value, json};

fn image_condition() -> Value {
    json!({ "StringEqualsIgnoreCase": {
        "kms:RecipientAttestation:ImageSha384": pcr(1).to_string().to_uppercase(),
        "kms:RecipientAttestation:PCR3": pcr(4).to_string(),
    } })
}

#[test]
fn the_measured_image_gets_the_plaintext() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let (key, blob) = pinned_key(&server, &image_condition());

    let output = attested_decrypt(&role, &blob, &enclave.document()).ok();
    assert_eq!(enclave.open(&output), b"hello enclave");
    assert!(output["KeyId"].as_str().unwrap().ends_with(&key));

    let input =
        json!({ "KeyId": key, "KeySpec": "AES_256", "Recipient": recipient(&enclave.document()) });
    let data_key = role.call("GenerateDataKey", input).ok();
    let plaintext = enclave.open(&data_key);
    assert_eq!(plaintext.len(), 32);
    let again = attested_decrypt(
        &role,
        data_key["CiphertextBlob"].as_str().unwrap(),
        &enclave.document(),
    );
    assert_eq!(enclave.open(&again.ok()), plaintext);

    let input = json!({ "NumberOfBytes": 1024, "Recipient": recipient(&enclave.document()) });
    assert_eq!(
        enclave.open(&role.call("GenerateRandom", input).ok()).len(),
        1024
    );

    let events = server.audit(7);
    let event = events
        .iter()
        .find(|event| event["eventName"] == "Decrypt")
        .unwrap();
    let shown = &event["additionalEventData"]["recipient"];
    assert_eq!(shown["attestationDocumentModuleId"], MODULE);
    assert_eq!(
        shown["attestationDocumentEnclaveImageDigest"],
        pcr(1).to_string()
    );
    assert_eq!(shown["attestationDocumentEnclavePCR3"], pcr(4).to_string());
    assert_eq!(shown["attestationDocumentEnclavePCR8"], zero().to_string());
}

#[test]
fn without_a_document_there_is_no_release() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let (_, blob) = pinned_key(&server, &image_condition());
    for client in [server.principal(ROLE), server.client()] {
        let reply = client.decrypt(&blob, json!({}));
        let (kind, text) = reply.error();
        assert_eq!(kind, "AccessDeniedException");
        assert!(
            text.ends_with("because no resource-based policy allows the kms:Decrypt action"),
            "{text}"
        );
    }
}

#[test]
fn another_image_is_denied_and_the_audit_says_why() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let (_, blob) = pinned_key(&server, &image_condition());
    let mut claims = enclave.claims();
    claims.pcrs.insert(PcrIndex::IMAGE, pcr(9));
    let reply = attested_decrypt(&role, &blob, &enclave.sign(&claims));
    assert_eq!(reply.error_type(), "AccessDeniedException");
    // The caller learns neither what was expected nor what was presented.
    assert!(!reply.body.to_string().contains(&pcr(1).to_string()));

    let events = server.audit(4);
    let event = events
        .iter()
        .find(|event| event["errorCode"] == "AccessDenied")
        .unwrap();
    let conditions = &event["additionalEventData"]["denial"]["statements"][1]["conditions"];
    assert_eq!(
        conditions,
        &json!([{
            "operator": "StringEqualsIgnoreCase", "key": "kms:RecipientAttestation:ImageSha384",
            "expected": [pcr(1).to_string().to_uppercase()], "presented": [pcr(9).to_string()],
        }])
    );
    let table = String::from_utf8(server.tool(&["audit", "--failed"]).stdout).unwrap();
    assert!(table.contains(&format!("presented {}", pcr(9))), "{table}");
}

#[test]
fn another_role_is_denied() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let other = server.principal("arn:aws:iam::000000000000:role/other");
    let (_, blob) = pinned_key(&server, &image_condition());
    let reply = attested_decrypt(&other, &blob, &enclave.document());
    assert_eq!(reply.error_type(), "AccessDeniedException");
}

#[test]
fn altered_documents_are_refused() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let (_, blob) = pinned_key(&server, &image_condition());
    let document = enclave.document();
    let step = document.len() / 40;
    for at in (0..document.len()).step_by(step) {
        let mut altered = document.clone();
        altered[at] ^= 1;
        let reply = attested_decrypt(&role, &blob, &altered);
        let (kind, text) = reply.error();
        assert_eq!(kind, "ValidationException", "byte {at}");
        assert!(
            text.contains("cannot parse the attestation document"),
            "{text}"
        );
    }
    for bytes in [
        &b"x"[..],
        &[0; 5000],
        &document[..document.len() - 1],
        &[&document[..], b"\0"].concat(),
    ] {
        assert_eq!(
            attested_decrypt(&role, &blob, bytes).error_type(),
            "ValidationException"
        );
    }
}

#[test]
fn documents_live_five_minutes() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let (_, blob) = pinned_key(&server, &image_condition());
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let fresh = enclave.document_of(now().minus(minutes(4)));
    // As on AWS the same document may be used again while it is fresh.
    for _ in 0..2 {
        attested_decrypt(&role, &blob, &fresh).ok();
    }
    attested_decrypt(&role, &blob, &enclave.document_of(now().plus(minutes(4)))).ok();
    let old = attested_decrypt(&role, &blob, &enclave.document_of(now().minus(minutes(6))));
    let (kind, text) = old.error();
    assert_eq!(kind, "ValidationException");
    assert!(
        text.contains("exceeded the five-minute age limit"),
        "{text}"
    );
    let early = attested_decrypt(&role, &blob, &enclave.document_of(now().plus(minutes(6))));
    assert_eq!(early.error_type(), "ValidationException");
}

#[test]
fn other_roots_are_not_trusted() {
    let (enclave, other) = (Enclave::new(), Enclave::new());
    let server = enclave.server();
    let role = server.principal(ROLE);
    let (_, blob) = pinned_key(&server, &image_condition());
    attested_decrypt(&role, &blob, &enclave.document()).ok();
    let reply = attested_decrypt(&role, &blob, &other.document());
    let (kind, text) = reply.error();
    assert_eq!(kind, "ValidationException");
    assert!(text.contains("not trusted"), "{text}");

    let none = Server::dev();
    let client = none.client();
    let blob = client.encrypt(&client.create_key(), b"x", json!({}));
    let reply = attested_decrypt(&client, &blob, &enclave.document());
    assert_eq!(reply.error_type(), "ValidationException");
    let aws = Server::with(&["--trust-aws"]);
    let client = aws.client();
    let blob = client.encrypt(&client.create_key(), b"x", json!({}));
    let reply = attested_decrypt(&client, &blob, &enclave.document());
    assert_eq!(reply.error_type(), "ValidationException");
}

#[test]
fn debug_enclaves_fail_every_policy_that_pins_the_image() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let mut claims = enclave.claims();
    for index in [0_u8, 1, 2, 8] {
        claims
            .pcrs
            .insert(PcrIndex::try_from(index).unwrap(), zero());
    }
    let document = enclave.sign(&claims);
    let (_, blob) = pinned_key(&server, &image_condition());
    assert_eq!(
        attested_decrypt(&role, &blob, &document).error_type(),
        "AccessDeniedException"
    );

    // On AWS a policy that pins only the role admits debug enclaves too. So it does here, with a warning.
    let role_only =
        json!({ "StringEquals": { "kms:RecipientAttestation:PCR3": pcr(4).to_string() } });
    let (_, blob) = pinned_key(&server, &role_only);
    let output = attested_decrypt(&role, &blob, &document).ok();
    assert_eq!(enclave.open(&output), b"hello enclave");
    let log = server.log();
    assert!(log.contains("a debug-mode enclave was admitted"));
    assert!(log.contains("pins no measurement of the image, so debug-mode enclaves"));
}

#[test]
fn user_registers_count_once_they_are_locked() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let condition =
        json!({ "StringEquals": { "kms:RecipientAttestation:PCR16": pcr(0x77).to_string() } });
    let (_, blob) = pinned_key(&server, &condition);
    let denied = attested_decrypt(&role, &blob, &enclave.document());
    assert_eq!(denied.error_type(), "AccessDeniedException");
    let mut claims = enclave.claims();
    claims
        .pcrs
        .insert(PcrIndex::try_from(16_u8).unwrap(), pcr(0x77));
    attested_decrypt(&role, &blob, &enclave.sign(&claims)).ok();
}

#[test]
fn keys_that_cannot_be_answered() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let role = server.principal(ROLE);
    let (_, blob) = pinned_key(&server, &image_condition());
    for public_key in [
        None,
        Some(b"no key".to_vec()),
        Some(LeafKey::generate().unwrap().spki_der().to_vec()),
    ] {
        let document = enclave.sign(&Claims {
            public_key,
            ..enclave.claims()
        });
        let reply = attested_decrypt(&role, &blob, &document);
        let (kind, text) = reply.error();
        assert_eq!(kind, "ValidationException");
        assert!(text.contains("public key"), "{text}");
    }
}

#[test]
fn recipients_are_checked_for_form() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let client = server.client();
    let blob = client.encrypt(&client.create_key(), b"x", json!({}));
    let with = |recipient: Value| {
        client.call(
            "Decrypt",
            json!({ "CiphertextBlob": blob, "Recipient": recipient }),
        )
    };
    let document = STANDARD.encode(enclave.document());
    let cases = [
        (
            json!({ "KeyEncryptionAlgorithm": "RSAES_PKCS1", "AttestationDocument": document }),
            "1 validation error detected: Value 'RSAES_PKCS1' at 'recipient.keyEncryptionAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: [RSAES_OAEP_SHA_256]",
        ),
        (
            json!({ "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256" }),
            "1 validation error detected: Value null at 'recipient.attestationDocument' failed to satisfy constraint: Member must not be null",
        ),
    ];
    for (recipient, expected) in cases {
        assert_eq!(with(recipient).error(), ("ValidationException", expected));
    }
    assert_eq!(with(json!("x")).error_type(), "SerializationException");
    // An absent Recipient may be null, and then the answer is in the clear.
    assert_eq!(common::plaintext(&with(Value::Null).ok()), b"x");
}

#[test]
fn key_pairs_and_shared_secrets_go_to_the_enclave_alone() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let client = server.client();
    let key = client.create_key();
    let input = json!({ "KeyId": key, "KeyPairSpec": "ECC_NIST_P256", "Recipient": recipient(&enclave.document()) });
    let output = client.call("GenerateDataKeyPair", input).ok();
    assert!(output.get("PrivateKeyPlaintext").is_none());
    let private = enclave.open(&output);
    let directory = enclave.directory.path();
    let arguments = ["pkey", "-inform", "DER", "-pubout", "-outform", "DER"];
    let public = openssl(directory, &arguments, &private);
    assert_eq!(public, blob(&output, "PublicKey"));

    let agreement = create(
        &client,
        json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT" }),
    );
    let input = json!({ "KeyId": agreement, "KeyAgreementAlgorithm": "ECDH", "PublicKey": STANDARD.encode(&public) });
    let mut attested = input.clone();
    attested["Recipient"] = recipient(&enclave.document());
    let output = client.call("DeriveSharedSecret", attested).ok();
    assert!(output.get("SharedSecret").is_none());
    let plain = client.call("DeriveSharedSecret", input).ok();
    assert_eq!(enclave.open(&output), blob(&plain, "SharedSecret"));

    // A policy that wants a measurement refuses both without a document.
    let release = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Resource": "*",
        "Action": ["kms:GenerateDataKeyPair", "kms:DeriveSharedSecret"], "Condition": image_condition() });
    let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
    let role = server.principal(ROLE);
    for (key, operation, mut input) in [
        (
            &key,
            "GenerateDataKeyPair",
            json!({ "KeyPairSpec": "ECC_NIST_P256" }),
        ),
        (
            &agreement,
            "DeriveSharedSecret",
            json!({ "KeyAgreementAlgorithm": "ECDH", "PublicKey": STANDARD.encode(&public) }),
        ),
    ] {
        client.put_policy(key, &json!([admin, release])).ok();
        input["KeyId"] = json!(key);
        assert_eq!(
            role.call(operation, input.clone()).error_type(),
            "AccessDeniedException"
        );
        input["Recipient"] = recipient(&enclave.document());
        role.call(operation, input).ok();
    }
}

#[test]
fn a_callers_own_policies_look_at_the_document_where_there_is_no_key() {
    let enclave = Enclave::new();
    let server = enclave.server();
    let statement = |effect: &str, condition: Value| json!({ "Effect": effect, "Action": "kms:GenerateRandom", "Resource": "*", "Condition": condition });
    let image = |byte: u8| json!({ "StringEquals": { "kms:RecipientAttestation:ImageSha384": pcr(byte).to_string() } });
    let user = |name: &str, statements: Value| {
        let path = enclave.directory.path().join(format!("{name}.json"));
        let policy = json!({ "Version": "2012-10-17", "Statement": statements });
        std::fs::write(&path, policy.to_string()).unwrap();
        let arn = format!("arn:aws:iam::000000000000:user/{name}");
        let policy = format!("a={}", path.display());
        let put = server.tool(&["identity", "put", "--arn", &arn, "--policy", &policy]);
        assert!(put.status.success());
        server.principal(&arn)
    };
    let any = json!({ "Effect": "Allow", "Action": "*", "Resource": "*" });
    let attested = json!({ "NumberOfBytes": 8, "Recipient": recipient(&enclave.document()) });
    let plain = json!({ "NumberOfBytes": 8 });
    for (name, statements, with, without) in [
        ("own", json!([statement("Allow", image(1))]), 200, 400),
        ("other", json!([statement("Allow", image(9))]), 400, 400),
        (
            "denied",
            json!([any, statement("Deny", image(1))]),
            400,
            200,
        ),
        (
            "spared",
            json!([any, statement("Deny", image(9))]),
            200,
            200,
        ),
    ] {
        let user = user(name, statements);
        let status = |input: &Value| user.call("GenerateRandom", input.clone()).status;
        assert_eq!(
            (status(&attested), status(&plain)),
            (with, without),
            "{name}"
        );
    }
}
