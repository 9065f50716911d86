//! Signing images and verifying what was signed.

use std::io::Cursor;
use std::time::{Duration, SystemTime};

use enclos_attest::PcrValue;
use enclos_eif::signature::{Curve, ImageSignature, SignatureError};
use enclos_eif::{
    Builder, Eif, EifError, Measurements, SectionKind, Signer, SignerError, ToBeSigned, inspect,
    measure, sign_image,
};
use p384::ecdsa::signature::Signer as _;
use p384::pkcs8::DecodePrivateKey;
use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

use crate::common::{fix_crc, image, kernel, metadata, ramdisk};

const CURVES: [&SignatureAlgorithm; 3] = [
    &rcgen::PKCS_ECDSA_P256_SHA256,
    &rcgen::PKCS_ECDSA_P384_SHA384,
    &rcgen::PKCS_ECDSA_P521_SHA512,
];

/// A key and its certificate, both PEM.
fn pair(curve: &'static SignatureAlgorithm, name: &str) -> (String, String) {
    let key = KeyPair::generate_for(curve).unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2025, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    (key.serialize_pem(), certificate.pem())
}

fn signer(curve: &'static SignatureAlgorithm) -> Signer {
    let (key, certificate) = pair(curve, "signer");
    Signer::from_pem(&key, &certificate).unwrap()
}

fn signed(signer: &Signer) -> (Vec<u8>, Measurements) {
    let mut out = Cursor::new(Vec::new());
    let builder = Builder::new()
        .kernel(kernel())
        .cmdline("quiet")
        .metadata(metadata())
        .ramdisk(ramdisk(b"runtime"))
        .ramdisk(ramdisk(b"application"))
        .sign(signer);
    let measurements = builder.write(&mut out).unwrap();
    (out.into_inner(), measurements)
}

fn accept(image: &[u8]) -> Result<Measurements, EifError> {
    let mut file = Cursor::new(image);
    let eif = Eif::parse(&mut file)?;
    measure(&mut file, &eif)
}

fn section(image: &[u8]) -> Vec<u8> {
    let eif = Eif::parse(&mut Cursor::new(image)).unwrap();
    let section = eif
        .sections()
        .iter()
        .find(|s| s.kind == SectionKind::Signature)
        .unwrap();
    let start = usize::try_from(section.offset).unwrap();
    image[start..start + usize::try_from(section.len).unwrap()].to_vec()
}

#[test]
fn every_curve_signs_and_verifies() {
    for curve in CURVES {
        let signer = signer(curve);
        let (image, measurements) = signed(&signer);
        assert_eq!(measurements.pcr8, Some(signer.pcr8()));
        assert_eq!(accept(&image).unwrap(), measurements);
        let report = inspect(&mut Cursor::new(&image)).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!((report.is_signed, report.signature_ok), (true, Some(true)));
        let certificate = report.certificate.unwrap();
        assert_eq!(certificate.issuer["commonName"], "signer");
        assert!(certificate.algorithm.starts_with("ecdsa-with-SHA"));
        assert_eq!(certificate.not_before, "Jan  1 00:00:00 2024 GMT");
        assert_eq!(certificate.not_after, "Jan  1 00:00:00 2025 GMT");
    }
}

/// Lengths and prefixes that the official builder gives (SPEC.md, golden vector).
#[test]
fn the_section_has_the_official_shape() {
    let (image, _) = signed(&signer(&rcgen::PKCS_ECDSA_P384_SHA384));
    let section = section(&image);
    assert!(section.starts_with(b"\x81\xa2\x73signing_certificate\x99"));
    assert_eq!(section[25..29], [0x18, b'-', 0x18, b'-']);
    let key = section
        .windows(10)
        .position(|w| w == b"\x69signature")
        .unwrap();
    assert_eq!(section[key + 10..key + 12], [0x98, 230]);
    let cose: Vec<u8> = minicbor::decode(&section[key + 10..]).unwrap();
    assert!(cose.starts_with(b"\x84\x44\xa1\x01\x38\x22\xa0\x58\x7b"));
    assert!(cose[9..].starts_with(b"\xa2\x6eregister_index\x00\x6eregister_value\x98\x30"));
    assert_eq!(cose[9 + 123..9 + 123 + 2], [0x58, 96]);
}

