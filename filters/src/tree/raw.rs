//! A sub-tree kept as it is, for somebody who knows its type later.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Formatter};
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Key, Mark, Node, Scalar, from_node};

/// The newtype name by which [`Raw`] asks our deserializer for the node itself.
pub(super) const NODE: &str = "$node";

/// A sub-tree with its marks, such as a filter's options before the filter is known.
///
/// Read from our own deserializer it is the node itself, shared. Any other deserializer (JSON, or a
/// serde attribute that buffers) gives the same data without places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw(pub Arc<Node>);

thread_local! {
    /// The node on its way from the deserializer to the visitor, for the length of one call.
    static HANDED: Cell<Option<Arc<Node>>> = const { Cell::new(None) };
}

/// Calls `take`, during which [`Raw`] finds the node.
pub(super) fn hand_over<T>(node: &Arc<Node>, take: impl FnOnce() -> T) -> T {
    HANDED.set(Some(Arc::clone(node)));
    let result = take();
    HANDED.set(None);
    result
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_newtype_struct(NODE, Handed).map(Raw)
    }
}

impl JsonSchema for Raw {
    fn schema_name() -> Cow<'static, str> {
        "Any".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!(true)
    }
}

struct Handed;

impl<'de> Visitor<'de> for Handed {
    type Value = Arc<Node>;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Arc<Node>, E> {
        Ok(HANDED.take().unwrap_or_else(|| Node::null(Mark::default())))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, source: D) -> Result<Arc<Node>, D::Error> {
        source.deserialize_any(Built)
    }
}

/// Builds a tree from any format.
struct Built;

impl<'de> Visitor<'de> for Built {
    type Value = Arc<Node>;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Arc<Node>, E> {
        Ok(Node::null(Mark::default()))
    }

    fn visit_none<E>(self) -> Result<Arc<Node>, E> {
        Ok(Node::null(Mark::default()))
    }

    fn visit_some<D: Deserializer<'de>>(self, source: D) -> Result<Arc<Node>, D::Error> {
        source.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Arc<Node>, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Arc<Node>, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Arc<Node>, E> {
        Ok(plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Arc<Node>, E> {
        Ok(plain(match value {
            f64::INFINITY => ".inf".to_owned(),
            f64::NEG_INFINITY => "-.inf".to_owned(),
            _ if value.is_nan() => ".nan".to_owned(),
            _ => format!("{value:?}"),
        }))
    }

    fn visit_str<E>(self, text: &str) -> Result<Arc<Node>, E> {
        Ok(Node::string(text, Mark::default()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Arc<Node>, A::Error> {
        let mut items = Vec::new();
        while let Some(Raw(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::list(items, Mark::default()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Arc<Node>, A::Error> {
        let mut entries: Vec<(Key, Arc<Node>)> = Vec::new();
        while let Some((text, Raw(node))) = map.next_entry::<Box<str>, Raw>()? {
            if entries.iter().any(|(key, _)| *key.text == *text) {
                return Err(A::Error::custom(format_args!("duplicate key `{text}`")));
            }
            entries.push((Key { text: text.into(), at: Mark::default() }, node));
        }
        Ok(Node::map(entries, Mark::default()))
    }
}

fn plain(text: String) -> Arc<Node> {
    Node::scalar(Scalar::plain(text), Mark::default())
}

impl Raw {
    /// Reads the sub-tree into a type; paths start at the sub-tree.
    ///
    /// # Errors
    /// As [`from_node`].
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, super::Error> {
        from_node(&self.0)
    }
}
