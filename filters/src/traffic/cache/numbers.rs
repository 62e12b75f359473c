//! What is counted, by route.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::caching::{CacheStatus, Forwarded};
use crate::world::{Counter, Metrics};

const REQUESTS: &str = "tollhouse_cache_requests_total";
const REQUESTS_HELP: &str = "Requests by what a cache did with them, by route.";
const BYPASSED: &str = "tollhouse_cache_bypassed_total";
const BYPASSED_HELP: &str = "Requests that a cache was not for, by route and reason.";

/// The numbers of an instance, by the routes that use it; the next instance goes on with them, as they stay with a
/// route.
pub(super) struct Numbers {
    metrics: Arc<dyn Metrics>,
    routes: RwLock<HashMap<Arc<str>, Arc<OfRoute>>>,
}

/// The numbers of one route.
struct OfRoute {
    hits: Counter,
    stale: Counter,
    revalidated: Counter,
    misses: Counter,
    bypassed: Counter,
    coalesced: Counter,
    /// Bytes of bodies that came from the cache.
    bytes: Counter,
    reasons: RwLock<HashMap<Arc<str>, Counter>>,
}

impl Numbers {
    pub(super) fn new(metrics: Arc<dyn Metrics>) -> Self {
        Self { metrics, routes: RwLock::default() }
    }

    /// Counts a request by what was done with it.
    pub(super) fn count(&self, route: &Arc<str>, status: &CacheStatus, bytes: u64) {
        let numbers = self.of(route);
        if status.collapsed {
            numbers.coalesced.inc();
        }
        let is_stale = status.ttl.is_some_and(|ttl| ttl < 0);
        let counter = match (status.hit, status.forwarded, status.forwarded_status) {
            (true, ..) if is_stale => &numbers.stale,
            (true, ..) => &numbers.hits,
            (_, Some(Forwarded::Bypass | Forwarded::Method | Forwarded::Partial), _) => {
                self.reason(&numbers, route, status.detail.as_deref().unwrap_or("partial")).inc();
                &numbers.bypassed
            }
            (_, _, Some(304)) => &numbers.revalidated,
            // What was stored took the place of an answer that did not come.
            _ if is_stale => &numbers.stale,
            _ => &numbers.misses,
        };
        counter.inc();
        if status.hit || is_stale || status.forwarded_status == Some(304) {
            numbers.bytes.add(bytes);
        }
    }

    fn of(&self, route: &Arc<str>) -> Arc<OfRoute> {
        if let Some(numbers) = self.routes.read().get(route) {
            return numbers.clone();
        }
        let result =
            |result| self.metrics.counter(REQUESTS, REQUESTS_HELP, &[("route", route), ("result", result)]);
        let plain = |name: &str, help: &str| self.metrics.counter(name, help, &[("route", route)]);
        let numbers = Arc::new(OfRoute {
            hits: result("hit"),
            stale: result("stale"),
            revalidated: result("revalidated"),
            misses: result("miss"),
            bypassed: result("bypass"),
            coalesced: plain(
                "tollhouse_cache_coalesced_total",
                "Requests that were answered with what another one fetched, by route.",
            ),
            bytes: plain("tollhouse_cache_served_bytes_total", "Bytes of bodies from the cache, by route."),
            reasons: RwLock::default(),
        });
        self.routes.write().entry(route.clone()).or_insert(numbers).clone()
    }

    fn reason(&self, numbers: &OfRoute, route: &Arc<str>, reason: &str) -> Counter {
        if let Some(counter) = numbers.reasons.read().get(reason) {
            return counter.clone();
        }
        let labels = [("route", &**route), ("reason", reason)];
        let counter = self.metrics.counter(BYPASSED, BYPASSED_HELP, &labels);
        numbers.reasons.write().entry(reason.into()).or_insert(counter).clone()
    }
}