#[test]
fn signing_twice_gives_the_same_bytes() {
    for curve in CURVES {
        let (key, certificate) = pair(curve, "signer");
        let [first, second] =
            [0, 1].map(|_| signed(&Signer::from_pem(&key, &certificate).unwrap()).0);
        assert!(first == second);
    }
}

#[test]
fn an_image_is_signed_and_signed_again() {
    let (unsigned, measured) = image();
    let mut current = unsigned;
    for (curve, name) in CURVES
        .into_iter()
        .zip(["a", "a much longer name than that", ""])
    {
        let (key, certificate) = pair(curve, name);
        let signer = Signer::from_pem(&key, &certificate).unwrap();
        let mut out = Cursor::new(Vec::new());
        let measurements = sign_image(&mut Cursor::new(&current), &signer, &mut out).unwrap();
        assert_eq!(
            measurements,
            Measurements {
                pcr8: Some(signer.pcr8()),
                ..measured
            }
        );
        current = out.into_inner();
        assert_eq!(accept(&current).unwrap(), measurements);
        let eif = Eif::parse(&mut Cursor::new(&current)).unwrap();
        assert_eq!(eif.sections().len(), 6);
    }
}

#[test]
fn a_damaged_image_is_not_signed() {
    let (mut image, _) = image();
    let last = image.len() - 1;
    image[last] ^= 1;
    let signer = signer(&rcgen::PKCS_ECDSA_P256_SHA256);
    let mut out = Cursor::new(Vec::new());
    assert!(sign_image(&mut Cursor::new(image), &signer, &mut out).is_err());
}

/// Replaces the signature section of `image` by one of the same length.
fn with_section(mut image: Vec<u8>, section: &[u8]) -> Vec<u8> {
    let at = image.len() - section.len();
    image[at..].copy_from_slice(section);
    fix_crc(&mut image);
    image
}

#[test]
fn every_flipped_byte_of_the_signature_is_noticed() {
    let (image, _) = signed(&signer(&rcgen::PKCS_ECDSA_P256_SHA256));
    let good = section(&image);
    let cose = good
        .windows(10)
        .position(|w| w == b"\x69signature")
        .unwrap();
    for at in (0..24).chain(cose..good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let error = accept(&with_section(image.clone(), &bad)).unwrap_err();
        assert!(
            matches!(error, EifError::Signature(_)),
            "byte {at}: {error}"
        );
        let report = inspect(&mut Cursor::new(with_section(image.clone(), &bad))).unwrap();
        assert_eq!(report.signature_ok, Some(false), "byte {at}");
        assert_eq!(report.findings.len(), 1);
    }
}

#[test]
fn a_signature_is_for_one_image_and_by_one_key() {
    let (key, certificate) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let signer = Signer::from_pem(&key, &certificate).unwrap();
    let (image, measured) = signed(&signer);
    let signature = ImageSignature::parse(&section(&image)).unwrap();
    signature.verify(&measured.pcr0).unwrap();
    let error = signature.verify(&measured.pcr1).unwrap_err();
    assert!(matches!(error, SignatureError::OtherImage { pcr0 } if pcr0 == measured.pcr1));
    // Another certificate of the same length in front of the same signature.
    let (_, other) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let stolen = certificate_in_place(&section(&image), &certificate, &other);
    if let Some(stolen) = stolen {
        let error = ImageSignature::parse(&stolen)
            .unwrap()
            .verify(&measured.pcr0)
            .unwrap_err();
        assert!(matches!(error, SignatureError::Forged), "{error}");
    }
}

fn certificate_in_place(section: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    let encode = |text: &str| {
        let bytes = text
            .bytes()
            .map(|b| if b < 24 { vec![b] } else { vec![0x18, b] });
        bytes.flatten().collect::<Vec<u8>>()
    };
    let (from, to) = (encode(from), encode(to));
    let at = section.windows(from.len()).position(|w| w == from).unwrap();
    let mut changed = section.to_vec();
    (from.len() == to.len()).then(|| {
        changed[at..at + to.len()].copy_from_slice(&to);
        changed
    })
}

