//! Upstreams as an administrator sees them: where their backends are, and how they do.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::Upstream;
use super::backend::Backend;
use crate::config::balance::Algorithm;
use crate::config::upstream::Protocol;
use crate::observe::Timestamp;

/// An upstream now.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Upstream")]
pub struct UpstreamView {
    /// Its name.
    pub name: String,
    /// The HTTP version spoken to its backends.
    pub protocol: Protocol,
    /// Whether its backends are reached over TLS.
    pub tls: bool,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Whether its backends are probed.
    pub checked: bool,
    /// Its circuit breaker; null if it has none.
    pub circuit_breaker: Option<StateView>,
    /// Requests under way and waiting; null if there may be any number.
    pub concurrency: Option<PlacesView>,
    /// Who tells its backends; null if they are written in the document.
    pub discovery: Option<DiscoveryView>,
    /// Its backends, in written order.
    pub backends: Vec<BackendView>,
}

/// A registry that tells backends.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Discovery")]
pub struct DiscoveryView {
    /// What it is: `dns`, `file` and so on.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it is followed; while it is not, the last backends stay in use.
    pub up: bool,
    /// When the backends in use were last confirmed; null if they never were.
    pub told: Option<At>,
    /// Seconds since then.
    pub age: Option<u64>,
    /// When the backends last changed.
    pub changed: Option<At>,
    /// How often they did.
    pub changes: u64,
    /// It has told none yet, and those that were in use before the document named it are used until then.
    pub inherited: bool,
    /// Instances that it tells and that cannot be used.
    pub ignored: usize,
    /// It says that there are no backends, and the last ones are used all the same.
    pub kept_on_empty: bool,
    /// Why it cannot be followed; null if it can.
    pub error: Option<String>,
    /// Since when it cannot.
    pub failing_since: Option<At>,
}

/// Where something stands, and why.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "State")]
pub struct StateView {
    /// Of a breaker `closed`, `half_open` or `open`; of a backend `in`, `ejected`, `unreachable`, `warming` or
    /// `unprobed`.
    pub state: &'static str,
    /// Why it last changed; empty before that.
    pub reason: String,
    /// When it last changed; null before that.
    pub since: Option<At>,
}

/// Places for requests.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Places")]
pub struct PlacesView {
    /// Requests that may be under way.
    pub limit: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Requests that wait.
    pub waiting: usize,
}

/// A backend now.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Backend")]
pub struct BackendView {
    /// As written, `host:port`.
    pub address: String,
    /// Its weight; 0 gets no requests.
    pub weight: u16,
    /// Whether an address of it can get requests.
    pub usable: bool,
    /// Requests it has in hand.
    pub in_flight: usize,
    /// Milliseconds until the head of an answer is here, a moving average; null before the first answer.
    pub latency_ms: Option<f64>,
    /// Requests it was chosen for since it was first named, each attempt for itself.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Where it stands by what became of its requests.
    pub standing: StateView,
    /// How looking its name up went; null for a written address and before the first lookup.
    pub name: Option<NameView>,
    /// The addresses it is reached at.
    pub addresses: Vec<AddressView>,
}

/// What is known about a name.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "ResolvedName")]
pub struct NameView {
    /// When its addresses were last confirmed; null if they never were.
    pub answered: Option<At>,
    /// Seconds since then.
    pub age: Option<u64>,
    /// Why the last lookup failed; null if it did not. The addresses of the last answer stay in use.
    pub error: Option<String>,
    /// Since when lookups fail.
    pub failing_since: Option<At>,
}

/// One address of a backend.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Address")]
pub struct AddressView {
    /// IP and port.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// What probes tell; null without a check.
    pub health: Option<HealthView>,
}

/// What probes have told about an address.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Health")]
pub struct HealthView {
    /// `healthy`, `unhealthy` or, before the first probe, `unknown`.
    pub state: &'static str,
    /// What the last probe saw.
    pub reason: String,
    /// When the state last changed.
    pub since: At,
    /// Probes in a row that ended as the last one did.
    pub consecutive: u32,
    /// When the last probe ended.
    pub last_probe: Option<At>,
    /// How long it took, in milliseconds.
    pub last_probe_ms: Option<u64>,
}

/// A moment, shown as RFC 3339 writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At(pub SystemTime);

impl From<SystemTime> for At {
    fn from(time: SystemTime) -> Self {
        Self(time)
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Timestamp(self.0))
    }
}

impl JsonSchema for At {
    fn schema_name() -> Cow<'static, str> {
        "At".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

impl Upstream {
    /// How its backends do, at this moment.
    pub fn view(&self) -> UpstreamView {
        let now = self.backends.now();
        UpstreamView {
            name: self.name.to_string(),
            protocol: self.protocol(),
            tls: self.is_tls(),
            algorithm: self.written.balance.algorithm,
            checked: self.check().is_some(),
            circuit_breaker: self.memory.breaker.as_ref().map(|breaker| {
                let shown = breaker.shown();
                StateView {
                    state: shown.state.as_str(),
                    reason: shown.reason,
                    since: Some(shown.since.into()),
                }
            }),
            concurrency: self.memory.bulkhead.as_ref().map(|places| PlacesView {
                limit: places.limit(),
                in_flight: places.in_flight(),
                waiting: places.waiting(),
            }),
            discovery: self.following().map(|following| following.view(SystemTime::now())),
            backends: now.all().map(|(backend, written)| backend.view(written.weight)).collect(),
        }
    }

    /// Why no backend can get requests, for the client of a request that none got.
    pub fn unavailable(&self) -> &'static str {
        let now = self.backends.now();
        let takers = || now.all().filter(|(_, written)| written.weight > 0);
        if self.following().is_some_and(|following| !following.is_known()) {
            "the backends are not known yet"
        } else if takers().next().is_none() {
            "no backend takes requests"
        } else if takers().all(|(backend, _)| !backend.is_resolved()) {
            "no backend has a known address"
        } else {
            "no backend is healthy"
        }
    }
}

impl Backend {
    fn view(&self, weight: u16) -> BackendView {
        BackendView {
            address: self.written().to_string(),
            weight,
            usable: self.is_usable(),
            in_flight: self.in_flight(),
            latency_ms: self.latency().map(|latency| latency.as_secs_f64() * 1e3),
            requests: self.requests(),
            failures: self.failures(),
            standing: {
                let shown = self.stats.standing.shown();
                StateView { state: shown.state, reason: shown.reason, since: shown.since.map(At) }
            },
            name: self.resolution().map(|name| name.view(SystemTime::now())),
            addresses: self.address_views(),
        }
    }
}

/// Whole seconds from one moment to another, none if the clock was set back.
pub(super) fn seconds_between(earlier: SystemTime, later: SystemTime) -> u64 {
    later.duration_since(earlier).unwrap_or(Duration::ZERO).as_secs()
}
