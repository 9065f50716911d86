//! What a verified document must say.
//!
//! Verification proves who signed; it does not prove that the enclave runs what you think. An [`Expectation`]
//! holds the rest: registers, nonce, key. A register that is expected must be *present* and equal: a missing
//! register is never read as zero.
//!
//! A [`Policy`] is the same as data, for a fleet: named sets of measurements that expire, signers with a minimum
//! version, age, nonce, and combinations of them, in a file that the command line and the client read, that
//! can be [linted](Policy::lint) and [rendered](Policy::kms_conditions) for a KMS key policy.

mod file;
mod judge;
mod kms;
mod lint;
mod normal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use file::{
    Condition, MAX_POLICY, Measurement, Policy, PolicyError, SignedBy, Signer, VERSIONS_MAX, When,
};
pub use judge::{Accepted, Reason};
pub use kms::{KmsConditions, KmsNote};
pub use lint::Warning;

use crate::document::{Claims, VerifiedDocument};
use crate::pcr::{PcrIndex, PcrValue};

/// What a document must say. The default expects nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expectation {
    /// Registers and their values. Pin 0, 1 and 2 together: AWS's PCR0 alone does not bind the boundaries
    /// between an image's sections.
    pub pcrs: BTreeMap<PcrIndex, PcrValue>,
    /// The nonce that was sent with the request.
    pub nonce: Option<Vec<u8>>,
    /// The key that the enclave must have bound to the document.
    pub public_key: Option<Vec<u8>>,
    /// The application's own data.
    pub user_data: Option<Vec<u8>>,
}

/// One difference between a document and what was expected of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A register has another value.
    #[error("PCR{index} is {found}, expected {expected}")]
    Pcr {
        /// Which register.
        index: PcrIndex,
        /// The value in the policy.
        expected: PcrValue,
        /// The value in the document.
        found: PcrValue,
    },
    /// A register is not in the document.
    #[error(
        "PCR{index} is not in the document, expected {expected}; registers 16 to 31 appear once locked"
    )]
    PcrMissing {
        /// Which register.
        index: PcrIndex,
        /// The value in the policy.
        expected: PcrValue,
    },
    /// One of `nonce`, `public_key`, `user_data` differs.
    #[error("{field} is {}, expected {}", describe(.found.as_deref()), describe(Some(.expected)))]
    Field {
        /// Its key in the document.
        field: &'static str,
        /// What was expected.
        expected: Vec<u8>,
        /// What the document holds; `None` when it holds none.
        found: Option<Vec<u8>>,
    },
}

impl Expectation {
    /// Compares.
    ///
    /// # Errors
    /// Every difference, registers first.
    pub fn check(&self, document: &VerifiedDocument) -> Result<(), Vec<Mismatch>> {
        let registers = self
            .pcrs
            .iter()
            .filter_map(|(index, value)| pcr_of(document.claims(), *index, *value));
        let fields = [
            ("nonce", &self.nonce, document.nonce()),
            ("public_key", &self.public_key, document.public_key()),
            ("user_data", &self.user_data, document.user_data()),
        ];
        let fields = fields.into_iter().filter_map(|(name, expected, found)| {
            expected
                .as_deref()
                .and_then(|expected| field(name, expected, found))
        });
        let mismatches: Vec<_> = registers.chain(fields).collect();
        if mismatches.is_empty() {
            Ok(())
        } else {
            Err(mismatches)
        }
    }
}

fn pcr_of(claims: &Claims, index: PcrIndex, expected: PcrValue) -> Option<Mismatch> {
    match claims.pcrs.get(&index) {
        Some(found) if *found == expected => None,
        Some(found) => Some(Mismatch::Pcr {
            index,
            expected,
            found: *found,
        }),
        None => Some(Mismatch::PcrMissing { index, expected }),
    }
}

fn field(name: &'static str, expected: &[u8], found: Option<&[u8]>) -> Option<Mismatch> {
    if found == Some(expected) {
        return None;
    }
    let found = found.map(<[u8]>::to_vec);
    Some(Mismatch::Field {
        field: name,
        expected: expected.to_vec(),
        found,
    })
}

/// Short values in full, long ones by their beginning.
fn describe(bytes: Option<&[u8]>) -> String {
    match bytes {
        None => "absent".to_owned(),
        Some([]) => "empty".to_owned(),
        Some(bytes) if bytes.len() <= 32 => hex::encode(bytes),
        Some(bytes) => format!("{}… ({} bytes)", hex::encode(&bytes[..32]), bytes.len()),
    }
}

#[cfg(test)]
mod expectation_tests {
    use super::*;
    use crate::UnixMillis;
    use crate::document::{TrustAnchors, UnverifiedDocument, VerifyOptions};

    const AWS: &[u8] = include_bytes!("../../tests/vectors/aws.bin");

    fn verified() -> VerifiedDocument {
        let options = VerifyOptions {
            archival: true,
            ..VerifyOptions::default()
        };
        let now = UnixMillis(1_795_305_600_000);
        let document = UnverifiedDocument::parse(AWS).unwrap();
        document
            .verify(&TrustAnchors::new().with_aws(), now, &options)
            .unwrap()
    }

    fn pcr(index: u8) -> PcrIndex {
        PcrIndex::try_from(index).unwrap()
    }

    #[test]
    fn what_is_expected_and_there_is_fine() {
        let document = verified();
        Expectation::default().check(&document).unwrap();
        let all = Expectation {
            pcrs: document.pcrs().clone(),
            ..Expectation::default()
        };
        all.check(&document).unwrap();
    }

    #[test]
    fn an_absent_register_is_not_zero() {
        let expectation = Expectation {
            pcrs: [(pcr(16), PcrValue::ZERO)].into(),
            ..Expectation::default()
        };
        let found = expectation.check(&verified()).unwrap_err();
        assert_eq!(
            found,
            [Mismatch::PcrMissing {
                index: pcr(16),
                expected: PcrValue::ZERO
            }]
        );
    }

    #[test]
    fn every_difference_is_told() {
        let document = verified();
        let other = PcrValue::of_role("another");
        let expectation = Expectation {
            pcrs: [
                (pcr(0), other),
                (pcr(1), document.pcrs()[&pcr(1)]),
                (pcr(3), other),
            ]
            .into(),
            nonce: Some(vec![1; 16]),
            public_key: Some(vec![2; 40]),
            user_data: Some(vec![]),
        };
        let found = expectation.check(&document).unwrap_err();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 5, "{text:#?}");
        assert_eq!(
            text[0],
            format!("PCR0 is {}, expected {other}", document.pcrs()[&pcr(0)])
        );
        assert!(text[1].starts_with("PCR3 is "));
        assert!(text[2].starts_with("nonce is "), "{}", text[2]);
        assert!(
            text[2].ends_with(&format!("expected {}", "01".repeat(16))),
            "{}",
            text[2]
        );
        assert!(text[3].ends_with(&format!("expected {}… (40 bytes)", "02".repeat(32))));
        assert!(text[4].ends_with("expected empty"), "{}", text[4]);
    }
}
