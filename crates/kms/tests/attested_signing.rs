//! The extension `--attested-signing`: Sign, Verify, GenerateMac and VerifyMac decided by attestation, with documents of an
//! authority made here; and that without it they are AWS's.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::enclave::{Enclave, MODULE, ROLE, now, pcr, recipient, zero};
use common::{Client, Reply, Server, blob, create};
use enclos_attest::PcrIndex;
use enclos_attest::document::Claims;
use serde_json::{Value, json};

const OPERATIONS: [&str; 4] = ["Sign", "Verify", "GenerateMac", "VerifyMac"];
const MESSAGE: &[u8] = b"an invoice";

fn index(number: u8) -> PcrIndex {
    PcrIndex::try_from(number).unwrap()
}

fn image_condition() -> Value {
    json!({ "StringEqualsIgnoreCase": {
        "kms:RecipientAttestation:ImageSha384": pcr(1).to_string().to_uppercase(),
        "kms:RecipientAttestation:PCR1": pcr(2).to_string(),
        "kms:RecipientAttestation:PCR2": pcr(3).to_string(),
    } })
}

/// A server with a key that signs and one that makes MACs.
struct Site {
    server: Server,
    role: Client,
    signing: String,
    mac: String,
}

impl Site {
    fn new(server: Server) -> Self {
        let root = server.client();
        let signing = json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY" });
        let mac = json!({ "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC" });
        Self {
            role: server.principal(ROLE),
            signing: create(&root, signing),
            mac: create(&root, mac),
            server,
        }
    }

    /// Both keys admit the role under a condition; the reply of the last PutKeyPolicy.
    fn admit(&self, condition: &Value) -> Reply {
        let actions = OPERATIONS.map(|name| format!("kms:{name}"));
        let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" },
            "NotAction": actions, "Resource": "*" });
        let release = json!({ "Sid": "Release", "Effect": "Allow", "Principal": { "AWS": ROLE },
            "Action": actions, "Resource": "*", "Condition": condition });
        let statements = json!([admin, release]);
        let root = self.server.client();
        root.put_policy(&self.signing, &statements).ok();
        let reply = root.put_policy(&self.mac, &statements);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    }

    /// A request's parameters. `proof` is what Verify and VerifyMac look at.
    fn input(&self, operation: &str, proof: &[u8], document: Option<&[u8]>) -> Value {
        let mut input = json!({ "Message": STANDARD.encode(MESSAGE) });
        let (key, algorithm, value) = match operation.ends_with("Mac") {
            true => (&self.mac, ("MacAlgorithm", "HMAC_SHA_256"), "Mac"),
            false => (
                &self.signing,
                ("SigningAlgorithm", "ECDSA_SHA_256"),
                "Signature",
            ),
        };
        input["KeyId"] = json!(key);
        input[algorithm.0] = json!(algorithm.1);
        if operation.starts_with("Verify") {
            input[value] = json!(STANDARD.encode(proof));
        }
        if let Some(document) = document {
            input["Recipient"] = recipient(document);
        }
        input
    }

    fn call(&self, operation: &str, proof: &[u8], document: Option<&[u8]>) -> Reply {
        let input = self.input(operation, proof, document);
        self.role.call(operation, input)
    }
}

/// An enclave and a server with the extension.
fn attested() -> (Enclave, Site) {
    let enclave = Enclave::new();
    let server = enclave.server_with(&["--attested-signing"]);
    (enclave, Site::new(server))
}

fn with(enclave: &Enclave, number: u8, value: u8) -> Vec<u8> {
    let mut claims = enclave.claims();
    claims.pcrs.insert(index(number), pcr(value));
    enclave.sign(&claims)
}

fn warnings_of(reply: &Reply) -> &str {
    let mut lines = reply.headers.lines();
    lines
        .find_map(|line| line.strip_prefix("x-enclos-policy-warnings: "))
        .unwrap_or_default()
}

#[test]
fn signatures_and_macs_go_to_the_enclave_alone() {
    let (enclave, site) = attested();
    site.admit(&image_condition());
    let document = enclave.document();
    for (make, check, value, valid) in [
        ("Sign", "Verify", "Signature", "SignatureValid"),
        ("GenerateMac", "VerifyMac", "Mac", "MacValid"),
    ] {
        let output = site.call(make, b"", Some(&document)).ok();
        assert!(output.get(value).is_none(), "{output}");
        let proof = enclave.open(&output);
        let verified = site.call(check, &proof, Some(&document)).ok();
        assert_eq!(verified[valid], true);
        assert!(verified.get("CiphertextForRecipient").is_none());
        // Neither the role without a document nor the account may.
        for client in [&site.role, &site.server.client()] {
            for operation in [make, check] {
                let input = site.input(operation, &proof, None);
                let reply = client.call(operation, input);
                assert_eq!(reply.error_type(), "AccessDeniedException", "{operation}");
            }
        }
        let mut dry = site.input(make, b"", Some(&document));
        dry["DryRun"] = json!(true);
        let reply = site.role.call(make, dry);
        assert_eq!(reply.error_type(), "DryRunOperationException");
        let wrong = site.call(check, &[1; 32], Some(&document));
        assert!(wrong.error_type().starts_with("KMSInvalid"), "{wrong:?}");
    }
}

#[test]
fn a_plain_call_is_answered_as_on_aws_where_the_policy_lets_it() {
    let (enclave, site) = attested();
    site.admit(&json!({}));
    let plain = site.call("Sign", b"", None).ok();
    let signature = blob(&plain, "Signature");
    site.call("Verify", &signature, None).ok();
    let sealed = site.call("GenerateMac", b"", Some(&enclave.document()));
    let plain = site.call("GenerateMac", b"", None).ok();
    assert_eq!(enclave.open(&sealed.ok()), blob(&plain, "Mac"));
}

