//! The loop, and everything that must break it.

use base64::prelude::{BASE64_STANDARD, Engine};
use enclos_e2e::child;
use enclos_e2e::container::{Buildah, Registry};
use enclos_e2e::image::{Image, change_one_byte};
use enclos_e2e::policy::Pins;
use enclos_e2e::stack::{BOOT, Enclave, INSTANCE, OTHER_ROLE, ROLE, Stack};
use enclos_e2e::stories::{self, Refusal, Secret};
use serde_json::json;

use crate::Fixture;

impl Fixture {
    fn secret(&self, image: &Image) -> Secret {
        let pins = Pins::new(&image.measurements, ROLE, INSTANCE)
            .unwrap()
            .and_role(OTHER_ROLE);
        Secret::new(&self.stack.kms, pins, "meet me at noon").unwrap()
    }

    fn rust_backend(&self) -> Image {
        self.builder()
            .rust_backend("rust-backend", |_| Ok(()))
            .unwrap()
    }

    fn ask(&self, secret: &Secret, enclave: &Enclave<'_>) -> Refusal {
        enclave.until_answering("/health").unwrap();
        stories::enclave_decrypts(&self.stack.kms, secret, enclave).unwrap()
    }
}

/// What the examples make of the secret once they have its key.
const ANSWER: &str = "Processed: MEET ME AT NOON (4 words)";

fn expect_answer(enclave: &Enclave<'_>, data: &str) {
    let request = json!({ "encrypted_data": data });
    let reply = enclave.post("/process", &request).unwrap();
    let answer = String::from_utf8_lossy(&reply.body);
    assert!(answer.contains(ANSWER), "{answer}");
}

#[test]
fn the_pinned_enclave_gets_its_key() {
    let fixture = Fixture::new();
    let image = fixture.rust_backend();
    let secret = fixture.secret(&image);
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    enclave.until_answering("/health").unwrap();
    let reply = enclave
        .post("/process", &json!({ "encrypted_data": secret.ciphertext }))
        .unwrap();
    assert_eq!(reply.json().unwrap()["result"], ANSWER);
}

#[test]
fn unmodified_boto3_decrypts_in_flask() {
    let fixture = Fixture::new();
    let image = fixture.builder().flask_backend("flask-backend").unwrap();
    let secret = fixture.secret(&image);
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    enclave.until_answering("/health").unwrap();
    // The second is the mistake that everyone makes once: base64 of what is base64 already.
    for data in [
        secret.ciphertext.clone(),
        BASE64_STANDARD.encode(&secret.ciphertext),
    ] {
        expect_answer(&enclave, &data);
    }
    let damaged = format!("A{}", &secret.ciphertext[1..]);
    let reply = enclave
        .post("/process", &json!({ "encrypted_data": damaged }))
        .unwrap();
    assert_eq!(reply.status, 403);
    assert_eq!(
        reply.json().unwrap()["error"]["Code"],
        "InvalidCiphertextException"
    );
}

/// Built from its Dockerfile, and pulled from a registry by digest, the example is one image: the same registers, so the enclave of the
/// second gets the key that is pinned to the first.
#[test]
fn the_flask_dockerfile_runs_the_loop_built_by_buildah_and_pulled_from_a_registry() {
    let fixture = Fixture::new();
    let builder = fixture.builder();
    let buildah = Buildah::new(fixture.stack.dir.join("buildah")).unwrap();
    let tag = "localhost/flask-backend:1";
    let built = builder.flask_dockerfile("built", tag, &buildah).unwrap();
    let registry = Registry::start(&fixture.stack.dir.join("registry")).unwrap();
    let reference = buildah.push(tag, &registry, "flask-backend").unwrap();
    let pulled = builder.pulled("pulled", &reference).unwrap();
    assert_eq!(pulled.measurements, built.measurements, "{reference}");
    let secret = fixture.secret(&built);
    let enclave = fixture.stack.host.run(&pulled, &[]).unwrap();
    enclave.until_answering("/health").unwrap();
    expect_answer(&enclave, &secret.ciphertext);
}

/// The same application, not a byte of it changed, behind TLS that ends in the enclave.
#[test]
fn a_stock_application_is_reached_by_attested_tls_alone() {
    let fixture = Fixture::new();
    let image = fixture
        .builder()
        .flask_backend_with_attested_tls("flask-attested")
        .unwrap();
    let secret = fixture.secret(&image);
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    let data = json!({ "encrypted_data": secret.ciphertext }).to_string();
    let call = |options: &[&str]| {
        let mut command = fixture.stack.host.enclos();
        let url = format!("https://{}", enclave.address);
        command.args(["call", &url, "--attested-tls", "--wait", "90"]);
        let root = fixture.stack.host.state.join("root.pem");
        command.arg("--root").arg(root).args(["--data", &data]);
        child::read(command.args(options), BOOT)
    };
    let eif = image.eif.to_str().unwrap();
    let answer = call(&["--eif", eif]).unwrap();
    assert!(answer.contains(ANSWER), "{answer}");
    let answer = call(&["--eif", eif, "--tls-nonce"]).unwrap();
    assert!(answer.contains(ANSWER), "{answer}");
    let refused = call(&["--pcr0", &image.measurements.pcr1]).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("nothing was sent"), "{refused}");
    assert!(refused.contains("PCR0 is"), "{refused}");
    assert!(
        enclave.get("/health").is_err(),
        "in the open, nobody answers"
    );
}

