//! Reading images: what is valid is accepted, everything else is refused for its own reason.

use std::io::Cursor;

use crate::common::{fix_crc, image};
use enclos_eif::{Eif, EifError, Measurements, SectionKind, inspect, measure};
use proptest::prelude::*;

/// What running an image starts with.
fn accept(image: &[u8]) -> Result<Measurements, EifError> {
    let mut file = Cursor::new(image);
    let eif = Eif::parse(&mut file)?;
    measure(&mut file, &eif)
}

/// The refusal of a valid image after a mutation, its CRC put right.
fn refusal(mutate: impl FnOnce(&mut Vec<u8>)) -> EifError {
    let (mut image, _) = image();
    mutate(&mut image);
    fix_crc(&mut image);
    accept(&image).unwrap_err()
}

/// Offset of the header of section `index`.
fn section(image: &[u8], index: usize) -> usize {
    let at = 0x1c + 8 * index;
    usize::try_from(u64::from_be_bytes(image[at..at + 8].try_into().unwrap())).unwrap()
}

fn set_u64(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Sections of the test image, in order.
const KERNEL: usize = 0;
const CMDLINE: usize = 1;
const METADATA: usize = 2;
const RAMDISK: usize = 3;
const LAST: usize = 4;

#[test]
fn a_valid_image_is_accepted_and_measured_as_built() {
    let (image, measurements) = image();
    assert_eq!(accept(&image).unwrap(), measurements);
    let mut file = Cursor::new(&image);
    let eif = Eif::parse(&mut file).unwrap();
    assert_eq!(eif.version(), 4);
    assert_eq!(eif.cmdline(&mut file).unwrap(), "console=ttyS0 quiet");
    assert_eq!(
        eif.metadata(&mut file).unwrap(),
        Some(crate::common::metadata())
    );
    assert!(eif.signature(&mut file).unwrap().is_none());
    let kernel = eif
        .read_section(&mut file, eif.kernel().unwrap(), 1 << 20)
        .unwrap();
    assert_eq!(kernel, crate::common::kernel());
    let report = inspect(&mut file).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.measurements, measurements);
}

#[test]
fn every_prefix_is_truncated() {
    let (image, _) = image();
    for len in 0..image.len() {
        let error = accept(&image[..len]).unwrap_err();
        assert!(
            matches!(error, EifError::Truncated { .. }),
            "{len}: {error}"
        );
    }
}

#[test]
fn other_files_are_no_images() {
    let error = refusal(|image| image[0] = b'E');
    assert!(matches!(
        error,
        EifError::Magic {
            found: [b'E', b'e', b'i', b'f']
        }
    ));
    assert!(matches!(
        accept(b"\x7fELF").unwrap_err(),
        EifError::Magic { .. }
    ));
    assert!(matches!(
        accept(b"").unwrap_err(),
        EifError::Truncated { .. }
    ));
}

#[test]
fn only_version_4_is_run() {
    for version in [0, 1, 2, 3, 5, 255] {
        let error = refusal(|image| image[5] = version);
        assert!(matches!(error, EifError::Version { found } if found == u16::from(version)));
    }
}

#[test]
fn older_versions_are_described_and_others_are_not() {
    let (original, measurements) = image();
    for version in 0..=6_u8 {
        let mut image = original.clone();
        image[5] = version;
        fix_crc(&mut image);
        let report = inspect(&mut Cursor::new(image));
        match version {
            2..=4 => assert_eq!(report.unwrap().measurements, measurements),
            _ => assert!(matches!(report.unwrap_err(), EifError::Version { .. })),
        }
    }
}

#[test]
fn flags_and_reserved_fields_are_refused() {
    assert!(matches!(refusal(|i| i[7] = 1), EifError::Architecture));
    for bit in 1..16 {
        let flags = 1_u16 << bit;
        let error = refusal(|image| image[6..8].copy_from_slice(&flags.to_be_bytes()));
        assert!(matches!(error, EifError::Flags { found } if found == flags));
    }
    let error = refusal(|image| image[0x19] = 1);
    assert!(matches!(
        error,
        EifError::Reserved {
            field: "reserved",
            found: 1
        }
    ));
    let error = refusal(|image| image[0x21c] = 1);
    assert!(matches!(
        error,
        EifError::Reserved {
            field: "unused",
            found: 0x0100_0000
        }
    ));
}

#[test]
fn section_counts_end_at_both_sides() {
    for count in [0_u16, 1, 33, 0xffff] {
        let error = refusal(|image| image[0x1a..0x1c].copy_from_slice(&count.to_be_bytes()));
        assert!(matches!(error, EifError::SectionCount { found } if found == count));
    }
    assert!(matches!(
        refusal(|i| i[0x1b] = 2),
        EifError::UnusedEntry { index: 2 }
    ));
    assert!(matches!(
        refusal(|i| i[0x1b] = 32),
        EifError::Overlap {
            index: 5,
            found: 0,
            ..
        }
    ));
}

