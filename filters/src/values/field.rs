//! Names of HTTP fields.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use http::HeaderName;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

use super::scalar::Scalar;

/// The name of a header field, without regard to case (RFC 9110 section 5.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldName(HeaderName);

impl FieldName {
    /// The name as the `http` crate's type.
    pub const fn get(&self) -> &HeaderName {
        &self.0
    }

    /// The name as the `http` crate's type.
    pub fn into_inner(self) -> HeaderName {
        self.0
    }
}

impl From<HeaderName> for FieldName {
    fn from(name: HeaderName) -> Self {
        Self(name)
    }
}

impl From<FieldName> for HeaderName {
    fn from(name: FieldName) -> Self {
        name.0
    }
}

impl PartialOrd for FieldName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FieldName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

impl Scalar for FieldName {
    const EXPECTED: &'static str = "a header name such as `x-request-id`";
    const PATTERN: Option<&'static str> = Some(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$");
    const EXAMPLE: &'static str = "x-request-id";

    fn read(text: &str) -> Option<Self> {
        HeaderName::from_bytes(text.as_bytes()).ok().map(Self)
    }
}

crate::scalar!(FieldName);

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Reads what is written for fields, by their names. A plain map would keep the last one where a name is there
/// twice, in another case.
///
/// # Errors
/// A name that is there twice.
pub fn fields<'de, T, D>(deserializer: D) -> Result<BTreeMap<FieldName, T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(Fields(PhantomData))
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = BTreeMap<FieldName, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = map.next_key_seed(NotAmong(&fields))? {
            fields.insert(name, map.next_value()?);
        }
        Ok(fields)
    }
}

/// Reads a name that is not among these.
struct NotAmong<'a, T>(&'a BTreeMap<FieldName, T>);

impl<'de, T> DeserializeSeed<'de> for NotAmong<'_, T> {
    type Value = FieldName;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<FieldName, D::Error> {
        let name = FieldName::deserialize(deserializer)?;
        if self.0.contains_key(&name) {
            let message = format!("duplicate key `{name}`: fields are the same in any case");
            return Err(D::Error::custom(message));
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_there_twice_in_another_case_is_refused() {
        let read = |text: &str| fields::<String, _>(&mut serde_json::Deserializer::from_str(text));
        let two = read(r#"{"x-env": "a", "x-other": "b"}"#).unwrap();
        assert_eq!(two[&FieldName::read("X-Env").unwrap()], "a");
        let error = read(r#"{"X-Env": "a", "x-env": "b"}"#).unwrap_err().to_string();
        assert!(error.starts_with("duplicate key `x-env`: fields are the same in any case"), "{error}");
    }

    #[test]
    fn names_are_tokens_in_any_case_and_are_written_in_lower_case() {
        let name: FieldName = serde_json::from_value("X-Request-Id".into()).unwrap();
        assert_eq!(name.get(), "x-request-id");
        assert_eq!(serde_json::to_value(&name).unwrap(), "x-request-id");
    }

    #[test]
    fn what_is_not_a_token_is_refused_without_quoting_it() {
        for text in ["", "x y", "x:y", "x\r\ny", ":authority", "é"] {
            let error = serde_json::from_value::<FieldName>(text.into()).unwrap_err().to_string();
            assert_eq!(error, "expected a header name such as `x-request-id`");
        }
    }
}
