//! The vector in `SPEC.md`, which another implementation made from RFC 9180's text: of the enclave's key from the seed 00…1f.

use super::{Limits, Opener};

pub(super) const DOCUMENT: &[u8] = b"an attestation document";

pub(super) const REQUEST: &str = "454e435301011a11d078cc10af90fd2762a4b68358045cc546ce4e35badb0834c016b88a91eda0a1a2a3a4a5a6a7a8a9 \
     aaabacadaeaf693658254630f73ad8da78fb331bf976cd42f90e0e9c9e83f40c51072a6f741762694ea0050993124f8a \
     4290d15f1b5a5f742a3404d92acd423dc249";
pub(super) const REPLY: &str = "454e43530102a0a1a2a3a4a5a6a7a8a9aaabacadaeafc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9 \
     dadbdcdddedfc0555412bea36dc6eb443e8d318b3307cda3d22eacf00109d728";

pub(super) const QUESTION: &[u8] = b"the question";
pub(super) const ANSWER: &[u8] = b"the answer";

/// The enclave's side, which answers for [`DOCUMENT`].
pub(super) fn opener() -> Opener {
    let opener = Opener::from_seed(&counting(0), Limits::default());
    opener.offer(DOCUMENT);
    opener
}

pub(super) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(std::str::from_utf8);
    pairs
        .filter_map(|pair| u8::from_str_radix(pair.ok()?, 16).ok())
        .collect()
}

/// `from`, `from` + 1, and so on.
pub(super) fn counting<const N: usize>(from: u8) -> [u8; N] {
    let mut next = from..;
    std::array::from_fn(|_| next.next().unwrap_or(u8::MAX))
}
