//! Signing with keys that are kept elsewhere: in a token, in a KMS, with someone else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod inputs;
mod softhsm;

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use daemon::{Daemon, Done, run_with};
use inputs::sound_image;
use p384::ecdsa::signature::hazmat::PrehashSigner as _;
use p384::pkcs8::DecodePrivateKey as _;
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, SignatureAlgorithm,
};
use serde_json::{Value, json};
use softhsm::MODULE;

/// An image, a key and its certificate.
struct Desk {
    daemon: Daemon,
    image: String,
    key: String,
    certificate: String,
}

impl Desk {
    fn new(curve: &'static SignatureAlgorithm) -> Self {
        let daemon = Daemon::none();
        let key = KeyPair::generate_for(curve).unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        Self {
            image: daemon.file("image.eif", &sound_image()),
            key: daemon.file("key.pem", key.serialize_pem().as_bytes()),
            certificate: daemon.file("certificate.pem", certificate.pem().as_bytes()),
            daemon,
        }
    }

    fn sign(&self, key: &str, vars: &[(&str, &str)]) -> Done {
        let options = [
            "--signing-certificate",
            &self.certificate,
            "--private-key",
            key,
        ];
        let args = [
            &["sign-eif", "--eif-path", self.image.as_str()],
            options.as_slice(),
        ]
        .concat();
        run_with(&self.daemon, &args, vars)
    }

    #[track_caller]
    fn is_signed(&self) {
        let done = run_with(
            &self.daemon,
            &["describe-eif", "--eif-path", &self.image],
            &[],
        );
        let described = done.json();
        assert_eq!(described["SignatureCheck"], true, "{}", done.stderr);
        assert_eq!(done.stderr, "", "it would be run");
    }
}

/// A token with the desk's key in it.
fn token(desk: &Desk) -> String {
    let config = softhsm::token(&desk.daemon);
    softhsm::import(&config, &desk.key, "eif", "01");
    config
}

#[test]
fn a_key_in_a_token_signs() {
    for curve in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ECDSA_P521_SHA512,
    ] {
        let desk = Desk::new(curve);
        let config = token(&desk);
        let pin = desk.daemon.file("pin", b"1234\n");
        let uri = format!(
            "pkcs11:token=my%20token;object=eif?module-path={MODULE}&pin-source=file:{pin}"
        );
        let done = desk.sign(&uri, &[("SOFTHSM2_CONF", &config)]);
        assert_eq!(done.status, 0, "{}", done.stderr);
        desk.is_signed();
    }
}

#[test]
fn a_token_that_does_not_have_it_is_e60() {
    let desk = Desk::new(&PKCS_ECDSA_P384_SHA384);
    let config = token(&desk);
    let before = std::fs::read(&desk.image).unwrap();
    let cases = [
        ("token=other;object=eif", "pin-value=1234", "0 tokens match"),
        (
            "token=my%20token;object=other",
            "pin-value=1234",
            "0 private EC keys match",
        ),
        ("token=my%20token", "pin-value=0000", "log in with this PIN"),
        ("token=my%20token", "", "no PIN is named"),
        ("token", "", "no pkcs11: URI"),
    ];
    for (path, query, expected) in cases {
        let done = desk.sign(
            &format!("pkcs11:{path}?module-path={MODULE}&{query}"),
            &[("SOFTHSM2_CONF", &config)],
        );
        assert_eq!(done.status, 60, "{path}: {}", done.stderr);
        assert!(done.stderr.contains(expected), "{path}: {}", done.stderr);
    }
    assert!(
        before == std::fs::read(&desk.image).unwrap(),
        "the image is as it was"
    );
}

#[test]
fn a_token_with_another_key_than_the_certificates_changes_nothing() {
    let (desk, other) = (
        Desk::new(&PKCS_ECDSA_P384_SHA384),
        Desk::new(&PKCS_ECDSA_P384_SHA384),
    );
    let config = token(&other);
    let before = std::fs::read(&desk.image).unwrap();
    let uri = format!("pkcs11:object=eif?module-path={MODULE}&pin-value=1234");
    let done = desk.sign(&uri, &[("SOFTHSM2_CONF", &config)]);
    assert_eq!(done.status, 60, "{}", done.stderr);
    assert!(
        done.stderr
            .contains("was not made by the key of its certificate"),
        "{}",
        done.stderr
    );
    assert!(
        before == std::fs::read(&desk.image).unwrap(),
        "the image is as it was"
    );
}

