//! Ramdisks: members in every packing, alone and behind each other, whole and damaged.

use crate::common::{PACKS, Pack, pack, ramdisk};
use enclos_eif::ramdisk::{RamdiskError, unpack, unpack_to};
use proptest::prelude::*;

const LIMIT: u64 = 1 << 20;

#[test]
fn an_archive_is_copied_without_its_padding() {
    let archive = ramdisk(b"hello");
    let unpacked = unpack(&archive, LIMIT).unwrap();
    assert!(archive.starts_with(&unpacked));
    assert!(unpacked.len() < archive.len());
    assert!(archive[unpacked.len()..].iter().all(|b| *b == 0));
}

#[test]
fn every_packing_unpacks() {
    let archive = ramdisk(&[7; 5000]);
    for packing in PACKS {
        let unpacked = unpack(&pack(packing, &archive), LIMIT).unwrap();
        assert!(unpacked == archive, "{packing:?}");
    }
    let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut frame, &archive).unwrap();
    assert!(unpack(&frame.finish().unwrap(), LIMIT).unwrap() == archive);
}

#[test]
fn members_follow_each_other_in_any_packing() {
    let first = ramdisk(b"first");
    let second = ramdisk(b"second");
    for packing in PACKS {
        let mut both = first.clone();
        both.extend_from_slice(&pack(packing, &second));
        both.extend_from_slice(&[0; 8]);
        both.extend_from_slice(&first);
        let unpacked = unpack(&both, LIMIT).unwrap();
        let copied = unpack(&first, LIMIT).unwrap();
        assert!(
            unpacked == [&copied[..], &second, &copied].concat(),
            "{packing:?}"
        );
    }
}

#[test]
fn each_member_starts_at_a_multiple_of_four() {
    let odd = [&ramdisk(b"x")[..], &[0]].concat();
    let two = [pack(Pack::Gzip, &odd), pack(Pack::Zstd, &ramdisk(b"y"))].concat();
    let unpacked = unpack(&two, LIMIT).unwrap();
    assert_eq!(unpacked.len() % 4, 0);
    let second = odd.len().next_multiple_of(4);
    assert_eq!(&unpacked[second..second + 6], b"070701");
}

#[test]
fn nothing_is_no_ramdisk() {
    assert!(matches!(unpack(b"", LIMIT), Err(RamdiskError::Empty)));
    assert!(matches!(unpack(&[0; 512], LIMIT), Err(RamdiskError::Empty)));
}

#[test]
fn unknown_bytes_are_named_with_their_place() {
    let mut bytes = ramdisk(b"x");
    let at = u64::try_from(bytes.len()).unwrap();
    bytes.extend_from_slice(b"garbage");
    let Err(RamdiskError::Packing { offset, found }) = unpack(&bytes, LIMIT) else {
        panic!()
    };
    assert_eq!((offset, found.as_slice()), (at, &b"garbag"[..]));
}

#[test]
fn cut_off_data_is_truncated_or_damaged() {
    let archive = ramdisk(&[1; 300]);
    let end = unpack(&archive, LIMIT).unwrap().len();
    // The last bytes of the trailer are the padding of its name.
    for len in 1..end - 4 {
        let error = unpack(&archive[..len], LIMIT).unwrap_err();
        let expected = if len < 6 { "packing" } else { "truncated" };
        match error {
            RamdiskError::Packing { .. } => assert_eq!(expected, "packing", "{len}"),
            RamdiskError::Truncated => assert_eq!(expected, "truncated", "{len}"),
            other => panic!("{len}: {other}"),
        }
    }
    for packing in PACKS {
        let packed = pack(packing, &archive);
        let error = unpack(&packed[..packed.len() - 5], LIMIT).unwrap_err();
        assert!(
            matches!(error, RamdiskError::Truncated | RamdiskError::Io(_)),
            "{packing:?}"
        );
    }
}

#[test]
fn malformed_entries_are_refused() {
    let archive = ramdisk(b"body");
    for (at, field) in [(54, "file size"), (94, "name length")] {
        let mut bytes = archive.clone();
        bytes[at] = b'+';
        let Err(RamdiskError::Entry { field: found, .. }) = unpack(&bytes, LIMIT) else {
            panic!()
        };
        assert_eq!(found, field);
    }
    let mut bytes = archive.clone();
    bytes[94..102].copy_from_slice(b"00000000");
    assert!(matches!(
        unpack(&bytes, LIMIT),
        Err(RamdiskError::Entry { .. })
    ));
    let mut bytes = archive;
    let second = (110_usize + 5).next_multiple_of(4) + 4;
    bytes[second] = b'1';
    let Err(RamdiskError::Entry { offset, field }) = unpack(&bytes, LIMIT) else {
        panic!()
    };
    assert_eq!((offset, field), (u64::try_from(second).unwrap(), "magic"));
}

#[test]
fn the_limit_holds_exactly() {
    let archive = ramdisk(&[0; 10_000]);
    let len = u64::try_from(archive.len()).unwrap();
    for packing in PACKS {
        let packed = pack(packing, &archive);
        assert!(unpack(&packed, len).is_ok());
        let error = unpack(&packed, len - 1).unwrap_err();
        assert!(matches!(error, RamdiskError::TooLarge { limit } if limit == len - 1));
    }
}

#[test]
fn announced_sizes_cost_nothing() {
    let mut bytes = ramdisk(b"x");
    bytes[54..62].copy_from_slice(b"ffffffff");
    assert!(matches!(
        unpack(&bytes, u64::MAX),
        Err(RamdiskError::Truncated)
    ));
    // An xz header that asks for a dictionary of 4 GiB.
    let mut xz = pack(Pack::Xz, &ramdisk(b"x"));
    let filter = 12..12 + (usize::from(xz[12]) + 1) * 4;
    let lzma2 = filter.start
        + xz[filter.clone()]
            .windows(2)
            .position(|w| w == [0x21, 1])
            .unwrap();
    xz[lzma2 + 2] = 40;
    let crc = crc32fast::hash(&xz[filter.start..filter.end - 4]);
    xz[filter.end - 4..filter.end].copy_from_slice(&crc.to_le_bytes());
    let Err(RamdiskError::Io(error)) = unpack(&xz, LIMIT) else {
        panic!()
    };
    assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
}

#[test]
fn a_stream_may_come_in_pieces() {
    let archive = ramdisk(&[3; 9000]);
    for packing in PACKS {
        let bytes = [archive.clone(), pack(packing, &archive)].concat();
        let mut pieces = std::io::BufReader::with_capacity(7, bytes.as_slice());
        let mut out = Vec::new();
        let len = unpack_to(&mut pieces, &mut out, LIMIT).unwrap();
        assert_eq!(len, u64::try_from(out.len()).unwrap());
        assert!(out == unpack(&bytes, LIMIT).unwrap(), "{packing:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_end_in_peace(
        magic in 0..7_usize,
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let magics: [&[u8]; 7] = [
            b"", b"070701", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0",
            b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18",
        ];
        let input = [magics[magic], &bytes].concat();
        if let Ok(out) = unpack(&input, LIMIT) {
            prop_assert!(out.len() <= usize::try_from(LIMIT).unwrap());
        }
    }
}
