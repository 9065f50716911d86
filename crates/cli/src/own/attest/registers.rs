//! Registers for the eye and for programs: `PCR0` to `PCR31`, in the order of their numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use enclos_attest::{PcrIndex, PcrValue};
use serde::{Serialize, Serializer};

/// The registers of a document.
#[derive(Debug)]
pub(super) struct Registers(BTreeMap<PcrIndex, PcrValue>);

impl Registers {
    pub(super) fn of(pcrs: &BTreeMap<PcrIndex, PcrValue>) -> Self {
        Self(pcrs.clone())
    }

    /// One line for each register that says something, one for all others.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (index, value) in self.0.iter().filter(|(_, value)| !value.is_zero()) {
            let _ = writeln!(text, "  {:<10} {value}", format!("PCR{index}"));
        }
        let zero: Vec<_> = self
            .0
            .iter()
            .filter(|(_, value)| value.is_zero())
            .map(|(index, _)| index.to_string())
            .collect();
        if !zero.is_empty() {
            let _ = writeln!(text, "  zero       PCR {}", zero.join(", "));
        }
        text
    }
}

impl Serialize for Registers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|(index, value)| (format!("PCR{index}"), value)),
        )
    }
}