/// A KMS for one request: answers as AWS's does, with the key of this PEM file.
fn kms(key: &str) -> (String, thread::JoinHandle<(String, Value)>) {
    let key = p384::SecretKey::from_pkcs8_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let head = head.to_lowercase();
        let len = head
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap();
        let mut body = vec![0; len.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let request: Value = serde_json::from_slice(&body).unwrap();
        let digest = BASE64_STANDARD
            .decode(request["Message"].as_str().unwrap())
            .unwrap();
        let key = p384::ecdsa::SigningKey::from(key);
        let signature: p384::ecdsa::Signature = key.sign_prehash(&digest).unwrap();
        let signature = BASE64_STANDARD.encode(signature.to_der().as_bytes());
        let answer =
            json!({ "Signature": signature, "SigningAlgorithm": "ECDSA_SHA_384" }).to_string();
        let len = answer.len();
        write!(
            &stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{answer}"
        )
        .unwrap();
        (head, request)
    });
    (endpoint, server)
}

const ARN: &str = "arn:aws:kms:eu-west-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab";

#[test]
fn a_key_in_a_kms_signs() {
    let desk = Desk::new(&PKCS_ECDSA_P384_SHA384);
    let (endpoint, server) = kms(&desk.key);
    let vars = [
        ("AWS_ENDPOINT_URL_KMS", &*endpoint),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let done = desk.sign(ARN, &vars);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let (head, request) = server.join().unwrap();
    assert!(
        head.contains("x-amz-target: trentservice.sign\r\n"),
        "{head}"
    );
    assert!(head.contains("/eu-west-1/kms/aws4_request"), "{head}");
    assert_eq!(request["KeyId"], ARN);
    assert_eq!(request["MessageType"], "DIGEST");
    assert_eq!(request["SigningAlgorithm"], "ECDSA_SHA_384");
    desk.is_signed();
}

#[test]
fn a_kms_that_cannot_be_used_is_e60() {
    let desk = Desk::new(&PKCS_ECDSA_P384_SHA384);
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = format!("http://{nobody}");
    let with_endpoint = [
        credentials[0],
        credentials[1],
        ("AWS_ENDPOINT_URL_KMS", &nobody),
    ];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case; 3] = [
        (
            "arn:aws:s3:::bucket",
            &credentials,
            "is not the ARN of a KMS key",
        ),
        (ARN, &[], "AWS_ACCESS_KEY_ID is not set"),
        (ARN, &with_endpoint, "KMS Sign with"),
    ];
    for (key, vars, expected) in cases {
        let done = desk.sign(key, vars);
        assert_eq!(done.status, 60, "{key}: {}", done.stderr);
        assert!(done.stderr.contains(expected), "{key}: {}", done.stderr);
    }
}

#[test]
fn a_signature_made_elsewhere_is_attached() {
    let desk = Desk::new(&PKCS_ECDSA_P384_SHA384);
    let (message, signature) = (desk.daemon.path("message"), desk.daemon.path("signature"));
    let certificate = ["--signing-certificate", desk.certificate.as_str()];
    let measure = [
        &["eif", "measure", &desk.image, "--to-be-signed", &message],
        &certificate[..],
    ]
    .concat();
    let measured = run_with(&desk.daemon, &measure, &[]);
    assert_eq!(
        measured.json()["ToBeSigned"]["Algorithm"],
        "ES384",
        "{}",
        measured.stderr
    );
    // Where the key is, any tool does.
    let openssl = [
        "dgst", "-sha384", "-sign", &desk.key, "-out", &signature, &message,
    ];
    assert!(
        Command::new("openssl")
            .args(openssl)
            .status()
            .unwrap()
            .success()
    );
    let attach = [
        &["eif", "attach", &desk.image, "--signature", &signature],
        &certificate[..],
    ]
    .concat();
    let attached = run_with(&desk.daemon, &attach, &[]);
    assert_eq!(attached.status, 0, "{}", attached.stderr);
    assert_eq!(
        attached.json()["Measurements"],
        measured.json()["Measurements"]
    );
    desk.is_signed();
    std::fs::write(&signature, "nonsense").unwrap();
    let refused = run_with(&desk.daemon, &attach, &[]);
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
    assert!(
        refused.stderr.contains("neither DER nor r and s"),
        "{}",
        refused.stderr
    );
    desk.is_signed();
}
