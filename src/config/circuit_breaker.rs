//! Circuit breakers, as the user writes them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, FieldName, Percent};

use super::Name;

/// When an upstream is left alone: requests are refused with 503 and `Retry-After` while the breaker is open. A request counts
/// once, with all of its attempts; it failed if it had no answer, or one of 500 or more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Opens when this share of the requests in the window failed. Default: `50%`. Example: `20%`.
    pub error_ratio: Percent,
    /// What takes as long to the head of its answer is slow; needs `slow_ratio`. Default: none. Example: `2s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<Duration>,
    /// Opens when this share of the requests in the window was slow; needs `slow`. Default: none. Example: `80%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_ratio: Option<Percent>,
    /// Fewer requests in the window say nothing. Default: `20`. Example: `100`.
    pub min_requests: NonZeroU32,
    /// How long back it looks. Default: `10s`. Example: `30s`.
    pub window: Duration,
    /// How long it stays open. Default: `10s`. Example: `5s`.
    pub open: Duration,
    /// Requests that are let pass then; if all are answered, it closes, and if one fails or is slow, it opens anew. Default: `3`. Example: `1`.
    pub half_open: NonZeroU32,
    /// What happens in the place of the 503: another route's action, a stored answer, or one that is written here. Default: none. Example: `{status: 200, body: "[]"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// What happens to a request whose upstream is left alone: one of `route`, `stale` and an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// A route, whose `upstream`, `respond` or `redirect` takes the request as the filters so far left it; its own filters do not run. Default: none. Example: `users-standby`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Name>,
    /// Whether the route's `cache` answers with what it has, however old, unless the origin forbade that (`must-revalidate`, `no-cache`). Default: `false`. Example: `true`.
    #[serde(default)]
    pub stale: bool,
    /// The status of an answer, from 200 to 599. Default: `200`. Example: `203`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// Its fields. Default: none. Example: `{content-type: application/json}`.
    #[serde(default, deserialize_with = "tollhouse_filters::values::fields")]
    pub headers: BTreeMap<FieldName, String>,
    /// Its content. Default: none. Example: `"[]"`.
    #[serde(default)]
    pub body: String,
}

impl Fallback {
    /// Whether it is an answer that is written here.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        self.route.is_none() && !self.stale
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            error_ratio: Percent::from_whole(50),
            slow: None,
            slow_ratio: None,
            min_requests: NonZeroU32::MIN.saturating_add(19),
            window: Duration::from_secs(10),
            open: Duration::from_secs(10),
            half_open: NonZeroU32::MIN.saturating_add(2),
            fallback: None,
        }
    }
}
