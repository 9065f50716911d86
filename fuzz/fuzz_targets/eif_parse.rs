//! Bytes from anyone as an enclave image, its checksum put right so that the parser behind it is reached: nothing
//! panics, and what is accepted for running is described without a finding and with the same measurements, and does not differ
//! from itself.

#![no_main]

use std::io::Cursor;

use enclos_eif::{Eif, diff, inspect, kernel, list, measure, ramdisk};
use libfuzzer_sys::fuzz_target;

/// Where the checksum is in the header.
const CRC: std::ops::Range<usize> = 0x220..0x224;

/// What kernels and ramdisks may unpack to here.
const LIMIT: u64 = 1 << 20;

fuzz_target!(init: ignore_broken_pipes(), |bytes: &[u8]| {
    let mut image = bytes.to_vec();
    fix_crc(&mut image);
    let mut file = Cursor::new(image);
    let described = inspect(&mut file);
    let Ok(eif) = Eif::parse(&mut file) else { return };
    let Ok(measured) = measure(&mut file, &eif) else { return };
    let described = described.unwrap();
    assert_eq!(described.measurements, measured);
    assert!(eif.metadata(&mut file).is_err() || described.findings.is_empty());
    if let Ok(difference) = diff(&mut file.clone(), &mut file) {
        assert!(difference.changes.is_empty());
    }
    for section in eif.sections() {
        let data = eif.read_section(&mut file, section, LIMIT).unwrap();
        let _ = kernel::unpack(&data);
        if let Ok(unpacked) = ramdisk::unpack(&data, LIMIT) {
            assert!(u64::try_from(unpacked.len()).unwrap() <= LIMIT);
        } else {
            assert!(list(&mut data.as_slice(), LIMIT).is_err());
        }
    }
});

fn fix_crc(image: &mut [u8]) {
    if image.len() < CRC.end {
        return;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&image[..CRC.start]);
    crc.update(&image[CRC.end..]);
    image[CRC].copy_from_slice(&crc.finalize().to_be_bytes());
}

/// As every Rust program does at its start, but not libFuzzer's: a listing that ends early closes the pipe between its two threads.
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
