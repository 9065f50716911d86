//! Keys of every kind: what they compute, checked with OpenSSL, which knows nothing of us, and what they refuse.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Client, Server, blob, create, openssl};
use serde_json::{Value, json};

const MESSAGE: &[u8] = b"a message that is signed";

/// All pairs of key spec and signing algorithm, with OpenSSL's name of the digest.
const SIGNING: &[(&str, &str, &str)] = &[
    ("RSA_2048", "RSASSA_PSS_SHA_256", "sha256"),
    ("RSA_2048", "RSASSA_PSS_SHA_384", "sha384"),
    ("RSA_3072", "RSASSA_PSS_SHA_512", "sha512"),
    ("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256", "sha256"),
    ("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_384", "sha384"),
    ("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_512", "sha512"),
    ("ECC_NIST_P256", "ECDSA_SHA_256", "sha256"),
    ("ECC_NIST_P384", "ECDSA_SHA_384", "sha384"),
    ("ECC_NIST_P521", "ECDSA_SHA_512", "sha512"),
    ("ECC_SECG_P256K1", "ECDSA_SHA_256", "sha256"),
];

fn sign(client: &Client, key: &str, algorithm: &str, kind: &str, message: &[u8]) -> String {
    let input = json!({ "KeyId": key, "Message": STANDARD.encode(message), "MessageType": kind,
        "SigningAlgorithm": algorithm });
    let output = client.call("Sign", input).ok();
    output["Signature"].as_str().unwrap().to_owned()
}

fn verify(
    client: &Client,
    key: &str,
    algorithm: &str,
    kind: &str,
    message: &[u8],
    signature: &str,
) -> common::Reply {
    let input = json!({ "KeyId": key, "Message": STANDARD.encode(message), "MessageType": kind,
        "SigningAlgorithm": algorithm, "Signature": signature });
    client.call("Verify", input)
}

fn public_key(client: &Client, key: &str) -> Vec<u8> {
    blob(
        &client.call("GetPublicKey", json!({ "KeyId": key })).ok(),
        "PublicKey",
    )
}

#[test]
fn signatures_are_those_of_openssl() {
    let server = Server::dev();
    let client = server.client();
    let directory = tempfile::tempdir().unwrap();
    for (spec, algorithm, digest) in SIGNING {
        let key = create(
            &client,
            json!({ "KeySpec": spec, "KeyUsage": "SIGN_VERIFY" }),
        );
        std::fs::write(directory.path().join("public"), public_key(&client, &key)).unwrap();
        std::fs::write(directory.path().join("message"), MESSAGE).unwrap();
        let hashed = openssl(
            directory.path(),
            &["dgst", &format!("-{digest}"), "-binary", "message"],
            b"",
        );
        for (kind, message) in [("RAW", MESSAGE), ("DIGEST", &hashed)] {
            let signature = sign(&client, &key, algorithm, kind, message);
            std::fs::write(
                directory.path().join("signature"),
                STANDARD.decode(&signature).unwrap(),
            )
            .unwrap();
            let flag = format!("-{digest}");
            let mut arguments = vec![
                "dgst",
                &flag,
                "-verify",
                "public",
                "-keyform",
                "DER",
                "-signature",
                "signature",
            ];
            if algorithm.contains("PSS") {
                arguments.extend([
                    "-sigopt",
                    "rsa_padding_mode:pss",
                    "-sigopt",
                    "rsa_pss_saltlen:digest",
                ]);
            }
            arguments.push("message");
            assert_eq!(
                openssl(directory.path(), &arguments, b""),
                b"Verified OK\n",
                "{spec} {algorithm} {kind}"
            );
            for (kind, message) in [("RAW", MESSAGE), ("DIGEST", &hashed)] {
                let output = verify(&client, &key, algorithm, kind, message, &signature).ok();
                assert_eq!(output["SignatureValid"], true);
            }
            let other = verify(&client, &key, algorithm, "RAW", b"another", &signature);
            assert_eq!(other.error(), ("KMSInvalidSignatureException", ""));
        }
        let short = json!({ "KeyId": key, "Message": "eA==", "MessageType": "DIGEST", "SigningAlgorithm": algorithm });
        let text = format!("Digest is invalid length for algorithm {algorithm}.");
        assert_eq!(
            client.call("Sign", short).error(),
            ("ValidationException", text.as_str())
        );
    }
}

