//! Platform configuration registers: indices, values, and the two ways in which a value comes about.
//!
//! Image registers (0, 1, 2, 8) hash the data first and extend zeros with the digest: two hashes, see
//! [`PcrValue::measured`]. The role (3), the instance (4) and everything an enclave extends itself append raw
//! bytes to the old value: one hash, see [`PcrValue::extend`]. Mixing them up is the classic mistake.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::crypto;

/// Bytes of a register: the length of a SHA-384 digest.
pub const PCR_LEN: usize = 48;

/// Registers of a module, as the NSM reports in `max_pcrs`.
pub const PCR_COUNT: usize = 32;

/// Number of a register: 0 to 31.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrIndex(u8);

/// Why a register's index or value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcrError {
    /// There is no such register.
    #[error("there is no PCR{0}: registers are numbered 0 to 31")]
    Index(u64),
    /// The text or the bytes are no register value.
    #[error("not a PCR value: {found}; expected 48 bytes, 96 hexadecimal digits")]
    Value {
        /// What they are instead.
        found: String,
    },
}

impl PcrIndex {
    /// The image.
    pub const IMAGE: Self = Self(0);
    /// Kernel, command line and first ramdisk.
    pub const BOOT: Self = Self(1);
    /// The application: every further ramdisk.
    pub const APPLICATION: Self = Self(2);
    /// The parent's IAM role.
    pub const ROLE: Self = Self(3);
    /// The parent's instance id.
    pub const INSTANCE: Self = Self(4);
    /// The certificate that signed the image.
    pub const SIGNER: Self = Self(8);

    /// All registers, ascending.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32).map(Self)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The number, for use as an index.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<u64> for PcrIndex {
    type Error = PcrError;

    fn try_from(index: u64) -> Result<Self, PcrError> {
        match u8::try_from(index) {
            Ok(small) if usize::from(small) < PCR_COUNT => Ok(Self(small)),
            _ => Err(PcrError::Index(index)),
        }
    }
}

macro_rules! index_from {
    ($($int:ty),*) => {$(
        impl TryFrom<$int> for PcrIndex {
            type Error = PcrError;

            fn try_from(index: $int) -> Result<Self, PcrError> {
                Self::try_from(u64::try_from(index).unwrap_or(u64::MAX))
            }
        }
    )*};
}
index_from!(u8, u16, u32, usize);

impl FromStr for PcrIndex {
    type Err = PcrError;

    /// Decimal digits; anything else is reported as the largest number.
    fn from_str(text: &str) -> Result<Self, PcrError> {
        Self::try_from(text.parse::<u64>().unwrap_or(u64::MAX))
    }
}

impl fmt::Display for PcrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PcrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCR{}", self.0)
    }
}

impl Serialize for PcrIndex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for PcrIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u64::deserialize(deserializer)?;
        Self::try_from(index).map_err(serde::de::Error::custom)
    }
}

/// Value of a register. Shown and serialised as lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrValue([u8; PCR_LEN]);

impl PcrValue {
    /// What a register holds before it is extended, and what a debug enclave shows of its image.
    pub const ZERO: Self = Self([0; PCR_LEN]);

    /// From 96 hexadecimal digits of either case.
    ///
    /// # Errors
    /// [`PcrError::Value`] for another length or other characters.
    pub fn from_hex(text: &str) -> Result<Self, PcrError> {
        let mut bytes = [0; PCR_LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|e| PcrError::Value {
            found: format!("{e} ({} characters)", text.chars().count()),
        })?;
        Ok(Self(bytes))
    }

    /// The value after raw `data` was appended to this one: H(old ‖ data).
    #[must_use]
    pub fn extend(&self, data: &[u8]) -> Self {
        Self(crypto::sha384(&[&self.0, data]))
    }

    /// The value of an image register whose data has this SHA-384 digest: H(0^48 ‖ digest).
    #[must_use]
    pub fn measured(sha384: &[u8; 48]) -> Self {
        Self::ZERO.extend(sha384)
    }

    /// PCR3 of an instance with this role ARN.
    #[must_use]
    pub fn of_role(arn: &str) -> Self {
        Self::ZERO.extend(arn.as_bytes())
    }

    /// PCR4 of the instance with this id.
    #[must_use]
    pub fn of_instance(id: &str) -> Self {
        Self::ZERO.extend(id.as_bytes())
    }

