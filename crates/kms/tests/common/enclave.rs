//! An installation's authority and one enclave of it, as a KMS sees them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use enclos_attest::document::Claims;
use enclos_attest::pki::{Authority, LeafIdentity, LeafKey};
use enclos_attest::{PcrIndex, PcrValue, UnixMillis};
use serde_json::{Value, json};

use super::{Client, Reply, Server, openssl};

pub(crate) const ROLE: &str = "arn:aws:iam::000000000000:role/enclave";
pub(crate) const MODULE: &str = "i-0123456789abcdef0-enc0123456789abcdef";

pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    UnixMillis(u64::try_from(since.as_millis()).unwrap())
}

pub(crate) fn pcr(byte: u8) -> PcrValue {
    PcrValue::from_hex(&hex::encode([byte; 48])).unwrap()
}

pub(crate) fn zero() -> PcrValue {
    pcr(0)
}

/// An installation and one enclave in it.
pub(crate) struct Enclave {
    pub(crate) identity: LeafIdentity,
    pub(crate) pcrs: BTreeMap<PcrIndex, PcrValue>,
    pub(crate) spki: Vec<u8>,
    pub(crate) directory: tempfile::TempDir,
}

impl Enclave {
    pub(crate) fn new() -> Self {
        let issued = now().minus(Duration::from_secs(3600));
        let mut authority =
            Authority::create(issued, "eu-west-1", "eu-west-1a", "i-0123456789abcdef0").unwrap();
        let key = LeafKey::generate().unwrap();
        let leaf = authority.issue_leaf(key.spki_der(), MODULE, 0x0123_4567_89ab_cdef, issued);
        let identity = LeafIdentity::new(key, leaf.unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let rsa = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
        std::fs::write(directory.path().join("key.der"), pkcs8.as_ref()).unwrap();
        std::fs::write(
            directory.path().join("root.pem"),
            authority.root_certificate_pem(),
        )
        .unwrap();
        let spki: PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
        let spki = spki.as_ref().to_vec();
        // As after a boot: image, kernel, application, role and instance measured, the rest zero.
        let pcrs = (0_u8..16)
            .map(|index| {
                (
                    PcrIndex::try_from(index).unwrap(),
                    if index < 5 { pcr(index + 1) } else { zero() },
                )
            })
            .collect();
        Self {
            identity,
            pcrs,
            spki,
            directory,
        }
    }

    pub(crate) fn server(&self) -> Server {
        self.server_with(&[])
    }

    /// A server that trusts this installation, with more arguments.
    pub(crate) fn server_with(&self, arguments: &[&str]) -> Server {
        let root = self.directory.path().join("root.pem");
        let trust = ["--trust-root", root.to_str().unwrap()];
        Server::with(&[&trust, arguments].concat())
    }

    pub(crate) fn claims(&self) -> Claims {
        Claims {
            module_id: MODULE.to_owned(),
            timestamp: now(),
            pcrs: self.pcrs.clone(),
            public_key: Some(self.spki.clone()),
            user_data: None,
            nonce: None,
        }
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Vec<u8> {
        self.identity.sign_document(claims).unwrap()
    }

    pub(crate) fn document(&self) -> Vec<u8> {
        self.sign(&self.claims())
    }

    pub(crate) fn document_of(&self, timestamp: UnixMillis) -> Vec<u8> {
        self.sign(&Claims {
            timestamp,
            ..self.claims()
        })
    }

    /// Opens an answer as an enclave would, with a tool that knows nothing of us.
    pub(crate) fn open(&self, output: &Value) -> Vec<u8> {
        assert!(output.get("Plaintext").is_none(), "{output}");
        let envelope = STANDARD
            .decode(output["CiphertextForRecipient"].as_str().unwrap())
            .unwrap();
        let arguments = [
            "cms", "-decrypt", "-inform", "DER", "-keyform", "DER", "-inkey", "key.der",
        ];
        openssl(self.directory.path(), &arguments, &envelope)
    }
}

pub(crate) fn recipient(document: &[u8]) -> Value {
    json!({
        "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
        "AttestationDocument": STANDARD.encode(document),
    })
}

pub(crate) fn attested_decrypt(client: &Client, blob: &str, document: &[u8]) -> Reply {
    client.call(
        "Decrypt",
        json!({ "CiphertextBlob": blob, "Recipient": recipient(document) }),
    )
}

/// A key that releases to the role under a condition, and something encrypted with it.
pub(crate) fn pinned_key(server: &Server, condition: &Value) -> (String, String) {
    let root = server.client();
    let key = root.create_key();
    let blob = root.encrypt(&key, b"hello enclave", json!({}));
    let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" },
        "NotAction": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": "*" });
    let release = json!({ "Sid": "Release", "Effect": "Allow", "Principal": { "AWS": ROLE },
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": "*", "Condition": condition });
    root.put_policy(&key, &json!([admin, release])).ok();
    (key, blob)
}