#[test]
fn ed25519_and_its_variant_over_a_digest() {
    let server = Server::dev();
    let client = server.client();
    let directory = tempfile::tempdir().unwrap();
    let key = create(
        &client,
        json!({ "KeySpec": "ECC_NIST_EDWARDS25519", "KeyUsage": "SIGN_VERIFY" }),
    );
    std::fs::write(directory.path().join("public"), public_key(&client, &key)).unwrap();
    std::fs::write(directory.path().join("message"), MESSAGE).unwrap();
    let signature = sign(&client, &key, "ED25519_SHA_512", "RAW", MESSAGE);
    std::fs::write(
        directory.path().join("signature"),
        STANDARD.decode(&signature).unwrap(),
    )
    .unwrap();
    let arguments = [
        "pkeyutl",
        "-verify",
        "-rawin",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        "public",
        "-sigfile",
        "signature",
        "-in",
        "message",
    ];
    assert_eq!(
        openssl(directory.path(), &arguments, b""),
        b"Signature Verified Successfully\n"
    );
    verify(&client, &key, "ED25519_SHA_512", "RAW", MESSAGE, &signature).ok();

    let digest = openssl(
        directory.path(),
        &["dgst", "-sha512", "-binary", "message"],
        b"",
    );
    let prehashed = sign(&client, &key, "ED25519_PH_SHA_512", "DIGEST", &digest);
    verify(
        &client,
        &key,
        "ED25519_PH_SHA_512",
        "DIGEST",
        &digest,
        &prehashed,
    )
    .ok();
    // The two are different signatures, and neither passes for the other.
    let crossed = verify(&client, &key, "ED25519_SHA_512", "RAW", &digest, &prehashed);
    assert_eq!(crossed.error_type(), "KMSInvalidSignatureException");
    for (algorithm, kind) in [
        ("ED25519_SHA_512", "DIGEST"),
        ("ED25519_PH_SHA_512", "RAW"),
        ("ED25519_SHA_512", "EXTERNAL_MU"),
    ] {
        let refused = verify(&client, &key, algorithm, kind, &digest, &prehashed);
        assert_eq!(
            refused.error_type(),
            "ValidationException",
            "{algorithm} {kind}"
        );
    }
}

/// FIPS 204: mu is SHAKE256 of the public key's hash, the empty context and the message.
fn mu(directory: &std::path::Path, public: &[u8], message: &[u8]) -> Vec<u8> {
    let shake = |input: &[u8]| {
        std::fs::write(directory.join("input"), input).unwrap();
        openssl(
            directory,
            &["dgst", "-shake256", "-xoflen", "64", "-binary", "input"],
            b"",
        )
    };
    shake(&[&shake(public), &[0, 0][..], message].concat())
}

