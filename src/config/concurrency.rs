//! How many requests may be under way, as the user writes it.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::Duration;

/// Requests that may be under way at the same time; more wait for their turn, first come, first served, or are refused
/// with 503 and `Retry-After`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamConcurrency")]
pub struct Concurrency {
    /// Requests under way, to the end of their answers. Required. Example: `512`.
    pub in_flight: NonZeroU32,
    /// Requests that wait; 0 refuses at once. Default: `0`. Example: `128`.
    #[serde(default)]
    pub queue: u32,
    /// How long a request waits at most. Default: `250ms`. Example: `1s`.
    #[serde(default = "quarter_second")]
    pub max_wait: Duration,
}

fn quarter_second() -> Duration {
    Duration::from_millis(250)
}