    /// PCR8 of an image signed under this certificate.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Self {
        Self::ZERO.extend(&crypto::sha384(&[der]))
    }

    /// A user register of an image that extends it, from zero, with its version as eight bytes, most significant
    /// first: H(0^48 ‖ version). The image extends and locks it before it does anything else; whoever trusts
    /// the image's signer knows then that no older image is running.
    #[must_use]
    pub fn of_version(version: u64) -> Self {
        Self::ZERO.extend(&version.to_be_bytes())
    }

    /// Whether every byte is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PCR_LEN] {
        &self.0
    }
}

impl From<[u8; PCR_LEN]> for PcrValue {
    fn from(bytes: [u8; PCR_LEN]) -> Self {
        Self(bytes)
    }
}

impl AsRef<[u8]> for PcrValue {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&[u8]> for PcrValue {
    type Error = PcrError;

    fn try_from(bytes: &[u8]) -> Result<Self, PcrError> {
        let value = <[u8; PCR_LEN]>::try_from(bytes);
        value.map(Self).map_err(|_| PcrError::Value {
            found: format!("{} bytes", bytes.len()),
        })
    }
}

impl FromStr for PcrValue {
    type Err = PcrError;

    fn from_str(text: &str) -> Result<Self, PcrError> {
        Self::from_hex(text)
    }
}

impl fmt::Display for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for PcrValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PcrValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_ends_at_31() {
        assert_eq!(PcrIndex::try_from(31_u16).unwrap().get(), 31);
        assert_eq!(PcrIndex::try_from(32_u16), Err(PcrError::Index(32)));
        assert_eq!(PcrIndex::try_from(256_usize), Err(PcrError::Index(256)));
        assert_eq!("7".parse::<PcrIndex>().unwrap().get(), 7);
        assert!("-1".parse::<PcrIndex>().is_err());
        let all: Vec<_> = PcrIndex::all().map(PcrIndex::as_usize).collect();
        assert_eq!(all, (0..PCR_COUNT).collect::<Vec<_>>());
        assert_eq!(PcrIndex::SIGNER.to_string(), "8");
    }

    /// The examples of AWS's user guide.
    #[test]
    fn role_and_instance_are_hashed_once() {
        let role = PcrValue::of_role("arn:aws:iam::123456789012:role/Webserver");
        assert_eq!(
            role.to_string(),
            "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef\
             4fc1f1a452e315b9e98f9e312e6921e6"
        );
        let instance = PcrValue::of_instance("i-1234567890abcdef0");
        assert_eq!(
            instance.to_string(),
            "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541f2ac09d6545ac812\
             719327281c401a67a10fcba87ae79ce0"
        );
    }

    /// PCR2 of an image with a single ramdisk, as AWS's builder prints it.
    #[test]
    fn images_are_hashed_twice() {
        let mut empty = [0; 48];
        empty.copy_from_slice(&crypto::sha384(&[b""]));
        let expected = "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c\
                        10edb30948c90ba67310f7b964fc500a";
        assert_eq!(PcrValue::measured(&empty).to_string(), expected);
        assert_eq!(PcrValue::of_certificate(b"").to_string(), expected);
    }

    #[test]
    fn hex_is_read_in_both_cases_and_at_its_length_only() {
        let value = PcrValue::of_role("x");
        let text = value.to_string();
        assert_eq!(hex::encode(value.as_bytes()), text);
        assert_eq!(PcrValue::from_hex(&text.to_uppercase()).unwrap(), value);
        assert!(PcrValue::from_hex(&text[1..]).is_err());
        assert!(PcrValue::from_hex(&format!("{text}00")).is_err());
        assert!(PcrValue::from_hex(&text.replace(&text[..1], "g")).is_err());
        assert!(PcrValue::try_from([0_u8; 47].as_slice()).is_err());
        assert!(PcrValue::try_from([0_u8; 48].as_slice()).unwrap().is_zero());
    }

    #[test]
    fn json_is_hex() {
        let json = serde_json::to_string(&PcrValue::ZERO).unwrap();
        assert_eq!(json, format!("\"{}\"", "0".repeat(96)));
        assert_eq!(
            serde_json::from_str::<PcrValue>(&json).unwrap(),
            PcrValue::ZERO
        );
        let signer = serde_json::to_string(&PcrIndex::SIGNER).unwrap();
        assert_eq!(serde_json::from_str::<PcrIndex>(&signer).unwrap().get(), 8);
        assert!(serde_json::from_str::<PcrIndex>("32").is_err());
    }
}