#[test]
fn ml_dsa_signs_messages_and_their_representatives() {
    let server = Server::dev();
    let client = server.client();
    let directory = tempfile::tempdir().unwrap();
    for (spec, public_len, signature_len) in [
        ("ML_DSA_44", 1312, 2420),
        ("ML_DSA_65", 1952, 3309),
        ("ML_DSA_87", 2592, 4627),
    ] {
        let key = create(
            &client,
            json!({ "KeySpec": spec, "KeyUsage": "SIGN_VERIFY" }),
        );
        let public = public_key(&client, &key);
        let mu = mu(
            directory.path(),
            &public[public.len() - public_len..],
            MESSAGE,
        );
        for (kind, message) in [("RAW", MESSAGE), ("EXTERNAL_MU", &mu)] {
            let signature = sign(&client, &key, "ML_DSA_SHAKE_256", kind, message);
            assert_eq!(STANDARD.decode(&signature).unwrap().len(), signature_len);
            // Made by one library, checked by both.
            verify(
                &client,
                &key,
                "ML_DSA_SHAKE_256",
                "RAW",
                MESSAGE,
                &signature,
            )
            .ok();
            verify(
                &client,
                &key,
                "ML_DSA_SHAKE_256",
                "EXTERNAL_MU",
                &mu,
                &signature,
            )
            .ok();
            let other = verify(
                &client,
                &key,
                "ML_DSA_SHAKE_256",
                "RAW",
                b"another",
                &signature,
            );
            assert_eq!(other.error_type(), "KMSInvalidSignatureException");
            let other = verify(
                &client,
                &key,
                "ML_DSA_SHAKE_256",
                "EXTERNAL_MU",
                &[7; 64],
                &signature,
            );
            assert_eq!(other.error_type(), "KMSInvalidSignatureException");
        }
        let digest = verify(
            &client,
            &key,
            "ML_DSA_SHAKE_256",
            "DIGEST",
            &[0; 32],
            "AAAA",
        );
        assert_eq!(digest.error_type(), "ValidationException");
    }
}

#[test]
fn rsa_encrypts_and_opens_what_openssl_encrypted() {
    let server = Server::dev();
    let client = server.client();
    let directory = tempfile::tempdir().unwrap();
    for (spec, largest) in [("RSA_2048", [214, 190]), ("RSA_3072", [342, 318])] {
        let key = create(
            &client,
            json!({ "KeySpec": spec, "KeyUsage": "ENCRYPT_DECRYPT" }),
        );
        std::fs::write(directory.path().join("public"), public_key(&client, &key)).unwrap();
        for (algorithm, digest, max) in [
            ("RSAES_OAEP_SHA_1", "sha1", largest[0]),
            ("RSAES_OAEP_SHA_256", "sha256", largest[1]),
        ] {
            let encrypt = |length: usize| {
                let plaintext = STANDARD.encode(vec![7; length]);
                client.call("Encrypt", json!({ "KeyId": key, "Plaintext": plaintext, "EncryptionAlgorithm": algorithm }))
            };
            let decrypt = |ciphertext: &str| {
                let input = json!({ "KeyId": key, "CiphertextBlob": ciphertext, "EncryptionAlgorithm": algorithm });
                client.call("Decrypt", input)
            };
            let output = encrypt(max).ok();
            assert_eq!(output["EncryptionAlgorithm"], algorithm);
            let output = decrypt(output["CiphertextBlob"].as_str().unwrap()).ok();
            assert_eq!(common::plaintext(&output), vec![7; max]);
            assert!(output.get("KeyMaterialId").is_none());
            let text = format!(
                "Algorithm {algorithm} and key spec {spec} cannot encrypt data larger than {max} bytes."
            );
            assert_eq!(
                encrypt(max + 1).error(),
                ("ValidationException", text.as_str())
            );

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
                "public",
                "-pkeyopt",
                "rsa_padding_mode:oaep",
                "-pkeyopt",
                &md,
                "-pkeyopt",
                &mgf,
            ];
            let mut ciphertext = openssl(directory.path(), &arguments, b"from outside");
            let output = decrypt(&STANDARD.encode(&ciphertext)).ok();
            assert_eq!(common::plaintext(&output), b"from outside");
            ciphertext[9] ^= 1;
            assert_eq!(
                decrypt(&STANDARD.encode(&ciphertext)).error_type(),
                "InvalidCiphertextException"
            );
        }
    }
}

