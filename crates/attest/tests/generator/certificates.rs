//! X.509 certificates, field by field.

use der::Encode as _;
use der::asn1::{GeneralizedTime, UtcTime};
use x509_cert::der;

use super::{Key, NOW_SECS};

pub const BASIC: &[u32] = &[2, 5, 29, 19];
pub const USAGE: &[u32] = &[2, 5, 29, 15];
pub const SUBJECT_KEY: &[u32] = &[2, 5, 29, 14];
pub const AUTHORITY_KEY: &[u32] = &[2, 5, 29, 35];
pub const NAME_CONSTRAINTS: &[u32] = &[2, 5, 29, 30];
pub const NOBODYS: &[u32] = &[1, 3, 6, 1, 4, 1, 99999, 1];

pub const ECDSA_SHA384: &[u32] = &[1, 2, 840, 10045, 4, 3, 3];
pub const ECDSA_SHA256: &[u32] = &[1, 2, 840, 10045, 4, 3, 2];

const EC: &[u32] = &[1, 2, 840, 10045, 2, 1];
const P384: &[u32] = &[1, 3, 132, 0, 34];
const P256: &[u32] = &[1, 2, 840, 10045, 3, 1, 7];

/// keyUsage bits, as their BIT STRING.
pub const CERT_SIGN: &[u8] = &[0x03, 0x02, 0x02, 0x04];
pub const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x07, 0x80];
pub const NON_REPUDIATION: &[u8] = &[0x03, 0x02, 0x06, 0x40];
pub const SIGNATURE_AND_CERT_SIGN: &[u8] = &[0x03, 0x02, 0x02, 0x84];
pub const CRL_SIGN: &[u8] = &[0x03, 0x02, 0x01, 0x02];

#[derive(Clone)]
pub struct Extension {
    pub oid: &'static [u32],
    pub critical: bool,
    pub value: Vec<u8>,
}

/// A certificate to be signed.
#[derive(Clone)]
pub struct Certificate {
    pub key: Key,
    pub subject: String,
    pub version: Option<u8>,
    pub algorithm: Vec<u8>,
    pub outer_algorithm: Vec<u8>,
    /// Seconds.
    pub not_before: u64,
    pub not_after: u64,
    pub spki: Vec<u8>,
    pub extensions: Vec<Extension>,
}

impl Certificate {
    fn new(seed: u8, subject: &str, not_after: u64) -> Self {
        let key = Key::new(seed);
        Self {
            spki: spki(&key.point()),
            key,
            subject: subject.to_owned(),
            version: Some(2),
            algorithm: algorithm(ECDSA_SHA384, &[]),
            outer_algorithm: algorithm(ECDSA_SHA384, &[]),
            not_before: NOW_SECS - 3600,
            not_after,
            extensions: Vec::new(),
        }
    }

    /// A CA as it should be.
    pub fn ca(seed: u8, subject: &str, path_len: Option<u8>) -> Self {
        Self::new(seed, subject, NOW_SECS + 30 * 24 * 3600)
            .with(BASIC, true, ca_constraints(path_len))
            .with(USAGE, true, CERT_SIGN.to_vec())
    }

    /// A leaf as it should be.
    pub fn leaf(seed: u8) -> Self {
        Self::new(
            seed,
            "i-0123456789abcdef0-enc0000000000000001.eu-west-1.vectors",
            NOW_SECS + 3 * 3600,
        )
        .with(BASIC, true, tlv(0x30, &[]))
        .with(USAGE, false, vec![0x03, 0x02, 0x06, 0xc0])
    }

    pub fn with(mut self, oid: &'static [u32], critical: bool, value: Vec<u8>) -> Self {
        self.extensions.push(Extension {
            oid,
            critical,
            value,
        });
        self
    }

    pub fn without(mut self, oid: &[u32]) -> Self {
        self.extensions.retain(|extension| extension.oid != oid);
        self
    }

    /// Another value for an extension.
    pub fn instead(self, oid: &'static [u32], critical: bool, value: &[u8]) -> Self {
        self.without(oid).with(oid, critical, value.to_vec())
    }

    /// Another key in the certificate than the one that signs.
    pub fn with_spki(mut self, spki: Vec<u8>) -> Self {
        self.spki = spki;
        self
    }

