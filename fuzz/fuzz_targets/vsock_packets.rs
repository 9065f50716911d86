//! Bytes from an enclave as a program for its vsock driver: packets, chains, forged indices, while host clients come
//! and go. The device neither panics nor hangs.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|program: &[u8]| enclos_hypervisor::fuzzing::vsock_packets(program));