#[test]
fn re_encryption_between_kinds() {
    let server = Server::dev();
    let client = server.client();
    let symmetric = client.create_key();
    let rsa = create(
        &client,
        json!({ "KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT" }),
    );
    let blob = client.encrypt(&symmetric, b"secret", json!({ "a": "1" }));
    let there = client
        .call(
            "ReEncrypt",
            json!({ "CiphertextBlob": blob, "SourceEncryptionContext": { "a": "1" },
        "DestinationKeyId": rsa, "DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_256" }),
        )
        .ok();
    assert_eq!(there["SourceKeyMaterialId"].as_str().unwrap().len(), 64);
    assert!(there.get("DestinationKeyMaterialId").is_none());
    let back = client
        .call(
            "ReEncrypt",
            json!({ "CiphertextBlob": there["CiphertextBlob"], "SourceKeyId": rsa,
        "SourceEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "DestinationKeyId": symmetric }),
        )
        .ok();
    let output = client
        .decrypt(back["CiphertextBlob"].as_str().unwrap(), json!({}))
        .ok();
    assert_eq!(common::plaintext(&output), b"secret");
    // What opens an RSA ciphertext must be named.
    let input = json!({ "CiphertextBlob": there["CiphertextBlob"], "EncryptionAlgorithm": "RSAES_OAEP_SHA_256" });
    assert_eq!(
        client.call("Decrypt", input).error_type(),
        "ValidationException"
    );
    let input = json!({ "CiphertextBlob": there["CiphertextBlob"] });
    assert_eq!(
        client.call("Decrypt", input).error_type(),
        "InvalidCiphertextException"
    );
    // With the ciphertext ignored, a dry run asks about the permission alone.
    let input =
        json!({ "KeyId": symmetric, "DryRun": true, "DryRunModifiers": ["IGNORE_CIPHERTEXT"] });
    assert_eq!(
        client.call("Decrypt", input).error_type(),
        "DryRunOperationException"
    );
}

#[test]
fn macs() {
    let server = Server::dev();
    let client = server.client();
    for (spec, algorithm, length) in [
        ("HMAC_224", "HMAC_SHA_224", 28),
        ("HMAC_256", "HMAC_SHA_256", 32),
        ("HMAC_384", "HMAC_SHA_384", 48),
        ("HMAC_512", "HMAC_SHA_512", 64),
    ] {
        let key = create(
            &client,
            json!({ "KeySpec": spec, "KeyUsage": "GENERATE_VERIFY_MAC" }),
        );
        let mut input = json!({ "KeyId": key, "Message": "eA==", "MacAlgorithm": algorithm });
        let output = client.call("GenerateMac", input.clone()).ok();
        assert_eq!(blob(&output, "Mac").len(), length);
        input["Mac"] = output["Mac"].clone();
        assert_eq!(
            client.call("VerifyMac", input.clone()).ok()["MacValid"],
            true
        );
        input["Message"] = json!("eQ==");
        assert_eq!(
            client.call("VerifyMac", input.clone()).error(),
            ("KMSInvalidMacException", "")
        );
        input["MacAlgorithm"] = json!(if length == 28 {
            "HMAC_SHA_256"
        } else {
            "HMAC_SHA_224"
        });
        let text = format!(
            "Algorithm {} is incompatible with key spec {spec}.",
            input["MacAlgorithm"].as_str().unwrap()
        );
        assert_eq!(
            client.call("GenerateMac", input.clone()).error(),
            ("InvalidKeyUsageException", text.as_str())
        );
        // Recorded, order and all: LocalStack's test_invalid_generate_mac.
        input["MacAlgorithm"] = json!("INVALID");
        let text = "1 validation error detected: Value 'INVALID' at 'macAlgorithm' failed to satisfy constraint: \
            Member must satisfy enum value set: [HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]";
        assert_eq!(
            client.call("GenerateMac", input).error(),
            ("ValidationException", text)
        );
    }
}

#[test]
fn shared_secrets() {
    let server = Server::dev();
    let client = server.client();
    let directory = tempfile::tempdir().unwrap();
    for (spec, curve) in [
        ("ECC_NIST_P256", "P-256"),
        ("ECC_NIST_P384", "P-384"),
        ("ECC_NIST_P521", "P-521"),
    ] {
        let key = create(
            &client,
            json!({ "KeySpec": spec, "KeyUsage": "KEY_AGREEMENT" }),
        );
        let path = directory.path();
        openssl(
            path,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                &format!("ec_paramgen_curve:{curve}"),
                "-out",
                "own.pem",
            ],
            b"",
        );
        let own = openssl(
            path,
            &["pkey", "-in", "own.pem", "-pubout", "-outform", "DER"],
            b"",
        );
        std::fs::write(path.join("peer"), public_key(&client, &key)).unwrap();
        let theirs = openssl(
            path,
            &[
                "pkeyutl",
                "-derive",
                "-inkey",
                "own.pem",
                "-peerkey",
                "peer",
                "-peerform",
                "DER",
            ],
            b"",
        );
        let derive = |public: &[u8]| {
            let input = json!({ "KeyId": key, "KeyAgreementAlgorithm": "ECDH", "PublicKey": STANDARD.encode(public) });
            client.call("DeriveSharedSecret", input)
        };
        let output = derive(&own).ok();
        assert_eq!(blob(&output, "SharedSecret"), theirs);
        assert_eq!(
            (&output["KeyOrigin"], &output["KeyAgreementAlgorithm"]),
            (&json!("AWS_KMS"), &json!("ECDH"))
        );
        assert_eq!(
            derive(b"InvalidPublicKey").error(),
            ("ValidationException", "")
        );
        let elsewhere = if curve == "P-256" { "P-384" } else { "P-256" };
        openssl(
            path,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                &format!("ec_paramgen_curve:{elsewhere}"),
                "-out",
                "other.pem",
            ],
            b"",
        );
        let other = openssl(
            path,
            &["pkey", "-in", "other.pem", "-pubout", "-outform", "DER"],
            b"",
        );
        assert_eq!(derive(&other).error(), ("ValidationException", ""));
    }
}

