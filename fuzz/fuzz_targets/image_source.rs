//! Bytes from whoever made a container image, as the whole archive: an OCI layout, a `docker save` archive, or a root file system,
//! with their indexes, manifests, configurations and digests. Nothing panics.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| enclos_eif::image::fuzzing::source(bytes));
