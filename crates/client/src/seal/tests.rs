//! Both sides against each other: what must pass, and every way in which it must not.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::vector::{ANSWER, DOCUMENT, QUESTION, REPLY, REQUEST, counting, opener, unhex};
use super::*;

fn pair() -> (Sealer, Opener) {
    let opener = Opener::generate().unwrap();
    opener.offer(DOCUMENT);
    (
        Sealer::new(opener.public_key_der(), DOCUMENT).unwrap(),
        opener,
    )
}

#[test]
fn a_request_and_its_reply_make_the_round_trip() {
    let (sealer, opener) = pair();
    let (request, pending) = sealer.seal(b"question").unwrap();
    assert_eq!(request.len(), b"question".len() + REQUEST_OVERHEAD);
    let opened = opener.open(&request).unwrap();
    assert_eq!(opened.plaintext(), b"question");
    assert_eq!(opened.request_id(), pending.request_id());
    let reply = opened.reply(b"answer").unwrap();
    assert_eq!(reply.len(), b"answer".len() + REPLY_OVERHEAD);
    assert_eq!(*pending.open(&reply).unwrap(), b"answer");
}

#[test]
fn every_flipped_bit_of_a_request_is_refused() {
    let (sealer, opener) = pair();
    let (request, _) = sealer.seal(b"question").unwrap();
    for bit in 0..request.len() * 8 {
        let mut damaged = request.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // Bit 255 of an X25519 coordinate is masked by RFC 7748, but it is bound by the KEM's transcript.
        assert!(
            opener.open(&damaged).is_err(),
            "bit {bit} of the request was not noticed"
        );
    }
    opener.open(&request).unwrap();
}

#[test]
fn every_flipped_bit_of_a_reply_is_refused() {
    let (sealer, opener) = pair();
    let (request, pending) = sealer.seal(b"question").unwrap();
    let reply = opener.open(&request).unwrap().reply(b"answer").unwrap();
    for bit in 0..reply.len() * 8 {
        let mut damaged = reply.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(
            pending.open(&damaged).is_err(),
            "bit {bit} of the reply was not noticed"
        );
    }
    pending.open(&reply).unwrap();
}

#[test]
fn a_replay_is_refused_and_a_second_request_is_not() {
    let (sealer, opener) = pair();
    let (request, pending) = sealer.seal(b"transfer").unwrap();
    opener.open(&request).unwrap();
    let refused = opener.open(&request).unwrap_err();
    assert_eq!(
        refused,
        OpenError::Replayed {
            id: pending.request_id()
        }
    );
    assert_eq!(refused.http_status(), 409);
    assert!(!refused.wants_fresh_document());
    opener.open(&sealer.seal(b"transfer").unwrap().0).unwrap();
}

#[test]
fn offering_a_document_again_does_not_forget_its_requests() {
    let (sealer, opener) = pair();
    let (request, _) = sealer.seal(b"transfer").unwrap();
    opener.open(&request).unwrap();
    opener.offer(DOCUMENT);
    assert!(matches!(
        opener.open(&request),
        Err(OpenError::Replayed { .. })
    ));
}

#[test]
fn a_document_that_was_not_offered_is_named() {
    let (_, opener) = pair();
    let sealer = Sealer::new(opener.public_key_der(), b"another document").unwrap();
    let refused = opener.open(&sealer.seal(b"x").unwrap().0).unwrap_err();
    let document = DocumentHash::of(b"another document");
    assert_eq!(refused, OpenError::UnknownDocument { document });
    assert!(refused.wants_fresh_document() && refused.to_string().contains(&document.to_string()));
}

#[test]
fn a_document_expires_on_the_second() {
    let opener = Opener::generate().unwrap();
    let start = Instant::now();
    opener.offer_at(DOCUMENT, start);
    let sealer = Sealer::new(opener.public_key_der(), DOCUMENT).unwrap();
    let lifetime = Limits::default().document_lifetime;
    let early = start + lifetime - Duration::from_millis(1);
    opener
        .open_at(&sealer.seal(b"x").unwrap().0, early)
        .unwrap();
    let late = opener.open_at(&sealer.seal(b"x").unwrap().0, start + lifetime);
    assert!(late.unwrap_err().wants_fresh_document());
}

