//! Certificates for whoever writes a client of attested TLS in another language: each with the verdict that it must get.
//!
//! `vectors/manifest.json` says at which moment, under which root and with which PCR0 to judge, and what to say of each file.

#![cfg(feature = "tls")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod service;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use enclos_attest::channel::{ChannelCertificate, ChannelKey, PURPOSE};
use enclos_attest::document::{Claims, TrustAnchors};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};
use enclos_client::Verifier;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use serde_json::{Value, json};
use service::{Signer, pcr};

const CMW: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 35];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// As a client does it.
fn judge(verifier: &Verifier, der: &[u8], now: UnixMillis) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    };
    let certificate = ChannelCertificate::parse(der).map_err(|e| text(&e))?;
    let document = verifier.verify_at(certificate.document(), None, now);
    let document = document.map_err(|e| text(&e))?;
    certificate.check(&document, now).map_err(|e| text(&e))
}

#[test]
fn every_vector_gets_its_verdict() {
    let text = std::fs::read_to_string(folder().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let root = manifest["root_pem"].as_str().unwrap();
    let anchors = TrustAnchors::new().with_root("test", root.as_bytes());
    let pcr0 = PcrValue::from_hex(manifest["pcr0"].as_str().unwrap()).unwrap();
    let verifier = Verifier::new(anchors.unwrap());
    let verifier = verifier.expect_pcr(PcrIndex::try_from(0_u16).unwrap(), pcr0);
    let now = UnixMillis(manifest["now_ms"].as_u64().unwrap());
    let cases = manifest["certificates"].as_object().unwrap();
    assert!(cases.len() >= 15);
    for (name, case) in cases {
        let der = BASE64_STANDARD
            .decode(case["der"].as_str().unwrap())
            .unwrap();
        let verdict = judge(&verifier, &der, now);
        match case["refused"].as_str() {
            None => assert_eq!(verdict, Ok(()), "{name}"),
            Some(reason) => {
                let said = verdict.unwrap_err();
                assert!(said.contains(reason), "{name}: {said}");
            }
        }
    }
}

/// What is changed in a document before it is signed.
type Change = &'static dyn Fn(&mut Claims);

/// Makes vectors: a certificate and, unless it is good, part of the reason why it is refused.
struct Maker {
    signer: Signer,
    key: ChannelKey,
    pair: KeyPair,
    cases: BTreeMap<&'static str, Value>,
}

impl Maker {
    fn new() -> Self {
        let key = ChannelKey::generate().unwrap();
        let pkcs8 = key.pkcs8_der().unwrap();
        let pair = KeyPair::try_from(pkcs8.as_slice()).unwrap();
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(
            &rustls::pki_types::PrivatePkcs8KeyDer::from(pair.serialize_der()),
            &rcgen::PKCS_ECDSA_P384_SHA384,
        );
        Self {
            signer: Signer::new(),
            key,
            pair: pair.unwrap(),
            cases: BTreeMap::new(),
        }
    }

    fn add(&mut self, name: &'static str, der: &[u8], refused: Option<&str>) {
        let der = BASE64_STANDARD.encode(der);
        self.cases
            .insert(name, json!({ "der": der, "refused": refused }));
    }

    fn document(&self, change: impl Fn(&mut Claims)) -> Vec<u8> {
        self.signer.document(|claims| {
            claims.public_key = Some(self.key.spki_der().to_vec());
            claims.user_data = Some(PURPOSE.to_vec());
            change(claims);
        })
    }

    fn claiming(&self, change: impl Fn(&mut Claims)) -> Vec<u8> {
        self.key.certificate(&self.document(change)).unwrap()
    }

    /// A certificate by the same key with these extensions and whatever `rcgen` adds.
    fn other(&self, extensions: Vec<CustomExtension>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.custom_extensions = extensions;
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.self_signed(&self.pair).unwrap().der().to_vec()
    }

    fn wrapped(&self, value: Vec<u8>) -> CustomExtension {
        CustomExtension::from_oid_content(&CMW, value)
    }
}

/// A CBOR record in a DER OCTET STRING, with an indicator and a type of the caller's.
fn value(document: &[u8], media_type: &str, indicator: u8) -> Vec<u8> {
    let len = u16::try_from(document.len()).unwrap().to_be_bytes();
    let head = [0x83, 0x78, u8::try_from(media_type.len()).unwrap()];
    let cbor = [
        &head,
        media_type.as_bytes(),
        &[0x59],
        &len,
        document,
        &[indicator],
    ]
    .concat();
    octets(0x04, &cbor)
}

fn octets(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[tag, 0x82], len.as_slice(), content].concat()
}

