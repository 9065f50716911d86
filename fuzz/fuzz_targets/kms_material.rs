//! Key material that a caller brings: whatever the bytes, an import gives a key that works or an error. What works
//! then checks any signature, opens any ciphertext and meets any peer without a panic.

#![no_main]

use enclos_kms::crypto::material::KeyMaterial;
use enclos_kms::spec::{EncryptionAlgorithm, KeySpec, KeyUsage, MessageType, SigningAlgorithm};
use libfuzzer_sys::fuzz_target;

fn pick<T>(byte: u8, names: &[&str], from_name: impl Fn(&str) -> Option<T>) -> Option<T> {
    names
        .get(usize::from(byte) % names.len())
        .and_then(|name| from_name(name))
}

fuzz_target!(|data: &[u8]| {
    let [spec, usage, algorithm, kind, split, bytes @ ..] = data else {
        return;
    };
    let (Some(spec), Some(usage), Some(algorithm), Some(kind)) = (
        pick(*spec, KeySpec::NAMES, KeySpec::from_name),
        pick(*usage, KeyUsage::NAMES, KeyUsage::from_name),
        pick(
            *algorithm,
            SigningAlgorithm::NAMES,
            SigningAlgorithm::from_name,
        ),
        pick(*kind, MessageType::NAMES, MessageType::from_name),
    ) else {
        return;
    };
    let (key, rest) = bytes.split_at(bytes.len() * usize::from(*split) / 255);
    let Ok(material) = KeyMaterial::import(spec, usage, key.to_vec().into()) else {
        return;
    };
    match &material {
        KeyMaterial::Pair(pair) => {
            pair.public_der()
                .expect("an imported pair has a public half");
            let _valid = pair.verify(algorithm, kind, rest, rest);
            let _signature = pair.sign(algorithm, kind, rest);
            let _plaintext = pair.decrypt(EncryptionAlgorithm::RsaesOaepSha256, rest);
            let _secret = pair.agree(rest);
        }
        KeyMaterial::Mac(key) => assert!(key.verify(rest, &key.generate(rest))),
        KeyMaterial::Symmetric(_) => {}
    }
    let stored = KeyMaterial::stored(spec, usage, material.to_store().to_vec().into());
    assert!(stored.is_ok(), "what was imported can be loaded again");
});
