//! `routes`: which requests, and what to do with them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::condition::{MethodName, ValueMatch};
use tollhouse_filters::host::HostPattern;
use tollhouse_filters::path::PathPattern;
use tollhouse_filters::plan::Priority;
use tollhouse_filters::spec::Item;
use tollhouse_filters::tree::Raw;
use tollhouse_filters::values::{Duration, FieldName, Timeout};

use super::concurrency::Concurrency;
use super::hedge::Hedge;
use super::retries::RouteRetries;
use super::{Name, Split};

/// Which requests, and what to do with them: exactly one of `upstream`, `split`, `respond` and
/// `redirect`, or what the service gives.
// There may be many thousand, so what few of them have is boxed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name: the metric label, and what explain prints.
    pub name: Name,
    /// The API it belongs to; inherits its filters, versions and upstream.
    #[serde(default)]
    pub service: Option<Name>,
    /// Which requests; every one, when nothing is written.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// Filters, after the listener's and the service's.
    #[serde(default)]
    pub filters: Vec<Item>,
    /// Sends the request to this upstream.
    #[serde(default)]
    pub upstream: Option<Name>,
    /// Sends a share of the requests to each of several upstreams or versions.
    #[serde(default)]
    pub split: Option<Box<Split>>,
    /// Answers with a fixed or templated message; options as of the filter `respond`.
    #[serde(default)]
    pub respond: Option<Raw>,
    /// Sends the client elsewhere; options as of the filter `redirect`.
    #[serde(default)]
    pub redirect: Option<Raw>,
    /// Timeouts instead of the upstream's.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// Retries instead of the upstream's; the budget stays the upstream's.
    #[serde(default)]
    pub retries: Option<Box<RouteRetries>>,
    /// A hedge instead of the upstream's; `max: 0` is none.
    #[serde(default)]
    pub hedge: Option<Box<Hedge>>,
    /// Which requests are refused first while the gateway has too much to do (`server.overload`): `low` ones, then
    /// `normal`, then `high` ones; `critical` ones never are.
    #[serde(default)]
    pub priority: Priority,
    /// How many requests of the route may be under way to its upstream, besides what the upstream allows.
    #[serde(default)]
    pub concurrency: Option<Box<Concurrency>>,
    /// Forwards on the connections themselves what can be; `false` takes all of it through Pingora's proxy, which costs
    /// twice the CPU time. Default: `true`.
    #[serde(default = "yes")]
    pub direct: bool,
}

const fn yes() -> bool {
    true
}

/// Which requests a route takes; all that is written must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Came in through one of these listeners.
    pub listeners: Option<Vec<Name>>,
    /// Asks for one of these hosts; `*.` stands for one or more labels.
    #[serde(deserialize_with = "tollhouse_filters::values::at_least_one")]
    pub hosts: Vec<HostPattern>,
    /// Has a path that one of these patterns matches.
    #[serde(deserialize_with = "tollhouse_filters::values::at_least_one")]
    pub paths: Vec<PathPattern>,
    /// Has one of these methods.
    #[serde(deserialize_with = "tollhouse_filters::values::at_least_one")]
    pub methods: Vec<MethodName>,
    /// Each of these header fields matches.
    #[serde(deserialize_with = "tollhouse_filters::values::fields")]
    pub headers: BTreeMap<FieldName, ValueMatch>,
    /// Each of these query parameters matches.
    pub query: BTreeMap<String, ValueMatch>,
    /// Each of these cookies matches.
    pub cookies: BTreeMap<String, ValueMatch>,
}

/// Timeouts of a route instead of its upstream's, in either direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// To connect to a backend.
    pub connect: Option<Duration>,
    /// Between two reads of the response, first byte included.
    pub read: Option<Timeout>,
    /// From the request's head to the end of the answer; not for upgrades and streams of events.
    pub total: Option<Timeout>,
}
