//! How one of an upstream's backends is chosen, as the user writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::selector::Selector;

/// How a backend is chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// The rule by which a backend is chosen, within the weights. Default: `round_robin`. Example: `least_requests`.
    pub algorithm: Algorithm,
    /// What `consistent_hash` goes by, which needs it; a request without it goes to any backend. Default: none. Example: `header:x-user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<Selector>,
}

/// The rule by which a backend is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Each in turn, the turns of a heavy one spread over the round.
    #[default]
    RoundRobin,
    /// Any one.
    Random,
    /// The one with the fewest requests in flight for its weight; looks at all of them.
    LeastRequests,
    /// The one with fewer requests in flight of two drawn at random; fit for many backends.
    P2c,
    /// The one of two drawn at random that answers faster for what it has in flight; slow and failing ones are avoided.
    Ewma,
    /// The same one for the same key; only the keys of a backend that fails go elsewhere.
    ConsistentHash,
}
