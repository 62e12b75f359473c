//! How one of an upstream's backends is chosen, as the user writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::selector::Selector;
use tollhouse_filters::values::{Duration, Percent, Secret};

/// How a backend is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// The rule by which a backend is chosen, within the weights. Default: `round_robin`. Example: `least_requests`.
    pub algorithm: Algorithm,
    /// What `consistent_hash` goes by, which needs it; a request without it goes to any backend. Default: none. Example: `header:x-user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<Selector>,
    /// Backends of this zone are preferred to others of the same priority. Default: none. Example: `"${env:ZONE}"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// With fewer usable ones than this share of a group (a priority, a zone), the next group gets part of its requests; with none, all. Default: `70%`. Example: `50%`.
    pub failover_below: Percent,
    /// A client stays with its backend by a cookie, as long as that can be used. Default: none. Example: `{cookie: lb, secret: "${env:STICKY_SECRET}"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
}

/// A cookie by which a client stays with its backend. It is signed, `HttpOnly` and for all paths, and `Secure` where the client came
/// over TLS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// Its name. Required. Example: `lb`.
    pub cookie: String,
    /// What it is signed with; a cookie with another signature is as none. Required. Example: `"${env:STICKY_SECRET}"`.
    pub secret: Secret,
    /// How long the client keeps it. Default: none, for its session. Example: `8h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// Whether the client sends it with requests that other sites cause. Default: `lax`. Example: `strict`.
    #[serde(default)]
    pub same_site: SameSite,
}

/// Whether a cookie is sent with requests that other sites cause (RFC 6265bis s5.6.7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameSite {
    /// With none.
    Strict,
    /// With navigation.
    #[default]
    Lax,
    /// With all, over TLS alone.
    None,
}

impl Default for Balance {
    fn default() -> Self {
        let (algorithm, hash_on, zone, sticky) = Default::default();
        Self { algorithm, hash_on, zone, failover_below: Percent::from_whole(70), sticky }
    }
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
