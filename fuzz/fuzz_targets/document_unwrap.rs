//! What a server answers instead of a document: base64, JSON or anything else. What is found in it is what its base64 says.

#![no_main]

use enclos_client::decode::{MAX_DOCUMENT, base64_any, document};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(found) = document(bytes) else {
        return;
    };
    assert!(!found.is_empty() && found.len() <= MAX_DOCUMENT);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(plain) = base64_any(text.trim())
    {
        assert_eq!(plain, found);
    }
});
