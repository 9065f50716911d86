//! Tags of keys: what `aws:ResourceTag/…` conditions see.

use std::collections::BTreeMap;
use std::sync::Arc;

use dashmap::DashMap;

use crate::error::{ApiError, ErrorKind};
use crate::input::Input;

/// Tag keys and values.
pub type Tags = BTreeMap<String, String>;

/// AWS's quota of tags on one key.
const PER_KEY: usize = 50;
const KEY_MAX: usize = 128;
const VALUE_MAX: usize = 256;

/// Tags of all keys, in memory like keys themselves.
#[derive(Debug, Default)]
pub struct TagStore {
    tags: DashMap<String, Arc<Tags>>,
}

impl TagStore {
    /// A key's tags.
    #[must_use]
    pub fn of(&self, key_id: &str) -> Arc<Tags> {
        self.tags
            .get(key_id)
            .map(|tags| Arc::clone(&tags))
            .unwrap_or_default()
    }

    /// Replaces a key's tags; none removes it.
    pub(crate) fn put(&self, key_id: &str, tags: Tags) {
        if tags.is_empty() {
            self.tags.remove(key_id);
        } else {
            self.tags.insert(key_id.to_owned(), Arc::new(tags));
        }
    }
}

/// Reads a `Tags` parameter: its form only.
pub(crate) fn parameter(input: &mut Input) -> Result<Option<Vec<(String, String)>>, ApiError> {
    let Some(list) = input.structures("Tags")? else {
        return Ok(None);
    };
    let mut tags = Vec::with_capacity(list.len());
    for (index, mut tag) in list.into_iter().enumerate() {
        let key = tag.required_string("TagKey", 1, KEY_MAX)?;
        let value = tag.required_string("TagValue", 0, VALUE_MAX)?;
        input.adopt(&format!("Tags.{}.member", index + 1), tag);
        tags.push((key, value));
    }
    Ok(Some(tags))
}

/// Reads a `TagKeys` parameter.
pub(crate) fn keys_parameter(input: &mut Input) -> Result<Vec<String>, ApiError> {
    let keys = input.strings("TagKeys")?;
    input.check_each("TagKeys", keys.as_deref().unwrap_or_default(), KEY_MAX);
    Ok(input.require("TagKeys", keys))
}

/// A key's tags once `new` are set.
pub(crate) fn merge(old: &Tags, new: &[(String, String)]) -> Result<Tags, ApiError> {
    let refuse = |text: &str| Err(ApiError::new(ErrorKind::Tag, text));
    let mut given = Tags::new();
    for (key, value) in new {
        if key.to_ascii_lowercase().starts_with("aws:") {
            return refuse("Tags beginning with aws: are reserved");
        }
        if given.insert(key.clone(), value.clone()).is_some() {
            return refuse("Duplicate tag keys");
        }
    }
    let mut tags = old.clone();
    tags.extend(given);
    if tags.len() > PER_KEY {
        return refuse("Too many tags");
    }
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(keys: impl IntoIterator<Item = String>) -> Vec<(String, String)> {
        keys.into_iter().map(|key| (key, "v".to_owned())).collect()
    }

    #[test]
    fn fifty_tags_and_no_more() {
        let fifty = merge(&Tags::new(), &tags((0..50).map(|n| n.to_string()))).unwrap();
        assert!(merge(&fifty, &tags(["7".to_owned()])).is_ok());
        let error = merge(&fifty, &tags(["x".to_owned()])).unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Tag, Some("Too many tags"))
        );
    }

    #[test]
    fn keys_are_unique_and_not_awss() {
        for (keys, text) in [
            (["a", "a"], "Duplicate tag keys"),
            (["a", "AWS:b"], "Tags beginning with aws: are reserved"),
        ] {
            let error = merge(&Tags::new(), &tags(keys.map(str::to_owned))).unwrap_err();
            assert_eq!(error.message(), Some(text));
        }
        assert_eq!(
            merge(&Tags::new(), &tags(["a".to_owned(), "A".to_owned()]))
                .unwrap()
                .len(),
            2
        );
    }
}
