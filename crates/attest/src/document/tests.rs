//! What is accepted, what is refused, and that the refusal names the rule.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use super::*;
use crate::cbor::Writer;
use crate::pki::{Authority, IssuedLeaf, LEAF_LIFETIME};
use crate::x509::point_spki;

/// 2026-11-22T00:00:00Z.
const NOW: UnixMillis = UnixMillis(1_795_305_600_000);

/// A leaf whose key signs whatever a test wants.
struct Leaf {
    key: EcdsaKeyPair,
    issued: IssuedLeaf,
    anchors: TrustAnchors,
}

impl Leaf {
    fn new() -> Self {
        let mut authority = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let spki = point_spki(key.public_key().as_ref());
        let issued = authority.issue_leaf(&spki, "i-1-enc1", 1, NOW).unwrap();
        let root = authority.root_certificate_der();
        let anchors = TrustAnchors::new().with_root("test", root).unwrap();
        Self {
            key,
            issued,
            anchors,
        }
    }

    fn sign(&self, payload: &[u8]) -> Vec<u8> {
        let signature = self
            .key
            .sign(&SystemRandom::new(), &sig_structure(payload))
            .unwrap();
        encode_envelope(payload, signature.as_ref())
    }

    fn document(&self, claims: &Claims) -> Vec<u8> {
        self.sign(&encode_payload(
            claims,
            &self.issued.certificate,
            &self.issued.cabundle,
        ))
    }

    fn verify(&self, bytes: &[u8]) -> Result<VerifiedDocument, VerifyError> {
        self.verify_at(bytes, NOW, &VerifyOptions::default())
    }

    fn verify_at(
        &self,
        bytes: &[u8],
        now: UnixMillis,
        options: &VerifyOptions,
    ) -> Result<VerifiedDocument, VerifyError> {
        UnverifiedDocument::parse(bytes)
            .unwrap()
            .verify(&self.anchors, now, options)
    }
}

fn claims() -> Claims {
    let pcrs = PcrIndex::all().take(16);
    Claims {
        module_id: "i-1-enc0000000000000001".to_owned(),
        timestamp: NOW,
        pcrs: pcrs
            .map(|index| (index, PcrValue::of_instance("x")))
            .collect(),
        public_key: Some(vec![1]),
        user_data: None,
        nonce: None,
    }
}

/// A payload with its entries as encoded pairs, to be changed one at a time.
fn entries(leaf: &Leaf) -> Vec<(&'static str, Vec<u8>)> {
    let w = Writer::new;
    let bundle = w().array(leaf.issued.cabundle.len());
    let bundle = leaf
        .issued
        .cabundle
        .iter()
        .fold(bundle, |w, der| w.bytes(der));
    vec![
        ("module_id", w().text("i-1-enc1").finish()),
        ("digest", w().text("SHA384").finish()),
        ("timestamp", w().unsigned(NOW.0).finish()),
        ("pcrs", pcrs(3, 48)),
        ("certificate", w().bytes(&leaf.issued.certificate).finish()),
        ("cabundle", bundle.finish()),
        ("public_key", w().bytes_or_null(None).finish()),
        ("user_data", w().bytes_or_null(None).finish()),
        ("nonce", w().bytes_or_null(None).finish()),
    ]
}

fn pcrs(count: u64, len: usize) -> Vec<u8> {
    let map = Writer::new().map(usize::try_from(count).unwrap());
    (0..count)
        .fold(map, |w, index| w.unsigned(index).bytes(&vec![7; len]))
        .finish()
}

fn payload(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Writer::new().map(entries.len()).finish();
    for (key, value) in entries {
        bytes.extend(Writer::new().text(key).finish());
        bytes.extend(value);
    }
    bytes
}

/// A payload in which `key` has another value, or is absent.
fn with(
    leaf: &Leaf,
    key: &'static str,
    value: Option<Vec<u8>>,
) -> Result<UnverifiedDocument, DocumentError> {
    let mut entries = entries(leaf);
    entries.retain(|(name, _)| *name != key);
    entries.extend(value.map(|value| (key, value)));
    UnverifiedDocument::parse(&leaf.sign(&payload(&entries)))
}

#[track_caller]
fn accepted(leaf: &Leaf, key: &'static str, value: Vec<u8>) {
    with(leaf, key, Some(value)).unwrap();
}

