//! The authority against AWS's chain, and path validation against chains that break one rule each.

use std::time::Duration;

use der::Encode;
use der::oid::ObjectIdentifier;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;
use x509_cert::ext::Extension;

use super::issue::{self, CertifiedKey, Template};
use super::root::Signer;
use super::root_tests::attests;
use super::*;
use crate::document::UnverifiedDocument;
use crate::x509::{self, Certificate, Link as ChainLink, point_spki};
use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair};

/// 2026-11-22T00:00:00Z.
const NOW: UnixMillis = UnixMillis(1_795_305_600_000);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MODULE: &str = "i-0123456789abcdef0-enc0191cceb4289903f";

/// Checks a chain of which nothing is known.
fn check_chain(chain: &[Certificate], at: UnixMillis) -> Result<(), (usize, CertificateError)> {
    let link = |certificate: &Certificate| ChainLink {
        certificate: certificate.clone().into(),
        signer: None,
    };
    x509::check_chain(&mut Vec::from_iter(chain.iter().map(link)), at)
}

fn authority() -> Authority {
    Authority::create(NOW, "eu-west-1", "eu-west-1a", "i-0123456789abcdef0").unwrap()
}

fn issue(authority: &mut Authority, now: UnixMillis) -> Vec<Certificate> {
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), MODULE, 0x0191_cceb_4289_903f, now)
        .unwrap();
    let chain = leaf.cabundle.iter().chain([&leaf.certificate]);
    chain.map(|der| Certificate::parse(der).unwrap()).collect()
}

/// What a certificate is, apart from names, keys, serial and the moment: extensions with criticality, the
/// values of those that say something, and the validity's length.
fn shape(der: &[u8]) -> (Vec<(String, bool, Vec<u8>)>, u64) {
    let certificate = X509::from_der(der).unwrap();
    let tbs = certificate.tbs_certificate();
    let extensions = tbs
        .extensions()
        .unwrap()
        .iter()
        .filter_map(extension_shape)
        .collect();
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
    let validity = tbs.validity();
    (
        extensions,
        seconds(validity.not_after) - seconds(validity.not_before),
    )
}

fn extension_shape(extension: &Extension) -> Option<(String, bool, Vec<u8>)> {
    let oid = extension.extn_id.to_string();
    let value = match oid.as_str() {
        // cRLDistributionPoints: nobody serves lists here.
        "2.5.29.31" => return None,
        // Key identifiers: their form is compared, not their hash.
        "2.5.29.14" | "2.5.29.35" => {
            vec![u8::try_from(extension.extn_value.as_bytes().len()).unwrap()]
        }
        _ => extension.extn_value.as_bytes().to_vec(),
    };
    Some((oid, extension.critical, value))
}

#[test]
fn every_certificate_has_the_shape_of_awss() {
    let aws = include_bytes!("../../tests/vectors/aws_pcr16.bin");
    let aws = UnverifiedDocument::parse(aws).unwrap();
    let aws = aws.unverified_cabundle().iter().map(Vec::as_slice);
    let aws_leaf = UnverifiedDocument::parse(include_bytes!("../../tests/vectors/aws_pcr16.bin"));
    let aws_leaf = aws_leaf.unwrap().unverified_certificate().to_vec();
    let ours = issue(&mut authority(), NOW);
    let theirs: Vec<_> = aws.chain([aws_leaf.as_slice()]).collect();
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(
            shape(ours.der()),
            shape(theirs),
            "{}",
            ours.subject().unwrap()
        );
        assert!(ours.der().len() <= 1024);
    }
}

#[test]
fn names_say_where_and_never_say_aws() {
    let chain = issue(&mut authority(), NOW);
    let names: Vec<_> = chain
        .iter()
        .map(|c| c.subject().unwrap().to_string())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.contains("aws") && !name.contains("Amazon")),
        "{names:?}"
    );
    assert!(
        names[0].ends_with(".enclos") || names[0].contains(".enclos,"),
        "{names:?}"
    );
    assert!(names[1].contains(".eu-west-1."), "{names:?}");
    assert!(
        names[2].contains(".zonal.eu-west-1.") && names[2].contains("eu-west-1a"),
        "{names:?}"
    );
    assert!(
        names[3].contains("i-0123456789abcdef0.eu-west-1."),
        "{names:?}"
    );
    assert!(
        names[4].contains(&format!("{MODULE}.eu-west-1.enclos")),
        "{names:?}"
    );
}

