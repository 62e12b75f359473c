//! The JSON Schema: the committed one is the program's, complete, and as strict as the program.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::{project, read, yaml_files};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| tollhouse::config::schema(&tollhouse_filters::builtin()));

static VALIDATOR: LazyLock<jsonschema::Validator> =
    LazyLock::new(|| jsonschema::validator_for(&SCHEMA).expect("a valid schema"));

pub(crate) fn schema() -> &'static Value {
    &SCHEMA
}

pub(crate) fn validator() -> &'static jsonschema::Validator {
    &VALIDATOR
}

#[test]
fn the_committed_schema_is_the_one_of_the_program() {
    let committed: Value = serde_json::from_str(&read(&project("conf/schema.json"))).expect("JSON");
    assert!(committed == *schema(), "conf/schema.json is old; run `make schema`");
}

#[test]
fn every_example_is_valid() {
    let mut files = yaml_files("conf/examples");
    files.push(project("conf/tollhouse.yaml"));
    for path in files {
        let document: Value = serde_yaml::from_str(&read(&path)).expect("YAML");
        let errors: Vec<String> = validator()
            .iter_errors(&document)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
}

#[test]
fn every_property_says_what_it_means() {
    let mut silent = Vec::new();
    walk("#", schema(), &mut |place, property| {
        if describe(property).is_none_or(|text| text.len() < 8) {
            silent.push(place.to_owned());
        }
    });
    assert!(silent.is_empty(), "no description: {silent:#?}");
}

#[test]
fn every_property_is_required_or_has_a_default() {
    let mut neither = Vec::new();
    let definitions = schema()["$defs"].as_object().expect("definitions");
    let all = definitions.iter().map(|(name, schema)| (name.as_str(), schema)).chain([("#", schema())]);
    for (name, definition) in all.filter(|(name, _)| *name != "FilterItem") {
        let required = definition["required"].as_array().cloned().unwrap_or_default();
        let properties = definition["properties"].as_object().into_iter().flatten();
        neither.extend(
            properties
                .filter(|(key, property)| {
                    !required.contains(&Value::from(key.as_str())) && property.get("default").is_none()
                })
                .map(|(key, _)| format!("{name}.{key}")),
        );
    }
    assert!(neither.is_empty(), "neither required nor with a default: {neither:?}");
}

#[test]
fn every_object_refuses_keys_it_does_not_know() {
    let definitions = schema()["$defs"].as_object().expect("definitions");
    let mut open: Vec<&str> = Vec::new();
    let all = definitions.iter().map(|(name, schema)| (name.as_str(), schema)).chain([("#", schema())]);
    for (name, definition) in all {
        let is_closed = definition["additionalProperties"] == Value::Bool(false);
        if definition.get("properties").is_some() && !is_closed {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} accept any key");
}

#[test]
fn a_reference_may_stand_for_every_kind_of_scalar() {
    let errors = |text: &str| {
        let document: Value = serde_yaml::from_str(text).expect("YAML");
        let errors = validator().iter_errors(&document).map(|error| error.instance_path().to_string());
        let mut errors: Vec<String> = errors.collect();
        errors.sort();
        errors
    };
    let with_references = r#"
version: 1
server:
  threads: "${env:THREADS:-auto}"
  drain: "${env:DRAIN}s"
  limits: {header_count: "${env:COUNT}", connections_per_ip: "${env:MOST}", body_bytes: "${file:most}"}
listeners: [{name: "${env:NAME}", address: "127.0.0.1:${env:PORT:-8080}", protocols: ["${env:PROTOCOL}"]}]
upstreams:
  - name: a
    backends: [{address: "${env:HOST}:80", weight: "${env:WEIGHT}"}]
    tls: {verify: "${env:VERIFY}"}
    health: {active: {type: "${env:KIND}", expect: ["${env:STATUS}"]}}
    retries: {conditions: ["${env:ON}"], methods: "${env:METHODS}"}
routes: [{name: r, match: {paths: ["${env:PATTERN}"]}, split: {to: {a: "${env:SHARE}"}}}]
"#;
    assert_eq!(errors(with_references), Vec::<String>::new());
    // Neither what is filled in for each request, nor where no scalar is.
    let without = r#"
version: "${env:VERSION}"
server: {threads: "${client.address}", drain: "$ {env:DRAIN}"}
listeners: "${env:LISTENERS}"
"#;
    assert_eq!(errors(without), ["/listeners", "/server/drain", "/server/threads", "/version"]);
    let definition = json!({"$ref": "#/$defs/Reference"});
    assert_eq!(schema()["$defs"]["Duration"]["anyOf"][1], definition, "the other rules stay beside it");
}

#[test]
fn a_key_without_a_value_is_refused_unless_it_names_a_filter() {
    let is_valid = |text: &str| validator().is_valid(&serde_yaml::from_str(text).expect("YAML"));
    let document = "version: 1\nlisteners: [{name: main, address: '127.0.0.1:0'}]\n";
    for (rest, expected) in [
        ("upstreams: [{name: a, backends: [{address: '127.0.0.1:1'}]}]", true),
        ("upstreams: [{name: a, backends: [{address: '127.0.0.1:1'}], tls: ~}]", false),
        ("upstreams: [{name: a, backends: [{address: '127.0.0.1:1'}], circuit_breaker: ~}]", false),
        ("routes: [{name: r, upstream: ~}]", false),
        ("routes: [{name: r, respond: ~}]", false),
        ("routes: [{name: r, filters: [{request_id: ~}], respond: {}}]", true),
    ] {
        assert_eq!(is_valid(&format!("{document}{rest}\n")), expected, "{rest}");
    }
}

#[test]
fn secrets_are_for_writing_only() {
    let token = &schema()["$defs"]["Admin"]["properties"]["token"];
    let token = token["anyOf"].as_array().map_or(token, |any| &any[0]);
    let secret = token["$ref"].as_str().map_or(token, |reference| {
        schema().pointer(reference.trim_start_matches('#')).expect("a definition")
    });
    assert_eq!(secret["writeOnly"], true, "{secret}");
}

/// Visits every property, below definitions too.
fn walk(place: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    let Value::Object(map) = schema else { return };
    for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let place = format!("{place}.{name}");
        visit(&place, property);
        walk(&place, property, visit);
    }
    for (name, definition) in map.get("$defs").and_then(Value::as_object).into_iter().flatten() {
        walk(name, definition, visit);
    }
}

/// A property's own description, or that of what it refers to.
fn describe(property: &Value) -> Option<&str> {
    let own = property["description"].as_str();
    own.or_else(|| {
        let reference = property["$ref"].as_str()?;
        schema().pointer(reference.trim_start_matches('#'))?["description"].as_str()
    })
}
