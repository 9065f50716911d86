//! Platform configuration registers: 48-byte SHA-384 values that only grow by hashing.
//!
//! | register | value, `H` being SHA-384 |
//! |---|---|
//! | 0, 1, 2, 8 (image) | `H(zeros ‖ H(data))`: [`PcrValue::measured`] |
//! | 3, 4 (role, instance) | `H(zeros ‖ text)`: [`PcrValue::of_role`], [`PcrValue::of_instance`] |
//! | any, by the enclave | `H(old ‖ data)`: [`PcrValue::extend`] |

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA384, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length of a register in bytes.
pub const PCR_LEN: usize = 48;

/// Number of registers.
pub const PCR_COUNT: usize = 32;

/// Why a register's index or value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PcrError {
    /// There is no such register.
    #[error("there is no PCR{0}, expected 0 to 31")]
    Index(usize),
    /// The text is no register value.
    #[error("not a PCR value, expected 96 hexadecimal digits")]
    Hex,
}

/// Index of a register: 0 to 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrIndex(u8);

impl PcrIndex {
    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<usize> for PcrIndex {
    type Error = PcrError;

    fn try_from(index: usize) -> Result<Self, PcrError> {
        let small = u8::try_from(index).ok().filter(|_| index < PCR_COUNT);
        small.map(Self).ok_or(PcrError::Index(index))
    }
}

impl TryFrom<u16> for PcrIndex {
    type Error = PcrError;

    fn try_from(index: u16) -> Result<Self, PcrError> {
        usize::from(index).try_into()
    }
}

/// Value of a register.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrValue([u8; PCR_LEN]);

impl PcrValue {
    /// The value at boot of what was not measured, and of image registers in debug mode.
    pub const ZERO: Self = Self([0; PCR_LEN]);

    /// Parses 96 hexadecimal digits.
    ///
    /// # Errors
    /// [`PcrError::Hex`].
    pub fn from_hex(text: &str) -> Result<Self, PcrError> {
        let mut bytes = [0; PCR_LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| PcrError::Hex)?;
        Ok(Self(bytes))
    }

    /// The value after `data` was appended: `H(old ‖ data)`.
    #[must_use]
    pub fn extend(&self, data: &[u8]) -> Self {
        let mut context = Context::new(&SHA384);
        context.update(&self.0);
        context.update(data);
        let mut bytes = [0; PCR_LEN];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }

    /// The value of an image register: a digest extended into zeros.
    pub fn measured(sha384: &[u8; PCR_LEN]) -> Self {
        Self::ZERO.extend(sha384)
    }

    /// PCR3 of an instance with this role.
    pub fn of_role(arn: &str) -> Self {
        Self::ZERO.extend(arn.as_bytes())
    }

    /// PCR4 of this instance.
    pub fn of_instance(id: &str) -> Self {
        Self::ZERO.extend(id.as_bytes())
    }

    /// PCR8 of an image signed with this certificate.
    pub fn of_certificate(der: &[u8]) -> Self {
        Self::ZERO.extend(digest(&SHA384, der).as_ref())
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
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

impl FromStr for PcrValue {
    type Err = PcrError;

    fn from_str(text: &str) -> Result<Self, PcrError> {
        Self::from_hex(text)
    }
}

impl fmt::Display for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PcrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PcrValue({self})")
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
        Self::from_hex(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AWS's documented examples.
    #[test]
    fn role_and_instance_have_the_documented_values() {
        let role = PcrValue::of_role("arn:aws:iam::123456789012:role/Webserver");
        assert!(
            role.to_string()
                .starts_with("78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75")
        );
        let instance = PcrValue::of_instance("i-1234567890abcdef0");
        assert!(
            instance
                .to_string()
                .starts_with("08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541")
        );
    }

    #[test]
    fn nothing_measured_is_not_zero() {
        let empty = PcrValue::of_certificate(b"");
        assert!(
            empty
                .to_string()
                .starts_with("21b9efbc184807662e966d34f390821309eeac6802309798")
        );
        assert!(!empty.is_zero());
    }

    #[test]
    fn indices_end_at_31() {
        assert_eq!(PcrIndex::try_from(31_usize).map(PcrIndex::get), Ok(31));
        assert_eq!(PcrIndex::try_from(32_u16), Err(PcrError::Index(32)));
    }

    #[test]
    fn values_survive_text() {
        let value = PcrValue::ZERO.extend(b"x");
        assert_eq!(PcrValue::from_hex(&value.to_string()), Ok(value));
        assert_eq!(PcrValue::from_hex("00"), Err(PcrError::Hex));
    }
}
