//! An enclave's module with its authority: the real ones, in one process.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test code outside #[test] functions; each test binary uses its own part of it"
)]

use std::collections::BTreeMap;

use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifiedDocument, VerifyOptions};
use enclos_attest::nsm::{HostError, Nsm, NsmHost, Request, Response};
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};

/// 2026-11-22T00:00:00Z.
pub const NOW: UnixMillis = UnixMillis(1_795_305_600_000);

pub const INSTANCE: &str = "i-0123456789abcdef0";
pub const MODULE: &str = "i-0123456789abcdef0-enc0191cceb4289903f";
pub const SLOT: u64 = 0x0191_cceb_4289_903f;

pub struct Host {
    pub authority: Authority,
    pub identity: LeafIdentity,
    pub now: UnixMillis,
}

impl Host {
    pub fn new(now: UnixMillis) -> Self {
        let mut authority = Authority::create(now, "eu-west-1", "eu-west-1a", INSTANCE).unwrap();
        let key = LeafKey::generate().unwrap();
        let leaf = authority
            .issue_leaf(key.spki_der(), MODULE, SLOT, now)
            .unwrap();
        Self {
            authority,
            identity: LeafIdentity::new(key, leaf).unwrap(),
            now,
        }
    }

    pub fn anchors(&self) -> TrustAnchors {
        let root = self.authority.root_certificate_der();
        TrustAnchors::new().with_root("test", root).unwrap()
    }
}

impl NsmHost for Host {
    fn now(&self) -> UnixMillis {
        self.now
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        if self.identity.needs_renewal(self.now) {
            let spki = self.identity.spki_der().to_vec();
            self.identity
                .replace(self.authority.issue_leaf(&spki, MODULE, SLOT, self.now)?)?;
        }
        Ok(&self.identity)
    }
}

pub fn image_pcrs() -> BTreeMap<PcrIndex, PcrValue> {
    let image = [PcrIndex::IMAGE, PcrIndex::BOOT, PcrIndex::APPLICATION];
    let image = image.map(|index| (index, PcrValue::ZERO.extend(&[index.get()])));
    let parent = [
        (
            PcrIndex::ROLE,
            PcrValue::of_role("arn:aws:iam::000000000000:role/backend"),
        ),
        (PcrIndex::INSTANCE, PcrValue::of_instance(INSTANCE)),
    ];
    image.into_iter().chain(parent).collect()
}

pub fn attest(nsm: &mut Nsm, host: &mut Host, nonce: Option<&[u8]>) -> Vec<u8> {
    let nonce = nonce.map(<[u8]>::to_vec);
    let request = Request::Attestation {
        user_data: None,
        nonce,
        public_key: None,
    };
    match Response::decode(&nsm.handle(&request.encode(), host)).unwrap() {
        Response::Attestation { document } => document,
        other => panic!("{other:?}"),
    }
}

pub fn verify(
    document: &[u8],
    anchors: &TrustAnchors,
    now: UnixMillis,
) -> Result<VerifiedDocument, enclos_attest::document::VerifyError> {
    let document = UnverifiedDocument::parse(document).unwrap();
    document.verify(anchors, now, &VerifyOptions::default())
}
