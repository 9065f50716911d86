//! Entry point for fuzzing: sealed messages, keys and documents from whoever sits between a client and an enclave.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::vector::{ANSWER, DOCUMENT, QUESTION, REPLY, REQUEST, opener, unhex};
use super::{Limits, OpenError, Opener, PendingReply, RequestId, Sealer};

/// Little enough that a program of a few steps fills the memory.
const SMALL: Limits = Limits {
    document_lifetime: Duration::from_secs(100),
    documents: 3,
    requests: 5,
};

/// The first byte says what the others are.
pub fn envelope(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, request)) => as_request(request),
        Some((1, reply)) => as_reply(reply),
        Some((2, key)) => as_key(key),
        Some((3, program)) => as_program(program),
        _ => {}
    }
}

/// Nobody who has not the key's other half can seal: what opens is the vector's request, once, and its reply opens.
fn as_request(bytes: &[u8]) {
    let opener = opener();
    let Ok(opened) = opener.open(bytes) else {
        return;
    };
    assert_eq!(opened.plaintext(), QUESTION);
    let id = opened.request_id();
    assert!(matches!(opener.open(bytes), Err(OpenError::Replayed { id: twice }) if twice == id));
    let nonce = bytes.first_chunk().copied().unwrap_or([0; 32]);
    let reply = opened.reply_with(&nonce, bytes);
    let read = reply.ok().and_then(|reply| pending().open(&reply).ok());
    assert_eq!(read.as_deref().map(Vec::as_slice), Some(bytes));
}

/// Nobody but the enclave can answer: what opens is the vector's reply.
fn as_reply(bytes: &[u8]) {
    if let Ok(plaintext) = pending().open(bytes) {
        assert_eq!(*plaintext, ANSWER);
    }
}

fn pending() -> PendingReply {
    match opener().open(&unhex(REQUEST)) {
        Ok(opened) => opened.into_pending(),
        Err(refused) => panic!("the vector's request is refused: {refused}"),
    }
}

/// The key of a document is its sender's: it is sealed to or it is not, and only its owner reads.
fn as_key(key: &[u8]) {
    let Ok(sealer) = Sealer::new(key, DOCUMENT) else {
        return;
    };
    let Ok((request, pending)) = sealer.seal(QUESTION) else {
        return;
    };
    let opened = opener().open(&request);
    assert_eq!(opened.is_ok(), key == opener().public_key_der());
    assert!(pending.open(&unhex(REPLY)).is_err());
}

/// Clients, a replaying go-between and the clock in any order: each request is opened at most once, and only for a document that
/// was offered and is young.
fn as_program(program: &[u8]) {
    let (opener, start) = (Opener::with_limits(SMALL), Instant::now());
    let Ok(opener) = opener else { return };
    let (mut now, mut requests, mut opened) = (start, Vec::new(), HashSet::new());
    let mut offered: [Option<Instant>; 8] = [None; 8];
    for step in program.iter().take(32) {
        let (which, argument) = (step >> 6, step & 63);
        let document = usize::from(argument % 8);
        match which {
            0 => {
                opener.offer_at(&[argument % 8], now);
                offered[document].get_or_insert(now);
            }
            1 => requests.extend(sealed(&opener, argument % 8)),
            2 => now += Duration::from_secs(u64::from(argument)),
            _ => {
                let Some((document, request)) = requests.get(usize::from(argument)) else {
                    continue;
                };
                let Ok(answered) = opener.open_at(request, now) else {
                    continue;
                };
                assert!(opened.insert(answered.request_id()), "opened twice");
                let since = offered[usize::from(*document)];
                assert!(since.is_some_and(|since| now - since < SMALL.document_lifetime));
            }
        }
    }
    let _: HashSet<RequestId> = opened;
}

/// A request to a document that consists of its number.
fn sealed(opener: &Opener, document: u8) -> Option<(u8, Vec<u8>)> {
    let sealer = Sealer::new(opener.public_key_der(), &[document]).ok()?;
    Some((document, sealer.seal(QUESTION).ok()?.0))
}
