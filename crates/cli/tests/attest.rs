//! `attest verify`, `attest inspect` and `call` on the real binary: every refusal says why, and nothing
//! leaves before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
#[path = "../../client/tests/service/mod.rs"]
mod service;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use daemon::{Daemon, Done, run, run_with};
use enclos_attest::{PcrValue, UnixMillis};
use service::{MODULE, Manner, Service, Signer, pcr};

struct Desk {
    daemon: Daemon,
    root: String,
    signer: Signer,
}

impl Desk {
    fn new() -> Self {
        let (daemon, signer) = (Daemon::none(), Signer::new());
        let root = daemon.file("root.pem", signer.root_pem().as_bytes());
        Self {
            daemon,
            root,
            signer,
        }
    }

    /// Verifies a document with more options.
    fn verify(&self, document: &[u8], options: &[&str]) -> Done {
        let file = self.daemon.file("document", document);
        run(
            &self.daemon,
            &[&["attest", "verify", &file, "--root", &self.root], options].concat(),
        )
    }

    /// The document must be refused for `reason`.
    #[track_caller]
    fn refused(&self, document: &[u8], options: &[&str], reason: &str) {
        let done = self.verify(document, options);
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (1, ""),
            "{}",
            done.stderr
        );
        assert!(done.stderr.contains(reason), "{}", done.stderr);
    }
}

#[test]
fn a_good_document_is_accepted_in_every_wrapping() {
    let desk = Desk::new();
    let document = desk
        .signer
        .document(|claims| claims.nonce = Some(vec![0, 0xff]));
    let pcr0 = pcr(0).to_string();
    for bytes in [
        document.clone(),
        BASE64_STANDARD.encode(&document).into_bytes(),
    ] {
        let done = desk.verify(
            &bytes,
            &[
                "--pcr0",
                &pcr0,
                "--pcr",
                &format!("4={}", pcr(4)),
                "--nonce",
                "00ff",
            ],
        );
        assert_eq!((done.status, done.stderr.as_str()), (0, ""));
        assert!(
            done.stdout.starts_with("accepted\n") && done.stdout.contains(MODULE),
            "{}",
            done.stdout
        );
    }
    let file = desk.daemon.file("document", &document);
    let done = run(
        &desk.daemon,
        &[
            "attest",
            "verify",
            "--document",
            &file,
            "--root",
            &desk.root,
            "--json",
        ],
    );
    let verdict = done.json();
    assert_eq!(
        (
            verdict["Accepted"].as_bool(),
            verdict["Document"]["PCRs"]["PCR0"].as_str()
        ),
        (Some(true), Some(&*pcr0))
    );
    assert!(
        done.stderr.contains("no image was expected")
            && done.stderr.contains("no nonce was expected")
    );
}

#[test]
fn every_refusal_names_its_reason() {
    let desk = Desk::new();
    let good = desk.signer.document(|_| ());
    let wrong = pcr(1).to_string();
    desk.refused(
        &good,
        &["--pcr0", &wrong],
        &format!("because: PCR0 is {}, expected {wrong}", pcr(0)),
    );
    desk.refused(
        &good,
        &["--pcr31", &wrong],
        "because: PCR31 is not in the document",
    );
    desk.refused(
        &good,
        &["--nonce", "00ff"],
        "because: nonce is absent, expected 00ff",
    );
    desk.refused(
        &desk.signer.document(|claims| claims.nonce = Some(vec![1])),
        &["--nonce", "00ff"],
        "nonce is 01, expected 00ff",
    );
    desk.refused(
        &Signer::new().document(|_| ()),
        &[],
        "is not trusted; trusted are:",
    );
    let old = UnixMillis::from(SystemTime::now()).minus(Duration::from_secs(120));
    let old = desk.signer.document(|claims| claims.timestamp = old);
    desk.refused(&old, &["--max-age", "1m"], "expected at most 60.000 s");
    assert_eq!(desk.verify(&old, &["--max-age", "3m"]).status, 0);
    let debug = desk.signer.document(|claims| {
        claims
            .pcrs
            .iter_mut()
            .take(3)
            .for_each(|(_, value)| *value = PcrValue::ZERO)
    });
    desk.refused(&debug, &[], "debug");
    assert!(
        desk.verify(&debug, &["--allow-debug"])
            .stdout
            .contains("DEBUG")
    );
    desk.refused(b"{\"error\": \"no\"}", &[], "found error");
    desk.refused(&good[..good.len() - 1], &[], "not an attestation document");
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let desk = Desk::new();
    let good = desk.signer.document(|_| ());
    for at in (0..good.len()).step_by(good.len() / 24) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        let done = desk.verify(&damaged, &[]);
        assert_eq!(done.status, 1, "byte {at}: {}", done.stdout);
        assert!(done.stderr.starts_with("error: "), "{}", done.stderr);
    }
}

