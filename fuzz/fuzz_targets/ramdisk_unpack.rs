//! Bytes from whoever built an image, as a ramdisk: cpio archives one after the other, packed in any way. Nothing panics, no more comes
//! out than the limit, and what does not unpack is not listed either.

#![no_main]

use enclos_eif::{list, ramdisk};
use libfuzzer_sys::fuzz_target;

/// What a ramdisk may unpack to here.
const LIMIT: u64 = 1 << 20;

fuzz_target!(init: ignore_broken_pipes(), |bytes: &[u8]| {
    let listed = list(&mut &*bytes, LIMIT);
    match ramdisk::unpack(bytes, LIMIT) {
        Ok(unpacked) => {
            assert!(u64::try_from(unpacked.len()).unwrap() <= LIMIT);
            assert_eq!(unpacked.len() % 4, 0);
        }
        Err(_) => assert!(listed.is_err()),
    }
});

/// As every Rust program does at its start, but not libFuzzer's: a listing that ends early closes the pipe between its two threads.
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed, and no other thread runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
