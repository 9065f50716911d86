//! Bytes from whoever made a container image, as a layer: a tar archive, packed or not, with whiteouts, links, sparse files and
//! extended headers. Nothing panics, and what it becomes is a ramdisk that unpacks.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| enclos_eif::image::fuzzing::layer(bytes));