#[test]
fn every_register_is_looked_at() {
    let (enclave, site) = attested();
    for number in 0..16 {
        let value = enclave.pcrs[&index(number)];
        let key = format!("kms:RecipientAttestation:PCR{number}");
        site.admit(&json!({ "StringEquals": { key: value.to_string() } }));
        for operation in ["Sign", "GenerateMac"] {
            let right = site.call(operation, b"", Some(&enclave.document()));
            right.ok();
            let wrong = site.call(operation, b"", Some(&with(&enclave, number, 0x77)));
            assert_eq!(wrong.error_type(), "AccessDeniedException", "PCR{number}");
        }
    }
}

#[test]
fn a_denied_signature_is_recorded_and_explained() {
    let (enclave, site) = attested();
    site.admit(&image_condition());
    site.call("Sign", b"", Some(&enclave.document())).ok();
    let denied = site.call("Sign", b"", Some(&with(&enclave, 0, 9)));
    assert_eq!(denied.error_type(), "AccessDeniedException");
    assert!(!denied.body.to_string().contains(&pcr(1).to_string()));

    // An access key, two keys, two policies, two calls.
    let events = site.server.audit(7);
    let signs: Vec<_> = events
        .iter()
        .filter(|event| event["eventName"] == "Sign")
        .collect();
    let [admitted, denied] = signs.as_slice() else {
        panic!("{signs:?}");
    };
    let shown = |event: &Value| event["additionalEventData"]["recipient"].clone();
    let digest = "attestationDocumentEnclaveImageDigest";
    assert_eq!(
        shown(admitted)["attestationDocumentModuleId"],
        json!(MODULE)
    );
    assert_eq!(shown(admitted)[digest], json!(pcr(1).to_string()));
    assert_eq!(shown(denied)[digest], json!(pcr(9).to_string()));
    let id = denied["requestID"].as_str().unwrap();
    let explained = site.server.tool(&["explain", id]);
    let table = String::from_utf8(explained.stdout).unwrap();
    assert!(table.contains(&pcr(9).to_string()), "{table}");
    assert!(table.contains("kms:Sign"), "{table}");
}

#[test]
fn documents_that_count_nowhere_do_not_count_here() {
    let (enclave, site) = attested();
    // Whether the policy would have asked for one or not.
    site.admit(&json!({}));
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let mut altered = enclave.document();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    let no_key = Claims {
        public_key: None,
        ..enclave.claims()
    };
    let documents = [
        altered,
        enclave.document_of(now().minus(minutes(6))),
        enclave.document_of(now().plus(minutes(6))),
        Enclave::new().document(),
        enclave.sign(&no_key),
        b"no document".to_vec(),
    ];
    for operation in OPERATIONS {
        for document in &documents {
            let reply = site.call(operation, &[1; 32], Some(document));
            assert_eq!(reply.error_type(), "ValidationException", "{operation}");
        }
        let mut input = site.input(operation, &[1; 32], None);
        input["Recipient"] = json!({ "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256" });
        let reply = site.role.call(operation, input);
        let (kind, text) = reply.error();
        assert_eq!(kind, "ValidationException");
        assert!(text.contains("'recipient.attestationDocument'"), "{text}");
    }
}

#[test]
fn debug_enclaves_sign_nothing_that_the_image_is_pinned_for() {
    let (enclave, site) = attested();
    site.admit(&image_condition());
    let mut claims = enclave.claims();
    for number in [0_u8, 1, 2, 8] {
        claims.pcrs.insert(index(number), zero());
    }
    let document = enclave.sign(&claims);
    for operation in OPERATIONS {
        let reply = site.call(operation, &[1; 32], Some(&document));
        assert_eq!(reply.error_type(), "AccessDeniedException", "{operation}");
    }
}

/// A service of AWS ignores members that it does not know, and its conditions on documents never hold for these actions.
#[test]
fn without_the_switch_the_actions_take_no_document() {
    let enclave = Enclave::new();
    let site = Site::new(enclave.server());
    let reply = site.admit(&image_condition());
    // Of the first statement in either case: the account may put another policy.
    let warnings = "delegation-bypass=1, unattestable-action=2";
    assert_eq!(warnings_of(&reply), warnings);
    for operation in OPERATIONS {
        let reply = site.call(operation, &[1; 32], Some(&enclave.document()));
        assert_eq!(reply.error_type(), "AccessDeniedException", "{operation}");
    }
    site.admit(&json!({}));
    for document in [enclave.document(), b"no document".to_vec()] {
        let output = site.call("Sign", b"", Some(&document)).ok();
        assert!(output.get("CiphertextForRecipient").is_none());
        let signature = blob(&output, "Signature");
        site.call("Verify", &signature, Some(&document)).ok();
        let output = site.call("GenerateMac", b"", Some(&document)).ok();
        let mac = blob(&output, "Mac");
        site.call("VerifyMac", &mac, Some(&document)).ok();
    }
    // An access key, two keys, twice two policies, four and eight calls.
    let events = site.server.audit(19);
    let shown = |event: &Value| event["additionalEventData"]["recipient"].is_object();
    assert!(events.iter().all(|event| !shown(event)));
}

#[test]
fn policies_for_signing_get_no_warning_with_the_switch() {
    let (_enclave, site) = attested();
    let reply = site.admit(&image_condition());
    assert_eq!(warnings_of(&reply), "delegation-bypass=1");
}