#[test]
fn the_leafs_serial_is_slot_and_time() {
    let chain = issue(&mut authority(), NOW);
    let leaf = X509::from_der(chain[4].der()).unwrap();
    let serial = hex::encode(leaf.tbs_certificate().serial_number().as_bytes());
    assert_eq!(
        serial,
        format!(
            "{:016x}00000000{:08x}",
            0x0191_cceb_4289_903f_u64,
            NOW.as_secs()
        )
    );
    assert_eq!(chain[4].not_before(), NOW.minus(3 * SECOND));
    assert_eq!(chain[4].not_after(), NOW.plus(3 * HOUR));
}

#[test]
fn identities_are_due_before_their_end_and_after_a_jump_back() {
    let mut authority = authority();
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), MODULE, 1, NOW)
        .unwrap();
    assert_eq!(leaf.not_after, NOW.plus(LEAF_LIFETIME));
    let identity = LeafIdentity::new(key, leaf).unwrap();
    let due = NOW.plus(LEAF_LIFETIME - RENEWAL_MARGIN);
    assert!(!identity.needs_renewal(NOW));
    assert!(!identity.needs_renewal(UnixMillis(due.0 - 1)));
    assert!(identity.needs_renewal(due));
    assert!(!identity.needs_renewal(NOW.minus(3 * SECOND)));
    assert!(identity.needs_renewal(UnixMillis(NOW.minus(3 * SECOND).0 - 1)));
}

#[test]
fn renewal_happens_when_due_and_only_then() {
    let mut authority = authority();
    let before = issue(&mut authority, NOW);
    assert!(!authority.renew(NOW).unwrap());
    // The instance's certificate covers a leaf until 21 hours have passed.
    let last = NOW.plus(21 * HOUR - 3 * SECOND);
    assert!(!authority.renew(last).unwrap());
    assert!(authority.renew(last.plus(SECOND)).unwrap());
    let after = issue(&mut authority, last.plus(SECOND));
    assert_eq!(after[2].der(), before[2].der());
    assert_ne!(after[3].der(), before[3].der());
    assert_ne!(after[3].point(), before[3].point());
}

#[test]
fn at_any_time_a_new_leaf_is_valid_through_its_whole_life() {
    let mut authority = authority();
    let steps = [
        0,
        3600,
        20 * 3600,
        86_400,
        5 * 86_400,
        19 * 86_400,
        60 * 86_400,
        900 * 86_400,
    ];
    for step in steps
        .into_iter()
        .chain((0..400).map(|n| 900 * 86_400 + n * 40_000))
    {
        let now = NOW.plus(Duration::from_secs(step));
        let chain = issue(&mut authority, now);
        for moment in [now.minus(2 * SECOND), now, chain[4].not_after()] {
            check_chain(&chain[..], moment.max(now)).unwrap();
        }
    }
}

#[test]
fn a_clock_that_jumps_back_gets_fresh_intermediates() {
    let mut authority = authority();
    let root = authority.root_certificate_der().to_vec();
    let later = NOW.plus(300 * DAY);
    issue(&mut authority, later);
    for back in [later.minus(100 * DAY), NOW] {
        let chain = issue(&mut authority, back);
        check_chain(&chain, back).unwrap();
        assert_eq!(chain[0].der(), root);
    }
    let error = authority.renew(NOW.minus(HOUR + SECOND)).unwrap_err();
    assert!(matches!(error, PkiError::ClockBeforeRoot { .. }), "{error}");
    let error = authority
        .renew(NOW.plus(10_958 * DAY - 19 * DAY))
        .unwrap_err();
    assert!(matches!(error, PkiError::RootExpires { .. }), "{error}");
    // A failed renewal leaves a working authority behind.
    check_chain(&issue(&mut authority, NOW), NOW).unwrap();
}

#[test]
fn an_authority_survives_storage() {
    let mut authority = authority();
    let text = authority.to_pem().unwrap();
    let mut stored = Authority::from_pem(&text).unwrap();
    assert_eq!(*stored.to_pem().unwrap(), *text);
    assert!(!stored.renew(NOW).unwrap());
    let (ours, theirs) = (issue(&mut authority, NOW), issue(&mut stored, NOW));
    assert_eq!(ours[3].der(), theirs[3].der());
    // Long after everything but the root has expired, it renews as if it had never been stored.
    let later = NOW.plus(400 * DAY);
    let chain = issue(&mut Authority::from_pem(&text).unwrap(), later);
    check_chain(&chain, later).unwrap();
    assert!(
        chain[3]
            .subject()
            .unwrap()
            .to_string()
            .contains("i-0123456789abcdef0.eu-west-1.")
    );
}

