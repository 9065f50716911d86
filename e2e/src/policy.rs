//! Key policies as an operator would write them.

use std::collections::BTreeMap;

use anyhow::Result;
use enclos_api::control::Measurements;
use enclos_attest::PcrValue;
use serde_json::{Value, json};

use crate::kms::ACCOUNT;

/// The enclave that a key is for.
#[derive(Debug, Clone)]
pub struct Pins {
    /// Expected PCRs as hexadecimal, by number.
    pub pcrs: BTreeMap<u8, String>,
    /// Roles that may call at all.
    pub roles: Vec<String>,
}

impl Pins {
    /// Pins to an image, a role and an instance: PCR0 to PCR4.
    ///
    /// # Errors
    /// None today; the signature leaves room for measurements that are not hexadecimal.
    pub fn new(image: &Measurements, role: &str, instance: &str) -> Result<Self> {
        let pcrs = [
            (0, image.pcr0.clone()),
            (1, image.pcr1.clone()),
            (2, image.pcr2.clone()),
            (3, PcrValue::of_role(role).to_string()),
            (4, PcrValue::of_instance(instance).to_string()),
        ];
        Ok(Self {
            pcrs: pcrs.into(),
            roles: vec![role.to_owned()],
        })
    }

    /// Lets another role call too; its PCR3 still has to match.
    #[must_use]
    pub fn and_role(mut self, role: &str) -> Self {
        self.roles.push(role.to_owned());
        self
    }

    /// The key policy: the account manages the key and encrypts, only the enclave decrypts.
    #[must_use]
    pub fn policy(&self) -> Value {
        self.policy_of("kms:Encrypt", "kms:Decrypt")
    }

    /// The policy of a key that signs: everybody of the account verifies, only the enclave signs.
    #[must_use]
    pub fn signing_policy(&self) -> Value {
        self.policy_of("kms:Verify", "kms:Sign")
    }

    fn policy_of(&self, open: &str, attested: &str) -> Value {
        let conditions: BTreeMap<String, &String> = self
            .pcrs
            .iter()
            .map(|(index, value)| (format!("kms:RecipientAttestation:PCR{index}"), value))
            .collect();
        json!({
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "The account manages the key and does what is open to it",
                    "Effect": "Allow",
                    "Principal": { "AWS": format!("arn:aws:iam::{ACCOUNT}:root") },
                    "Action": ["kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy", open],
                    "Resource": "*"
                },
                {
                    "Sid": "Only this enclave does the rest",
                    "Effect": "Allow",
                    "Principal": { "AWS": self.roles },
                    "Action": attested,
                    "Resource": "*",
                    "Condition": { "StringEqualsIgnoreCase": conditions }
                }
            ]
        })
    }
}
