//! Certificates of attested TLS: what is read back, and that nothing else is.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::document::{Claims, TrustAnchors, UnverifiedDocument, VerifyOptions};
use crate::pcr::{PcrIndex, PcrValue};
use crate::pki::{Authority, LeafIdentity, LeafKey};

/// 2026-11-22T00:00:00Z.
const NOW: UnixMillis = UnixMillis(1_795_305_600_000);
const INSTANCE: &str = "i-0123456789abcdef0";
const MODULE: &str = "i-0123456789abcdef0-enc0191cceb4289903f";

/// An enclave and the root that vouches for it.
struct Enclave {
    anchors: TrustAnchors,
    identity: LeafIdentity,
    key: ChannelKey,
}

impl Enclave {
    fn new() -> Self {
        let mut authority = Authority::create(NOW, "eu-west-1", "eu-west-1a", INSTANCE).unwrap();
        let key = LeafKey::generate().unwrap();
        let leaf = authority
            .issue_leaf(key.spki_der(), MODULE, 0x0191_cceb_4289_903f, NOW)
            .unwrap();
        let root = authority.root_certificate_pem();
        Self {
            anchors: TrustAnchors::new()
                .with_root("test", root.as_bytes())
                .unwrap(),
            identity: LeafIdentity::new(key, leaf).unwrap(),
            key: ChannelKey::generate().unwrap(),
        }
    }

    fn document(&self, public_key: &[u8], purpose: Option<&[u8]>) -> Vec<u8> {
        let pcrs = (0_u16..16).map(|index| {
            let value = PcrValue::ZERO.extend(&index.to_be_bytes());
            (PcrIndex::try_from(index).unwrap(), value)
        });
        let claims = Claims {
            module_id: MODULE.to_owned(),
            timestamp: NOW,
            pcrs: BTreeMap::from_iter(pcrs),
            public_key: Some(public_key.to_vec()),
            user_data: purpose.map(<[u8]>::to_vec),
            nonce: None,
        };
        self.identity.sign_document(&claims).unwrap()
    }

    fn certificate(&self) -> Vec<u8> {
        let document = self.document(self.key.spki_der(), Some(PURPOSE));
        self.key.certificate(&document).unwrap()
    }

    /// As a client does: read, verify, compare.
    fn judge(&self, certificate: &[u8], now: UnixMillis) -> Result<(), String> {
        let certificate = ChannelCertificate::parse(certificate).map_err(|e| e.to_string())?;
        let document =
            UnverifiedDocument::parse(certificate.document()).map_err(|e| e.to_string())?;
        let options = VerifyOptions {
            max_age: Duration::from_secs(7 * 24 * 3600),
            ..VerifyOptions::default()
        };
        let verified = document.verify(&self.anchors, NOW, &options);
        let verified = verified.map_err(|e| e.to_string())?;
        certificate.check(&verified, now).map_err(|e| e.to_string())
    }
}

static ENCLAVE: LazyLock<Enclave> = LazyLock::new(Enclave::new);
static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| ENCLAVE.certificate());

#[test]
fn a_certificate_carries_its_document_and_speaks_for_its_key() {
    let read = ChannelCertificate::parse(&CERTIFICATE).unwrap();
    assert_eq!(read.spki_der(), ENCLAVE.key.spki_der());
    ENCLAVE.judge(&CERTIFICATE, NOW).unwrap();
    let position = CERTIFICATE
        .windows(read.document().len())
        .position(|window| window == read.document());
    let head = position.map(|at| &CERTIFICATE[at - 36..at]).unwrap();
    assert_eq!(head[..3], [0x83, 0x78, 30]);
    assert_eq!(&head[3..33], MEDIA_TYPE.as_bytes());
    assert_eq!(CERTIFICATE[position.unwrap() + read.document().len()], 4);
}

#[test]
fn the_wrapper_has_the_bytes_of_the_specification() {
    let wrapped = wrap(b"an attestation document").unwrap();
    assert_eq!(
        hex::encode(&wrapped),
        "043a83781e6170706c69636174696f6e2f6177732d6e6974726f2d646f63756d656e74\
         57616e206174746573746174696f6e20646f63756d656e7404"
    );
    assert_eq!(unwrap(&wrapped).unwrap(), b"an attestation document");
}

