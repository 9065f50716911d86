//! What conditions can look at: keys and values that describe one request.

use std::collections::BTreeMap;

/// Condition keys of one request, by lower-case name: IAM's key names ignore case.
#[derive(Debug, Clone, Default)]
pub struct Context {
    values: BTreeMap<String, Vec<String>>,
}

impl Context {
    /// Sets a key to one value.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.values
            .insert(key.to_ascii_lowercase(), vec![value.into()]);
    }

    /// Sets a key to a list. An empty list is an absent key.
    pub fn set_list(&mut self, key: &str, values: Vec<String>) {
        if !values.is_empty() {
            self.values.insert(key.to_ascii_lowercase(), values);
        }
    }

    /// Adds one value to a key.
    pub fn add(&mut self, key: &str, value: impl Into<String>) {
        self.values
            .entry(key.to_ascii_lowercase())
            .or_default()
            .push(value.into());
    }

    /// All values of a key; `None` if the request has no such key. `key` is lower case.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[String]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// The value of a key that has exactly one.
    #[must_use]
    pub fn single(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some([value]) => Some(value),
            _ => None,
        }
    }
}
