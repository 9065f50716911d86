//! The module against AWS's bytes and against a simple model.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA384, digest};
use proptest::prelude::*;

use super::*;
use crate::document::UnverifiedDocument;
use crate::pki::{Authority, LeafKey};

struct NoSigner;

impl NsmHost for NoSigner {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000)
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        Err("no signer here".into())
    }
}

/// Requests as AWS's library encodes them.
#[test]
fn requests_have_aws_bytes() {
    let golden: [(&str, Request); 7] = [
        ("6b44657363726962654e534d", Request::DescribeNsm),
        ("6947657452616e646f6d", Request::GetRandom),
        (
            "a16b4465736372696265504352a165696e64657800",
            Request::DescribePcr { index: 0 },
        ),
        (
            "a169457874656e64504352a265696e64657810646461746142 0102",
            Request::ExtendPcr {
                index: 16,
                data: vec![1, 2],
            },
        ),
        (
            "a1674c6f636b504352a165696e64657810",
            Request::LockPcr { index: 16 },
        ),
        (
            "a1684c6f636b50435273a16572616e676510",
            Request::LockPcrs { range: 16 },
        ),
        (
            "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6",
            Request::Attestation {
                user_data: None,
                nonce: None,
                public_key: None,
            },
        ),
    ];
    for (text, request) in golden {
        let bytes = hex::decode(text.replace(' ', "")).unwrap();
        assert_eq!(request.encode(), bytes, "{request:?}");
        assert_eq!(Request::decode(&bytes).unwrap(), request);
    }
}

#[test]
fn responses_have_aws_bytes() {
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    let mut ask = |request: Request| hex::encode(nsm.handle(&request.encode(), &mut NoSigner));
    assert_eq!(
        ask(Request::DescribePcr { index: 32 }),
        "a1654572726f726c496e76616c6964496e646578"
    );
    assert_eq!(ask(Request::LockPcr { index: 16 }), "674c6f636b504352");
}

/// Requests that AWS's library never sends but others may: order, widths, chunks, text for bytes.
#[test]
fn decoding_is_tolerant_where_nothing_is_ambiguous() {
    let extend = Request::ExtendPcr {
        index: 16,
        data: vec![0x31, 0x32],
    };
    let spellings = [
        "a1 69 457874656e64504352 a2 64 64617461 42 3132 65 696e646578 10",
        "bf 69 457874656e64504352 bf 64 64617461 42 3132 65 696e646578 10 ff ff",
        "a1 69 457874656e64504352 a2 65 696e646578 190010 64 64617461 62 3132",
        "a1 69 457874656e64504352 a2 65 696e646578 10 64 64617461 5f 4131 4132 ff",
        "a1 69 457874656e64504352 a3 65 696e646578 10 61 78 81a0 64 64617461 42 3132",
    ];
    for text in spellings {
        let bytes = hex::decode(text.replace(' ', "")).unwrap();
        assert_eq!(Request::decode(&bytes).unwrap(), extend, "{text}");
    }
    let empty = Request::Attestation {
        user_data: None,
        nonce: None,
        public_key: None,
    };
    let bytes = hex::decode("a16b4174746573746174696f6ea0").unwrap();
    assert_eq!(Request::decode(&bytes).unwrap(), empty);
}

#[test]
fn what_is_not_one_request_is_an_invalid_operation() {
    let hostile = [
        "",
        "00",
        "f6",
        "a0",
        "80",
        "ff",
        "60",
        "6947657452616e646f",                               // GetRando
        "6a47657452616e646f6d73",                           // GetRandoms
        "6947657452616e646f6d00",                           // GetRandom and a byte more
        "674c6f636b504352",                                 // LockPCR without fields
        "a16947657452616e646f6da0",                         // GetRandom with fields
        "a1674c6f636b504352a0",                             // no index
        "a1674c6f636b504352a165696e64657820",               // index -1
        "a1674c6f636b504352a165696e6465781a00010000",       // index 65536
        "a1674c6f636b504352a165696e646578f6",               // index null
        "a1674c6f636b504352a265696e6465781065696e64657811", // index twice
        "a2674c6f636b504352a165696e64657810684c6f636b50435273a16572616e676510",
        "a169457874656e64504352a165696e64657810", // no data
        "a169457874656e64504352a265696e6465781064646174618101", // data as an array
        "a16b4174746573746174696f6ea1656e6f6e63655f", // unfinished chunks
        "bb7fffffffffffffff",                     // a map of 2^63 entries
        "a1674c6f636b504352bb7fffffffffffffff",
        "7b7fffffffffffffff61", // a text of 2^63 bytes
    ];
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    for text in hostile {
        let answer = nsm.handle(&hex::decode(text).unwrap(), &mut NoSigner);
        assert_eq!(
            answer,
            Response::Error(ErrorCode::InvalidOperation).encode(),
            "{text}"
        );
    }
}

