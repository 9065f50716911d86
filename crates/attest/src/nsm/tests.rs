//! The module against AWS's bytes and against a simple model.

use super::*;

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
            "a169457874656e64504352a265696e6465781064646174614 20102",
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