#[test]
fn damaged_storage_is_refused() {
    let (one, other) = (authority().to_pem().unwrap(), authority().to_pem().unwrap());
    let blocks = |text: &str| -> Vec<String> {
        text.split_inclusive("-----\n-----")
            .map(str::to_owned)
            .collect()
    };
    let refused = |text: &str| Authority::from_pem(text).map(|_| ()).unwrap_err();
    assert!(matches!(refused(""), PkiError::Stored { .. }));
    assert!(matches!(refused("nonsense"), PkiError::Stored { .. }));
    assert!(matches!(
        refused(&one[..one.len() / 2]),
        PkiError::Stored { .. }
    ));
    assert!(matches!(
        refused(&format!("{}{}", *one, *other)),
        PkiError::Stored { .. }
    ));
    assert_eq!(blocks(&one).len(), 8);
    // The certificate of one authority with the key of another, and a chain of two authorities.
    let begin = "-----BEGIN PRIVATE KEY-----";
    let pairs = |text: &str| -> Vec<String> {
        text.split(begin)
            .skip(1)
            .map(|rest| format!("{begin}{rest}"))
            .collect()
    };
    let (a, b) = (pairs(&one), pairs(&other));
    let mixed = [&a[0], &a[1], &b[2], &b[3]].map(String::as_str).concat();
    assert!(matches!(
        refused(&mixed),
        PkiError::Certificate {
            which: "the zone",
            ..
        }
    ));
    let certificate = "-----BEGIN CERTIFICATE-----";
    let (key, rest) = (
        a[0].split(certificate).next().unwrap(),
        b[0].split(certificate).nth(1),
    );
    let swapped = format!("{key}{certificate}{}", rest.unwrap());
    let swapped = [&swapped, &a[1], &a[2], &a[3]].map(String::as_str).concat();
    assert!(matches!(refused(&swapped), PkiError::OtherKey { .. }));
}

#[test]
fn relocation_keeps_the_root_and_changes_the_rest() {
    let mut authority = authority();
    let before = issue(&mut authority, NOW);
    let same = authority
        .relocate(NOW, "eu-west-1", "eu-west-1a", "i-0123456789abcdef0")
        .unwrap();
    assert!(!same);
    assert!(
        authority
            .relocate(NOW, "us-east-1", "us-east-1b", "i-1")
            .unwrap()
    );
    let after = issue(&mut authority, NOW);
    check_chain(&after, NOW).unwrap();
    assert_eq!(before[0].der(), after[0].der());
    assert!(
        after[3]
            .subject()
            .unwrap()
            .to_string()
            .contains("i-1.us-east-1.")
    );
}

/// A document of an authority, verified under a root.
fn verifies(authority: &mut Authority, root_pem: &str, now: UnixMillis) -> bool {
    attests(authority, root_pem, now).unwrap()
}

#[test]
fn a_root_is_replaced_while_verifiers_know_the_old_one_only() {
    let mut old = authority();
    let old_root = old.root_certificate_pem();
    let mut new = old.rotate(NOW).unwrap();
    let new_root = new.own_root_certificate_pem();
    assert_ne!(old_root, new_root);
    // Overlap: what verifiers know is what documents begin with, and the old authority still works.
    assert_eq!(new.root_certificate_pem(), old_root);
    assert!(verifies(&mut old, &old_root, NOW) && verifies(&mut new, &old_root, NOW));
    assert!(!verifies(&mut new, &new_root, NOW));
    // It survives storage and renewal.
    let mut new = Authority::from_pem(&new.to_pem().unwrap()).unwrap();
    let later = NOW.plus(30 * DAY);
    assert!(verifies(&mut new, &old_root, later));
    // Verifiers have learned the new root: the overlap ends.
    assert!(new.drop_endorsement() && !new.drop_endorsement());
    assert_eq!(new.root_certificate_pem(), new_root);
    assert!(verifies(&mut new, &new_root, later) && !verifies(&mut new, &old_root, later));
    let new = Authority::from_pem(&new.to_pem().unwrap()).unwrap();
    assert_eq!(new.describe().len(), 4);
}

