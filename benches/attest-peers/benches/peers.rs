//! How fast documents are verified and issued, here and elsewhere, in one run on one genuine document.
//!
//! ```console
//! $ cd benches/attest-peers                                                       # Debian: libfaketime
//! $ LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_FMT=%s \
//!     FAKETIME="@$(cargo run -q --profile bench --bin when)" cargo bench
//! ```
//!
//! `attestation-doc-validation` verifies at the system's time only, and genuine documents have expired: so the clock is
//! set to the document's time. Everybody else is told the time.

#![allow(
    clippy::unwrap_used,
    reason = "a bench without its fixtures has nothing to measure"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use criterion::Criterion;
use enclos_attest::document::{ChainCache, TrustAnchors, UnverifiedDocument, VerifyOptions};
use enclos_attest::nsm::{HostError, Nsm, NsmHost, Request};
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};
use enclos_attest_peers::{clock, evervault, nsm_utils};
use nsm_nitro_enclave_utils::api::ByteBuf;
use nsm_nitro_enclave_utils::api::nsm::Request as PeerRequest;
use nsm_nitro_enclave_utils::driver::Driver as _;
use nsm_nitro_enclave_utils::driver::dev::DevNitro;
use nsm_nitro_enclave_utils_keygen::{DerEncodeExt as _, NsmCertChain};

const AWS: &[u8] = include_bytes!("../../../crates/attest/tests/vectors/aws.bin");

const NOW: UnixMillis = UnixMillis(1_795_305_600_000);

const OURS_COLD: &str = "enclos, cold";
const OURS_WARM: &str = "enclos, warm chain cache";
const OURS: &str = "enclos";
const RAW: &str = "aws-lc, one signature";
const UTILS: &str = "nsm-nitro-enclave-utils";
const EVERVAULT: &str = "attestation-doc-validation";

fn main() {
    let home = home();
    let criterion = Criterion::default()
        .output_directory(&home)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(6));
    let mut criterion = criterion.configure_from_args();
    verifying(&mut criterion);
    issuing(&mut criterion);
    criterion.final_summary();
    summary(&home);
}

fn home() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"));
    target.join("criterion")
}

fn verifying(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify");
    let unverified = UnverifiedDocument::parse(AWS).unwrap();
    let at = unverified.unverified_claims().timestamp;
    let root = unverified.unverified_cabundle()[0].clone();
    let anchors = TrustAnchors::new().with_aws();
    let options = VerifyOptions::default();
    let parse = || UnverifiedDocument::parse(black_box(AWS)).unwrap();
    group.bench_function(OURS_COLD, |b| {
        b.iter(|| parse().verify(&anchors, at, &options).unwrap())
    });
    let cache = ChainCache::default();
    group.bench_function(OURS_WARM, |b| {
        b.iter(|| {
            parse()
                .verify_with_cache(&anchors, at, &options, &cache)
                .unwrap()
        })
    });
    group.bench_function(UTILS, |b| {
        b.iter(|| nsm_utils(black_box(AWS), &root, at).unwrap())
    });
    let off = clock().0.abs_diff(at.0);
    assert!(
        off < 3_600_000,
        "set the clock to {at} for attestation-doc-validation: see this file's first lines"
    );
    group.bench_function(EVERVAULT, |b| b.iter(|| evervault(black_box(AWS)).unwrap()));
    group.finish();
}

struct Host(LeafIdentity);

impl NsmHost for Host {
    fn now(&self) -> UnixMillis {
        NOW
    }

    fn signer(&mut self) -> Result<&LeafIdentity, HostError> {
        Ok(&self.0)
    }
}

/// A module with sixteen registers, and its signer.
fn module() -> (Nsm, Host) {
    let mut authority =
        Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-0123456789abcdef0").unwrap();
    let (key, id) = (
        LeafKey::generate().unwrap(),
        "i-0123456789abcdef0-enc0000000000000001",
    );
    let leaf = authority.issue_leaf(key.spki_der(), id, 1, NOW).unwrap();
    let image = PcrIndex::all()
        .take(3)
        .map(|index| (index, PcrValue::of_role("image")));
    let nsm = Nsm::new(id.to_owned(), &BTreeMap::from_iter(image));
    (nsm, Host(LeafIdentity::new(key, leaf).unwrap()))
}

fn issuing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("issue");
    let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let random = SystemRandom::new();
    let message = vec![0; 4500];
    group.bench_function(RAW, |b| {
        b.iter(|| key.sign(&random, black_box(&message)).unwrap())
    });
    let (mut nsm, mut host) = module();
    let (public_key, nonce) = (vec![1; 294], vec![2; 16]);
    let request = Request::Attestation {
        user_data: None,
        nonce: Some(nonce.clone()),
        public_key: Some(public_key.clone()),
    };
    let request = request.encode();
    group.bench_function(OURS, |b| {
        b.iter(|| nsm.handle(black_box(&request), &mut host))
    });
    let chain = NsmCertChain::generate(Duration::from_secs(3600));
    let peer = DevNitro::builder(
        chain.end_signer.signing_key.clone().into(),
        ByteBuf::from(chain.end_signer.cert.to_der().unwrap()),
    );
    let peer = peer
        .ca_bundle(vec![ByteBuf::from(chain.int.to_der().unwrap())])
        .build();
    group.bench_function(UTILS, |b| {
        b.iter(|| {
            peer.process_request(PeerRequest::Attestation {
                user_data: None,
                nonce: Some(ByteBuf::from(nonce.clone())),
                public_key: Some(ByteBuf::from(public_key.clone())),
            })
        })
    });
    group.finish();
}

/// Medians of this run, as documents per second and as ratios.
fn summary(home: &std::path::Path) {
    let rate = |group: &str, name: &str| {
        let file = home.join(group).join(name).join("new/estimates.json");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        Some(1e9 / json["median"]["point_estimate"].as_f64()?)
    };
    println!(
        "\n{:<28}{:>12}{:>12}",
        "documents per second", "verify", "issue"
    );
    for name in [OURS_COLD, OURS_WARM, UTILS, EVERVAULT, OURS, RAW] {
        let text =
            |group| rate(group, name).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
        println!("{name:<28}{:>12}{:>12}", text("verify"), text("issue"));
    }
    let of = |group, name| rate(group, name).unwrap_or(f64::NAN);
    let peers = of("verify", UTILS).max(of("verify", EVERVAULT));
    println!(
        "\nverify, cold  / fastest other verifier   {:.2}",
        of("verify", OURS_COLD) / peers
    );
    println!(
        "verify, warm  / fastest other verifier   {:.2}",
        of("verify", OURS_WARM) / peers
    );
    println!(
        "issue         / aws-lc's signatures      {:.3}",
        of("issue", OURS) / of("issue", RAW)
    );
    println!(
        "issue         / nsm-nitro-enclave-utils  {:.2}",
        of("issue", OURS) / of("issue", UTILS)
    );
}