#[test]
fn table_entries_behind_the_last_section_are_zero() {
    let error = refusal(|image| image[0x1c + 8 * 31] = 1);
    assert!(matches!(error, EifError::UnusedEntry { index: 31 }));
    let error = refusal(|image| image[0x11c + 8 * 5 + 7] = 1);
    assert!(matches!(error, EifError::UnusedEntry { index: 5 }));
}

#[test]
fn gaps_overlaps_and_trailing_bytes_are_refused() {
    let error = refusal(|image| {
        let at = section(image, LAST);
        image.insert(at, 0);
        set_u64(image, 0x1c + 8 * LAST, u64::try_from(at + 1).unwrap());
    });
    assert!(matches!(error, EifError::Gap { index: LAST, .. }));
    let error = refusal(|image| {
        let at = section(image, LAST);
        set_u64(image, 0x1c + 8 * LAST, u64::try_from(at - 1).unwrap());
    });
    assert!(matches!(error, EifError::Overlap { index: LAST, .. }));
    let error = refusal(|image| set_u64(image, 0x1c, 547));
    assert!(matches!(
        error,
        EifError::Overlap {
            index: 0,
            expected: 548,
            found: 547
        }
    ));
    let error = refusal(|image| image.push(0));
    assert!(matches!(error, EifError::TrailingBytes { count: 1 }));
}

#[test]
fn sections_do_not_reach_beyond_the_file() {
    for huge in [u64::MAX, u64::MAX - 12, 1 << 62] {
        let error = refusal(|image| set_u64(image, 0x11c + 8 * LAST, huge));
        assert!(matches!(error, EifError::Truncated { .. }), "{error}");
        let error = refusal(|image| set_u64(image, 0x1c + 8 * LAST, huge));
        assert!(matches!(error, EifError::Truncated { .. }), "{error}");
    }
}

#[test]
fn both_lengths_of_a_section_agree() {
    let error = refusal(|image| {
        let at = section(image, METADATA) + 11;
        image[at] ^= 1;
    });
    assert!(matches!(
        error,
        EifError::SectionSize {
            index: METADATA,
            ..
        }
    ));
}

#[test]
fn unknown_types_and_section_flags_are_refused() {
    for kind in [0, 6, 255] {
        let error = refusal(|image| {
            let at = section(image, METADATA) + 1;
            image[at] = kind;
        });
        let expected = u16::from(kind);
        assert!(
            matches!(error, EifError::UnknownSection { index: METADATA, kind } if kind == expected)
        );
    }
    let error = refusal(|image| {
        let at = section(image, KERNEL) + 3;
        image[at] = 1;
    });
    assert!(matches!(
        error,
        EifError::SectionFlags {
            index: KERNEL,
            found: 1
        }
    ));
}

/// Changes the type of a section.
fn retyped(index: usize, kind: u8) -> EifError {
    refusal(|image| {
        let at = section(image, index) + 1;
        image[at] = kind;
    })
}

#[test]
fn missing_doubled_and_misplaced_sections_are_refused() {
    use SectionKind::{Cmdline, Kernel, Metadata, Ramdisk, Signature};
    assert!(matches!(
        retyped(METADATA, 1),
        EifError::Duplicate {
            index: METADATA,
            kind: Kernel
        }
    ));
    assert!(matches!(
        retyped(METADATA, 2),
        EifError::Duplicate { kind: Cmdline, .. }
    ));
    assert!(matches!(
        retyped(METADATA, 3),
        EifError::Missing { kind: Metadata }
    ));
    assert!(matches!(
        retyped(METADATA, 4),
        EifError::Order {
            index: RAMDISK,
            kind: Ramdisk
        }
    ));
    assert!(matches!(
        retyped(KERNEL, 3),
        EifError::Order {
            index: CMDLINE,
            kind: Cmdline
        }
    ));
    assert!(matches!(
        retyped(KERNEL, 5),
        EifError::Duplicate { kind: Metadata, .. }
    ));
    assert!(matches!(
        retyped(CMDLINE, 4),
        EifError::Order { kind: Ramdisk, .. }
    ));
    assert!(matches!(retyped(LAST, 4), EifError::Signature(_)));
    assert!(matches!(
        retyped(RAMDISK, 4),
        EifError::Order { index: LAST, .. }
    ));
    assert_eq!(Signature.to_string(), "signature");
}

#[test]
fn a_wrong_crc_names_both_values() {
    let (mut image, _) = image();
    image[0x223] ^= 1;
    let Err(EifError::Crc { stored, computed }) = accept(&image) else {
        panic!("accepted")
    };
    assert_eq!(stored ^ 1, computed);
}

