use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;

const PAIRS: &[(KeySpec, KeyUsage)] = &[
    (KeySpec::Rsa2048, KeyUsage::SignVerify),
    (KeySpec::Rsa2048, KeyUsage::EncryptDecrypt),
    (KeySpec::EccNistP256, KeyUsage::SignVerify),
    (KeySpec::EccNistP384, KeyUsage::KeyAgreement),
    (KeySpec::EccSecgP256k1, KeyUsage::SignVerify),
    (KeySpec::EccNistEdwards25519, KeyUsage::SignVerify),
    (KeySpec::MlDsa44, KeyUsage::SignVerify),
];

/// What its owner would export of a pair.
fn pkcs8(pair: &KeyPair) -> Vec<u8> {
    match ml_dsa(pair.spec) {
        None => pair.private().to_vec(),
        Some(algorithm) => {
            let pair = PqdsaKeyPair::from_seed(algorithm, pair.private()).unwrap();
            pair.to_pkcs8v1().unwrap().as_ref().to_vec()
        }
    }
}

#[test]
fn an_imported_pair_is_the_same_pair() {
    for (spec, usage) in PAIRS {
        let made = KeyPair::generate(*spec, *usage).unwrap();
        let imported = KeyPair::import(*spec, *usage, &pkcs8(&made)).unwrap();
        assert_eq!(imported.private(), made.private(), "{spec}");
        assert_eq!(imported.public_der().unwrap(), made.public_der().unwrap());
        for (other, usage) in PAIRS {
            let known = KeyPair::import(*other, *usage, &pkcs8(&made));
            assert_eq!(known.is_ok(), other == spec, "{spec} as {other}");
        }
        let longer = match spec {
            KeySpec::Rsa2048 => KeySpec::Rsa3072,
            _ => continue,
        };
        assert!(KeyPair::import(longer, *usage, &pkcs8(&made)).is_err());
    }
}

/// What `tests/import/private-keys.txt` says may be imported, whatever it is to be used for.
#[test]
fn keys_with_bad_parameters_are_refused() {
    use KeySpec as S;
    use KeyUsage as U;
    let mut seen = 0;
    let text = include_str!("../../tests/import/private-keys.txt");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let [name, good, pkcs8] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let pkcs8 = STANDARD.decode(pkcs8).unwrap();
        let kinds: &[(S, U)] = match name.split(':').next() {
            Some("rsa") => &[(S::Rsa2048, U::SignVerify), (S::Rsa2048, U::EncryptDecrypt)],
            Some("ec") => &[
                (S::EccNistP256, U::SignVerify),
                (S::EccNistP256, U::KeyAgreement),
            ],
            Some("ed") => &[(S::EccNistEdwards25519, U::SignVerify)],
            _ => &[(S::MlDsa44, U::SignVerify)],
        };
        for (spec, usage) in kinds {
            let imported = KeyPair::import(*spec, *usage, &pkcs8);
            assert_eq!(imported.is_ok(), good == "yes", "{name}, {usage}");
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn a_pair_does_what_it_was_made_for_only() {
    let signing = KeyPair::generate(KeySpec::Rsa2048, KeyUsage::SignVerify).unwrap();
    let algorithm = EncryptionAlgorithm::RsaesOaepSha256;
    assert_eq!(
        signing.decrypt(algorithm, &[0; 256]).map(drop),
        Err(PairError::Key)
    );
    assert_eq!(signing.agree(b"").map(drop), Err(PairError::Key));
    assert_eq!(signing.decapsulate(b"").map(drop), Err(PairError::Key));
    let signed = signing.sign(SigningAlgorithm::EcdsaSha256, MessageType::Raw, b"x");
    assert_eq!(signed, Err(PairError::MessageType));
}

fn made() -> &'static [KeyPair] {
    static MADE: std::sync::LazyLock<Vec<KeyPair>> = std::sync::LazyLock::new(|| {
        let make = |(spec, usage): &(KeySpec, KeyUsage)| KeyPair::generate(*spec, *usage).unwrap();
        PAIRS.iter().map(make).collect()
    });
    &MADE
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_are_no_key(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (spec, usage) in PAIRS {
            prop_assert!(KeyPair::import(*spec, *usage, &bytes).is_err());
        }
    }

    /// A damaged key is refused, or another key: it never panics.
    #[test]
    fn damaged_keys_are_harmless(which in 0..PAIRS.len(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let pair = &made()[which];
        let mut bytes = pkcs8(pair);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(imported) = KeyPair::import(pair.spec, pair.usage, &bytes) {
            let _public = imported.public_der();
        }
    }

    #[test]
    fn bytes_are_no_signature(
        bytes in proptest::collection::vec(any::<u8>(), 0..5_000),
        which in 0..SigningAlgorithm::NAMES.len(),
        kind in 0..MessageType::NAMES.len(),
    ) {
        let algorithm = SigningAlgorithm::from_name(SigningAlgorithm::NAMES[which]).unwrap();
        let kind = MessageType::from_name(MessageType::NAMES[kind]).unwrap();
        for pair in made() {
            let valid = pair.verify(algorithm, kind, &[7; 64], &bytes);
            prop_assert!(valid != Ok(true));
        }
    }

    #[test]
    fn bytes_are_no_peer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let pair = &made()[3];
        prop_assert_eq!(pair.agree(&bytes).map(drop), Err(PairError::PeerKey));
    }
}
