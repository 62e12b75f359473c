//! The JSON Schema of a document, made from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use tollhouse_filters::registry::Registry;

use super::Document;

/// The JSON Schema of a document that may use these filters.
#[must_use]
pub fn schema(registry: &Registry) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut root = Value::from(generator.subschema_for::<Document>());
    let mut item = generator.definitions().get("FilterItem").cloned().unwrap_or_else(|| json!({}));
    registry.complete_schema(&mut item, &mut generator);
    let respond = item["properties"]["respond"].clone();
    let redirect = item["properties"]["redirect"].clone();
    let mut definitions = Value::Object(generator.take_definitions(true));
    definitions["FilterItem"] = item;
    for (key, options) in [("respond", respond), ("redirect", redirect)] {
        if options.is_null() {
            continue;
        }
        let description = definitions["Route"]["properties"][key]["description"].clone();
        definitions["Route"]["properties"][key] =
            json!({"description": description, "default": null, "allOf": [options]});
    }
    complete_defaults(&mut definitions);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("Tollhouse configuration");
    root["$defs"] = definitions;
    root
}

/// Writes the defaults that follow from the types: nothing, an empty list, an empty map.
fn complete_defaults(definitions: &mut Value) {
    let names: Vec<String> =
        definitions.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect();
    // A filter's name in an item is no setting with a default.
    for name in names.iter().filter(|name| *name != "FilterItem") {
        let implied = implied_defaults(&definitions[name], definitions);
        set_defaults(&mut definitions[name], implied);
    }
}

/// Properties that may be left out and do not say what happens then.
fn implied_defaults(schema: &Value, definitions: &Value) -> Vec<(String, Value)> {
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties
        .filter(|(key, property)| !required.contains(&json!(key)) && property.get("default").is_none())
        .filter_map(|(key, property)| Some((key.clone(), implied(property, definitions)?)))
        .collect()
}

fn implied(property: &Value, definitions: &Value) -> Option<Value> {
    let null = json!({"type": "null"});
    let may_be = |kind: &str| match &property["type"] {
        Value::Array(kinds) => kinds.contains(&json!(kind)),
        one => *one == *kind,
    };
    if may_be("null") || property["anyOf"].as_array().is_some_and(|any| any.contains(&null)) {
        return Some(Value::Null);
    }
    if may_be("array") {
        return Some(json!([]));
    }
    let name = property["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/"));
    let is_map = name.is_some_and(|name| definitions[name]["type"] == "object");
    (may_be("object") || is_map).then(|| json!({}))
}

fn set_defaults(schema: &mut Value, defaults: Vec<(String, Value)>) {
    for (key, default) in defaults {
        schema["properties"][key]["default"] = default;
    }
}