#[test]
fn encapsulated_secrets() {
    let server = Server::dev();
    let client = server.client();
    for (spec, public_len, ciphertext_len) in [
        ("ML_KEM_512", 800, 768),
        ("ML_KEM_768", 1184, 1088),
        ("ML_KEM_1024", 1568, 1568),
    ] {
        let key = create(
            &client,
            json!({ "KeySpec": spec, "KeyUsage": "ENCAPSULATE_DECAPSULATE" }),
        );
        let public = public_key(&client, &key);
        assert!((public_len + 16..public_len + 32).contains(&public.len()));
        let input = json!({ "KeyId": key, "EncapsulationAlgorithm": "ML_KEM" });
        let made = client.call("Encapsulate", input.clone()).ok();
        assert_eq!(
            blob(&made, "SharedSecretCiphertextBlob").len(),
            ciphertext_len
        );
        let open = |ciphertext: &Value| {
            let mut input = input.clone();
            input["SharedSecretCiphertextBlob"] = ciphertext.clone();
            client.call("Decapsulate", input)
        };
        let opened = open(&made["SharedSecretCiphertextBlob"]).ok();
        assert_eq!(opened["SharedSecret"], made["SharedSecret"]);
        assert_eq!(blob(&opened, "SharedSecret").len(), 32);
        assert_eq!(
            open(&json!("AAAA")).error_type(),
            "InvalidCiphertextException"
        );
    }
}

#[test]
fn data_key_pairs() {
    let server = Server::dev();
    let client = server.client();
    let directory = tempfile::tempdir().unwrap();
    let key = client.create_key();
    for spec in [
        "RSA_2048",
        "ECC_NIST_P256",
        "ECC_NIST_P384",
        "ECC_NIST_P521",
        "ECC_SECG_P256K1",
        "ECC_NIST_EDWARDS25519",
    ] {
        let input = json!({ "KeyId": key, "KeyPairSpec": spec, "EncryptionContext": { "a": "1" } });
        let output = client.call("GenerateDataKeyPair", input.clone()).ok();
        assert_eq!(output["KeyPairSpec"], spec);
        let private = blob(&output, "PrivateKeyPlaintext");
        let public = openssl(
            directory.path(),
            &["pkey", "-inform", "DER", "-pubout", "-outform", "DER"],
            &private,
        );
        assert_eq!(public, blob(&output, "PublicKey"), "{spec}");
        let sealed = output["PrivateKeyCiphertextBlob"].as_str().unwrap();
        let opened = client.decrypt(sealed, json!({ "a": "1" })).ok();
        assert_eq!(common::plaintext(&opened), private);
        assert_eq!(
            client.decrypt(sealed, json!({})).error(),
            ("InvalidCiphertextException", "")
        );
        let without = client
            .call("GenerateDataKeyPairWithoutPlaintext", input.clone())
            .ok();
        assert!(without.get("PrivateKeyPlaintext").is_none());
        for operation in ["GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"] {
            let mut input = input.clone();
            input["DryRun"] = json!(true);
            assert_eq!(
                client.call(operation, input).error_type(),
                "DryRunOperationException"
            );
        }
    }
    let rsa = create(
        &client,
        json!({ "KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT" }),
    );
    let input = json!({ "KeyId": rsa, "KeyPairSpec": "ECC_NIST_P256" });
    assert_eq!(
        client.call("GenerateDataKeyPair", input).error(),
        (
            "InvalidKeyUsageException",
            "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048."
        )
    );
}