#[test]
fn a_certificate_is_valid_for_a_time() {
    let (image, _) = signed(&signer(&rcgen::PKCS_ECDSA_P256_SHA256));
    let signature = ImageSignature::parse(&section(&image)).unwrap();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let (from, to) = (1_704_067_200, 1_735_689_600);
    assert!(matches!(
        signature.check_validity(at(from - 1)),
        Err(SignatureError::NotYetValid { .. })
    ));
    assert!(signature.check_validity(at(from)).is_ok());
    assert!(signature.check_validity(at(to)).is_ok());
    assert!(matches!(
        signature.check_validity(at(to + 1)),
        Err(SignatureError::Expired { .. })
    ));
}

#[test]
fn keys_are_read_in_the_forms_that_openssl_writes() {
    let (key, certificate) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let sec1 = p384::SecretKey::from_pkcs8_pem(&key).unwrap();
    let sec1 = sec1.to_sec1_pem(Default::default()).unwrap();
    let parameters = "-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n";
    let text = format!("{parameters}{}", sec1.as_str());
    let followed = format!("{key}{certificate}");
    let [a, b, c] =
        [&key, &text, &followed].map(|key| signed(&Signer::from_pem(key, &certificate).unwrap()).0);
    assert!(a == b && b == c);
}

/// nitro-cli takes the first certificate of a file, and writes the whole file into the image; a key that is in it does not get
/// there by us.
#[test]
fn a_certificate_is_the_first_of_its_file_and_nothing_else_gets_into_the_image() {
    let (key, certificate) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let (_, issuer) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "issuer");
    let alone = signed(&Signer::from_pem(&key, certificate.trim_end()).unwrap());
    for file in [
        format!("{certificate}{issuer}"),
        format!("{key}{certificate}"),
        format!("Certificate:\n    Data:\n{certificate}{issuer}"),
    ] {
        let together = signed(&Signer::from_pem(&key, &file).unwrap());
        assert!(together == alone, "{file}");
    }
}

/// What nitro-cli signs with a chain in the certificate's file.
#[test]
fn a_chain_in_an_image_is_read_to_its_first_certificate() {
    let (key, certificate) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let (_, issuer) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "issuer");
    let signer = Signer::from_pem(&key, &certificate).unwrap();
    let (image, measurements) = signed(&signer);
    let cose: Vec<u8> = {
        let section = section(&image);
        let key = section.windows(10).position(|w| w == b"\x69signature");
        minicbor::decode(&section[key.unwrap() + 10..]).unwrap()
    };
    let mut encoder = minicbor::Encoder::new(Vec::new());
    encoder.array(1).unwrap().map(2).unwrap();
    for (name, bytes) in [
        (
            "signing_certificate",
            format!("{certificate}{issuer}").into_bytes(),
        ),
        ("signature", cose),
    ] {
        encoder.str(name).unwrap().encode(&bytes).unwrap();
    }
    let parsed = ImageSignature::parse(&encoder.into_writer()).unwrap();
    parsed.verify(&measurements.pcr0).unwrap();
    assert_eq!(Some(parsed.pcr8()), measurements.pcr8);
}

#[test]
fn keys_and_certificates_that_do_not_fit_are_refused() {
    let (key, certificate) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let (other, _) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let (small, _) = pair(&rcgen::PKCS_ECDSA_P256_SHA256, "signer");
    let (ed_key, ed_certificate) = pair(&rcgen::PKCS_ED25519, "signer");
    let refusal = |key: &str, certificate: &str| Signer::from_pem(key, certificate).unwrap_err();
    assert!(matches!(
        refusal(&other, &certificate),
        SignerError::OtherKey
    ));
    assert!(matches!(
        refusal(&small, &certificate),
        SignerError::Key { curve: Curve::P384 }
    ));
    assert!(matches!(refusal("", &certificate), SignerError::Key { .. }));
    assert!(matches!(refusal(&key, &key), SignerError::Certificate(_)));
    assert!(matches!(refusal(&key, ""), SignerError::Certificate(_)));
    let error = refusal(&ed_key, &ed_certificate);
    assert!(
        matches!(error, SignerError::Certificate(SignatureError::Key)),
        "{error}"
    );
}

