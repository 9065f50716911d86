use std::io::Write as _;
use std::process::{Command, Stdio};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};

use super::*;

struct Enclave {
    directory: tempfile::TempDir,
    spki: Vec<u8>,
}

impl Enclave {
    fn new(size: KeySize) -> Self {
        let key = PrivateDecryptingKey::generate(size).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap();
        std::fs::write(directory.path().join("key.der"), pkcs8.as_ref()).unwrap();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        Self {
            directory,
            spki: spki.as_ref().to_vec(),
        }
    }

    /// Opens an envelope with OpenSSL, which knows nothing of us.
    fn open(&self, envelope: &[u8]) -> Vec<u8> {
        let mut openssl = Command::new("openssl")
            .args([
                "cms", "-decrypt", "-inform", "DER", "-keyform", "DER", "-inkey", "key.der",
            ])
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        openssl.stdin.take().unwrap().write_all(envelope).unwrap();
        let output = openssl.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    }
}

#[test]
fn openssl_opens_it() {
    let enclave = Enclave::new(KeySize::Rsa2048);
    let recipient = Recipient::from_spki(&enclave.spki).unwrap();
    for length in [1, 15, 16, 32, 1023, 1024, 4096] {
        let plaintext: Vec<u8> = (0..=255).cycle().take(length).collect();
        let envelope = recipient.envelope(&plaintext).unwrap();
        assert_eq!(enclave.open(&envelope), plaintext, "{length}");
    }
}

#[test]
fn larger_keys_work_too() {
    for size in [KeySize::Rsa3072, KeySize::Rsa4096] {
        let enclave = Enclave::new(size);
        let envelope = Recipient::from_spki(&enclave.spki)
            .unwrap()
            .envelope(b"hello")
            .unwrap();
        assert_eq!(enclave.open(&envelope), b"hello");
    }
}

/// A real answer of AWS KMS to GenerateDataKey, from the tests of aws-nitro-enclaves-sdk-c (Apache-2.0).
const FROM_AWS: &str = "\
    308006092a864886f70d010703a08030800201023182016b3082016702010280207087b55df94ba3255cdf3c01840a2a\
    a3ec93620625d601cf56f97bde7a3d2eb1303c06092a864886f70d010107302fa00f300d060960864801650304020105\
    00a11c301a06092a864886f70d010108300d0609608648016503040201050004820100a0614593a030ee336bfff07661\
    8b0130d045de9f4d183d83c5da882f13abc1f4bf0d13645869393442ab582e6a04d697d52d5623e367e7e92db6ebd2bd\
    07735b153f2826bee5df8e16c713a1e85cb6ba85e88681335c7e941a94abf0c0113e030916e2b6e1826db4ffb919b8e1\
    b6f59ec277e58de40b0ffeecaa0d94fbcb290374ed3dfc35d31a8f43ae1300fe20fdd986d4b8565657451f9dc693e134\
    678920221c58a28da5e71ab6b31caa445825a6385c6c4f5d5d5ebbc2c2570e9647fded36b559647bcb27e58886255f58\
    2c63d863ecec307d15763abce0b1b812a550938ca4e2d28a74563db52367558d3e2e82ac2a27fe5c9391a007c15f75b9\
    0ab0dd308006092a864886f70d010701301d060960864801650304012a0410688c6d5f7f31b0fecedf09f2e7c99ac9a0\
    80043070e5caaffd49ad24efe15bf903be9d19895b777d269b57b025f6f67e7ef93f94464515f2ebe034ea0b7621a1ff\
    19292e00000000000000000000";

#[test]
fn the_shape_is_awss() {
    let from_aws = hex::decode(FROM_AWS).unwrap();
    let enclave = Enclave::new(KeySize::Rsa2048);
    let mut recipient = Recipient::from_spki(&enclave.spki).unwrap();
    recipient.key_id.copy_from_slice(&from_aws[33..65]);
    let encrypted_key = &from_aws[131..387];
    let iv: [u8; 16] = from_aws[415..431].try_into().unwrap();
    let content = &from_aws[435..483];
    let ours = recipient.encode(encrypted_key, &iv, content);
    assert_eq!(hex::encode(ours), FROM_AWS);
}

#[test]
fn the_recipient_is_named_by_its_key() {
    let enclave = Enclave::new(KeySize::Rsa2048);
    let envelope = Recipient::from_spki(&enclave.spki)
        .unwrap()
        .envelope(&[7; 32])
        .unwrap();
    assert_eq!(
        &envelope[33..65],
        digest::digest(&digest::SHA256, &enclave.spki).as_ref()
    );
    assert_eq!(envelope.len(), hex::decode(FROM_AWS).unwrap().len());
}

#[test]
fn two_envelopes_of_one_plaintext_differ() {
    let enclave = Enclave::new(KeySize::Rsa2048);
    let recipient = Recipient::from_spki(&enclave.spki).unwrap();
    assert_ne!(
        recipient.envelope(b"x").unwrap(),
        recipient.envelope(b"x").unwrap()
    );
}

#[test]
fn unusable_keys_are_refused() {
    let small = Command::new("sh")
        .args([
            "-c",
            "openssl genrsa 1024 2>/dev/null | openssl rsa -pubout -outform DER 2>/dev/null",
        ])
        .output()
        .unwrap();
    let curve = Command::new("sh")
        .args(["-c", "openssl ecparam -name prime256v1 -genkey 2>/dev/null | openssl ec -pubout -outform DER 2>/dev/null"])
        .output()
        .unwrap();
    assert!(!small.stdout.is_empty() && !curve.stdout.is_empty());
    for bytes in [&small.stdout[..], &curve.stdout, b"", b"x", &[0x30; 300]] {
        assert_eq!(Recipient::from_spki(bytes).unwrap_err(), RecipientKeyError);
    }
    let mut trailing = Enclave::new(KeySize::Rsa2048).spki;
    trailing.push(0);
    assert_eq!(
        Recipient::from_spki(&trailing).unwrap_err(),
        RecipientKeyError
    );
}
