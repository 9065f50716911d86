//! Images signed with a key that never leaves a real KMS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use enclos_e2e::child;
use enclos_e2e::image::Image;
use enclos_e2e::kms::Client;
use enclos_e2e::stack::OTHER_ROLE;
use serde_json::{Value, json};

use crate::Fixture;

const LIMIT: Duration = Duration::from_secs(60);

/// Status of nitro-cli's E60, "signing".
const SIGNING: i32 = 60;

/// Whose credentials a command has: key id and secret.
type Credentials<'a> = (&'a str, &'a str);

const DEVELOPER: Credentials<'_> = ("test", "test");

impl Fixture {
    fn create(&self, spec: &str, usage: &str) -> String {
        let body = json!({ "KeySpec": spec, "KeyUsage": usage });
        let created = self.stack.kms.developer().must("CreateKey", &body).unwrap();
        created["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    /// A certificate for a key in the KMS, as docs/images.md makes one: the KMS gives the public key, another key issues.
    fn certificate(&self, developer: &Client, arn: &str, name: &str) -> PathBuf {
        let path = |ending: &str| self.stack.dir.join(format!("{name}.{ending}"));
        let reply = developer.must("GetPublicKey", &json!({ "KeyId": arn }));
        let der = reply.unwrap()["PublicKey"].as_str().unwrap().to_owned();
        fs::write(path("der"), BASE64_STANDARD.decode(der).unwrap()).unwrap();
        let file = |ending: &str| path(ending).display().to_string();
        let (der, public, issuer, certificate) =
            (file("der"), file("pub"), file("issuer"), file("crt"));
        openssl(&[
            "pkey", "-pubin", "-inform", "DER", "-in", &der, "-out", &public,
        ]);
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-384",
            "-out",
            &issuer,
        ]);
        let subject = ["-subj", "/CN=image signer", "-days", "30"];
        let keys = [
            "-force_pubkey",
            &public,
            "-key",
            &issuer,
            "-out",
            &certificate,
        ];
        openssl(&[&["x509", "-new"], &subject[..], &keys].concat());
        path("crt")
    }

    fn sign(
        &self,
        image: &Image,
        certificate: &Path,
        key: &str,
        who: Credentials<'_>,
    ) -> (Option<i32>, String) {
        let mut command = self.stack.host.enclos();
        command.arg("sign-eif").arg("--eif-path").arg(&image.eif);
        command.arg("--signing-certificate").arg(certificate);
        command.args(["--private-key", key]);
        command.env(
            "AWS_ENDPOINT_URL_KMS",
            format!("http://{}", self.stack.kms.dev),
        );
        command.envs([
            ("AWS_ACCESS_KEY_ID", who.0),
            ("AWS_SECRET_ACCESS_KEY", who.1),
        ]);
        let output = child::output(&mut command, LIMIT).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    fn enclos(&self, arguments: &[&str]) -> Value {
        let mut command = self.stack.host.enclos();
        let printed = child::read(command.args(arguments), LIMIT).unwrap();
        serde_json::from_str(&printed).unwrap()
    }
}

fn openssl(arguments: &[&str]) {
    child::read(Command::new("openssl").args(arguments), LIMIT).unwrap();
}

#[test]
fn a_key_that_stays_in_enclos_kms_signs_an_image() {
    let fixture = Fixture::new();
    let developer = fixture.stack.kms.developer();
    let image = fixture
        .builder()
        .test_program("wait", &["wait"], "")
        .unwrap();
    let key = fixture.create("ECC_NIST_P384", "SIGN_VERIFY");
    let certificate = fixture.certificate(&developer, &key, "signer");
    let (status, said) = fixture.sign(&image, &certificate, &key, DEVELOPER);
    assert_eq!(status, Some(0), "{said}");
    let eif = image.eif.display().to_string();
    let described = fixture.enclos(&["describe-eif", "--eif-path", &eif]);
    assert_eq!(described["SignatureCheck"], true, "{described}");
    let certificate = certificate.display().to_string();
    let pcr = fixture.enclos(&["pcr", "--signing-certificate", &certificate]);
    assert_eq!(
        described["Measurements"]["PCR8"], pcr["PCR8"],
        "{described}"
    );
    assert_eq!(
        described["Measurements"]["PCR0"],
        image.measurements.pcr0.as_str()
    );
    let events = fixture.stack.kms.audit().unwrap();
    let signed = |event: &&Value| event["eventName"] == "Sign" && event["errorCode"].is_null();
    assert_eq!(events.iter().filter(signed).count(), 1, "{events:?}");
}

/// Every key that cannot sign, with AWS's name of the error; the image stays as it was.
#[test]
fn a_key_in_enclos_kms_that_cannot_sign_is_e60() {
    let fixture = Fixture::new();
    let developer = fixture.stack.kms.developer();
    let image = fixture
        .builder()
        .test_program("wait", &["wait"], "")
        .unwrap();
    let before = fs::read(&image.eif).unwrap();
    let key = fixture.create("ECC_NIST_P384", "SIGN_VERIFY");
    let certificate = fixture.certificate(&developer, &key, "signer");
    let role = fixture.stack.dir.join("role.json");
    fixture.stack.kms.add_role(OTHER_ROLE, &role).unwrap();
    let role: Value = serde_json::from_slice(&fs::read(role).unwrap()).unwrap();
    let role =
        ["AccessKeyId", "SecretAccessKey"].map(|name| role[name].as_str().unwrap().to_owned());
    let stranger = (role[0].as_str(), role[1].as_str());

    let other = fixture.create("ECC_NIST_P384", "SIGN_VERIFY");
    let p256 = fixture.create("ECC_NIST_P256", "SIGN_VERIFY");
    let symmetric = fixture.create("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT");
    let disabled = fixture.create("ECC_NIST_P384", "SIGN_VERIFY");
    let reply = developer.call("DisableKey", &json!({ "KeyId": disabled }));
    assert_eq!(reply.unwrap().status, 200);
    let deleted = fixture.create("ECC_NIST_P384", "SIGN_VERIFY");
    let deletion = json!({ "KeyId": deleted, "PendingWindowInDays": 7 });
    developer.must("ScheduleKeyDeletion", &deletion).unwrap();
    let missing = format!("{}0000", &key[..key.len() - 4]);
    let cases = [
        (
            other,
            DEVELOPER,
            "was not made by the key of its certificate",
        ),
        (p256, DEVELOPER, "InvalidKeyUsageException"),
        (symmetric, DEVELOPER, "InvalidKeyUsageException"),
        (disabled, DEVELOPER, "DisabledException"),
        (deleted, DEVELOPER, "KMSInvalidStateException"),
        (missing, DEVELOPER, "NotFoundException"),
        (key.clone(), stranger, "AccessDeniedException"),
        (key, ("nobody", "test"), "UnrecognizedClientException"),
    ];
    for (arn, who, expected) in cases {
        let (status, said) = fixture.sign(&image, &certificate, &arn, who);
        assert_eq!(status, Some(SIGNING), "{expected}: {said}");
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(
            before == fs::read(&image.eif).unwrap(),
            "{expected}: the image is as it was"
        );
    }
}