#[test]
fn hostile_sections_are_refused_in_peace() {
    let (image, _) = signed(&signer(&rcgen::PKCS_ECDSA_P256_SHA256));
    let good = section(&image);
    for len in 0..good.len() {
        assert!(ImageSignature::parse(&good[..len]).is_err(), "{len}");
    }
    let more = [&good[..], &[0]].concat();
    assert!(matches!(
        ImageSignature::parse(&more),
        Err(SignatureError::Shape { .. })
    ));
    let long = vec![0; 32_769];
    assert!(matches!(
        ImageSignature::parse(&long),
        Err(SignatureError::TooLong { len: 32_769 })
    ));
    // An array that announces 2^32 elements.
    let huge = [
        b"\x81\xa2\x73signing_certificate\x9a\xff\xff\xff\xff".as_slice(),
        &[0; 64],
    ]
    .concat();
    assert!(ImageSignature::parse(&huge).is_err());
}

/// What `enclos eif measure` and `attach` do: the key is somewhere else, and only its signature comes back.
#[test]
fn a_signature_made_elsewhere_is_attached() {
    let (image, measurements) = image();
    for curve in CURVES {
        let (key, certificate) = pair(curve, "signer");
        let message = ToBeSigned::new(&certificate, &measurements.pcr0).unwrap();
        let bytes = message.bytes.as_slice();
        let encodings = match message.curve {
            Curve::P256 => {
                let key = p256::SecretKey::from_pkcs8_pem(&key).unwrap();
                let key = p256::ecdsa::SigningKey::from(key);
                let made: p256::ecdsa::Signature = key.sign(bytes);
                [made.to_der().as_bytes().to_vec(), made.to_bytes().to_vec()]
            }
            Curve::P384 => {
                let key = p384::SecretKey::from_pkcs8_pem(&key).unwrap();
                let key = p384::ecdsa::SigningKey::from(key);
                let made: p384::ecdsa::Signature = key.sign(bytes);
                [made.to_der().as_bytes().to_vec(), made.to_bytes().to_vec()]
            }
            Curve::P521 => {
                let key = p521::SecretKey::from_pkcs8_pem(&key).unwrap();
                let key = p521::ecdsa::SigningKey::from(key);
                let made: p521::ecdsa::Signature = key.sign(bytes);
                [made.to_der().as_bytes().to_vec(), made.to_bytes().to_vec()]
            }
        };
        let attached = encodings.map(|signature| {
            let signer = Signer::detached(&certificate, &signature).unwrap();
            let mut out = Cursor::new(Vec::new());
            sign_image(&mut Cursor::new(&image), &signer, &mut out).unwrap();
            out.into_inner()
        });
        assert!(
            attached[0] == attached[1],
            "both encodings are one signature"
        );
        let (_, der) = p384::pkcs8::Document::from_pem(&certificate).unwrap();
        let expected = PcrValue::of_certificate(der.as_bytes());
        assert_eq!(accept(&attached[0]).unwrap().pcr8, Some(expected));
    }
}

#[test]
fn a_detached_signature_of_something_else_is_refused() {
    let (image, measurements) = image();
    let (key, certificate) = pair(&rcgen::PKCS_ECDSA_P384_SHA384, "signer");
    let key = p384::ecdsa::SigningKey::from(p384::SecretKey::from_pkcs8_pem(&key).unwrap());
    let attach = |signature: &[u8]| {
        let signer = Signer::detached(&certificate, signature).unwrap();
        let signed = sign_image(
            &mut Cursor::new(&image),
            &signer,
            &mut Cursor::new(Vec::new()),
        );
        crate::common::chain(&signed.unwrap_err())
    };
    let other: p384::ecdsa::Signature = key.sign(b"something else");
    assert!(
        attach(&other.to_bytes()).contains("was not made by the key"),
        "{}",
        attach(&other.to_bytes())
    );
    for bad in [b"".as_slice(), b"x", &[0x30, 0x80], &[0; 95], &[0; 97]] {
        assert!(
            attach(bad).contains("neither DER nor r and s of P-384"),
            "{}",
            attach(bad)
        );
    }
    let message = ToBeSigned::new(&certificate, &measurements.pcr0).unwrap();
    let cut: p384::ecdsa::Signature = key.sign(&message.bytes[1..]);
    assert!(attach(&cut.to_bytes()).contains("was not made by the key"));
}