#[test]
fn a_fleet_comes_under_one_root() {
    let (fleet, mut member, other) = (authority(), authority(), authority());
    let own_root = member.own_root_certificate_pem();
    let own_der = member.root_certificate_der().to_vec();
    let endorsement = fleet.endorse(&own_der, NOW).unwrap();
    let endorsement = Endorsement::from_pem(&endorsement.to_pem()).unwrap();
    member.adopt(endorsement.clone(), NOW).unwrap();
    let fleet_root = fleet.root_certificate_pem();
    assert_eq!(member.root_certificate_pem(), fleet_root);
    assert!(verifies(&mut member, &fleet_root, NOW) && !verifies(&mut member, &own_root, NOW));
    let described = member.describe();
    assert_eq!(described.len(), 5);
    assert!(described[1].subject != described[0].subject && described[0].sha256.len() == 64);

    // Not somebody else's, not after its time, not one's own, not a certificate that is no root.
    let mut stranger = other;
    let error = stranger.adopt(endorsement.clone(), NOW).unwrap_err();
    assert!(matches!(error, PkiError::Endorsement { .. }), "{error}");
    let after = described[1].not_after.plus(SECOND);
    let error = member.adopt(endorsement.clone(), after).unwrap_err();
    assert!(matches!(error, PkiError::Certificate { .. }), "{error}");
    let error = fleet
        .endorse(fleet.root_certificate_der(), NOW)
        .unwrap_err();
    assert!(matches!(error, PkiError::Endorsement { .. }), "{error}");
    let region = issue(&mut member, NOW)[2].der().to_vec();
    let error = fleet.endorse(&region, NOW).unwrap_err();
    assert!(matches!(error, PkiError::Certificate { .. }), "{error}");

    // An endorsement is what its root signed.
    let forged = member.own_root_certificate_pem() + &endorsement.to_pem();
    let blocks: Vec<_> = forged
        .split_inclusive("-----END CERTIFICATE-----\n")
        .collect();
    for text in [
        [blocks[0], blocks[2]].concat(),
        [blocks[2], blocks[1]].concat(),
        blocks[1].to_owned(),
        String::new(),
    ] {
        assert!(Endorsement::from_pem(&text).is_err(), "{text}");
    }
    // Storage with an endorsement of another root is refused.
    let stored = stranger.to_pem().unwrap().to_string() + &endorsement.to_pem();
    assert!(matches!(
        Authority::from_pem(&stored),
        Err(PkiError::Stored { .. })
    ));
}

/// The clock of an endorsement is the shorter root's, and a jump back before it is an error, not a document.
#[test]
fn clocks_that_jump_do_not_make_endorsements_nobody_accepts() {
    let fleet = authority();
    let late = NOW.plus(365 * DAY);
    let mut member = Authority::create(late, "eu-west-1", "eu-west-1a", "i-1").unwrap();
    let root = member.root_certificate_der().to_vec();
    let error = fleet.endorse(&root, NOW).unwrap_err();
    assert!(matches!(error, PkiError::Certificate { .. }), "{error}");
    let endorsement = fleet.endorse(&root, late).unwrap();
    member.adopt(endorsement, late).unwrap();
    let [first, second] = [&member.describe()[0], &member.describe()[1]].map(|d| d.not_after);
    assert_eq!(second, first, "the fleet's root ends first");
    let error = fleet.endorse(&root, second).unwrap_err();
    assert!(matches!(error, PkiError::RootExpires { .. }), "{error}");
    let error = fleet.endorse(&root, NOW.minus(DAY)).unwrap_err();
    assert!(matches!(error, PkiError::ClockBeforeRoot { .. }), "{error}");
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let create = |region: &str, zone: &str, id: &str| {
        Authority::create(NOW, region, zone, id)
            .map(|_| ())
            .unwrap_err()
    };
    let long = "x".repeat(65);
    let cases = [
        create("", "z", "i-1"),
        create("eu.west", "z", "i-1"),
        create("eighteen-letters-x", "z", "i-1"),
        create("eu-west-1", &long, "i-1"),
        create("eu-west-1", "z", "i-1,CN=x"),
        create("eu-west-1", "z", &"i".repeat(20)),
        create("eu-west-1", "z", "é"),
    ];
    for error in cases {
        assert!(matches!(error, PkiError::Name { .. }), "{error}");
    }
    let longest = Authority::create(NOW, &"r".repeat(17), &"z".repeat(64), &"i".repeat(19));
    let key = LeafKey::generate().unwrap();
    let leaf = longest
        .unwrap()
        .issue_leaf(key.spki_der(), MODULE, u64::MAX, NOW)
        .unwrap();
    assert!(leaf.certificate.len() <= 1024 && leaf.cabundle.iter().all(|der| der.len() <= 1024));
}

