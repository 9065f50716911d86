//! Authorities whose root's key is kept elsewhere: what they can do alone, and what they say when they cannot.

use std::error::Error;
use std::time::Duration;

use p384::ecdsa::signature::hazmat::PrehashSigner as _;
use p384::ecdsa::{Signature, SigningKey};
use proptest::prelude::*;

use super::*;
use crate::document::{Claims, TrustAnchors, UnverifiedDocument, VerifyOptions};

/// 2026-11-22T00:00:00Z.
const NOW: UnixMillis = UnixMillis(1_795_305_600_000);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MODULE: &str = "i-0123456789abcdef0-enc0191cceb4289903f";

/// A key that signs and is never seen.
struct Token {
    key: SigningKey,
    point: Vec<u8>,
}

impl Token {
    fn new() -> Self {
        let mut scalar = [0; 48];
        random(&mut scalar).unwrap();
        // Below the group's order.
        scalar[0] &= 0x7f;
        let key = SigningKey::from_slice(&scalar).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        let point = point.as_bytes().to_vec();
        Self { key, point }
    }
}

impl RootKey for Token {
    fn point(&self) -> &[u8] {
        &self.point
    }

    fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        let signature: Signature = self.key.sign_prehash(digest)?;
        Ok(signature.to_bytes().to_vec())
    }
}

/// A token that announces one key and signs with another, or not at all.
struct Liar {
    point: Vec<u8>,
    answer: Option<Vec<u8>>,
}

impl RootKey for Liar {
    fn point(&self) -> &[u8] {
        &self.point
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        self.answer
            .clone()
            .ok_or_else(|| "it was pulled out".into())
    }
}

fn authority(token: &Token) -> Authority {
    Authority::create_with(NOW, "eu-west-1", "eu-west-1a", "i-1", token).unwrap()
}

/// Whether a document of a fresh leaf verifies under a root.
pub(super) fn attests(
    authority: &mut Authority,
    root_pem: &str,
    now: UnixMillis,
) -> Result<bool, PkiError> {
    let key = LeafKey::generate()?;
    let leaf = authority.issue_leaf(key.spki_der(), MODULE, 1, now)?;
    let claims = Claims {
        module_id: MODULE.to_owned(),
        timestamp: now,
        pcrs: (0..16_u8)
            .map(|index| (index.try_into().unwrap(), crate::PcrValue::of_version(1)))
            .collect(),
        public_key: None,
        user_data: None,
        nonce: None,
    };
    let document = LeafIdentity::new(key, leaf)?.sign_document(&claims)?;
    let anchors = TrustAnchors::new().with_root("root", root_pem.as_bytes());
    let document = UnverifiedDocument::parse(&document).unwrap();
    let verified = document.verify(&anchors.unwrap(), now, &VerifyOptions::default());
    Ok(verified.is_ok())
}

fn is_elsewhere<T: std::fmt::Debug>(result: Result<T, PkiError>) -> bool {
    matches!(result, Err(PkiError::RootElsewhere { .. }))
}

#[test]
fn it_attests_without_its_root_and_stores_no_key_of_it() {
    let token = Token::new();
    let mut authority = authority(&token);
    let root = authority.own_root_certificate_pem();
    assert!(authority.root_is_elsewhere());
    assert!(attests(&mut authority, &root, NOW).unwrap());
    let stored = authority.to_pem().unwrap();
    assert_eq!(stored.matches("BEGIN PRIVATE KEY").count(), 3);
    assert_eq!(stored.matches("BEGIN CERTIFICATE").count(), 4);
    let mut read = Authority::from_pem(&stored).unwrap();
    assert_eq!(read.to_pem().unwrap(), stored);
    assert!(read.root_is_elsewhere() && attests(&mut read, &root, NOW).unwrap());
}

#[test]
fn only_the_regions_certificate_takes_the_token() {
    let token = Token::new();
    let mut authority = authority(&token);
    let root = authority.own_root_certificate_pem();
    let mut now = NOW;
    let mut asked = None;
    let last = loop {
        match attests(&mut authority, &root, now) {
            Ok(verified) => assert!(verified),
            Err(error) => {
                assert!(error.to_string().contains("--root-key"), "{error}");
                break now;
            }
        }
        asked = asked.or_else(|| authority.wants_region(now).map(|_| now));
        now = now.plus(HOUR);
    };
    // Asked for days before nothing can be issued, and not all the time.
    let since = |moment: UnixMillis| moment.since(NOW).unwrap();
    let asked = since(asked.unwrap());
    assert!(
        since(last) > 15 * DAY && since(last) < 20 * DAY,
        "{:?}",
        since(last) / 3600
    );
    assert!(
        asked > 8 * DAY && asked + 5 * DAY < since(last),
        "{asked:?}"
    );

    let next = authority.next_region(last, None, Some(&token)).unwrap();
    authority.adopt_region(&next, last).unwrap();
    assert!(attests(&mut authority, &root, last).unwrap());
    assert_eq!(authority.wants_region(last), None);
    let stored = authority.to_pem().unwrap();
    assert!(Authority::from_pem(&stored).unwrap().root_is_elsewhere());
}