#[test]
#[ignore = "writes the vectors anew: every key in them changes"]
fn write_the_vectors() {
    const TYPE: &str = "application/aws-nitro-document";
    let mut make = Maker::new();
    let now: UnixMillis = SystemTime::now().into();
    let document = make.document(|_| ());
    let good = make.claiming(|_| ());
    make.add("good", &good, None);
    let built = make.other(vec![make.wrapped(value(&document, TYPE, 4))]);
    make.add("good-by-another-library", &built, None);
    let changes: [(&str, Change, &str); 7] = [
        (
            "purpose-missing",
            &|claims| claims.user_data = None,
            "not made for a TLS key",
        ),
        (
            "purpose-other",
            &|claims| claims.user_data = Some(b"enclos-tls/v2".to_vec()),
            "not made for a TLS key",
        ),
        (
            "key-missing",
            &|claims| claims.public_key = None,
            "for another key",
        ),
        (
            "key-other",
            &|claims| claims.public_key.as_mut().unwrap()[119] ^= 1,
            "for another key",
        ),
        (
            "document-old",
            &|claims| claims.timestamp = claims.timestamp.minus(Duration::from_secs(301)),
            "expected at most 300.000 s",
        ),
        (
            "document-of-debug-enclave",
            &|claims| *claims.pcrs.values_mut().next().unwrap() = PcrValue::ZERO,
            "debug",
        ),
        (
            "document-of-another-image",
            &|claims| *claims.pcrs.values_mut().next().unwrap() = pcr(1),
            "PCR0 is",
        ),
    ];
    for (name, change, reason) in changes {
        let der = make.claiming(change);
        make.add(name, &der, Some(reason));
    }
    let thief = ChannelKey::generate()
        .unwrap()
        .certificate(&document)
        .unwrap();
    make.add("document-copied", &thief, Some("for another key"));
    let mut unsigned = good.clone();
    *unsigned.last_mut().unwrap() ^= 1;
    make.add("not-signed-by-itself", &unsigned, Some("signature"));
    let cut = &good[..good.len() - 1];
    make.add("cut", cut, Some("not the DER"));
    make.add(
        "trailing-byte",
        &[good.as_slice(), &[0]].concat(),
        Some("not the DER"),
    );
    let plain = make.other(vec![]);
    make.add(
        "no-document",
        &plain,
        Some("carries no attestation document"),
    );
    for (name, content) in [
        (
            "wrapper-of-another-type",
            value(&document, "application/eat+cwt", 4),
        ),
        ("wrapper-of-a-result", value(&document, TYPE, 8)),
        (
            "wrapper-as-json",
            octets(0x0c, br#"["application/aws-nitro-document","",4]"#),
        ),
        (
            "wrapper-without-octet-string",
            value(&document, TYPE, 4)[4..].to_vec(),
        ),
    ] {
        let der = make.other(vec![make.wrapped(content)]);
        make.add(name, &der, Some("evidence in another form"));
    }
    let mut critical = make.wrapped(value(&document, TYPE, 4));
    critical.set_criticality(true);
    let der = make.other(vec![critical]);
    make.add("extension-critical", &der, Some("critical extension"));
    let twice = || make.wrapped(value(&document, TYPE, 4));
    let der = make.other(vec![twice(), twice()]);
    make.add("extension-twice", &der, Some("occurs twice"));
    let manifest = json!({
        "now_ms": now.0,
        "pcr0": pcr(0).to_string(),
        "root_pem": make.signer.root_pem(),
        "certificates": make.cases,
    });
    std::fs::create_dir_all(folder()).unwrap();
    std::fs::write(folder().join("manifest.json"), format!("{manifest:#}\n")).unwrap();
}
