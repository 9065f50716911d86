//! How fast documents are issued and verified, each against the signatures that it cannot do without: one to
//! issue, five to verify (four certificates below the root, one document).

#![allow(
    clippy::unwrap_used,
    reason = "a bench without its fixtures has nothing to measure"
)]

use std::collections::BTreeMap;
use std::hint::black_box;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use criterion::{Criterion, criterion_group, criterion_main};
use enclos_attest::document::{TrustAnchors, UnverifiedDocument, VerifyOptions};
use enclos_attest::nsm::{HostError, Nsm, NsmHost, Request, Response};
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_795_305_600_000);

criterion_group!(benches, issuing, verifying, renewing);
criterion_main!(benches);

struct Host(LeafIdentity);

impl NsmHost for Host {
    fn now(&self) -> UnixMillis {
        NOW
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        Ok(&self.0)
    }
}

fn authority() -> Authority {
    Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-0123456789abcdef0").unwrap()
}

fn host(authority: &mut Authority) -> Host {
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), "i-0123456789abcdef0-enc1", 1, NOW)
        .unwrap();
    Host(LeafIdentity::new(key, leaf).unwrap())
}

fn nsm() -> Nsm {
    let image = PcrIndex::all()
        .take(3)
        .map(|index| (index, PcrValue::of_role("image")));
    Nsm::new(
        "i-0123456789abcdef0-enc1".to_owned(),
        &BTreeMap::from_iter(image),
    )
}

/// As an agent asks for it: a 2048-bit RSA key and a nonce.
fn request() -> Vec<u8> {
    let (public_key, nonce) = (Some(vec![1; 294]), Some(vec![2; 16]));
    Request::Attestation {
        user_data: None,
        nonce,
        public_key,
    }
    .encode()
}

fn issuing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("issue");
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let message = vec![0; 4500];
    group.bench_function("one ES384 signature", |b| {
        b.iter(|| key.sign(&SystemRandom::new(), black_box(&message)))
    });
    let (mut nsm, mut host, request) = (nsm(), host(&mut authority()), request());
    group.bench_function("an Attestation request", |b| {
        b.iter(|| nsm.handle(black_box(&request), &mut host))
    });
    group.finish();
}

fn verifying(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let message = vec![0; 4500];
    let signature = key.sign(&SystemRandom::new(), &message).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.public_key().as_ref());
    group.bench_function("five ES384 signatures", |b| {
        b.iter(|| {
            (0..5).all(|_| {
                public
                    .verify(black_box(&message), signature.as_ref())
                    .is_ok()
            })
        })
    });
    let mut authority = authority();
    let anchors = TrustAnchors::new()
        .with_root("own", authority.root_certificate_der())
        .unwrap();
    let response = nsm().handle(&request(), &mut host(&mut authority));
    let Response::Attestation { document } = Response::decode(&response).unwrap() else {
        return;
    };
    group.bench_function("a document", |b| {
        b.iter(|| {
            let document = UnverifiedDocument::parse(black_box(&document)).unwrap();
            document
                .verify(&anchors, NOW, &VerifyOptions::default())
                .unwrap()
        });
    });
    group.bench_function("a document, parsing alone", |b| {
        b.iter(|| UnverifiedDocument::parse(black_box(&document)))
    });
    group.finish();
}

fn renewing(criterion: &mut Criterion) {
    let mut authority = authority();
    let key = LeafKey::generate().unwrap();
    criterion.bench_function("issue a leaf certificate", |b| {
        b.iter(|| authority.issue_leaf(black_box(key.spki_der()), "i-1-enc1", 1, NOW))
    });
}