#[test]
fn an_expired_document_offered_again_brings_no_replay_back() {
    let opener = Opener::generate().unwrap();
    let start = Instant::now();
    opener.offer_at(DOCUMENT, start);
    let sealer = Sealer::new(opener.public_key_der(), DOCUMENT).unwrap();
    let (request, _) = sealer.seal(b"transfer").unwrap();
    opener.open_at(&request, start).unwrap();
    let later = start + Limits::default().document_lifetime;
    opener.offer_at(DOCUMENT, later);
    assert!(
        opener
            .open_at(&request, later)
            .unwrap_err()
            .wants_fresh_document()
    );
}

#[test]
fn a_full_memory_retires_documents_and_accepts_no_replay() {
    let limits = Limits {
        documents: 2,
        requests: 3,
        ..Limits::default()
    };
    let opener = Opener::with_limits(limits).unwrap();
    let sealer = |document: &[u8]| Sealer::new(opener.public_key_der(), document).unwrap();
    let open = |document: &[u8]| opener.open(&sealer(document).seal(b"x").unwrap().0);
    opener.offer(b"one");
    opener.offer(b"two");
    let (first, _) = sealer(b"one").seal(b"x").unwrap();
    opener.open(&first).unwrap();
    open(b"two").unwrap();
    open(b"two").unwrap();
    open(b"two").unwrap(); // the fourth id retires document one
    assert!(opener.open(&first).unwrap_err().wants_fresh_document());
    opener.offer(b"three");
    opener.offer(b"four");
    assert!(open(b"two").unwrap_err().wants_fresh_document());
    open(b"three").unwrap();
    open(b"four").unwrap();
}

/// Four retired documents are remembered for each that is answered for: none of them is answered for again.
#[test]
fn retired_documents_stay_retired_within_a_bound() {
    let limits = Limits {
        documents: 1,
        ..Limits::default()
    };
    let opener = Opener::with_limits(limits).unwrap();
    let documents: [[u8; 1]; 6] = counting::<6>(0).map(|byte| [byte]);
    for document in &documents {
        opener.offer(document);
    }
    let open = |document: &[u8]| {
        opener.offer(document);
        let sealer = Sealer::new(opener.public_key_der(), document).unwrap();
        opener.open(&sealer.seal(b"x").unwrap().0)
    };
    for document in &documents[1..5] {
        assert!(open(document).unwrap_err().wants_fresh_document());
    }
    open(&documents[5]).unwrap();
    open(&documents[0]).unwrap();
}

#[test]
fn another_enclave_cannot_open_even_if_it_claims_the_document() {
    let (sealer, _) = pair();
    let other = Opener::generate().unwrap();
    other.offer(DOCUMENT);
    let refused = other.open(&sealer.seal(b"x").unwrap().0).unwrap_err();
    assert_eq!(
        refused,
        OpenError::Undecryptable {
            expected: "request"
        }
    );
}

#[test]
fn a_forged_request_does_not_burn_the_id_of_a_genuine_one() {
    let (sealer, opener) = pair();
    let (request, _) = sealer.seal(b"x").unwrap();
    let mut forged = request.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(
        opener.open(&forged),
        Err(OpenError::Undecryptable { .. })
    ));
    opener.open(&request).unwrap();
}

#[test]
fn a_reply_is_bound_to_its_request() {
    let (sealer, opener) = pair();
    let (first, pending) = sealer.seal(b"one").unwrap();
    let (second, _) = sealer.seal(b"two").unwrap();
    opener.open(&first).unwrap();
    let reply = opener.open(&second).unwrap().reply(b"for two").unwrap();
    assert!(matches!(
        pending.open(&reply),
        Err(OpenError::OtherRequest { .. })
    ));
    // With the id rewritten the key still differs.
    let mut moved = reply;
    moved[6..22].copy_from_slice(&pending.request_id().0);
    assert_eq!(
        pending.open(&moved),
        Err(OpenError::Undecryptable { expected: "reply" })
    );
}

#[test]
fn damage_is_called_what_it_is() {
    let (sealer, opener) = pair();
    let (request, pending) = sealer.seal(b"").unwrap();
    assert_eq!(request.len(), REQUEST_OVERHEAD);
    let opened = |bytes: &[u8]| opener.open(bytes).unwrap_err();
    let truncated = |len| OpenError::Truncated {
        len,
        minimum: REQUEST_OVERHEAD,
        expected: "request",
    };
    assert_eq!(opened(&[]), truncated(0));
    assert_eq!(
        opened(&request[..REQUEST_OVERHEAD - 1]),
        truncated(REQUEST_OVERHEAD - 1)
    );
    assert_eq!(opened(b"{\"a\":1}"), OpenError::Magic { found: *b"{\"a\"" });
    let mut newer = request.clone();
    newer[4] = 2;
    assert_eq!(opened(&newer), OpenError::Version { found: 2 });
    let reply = opener.open(&request).unwrap().reply(b"").unwrap();
    assert_eq!(
        pending.open(&reply[..REPLY_OVERHEAD - 1]),
        Err(OpenError::Truncated {
            len: REPLY_OVERHEAD - 1,
            minimum: REPLY_OVERHEAD,
            expected: "reply",
        })
    );
    assert_eq!(
        opened(&reply),
        OpenError::Kind {
            expected: "request",
            found: 2
        }
    );
    assert_eq!(
        pending.open(&request),
        Err(OpenError::Kind {
            expected: "reply",
            found: 1
        })
    );
}

