//! `admin`: the admin listener.

use std::borrow::Cow;
use std::net::SocketAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use tollhouse_filters::values::Secret;

/// The admin listener: health, metrics and the API. Changes of the address need an upgrade.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// `ADDRESS:PORT`, or `none`; 127.0.0.1:9900 by default.
    pub address: AdminAddress,
    /// The bearer token; needed for changes of any kind, for `/api/revocations` and `/api/cache/lookup`, and off
    /// loopback for all but `/healthz` and `/readyz`.
    pub token: Option<Secret>,
}

/// Where the admin listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminAddress {
    /// Nowhere.
    None,
    /// Here.
    At(SocketAddr),
}

impl Default for AdminAddress {
    fn default() -> Self {
        Self::At(SocketAddr::from(([127, 0, 0, 1], 9900)))
    }
}

impl<'de> Deserialize<'de> for AdminAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "none" => Ok(Self::None),
            _ => text
                .parse()
                .map(Self::At)
                .map_err(|_| de::Error::custom("expected an address such as `127.0.0.1:9900`, or `none`")),
        }
    }
}

/// As written, for the schema's default.
impl serde::Serialize for AdminAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::At(address) => serializer.collect_str(address),
        }
    }
}

impl JsonSchema for AdminAddress {
    fn schema_name() -> Cow<'static, str> {
        "AdminAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "default": "127.0.0.1:9900", "examples": ["127.0.0.1:9900", "none"]})
    }
}
