//! Certificates from anyone: as roots to trust, and as the chain under a document that nobody signed. They are read and judged without
//! a panic, and nothing verifies. An input is a moment (Unix seconds, four bytes, big endian), then the certificates, root first, each
//! behind its length (two bytes); or it is a text, as an endorsement or a host's own chain.

#![no_main]

use enclos_attest::UnixMillis;
use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifyOptions};
use enclos_attest::pki::{Authority, Endorsement};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Endorsement::from_pem(text);
        let _ = Authority::from_pem(text);
        let _ = TrustAnchors::new().with_root("text", bytes);
    }
    let Some((seconds, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let at = u64::from(u32::from_be_bytes(*seconds)) * 1000;
    let chain = certificates(rest);
    let Some((leaf, bundle)) = chain.split_last() else {
        return;
    };
    let Ok(document) = UnverifiedDocument::parse(&envelope(at, leaf, bundle)) else {
        return;
    };
    let mut anchors = TrustAnchors::new().with_aws();
    for (position, root) in bundle.iter().enumerate() {
        let added = anchors.clone().with_root(&position.to_string(), root);
        anchors = added.unwrap_or(anchors);
    }
    let options = VerifyOptions {
        archival: true,
        ..VerifyOptions::default()
    };
    assert!(document.verify(&anchors, UnixMillis(at), &options).is_err());
});

fn certificates(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (certificate, rest) = rest.split_at(length);
        found.push(certificate);
        bytes = rest;
    }
    found
}

/// A document with this chain and a signature of zeros.
fn envelope(at: u64, leaf: &[u8], bundle: &[&[u8]]) -> Vec<u8> {
    let mut payload = head(5, 9);
    payload.extend(text("module_id"));
    payload.extend(text("i-0123456789abcdef0-enc0123456789abcdef"));
    payload.extend([text("digest"), text("SHA384")].concat());
    payload.extend([text("timestamp"), head(0, at)].concat());
    payload.extend([text("pcrs"), head(5, 3)].concat());
    for index in 0..3 {
        payload.extend([head(0, index), data(&[1; 48])].concat());
    }
    payload.extend([text("certificate"), data(leaf)].concat());
    payload.extend([text("cabundle"), head(4, bundle.len() as u64)].concat());
    payload.extend(bundle.iter().flat_map(|certificate| data(certificate)));
    for absent in ["public_key", "user_data", "nonce"] {
        payload.extend([text(absent), vec![0xf6]].concat());
    }
    [
        head(4, 4),
        data(&[0xa1, 0x01, 0x38, 0x22]),
        head(5, 0),
        data(&payload),
        data(&[0; 96]),
    ]
    .concat()
}

fn text(text: &str) -> Vec<u8> {
    [head(3, text.len() as u64), text.as_bytes().to_vec()].concat()
}

fn data(bytes: &[u8]) -> Vec<u8> {
    [head(2, bytes.len() as u64), bytes.to_vec()].concat()
}

/// The head of a CBOR item of this major type, eight bytes wide.
fn head(major: u8, argument: u64) -> Vec<u8> {
    [vec![major << 5 | 27], argument.to_be_bytes().to_vec()].concat()
}
