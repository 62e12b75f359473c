//! How many requests may be under way, as the user writes it.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Percent};

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
    /// Finds out how many of these places the upstream can do with, by how long it takes to answer. Default: none, all are given. Example: `{min: 10}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<Adaptive>,
}

/// How many places are given is found out: more and more, as long as answers come about as quickly as they can, and fewer
/// once requests queue up at the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adaptive {
    /// The fewest places, and how many there are to begin with. Default: `3`. Example: `10`.
    pub min: NonZeroU32,
    /// How long answers are collected before the number changes. Default: `100ms`. Example: `1s`.
    pub window: Duration,
    /// How much longer than the quickest answers may take. Default: `25%`. Example: `50%`.
    pub tolerance: Percent,
    /// How often the quickest is measured anew, with half of the places. Default: `1m`. Example: `5m`.
    pub calibrate: Duration,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            min: NonZeroU32::MIN.saturating_add(2),
            window: Duration::from_millis(100),
            tolerance: Percent::from_whole(25),
            calibrate: Duration::from_secs(60),
        }
    }
}

impl Concurrency {
    /// What is wrong with it, and where.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let adaptive = self.adaptive.as_ref().filter(|adaptive| adaptive.min > self.in_flight)?;
        let message = format!("is more than `in_flight`: {} places of {}", adaptive.min, self.in_flight);
        Some(("adaptive.min", message))
    }
}

fn quarter_second() -> Duration {
    Duration::from_millis(250)
}