/// The answers that AWS gave to LocalStack's recorder.
#[test]
fn keys_of_another_usage() {
    let server = Server::dev();
    let client = server.client();
    let symmetric = client.create_key();
    let hmac = create(
        &client,
        json!({ "KeySpec": "HMAC_224", "KeyUsage": "GENERATE_VERIFY_MAC" }),
    );
    let signing = create(
        &client,
        json!({ "KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY" }),
    );
    let arn = |key: &str| format!("arn:aws:kms:eu-west-1:000000000000:key/{key}");
    let cases = [
        (
            "GenerateMac",
            json!({ "KeyId": symmetric, "Message": "eA==", "MacAlgorithm": "HMAC_SHA_224" }),
            "ENCRYPT_DECRYPT",
        ),
        (
            "Sign",
            json!({ "KeyId": hmac, "Message": "eA==", "SigningAlgorithm": "RSASSA_PSS_SHA_256" }),
            "GENERATE_VERIFY_MAC",
        ),
        (
            "Verify",
            json!({ "KeyId": symmetric, "Message": "eA==", "Signature": "eA==", "SigningAlgorithm": "ECDSA_SHA_256" }),
            "ENCRYPT_DECRYPT",
        ),
        (
            "Encrypt",
            json!({ "KeyId": signing, "Plaintext": "eA==" }),
            "SIGN_VERIFY",
        ),
        (
            "DeriveSharedSecret",
            json!({ "KeyId": signing, "KeyAgreementAlgorithm": "ECDH", "PublicKey": "eA==" }),
            "SIGN_VERIFY",
        ),
        (
            "GenerateDataKey",
            json!({ "KeyId": hmac, "KeySpec": "AES_256" }),
            "GENERATE_VERIFY_MAC",
        ),
    ];
    for (operation, input, usage) in cases {
        let key = arn(input["KeyId"].as_str().unwrap());
        let text = format!("{key} key usage is {usage} which is not valid for {operation}.");
        assert_eq!(
            client.call(operation, input).error(),
            ("InvalidKeyUsageException", text.as_str())
        );
    }
    let ciphertext = client.encrypt(&symmetric, b"x", json!({}));
    let wrong = client.call(
        "Decrypt",
        json!({ "CiphertextBlob": ciphertext, "KeyId": hmac }),
    );
    assert_eq!(wrong.error_type(), "IncorrectKeyException");
    let without = client.call("CreateKey", json!({ "KeySpec": "HMAC_256" }));
    assert_eq!(
        without.error(),
        (
            "ValidationException",
            "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."
        )
    );
    let agreement = client.call(
        "CreateKey",
        json!({ "KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT" }),
    );
    assert_eq!(
        agreement.error(),
        (
            "ValidationException",
            "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"
        )
    );
    let symmetric = client.call("GetPublicKey", json!({ "KeyId": symmetric }));
    assert_eq!(symmetric.error_type(), "UnsupportedOperationException");
}

