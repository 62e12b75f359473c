//! The document as it took effect, without secrets: those the types know, and all that came from
//! outside the document.

use serde_json::{Map, Value as Json};
use tollhouse_filters::tree::{Node, Value};

/// What stands in a secret's place.
const HIDDEN: &str = "***";

/// A document as JSON; `schema` says which fields are secrets.
pub(super) fn redacted(root: &Node, schema: &Json) -> Json {
    Redactor { definitions: &schema["$defs"] }.node(root, &[schema])
}

struct Redactor<'a> {
    definitions: &'a Json,
}

impl<'a> Redactor<'a> {
    fn node(&self, node: &Node, schemas: &[&'a Json]) -> Json {
        let schemas: Vec<&Json> = schemas.iter().flat_map(|schema| self.resolve(schema, 0)).collect();
        match &node.value {
            Value::Null => Json::Null,
            Value::Scalar(scalar)
                if scalar.is_substituted() || schemas.iter().any(|schema| is_secret(schema)) =>
            {
                HIDDEN.into()
            }
            Value::Scalar(_) => serde_json::to_value(node).unwrap_or(Json::Null),
            Value::List(items) => {
                let below: Vec<&Json> = schemas.iter().filter_map(|schema| schema.get("items")).collect();
                items.iter().map(|item| self.node(item, &below)).collect()
            }
            Value::Map(entries) => {
                let mut map = Map::new();
                for (key, value) in entries {
                    let below: Vec<&Json> =
                        schemas.iter().flat_map(|schema| members(schema, &key.text)).collect();
                    map.insert(key.text.to_string(), self.node(value, &below));
                }
                Json::Object(map)
            }
        }
    }

    /// A schema and all it refers to or is made of.
    fn resolve(&self, schema: &'a Json, depth: usize) -> Vec<&'a Json> {
        let mut all = vec![schema];
        if depth > 8 {
            return all;
        }
        let name = schema
            .get("$ref")
            .and_then(Json::as_str)
            .and_then(|reference| reference.strip_prefix("#/$defs/"));
        all.extend(
            name.and_then(|name| self.definitions.get(name))
                .into_iter()
                .flat_map(|schema| self.resolve(schema, depth + 1)),
        );
        for key in ["allOf", "anyOf", "oneOf"] {
            let parts = schema.get(key).and_then(Json::as_array).into_iter().flatten();
            all.extend(parts.flat_map(|part| self.resolve(part, depth + 1)));
        }
        all
    }
}

/// What may stand under a key: the property of this name, or all that further keys may be. A map with names of
/// entities as its keys has a pattern for them.
fn members<'a>(schema: &'a Json, key: &str) -> Vec<&'a Json> {
    if let Some(property) = schema.get("properties").and_then(|properties| properties.get(key)) {
        return vec![property];
    }
    let patterns = schema.get("patternProperties").and_then(Json::as_object).into_iter();
    patterns.flat_map(Map::values).chain(schema.get("additionalProperties")).collect()
}

fn is_secret(schema: &Json) -> bool {
    schema.get("writeOnly") == Some(&Json::Bool(true))
}
