//! Bytes from whoever built an image, as a kernel of either processor, and as a kernel module. Nothing panics; a kernel that
//! unpacks is exactly one.

#![no_main]

use enclos_eif::image::retarget_nsm;
use enclos_eif::kernel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = kernel::version(bytes);
    let _ = kernel::architecture(bytes);
    if kernel::unpack(bytes).is_ok() {
        assert!(kernel::is_canonical(bytes));
    }
    if let Ok(module) = retarget_nsm(bytes) {
        assert!(retarget_nsm(&module).is_err(), "retargeted twice");
    }
});
