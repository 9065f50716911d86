//! A request's parameters, read the way AWS reads them.
//!
//! First the *shape*: JSON of the wrong type is a `SerializationException`. Then all *constraints* at once:
//! every violated one is listed in a single `ValidationException`, as AWS does. Unknown members are
//! ignored. An operation reads its members through [`Input`] and then calls [`Input::finish`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{ApiError, ErrorKind};

/// Longest `KeyId`.
const KEY_ID_MAX: usize = 2048;

/// Members whose values AWS does not repeat in its errors.
const SENSITIVE: &[&str] = &["Message", "Plaintext"];

/// Most grant tokens in a request.
const GRANT_TOKENS_MAX: usize = 10;

/// Longest grant token, in characters.
const GRANT_TOKEN_MAX: usize = 8192;

/// A request's members and the constraints they violated so far.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) members: Map<String, Value>,
    violations: Vec<String>,
}

impl Input {
    /// Parses a body. An empty body is an empty structure, as on AWS.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let members = match body {
            [] => Map::new(),
            _ => match serde_json::from_slice(body) {
                Ok(Value::Object(members)) => members,
                Ok(Value::Array(_)) => {
                    return Err(serialization("Start of list found where not expected"));
                }
                Ok(other) => {
                    return Err(serialization(format!(
                        "Unexpected {} found where a structure was expected",
                        json_type(&other)
                    )));
                }
                Err(_) => return Err(ApiError::bare(ErrorKind::Serialization)),
            },
        };
        Ok(Self::of(members))
    }

    /// A structure that was read from elsewhere.
    pub(crate) fn of(members: Map<String, Value>) -> Self {
        Self {
            members,
            violations: Vec::new(),
        }
    }

    /// Reports all violated constraints.
    pub(crate) fn finish(&self) -> Result<(), ApiError> {
        match self.violations.len() {
            0 => Ok(()),
            1 => Err(self.validation_error("1 validation error detected")),
            n => Err(self.validation_error(&format!("{n} validation errors detected"))),
        }
    }

    fn validation_error(&self, head: &str) -> ApiError {
        ApiError::validation(format!("{head}: {}", self.violations.join("; ")))
    }

    fn violate(&mut self, shown: &str, name: &str, constraint: &str) {
        // A secret value is left out together with the blank after it.
        let blank = if shown.is_empty() { "" } else { " " };
        self.violations.push(format!(
            "Value {shown}{blank}at '{}' failed to satisfy constraint: Member must {constraint}",
            lower_first(name)
        ));
    }

    fn member(&self, name: &str) -> Option<&Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// An optional string.
    pub(crate) fn string(&self, name: &str) -> Result<Option<String>, ApiError> {
        match self.member(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(cannot_convert(other, "a String")),
        }
    }

    /// An optional string whose length in characters is limited.
    pub(crate) fn sized_string(
        &mut self,
        name: &str,
        min: usize,
        max: usize,
    ) -> Result<Option<String>, ApiError> {
        let text = self.string(name)?;
        if let Some(text) = &text {
            self.check_length(name, &format!("'{text}'"), text.chars().count(), min, max);
        }
        Ok(text)
    }

    /// A string that must be there.
    pub(crate) fn required_string(
        &mut self,
        name: &str,
        min: usize,
        max: usize,
    ) -> Result<String, ApiError> {
        let text = self.sized_string(name, min, max)?;
        Ok(self.require(name, text))
    }

    /// A string that AWS constrains by a regular expression; `matches` decides, `pattern` is what is shown.
    pub(crate) fn patterned_string(
        &mut self,
        name: &str,
        (min, max): (usize, usize),
        pattern: &str,
        matches: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, ApiError> {
        let text = self.sized_string(name, min, max)?;
        if let Some(text) = &text
            && !matches(text)
        {
            let constraint = format!("satisfy regular expression pattern: {pattern}");
            self.violate(&format!("'{text}'"), name, &constraint);
        }
        Ok(text)
    }

    /// Notes an absent member and goes on with an empty one.
    pub(crate) fn require<T: Default>(&mut self, name: &str, value: Option<T>) -> T {
        value.unwrap_or_else(|| {
            let shown = if SENSITIVE.contains(&name) {
                ""
            } else {
                "null"
            };
            self.violate(shown, name, "not be null");
            T::default()
        })
    }

    /// An optional `KeyId`.
    pub(crate) fn key_id(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.sized_string(name, 1, KEY_ID_MAX)
    }

    /// A `KeyId` that must be there.
    pub(crate) fn required_key_id(&mut self, name: &str) -> Result<String, ApiError> {
        self.required_string(name, 1, KEY_ID_MAX)
    }

    /// An optional enumeration.
    pub(crate) fn choice(
        &mut self,
        name: &str,
        values: &[&str],
    ) -> Result<Option<String>, ApiError> {
        let text = self.string(name)?;
        if let Some(text) = &text
            && !values.contains(&text.as_str())
        {
            let constraint = format!("satisfy enum value set: [{}]", values.join(", "));
            self.violate(&format!("'{text}'"), name, &constraint);
        }
        Ok(text)
    }

    /// An optional enumeration as a value of its type.
    pub(crate) fn one_of<T>(
        &mut self,
        name: &str,
        values: &[&str],
        from_name: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let text = self.choice(name, values)?;
        Ok(text.and_then(|text| from_name(&text)))
    }

    /// An enumeration that must be there. `None` is reported by [`Input::finish`].
    pub(crate) fn required_one_of<T>(
        &mut self,
        name: &str,
        values: &[&str],
        from_name: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        if self.member(name).is_none() {
            self.require::<String>(name, None);
        }
        self.one_of(name, values, from_name)
    }

    /// An optional time: seconds since 1970, given back in milliseconds.
    pub(crate) fn time_ms(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let seconds = match self.member(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(other) => return Err(cannot_convert(other, "a Timestamp")),
        };
        let out_of_range = || serialization("NUMBER_VALUE out of range for a Timestamp");
        let seconds = seconds.ok_or_else(out_of_range)?;
        let time = std::time::Duration::try_from_secs_f64(seconds).map_err(|_| out_of_range())?;
        i64::try_from(time.as_millis())
            .map(Some)
            .map_err(|_| out_of_range())
    }

    /// An optional list of values of an enumeration.
    pub(crate) fn choices(&mut self, name: &str, values: &[&str]) -> Result<Vec<String>, ApiError> {
        let list = match self.member(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.clone(),
            Some(other) => return Err(cannot_convert(other, "a List")),
        };
        let mut found = Vec::new();
        for item in &list {
            let text = item
                .as_str()
                .ok_or_else(|| cannot_convert(item, "a String"))?;
            found.push(text.to_owned());
        }
        if found.iter().any(|text| !values.contains(&text.as_str())) {
            let shown = format!("'[{}]'", found.join(", "));
            let constraint = format!(
                "satisfy constraint: [Member must satisfy enum value set: [{}]]",
                values.join(", ")
            );
            self.violate(&shown, name, &constraint);
        }
        Ok(found)
    }

    /// An optional integer within limits.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        min: i64,
        max: i64,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.member(name) else {
            return Ok(None);
        };
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| truncated(number)),
            other => return Err(cannot_convert(other, "an Integer")),
        };
        let number =
            number.ok_or_else(|| serialization("NUMBER_VALUE out of range for an Integer"))?;
        if number > max {
            self.violate(
                &format!("'{number}'"),
                name,
                &format!("have value less than or equal to {max}"),
            );
        } else if number < min {
            self.violate(
                &format!("'{number}'"),
                name,
                &format!("have value greater than or equal to {min}"),
            );
        }
        Ok(Some(number))
    }

    /// An optional boolean, false by default.
    pub(crate) fn boolean(&self, name: &str) -> Result<bool, ApiError> {
        match self.member(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(cannot_convert(other, "a Boolean")),
        }
    }

    /// An optional base64 blob of limited size. Its bytes may be secret and are wiped when dropped.
    pub(crate) fn blob(
        &mut self,
        name: &str,
        min: usize,
        max: usize,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        let bytes = match self.member(name) {
            None => return Ok(None),
            Some(Value::String(text)) => decode_blob(text)?,
            Some(other) => return Err(cannot_convert(other, "a ByteBuffer")),
        };
        let length = bytes.len();
        // AWS shows a plaintext not at all, and other blobs as its own buffer prints itself.
        let shown = if SENSITIVE.contains(&name) {
            String::new()
        } else {
            format!("'java.nio.HeapByteBuffer[pos=0 lim={length} cap={length}]'")
        };
        self.check_length(name, &shown, length, min, max);
        Ok(Some(bytes))
    }

    /// A blob that must be there.
    pub(crate) fn required_blob(
        &mut self,
        name: &str,
        min: usize,
        max: usize,
    ) -> Result<Zeroizing<Vec<u8>>, ApiError> {
        let bytes = self.blob(name, min, max)?;
        Ok(self.require(name, bytes))
    }

    /// An optional map of strings, sorted.
    pub(crate) fn string_map(&self, name: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let members = match self.member(name) {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(members)) => members,
            Some(other) => return Err(cannot_convert(other, "a Map")),
        };
        members
            .iter()
            .map(|(key, value)| match value {
                Value::String(text) => Ok((key.clone(), text.clone())),
                other => Err(cannot_convert(other, "a String")),
            })
            .collect()
    }

    /// An optional structure.
    pub(crate) fn structure(&self, name: &str) -> Result<Option<Input>, ApiError> {
        match self.member(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Input::of(members.clone()))),
            Some(other) => Err(cannot_convert(other, "a structure")),
        }
    }

    /// An optional list of structures.
    pub(crate) fn structures(&self, name: &str) -> Result<Option<Vec<Input>>, ApiError> {
        let list = match self.member(name) {
            None => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(cannot_convert(other, "a List")),
        };
        list.iter()
            .map(|item| match item {
                Value::Object(members) => Ok(Input::of(members.clone())),
                other => Err(cannot_convert(other, "a structure")),
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }

    /// Takes over a nested structure's violations, named under their parent.
    pub(crate) fn adopt(&mut self, parent: &str, nested: Input) {
        let at = format!("at '{}.", lower_first(parent));
        self.violations.extend(
            nested
                .violations
                .into_iter()
                .map(|text| text.replacen("at '", &at, 1)),
        );
    }

    /// An optional list of strings.
    pub(crate) fn strings(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let list = match self.member(name) {
            None => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(cannot_convert(other, "a List")),
        };
        let text = |item: &Value| item.as_str().map(str::to_owned);
        list.iter()
            .map(|item| text(item).ok_or_else(|| cannot_convert(item, "a String")))
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }

    /// A list of enumeration values that must be there.
    pub(crate) fn required_choices(
        &mut self,
        name: &str,
        values: &[&str],
    ) -> Result<Vec<String>, ApiError> {
        let list = self.strings(name)?;
        let unknown = |item: &String| !values.contains(&item.as_str());
        if let Some(items) = list.as_ref().filter(|items| items.iter().any(unknown)) {
            let shown = format!("'[{}]'", items.join(", "));
            let constraint = format!(
                "satisfy constraint: [Member must satisfy enum value set: [{}]]",
                values.join(", ")
            );
            self.violate(&shown, name, &constraint);
        }
        Ok(self.require(name, list))
    }

    /// Grant tokens, by number and form. Whether they are ours is asked when they count.
    pub(crate) fn grant_tokens(&mut self) -> Result<(), ApiError> {
        let name = "GrantTokens";
        let tokens = self.strings(name)?.unwrap_or_default();
        if tokens.len() > GRANT_TOKENS_MAX {
            let shown = format!("'[{}]'", tokens.join(", "));
            self.check_length(name, &shown, tokens.len(), 0, GRANT_TOKENS_MAX);
        }
        self.check_each(name, &tokens, GRANT_TOKEN_MAX);
        Ok(())
    }

    /// Whether a member is there and not empty.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        match self.member(name) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        }
    }

    /// Notes strings of a list that are empty or longer than so many characters.
    pub(crate) fn check_each(&mut self, name: &str, items: &[String], max: usize) {
        for (number, item) in (1..).zip(items) {
            let (name, shown) = (format!("{name}.{number}.member"), format!("'{item}'"));
            self.check_length(&name, &shown, item.chars().count(), 1, max);
        }
    }

    fn check_length(&mut self, name: &str, shown: &str, length: usize, min: usize, max: usize) {
        if length < min {
            let constraint = format!("have length greater than or equal to {min}");
            self.violate(shown, name, &constraint);
        } else if length > max {
            let constraint = format!("have length less than or equal to {max}");
            self.violate(shown, name, &constraint);
        }
    }
}

