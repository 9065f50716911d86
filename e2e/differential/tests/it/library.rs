//! Against AWS's library.

use std::io::Cursor;
use std::time::SystemTime;

use aws_nitro_enclaves_image_format::utils::PcrSignatureChecker;
use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;
use enclos_eif::{Eif, EifError, inspect, measure};

use crate::case::{Case, Theirs, cases, named};

/// An image without the signature that ends it: the header as far as the sizes, then all other sections.
fn without_signature(image: &[u8]) -> [&[u8]; 2] {
    let count = usize::from(image[0x1b]);
    let offset = &image[0x1c + 8 * (count - 1)..0x1c + 8 * count];
    let signature = u64::from_be_bytes(offset.try_into().unwrap());
    let sizes = 0x11c + 8 * (count - 1);
    [
        &image[..sizes],
        &image[548..usize::try_from(signature).unwrap()],
    ]
}

#[test]
fn two_hundred_images_are_written_and_measured_alike() {
    for case in cases() {
        let number = case.number;
        let theirs = case.theirs();
        let (_, bytes, measurements) = case.ours();
        assert_eq!(named(&measurements), theirs.pcrs, "case {number}");
        match &case.signing {
            None => assert!(bytes == theirs.bytes, "case {number}: the files differ"),
            Some(_) => {
                // ECDSA: theirs is randomised, ours is not, and both are written as integers of one or two bytes.
                // What both readers make of the signature is compared below; all else is equal.
                let ours = without_signature(&bytes);
                let equal = ours == without_signature(&theirs.bytes);
                assert!(
                    equal,
                    "case {number}: the files differ before the signature"
                );
            }
        }
    }
}

#[test]
fn images_for_aarch64_are_written_and_measured_alike() {
    for mut case in (0..40).map(Case::for_aarch64) {
        let number = case.number;
        case.signing = None;
        let theirs = case.theirs();
        let (_, bytes, measurements) = case.ours();
        assert_eq!(named(&measurements), theirs.pcrs, "case {number}");
        assert!(bytes == theirs.bytes, "case {number}: the files differ");
        let described = inspect(&mut Cursor::new(&theirs.bytes)).unwrap();
        assert_eq!((described.flags, described.crc_ok), (1, true));
        assert_eq!(named(&described.measurements), theirs.pcrs);
        let findings = &described.findings[..];
        assert!(
            matches!(findings, [EifError::Architecture]),
            "case {number}: {findings:?}"
        );
    }
}

#[test]
fn their_images_are_accepted_and_described_alike_here() {
    for case in cases() {
        let (theirs, number) = (case.theirs(), case.number);
        let mut file = Cursor::new(&theirs.bytes);
        let eif = Eif::parse(&mut file).unwrap_or_else(|e| panic!("case {number}: {e:?}"));
        assert_eq!(
            named(&measure(&mut file, &eif).unwrap()),
            theirs.pcrs,
            "case {number}"
        );
        if let Some(signature) = eif.signature(&mut file).unwrap() {
            signature.check_validity(SystemTime::now()).unwrap();
        }
        described_alike(&case, &theirs.path, &theirs.bytes);
    }
}

#[test]
fn our_images_are_accepted_and_described_alike_there() {
    for case in cases() {
        let (path, bytes, _) = case.ours();
        described_alike(&case, &path, &bytes);
        if case.signing.is_some() {
            let mut checker = PcrSignatureChecker::from_eif(path.to_str().unwrap()).unwrap();
            checker.verify().unwrap();
        }
    }
}

#[test]
fn damage_is_noticed_alike() {
    for number in 0..20 {
        let case = Case::generate(number);
        let Theirs {
            path, mut bytes, ..
        } = case.theirs();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let reader = EifReader::from_eif(path.to_str().unwrap().to_owned());
        let ours = inspect(&mut Cursor::new(&bytes)).unwrap();
        assert_eq!(reader.unwrap().check_crc(), ours.crc_ok, "case {number}");
        assert!(!ours.crc_ok, "case {number}");
    }
}

/// What both readers say of one file.
fn described_alike(case: &Case, path: &std::path::Path, bytes: &[u8]) {
    let number = case.number;
    let mut theirs = EifReader::from_eif(path.to_str().unwrap().to_owned()).unwrap();
    let ours = inspect(&mut Cursor::new(bytes)).unwrap();
    assert!(
        ours.findings.is_empty(),
        "case {number}: {:?}",
        ours.findings
    );
    assert_eq!(theirs.get_header().version, ours.version, "case {number}");
    assert_eq!(theirs.get_header().flags, ours.flags, "case {number}");
    assert!(theirs.check_crc() && ours.crc_ok, "case {number}");
    let metadata = serde_json::to_value(theirs.get_metadata().unwrap()).unwrap();
    assert_eq!(Some(metadata), ours.metadata, "case {number}");
    let measurements = theirs.get_measurements().unwrap();
    let pcrs = measurements
        .clone()
        .into_iter()
        .filter(|(name, _)| name.starts_with("PCR"));
    assert_eq!(
        pcrs.collect::<Vec<_>>(),
        named(&ours.measurements),
        "case {number}"
    );
    assert_eq!(case.signing.is_some(), ours.is_signed, "case {number}");
    let Some(certificate) = ours.certificate else {
        return assert!(case.signing.is_none(), "case {number}: no certificate");
    };
    let other = theirs.get_certificate_info(measurements).unwrap();
    assert_eq!(
        (theirs.sign_check, ours.signature_ok),
        (Some(true), Some(true)),
        "case {number}"
    );
    assert_eq!(other.issuer_name, certificate.issuer, "case {number}");
    assert_eq!(other.algorithm, certificate.algorithm, "case {number}");
    assert_eq!(other.not_before, certificate.not_before, "case {number}");
    assert_eq!(other.not_after, certificate.not_after, "case {number}");
    assert_eq!(other.signature, certificate.signature, "case {number}");
}