#[track_caller]
fn refused(leaf: &Leaf, key: &'static str, value: Option<Vec<u8>>) -> DocumentError {
    with(leaf, key, value).unwrap_err()
}

#[test]
fn our_bytes_have_the_layout_of_awss() {
    let leaf = Leaf::new();
    let document = hex::encode(leaf.document(&claims()));
    assert!(document.starts_with("8444a1013822a059"), "{document}");
    let payload = encode_payload(&claims(), &[1], &[vec![2]]);
    let text = hex::encode(&payload);
    assert!(
        text.starts_with("a9696d6f64756c655f696477692d312d656e63"),
        "{text}"
    );
    assert!(
        text.contains("66646967657374665348413338346974696d657374616d701b"),
        "{text}"
    );
    assert!(
        text.ends_with(
            "6a7075626c69635f6b65794101 69757365725f64617461f6 656e6f6e6365f6"
                .replace(' ', "")
                .as_str()
        )
    );
    let aws = include_bytes!("../../tests/vectors/aws.bin");
    let order = |bytes: &[u8]| {
        let keys = [
            "module_id",
            "digest",
            "timestamp",
            "pcrs",
            "certificate",
            "cabundle",
        ];
        let keys = keys.iter().chain(&["public_key", "user_data", "nonce"]);
        let position = |key: &&str| bytes.windows(key.len()).position(|w| w == key.as_bytes());
        keys.map(position).collect::<Option<Vec<_>>>().unwrap()
    };
    assert!(order(aws).is_sorted() && order(&payload).is_sorted());
}

#[test]
fn tagged_reordered_and_indefinite_documents_verify() {
    let leaf = Leaf::new();
    let tagged = [&[0xd2], leaf.document(&claims()).as_slice()].concat();
    leaf.verify(&tagged).unwrap();

    let mut reversed = entries(&leaf);
    reversed.reverse();
    leaf.verify(&leaf.sign(&payload(&reversed))).unwrap();

    let mut indefinite = payload(&reversed);
    indefinite[0] = 0xbf;
    indefinite.push(0xff);
    leaf.verify(&leaf.sign(&indefinite)).unwrap();

    let mut envelope = leaf.sign(&indefinite);
    envelope[0] = 0x9f;
    envelope.push(0xff);
    leaf.verify(&envelope).unwrap();
}

#[test]
fn missing_null_and_empty_optionals_differ_where_they_should() {
    let leaf = Leaf::new();
    let verify = |nonce: Option<Vec<u8>>| {
        let mut entries = entries(&leaf);
        entries.retain(|(key, _)| *key != "nonce");
        entries.extend(nonce.map(|value| ("nonce", value)));
        let verified = leaf.verify(&leaf.sign(&payload(&entries))).unwrap();
        verified.nonce().map(<[u8]>::to_vec)
    };
    assert_eq!(verify(None), None);
    assert_eq!(verify(Some(vec![0xf6])), None);
    assert_eq!(verify(Some(vec![0x40])), Some(vec![]));
}

#[test]
fn what_a_document_says_is_what_its_claims_said() {
    let leaf = Leaf::new();
    let claims = Claims {
        public_key: Some(vec![11]),
        user_data: Some(vec![12]),
        nonce: Some(vec![13]),
        ..claims()
    };
    let document = leaf.document(&claims);
    let unverified = UnverifiedDocument::parse(&document).unwrap();
    assert_eq!(unverified.unverified_claims(), &claims);
    assert_eq!(unverified.unverified_certificate(), leaf.issued.certificate);
    assert_eq!(unverified.unverified_cabundle(), leaf.issued.cabundle);

    let verified = leaf.verify(&document).unwrap();
    assert_eq!(verified.claims(), &claims);
    assert_eq!(verified.module_id(), claims.module_id);
    assert_eq!(verified.timestamp(), NOW);
    assert_eq!(verified.pcrs(), &claims.pcrs);
    assert_eq!(verified.public_key(), Some(&[11][..]));
    assert_eq!(verified.user_data(), Some(&[12][..]));
    assert_eq!(verified.nonce(), Some(&[13][..]));
    assert_eq!(verified.anchor(), "test");
}

