use super::super::request;
use super::super::testing::{Parts, Shape};
use super::*;
use serde_json::json;
use std::sync::LazyLock;

static KEY: LazyLock<RecipientKey> = LazyLock::new(|| RecipientKey::generate().unwrap());

const ARN: &str = "arn:aws:kms:eu-west-3:000000000000:key/11112222-3333-4444-5555-666677778888";
const ID: &str = "11112222-3333-4444-5555-666677778888";

fn sealed(plaintext: &[u8]) -> String {
    STANDARD.encode(Parts::seal(KEY.public(), plaintext).encode(Shape::Pieces(1000)))
}

/// Opens `reply` as the answer to `request`.
fn opened(
    action: &str,
    request: &Value,
    reply: &Value,
    allowed: &[&str],
) -> Result<Value, ReplyError> {
    let planned = request::plan(action, request.to_string().into(), true);
    let allowed: Vec<String> = allowed.iter().map(|arn| (*arn).to_owned()).collect();
    let expected = planned.attested.unwrap();
    let bytes = open(reply.to_string().as_bytes(), &expected, &allowed, &KEY)?;
    Ok(serde_json::from_slice(&bytes).unwrap())
}

#[test]
fn each_action_gets_its_field_and_loses_the_envelope() {
    for (action, field, len) in [
        ("Decrypt", "Plaintext", 5),
        ("GenerateDataKey", "Plaintext", 32),
        ("GenerateDataKeyPair", "PrivateKeyPlaintext", 1217),
        ("GenerateRandom", "Plaintext", 32),
        ("DeriveSharedSecret", "SharedSecret", 32),
        ("Sign", "Signature", 71),
        ("GenerateMac", "Mac", 48),
    ] {
        let request = json!({"KeySpec": "AES_256", "KeyPairSpec": "RSA_2048", "NumberOfBytes": 32});
        let plaintext = vec![3; len];
        let reply = json!({
            "KeyId": ARN, "KeyPairSpec": "RSA_2048", "PublicKey": "x",
            "CiphertextForRecipient": sealed(&plaintext),
        });
        let value = opened(action, &request, &reply, &[ARN]).unwrap();
        assert_eq!(value[field], STANDARD.encode(&plaintext), "{action}");
        assert!(value.get("CiphertextForRecipient").is_none());
        assert_eq!(value["PublicKey"], "x");
    }
}

#[test]
fn a_plaintext_field_may_be_absent_null_or_empty() {
    for clear in [Value::Null, json!("")] {
        let reply =
            json!({"KeyId": ARN, "Plaintext": clear, "CiphertextForRecipient": sealed(b"x")});
        assert!(opened("Decrypt", &json!({}), &reply, &[]).is_ok());
    }
    let reply = json!({"KeyId": ARN, "Plaintext": "eA==", "CiphertextForRecipient": sealed(b"x")});
    let error = opened("Decrypt", &json!({}), &reply, &[]).unwrap_err();
    assert!(matches!(error, ReplyError::InTheClear("Plaintext")));
}

#[test]
fn a_kms_that_ignores_attestation_is_refused() {
    for reply in [
        json!({"KeyId": ARN, "Plaintext": "eA=="}),
        json!({"KeyId": ARN}),
    ] {
        let error = opened("Decrypt", &json!({}), &reply, &[]).unwrap_err();
        assert!(matches!(error, ReplyError::NoCiphertext(_)));
    }
    let reply = json!({"KeyId": ARN, "CiphertextForRecipient": "?"});
    assert!(opened("Decrypt", &json!({}), &reply, &[]).is_err());
}

#[test]
fn a_signature_or_mac_that_is_not_sealed_is_refused() {
    for (action, field, algorithm, other) in [
        (
            "Sign",
            "Signature",
            ("SigningAlgorithm", "ECDSA_SHA_256"),
            "ECDSA_SHA_512",
        ),
        (
            "GenerateMac",
            "Mac",
            ("MacAlgorithm", "HMAC_SHA_256"),
            "HMAC_SHA_512",
        ),
    ] {
        let (name, used) = algorithm;
        let request = json!({"KeyId": ARN, name: used});
        let clear = json!({"KeyId": ARN, name: used, field: "eA=="});
        let error = opened(action, &request, &clear, &[]).unwrap_err();
        assert!(error.to_string().contains("--attested-signing"), "{error}");
        let mut reply =
            json!({"KeyId": ARN, name: used, "CiphertextForRecipient": sealed(&[7; 32])});
        let value = opened(action, &request, &reply, &[ARN]).unwrap();
        assert_eq!(value[field], STANDARD.encode([7; 32]));
        reply[name] = json!(other);
        let error = opened(action, &request, &reply, &[]).unwrap_err();
        assert!(matches!(error, ReplyError::Repeated { .. }), "{error}");
        reply[name] = json!(used);
        reply["KeyId"] = json!(ARN.replace("8888", "9999"));
        let error = opened(action, &request, &reply, &[]).unwrap_err();
        assert!(matches!(error, ReplyError::Key { .. }), "{error}");
    }
    let short = json!({"KeyId": ARN, "MacAlgorithm": "HMAC_SHA_256", "CiphertextForRecipient": sealed(&[7; 31])});
    let request = json!({"KeyId": ARN, "MacAlgorithm": "HMAC_SHA_256"});
    let error = opened("GenerateMac", &request, &short, &[]).unwrap_err();
    assert!(matches!(error, ReplyError::Length { found: 31, .. }));
}