    pub fn sign(&self, issuer: &Self) -> Vec<u8> {
        self.sign_as(&issuer.subject, &issuer.key)
    }

    pub fn sign_as(&self, issuer: &str, key: &Key) -> Vec<u8> {
        let tbs = self.tbs(issuer);
        let signature = [&[0], key.sign_der(&tbs).as_slice()].concat();
        tlv(
            0x30,
            &[tbs, self.outer_algorithm.clone(), tlv(0x03, &signature)].concat(),
        )
    }

    fn tbs(&self, issuer: &str) -> Vec<u8> {
        let version = self
            .version
            .map(|version| tlv(0xa0, &tlv(0x02, &[version])));
        let extensions = self.extensions.iter().map(|extension| {
            let critical = if extension.critical {
                tlv(0x01, &[0xff])
            } else {
                Vec::new()
            };
            let parts = [oid(extension.oid), critical, tlv(0x04, &extension.value)];
            tlv(0x30, &parts.concat())
        });
        let extensions: Vec<u8> = extensions.flatten().collect();
        let parts = [
            version.unwrap_or_default(),
            tlv(0x02, &[0x41, self.key.point()[1] & 0x7f]),
            self.algorithm.clone(),
            name(issuer),
            tlv(
                0x30,
                &[time(self.not_before), time(self.not_after)].concat(),
            ),
            name(&self.subject),
            self.spki.clone(),
            tlv(0xa3, &tlv(0x30, &extensions)),
        ];
        tlv(0x30, &parts.concat())
    }
}

pub fn ca_constraints(path_len: Option<u8>) -> Vec<u8> {
    let limit = path_len
        .map(|limit| tlv(0x02, &[limit]))
        .unwrap_or_default();
    tlv(0x30, &[tlv(0x01, &[0xff]), limit].concat())
}

pub fn key_identifier(point: &[u8]) -> Vec<u8> {
    point[1..21].to_vec()
}

pub fn algorithm(number: &[u32], parameters: &[u8]) -> Vec<u8> {
    tlv(0x30, &[oid(number), parameters.to_vec()].concat())
}

pub fn spki(point: &[u8]) -> Vec<u8> {
    spki_on(P384, point)
}

/// The generator of P-256 as a public key.
pub fn p256_spki() -> Vec<u8> {
    let point = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                 4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    spki_on(P256, &hex::decode(point).unwrap())
}

fn spki_on(curve: &[u32], point: &[u8]) -> Vec<u8> {
    let algorithm = tlv(0x30, &[oid(EC), oid(curve)].concat());
    let point = tlv(0x03, &[&[0], point].concat());
    tlv(0x30, &[algorithm, point].concat())
}

fn name(common_name: &str) -> Vec<u8> {
    let attribute = [oid(&[2, 5, 4, 3]), tlv(0x0c, common_name.as_bytes())].concat();
    tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute)))
}

fn time(seconds: u64) -> Vec<u8> {
    let moment = std::time::Duration::from_secs(seconds);
    match UtcTime::from_unix_duration(moment) {
        Ok(time) => time.to_der().unwrap(),
        Err(_) => GeneralizedTime::from_unix_duration(moment)
            .unwrap()
            .to_der()
            .unwrap(),
    }
}

fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = vec![u8::try_from(arcs[0] * 40 + arcs[1]).unwrap()];
    for arc in &arcs[2..] {
        let groups = (0..5)
            .rev()
            .map(|group| u8::try_from(arc >> (7 * group) & 0x7f).unwrap());
        let mut groups: Vec<u8> = groups.skip_while(|group| *group == 0).collect();
        if groups.is_empty() {
            groups.push(0);
        }
        let last = groups.len() - 1;
        content.extend(
            groups
                .iter()
                .enumerate()
                .map(|(at, group)| if at == last { *group } else { group | 0x80 }),
        );
    }
    tlv(0x06, &content)
}

/// One DER element.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let length = match content.len() {
        short @ 0..=0x7f => vec![u8::try_from(short).unwrap()],
        _ => [
            &[0x80 | u8::try_from(significant.len()).unwrap()],
            significant.as_slice(),
        ]
        .concat(),
    };
    [&[tag], length.as_slice(), content].concat()
}