#[test]
fn only_p384_keys_are_certified_and_only_their_own_certificates_joined() {
    let mut authority = authority();
    let (key, other) = (LeafKey::generate().unwrap(), LeafKey::generate().unwrap());
    let off_curve = {
        let mut spki = key.spki_der().to_vec();
        *spki.last_mut().unwrap() ^= 1;
        spki
    };
    let compressed = point_spki(&[2; 49]);
    for spki in [&[][..], &key.spki_der()[1..], &off_curve, &compressed] {
        let error = authority.issue_leaf(spki, MODULE, 1, NOW).unwrap_err();
        assert!(matches!(error, PkiError::Certificate { .. }), "{error}");
    }
    let leaf = authority
        .issue_leaf(key.spki_der(), MODULE, 1, NOW)
        .unwrap();
    let error = LeafIdentity::new(other, leaf.clone()).unwrap_err();
    assert!(matches!(error, PkiError::OtherKey { .. }), "{error}");
    let mut ca = leaf.clone();
    ca.certificate.clone_from(&ca.cabundle[3]);
    let error = LeafIdentity::new(LeafKey::generate().unwrap(), ca).unwrap_err();
    assert!(matches!(error, PkiError::Certificate { .. }), "{error}");
    LeafIdentity::new(key, leaf).unwrap();
}

#[test]
fn nothing_is_signed_outside_the_leafs_validity() {
    let mut authority = authority();
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), MODULE, 1, NOW)
        .unwrap();
    let identity = LeafIdentity::new(key, leaf).unwrap();
    let claims = |timestamp| crate::document::Claims {
        module_id: MODULE.to_owned(),
        timestamp,
        pcrs: [(crate::PcrIndex::IMAGE, crate::PcrValue::ZERO)].into(),
        public_key: None,
        user_data: None,
        nonce: None,
    };
    identity
        .sign_document(&claims(identity.not_after()))
        .unwrap();
    let late = identity.not_after().plus(SECOND);
    let error = identity.sign_document(&claims(late)).unwrap_err();
    assert!(matches!(error, PkiError::LeafNotValid { .. }), "{error}");
}

// Path validation: a chain of root, one CA and a leaf, each made by `Link`, with one thing wrong at a time.

struct Link {
    key: EcdsaKeyPair,
    name: &'static str,
    extensions: Vec<Extension>,
    not_before: UnixMillis,
    not_after: UnixMillis,
}

impl Link {
    fn ca(name: &'static str, path_len: Option<u8>) -> Self {
        let extensions = vec![
            issue::ca_constraints(path_len).unwrap(),
            issue::ca_usage().unwrap(),
        ];
        Self::new(name, extensions)
    }

    fn leaf() -> Self {
        let extensions = vec![
            issue::leaf_constraints().unwrap(),
            issue::leaf_usage().unwrap(),
        ];
        Self::new("leaf", extensions)
    }

    fn new(name: &'static str, extensions: Vec<Extension>) -> Self {
        let key = issue::new_ca_key().unwrap();
        let (not_before, not_after) = (NOW.minus(HOUR), NOW.plus(HOUR));
        Self {
            key,
            name,
            extensions,
            not_before,
            not_after,
        }
    }

