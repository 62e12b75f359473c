//! Names of entities.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// The name of an entity: letters, digits, `.`, `_`, `-` and `/`, at most 128 of them.
///
/// It becomes a metric label and a log field, so it is kept tame.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(Arc<str>);

impl Name {
    /// What a text is told that cannot be a name.
    pub const EXPECTED: &'static str = "expected a name of 1 to 128 letters, digits, `.`, `_`, `-` or `/`";

    /// Whether a text can be a name.
    #[must_use]
    pub fn is_valid(text: &str) -> bool {
        let tame = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        !text.is_empty() && text.len() <= 128 && text.chars().all(tame)
    }

    /// The text, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if !Self::is_valid(&text) {
            return Err(de::Error::custom(Self::EXPECTED));
        }
        Ok(Self(text.into()))
    }
}

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[A-Za-z0-9._/-]{1,128}$"})
    }
}
