//! The filters that exist, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::{Schema, SchemaGenerator};
use serde_json::json;

use crate::filter::{Build, BuildError, Filter};
use crate::phase::Phases;
use crate::tree::{self, Node, Value};

type BuildFn = fn(&Arc<Node>, &mut Build<'_>) -> Result<Phases, Vec<BuildError>>;

/// One registered filter.
pub struct Entry {
    /// What users write.
    pub name: &'static str,
    /// See [`Filter::GUARD`].
    pub guard: bool,
    /// See [`Filter::DECIDES`].
    pub decides: bool,
    build: BuildFn,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Entry {
    /// Parses the options and builds the phases; on failure, every problem of the options.
    pub fn build(&self, options: &Arc<Node>, build: &mut Build<'_>) -> Result<Phases, Vec<BuildError>> {
        (self.build)(options, build)
    }
}

/// The filters that exist, by name; start from [`crate::builtin`] and add your own.
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<&'static str, Entry>,
}

impl Registry {
    /// No filters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a filter; a later one of the same name replaces an earlier one.
    #[must_use]
    pub fn with<F: Filter + 'static>(mut self) -> Self {
        let entry = Entry {
            name: F::NAME,
            guard: F::GUARD,
            decides: F::DECIDES,
            build: build::<F>,
            schema: |generator| generator.subschema_for::<F::Options>(),
        };
        self.entries.insert(F::NAME, entry);
        self
    }

    /// The filter of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.entries.keys().copied()
    }

    /// Completes the schema of a filter item with the filters that exist.
    pub fn complete_schema(&self, item: &mut serde_json::Value, generator: &mut SchemaGenerator) {
        let Some(properties) = item.get_mut("properties").and_then(serde_json::Value::as_object_mut) else {
            return;
        };
        for entry in self.entries.values() {
            let options = serde_json::Value::from((entry.schema)(generator));
            let name = options["$ref"].as_str().and_then(|reference| reference.rsplit('/').next());
            let options_schema = name.and_then(|name| generator.definitions().get(name));
            let description =
                options_schema.map_or(serde_json::Value::Null, |all| all["description"].clone());
            // `- request_id:` is `- request_id: {}`.
            let property = json!({"description": description, "anyOf": [options, {"type": "null"}]});
            properties.insert(entry.name.to_owned(), property);
        }
        let one_of: Vec<serde_json::Value> =
            std::iter::once("chain").chain(self.names()).map(|name| json!({"required": [name]})).collect();
        item["oneOf"] = one_of.into();
        item["additionalProperties"] = false.into();
    }
}

fn build<F: Filter>(options: &Arc<Node>, build: &mut Build<'_>) -> Result<Phases, Vec<BuildError>> {
    // `- request_id:` is `- request_id: {}`.
    let empty = matches!(options.value, Value::Null).then(|| Node::map(Vec::new(), options.at));
    let options = empty.as_ref().unwrap_or(options);
    let options = tree::from_node_all::<F::Options>(options).map_err(|errors| {
        errors
            .into_iter()
            .map(|error| BuildError { path: error.path, message: error.message, hint: error.hint })
            .collect::<Vec<_>>()
    })?;
    F::build(options, build).map_err(|error| vec![error])
}
