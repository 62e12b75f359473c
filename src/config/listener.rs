//! `listeners`: addresses that requests come in through.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::spec::Item;

use super::{Address, Name};

/// An address that requests come in through.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name.
    pub name: Name,
    /// `ADDRESS:PORT`, `[ADDRESS]:PORT` or `unix:/path`.
    pub address: Address,
    /// What may be spoken here.
    #[serde(default = "both")]
    pub protocols: Vec<Protocol>,
    /// Filters for every request on this listener; they run first.
    #[serde(default)]
    pub filters: Vec<Item>,
}

/// A protocol spoken by clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/1.0.
    #[serde(rename = "http/1.1")]
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    #[serde(rename = "h2c")]
    H2c,
}

fn both() -> Vec<Protocol> {
    vec![Protocol::Http1, Protocol::H2c]
}
