//! One written item of a filter list: `- headers: {..}` with its siblings, or `- chain: NAME`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use crate::tree::Raw;
use crate::when::WhenSpec;

/// One written item of a filter list.
#[derive(Debug, Clone)]
pub enum Item {
    /// The filters of a named chain, in its place.
    Chain(String),
    /// One filter.
    Filter(Box<FilterSpec>),
}

/// One written filter: its name, its options, and the siblings any filter takes.
#[derive(Debug, Clone)]
pub struct FilterSpec {
    /// The filter's name.
    pub filter: String,
    /// Its options, as written.
    pub options: Raw,
    /// The instance's name, kept over reloads.
    pub name: Option<String>,
    /// The condition under which it runs.
    pub when: Option<WhenSpec>,
    /// What happens when the filter fails.
    pub on_error: OnError,
    /// A guard may let requests pass when it fails.
    pub fail_open: bool,
    /// Evaluate, count and log, but never enforce.
    pub dry_run: bool,
}

/// What happens when a filter fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The request is answered 503 or 500.
    #[default]
    Fail,
    /// The request goes on as if the filter were not there.
    Continue,
}

/// The siblings any filter takes.
pub const SIBLINGS: [&str; 5] = ["name", "when", "on_error", "fail_open", "dry_run"];

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor)
    }
}

struct ItemVisitor;

#[derive(Default)]
struct Parts {
    chain: Option<String>,
    filter: Option<(String, Raw)>,
    name: Option<String>,
    when: Option<WhenSpec>,
    on_error: Option<OnError>,
    fail_open: Option<bool>,
    dry_run: Option<bool>,
}

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a filter such as `- request_id: {}` or a chain such as `- chain: edge`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let mut parts = Parts::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "chain" => parts.chain = Some(map.next_value()?),
                "name" => parts.name = Some(map.next_value()?),
                "when" => parts.when = Some(map.next_value()?),
                "on_error" => parts.on_error = Some(map.next_value()?),
                "fail_open" => parts.fail_open = Some(map.next_value()?),
                "dry_run" => parts.dry_run = Some(map.next_value()?),
                _ => match &parts.filter {
                    None => parts.filter = Some((key, map.next_value()?)),
                    Some((first, _)) => {
                        return Err(A::Error::custom(format!(
                            "one list item holds one filter, but `{first}` and `{key}` are here; start a new item with `-`"
                        )));
                    }
                },
            }
        }
        parts.finish()
    }
}

impl Parts {
    fn finish<E: Error>(self) -> Result<Item, E> {
        let siblings = self.name.is_some()
            || self.when.is_some()
            || self.on_error.is_some()
            || self.fail_open.is_some()
            || self.dry_run.is_some();
        match (self.chain, self.filter) {
            (Some(chain), None) if !siblings => Ok(Item::Chain(chain)),
            (Some(_), None) => {
                Err(E::custom("a chain takes no siblings; write them in the chain's own items"))
            }
            (Some(_), Some((filter, _))) => {
                Err(E::custom(format!("one list item holds a chain or the filter `{filter}`, not both")))
            }
            (None, None) => Err(E::custom("a filter's name is missing, as in `- request_id: {}`")),
            (None, Some((filter, options))) => Ok(Item::Filter(Box::new(FilterSpec {
                filter,
                options,
                name: self.name,
                when: self.when,
                on_error: self.on_error.unwrap_or_default(),
                fail_open: self.fail_open.unwrap_or_default(),
                dry_run: self.dry_run.unwrap_or_default(),
            }))),
        }
    }
}

/// The definition that the registry replaces by the filters that exist.
impl JsonSchema for Item {
    fn schema_name() -> Cow<'static, str> {
        "FilterItem".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let when = generator.subschema_for::<WhenSpec>();
        let on_error = generator.subschema_for::<OnError>();
        json_schema!({
            "type": "object",
            "description": "One filter with its options and siblings, or a chain.",
            "properties": {
                "chain": {"type": "string", "description": "The filters of this chain, in this place."},
                "name": {"type": "string", "description": "The instance's name, kept over reloads."},
                "when": when,
                "on_error": on_error,
                "fail_open": {"type": "boolean", "default": false, "description": "A guard may let requests pass when it fails."},
                "dry_run": {"type": "boolean", "default": false, "description": "Evaluate, count and log, but never enforce."},
            },
        })
    }
}
