//! Passive health: backends are judged by what becomes of requests.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::values::{Duration, Percent};

/// Backends are judged by what becomes of requests; one that does badly gets none for a while, and then one request at
/// a time until one is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// As many failures in a row eject: no connection, no whole answer, a timeout, or a status of 500 or more. Default: `5`. Example: `3`.
    pub consecutive_failures: NonZeroU32,
    /// This share of failures within `window` ejects. Default: none. Example: `50%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_ratio: Option<Percent>,
    /// A latency that is as many times the median of the others' ejects. Default: none. Example: `5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_factor: Option<NonZeroU32>,
    /// Fewer requests within `window` say nothing about ratio and latency. Default: `20`. Example: `100`.
    pub min_requests: NonZeroU32,
    /// What ratio and latency look back at. Default: `10s`. Example: `30s`.
    pub window: Duration,
    /// How long a backend is ejected: as much again each time that it comes back and does badly. Default: `30s`. Example: `10s`.
    pub base_ejection: Duration,
    /// The longest ejection. Default: `5m`. Example: `1m`.
    pub max_ejection: Duration,
    /// The largest share of the backends that is ejected at the same time, one at least. Default: `50%`. Example: `30%`.
    pub max_ejected: Percent,
    /// With fewer usable backends than this share of those that can be connected to, ejected ones get requests too. Default: `50%`. Example: `0%`.
    pub panic_threshold: Percent,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: NonZeroU32::MIN.saturating_add(4),
            error_ratio: None,
            slow_factor: None,
            min_requests: NonZeroU32::MIN.saturating_add(19),
            window: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected: Percent::from_whole(50),
            panic_threshold: Percent::from_whole(50),
        }
    }
}