/// A policy that accepts an image's registers 0, 1 and 2, with a nonce.
fn policy(pcr2: u16) -> String {
    format!(
        r#"{{ "version": 1,
             "measurements": {{ "app-7": {{ "pcrs": {{ "0": "{}", "1": "{}", "2": "{}" }} }} }},
             "require": {{ "all": [ {{ "measurements": ["app-7"] }}, {{ "nonce": "required" }} ] }} }}"#,
        pcr(0),
        pcr(1),
        pcr(pcr2)
    )
}

#[test]
fn a_policy_decides_with_every_reason() {
    let desk = Desk::new();
    let document = desk
        .signer
        .document(|claims| claims.nonce = Some(vec![0, 0xff]));
    let file = |name: &str, pcr2| desk.daemon.file(name, policy(pcr2).as_bytes());
    let (good, wrong) = (file("good.json", 2), file("wrong.json", 3));
    let done = desk.verify(&document, &["--policy", &good, "--nonce", "00ff"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    desk.refused(
        &document,
        &["--policy", &good],
        "because: nonce is 00ff, expected absent",
    );
    desk.refused(
        &document,
        &["--policy", &wrong, "--nonce", "00ff"],
        &format!("because: not \"app-7\": PCR2 is {}", pcr(2)),
    );
    let broken = desk.daemon.file("broken.json", b"{}");
    desk.refused(&document, &["--policy", &broken], "cannot use the policy");
}

#[test]
fn a_policy_is_linted_and_rendered() {
    let daemon = Daemon::none();
    let lint = |text: &str| {
        let file = daemon.file("policy.json", text.as_bytes());
        run(&daemon, &["attest", "policy", "lint", &file])
    };
    let good = lint(&policy(2));
    assert_eq!((good.status, good.stderr.as_str()), (0, ""));
    let host = lint(r#"{"version":1,"require":{"role":"arn:aws:iam::123456789012:role/x"}}"#);
    assert!(
        host.status == 1
            && host
                .stderr
                .contains("because: debug images are admitted by [PCR3]"),
        "{}",
        host.stderr
    );
    let file = daemon.file("policy.json", policy(2).as_bytes());
    let rendered = run(&daemon, &["attest", "policy", "kms", &file]);
    let key = "kms:RecipientAttestation:PCR2";
    assert_eq!(
        rendered.json()[0]["StringEqualsIgnoreCase"][key][0].as_str(),
        Some(&*pcr(2).to_string())
    );
    assert!(rendered.stderr.contains("the nonce cannot be expressed"));
}

#[test]
fn trust_is_never_assumed() {
    let desk = Desk::new();
    let file = desk.daemon.file("document", &desk.signer.document(|_| ()));
    let done = run(&desk.daemon, &["attest", "verify", &file]);
    assert!(
        done.status == 1 && done.stderr.contains("no root is trusted"),
        "{}",
        done.stderr
    );
    let aws = run(&desk.daemon, &["attest", "verify", &file, "--aws"]);
    assert!(
        aws.status == 1 && aws.stderr.contains("is not trusted; trusted are: aws"),
        "{}",
        aws.stderr
    );
}

#[test]
fn a_document_fetched_from_a_service_must_carry_the_nonce() {
    let daemon = Daemon::none();
    let verify = |service: &Service| {
        let root = daemon.file("root.pem", service.root_pem.as_bytes());
        let url = format!("{}/attest", service.url());
        run(
            &daemon,
            &[
                "attest",
                "verify",
                "--url",
                &url,
                "--root",
                &root,
                "--pcr0",
                &pcr(0).to_string(),
            ],
        )
    };
    let honest = verify(&Service::start(Manner::Honest));
    assert_eq!((honest.status, honest.stderr.as_str()), (0, ""));
    let replaying = Service::start(Manner::Replaying);
    assert_eq!(verify(&replaying).status, 0);
    let replayed = verify(&replaying);
    assert!(
        replayed.status == 1 && replayed.stderr.contains("because: nonce is"),
        "{}",
        replayed.stderr
    );
}

#[test]
fn a_requested_document_is_for_the_verifier_that_has_the_nonce() {
    let (daemon, service) = (Daemon::none(), Service::start(Manner::Honest));
    let root = daemon.file("root.pem", service.root_pem.as_bytes());
    let (url, file) = (format!("{}/attest", service.url()), daemon.path("document"));
    let request = |options: &[&str]| {
        let args = ["attest", "request", &url, "--output", &file];
        run(&daemon, &[&args, options].concat())
    };
    let verify = |nonce: &str| {
        let nonce = format!("base64:{nonce}");
        let args = ["attest", "verify", &file, "--root", &root, "--nonce"];
        run(&daemon, &[args.as_slice(), &[&nonce]].concat()).status
    };
    let fresh = request(&["--json"]).json();
    assert_eq!(fresh["Verified"].as_bool(), Some(false));
    assert_eq!(fresh["ModuleId"].as_str(), Some(MODULE));
    let fresh = fresh["Nonce"].as_str().unwrap();
    assert_eq!(verify(fresh), 0);

    let given = request(&["--nonce", "hex:00ff00ff00ff00ff00ff00ff00ff00ff"]);
    assert!(given.stdout.starts_with("NOT VERIFIED"), "{}", given.stderr);
    assert_eq!(verify("AP8A/wD/AP8A/wD/AP8A/w=="), 0);
    assert_eq!(verify(fresh), 1);
}

#[test]
fn a_service_that_ignores_the_nonce_gives_no_document() {
    for manner in [Manner::NoNonce, Manner::Replaying, Manner::Broken] {
        let (daemon, service) = (Daemon::none(), Service::start(manner));
        let (url, file) = (format!("{}/attest", service.url()), daemon.path("document"));
        let request = || run(&daemon, &["attest", "request", &url, "--output", &file]);
        if manner == Manner::Replaying {
            assert_eq!(request().status, 0);
            std::fs::remove_file(&file).unwrap();
        }
        let done = request();
        assert_eq!((done.status, done.stdout.as_str()), (1, ""), "{manner:?}");
        assert!(!std::path::Path::new(&file).exists(), "{manner:?}");
    }
}

#[test]
fn inspect_shows_without_believing() {
    let desk = Desk::new();
    let file = desk
        .daemon
        .file("document", &Signer::new().document(|_| ()));
    let done = run(&desk.daemon, &["attest", "inspect", &file]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    assert!(
        done.stdout.starts_with("NOT VERIFIED") && done.stdout.contains(&pcr(0).to_string()),
        "{}",
        done.stdout
    );
    let json = run(&desk.daemon, &["attest", "inspect", &file, "--json"]).json();
    assert_eq!(
        (
            json["Verified"].as_bool(),
            json["Certificates"].as_array().map(Vec::len)
        ),
        (Some(false), Some(5))
    );
}

#[test]
fn a_call_is_sealed_and_answered() {
    let (daemon, service) = (Daemon::none(), Service::start(Manner::Honest));
    let root = daemon.file("root.pem", service.root_pem.as_bytes());
    let url = format!("{}/process", service.url());
    let done = run(
        &daemon,
        &[
            "call",
            &url,
            "--root",
            &root,
            "--pcr0",
            &pcr(0).to_string(),
            "--data",
            "a secret",
        ],
    );
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (0, "answer to a secret\n"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr
            .starts_with(&format!("verified {MODULE} (root ")),
        "{}",
        done.stderr
    );
    assert!(
        !service.heard("/process")[0]
            .body
            .windows(6)
            .any(|window| window == b"secret")
    );
}

/// Hangs up twice, as a gateway does whose application does not listen yet, then passes everything on to the service.
fn late(service: &Service) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let target = service.url().replace("http://", "");
    std::thread::spawn(move || {
        for client in listener.incoming().skip(2) {
            let client = client.unwrap();
            let server = TcpStream::connect(&target).unwrap();
            let ends = [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ];
            for (mut from, mut to) in ends {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    url
}

#[test]
fn a_call_waits_for_an_application_that_starts() {
    let (daemon, service) = (Daemon::none(), Service::start(Manner::Honest));
    let root = daemon.file("root.pem", service.root_pem.as_bytes());
    let pin = pcr(0).to_string();
    let call = |wait: &str| {
        let url = late(&service);
        let options = ["--root", &root, "--pcr0", &pin, "--data", "a secret"];
        run(
            &daemon,
            &[&["call", &url, "--wait", wait], &options[..]].concat(),
        )
    };
    let done = call("20");
    assert_eq!(done.stdout, "answer to a secret\n", "{}", done.stderr);
    let done = call("0");
    assert_eq!(done.status, 1);
    assert!(done.stderr.contains("no answer from"), "{}", done.stderr);
}

#[test]
fn a_call_sends_nothing_to_an_enclave_that_is_not_the_one_expected() {
    let (daemon, service) = (Daemon::none(), Service::start(Manner::Honest));
    let root = daemon.file("root.pem", service.root_pem.as_bytes());
    let url = service.url();
    let call = |options: &[&str]| {
        run(
            &daemon,
            &[
                &["call", &url, "--root", &root, "--data", "a secret"],
                options,
            ]
            .concat(),
        )
    };
    let wrong = call(&["--pcr0", &pcr(1).to_string()]);
    assert_eq!(wrong.status, 1);
    assert!(
        wrong.stderr.contains("nothing was sent") && wrong.stderr.contains("PCR0 is"),
        "{}",
        wrong.stderr
    );
    let unpinned = call(&[]);
    assert!(
        unpinned.status == 1 && unpinned.stderr.contains("--any-image"),
        "{}",
        unpinned.stderr
    );
    assert!(service.heard("/process").is_empty());
    assert_eq!(call(&["--any-image"]).status, 0);
}

#[test]
fn a_call_through_the_kms_sends_a_ciphertext() {
    let (daemon, service, kms) = (
        Daemon::none(),
        Service::start(Manner::Honest),
        Service::kms(),
    );
    let root = daemon.file("root.pem", service.root_pem.as_bytes());
    let (url, endpoint, pcr0) = (service.url(), kms.url(), pcr(0).to_string());
    let key = "arn:aws:kms:us-east-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let args = [
        "call",
        &url,
        "--root",
        &root,
        "--pcr0",
        &pcr0,
        "--data",
        "a secret",
        "--kms-key",
        key,
        "--kms-endpoint",
        &endpoint,
    ];
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ];
    let done = run_with(&daemon, &args, &credentials);
    assert_eq!(
        (done.status, done.stdout.as_str()),
        (0, "{\"result\": \"in the open\"}\n"),
        "{}",
        done.stderr
    );
    let sent = BASE64_STANDARD.encode(b"a ciphertext");
    assert_eq!(
        service.heard("/process")[0].body,
        format!("{{\"encrypted_data\":\"{sent}\"}}").into_bytes()
    );
    let asked: serde_json::Value = serde_json::from_slice(&kms.heard("/")[0].body).unwrap();
    assert_eq!(
        (asked["KeyId"].as_str(), asked["Plaintext"].as_str()),
        (Some(key), Some(&*BASE64_STANDARD.encode("a secret")))
    );

    let nobody = run(&daemon, &args);
    assert!(
        nobody.status == 1 && nobody.stderr.contains("AWS_ACCESS_KEY_ID is not set"),
        "{}",
        nobody.stderr
    );
    let stranger = run_with(
        &daemon,
        &args,
        &[
            ("AWS_ACCESS_KEY_ID", "else"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
        ],
    );
    assert!(
        stranger.status == 1 && stranger.stderr.contains("AccessDeniedException"),
        "{}",
        stranger.stderr
    );
    assert_eq!(service.heard("/process").len(), 1);
}
