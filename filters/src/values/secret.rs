//! Values that are never logged and never echoed.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::scalar::{self, Refused, Scalar};
use crate::tree::SECRET;

const HIDDEN: &str = "***";

/// A secret text: printed and serialised as `***`, wiped from memory when dropped.
///
/// Equality is for telling whether a document changed; it takes as long as the texts have in
/// common and must not check a caller's credential.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Scalar for Secret {
    const EXPECTED: &'static str = "a secret: a text that is not blank, in quotes if it looks like a number";
    const FORMAT: Option<&'static str> = Some("password");
    const EXAMPLE: &'static str = "${env:API_SECRET}";

    fn read(text: &str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self::new(text))
    }
}

// Not the macro: what `Display` writes is no secret that could be read back.
impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By this name, what reads documents knows that no message may quote the text.
        deserializer.deserialize_newtype_struct(SECRET, Hidden)
    }
}

/// Reads a secret under its name.
struct Hidden;

impl<'de> Visitor<'de> for Hidden {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Secret::EXPECTED)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Secret, D::Error> {
        scalar::deserialize(deserializer)
    }

    // Some deserialisers give what they have, whatever is asked for.
    fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
        Secret::read(text).ok_or_else(|| E::custom(Refused(Secret::EXPECTED)))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl schemars::JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = scalar::schema::<Self>();
        // What shows documents goes by this.
        schema.insert("writeOnly".to_owned(), true.into());
        schema
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{FileId, Limits, from_node, parse};

    #[test]
    fn a_secret_is_never_printed_or_serialised() {
        let secret: Secret = serde_json::from_value("hunter2".into()).unwrap();
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(serde_json::to_value(&secret).unwrap(), "***");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn empty_secrets_and_numbers_are_refused_without_quoting_them() {
        assert!(serde_json::from_str::<Secret>("\"\"").is_err());
        for text in ["31337", "-31337", "3133.7", "true"] {
            let error = serde_json::from_str::<Secret>(text).unwrap_err().to_string();
            assert!(error.starts_with("expected a secret"), "{error}");
            assert!(!error.contains("313"), "{error}");
        }
    }

    #[test]
    fn no_message_about_a_document_quotes_a_secret() {
        for text in ["31337", "-3133.7", "true", "'   '"] {
            let node = parse(text, FileId(0), &Limits::default()).expect("valid YAML");
            let error = from_node::<Secret>(&node).expect_err("no secret").to_string();
            assert_eq!(error, format!("1:1: expected {}", Secret::EXPECTED));
        }
    }
}
