//! Expressions in CEL, the Common Expression Language, over what is known of a request and who sent it.
//!
//! They are compiled with the document: what is no expression, or names what does not exist, is an error of the
//! document at its place. Evaluating one is bounded: its own size and depth are, patterns of `matches` are
//! compiled with it and take linear time, and all loops of one evaluation together take [`STEPS`] steps at most. An
//! evaluation that fails, as one of a claim that is not there, decides nothing, which its user takes for a no.

mod check;
mod evaluate;
mod facts;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use cel::parser::Expression as Tree;
use pingora_http::RequestHeader;
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::context::Context;
use crate::filter::Fact;

/// Steps that the loops of one evaluation take together.
pub const STEPS: u32 = 1000;
/// The longest expression, in bytes.
const LONGEST: usize = 4096;

/// An expression, compiled.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

struct Compiled {
    text: Box<str>,
    tree: Tree,
    /// What it reads, so that nothing else is made ready.
    reads: Vec<facts::Root>,
    /// Of its calls of `matches`.
    patterns: Arc<[Regex]>,
}

impl Expression {
    /// Compiles an expression; the message says what is wrong, and where in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("expected an expression of at most {LONGEST} bytes"));
        }
        check::compile(text).map(|compiled| Self(Arc::new(compiled)))
    }

    /// Whether it holds for this request; else why nobody can tell.
    pub fn holds(&self, request: &RequestHeader, ctx: &Context) -> Result<bool, String> {
        evaluate::evaluate(&self.0, request, ctx)
    }

    /// The fact that must be established before it is asked.
    #[must_use]
    pub fn needs(&self) -> Option<Fact> {
        let of_caller = |root: &facts::Root| matches!(root.name, "consumer" | "claims");
        self.0.reads.iter().any(of_caller).then_some(Fact::Consumer)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({})", self.0.text)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.text)
    }
}

impl JsonSchema for Expression {
    fn schema_name() -> Cow<'static, str> {
        "Expression".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An expression in CEL over `request`, `client`, `consumer`, `claims`, `listener`, `route` and `service`.",
            "examples": ["request.method == 'GET' || 'admin' in claims.roles"],
        })
    }
}
