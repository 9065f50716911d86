//! Backups that a stranger hands over: whatever the bytes, they are a whole backup or an error, at the price of their own length.

#![no_main]

use enclos_kms::crypto::backup::Unopened;
use enclos_kms::store::backup::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The outside, up to the first key: what Argon2id costs is bounded, and too much for here.
    let _head = Unopened::read(data);
    // The inside, as if it had opened.
    let _contents = check(data);
});