    fn with(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    fn without(mut self, oid: &str) -> Self {
        self.extensions
            .retain(|extension| extension.extn_id.to_string() != oid);
        self
    }

    fn sign(&self, issuer: &Self) -> Vec<u8> {
        let template = Template {
            subject: issue::name(self.name).unwrap(),
            serial: issue::random_serial().unwrap(),
            not_before: self.not_before,
            not_after: self.not_after,
            point: self.key.public_key().as_ref().to_vec(),
            extensions: self.extensions.clone(),
        };
        template
            .sign(issue::name(issuer.name).unwrap(), Signer::Held(&issuer.key))
            .unwrap()
    }
}

fn chain(links: &[&Link]) -> Vec<Certificate> {
    let issuers = links.iter().take(1).chain(links);
    let signed = links
        .iter()
        .zip(issuers)
        .map(|(link, issuer)| link.sign(issuer));
    signed
        .map(|der| Certificate::parse(&der).unwrap())
        .collect()
}

fn check(links: &[&Link]) -> Result<(), (usize, CertificateError)> {
    check_chain(&chain(links), NOW)
}

const BASIC: &str = "2.5.29.19";
const USAGE: &str = "2.5.29.15";

fn raw(oid: &str, critical: bool, value: &[u8]) -> Extension {
    Extension {
        extn_id: ObjectIdentifier::new(oid).unwrap(),
        critical,
        extn_value: der::asn1::OctetString::new(value.to_vec()).unwrap(),
    }
}

#[test]
fn a_minimal_chain_is_fine() {
    check(&[
        &Link::ca("root", None),
        &Link::ca("ca", Some(0)),
        &Link::leaf(),
    ])
    .unwrap();
    check(&[&Link::ca("root", Some(0)), &Link::leaf()]).unwrap();
    let unconstrained = Link::leaf().without(BASIC);
    check(&[&Link::ca("root", None), &unconstrained]).unwrap();
}

#[test]
fn path_length_counts_cas_below() {
    let (root, a, b) = (
        Link::ca("root", Some(1)),
        Link::ca("a", Some(1)),
        Link::ca("b", Some(0)),
    );
    let leaf = Link::leaf();
    check(&[&root, &a, &leaf]).unwrap();
    let error = check(&[&root, &a, &b, &leaf]).unwrap_err();
    assert!(
        matches!(
            error,
            (
                0,
                CertificateError::PathLength {
                    allowed: 1,
                    found: 2
                }
            )
        ),
        "{error:?}"
    );
    let error = check(&[&Link::ca("root", None), &b, &a, &leaf]).unwrap_err();
    assert!(
        matches!(
            error,
            (
                1,
                CertificateError::PathLength {
                    allowed: 0,
                    found: 1
                }
            )
        ),
        "{error:?}"
    );
}

#[test]
fn issuers_must_be_cas_that_may_sign() {
    let (root, leaf) = (Link::ca("root", None), Link::leaf());
    let no_basic = Link::ca("ca", None).without(BASIC);
    let error = check(&[&root, &no_basic, &leaf]).unwrap_err();
    assert!(matches!(error, (1, CertificateError::NotCa)), "{error:?}");
    let error = check(&[&root, &Link::leaf(), &leaf]).unwrap_err();
    assert!(matches!(error, (1, CertificateError::NotCa)), "{error:?}");
    for usage in [None, Some(raw(USAGE, true, &[0x03, 0x02, 0x07, 0x80]))] {
        let mut ca = Link::ca("ca", None).without(USAGE);
        ca.extensions.extend(usage);
        let error = check(&[&root, &ca, &leaf]).unwrap_err();
        assert!(
            matches!(error, (1, CertificateError::KeyUsage { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn leaves_must_not_be_cas() {
    let root = Link::ca("root", None);
    let error = check(&[&root, &Link::ca("ca", None)]).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::LeafIsCa)),
        "{error:?}"
    );
    let cert_sign = Link::leaf()
        .without(USAGE)
        .with(raw(USAGE, true, &[0x03, 0x02, 0x02, 0x84]));
    let error = check(&[&root, &cert_sign]).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::LeafIsCa)),
        "{error:?}"
    );
    let path_len =
        Link::leaf()
            .without(BASIC)
            .with(raw(BASIC, true, &[0x30, 0x03, 0x02, 0x01, 0x00]));
    let error = check(&[&root, &path_len]).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::LeafIsCa)),
        "{error:?}"
    );
    for usage in [None, Some(raw(USAGE, false, &[0x03, 0x02, 0x06, 0x40]))] {
        let mut leaf = Link::leaf().without(USAGE);
        leaf.extensions.extend(usage);
        let error = check(&[&root, &leaf]).unwrap_err();
        assert!(
            matches!(error, (1, CertificateError::KeyUsage { .. })),
            "{error:?}"
        );
    }
}

#[test]
fn both_ends_of_the_validity_are_inside() {
    let (root, leaf) = (Link::ca("root", None), Link::leaf());
    let chain = chain(&[&root, &leaf]);
    let (first, last) = (NOW.minus(HOUR), NOW.plus(HOUR));
    check_chain(&chain, first).unwrap();
    check_chain(&chain, last).unwrap();
    check_chain(&chain, UnixMillis(last.0 + 999)).unwrap();
    let error = check_chain(&chain, UnixMillis(first.0 - 1)).unwrap_err();
    assert!(
        matches!(error, (0, CertificateError::NotYetValid { .. })),
        "{error:?}"
    );
    let error = check_chain(&chain, UnixMillis(last.0 + 1000)).unwrap_err();
    assert!(
        matches!(error, (0, CertificateError::Expired { .. })),
        "{error:?}"
    );
    let mut short = Link::leaf();
    short.not_after = NOW.minus(SECOND);
    let error = check(&[&root, &short]).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::Expired { .. })),
        "{error:?}"
    );
}

