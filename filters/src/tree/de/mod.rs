//! Reading a tree into types: a serde deserializer that knows where everything stands.

mod access;
mod fault;

use std::sync::Arc;

use serde::de::{self, DeserializeOwned, Deserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::collect::Prune;
use super::raw::{self, NODE};
use super::scalar::resolve;
use super::{Error, Node, Resolved, Scalar, Value};
use access::{Entries, Items, Variant};
pub(super) use fault::{Class, Fault, Located};

/// Name of a newtype struct whose text no message quotes, wherever it came from:
/// `#[serde(rename = "$secret")] struct Secret(String)`.
pub const SECRET: &str = "$secret";

/// Reads a node into a type.
///
/// Substituted scalars are strings, numbers or booleans as wanted; a plain `8080` where a string is
/// wanted is an error that says to quote it.
///
/// # Errors
/// The first problem, with the innermost place and the path from `node`.
pub fn from_node<T: DeserializeOwned>(node: &Arc<Node>) -> Result<T, Error> {
    attempt(node, None).map_err(|located| located.error)
}

/// As [`from_node`], passing over what was pruned.
pub(super) fn attempt<T>(node: &Arc<Node>, prune: Option<&Prune>) -> Result<T, Box<Located>>
where
    T: DeserializeOwned,
{
    let source = NodeDe { node, prune, hidden: false };
    T::deserialize(source).map_err(|fault| Box::new(fault.locate(node, false).finish()))
}

/// All requests for a number take the same way.
macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number(visitor)
        }
    )*};
}
use numbers;

#[derive(Clone, Copy)]
struct NodeDe<'a> {
    node: &'a Arc<Node>,
    prune: Option<&'a Prune>,
    /// Whether messages must not quote the text.
    hidden: bool,
}

impl<'a> NodeDe<'a> {
    fn located<T>(self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| Fault::from(fault.locate(self.node, self.hidden)))
    }

    fn visit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Scalar(scalar) => visit_scalar(scalar, visitor),
            Value::List(items) => visitor.visit_seq(Items::new(items, self.prune)),
            Value::Map(entries) => visitor.visit_map(Entries::new(entries, self.prune)),
        };
        self.located(result)
    }

    fn number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.as_scalar() {
            Some(scalar) if scalar.is_substituted() => {
                self.located(visit_flexible_number(scalar.text(), visitor))
            }
            _ => self.visit(visitor),
        }
    }

    fn boolean<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.as_scalar() {
            Some(scalar) if scalar.is_substituted() => {
                let result = match resolve(scalar.text().trim()) {
                    Resolved::Bool(value) => visitor.visit_bool(value),
                    _ => Err(de::Error::invalid_type(Unexpected::Str(scalar.text()), &visitor)),
                };
                self.located(result)
            }
            _ => self.visit(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for NodeDe<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            // What was to be its value may be commented out, or not be indented enough.
            Value::Null => {
                self.located(Err(de::Error::custom("has no value: leave the key out, or give it one")))
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match name {
            NODE => self.located(raw::hand_over(self.node, || visitor.visit_unit())),
            SECRET => {
                let hidden = NodeDe { hidden: true, ..self };
                hidden.located(visitor.visit_newtype_struct(hidden))
            }
            _ => self.located(visitor.visit_newtype_struct(self)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let result = match &self.node.value {
            Value::Scalar(scalar) if matches!(scalar.resolve(), Resolved::Str) => {
                visitor.visit_enum(Variant::Unit(scalar.text()))
            }
            Value::Map(entries) => Entries::new(entries, self.prune).only().map_or_else(
                || Err(Fault::not_one_key(variants)),
                |(key, node, prune)| visitor.visit_enum(Variant::Tagged { key, node, prune }),
            ),
            _ => Err(Fault::no_variant(variants, fault::kind_of(self.node))),
        };
        self.located(result)
    }

    /// serde would fill a struct from a list by position; what a user writes has keys.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(_) => self.located(Err(de::Error::invalid_type(Unexpected::Seq, &visitor))),
            Value::Map(entries) => self.located(visitor.visit_map(Entries::of_fields(entries, self.prune))),
            _ => self.visit(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.located(visitor.visit_unit())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.boolean(visitor)
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
    }
}

fn visit_scalar<'a, V: Visitor<'a>>(scalar: &'a Scalar, visitor: V) -> Result<V::Value, Fault> {
    if scalar.is_unresolved() {
        return Err(de::Error::custom("a reference in it could not be resolved"));
    }
    match scalar.resolve() {
        Resolved::Null => visitor.visit_unit(),
        Resolved::Bool(value) => visitor.visit_bool(value),
        Resolved::Unsigned(value) => visitor.visit_u64(value),
        Resolved::Signed(value) => visitor.visit_i64(value),
        Resolved::Float(value) => visitor.visit_f64(value),
        Resolved::Str => visitor.visit_borrowed_str(scalar.text()),
    }
}

/// Reads text that may be a number as one: substituted scalars and keys.
fn visit_flexible_number<'a, V: Visitor<'a>>(text: &str, visitor: V) -> Result<V::Value, Fault> {
    match resolve(text.trim()) {
        Resolved::Unsigned(value) => visitor.visit_u64(value),
        Resolved::Signed(value) => visitor.visit_i64(value),
        Resolved::Float(value) => visitor.visit_f64(value),
        _ => Err(de::Error::invalid_type(Unexpected::Str(text), &visitor)),
    }
}
