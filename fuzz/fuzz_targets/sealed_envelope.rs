//! Sealed requests and replies, keys to seal to, and any order of clients, replays and time: nothing panics, nobody seals or answers
//! without a key, and no request is opened twice.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| enclos_client::seal::fuzzing::envelope(bytes));
