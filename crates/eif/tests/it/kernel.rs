//! Kernels: length, payload, limits.

use crate::common::{PACKS, Pack, bzimage, bzimage_around, pack, vmlinux};
use enclos_eif::kernel::{self, KernelError};

#[test]
fn every_packing_unpacks_to_the_same_elf() {
    let elf = vmlinux(100_000);
    for packing in PACKS {
        let image = bzimage(packing, &elf);
        assert!(kernel::is_canonical(&image), "{packing:?}");
        assert!(kernel::unpack(&image).unwrap() == elf, "{packing:?}");
    }
}

/// The distribution's kernel where the caller names one, else one of its size.
#[test]
fn a_kernel_of_real_size_unpacks() {
    let image = match std::env::var_os("ENCLOS_TEST_KERNEL") {
        Some(path) => std::fs::read(path).unwrap(),
        None => bzimage(Pack::Lz4, &vmlinux(58 << 20)),
    };
    let version = kernel::version(image.as_slice()).unwrap();
    assert!(version.is_some_and(|version| version.starts_with("6.")));
    let elf = kernel::unpack(&image).unwrap();
    assert!(elf.starts_with(b"\x7fELF"));
    assert!(elf.len() > 16 << 20, "{} bytes", elf.len());
}

#[test]
fn the_version_is_found() {
    let version = |kernel: &[u8]| kernel::version(kernel).unwrap();
    assert_eq!(
        version(&crate::common::kernel()).as_deref(),
        Some("6.12.0-test")
    );
    assert_eq!(version(b"short"), None);
}

#[test]
fn a_byte_more_or_less_is_another_file() {
    let mut image = crate::common::kernel();
    image.push(0);
    let Err(KernelError::Length { expected, found }) = kernel::unpack(&image) else {
        panic!()
    };
    assert_eq!(expected + 1, found);
    image.truncate(image.len() - 2);
    assert!(matches!(
        kernel::unpack(&image),
        Err(KernelError::Length { .. })
    ));
}

/// Adds a PE header that names a certificate table of `len` bytes at `at`.
fn with_certificates(at: usize, len: usize, appended: usize) -> Vec<u8> {
    let mut image = crate::common::kernel();
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x40;
    image[0x40..0x44].copy_from_slice(b"PE\0\0");
    image[0x58..0x5a].copy_from_slice(&[0x0b, 0x02]);
    image[0xe8..0xec].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
    image[0xec..0xf0].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
    image.resize(image.len() + appended, 0xaa);
    image
}

#[test]
fn a_certificate_table_is_part_of_the_kernel() {
    let end = crate::common::kernel().len();
    assert!(kernel::unpack(&with_certificates(end, 24, 24)).is_ok());
    assert!(kernel::unpack(&with_certificates(0, 0, 0)).is_ok());
    for (at, len, appended) in [(end, 24, 0), (end, 24, 25), (end + 8, 24, 32), (0, 24, 24)] {
        let image = with_certificates(at, len, appended);
        assert!(
            matches!(kernel::unpack(&image), Err(KernelError::Length { .. })),
            "{at} {len}"
        );
    }
}

#[test]
fn other_files_are_no_kernels() {
    for bytes in [&b""[..], b"MZ", &[0; 4096], &vmlinux(5000)] {
        assert!(matches!(
            kernel::unpack(bytes),
            Err(KernelError::NotBzImage { .. })
        ));
    }
    let mut old = crate::common::kernel();
    old[0x206] = 7;
    assert!(matches!(
        kernel::unpack(&old),
        Err(KernelError::Protocol { version: 0x207 })
    ));
}

#[test]
fn the_payload_is_inside_the_file() {
    for field in [0x248, 0x24c] {
        let mut image = crate::common::kernel();
        image[field..field + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            kernel::unpack(&image),
            Err(KernelError::Payload { .. })
        ));
    }
}