#[test]
fn the_reply_to_a_check_is_checked_and_stays_as_it_is() {
    for (action, field, name) in [
        ("Verify", "SignatureValid", "SigningAlgorithm"),
        ("VerifyMac", "MacValid", "MacAlgorithm"),
    ] {
        let request = json!({"KeyId": ID, name: "x"});
        let reply = json!({"KeyId": ARN, field: true, name: "x"});
        assert_eq!(opened(action, &request, &reply, &[ARN]).unwrap(), reply);
        let other = ARN.replace("8888", "9999");
        let error = opened(action, &request, &reply, &[&other]).unwrap_err();
        assert!(matches!(error, ReplyError::Key { .. }), "{error}");
        let asked = json!({"KeyId": ID, name: "y"});
        let error = opened(action, &asked, &reply, &[ARN]).unwrap_err();
        assert!(matches!(error, ReplyError::Repeated { .. }), "{error}");
    }
}

#[test]
fn only_the_keys_asked_for_and_allowed_answer() {
    let reply = json!({"KeyId": ARN, "CiphertextForRecipient": sealed(b"x")});
    let ask = |key: &str, allowed: &[&str]| {
        opened("Decrypt", &json!({"KeyId": key}), &reply, allowed).map(drop)
    };
    let other = ARN.replace("8888", "9999");
    let alias_arn = "arn:aws:kms:eu-west-3:000000000000:alias/a";
    for key in [ARN, ID, "alias/a", alias_arn] {
        ask(key, &[]).unwrap();
        ask(key, &[&other, ARN]).unwrap();
        assert!(matches!(ask(key, &[&other]), Err(ReplyError::Key { .. })));
    }
    assert!(matches!(ask(&other, &[]), Err(ReplyError::Key { .. })));
    assert!(matches!(
        ask("666677778888", &[]),
        Err(ReplyError::Key { .. })
    ));
    let nameless = json!({"CiphertextForRecipient": sealed(b"x")});
    let error = opened("Decrypt", &json!({}), &nameless, &[ARN]).unwrap_err();
    assert!(matches!(error, ReplyError::Key { .. }));
}

#[test]
fn a_data_key_of_another_length_is_refused() {
    let reply = json!({"KeyId": ARN, "CiphertextForRecipient": sealed(&[0; 16])});
    for request in [json!({"KeySpec": "AES_256"}), json!({"NumberOfBytes": 17})] {
        let error = opened("GenerateDataKey", &request, &reply, &[]).unwrap_err();
        assert!(matches!(error, ReplyError::Length { found: 16, .. }));
    }
    let empty = json!({"KeyId": ARN, "CiphertextForRecipient": sealed(b"")});
    let error = opened("Decrypt", &json!({}), &empty, &[]).unwrap_err();
    assert!(matches!(error, ReplyError::Length { found: 0, .. }));
    let long = json!({"KeyId": ARN, "CiphertextForRecipient": sealed(&[1; 67])});
    assert!(opened("DeriveSharedSecret", &json!({}), &long, &[]).is_err());
}

#[test]
fn a_reply_that_contradicts_the_request_is_refused() {
    let request = json!({"EncryptionAlgorithm": "RSAES_OAEP_SHA_256"});
    let reply = json!({
        "KeyId": ARN, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "CiphertextForRecipient": sealed(b"x"),
    });
    let error = opened("Decrypt", &request, &reply, &[]).unwrap_err();
    assert!(matches!(
        error,
        ReplyError::Repeated {
            name: "EncryptionAlgorithm",
            ..
        }
    ));
}

#[test]
fn what_is_no_json_object_is_refused() {
    let planned = request::plan("Decrypt", "{}".into(), false);
    let expected = planned.attested.unwrap();
    for body in [&b""[..], b"[]", b"\"x\"", b"{"] {
        assert!(matches!(
            open(body, &expected, &[], &KEY),
            Err(ReplyError::Json)
        ));
    }
}