/// JSON numbers such as `32.0` are taken for integers.
fn truncated(number: &serde_json::Number) -> Option<i64> {
    let float = number.as_f64()?;
    (float.fract() == 0.0)
        .then(|| format!("{float:.0}").parse().ok())
        .flatten()
}

fn decode_blob(text: &str) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    STANDARD
        .decode(text)
        .map(Zeroizing::new)
        .map_err(|_| serialization("The value is not valid base64: expected a base64-encoded blob"))
}

pub(crate) fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars
        .next()
        .map(|first| first.to_ascii_lowercase())
        .into_iter()
        .chain(chars)
        .collect()
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Number(number) if number.is_f64() => "DECIMAL_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::String(_) => "STRING_VALUE",
        Value::Array(_) => "START_ARRAY",
        Value::Object(_) => "START_OBJECT",
    }
}

fn cannot_convert(value: &Value, target: &str) -> ApiError {
    match value {
        Value::Array(_) => serialization("Start of list found where not expected"),
        Value::Object(_) => serialization("Start of structure or map found where not expected."),
        other => serialization(format!(
            "{} can not be converted to {target}",
            json_type(other)
        )),
    }
}

fn serialization(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Serialization, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(json: &str) -> Input {
        Input::parse(json.as_bytes()).unwrap()
    }

    fn message(input: &Input) -> String {
        input.finish().unwrap_err().message().unwrap().to_owned()
    }

    #[test]
    fn violations_are_listed_together() {
        let mut request = input(r#"{"KeyId":"","KeySpec":"AES_9","NumberOfBytes":1025}"#);
        request.required_key_id("KeyId").unwrap();
        request.choice("KeySpec", &["AES_256", "AES_128"]).unwrap();
        request.integer("NumberOfBytes", 1, 1024).unwrap();
        request.required_blob("Plaintext", 1, 4096).unwrap();
        assert_eq!(
            message(&request),
            "4 validation errors detected: \
             Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1; \
             Value 'AES_9' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, AES_128]; \
             Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024; \
             Value at 'plaintext' failed to satisfy constraint: Member must not be null"
        );
    }

    #[test]
    fn limits_hold_on_both_sides() {
        for (bytes, valid) in [(0, false), (1, true), (1024, true), (1025, false)] {
            let mut request = input(&format!(r#"{{"NumberOfBytes":{bytes}}}"#));
            request.integer("NumberOfBytes", 1, 1024).unwrap();
            assert_eq!(request.finish().is_ok(), valid, "{bytes}");
        }
        for (length, valid) in [(0, false), (1, true), (4096, true), (4097, false)] {
            let blob = STANDARD.encode(vec![7; length]);
            let mut request = input(&format!(r#"{{"Plaintext":"{blob}"}}"#));
            request.required_blob("Plaintext", 1, 4096).unwrap();
            assert_eq!(request.finish().is_ok(), valid, "{length}");
        }
    }

    #[test]
    fn blobs_are_not_shown() {
        let text = |name: &str| {
            let mut request = input(&format!(r#"{{"{name}":"c2VjcmV0"}}"#));
            request.blob(name, 1, 5).unwrap();
            message(&request)
        };
        let constraint =
            "failed to satisfy constraint: Member must have length less than or equal to 5";
        assert_eq!(
            text("Plaintext"),
            format!("1 validation error detected: Value at 'plaintext' {constraint}")
        );
        assert_eq!(
            text("CiphertextBlob"),
            format!(
                "1 validation error detected: Value 'java.nio.HeapByteBuffer[pos=0 lim=6 cap=6]' at 'ciphertextBlob' {constraint}"
            )
        );
    }

    #[test]
    fn wrong_types_are_serialization_errors() {
        let cases = [
            (
                r#"{"x":5}"#,
                "NUMBER_VALUE can not be converted to a String",
            ),
            (
                r#"{"x":true}"#,
                "TRUE_VALUE can not be converted to a String",
            ),
            (r#"{"x":[]}"#, "Start of list found where not expected"),
            (
                r#"{"x":{}}"#,
                "Start of structure or map found where not expected.",
            ),
        ];
        for (json, expected) in cases {
            let error = input(json).string("x").unwrap_err();
            assert_eq!(
                (error.kind(), error.message()),
                (ErrorKind::Serialization, Some(expected))
            );
        }
        let mut number = input(r#"{"x":"5"}"#);
        let error = number.integer("x", 0, 9).unwrap_err();
        assert_eq!(
            error.message(),
            Some("STRING_VALUE can not be converted to an Integer")
        );
        for body in ["{", "[]", "5", "{\"a\":1}x", "\u{0}"] {
            let error = Input::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Serialization, "{body}");
        }
    }

    #[test]
    fn absent_and_null_are_the_same() {
        assert_eq!(input(r#"{"x":null}"#).string("x").unwrap(), None);
        assert_eq!(Input::parse(b"").unwrap().string("x").unwrap(), None);
    }
}
