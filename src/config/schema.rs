//! The JSON Schema of a document, made from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use tollhouse_filters::registry::Registry;

use super::Document;

/// The definition of a reference.
const REFERENCE: &str = "Reference";
/// Keywords that say something about a value, and not which one it may be.
const ABOUT: [&str; 4] = ["description", "default", "examples", "writeOnly"];

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
    for (name, definition) in definitions.as_object_mut().into_iter().flatten() {
        // A filter without options needs none, as in `- request_id:`.
        if name != "FilterItem" {
            refuse_null(definition);
        }
        admit_references(definition);
    }
    definitions[REFERENCE] = json!({
        "type": "string",
        "pattern": r"\$\{(env|file):",
        "description": "A text with a reference, which is replaced when the document is loaded.",
        "examples": ["${env:PORT:-8080}", "${file:token}"],
    });
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
    let may_be = |kind: &str| may_be(property, kind);
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

/// Whether the type of a value may be this one, as far as `type` says.
fn may_be(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::Array(kinds) => kinds.contains(&json!(kind)),
        one => *one == *kind,
    }
}

/// Takes away the null that is for a value which may be left out: then its key is left out.
fn refuse_null(schema: &mut Value) {
    let map = match schema {
        Value::Array(schemas) => return schemas.iter_mut().for_each(refuse_null),
        Value::Object(map) => map,
        _ => return,
    };
    map.values_mut().for_each(refuse_null);
    if let Some(Value::Array(kinds)) = map.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = &mut kinds[..] {
            let kind = kind.take();
            map.insert("type".to_owned(), kind);
        }
    }
    if let Some(Value::Array(alternatives)) = map.get_mut("anyOf") {
        alternatives.retain(|alternative| *alternative != json!({"type": "null"}));
        if let [Value::Object(only)] = &mut alternatives[..] {
            let only = std::mem::take(only);
            map.remove("anyOf");
            for (keyword, value) in only {
                map.entry(keyword).or_insert(value);
            }
        }
    }
}

/// Lets a reference stand, alone or in a text, wherever a number, a choice or a text of some form is wanted: what
/// comes of it is not known before the document is loaded.
fn admit_references(schema: &mut Value) {
    admit_below(schema);
    if !refuses_references(schema) {
        return;
    }
    let Value::Object(map) = schema else { return };
    let (about, rules): (Map<String, Value>, Map<String, Value>) =
        std::mem::take(map).into_iter().partition(|(key, _)| ABOUT.contains(&key.as_str()));
    *map = about;
    map.insert("anyOf".to_owned(), json!([rules, {"$ref": format!("#/$defs/{REFERENCE}")}]));
}

fn admit_below(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for (keyword, below) in map {
        match (keyword.as_str(), below) {
            ("properties" | "patternProperties", Value::Object(below)) => {
                below.values_mut().for_each(admit_references);
            }
            ("items" | "additionalProperties", below) => admit_references(below),
            // These are about the value itself: it is one of them, or a reference instead.
            ("anyOf" | "oneOf" | "allOf", Value::Array(below)) => below.iter_mut().for_each(admit_below),
            _ => {}
        }
    }
}

/// Whether a scalar is wanted that the text of a reference is not; what is referred to is looked at in its own place.
fn refuses_references(schema: &Value) -> bool {
    if is_limited(schema) {
        return true;
    }
    if takes_any_text(schema) || alternatives(schema).any(takes_any_text) {
        return false;
    }
    let is_plain = ["integer", "number", "boolean"].into_iter().any(|kind| may_be(schema, kind));
    is_plain || alternatives(schema).any(refuses_references)
}

fn takes_any_text(schema: &Value) -> bool {
    may_be(schema, "string") && !is_limited(schema)
}

/// Whether not every text will do. The only number, `version`, is not given by a reference.
fn is_limited(schema: &Value) -> bool {
    schema["const"].is_string() || ["enum", "pattern"].into_iter().any(|key| schema.get(key).is_some())
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].into_iter().filter_map(move |key| schema[key].as_array()).flatten()
}