#[test]
fn only_x25519_keys_are_sealed_to() {
    let (_, opener) = pair();
    let good = opener.public_key_der();
    let refused = |key: &[u8]| Sealer::new(key, DOCUMENT).unwrap_err().to_string();
    assert!(refused(&good[..43]).starts_with("the enclave's public key (43 bytes)"));
    assert!(refused(&[&good[..], &[0]].concat()).contains("(45 bytes)"));
    let mut x448 = *good;
    x448[8] = 0x6f;
    assert!(refused(&x448).contains("(44 bytes)"));
    let mut zero = *good;
    zero[12..].fill(0);
    let small_order = Sealer::new(&zero, DOCUMENT)
        .unwrap()
        .seal(b"x")
        .unwrap_err();
    assert!(matches!(small_order, SealError::Hpke(_)));
}

#[test]
fn of_many_threads_with_one_request_exactly_one_opens_it() {
    let (sealer, opener) = pair();
    let (request, _) = sealer.seal(b"transfer").unwrap();
    let opened = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| opener.open(&request).is_ok()))
            .collect();
        threads
            .into_iter()
            .map(|thread| u32::from(thread.join().unwrap()))
            .sum::<u32>()
    });
    assert_eq!(opened, 1);
}

#[test]
fn hashes_and_ids_are_shown_in_hex() {
    let document = DocumentHash::of(b"abc");
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(document.to_string(), hex);
    let id = RequestId(counting(0));
    assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0e0f");
}

#[test]
fn nothing_secret_is_in_debug_output() {
    let (sealer, opener) = pair();
    let (request, pending) = sealer.seal(b"hush-hush").unwrap();
    let opened = opener.open(&request).unwrap();
    let shown = format!("{sealer:?} {opener:?} {pending:?} {opened:?}");
    assert!(!shown.contains("hush") && !shown.contains("secret") && !shown.contains("104, 117"));
}

#[test]
fn another_implementations_messages_are_read_and_written() {
    assert_eq!(
        opener().public_key_der()[12..],
        unhex("b1f1b840de7a3241b02748cf9b05b74dc8c5e8451298738817bd76aa8ebe8c2b")
    );
    let opened = opener().open(&unhex(REQUEST)).unwrap();
    assert_eq!(opened.plaintext(), QUESTION);
    assert_eq!(
        opened.reply_with(&counting(0xc0), ANSWER).unwrap(),
        unhex(REPLY)
    );
    let pending = opener().open(&unhex(REQUEST)).unwrap().into_pending();
    assert_eq!(*pending.open(&unhex(REPLY)).unwrap(), ANSWER);
}

#[test]
fn the_specification_holds_the_vector() {
    let specification = include_str!("../../SPEC.md").replace([' ', '\n'], "");
    for vector in [REQUEST, REPLY] {
        assert!(specification.contains(&vector.replace(' ', "")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_plaintext_survives(question: Vec<u8>, answer: Vec<u8>) {
        let (sealer, opener) = pair();
        let (request, pending) = sealer.seal(&question).unwrap();
        let opened = opener.open(&request).unwrap();
        prop_assert_eq!(opened.plaintext(), &question[..]);
        let reply = opened.reply(&answer).unwrap();
        prop_assert_eq!(&*pending.open(&reply).unwrap(), &answer);
    }

    #[test]
    fn no_bytes_open_and_none_panic(bytes: Vec<u8>) {
        let (sealer, opener) = pair();
        let framed = [b"ENCS\x01\x01".as_slice(), &bytes].concat();
        prop_assert!(opener.open(&bytes).is_err() && opener.open(&framed).is_err());
        let (_, pending) = sealer.seal(b"x").unwrap();
        let framed = [b"ENCS\x01\x02".as_slice(), &bytes].concat();
        prop_assert!(pending.open(&bytes).is_err() && pending.open(&framed).is_err());
    }
}