#[test]
fn limits_hold_on_both_sides() {
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    let mut ask = |bytes: &[u8]| Response::decode(&nsm.handle(bytes, &mut Signer)).unwrap();
    let overhead = Request::ExtendPcr {
        index: 16,
        data: vec![0; 4000],
    }
    .encode()
    .len()
        - 4000;
    let extend = |len| {
        Request::ExtendPcr {
            index: 16,
            data: vec![7; len],
        }
        .encode()
    };
    assert_eq!(extend(REQUEST_MAX - overhead).len(), REQUEST_MAX);
    assert!(matches!(
        ask(&extend(REQUEST_MAX - overhead)),
        Response::ExtendPcr { .. }
    ));
    assert_eq!(
        ask(&extend(REQUEST_MAX - overhead + 1)),
        Response::Error(ErrorCode::InputTooLarge)
    );
    assert_eq!(
        ask(&vec![0; 1 << 20]),
        Response::Error(ErrorCode::InputTooLarge)
    );

    let attest = |user_data: usize, nonce: usize, public_key: usize| {
        let [user_data, nonce, public_key] =
            [user_data, nonce, public_key].map(|len| Some(vec![1; len]));
        Request::Attestation {
            user_data,
            nonce,
            public_key,
        }
        .encode()
    };
    assert!(matches!(
        ask(&attest(1024, 1024, 1024)),
        Response::Attestation { .. }
    ));
    assert!(matches!(
        ask(&attest(0, 0, 1)),
        Response::Attestation { .. }
    ));
    for beyond in [
        attest(1025, 0, 1),
        attest(0, 1025, 1),
        attest(0, 0, 1025),
        attest(0, 0, 0),
    ] {
        assert_eq!(ask(&beyond), Response::Error(ErrorCode::InvalidArgument));
    }
}

#[test]
fn indices_and_ranges_end_where_the_registers_do() {
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    let mut ask =
        |request: Request| Response::decode(&nsm.handle(&request.encode(), &mut NoSigner)).unwrap();
    let no_register = Response::Error(ErrorCode::InvalidIndex);
    assert!(matches!(
        ask(Request::DescribePcr { index: 31 }),
        Response::DescribePcr { .. }
    ));
    assert_eq!(ask(Request::DescribePcr { index: 32 }), no_register);
    assert_eq!(ask(Request::DescribePcr { index: u16::MAX }), no_register);
    assert_eq!(
        ask(Request::ExtendPcr {
            index: 32,
            data: vec![]
        }),
        no_register
    );
    assert_eq!(ask(Request::LockPcr { index: 32 }), no_register);
    assert_eq!(ask(Request::LockPcrs { range: 33 }), no_register);
    assert_eq!(ask(Request::LockPcrs { range: 0 }), Response::LockPcrs);
    assert_eq!(ask(Request::LockPcrs { range: 32 }), Response::LockPcrs);
    assert_eq!(
        ask(Request::ExtendPcr {
            index: 31,
            data: vec![]
        }),
        Response::Error(ErrorCode::ReadOnlyIndex)
    );
}