#[test]
fn names_keys_and_signatures_chain() {
    let (root, leaf) = (Link::ca("root", None), Link::leaf());
    let parse = |der: &[u8]| Certificate::parse(der).unwrap();
    let good = chain(&[&root, &leaf]);
    let other_name = parse(&leaf.sign(&Link::ca("other", None)));
    let error = check_chain(&[good[0].clone(), other_name], NOW).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::Issuer { .. })),
        "{error:?}"
    );
    let other_key = parse(&leaf.sign(&Link::ca("root", None)));
    let error = check_chain(&[good[0].clone(), other_key], NOW).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::Signature)),
        "{error:?}"
    );

    let identified = Link::ca("root", None);
    let point = identified.key.public_key().as_ref().to_vec();
    let identified = identified.with(issue::subject_key(&point).unwrap());
    let wrong = Link::leaf().with(raw("2.5.29.35", false, &[0x30, 0x03, 0x80, 0x01, 0x00]));
    let error = check(&[&identified, &wrong]).unwrap_err();
    assert!(
        matches!(error, (1, CertificateError::KeyIdentifier { .. })),
        "{error:?}"
    );
    // An identifier on one side only is nothing to compare.
    check(&[&root, &wrong]).unwrap();
    check(&[&identified, &leaf]).unwrap();
}

#[test]
fn an_altered_signature_below_the_root_is_found() {
    let links = [
        &Link::ca("root", None),
        &Link::ca("ca", None),
        &Link::leaf(),
    ];
    for position in 1..links.len() {
        let mut chain = chain(&links);
        let mut der = chain[position].der().to_vec();
        // The last byte belongs to the signature's s.
        *der.last_mut().unwrap() ^= 1;
        chain[position] = Certificate::parse(&der).unwrap();
        let error = check_chain(&chain, NOW).unwrap_err();
        assert!(
            matches!(error, (at, CertificateError::Signature) if at == position),
            "{error:?}"
        );
    }
}

fn parse_error(der: &[u8]) -> CertificateError {
    Certificate::parse(der).map(|_| ()).unwrap_err()
}

#[test]
fn a_certificate_has_so_many_extensions_and_no_more() {
    let root = Link::ca("root", None);
    let with = |count: usize| {
        let more = (0..count).map(|number| format!("1.3.6.1.4.1.99999.{number}"));
        let leaf = more.fold(Link::leaf(), |leaf, oid| {
            leaf.with(raw(&oid, false, &[0x30, 0x00]))
        });
        leaf.sign(&root)
    };
    Certificate::parse(&with(50)).unwrap();
    let error = parse_error(&with(65));
    assert!(
        matches!(error, CertificateError::TooManyExtensions),
        "{error}"
    );
}

#[test]
fn extensions_that_are_unknown_and_critical_twice_or_broken_are_refused() {
    let root = Link::ca("root", None);
    let with = |extension| Link::leaf().with(extension).sign(&root);
    // nameConstraints, an extension of nobody's; not critical they are skipped.
    for oid in ["2.5.29.30", "1.3.6.1.4.1.99999.1"] {
        let error = parse_error(&with(raw(oid, true, &[0x30, 0x00])));
        assert!(
            matches!(error, CertificateError::CriticalExtension { .. }),
            "{error}"
        );
        Certificate::parse(&with(raw(oid, false, &[0x30, 0x00]))).unwrap();
    }
    let error = parse_error(&with(issue::leaf_constraints().unwrap()));
    assert!(
        matches!(error, CertificateError::RepeatedExtension { .. }),
        "{error}"
    );
    let broken = Link::leaf()
        .without(BASIC)
        .with(raw(BASIC, true, &[0x30, 0x01]));
    let error = parse_error(&broken.sign(&root));
    assert!(
        matches!(error, CertificateError::Extension { .. }),
        "{error}"
    );
}

