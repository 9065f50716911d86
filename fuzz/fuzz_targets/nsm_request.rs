//! Bytes from an enclave as NSM requests, several to one module: every answer is well-formed and fits the
//! driver's buffer, registers that were locked stay as they were.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use enclos_attest::UnixMillis;
use enclos_attest::nsm::{HostError, Nsm, NsmHost, RESPONSE_MAX, Request, Response};
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use libfuzzer_sys::fuzz_target;

const NOW: UnixMillis = UnixMillis(1_795_305_600_000);

static IDENTITY: LazyLock<LeafIdentity> = LazyLock::new(|| {
    let mut authority = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), "i-1-enc1", 1, NOW)
        .unwrap();
    LeafIdentity::new(key, leaf).unwrap()
});

struct Host;

impl NsmHost for Host {
    fn now(&self) -> UnixMillis {
        NOW
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        Ok(&IDENTITY)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut nsm = Nsm::new("i-1-enc1".to_owned(), &BTreeMap::new());
    let boot = registers(&mut nsm);
    // Requests are separated by a byte that is not valid in any of them.
    for request in bytes.split(|byte| *byte == 0xfe) {
        let before = registers(&mut nsm);
        let response = nsm.handle(request, &mut Host);
        assert!(response.len() <= RESPONSE_MAX);
        Response::decode(&response).unwrap();
        for (before, after) in before.iter().zip(registers(&mut nsm)) {
            let Response::DescribePcr { lock, .. } = before else {
                panic!("{before:?}")
            };
            assert!(!lock || *before == after);
        }
    }
    assert_eq!(boot[..16], registers(&mut nsm)[..16]);
});

fn registers(nsm: &mut Nsm) -> Vec<Response> {
    let describe = |index| Request::DescribePcr { index }.encode();
    let ask = |index| Response::decode(&nsm.handle(&describe(index), &mut Host)).unwrap();
    (0..32).map(ask).collect()
}