#[test]
fn unknown_keys_are_covered_by_the_signature_and_skipped() {
    let leaf = Leaf::new();
    let mut entries = entries(&leaf);
    entries.push(("future", vec![0x81, 0xa0]));
    leaf.verify(&leaf.sign(&payload(&entries))).unwrap();
}

#[test]
fn envelopes_that_are_not_exactly_one_are_refused() {
    let leaf = Leaf::new();
    let good = leaf.document(&claims());
    let parse = |bytes: &[u8]| UnverifiedDocument::parse(bytes).map(|_| ()).unwrap_err();
    let cbor = |error: DocumentError| matches!(error, DocumentError::Cbor { .. });

    for len in 0..good.len() {
        parse(&good[..len]);
    }
    assert!(cbor(parse(&[&good[..], &[0]].concat())), "trailing byte");
    assert!(cbor(parse(&[&[0xd1], good.as_slice()].concat())), "tag 17");
    assert!(
        cbor(parse(&[&[0xd2, 0xd2], good.as_slice()].concat())),
        "two tags"
    );
    let mut three = good.clone();
    three[0] = 0x83;
    assert!(cbor(parse(&three)), "three elements");
    let mut unended = good.clone();
    unended[0] = 0x9f;
    assert!(cbor(parse(&unended)), "no end");
    assert!(
        cbor(parse(&[&unended[..], &[0x40, 0xff]].concat())),
        "five elements"
    );
}

#[test]
fn headers_choose_nothing() {
    let leaf = Leaf::new();
    let payload = encode_payload(&claims(), &leaf.issued.certificate, &leaf.issued.cabundle);
    let document = |protected: &[u8], unprotected: &[u8], signature: &[u8]| {
        let mut bytes = Writer::new().array(4).bytes(protected).finish();
        bytes.extend(unprotected);
        bytes.extend(Writer::new().bytes(&payload).finish());
        bytes.extend(Writer::new().bytes(signature).finish());
        UnverifiedDocument::parse(&bytes).map(|_| ())
    };
    let es384 = [0xa1, 0x01, 0x38, 0x22];
    document(&es384, &[0xa0], &[0; 96]).unwrap();
    document(&es384, &[0xbf, 0xff], &[0; 96]).unwrap();
    // ES256, QEMU's alg -1, no header, a second entry.
    for other in [
        &[0xa1, 0x01, 0x26][..],
        &[0xa1, 0x01, 0x20],
        &[],
        &[0xa2, 1, 0x38, 0x22, 4, 0x40],
    ] {
        let error = document(other, &[0xa0], &[0; 96]).unwrap_err();
        assert!(matches!(error, DocumentError::Algorithm { .. }), "{error}");
    }
    let error = document(&es384, &[0xa1, 0x04, 0x40], &[0; 96]).unwrap_err();
    assert!(
        matches!(error, DocumentError::UnprotectedHeader { found: 1 }),
        "{error}"
    );
    let error = document(&es384, &[0xa2, 0x04, 0x40, 0x05, 0x40], &[0; 96]).unwrap_err();
    assert!(
        matches!(error, DocumentError::UnprotectedHeader { found: 2 }),
        "{error}"
    );
    let error = document(&es384, &[0xa2, 0x04, 0x40, 0x04, 0x40], &[0; 96]).unwrap_err();
    assert!(matches!(error, DocumentError::Cbor { .. }), "{error}");
    for len in [0, 64, 95, 97, 104] {
        let error = document(&es384, &[0xa0], &vec![0; len]).unwrap_err();
        assert!(matches!(error, DocumentError::SignatureLength { found } if found == len));
    }
}

#[test]
fn the_size_is_judged_before_the_content() {
    let parse = |len| UnverifiedDocument::parse(&vec![0x5f; len]).unwrap_err();
    assert!(matches!(parse(16_640), DocumentError::Cbor { .. }));
    let error = parse(16_641);
    assert!(
        matches!(error, DocumentError::TooLong { found: 16_641 }),
        "{error}"
    );
}

#[test]
fn every_mandatory_key_is_mandatory() {
    let leaf = Leaf::new();
    for key in [
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
    ] {
        let error = refused(&leaf, key, None);
        assert!(
            matches!(error, DocumentError::Missing { key: found } if found == key),
            "{error}"
        );
        let error = refused(&leaf, key, Some(vec![0xf6]));
        assert!(
            matches!(
                error,
                DocumentError::Cbor {
                    part: "payload",
                    ..
                }
            ),
            "{key}: {error}"
        );
    }
}