#[test]
fn other_algorithms_curves_and_versions_are_refused() {
    let root = Link::ca("root", None);
    let good = Link::leaf().sign(&root);
    let replace = |from: &[u8], to: &[u8], skip: usize| {
        let windows = good.windows(from.len()).enumerate();
        let mut found = windows.filter(|(_, window)| *window == from);
        let (at, _) = found.nth(skip).unwrap();
        [&good[..at], to, &good[at + from.len()..]].concat()
    };
    let sha384 = issue_oid("1.2.840.10045.4.3.3");
    let sha256 = issue_oid("1.2.840.10045.4.3.2");
    for field in [0, 1] {
        let error = parse_error(&replace(&sha384, &sha256, field));
        assert!(
            matches!(error, CertificateError::Algorithm { .. }),
            "{error}"
        );
    }
    let error = parse_error(&replace(
        &issue_oid("1.3.132.0.34"),
        &issue_oid("1.3.132.0.35"),
        0,
    ));
    assert!(matches!(error, CertificateError::Key), "{error}");
    let error = parse_error(&replace(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1], 0));
    assert!(
        matches!(error, CertificateError::Version { found: 2 }),
        "{error}"
    );
    for der in [
        &[][..],
        &good[1..],
        &good[..good.len() - 1],
        &[&good[..], &[0]].concat(),
    ] {
        assert!(matches!(parse_error(der), CertificateError::Encoding(_)));
    }
}

/// A certificate with another serial number, whose INTEGER this is.
fn with_serial(certificate: &[u8], serial: &[u8]) -> Vec<u8> {
    let tlv = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    };
    // SEQUENCE of TBSCertificate, algorithm, signature; both SEQUENCEs have lengths of two bytes.
    let tbs_end = 8 + usize::from(u16::from_be_bytes([certificate[6], certificate[7]]));
    let (tbs, rest) = (&certificate[8..tbs_end], &certificate[tbs_end..]);
    let (version, old) = tbs.split_at(5);
    assert_eq!(version, [0xa0, 3, 2, 1, 2]);
    let after = &old[2 + usize::from(old[1])..];
    let length = u8::try_from(serial.len()).unwrap();
    let tbs = [version, &[2, length], serial, after].concat();
    tlv(0x30, &[&tlv(0x30, &tbs), rest].concat())
}

#[test]
fn serial_numbers_have_at_most_twenty_bytes_and_a_sign() {
    let good = Link::leaf().sign(&Link::ca("root", None));
    let positive = |len: usize| [&[0][..], &vec![0xff; len]].concat();
    for serial in [vec![1], positive(19), positive(20)] {
        Certificate::parse(&with_serial(&good, &serial)).unwrap();
    }
    for serial in [vec![], positive(21), positive(40)] {
        let error = parse_error(&with_serial(&good, &serial));
        assert!(matches!(error, CertificateError::Encoding(_)), "{error}");
    }
}

/// Names are compared byte for byte, but they are read: what is shown of them has to be there.
#[test]
fn names_that_are_none_are_refused() {
    let good = Link::leaf().sign(&Link::ca("root", None));
    let common_name = &[0x06, 0x03, 0x55, 0x04, 0x03][..];
    let places: Vec<_> = good
        .windows(common_name.len())
        .enumerate()
        .filter_map(|(at, window)| (window == common_name).then_some(at))
        .collect();
    assert_eq!(places.len(), 2, "issuer and subject");
    for at in places {
        // RelativeDistinguishedName, AttributeTypeAndValue, its type, its value's length.
        for (place, byte) in [(at - 4, 0x30), (at - 2, 0x31), (at, 0x04), (at + 6, 1)] {
            let mut altered = good.clone();
            assert_ne!(altered[place], byte);
            altered[place] = byte;
            let error = parse_error(&altered);
            assert!(
                matches!(error, CertificateError::Encoding(_)),
                "{place}: {error}"
            );
        }
    }
}

fn issue_oid(text: &str) -> Vec<u8> {
    ObjectIdentifier::new(text).unwrap().to_der().unwrap()
}

#[test]
fn a_certified_key_knows_its_certificate() {
    let link = Link::ca("root", None);
    let certificate = Certificate::parse(&link.sign(&link)).unwrap();
    let good = CertifiedKey {
        key: link.key,
        certificate: certificate.clone(),
    };
    good.check_key("x").unwrap();
    let bad = CertifiedKey {
        key: issue::new_ca_key().unwrap(),
        certificate,
    };
    assert!(matches!(bad.check_key("x"), Err(PkiError::OtherKey { .. })));
}