/// Moves the boundary between two neighbouring sections by one byte, which no register notices.
fn moved_boundary(left: usize, right: usize) -> EifError {
    let (mut image, measurements) = image();
    let start = section(&image, right);
    let mut header: Vec<u8> = image.drain(start..start + 12).collect();
    header[11] -= 1;
    image.splice(start + 1..start + 1, header);
    let left_len = section(&image, left) + 11;
    image[left_len] += 1;
    image[0x11c + 8 * left + 7] += 1;
    image[0x11c + 8 * right + 7] -= 1;
    set_u64(
        &mut image,
        0x1c + 8 * right,
        u64::try_from(start + 1).unwrap(),
    );
    fix_crc(&mut image);
    let report = inspect(&mut Cursor::new(&image)).unwrap();
    assert!(report.crc_ok);
    assert_eq!(
        report.measurements, measurements,
        "the registers alone would not notice"
    );
    accept(&image).unwrap_err()
}

#[test]
fn bytes_do_not_move_between_sections() {
    assert!(matches!(
        moved_boundary(KERNEL, CMDLINE),
        EifError::Kernel(_)
    ));
}

#[test]
fn a_ramdisk_starts_like_one() {
    let error = refusal(|image| {
        let at = section(image, LAST) + 12;
        image[at] = b'1';
    });
    assert!(matches!(error, EifError::Ramdisk { ramdisk: 1, .. }));
}

#[test]
fn a_command_line_is_printable() {
    for byte in [0, b'\n', 0x1f, 0x7f, 0x80, 0xff] {
        let error = refusal(|image| {
            let at = section(image, CMDLINE) + 12;
            image[at + 3] = byte;
        });
        assert!(matches!(error, EifError::Cmdline { position: 3, byte: b } if b == byte));
    }
}

#[test]
fn the_description_survives_what_running_does_not() {
    let (mut image, _) = image();
    image[0x19] = 1;
    let at = section(&image, CMDLINE) + 12;
    image[at] = 0;
    image.extend_from_slice(b"more");
    let report = inspect(&mut Cursor::new(image)).unwrap();
    assert!(!report.crc_ok);
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(findings.len(), 4, "{findings:#?}");
    assert!(matches!(report.findings[0], EifError::Reserved { .. }));
    assert!(matches!(
        report.findings[1],
        EifError::TrailingBytes { count: 4 }
    ));
    assert!(matches!(report.findings[2], EifError::Cmdline { .. }));
    assert!(matches!(report.findings[3], EifError::Crc { .. }));
}

#[test]
fn a_file_that_shrinks_while_it_is_measured_is_an_error() {
    let (image, _) = image();
    let eif = Eif::parse(&mut Cursor::new(&image)).unwrap();
    let error = measure(&mut Cursor::new(&image[..image.len() - 1]), &eif).unwrap_err();
    assert!(matches!(error, EifError::Truncated { .. }));
}

#[test]
fn every_flipped_bit_of_the_header_is_noticed() {
    let (original, _) = image();
    for bit in 0..548 * 8 {
        let mut image = original.clone();
        image[bit / 8] ^= 1 << (bit % 8);
        assert!(accept(&image).is_err(), "bit {bit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_flipped_bit_is_noticed(position in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let (mut image, _) = image();
        let at = position.index(image.len());
        image[at] ^= 1_u8 << bit;
        prop_assert!(accept(&image).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_in_peace(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(accept(&bytes).is_err());
        prop_assert!(inspect(&mut Cursor::new(&bytes)).is_err());
    }

    #[test]
    fn what_is_built_is_read_back(
        cmdline in "[ -~]{0,200}",
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..6),
    ) {
        let mut builder = enclos_eif::Builder::new()
            .kernel(crate::common::kernel())
            .cmdline(cmdline.clone())
            .metadata(crate::common::metadata());
        let ramdisks: Vec<_> = bodies.iter().map(|body| crate::common::ramdisk(body)).collect();
        for ramdisk in &ramdisks {
            builder = builder.ramdisk(ramdisk.clone());
        }
        let mut out = Cursor::new(Vec::new());
        let built = builder.write(&mut out).unwrap();
        let eif = Eif::parse(&mut out).unwrap();
        prop_assert_eq!(measure(&mut out, &eif).unwrap(), built);
        prop_assert_eq!(eif.cmdline(&mut out).unwrap(), cmdline);
        let sections: Vec<_> = eif.ramdisks().copied().collect();
        prop_assert_eq!(sections.len(), ramdisks.len());
        for (section, ramdisk) in sections.iter().zip(&ramdisks) {
            let read = eif.read_section(&mut out, section, 1 << 20).unwrap();
            prop_assert_eq!(&read, ramdisk);
        }
    }
}