/// SDKs from before `AWS_ENDPOINT_URL_KMS` call the name that AWS's documentation gives, by TLS: DNS leads them to the agent, and the
/// bundle in `AWS_CA_BUNDLE` makes them trust it. boto3 does what they do when told to ignore the variable. It signs too, where image
/// and KMS say so.
#[test]
fn an_sdk_that_knows_no_endpoint_variable_decrypts_too() {
    let mut fixture = Fixture::new();
    fixture.stack.kms.take_documents_for_signing().unwrap();
    let env = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS = \"true\",";
    let image = fixture.builder().flask_signer("old-sdk", env).unwrap();
    let secret = fixture.secret(&image);
    let enclave = fixture.stack.host.run(&image, &[]).unwrap();
    enclave.until_answering("/health").unwrap();
    expect_answer(&enclave, &secret.ciphertext);
    expect_signature(&fixture.stack, &enclave, &secret.pins);
}

/// The enclave signs with a key that is pinned to it; the account finds the signature right, and the host itself gets none.
fn expect_signature(stack: &Stack, enclave: &Enclave<'_>, pins: &Pins) {
    let developer = stack.kms.developer();
    let kind = json!({ "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY" });
    let key = developer.create(&kind).unwrap();
    developer.put_policy(&key, &pins.signing_policy()).unwrap();
    let asked = json!({ "key": key, "text": "an invoice" });
    let reply = enclave.post("/sign", &asked).unwrap().json().unwrap();
    let mut call = json!({ "KeyId": key, "Message": BASE64_STANDARD.encode("an invoice"),
        "SigningAlgorithm": "ECDSA_SHA_256" });
    let refused = stack.role.call("Sign", &call).unwrap();
    let refused = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(refused.contains("AccessDenied"), "{refused}");
    call["Signature"] = reply["signature"].clone();
    let verified = developer.must("Verify", &call).unwrap();
    assert_eq!(verified["SignatureValid"], true, "{reply}");
}

#[test]
fn the_host_itself_gets_nothing() {
    let fixture = Fixture::new();
    let secret = fixture.secret(&fixture.rust_backend());
    let refusal = stories::parent_decrypts(&fixture.stack, &secret).unwrap();
    assert!(refusal.error.contains("AccessDenied"), "{refusal:?}");
    assert!(
        refusal.is_about_pcr(0) && refusal.conditions.iter().all(|one| one.presented.is_none()),
        "{refusal:?}"
    );
}

#[test]
fn one_changed_byte_of_the_application_gets_nothing() {
    let fixture = Fixture::new();
    let image = fixture.rust_backend();
    let secret = fixture.secret(&image);
    let changed = fixture
        .builder()
        .rust_backend("changed", |program| change_one_byte(program))
        .unwrap();
    assert_ne!(changed.measurements.pcr2, image.measurements.pcr2);
    assert_eq!(changed.measurements.pcr1, image.measurements.pcr1);
    let refusal = fixture.ask(&secret, &fixture.stack.host.run(&changed, &[]).unwrap());
    assert!(
        refusal.is_about_pcr(0) && refusal.is_about_pcr(2) && !refusal.is_about_pcr(1),
        "{refusal:?}"
    );
}

#[test]
fn debug_mode_gets_nothing() {
    let fixture = Fixture::new();
    let image = fixture.rust_backend();
    let secret = fixture.secret(&image);
    let refusal = fixture.ask(
        &secret,
        &fixture.stack.host.run(&image, &["--debug-mode"]).unwrap(),
    );
    let zero = Some("0".repeat(96));
    assert!(
        refusal
            .conditions
            .iter()
            .any(|one| one.key.ends_with("PCR0") && one.presented == zero),
        "{refusal:?}"
    );
}

#[test]
fn another_role_gets_nothing() {
    let fixture = Fixture::new();
    let image = fixture.rust_backend();
    let secret = fixture.secret(&image);
    let host = fixture.stack.second_host(OTHER_ROLE).unwrap();
    let refusal = fixture.ask(&secret, &host.run(&image, &[]).unwrap());
    assert!(
        refusal.is_about_pcr(3) && !refusal.is_about_pcr(0),
        "{refusal:?}"
    );
}

#[test]
fn an_old_document_and_a_foreign_root_get_nothing_but_their_twin_does() {
    let fixture = Fixture::new();
    let secret = fixture.secret(&fixture.rust_backend());
    let old = stories::replayed_document(&fixture.stack, &secret).unwrap();
    let foreign = stories::foreign_document(&fixture.stack, &secret).unwrap();
    assert_ne!(old.reason, foreign.reason);
    assert!(!old.reason.is_empty() && !foreign.reason.is_empty());
    // Fresh and from the right root, the same document is taken, and openssl opens what is released to it.
    let opened = stories::opened_by_openssl(&fixture.stack, &secret).unwrap();
    assert_eq!(opened, b"meet me at noon");
}

#[test]
fn a_key_survives_kill_nine_once_acknowledged() {
    let mut fixture = Fixture::new();
    let developer = fixture.stack.kms.developer();
    for round in 0..3 {
        let key = developer.create_key(&format!("round {round}")).unwrap();
        let ciphertext = developer.encrypt(&key, "still here").unwrap();
        fixture.stack.kms.kill().unwrap();
        fixture.stack.kms.restart().unwrap();
        let opened = developer
            .must("Decrypt", &json!({ "CiphertextBlob": ciphertext }))
            .unwrap();
        assert_eq!(opened["Plaintext"], BASE64_STANDARD.encode("still here"));
        assert_eq!(opened["KeyId"], key.as_str());
    }
}
