//! `consumers`: a list, or the file that they are in.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use tollhouse_filters::identity::ConsumerSpec;

/// The consumers of a document.
#[derive(Debug, Clone)]
pub enum ConsumerList {
    /// In the document.
    Inline(Vec<ConsumerSpec>),
    /// In a file of their own.
    File(ConsumerFile),
}

/// Consumers in a file of their own.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerFile {
    /// JSON Lines: one consumer a line. A later line of the same name takes the place of the one before, and
    /// `{"name": "acme", "deleted": true}` ends one. Changes are live at once, without a reload.
    pub file: PathBuf,
}

impl Default for ConsumerList {
    fn default() -> Self {
        Self::Inline(Vec::new())
    }
}

impl<'de> Deserialize<'de> for ConsumerList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor)
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = ConsumerList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of consumers, or `{file: consumers.jsonl}`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<ConsumerList, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(ConsumerList::Inline)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ConsumerList, A::Error> {
        ConsumerFile::deserialize(MapAccessDeserializer::new(map)).map(ConsumerList::File)
    }
}

impl JsonSchema for ConsumerList {
    fn schema_name() -> Cow<'static, str> {
        "ConsumerList".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (list, file) =
            (generator.subschema_for::<Vec<ConsumerSpec>>(), generator.subschema_for::<ConsumerFile>());
        json_schema!({"description": "Who calls, in a list or in a file of their own.", "anyOf": [list, file]})
    }
}