/// A value of a given length.
type Encoding<'a> = &'a dyn Fn(usize) -> Vec<u8>;

#[test]
fn lengths_hold_on_both_sides() {
    let leaf = Leaf::new();
    let bytes = |len: usize| Writer::new().bytes(&vec![1; len]).finish();
    let text = |len: usize| Writer::new().text(&"x".repeat(len)).finish();
    let bundle = |len: usize| Writer::new().array(1).bytes(&vec![1; len]).finish();
    let limits: [(&str, usize, usize, Encoding<'_>); 6] = [
        ("module_id", 1, 1024, &text),
        ("certificate", 1, 1024, &bytes),
        ("cabundle", 1, 1024, &bundle),
        ("public_key", 1, 1024, &bytes),
        ("user_data", 0, 1024, &bytes),
        ("nonce", 0, 1024, &bytes),
    ];
    for (key, min, max, value) in limits {
        for len in [min, max] {
            accepted(&leaf, key, value(len));
        }
        for len in min.checked_sub(1).into_iter().chain([max + 1]) {
            let error = refused(&leaf, key, Some(value(len)));
            let expected = |found: &str| found == key;
            assert!(
                matches!(error, DocumentError::Length { key, found, .. } if found == len && expected(key)),
                "{key}: {error}"
            );
        }
    }
}

#[test]
fn registers_are_counted_numbered_and_measured() {
    let leaf = Leaf::new();
    for count in [1, 32] {
        accepted(&leaf, "pcrs", pcrs(count, 48));
    }
    let count = |count| refused(&leaf, "pcrs", Some(pcrs(count, 48)));
    assert!(matches!(count(0), DocumentError::PcrCount { found: 0 }));
    assert!(matches!(count(33), DocumentError::PcrCount { found: 33 }));
    for len in [0, 32, 47, 49, 64] {
        let error = refused(&leaf, "pcrs", Some(pcrs(1, len)));
        assert!(matches!(error, DocumentError::PcrLength { found, .. } if found == len));
    }
    let numbered = |index| {
        Writer::new()
            .map(1)
            .unsigned(index)
            .bytes(&[0; 48])
            .finish()
    };
    let error = refused(&leaf, "pcrs", Some(numbered(32)));
    assert!(
        matches!(error, DocumentError::PcrIndex { found: 32 }),
        "{error}"
    );
    let error = refused(&leaf, "pcrs", Some(numbered(u64::MAX)));
    assert!(
        matches!(error, DocumentError::PcrIndex { found: u64::MAX }),
        "{error}"
    );
    let twice = Writer::new()
        .map(2)
        .unsigned(0)
        .bytes(&[0; 48])
        .unsigned(0)
        .bytes(&[1; 48]);
    let error = refused(&leaf, "pcrs", Some(twice.finish()));
    assert!(matches!(error, DocumentError::Cbor { .. }), "{error}");
}

#[test]
fn payload_values_that_mean_something_else_are_refused() {
    let leaf = Leaf::new();
    let error = refused(&leaf, "digest", Some(Writer::new().text("SHA256").finish()));
    assert!(
        matches!(error, DocumentError::Digest { ref found } if found == "SHA256"),
        "{error}"
    );
    let error = refused(&leaf, "timestamp", Some(vec![0]));
    assert!(matches!(error, DocumentError::ZeroTimestamp), "{error}");
    let error = refused(&leaf, "timestamp", Some(vec![0x20]));
    assert!(matches!(error, DocumentError::Cbor { .. }), "{error}");
    let error = refused(&leaf, "nitrotpm_pcrs", Some(pcrs(3, 48)));
    assert!(matches!(error, DocumentError::NitroTpm), "{error}");
    let bundle = |count: usize| {
        let array = Writer::new().array(count);
        (0..count).fold(array, |w, _| w.bytes(&[1])).finish()
    };
    for count in [1, 8] {
        accepted(&leaf, "cabundle", bundle(count));
    }
    for count in [0, 9] {
        let error = refused(&leaf, "cabundle", Some(bundle(count)));
        assert!(matches!(error, DocumentError::BundleCount { found } if found == count));
    }
    let mut twice = entries(&leaf);
    twice.push(("nonce", vec![0x40]));
    let error = UnverifiedDocument::parse(&leaf.sign(&payload(&twice))).unwrap_err();
    assert!(matches!(error, DocumentError::Cbor { .. }), "{error}");
    let trailing = [payload(&entries(&leaf)), vec![0]].concat();
    let error = UnverifiedDocument::parse(&leaf.sign(&trailing)).unwrap_err();
    assert!(matches!(error, DocumentError::Cbor { .. }), "{error}");
}

#[test]
fn age_and_skew_hold_on_both_sides() {
    let leaf = Leaf::new();
    let document = leaf.document(&claims());
    let options = VerifyOptions::default();
    let at = |now| leaf.verify_at(&document, now, &options).map(|_| ());
    at(NOW.plus(options.max_age)).unwrap();
    let error = at(UnixMillis(NOW.plus(options.max_age).0 + 1)).unwrap_err();
    assert!(matches!(error, VerifyError::TooOld { .. }), "{error}");
    assert!(error.to_string().contains("300.001 s"), "{error}");

    let mut early = claims();
    early.timestamp = NOW.plus(options.max_future_skew);
    leaf.verify(&leaf.document(&early)).unwrap();
    early.timestamp.0 += 1;
    let error = leaf.verify(&leaf.document(&early)).unwrap_err();
    assert!(matches!(error, VerifyError::InFuture { .. }), "{error}");
    early.timestamp.0 = u64::MAX;
    let archival = VerifyOptions {
        archival: true,
        ..options
    };
    let error = leaf
        .verify_at(&leaf.document(&early), NOW, &archival)
        .unwrap_err();
    assert!(matches!(error, VerifyError::InFuture { .. }), "{error}");
}

#[test]
fn a_kept_document_is_timely_exactly_when_it_verifies() {
    let leaf = Leaf::new();
    let mut claims = claims();
    claims.timestamp = NOW.plus(Duration::from_secs(60));
    let document = leaf.document(&claims);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let kept = leaf.verify_at(&document, claims.timestamp, &VerifyOptions::default());
    let kept = kept.unwrap();
    let begin = NOW.minus(Duration::from_secs(3));
    let end = NOW.plus(LEAF_LIFETIME);
    for (max_age, archival) in [(300, false), (4 * 3600, false), (300, true)] {
        let options = VerifyOptions {
            max_age: Duration::from_secs(max_age),
            // So that the leaf's begin comes into it, too.
            max_future_skew: if archival {
                Duration::from_secs(5)
            } else {
                hours(1)
            },
            archival,
            ..VerifyOptions::default()
        };
        let old = claims.timestamp.plus(options.max_age);
        let future = claims.timestamp.minus(options.max_future_skew);
        let whole_second = end.plus(Duration::from_millis(999));
        let mut seen = [false; 2];
        for moment in [begin, end, whole_second, old, future, claims.timestamp] {
            for at in [moment.0 - 1, moment.0, moment.0 + 1].map(UnixMillis) {
                let verifies = leaf.verify_at(&document, at, &options).is_ok();
                assert_eq!(kept.is_timely(at, &options), verifies, "{at} {options:?}");
                seen[usize::from(verifies)] = true;
            }
        }
        assert_eq!(seen, [true; 2]);
        if !archival {
            let until = kept.timely_until(&options);
            assert_eq!(until, old.min(whole_second));
            assert!(kept.is_timely(until, &options));
            assert!(!kept.is_timely(UnixMillis(until.0 + 1), &options));
        }
    }
}

#[test]
fn certificates_are_judged_now_or_at_the_documents_time() {
    let leaf = Leaf::new();
    let document = leaf.document(&claims());
    let expired = NOW.plus(LEAF_LIFETIME + Duration::from_secs(1));
    let patient = VerifyOptions {
        max_age: Duration::MAX,
        ..VerifyOptions::default()
    };
    leaf.verify_at(&document, NOW.plus(LEAF_LIFETIME), &patient)
        .unwrap();
    let error = leaf.verify_at(&document, expired, &patient).unwrap_err();
    let VerifyError::Certificate { which, source } = error else {
        panic!("{error}")
    };
    assert_eq!(which, "the signing certificate");
    assert!(
        matches!(source, CertificateError::Expired { .. }),
        "{source}"
    );
    let archival = VerifyOptions {
        archival: true,
        ..VerifyOptions::default()
    };
    leaf.verify_at(&document, expired, &archival).unwrap();

    // A document that claims a time outside its certificate's is refused even as a record.
    let mut early = claims();
    early.timestamp = NOW.minus(Duration::from_secs(4));
    let error = leaf
        .verify_at(&leaf.document(&early), NOW, &archival)
        .unwrap_err();
    let VerifyError::Certificate { source, .. } = error else {
        panic!("{error}")
    };
    assert!(
        matches!(source, CertificateError::NotYetValid { .. }),
        "{source}"
    );
}

#[test]
fn debug_documents_need_permission() {
    let leaf = Leaf::new();
    let production = leaf.verify(&leaf.document(&claims())).unwrap();
    assert!(!production.is_debug());
    for index in IMAGE {
        let mut debug = claims();
        debug.pcrs.insert(index, PcrValue::ZERO);
        let document = leaf.document(&debug);
        let error = leaf.verify(&document).unwrap_err();
        assert!(
            matches!(error, VerifyError::Debug { index: found } if found == index),
            "{error}"
        );
        let allowed = VerifyOptions {
            allow_debug: true,
            ..VerifyOptions::default()
        };
        assert!(leaf.verify_at(&document, NOW, &allowed).unwrap().is_debug());

        debug.pcrs.remove(&index);
        for options in [VerifyOptions::default(), allowed] {
            let error = leaf
                .verify_at(&leaf.document(&debug), NOW, &options)
                .unwrap_err();
            assert!(matches!(error, VerifyError::MissingPcr { .. }), "{error}");
        }
    }
}

#[test]
fn a_signature_by_another_key_or_over_other_bytes_is_refused() {
    let (leaf, other) = (Leaf::new(), Leaf::new());
    let payload = encode_payload(&claims(), &leaf.issued.certificate, &leaf.issued.cabundle);
    let error = leaf.verify(&other.sign(&payload)).unwrap_err();
    assert!(matches!(error, VerifyError::Signature), "{error}");

    let signature = UnverifiedDocument::parse(&leaf.sign(&payload))
        .unwrap()
        .signature;
    let mut altered = claims();
    altered.nonce = Some(vec![1]);
    let altered = encode_payload(&altered, &leaf.issued.certificate, &leaf.issued.cabundle);
    let error = leaf
        .verify(&encode_envelope(&altered, &signature))
        .unwrap_err();
    assert!(matches!(error, VerifyError::Signature), "{error}");
    let error = leaf
        .verify(&encode_envelope(&payload, &[0; 96]))
        .unwrap_err();
    assert!(matches!(error, VerifyError::Signature), "{error}");
}

#[test]
fn the_bundle_is_never_a_reason_to_trust() {
    let (leaf, other) = (Leaf::new(), Leaf::new());
    let document = other.document(&claims());
    let error = leaf.verify(&document).unwrap_err();
    let VerifyError::UntrustedRoot {
        found,
        subject,
        trusted,
    } = error
    else {
        panic!("{error}")
    };
    let hash = |der: &[u8]| hex::encode(crypto::sha256(der));
    let (root, foreign) = (&leaf.issued.cabundle[0], &other.issued.cabundle[0]);
    assert_eq!(trusted, format!("test ({})", hash(root)));
    assert_eq!(found, hash(foreign));
    let name = Certificate::parse(foreign).unwrap().subject().unwrap();
    assert!(
        !subject.is_empty() && subject == name.to_string(),
        "{subject}"
    );
    let none = UnverifiedDocument::parse(&document).unwrap().verify(
        &TrustAnchors::new(),
        NOW,
        &VerifyOptions::default(),
    );
    let text = none.unwrap_err().to_string();
    assert!(text.ends_with("trusted are: none"), "{text}");

    // The trusted root in front of somebody else's chain.
    let mut cabundle = other.issued.cabundle.clone();
    cabundle[0].clone_from(&leaf.issued.cabundle[0]);
    let payload = encode_payload(&claims(), &other.issued.certificate, &cabundle);
    let error = leaf.verify(&other.sign(&payload)).unwrap_err();
    let VerifyError::Certificate { which, source } = error else {
        panic!("{error}")
    };
    assert_eq!(which, "cabundle[1]");
    assert!(
        matches!(source, CertificateError::Issuer { .. }),
        "{source}"
    );

    // Root last, as most TLS stacks have it.
    let mut reversed = leaf.issued.cabundle.clone();
    reversed.reverse();
    let payload = encode_payload(&claims(), &leaf.issued.certificate, &reversed);
    let error = leaf.verify(&leaf.sign(&payload)).unwrap_err();
    assert!(
        matches!(error, VerifyError::UntrustedRoot { .. }),
        "{error}"
    );
}

#[test]
fn the_module_id_is_compared_by_number() {
    let module = |text: &str| {
        let claims = Claims {
            module_id: text.to_owned(),
            ..claims()
        };
        claims
            .module()
            .map(|(instance, slot)| (instance.to_owned(), slot))
    };
    let padded = module("i-0123-enc0191cceb4289903f").unwrap();
    assert_eq!(padded, ("i-0123".to_owned(), 0x0191_cceb_4289_903f));
    assert_eq!(module("i-0123-enc191cceb4289903f").unwrap(), padded);
    assert_eq!(module("i-0123"), None);
    assert_eq!(module("i-0123-enc"), None);
    assert_eq!(module("i-0123-enc+1"), None);
    assert_eq!(module("i-0123-enc00191cceb4289903f"), None);
}

#[test]
fn anchors_are_roots_in_der_or_pem() {
    let authority = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let (der, pem) = (
        authority.root_certificate_der(),
        authority.root_certificate_pem(),
    );
    let add = |bytes: &[u8]| TrustAnchors::new().with_root("x", bytes).map(|_| ());
    add(der).unwrap();
    add(pem.as_bytes()).unwrap();
    add(format!("subject=x\n{pem}\n").as_bytes()).unwrap();
    add(pem.replace('\n', "\r\n").as_bytes()).unwrap();
    for bad in [
        &b""[..],
        b"x",
        b"-----BEGIN CERTIFICATE-----",
        pem.repeat(2).as_bytes(),
    ] {
        assert!(
            matches!(add(bad).unwrap_err(), AnchorError::Pem { .. }),
            "{bad:?}"
        );
    }
    let bad = [&der[..der.len() - 1], &[der, &[0]].concat()];
    for bad in bad {
        assert!(matches!(
            add(bad).unwrap_err(),
            AnchorError::Certificate { .. }
        ));
    }
    let twice = TrustAnchors::new()
        .with_root("a", der)
        .unwrap()
        .with_root("b", der)
        .unwrap_err();
    assert!(matches!(twice, AnchorError::Repeated { .. }));
    assert!(TrustAnchors::new().is_empty());
    let aws = TrustAnchors::new().with_aws().with_aws();
    assert!(!aws.is_empty());
    assert_eq!(aws.iter().count(), 1);
}

/// Age does not matter.
fn patient() -> VerifyOptions {
    VerifyOptions {
        max_age: Duration::MAX,
        ..VerifyOptions::default()
    }
}

/// A verifier that keeps its cache.
fn cached(
    leaf: &Leaf,
    document: &[u8],
    now: UnixMillis,
    cache: &ChainCache,
) -> Result<VerifiedDocument, VerifyError> {
    let document = UnverifiedDocument::parse(document).unwrap();
    document.verify_with_cache(&leaf.anchors, now, &patient(), cache)
}

#[test]
fn a_known_chain_is_not_proven_again() {
    let (leaf, cache) = (Leaf::new(), ChainCache::default());
    let document = leaf.document(&claims());
    let usage = |hits, misses, held| CacheUse { hits, misses, held };
    let first = cached(&leaf, &document, NOW, &cache).unwrap();
    assert_eq!(cache.usage(), usage(0, 4, 4));
    let second = cached(&leaf, &document, NOW, &cache).unwrap();
    assert_eq!(cache.usage(), usage(4, 4, 4));
    assert_eq!(
        (first.claims(), first.anchor()),
        (second.claims(), second.anchor())
    );
}

#[test]
fn a_known_chain_is_judged_like_a_new_one() {
    let (leaf, cache) = (Leaf::new(), ChainCache::default());
    let document = leaf.document(&claims());
    cached(&leaf, &document, NOW, &cache).unwrap();

    let late = NOW.plus(LEAF_LIFETIME + Duration::from_secs(1));
    let error = cached(&leaf, &document, late, &cache).unwrap_err();
    let VerifyError::Certificate { source, .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(source, CertificateError::Expired { .. }));

    // Its certificates, another root.
    let other = Leaf::new();
    let error = cached(&other, &document, NOW, &cache).unwrap_err();
    assert!(
        matches!(error, VerifyError::UntrustedRoot { .. }),
        "{error}"
    );

    // Its certificates, somebody else's signature.
    let payload = encode_payload(&claims(), &leaf.issued.certificate, &leaf.issued.cabundle);
    let error = cached(&leaf, &other.sign(&payload), NOW, &cache).unwrap_err();
    assert!(matches!(error, VerifyError::Signature), "{error}");

    // Its certificates in another order, one of them left out.
    for (from, to) in [(1, 2), (2, 3)] {
        let mut swapped = leaf.issued.cabundle.clone();
        swapped.swap(from, to);
        let mut shorter = leaf.issued.cabundle.clone();
        shorter.remove(from);
        for cabundle in [swapped, shorter] {
            let payload = encode_payload(&claims(), &leaf.issued.certificate, &cabundle);
            let error = cached(&leaf, &leaf.sign(&payload), NOW, &cache).unwrap_err();
            assert!(matches!(error, VerifyError::Certificate { .. }), "{error}");
        }
    }

    // An issuer of the same name and another key: known is who signed, not that somebody did.
    let mut link = cache.find([leaf.issued.certificate.as_slice()].into_iter());
    let link = link.pop().flatten().unwrap();
    assert_ne!(link.signer.unwrap(), [0; 97]);
    let mut forged = cache.find(leaf.issued.cabundle[1..].iter().map(Vec::as_slice));
    forged.push(Some(Link {
        signer: Some([4; 97]),
        ..link
    }));
    let mut chain: Vec<_> = forged.into_iter().flatten().collect();
    x509::check_chain(&mut chain, NOW).unwrap();
    assert_ne!(
        chain[3].signer,
        Some([4; 97]),
        "it was checked, and corrected"
    );
}

/// Any altered byte of a warm document has the verdict that a cold one has.
#[test]
fn warm_and_cold_agree_on_altered_documents() {
    let (leaf, cache) = (Leaf::new(), ChainCache::default());
    let document = leaf.document(&claims());
    cached(&leaf, &document, NOW, &cache).unwrap();
    let held = cache.usage().held;
    for position in (0..document.len()).step_by(5) {
        let mut altered = document.clone();
        altered[position] ^= 1 << (position % 8);
        let Ok(unverified) = UnverifiedDocument::parse(&altered) else {
            continue;
        };
        let cold = unverified.verify(&leaf.anchors, NOW, &patient());
        let warm = cached(&leaf, &altered, NOW, &cache);
        assert_eq!(
            warm.unwrap_err().to_string(),
            cold.unwrap_err().to_string(),
            "byte {position}"
        );
    }
    assert_eq!(cache.usage().held, held, "nothing refused is kept");
}

#[test]
fn a_full_cache_forgets_what_was_used_longest_ago() {
    let capacity = std::num::NonZeroUsize::new(5).unwrap();
    let cache = ChainCache::new(capacity);
    let mut authority = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let root = authority.root_certificate_der();
    let anchors = TrustAnchors::new().with_root("test", root).unwrap();
    for slot in 0..4 {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let spki = point_spki(key.public_key().as_ref());
        let leaf = Leaf {
            issued: authority.issue_leaf(&spki, "i-1-enc1", slot, NOW).unwrap(),
            key,
            anchors: anchors.clone(),
        };
        cached(&leaf, &leaf.document(&claims()), NOW, &cache).unwrap();
        assert!(cache.usage().held <= capacity.get());
    }
    let used = |hits, misses| CacheUse {
        hits,
        misses,
        held: 5,
    };
    // The three CAs were used each time: only leaves were forgotten.
    assert_eq!(cache.usage(), used(9, 7));
    // Another chain takes the place of what is older, and is known the next time.
    let other = Leaf::new();
    let document = other.document(&claims());
    cached(&other, &document, NOW, &cache).unwrap();
    assert_eq!(cache.usage(), used(9, 11));
    cached(&other, &document, NOW, &cache).unwrap();
    assert_eq!(cache.usage(), used(13, 11));
}