#[test]
fn what_only_a_root_can_do_says_so() {
    let token = Token::new();
    let mut authority = authority(&token);
    let other = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let stored = authority.to_pem().unwrap();
    assert!(is_elsewhere(authority.rotate(NOW)));
    assert!(is_elsewhere(
        authority.endorse(other.root_certificate_der(), NOW)
    ));
    assert!(is_elsewhere(authority.next_region(NOW, None, None)));
    assert!(is_elsewhere(authority.relocate(
        NOW,
        "us-east-1",
        "us-east-1a",
        "i-1"
    )));
    assert_eq!(authority.to_pem().unwrap(), stored);
    // Within the region nothing of the root is needed.
    assert!(
        authority
            .relocate(NOW, "eu-west-1", "eu-west-1b", "i-2")
            .unwrap()
    );
    let root = authority.own_root_certificate_pem();
    assert!(attests(&mut authority, &root, NOW).unwrap());
    // Another region comes with the region's next certificate.
    let next = authority
        .next_region(NOW, Some("us-east-1"), Some(&token))
        .unwrap();
    authority.adopt_region(&next, NOW).unwrap();
    assert!(
        authority
            .relocate(NOW, "us-east-1", "us-east-1a", "i-2")
            .unwrap()
    );
    assert!(authority.describe()[1].subject.contains(".us-east-1."));
    assert!(attests(&mut authority, &root, NOW).unwrap());
}

#[test]
fn roots_are_replaced_between_file_and_token() {
    let (first, second) = (Token::new(), Token::new());
    let file = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let old = file.root_certificate_pem();
    // From a file into a token, into another token, back into a file.
    let (first, second): (&dyn RootKey, &dyn RootKey) = (&first, &second);
    let steps = [
        (None, Some(first)),
        (Some(first), Some(second)),
        (Some(second), None),
    ];
    let (mut current, mut old) = (file, old);
    for (own, next) in steps {
        let mut rotated = current.rotate_with(NOW, own, next).unwrap();
        let new = rotated.own_root_certificate_pem();
        assert_eq!(rotated.root_is_elsewhere(), next.is_some());
        assert!(attests(&mut rotated, &old, NOW).unwrap() && new != old);
        let stored = rotated.to_pem().unwrap();
        current = Authority::from_pem(&stored).unwrap();
        assert!(current.drop_endorsement() && attests(&mut current, &new, NOW).unwrap());
        assert!(!attests(&mut current, &old, NOW).unwrap());
        old = new;
    }
}

#[test]
fn a_fleets_root_may_be_in_a_token() {
    let token = Token::new();
    let fleet = authority(&token);
    let mut member = Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-2").unwrap();
    let own = member.root_certificate_der().to_vec();
    let endorsement = fleet.endorse_with(&own, NOW, Some(&token)).unwrap();
    member.adopt(endorsement, NOW).unwrap();
    assert!(attests(&mut member, &fleet.root_certificate_pem(), NOW).unwrap());
}

#[test]
fn another_key_and_a_signature_that_is_none_are_refused() {
    let token = Token::new();
    let authority = authority(&token);
    let other = Token::new();
    let refused = authority.next_region(NOW, None, Some(&other));
    assert!(
        matches!(refused, Err(PkiError::OtherKey { .. })),
        "{refused:?}"
    );
    let foreign = other.sign(&[7; 48]).unwrap();
    for answer in [
        Some(foreign),
        Some(vec![1; 96]),
        Some(vec![]),
        Some(vec![0; 200]),
        None,
    ] {
        let liar = Liar {
            point: token.point().to_vec(),
            answer: answer.clone(),
        };
        let refused = authority.next_region(NOW, None, Some(&liar)).unwrap_err();
        let pulled = matches!(refused, PkiError::RootRefused(_));
        assert_eq!(pulled, answer.is_none(), "{refused}");
        assert!(
            pulled || matches!(refused, PkiError::Crypto { .. }),
            "{refused}"
        );
    }
    let liar = Liar {
        point: vec![4; 97],
        answer: Some(vec![1; 96]),
    };
    assert!(Authority::create_with(NOW, "eu-west-1", "eu-west-1a", "i-1", &liar).is_err());
}

#[test]
fn a_regions_certificate_of_another_root_or_time_is_refused() {
    let (token, other) = (Token::new(), Token::new());
    let mut authority = authority(&token);
    let stored = authority.to_pem().unwrap();
    let foreign = self::authority(&other);
    let foreign = foreign.next_region(NOW, None, Some(&other)).unwrap();
    let early = authority.next_region(NOW, None, Some(&token)).unwrap();
    let broken = early.replace("BEGIN PRIVATE KEY", "BEGIN SECRET KEY");
    for (text, at) in [
        (foreign.as_str(), NOW),
        (early.as_str(), NOW.plus(30 * DAY)),
        (broken.as_str(), NOW),
        ("", NOW),
    ] {
        authority.adopt_region(text, at).unwrap_err();
        assert_eq!(authority.to_pem().unwrap(), stored);
    }
    // Key and certificate of two different regions.
    let later = authority.next_region(NOW, None, Some(&token)).unwrap();
    let (key, _) = early.split_once("-----BEGIN CERTIFICATE").unwrap();
    let (_, certificate) = later.split_once("-----BEGIN CERTIFICATE").unwrap();
    let mixed = format!("{key}-----BEGIN CERTIFICATE{certificate}");
    let refused = authority.adopt_region(&mixed, NOW);
    assert!(
        matches!(refused, Err(PkiError::OtherKey { .. })),
        "{refused:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However often and when leaves are asked for: all verify, or the token is asked for.
    #[test]
    fn without_its_root_it_issues_what_verifies_or_nothing(hours in prop::collection::vec(0..120_u64, 1..8)) {
        let token = Token::new();
        let mut authority = authority(&token);
        let root = authority.own_root_certificate_pem();
        let mut now = NOW;
        for step in hours {
            now = now.plus(HOUR * u32::try_from(step).unwrap());
            match attests(&mut authority, &root, now) {
                Ok(verified) => prop_assert!(verified),
                Err(PkiError::RootElsewhere { .. }) => {
                    let next = authority.next_region(now, None, Some(&token)).unwrap();
                    authority.adopt_region(&next, now).unwrap();
                    prop_assert!(attests(&mut authority, &root, now).unwrap());
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