#[test]
fn another_wrapper_is_refused() {
    let octets = |cbor: &[u8]| OctetStringRef::new(cbor).unwrap().to_der().unwrap();
    let good = record(b"document");
    assert!(unwrap(&octets(&good)).is_some());
    let other = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut cbor = good.clone();
        change(&mut cbor);
        unwrap(&octets(&cbor))
    };
    assert_eq!(other(&|cbor| *cbor.last_mut().unwrap() = 8), None);
    assert_eq!(other(&|cbor| cbor.push(0)), None);
    assert_eq!(other(&|cbor| cbor[4] ^= 1), None);
    assert_eq!(other(&|cbor| cbor[0] = 0x84), None);
    // An array of indefinite length, and one without the indicator.
    assert_eq!(
        other(&|cbor| {
            cbor[0] = 0x9f;
            cbor.push(0xff);
        }),
        None
    );
    assert_eq!(
        other(&|cbor| {
            cbor[0] = 0x82;
            cbor.pop();
        }),
        None
    );
    // A length that could be shorter.
    assert_eq!(other(&|cbor| drop(cbor.splice(33..34, [0x58, 8]))), None);
    assert_eq!(unwrap(&good), None, "the record without its OCTET STRING");
    assert_eq!(unwrap(&[]), None);
}

#[test]
fn a_document_for_another_key_or_purpose_is_refused() {
    let other = ChannelKey::generate().unwrap();
    let copied = ChannelCertificate::parse(&CERTIFICATE)
        .unwrap()
        .document()
        .to_vec();
    let stolen = other.certificate(&copied).unwrap();
    let text = ENCLAVE.judge(&stolen, NOW).unwrap_err();
    assert!(text.contains("for another key"), "{text}");
    for purpose in [
        None,
        Some(b"".as_slice()),
        Some(b"enclos-tls/v2".as_slice()),
    ] {
        let document = ENCLAVE.document(ENCLAVE.key.spki_der(), purpose);
        let certificate = ENCLAVE.key.certificate(&document).unwrap();
        let text = ENCLAVE.judge(&certificate, NOW).unwrap_err();
        assert!(text.contains("not made for a TLS key"), "{text}");
    }
}

#[test]
fn the_certificates_own_validity_is_a_day() {
    let judge = |now: UnixMillis| ENCLAVE.judge(&CERTIFICATE, now);
    let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
    judge(NOW.minus(hour)).unwrap();
    judge(NOW.plus(day)).unwrap();
    let second = Duration::from_secs(1);
    assert!(judge(NOW.minus(hour).minus(second)).is_err());
    assert!(judge(NOW.plus(day).plus(second)).is_err());
}

#[test]
fn certificates_without_a_document_and_huge_ones_are_refused() {
    let mut authority = Authority::create(NOW, "eu-west-1", "eu-west-1a", INSTANCE).unwrap();
    let key = LeafKey::generate().unwrap();
    let leaf = authority
        .issue_leaf(key.spki_der(), MODULE, 1, NOW)
        .unwrap();
    let error = ChannelCertificate::parse(&leaf.certificate).unwrap_err();
    assert!(matches!(error, ChannelError::NoDocument), "{error}");
    // The limit of the specification: one byte more is not looked at, this many are.
    let parse = |len| ChannelCertificate::parse(&vec![0x30; len]).unwrap_err();
    let error = parse(17_665);
    assert!(
        matches!(error, ChannelError::TooLong { found: 17_665 }),
        "{error}"
    );
    let error = parse(17_664);
    assert!(matches!(error, ChannelError::Certificate(_)), "{error}");
    let error = ENCLAVE.key.certificate(b"no document").unwrap_err();
    assert!(matches!(error, crate::pki::PkiError::Document(_)));
}

#[test]
fn a_certificate_has_to_be_signed_by_its_own_key() {
    // The signature's last byte is s's.
    let mut altered = CERTIFICATE.clone();
    *altered.last_mut().unwrap() ^= 1;
    let error = ChannelCertificate::parse(&altered).unwrap_err();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert!(reason.contains("signature"), "{reason}");
}

proptest! {
    #[test]
    fn a_mutated_certificate_never_verifies(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut altered = CERTIFICATE.clone();
        let at = at.index(altered.len());
        altered[at] ^= 1 << bit;
        prop_assert!(ENCLAVE.judge(&altered, NOW).is_err());
    }

    #[test]
    fn a_truncated_or_extended_certificate_never_verifies(at in any::<prop::sample::Index>(), more in 1_usize..40) {
        let cut = at.index(CERTIFICATE.len());
        prop_assert!(ENCLAVE.judge(&CERTIFICATE[..cut], NOW).is_err());
        let longer = [CERTIFICATE.as_slice(), &vec![0; more]].concat();
        prop_assert!(ENCLAVE.judge(&longer, NOW).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(ChannelCertificate::parse(&bytes).is_err());
        unwrap(&bytes);
    }
}
