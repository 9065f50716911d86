//! The condition of a KMS key policy that releases a key to one image alone.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::failure::Outcome;
use crate::nitro::Measured;

/// The value of a policy statement's `Condition`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Condition(Value);

impl Condition {
    pub(super) const INTRODUCTION: &str =
        "Condition for a KMS key policy that releases the key to this image alone:";

    /// All of its registers: AWS's PCR0 alone does not bind where one section ends and the next begins.
    pub(super) fn of(measured: &Measured) -> Self {
        let keys = measured.registers().into_iter().map(|(index, value)| {
            (
                format!("kms:RecipientAttestation:PCR{index}"),
                Value::from(value),
            )
        });
        Self(json!({ "StringEqualsIgnoreCase": Map::from_iter(keys) }))
    }

    /// As it is pasted.
    pub(super) fn pretty(&self) -> Outcome<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}
