//! Bytes from an enclave as descriptor chains for the NSM device: it neither panics nor hangs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|program: &[u8]| enclos_hypervisor::fuzzing::nsm_queue(program));
