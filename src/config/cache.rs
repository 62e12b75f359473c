//! `server.cache`: what the filter `cache` stores, and where.

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::ByteSize;

/// Where the filter `cache` keeps answers: one place for the process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Memory for stored answers, with all that it takes to keep and find them.
    pub memory: ByteSize,
}

impl Default for Cache {
    fn default() -> Self {
        Self { memory: ByteSize::from_bytes(256 << 20) }
    }
}