/// The API's documentation of UpdateAlias: keys of one type and one usage; RSA and ECC are of one type.
#[test]
fn an_alias_moves_among_keys_of_one_kind() {
    let server = Server::dev();
    let client = server.client();
    let make = |spec, usage| create(&client, json!({ "KeySpec": spec, "KeyUsage": usage }));
    let update = |key: &str| {
        let input = json!({ "AliasName": "alias/app", "TargetKeyId": key });
        client.call("UpdateAlias", input)
    };
    let rsa = make("RSA_2048", "SIGN_VERIFY");
    let input = json!({ "AliasName": "alias/app", "TargetKeyId": rsa });
    client.call("CreateAlias", input).ok();
    update(&make("ECC_NIST_P256", "SIGN_VERIFY")).ok();
    let text = "Alias alias/app cannot be changed from a CMK with key usage SIGN_VERIFY to a CMK with key usage GENERATE_VERIFY_MAC. \
        The key usage of the current CMK and the new CMK must be the same.";
    assert_eq!(
        update(&make("HMAC_256", "GENERATE_VERIFY_MAC")).error(),
        ("ValidationException", text)
    );
    client
        .call("DeleteAlias", json!({ "AliasName": "alias/app" }))
        .ok();
    let input = json!({ "AliasName": "alias/app", "TargetKeyId": client.create_key() });
    client.call("CreateAlias", input).ok();
    let text = "Alias alias/app cannot be changed from a CMK with key type symmetric to a CMK with key type asymmetric. \
        The key type of the current CMK and the new CMK must be the same.";
    assert_eq!(
        update(&make("RSA_2048", "ENCRYPT_DECRYPT")).error(),
        ("ValidationException", text)
    );
    update(&client.create_key()).ok();
}

#[test]
fn every_kind_survives_a_restart() {
    let mut server = Server::dev();
    let client = server.client();
    let kinds = [
        ("RSA_2048", "SIGN_VERIFY", "RSASSA_PSS_SHA_256"),
        ("ECC_SECG_P256K1", "SIGN_VERIFY", "ECDSA_SHA_256"),
        ("ECC_NIST_EDWARDS25519", "SIGN_VERIFY", "ED25519_SHA_512"),
        ("ML_DSA_65", "SIGN_VERIFY", "ML_DSA_SHAKE_256"),
    ];
    let made: Vec<_> = kinds
        .iter()
        .map(|(spec, usage, algorithm)| {
            let key = create(&client, json!({ "KeySpec": spec, "KeyUsage": usage }));
            let signature = sign(&client, &key, algorithm, "RAW", MESSAGE);
            (key, *algorithm, signature)
        })
        .collect();
    let kem = create(
        &client,
        json!({ "KeySpec": "ML_KEM_768", "KeyUsage": "ENCAPSULATE_DECAPSULATE" }),
    );
    let secret = client
        .call(
            "Encapsulate",
            json!({ "KeyId": kem, "EncapsulationAlgorithm": "ML_KEM" }),
        )
        .ok();
    let before = public_key(&client, &kem);
    server.stop();
    let again = Server::start(&server.data, &["--listen", "127.0.0.1:0", "--dev"]);
    let client = again.client();
    for (key, algorithm, signature) in made {
        verify(&client, &key, algorithm, "RAW", MESSAGE, &signature).ok();
    }
    assert_eq!(public_key(&client, &kem), before);
    let opened = client
        .call(
            "Decapsulate",
            json!({ "KeyId": kem, "EncapsulationAlgorithm": "ML_KEM",
        "SharedSecretCiphertextBlob": secret["SharedSecretCiphertextBlob"] }),
        )
        .ok();
    assert_eq!(opened["SharedSecret"], secret["SharedSecret"]);
    // Nothing of a private key lies in the database in the clear: PKCS#8 would contain RSA's object identifier.
    let database = match again.database {
        Some(_) => {
            let sealed = "SELECT string_agg(encode(sealed, 'hex'), '') FROM materials";
            hex::decode(common::postgres::psql(&again.data, sealed)).unwrap()
        }
        None => std::fs::read(again.data.join("kms.db")).unwrap(),
    };
    assert!(database.len() > 1000);
    let oid = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    assert!(!database.windows(oid.len()).any(|window| window == oid));
}