#[test]
fn boot_values_are_locked_and_described() {
    let boot = BTreeMap::from([(PcrIndex::IMAGE, PcrValue::of_role("x"))]);
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &boot);
    let mut ask =
        |request: Request| Response::decode(&nsm.handle(&request.encode(), &mut NoSigner)).unwrap();
    let expected = Response::DescribePcr {
        lock: true,
        data: PcrValue::of_role("x"),
    };
    assert_eq!(ask(Request::DescribePcr { index: 0 }), expected);
    let Response::DescribeNsm(description) = ask(Request::DescribeNsm) else {
        panic!()
    };
    assert_eq!(description.locked_pcrs, Vec::from_iter(0..16));
    assert_eq!(description.max_pcrs, 32);
    assert_eq!(
        (description.module_id.as_str(), description.digest.as_str()),
        ("i-1-enc1", "SHA384")
    );
}

/// What the kernel's hwrng driver insists on: this very prefix, then a byte string of at least 24 bytes.
#[test]
fn random_is_what_the_kernels_driver_parses() {
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    let mut ask = || nsm.handle(&Request::GetRandom.encode(), &mut NoSigner);
    let (first, second) = (ask(), ask());
    let prefix = hex::decode("a16947657452616e646f6da16672616e646f6d590100").unwrap();
    assert_eq!(first[..prefix.len()], prefix);
    assert_eq!(first.len(), prefix.len() + RANDOM_LEN);
    assert_ne!(first, second);
}

#[test]
fn a_host_without_signer_or_randomness_is_an_internal_error() {
    struct Broken;
    impl NsmHost for Broken {
        fn now(&self) -> UnixMillis {
            UnixMillis(1)
        }
        fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
            Err("none".into())
        }
        fn random(&mut self, _: &mut [u8]) -> Result<(), HostError> {
            Err("none".into())
        }
    }
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    let attest = Request::Attestation {
        user_data: None,
        nonce: None,
        public_key: None,
    };
    for request in [Request::GetRandom, attest] {
        let answer = nsm.handle(&request.encode(), &mut Broken);
        assert_eq!(answer, Response::Error(ErrorCode::InternalError).encode());
    }
}

#[test]
fn every_response_survives_its_encoding() {
    let value = PcrValue::of_role("x");
    let errors = ErrorCode::ALL.map(Response::Error);
    let others = [
        Response::DescribeNsm(Nsm::new("m".to_owned(), &BTreeMap::new()).describe()),
        Response::GetRandom {
            random: vec![1; 256],
        },
        Response::DescribePcr {
            lock: false,
            data: value,
        },
        Response::ExtendPcr { data: value },
        Response::LockPcr,
        Response::LockPcrs,
        Response::Attestation {
            document: vec![1, 2, 3],
        },
    ];
    for response in errors.into_iter().chain(others) {
        assert_eq!(Response::decode(&response.encode()).unwrap(), response);
    }
}

/// A host with one signer for the whole test run.
struct Signer;

static IDENTITY: LazyLock<LeafIdentity> = LazyLock::new(|| {
    let now = UnixMillis(1_700_000_000_000);
    let mut authority = Authority::create(now, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), "i-1-enc1", 1, now)
        .unwrap();
    LeafIdentity::new(key, leaf).unwrap()
});

impl NsmHost for Signer {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000)
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        Ok(&IDENTITY)
    }
}

/// The specification, written a second time and as plainly as possible.
struct Model {
    values: Vec<Vec<u8>>,
    locked: BTreeSet<u16>,
}

impl Model {
    fn new() -> Self {
        Self {
            values: vec![vec![0; 48]; 32],
            locked: (0..16).collect(),
        }
    }

