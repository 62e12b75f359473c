//! Expressions in a build without the feature `cel`: a document that has any is refused.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;

use pingora_http::RequestHeader;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::context::Context;
use crate::filter::Fact;

/// An expression, of which there are none.
#[derive(Debug, Clone)]
pub struct Expression(Infallible);

impl Expression {
    /// Refuses what is written.
    pub fn parse(_: &str) -> Result<Self, String> {
        Err("this program was built without expressions (the feature `cel`)".to_owned())
    }

    /// Whether it holds for this request; else why nobody can tell.
    pub fn holds(&self, _: &RequestHeader, _: &Context) -> Result<bool, String> {
        match self.0 {}
    }

    /// The fact that must be established before it is asked.
    #[must_use]
    pub fn needs(&self) -> Option<Fact> {
        match self.0 {}
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        match self.0 {}
    }
}

impl JsonSchema for Expression {
    fn schema_name() -> Cow<'static, str> {
        "Expression".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}