#[test]
fn unknown_and_damaged_payloads_differ() {
    let unknown = bzimage_around(b"BZh91AY&SY....");
    assert!(matches!(
        kernel::unpack(&unknown),
        Err(KernelError::Packing { .. })
    ));
    let cpio = bzimage_around(b"070701........");
    assert!(matches!(
        kernel::unpack(&cpio),
        Err(KernelError::Packing { .. })
    ));
    for packing in PACKS {
        let whole = pack(packing, &vmlinux(5000));
        let mut cut = whole[..whole.len() / 2].to_vec();
        cut.extend_from_slice(&5064_u32.to_le_bytes());
        let error = kernel::unpack(&bzimage_around(&cut)).unwrap_err();
        assert!(
            matches!(error, KernelError::Unpack(_)),
            "{packing:?}: {error}"
        );
    }
}

#[test]
fn the_size_word_must_match() {
    for size in [0_u32, 5063, 5065, u32::MAX] {
        let mut payload = pack(Pack::Zstd, &vmlinux(5000));
        payload.extend_from_slice(&size.to_le_bytes());
        let error = kernel::unpack(&bzimage_around(&payload)).unwrap_err();
        assert!(
            matches!(error, KernelError::Size { found: 5064, .. }),
            "{error}"
        );
    }
}

#[test]
fn only_x86_64_elf_files_come_out() {
    let mut arm = vmlinux(100);
    arm[18] = 183;
    for content in [&b"#!/bin/sh"[..], &arm] {
        let image = bzimage(Pack::Gzip, content);
        assert!(matches!(kernel::unpack(&image), Err(KernelError::NotElf)));
    }
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let bomb = vec![0; usize::try_from(kernel::MAX_VMLINUX).unwrap() + 1];
    let image = bzimage(Pack::Zstd, &bomb);
    assert!(image.len() < 1 << 20);
    assert!(matches!(
        kernel::unpack(&image),
        Err(KernelError::TooLarge { .. })
    ));
}

#[test]
fn an_arm64_kernel_is_as_long_as_its_headers_say() {
    use enclos_eif::Architecture;

    let image = crate::common::arm64_kernel();
    assert_eq!(kernel::architecture(&image), Architecture::Aarch64);
    assert_eq!(
        kernel::architecture(&crate::common::kernel()),
        Architecture::X86_64
    );
    assert!(kernel::is_canonical(&image));
    let version = kernel::version(image.as_slice()).unwrap();
    assert_eq!(version.as_deref(), Some("6.12.0-test"));
    for wrong in [&image[..4095], &[image.as_slice(), b"x"].concat()] {
        let refused = kernel::check_length(wrong, u64::try_from(wrong.len()).unwrap());
        assert!(matches!(refused, Err(KernelError::Length { .. })));
    }
    let mut signed = image.clone();
    signed[64 + 24 + 144..][..4].copy_from_slice(&4096_u32.to_le_bytes());
    signed[64 + 24 + 148..][..4].copy_from_slice(&8_u32.to_le_bytes());
    signed.extend([0; 8]);
    assert!(kernel::is_canonical(&signed));
    let mut big = image.clone();
    big[24] |= 1;
    assert!(matches!(
        kernel::check_length(&big, 4096),
        Err(KernelError::BigEndian)
    ));
    // Without a PE header it may be shorter than what it occupies, not longer.
    let mut plain = image;
    plain[..2].fill(0);
    assert!(kernel::check_length(&plain, 0x10000).is_ok());
    assert!(kernel::check_length(&plain, 0x10001).is_err());
}

#[test]
fn a_version_is_found_wherever_it_is() {
    let mut image = crate::common::arm64_kernel();
    let banner = image.split_off(2900);
    for distance in [0, 1 << 18, (1 << 18) - 3000, (1 << 18) - 3020, 3 << 18] {
        let moved = [image.as_slice(), &vec![0; distance], &banner].concat();
        let version = kernel::version(moved.as_slice()).unwrap();
        assert_eq!(version.as_deref(), Some("6.12.0-test"), "{distance}");
    }
}