    fn answer(&mut self, request: &Request) -> Result<Option<Vec<u8>>, &'static str> {
        match request {
            Request::DescribePcr { index } => self
                .values
                .get(usize::from(*index))
                .cloned()
                .map(Some)
                .ok_or("InvalidIndex"),
            Request::ExtendPcr { index, .. } | Request::LockPcr { index } if *index > 31 => {
                Err("InvalidIndex")
            }
            Request::ExtendPcr { index, .. } | Request::LockPcr { index }
                if self.locked.contains(index) =>
            {
                Err("ReadOnlyIndex")
            }
            Request::ExtendPcr { index, data } => {
                let register = &mut self.values[usize::from(*index)];
                let input = [register.as_slice(), data].concat();
                *register = digest(&SHA384, &input).as_ref().to_vec();
                Ok(Some(register.clone()))
            }
            Request::LockPcr { index } => {
                self.locked.insert(*index);
                Ok(None)
            }
            Request::LockPcrs { range } if *range > 32 => Err("InvalidIndex"),
            Request::LockPcrs { range } => {
                self.locked.extend(0..*range);
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

fn requests() -> impl Strategy<Value = Request> {
    let index = prop_oneof![8 => 14_u16..34, 1 => any::<u16>()];
    let data = proptest::collection::vec(any::<u8>(), 0..80);
    let field = || proptest::option::of(proptest::collection::vec(any::<u8>(), 1..40));
    prop_oneof![
        Just(Request::DescribeNsm),
        Just(Request::GetRandom),
        index
            .clone()
            .prop_map(|index| Request::DescribePcr { index }),
        (index.clone(), data).prop_map(|(index, data)| Request::ExtendPcr { index, data }),
        index.clone().prop_map(|index| Request::LockPcr { index }),
        prop_oneof![3 => 0_u16..20, 1 => 30_u16..36].prop_map(|range| Request::LockPcrs { range }),
        (field(), field(), field()).prop_map(|(user_data, nonce, public_key)| {
            Request::Attestation {
                user_data,
                nonce,
                public_key,
            }
        }),
    ]
}

fn check_answer(request: &Request, response: Response, model: &mut Model) {
    match (model.answer(request), response) {
        (Err(code), Response::Error(found)) => assert_eq!(found.to_string(), code),
        (Ok(value), Response::DescribePcr { lock, data }) => {
            let Request::DescribePcr { index } = request else {
                panic!("{request:?}")
            };
            assert_eq!(lock, model.locked.contains(index));
            assert_eq!(value.unwrap(), data.as_ref());
        }
        (Ok(value), Response::ExtendPcr { data }) => assert_eq!(value.unwrap(), data.as_ref()),
        (Ok(_), Response::DescribeNsm(found)) => {
            assert_eq!(
                found.locked_pcrs,
                Vec::from_iter(model.locked.iter().copied())
            );
        }
        (Ok(_), Response::Attestation { document }) => check_document(request, &document, model),
        (Ok(_), Response::GetRandom { .. } | Response::LockPcr | Response::LockPcrs) => {}
        (expected, found) => panic!("{request:?}: expected {expected:?}, found {found:?}"),
    }
}

/// The document holds the locked registers, all of them and no other, and what was asked for.
fn check_document(request: &Request, document: &[u8], model: &Model) {
    let document = UnverifiedDocument::parse(document).unwrap();
    let claims = document.unverified_claims();
    let found = claims
        .pcrs
        .iter()
        .map(|(i, v)| (u16::from(i.get()), v.as_ref().to_vec()));
    let expected = model
        .locked
        .iter()
        .map(|i| (*i, model.values[usize::from(*i)].clone()));
    assert_eq!(Vec::from_iter(found), Vec::from_iter(expected));
    let Request::Attestation {
        user_data,
        nonce,
        public_key,
    } = request
    else {
        panic!()
    };
    assert_eq!((&claims.user_data, &claims.nonce), (user_data, nonce));
    assert_eq!(&claims.public_key, public_key);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_module_behaves_as_the_model(requests in proptest::collection::vec(requests(), 1..40)) {
        let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
        let mut model = Model::new();
        for request in &requests {
            let response = nsm.handle(&request.encode(), &mut Signer);
            check_answer(request, Response::decode(&response).unwrap(), &mut model);
        }
    }

    #[test]
    fn requests_survive_their_encoding(request in requests()) {
        prop_assert_eq!(Request::decode(&request.encode()).unwrap(), request);
    }

    #[test]
    fn any_bytes_get_a_well_formed_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
        let response = nsm.handle(&bytes, &mut NoSigner);
        prop_assert!(response.len() <= RESPONSE_MAX);
        prop_assert!(Response::decode(&response).is_ok());
    }

    #[test]
    fn a_damaged_request_gets_a_well_formed_answer(
        request in requests(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = request.encode();
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
        let response = nsm.handle(&bytes, &mut NoSigner);
        prop_assert!(Response::decode(&response).is_ok());
    }
}
