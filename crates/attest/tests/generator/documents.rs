//! Documents, entry by entry.

use super::certificates::Certificate;
use super::{Key, NOW};

pub const ES384: &[u8] = &[0xa1, 0x01, 0x38, 0x22];

/// A chain as documents carry it.
#[derive(Clone)]
pub struct Chain {
    /// Root first.
    pub cabundle: Vec<Vec<u8>>,
    pub certificate: Vec<u8>,
    pub key: Key,
}

impl Chain {
    /// Signed from the top down.
    pub fn of(certificates: &[&Certificate]) -> Self {
        let issuers = certificates.iter().take(1).chain(certificates);
        let signed = certificates.iter().zip(issuers);
        let mut cabundle: Vec<_> = signed
            .map(|(certificate, issuer)| certificate.sign(issuer))
            .collect();
        Self {
            certificate: cabundle.pop().unwrap(),
            cabundle,
            key: certificates.last().unwrap().key.clone(),
        }
    }
}

/// A payload, as key and encoded value, and how it is wrapped.
#[derive(Clone)]
pub struct Document {
    pub entries: Vec<(&'static str, Vec<u8>)>,
    pub key: Key,
}

impl Document {
    /// A production enclave's document.
    pub fn new(chain: &Chain) -> Self {
        let bundle: Vec<_> = chain.cabundle.iter().map(|der| bytes(der)).collect();
        Self {
            entries: vec![
                ("module_id", text("i-0123456789abcdef0-enc0000000000000001")),
                ("digest", text("SHA384")),
                ("timestamp", head(0, NOW)),
                ("pcrs", pcrs(&registers())),
                ("certificate", bytes(&chain.certificate)),
                ("cabundle", array(&bundle)),
                ("public_key", NULL.to_vec()),
                ("user_data", NULL.to_vec()),
                ("nonce", NULL.to_vec()),
            ],
            key: chain.key.clone(),
        }
    }

    /// Another value, in the same place.
    pub fn set(mut self, key: &str, value: Vec<u8>) -> Self {
        for entry in &mut self.entries {
            if entry.0 == key {
                entry.1.clone_from(&value);
            }
        }
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(name, _)| *name != key);
        self
    }

    pub fn with(mut self, key: &'static str, value: Vec<u8>) -> Self {
        self.entries.push((key, value));
        self
    }

    pub fn payload(&self) -> Vec<u8> {
        let mut payload = head(5, self.entries.len() as u64);
        for (key, value) in &self.entries {
            payload.extend(text(key));
            payload.extend(value);
        }
        payload
    }

    pub fn signed(&self) -> Vec<u8> {
        sign(&self.payload(), &self.key)
    }
}

/// Registers 0 to 15: an image, a role, an instance, zeros.
pub fn registers() -> Vec<(u64, Vec<u8>)> {
    let value = |index: u64| match index {
        0..=4 => vec![0x10 + u8::try_from(index).unwrap(); 48],
        _ => vec![0; 48],
    };
    (0..16).map(|index| (index, value(index))).collect()
}

pub fn pcrs(registers: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut map = head(5, registers.len() as u64);
    for (index, value) in registers {
        map.extend(head(0, *index));
        map.extend(bytes(value));
    }
    map
}

pub fn sign(payload: &[u8], key: &Key) -> Vec<u8> {
    envelope(
        ES384,
        &[0xa0],
        &bytes(payload),
        &key.sign(&sig_structure(b"", payload)),
    )
}

pub fn sig_structure(external: &[u8], payload: &[u8]) -> Vec<u8> {
    array(&[
        text("Signature1"),
        bytes(ES384),
        bytes(external),
        bytes(payload),
    ])
}

/// `unprotected` and `payload` are encoded already.
pub fn envelope(protected: &[u8], unprotected: &[u8], payload: &[u8], signature: &[u8]) -> Vec<u8> {
    array(&[
        bytes(protected),
        unprotected.to_vec(),
        payload.to_vec(),
        bytes(signature),
    ])
}

pub const NULL: &[u8] = &[0xf6];

pub fn text(text: &str) -> Vec<u8> {
    [head(3, text.len() as u64), text.as_bytes().to_vec()].concat()
}

pub fn bytes(bytes: &[u8]) -> Vec<u8> {
    [head(2, bytes.len() as u64), bytes.to_vec()].concat()
}

pub fn array(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len() as u64), items.concat()].concat()
}

/// Major type and argument, shortest; timestamps are as long as AWS's only when they need it.
pub fn head(major: u8, value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let (code, from) = match value {
        0..=23 => return vec![major << 5 | bytes[7]],
        24..=0xff => (24, 7),
        0x100..=0xffff => (25, 6),
        0x1_0000..=0xffff_ffff => (26, 4),
        _ => (27, 0),
    };
    [&[major << 5 | code], &bytes[from..]].concat()
}
