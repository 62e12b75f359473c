//! What metrics tell of upstreams beside their attempts: breakers, places, ejections. Read at each scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::Upstream;
use super::resilience::State;
use crate::observe::Registry;

const BREAKER_OPEN: &str = "tollhouse_upstream_breaker_state";
const BREAKER_CHANGES: &str = "tollhouse_upstream_breaker_changes_total";
const REFUSED: &str = "tollhouse_upstream_refused_total";
const IN_FLIGHT: &str = "tollhouse_upstream_in_flight";
const LIMIT: &str = "tollhouse_upstream_concurrency_limit";
const WAITING: &str = "tollhouse_upstream_waiting";
const EJECTED: &str = "tollhouse_upstream_backend_ejected";
const EJECTIONS: &str = "tollhouse_upstream_ejections_total";
const UP: &str = "tollhouse_upstream_discovery_up";
const AGE: &str = "tollhouse_upstream_discovery_age_seconds";
const BACKENDS: &str = "tollhouse_upstream_discovery_backends";
const CHANGES: &str = "tollhouse_upstream_discovery_changes_total";

/// Exports the numbers of these upstreams, and those of no others.
pub(super) fn export(upstreams: &[Arc<Upstream>], registry: &Registry) {
    let resilience = [BREAKER_OPEN, BREAKER_CHANGES, REFUSED, IN_FLIGHT, LIMIT, WAITING, EJECTED, EJECTIONS];
    resilience.into_iter().chain([UP, AGE, BACKENDS, CHANGES]).for_each(|name| registry.forget_fns(name));
    for upstream in upstreams {
        breaker(upstream, registry);
        bulkhead(upstream, registry);
        let counted = Arc::clone(&upstream.memory.route_busy);
        refused(upstream, registry, "route", move || counted.load(Ordering::Relaxed));
        ejections(upstream, registry);
        discovery(upstream, registry);
    }
}

/// Exports the numbers of the backends of this upstream anew, as they are others now.
pub(super) fn export_backends(upstreams: &[Arc<Upstream>], upstream: &str, registry: &Registry) {
    for name in [EJECTED, EJECTIONS] {
        registry.forget_fns_of(name, ("upstream", upstream));
    }
    let its = upstreams.iter().filter(|other| *other.name == *upstream);
    its.for_each(|upstream| ejections(upstream, registry));
}

fn discovery(upstream: &Upstream, registry: &Registry) {
    let Some(following) = upstream.following() else { return };
    let labels = [("upstream", &*upstream.name), ("type", following.written().kind())];
    let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let (up, age, told, changes) =
        (following.clone(), following.clone(), following.clone(), following.clone());
    let help = "1 while the registry that tells the backends of an upstream is followed.";
    registry.register_gauge_fn(UP, help, &labels, move || up.is_up().into());
    let help = "Seconds since a registry last confirmed the backends; -1 before it did.";
    registry.register_gauge_fn(AGE, help, &labels, move || age.age(SystemTime::now()).map_or(-1, gauge));
    let help = "Backends that are in use, as a registry told them.";
    registry.register_gauge_fn(BACKENDS, help, &labels, move || gauge(told.backends().len() as u64));
    let help = "Changes of the backends that a registry tells.";
    registry.register_counter_fn(CHANGES, help, &labels, move || changes.changes());
}

fn breaker(upstream: &Upstream, registry: &Registry) {
    let Some(breaker) = &upstream.memory.breaker else { return };
    let label = [("upstream", &*upstream.name)];
    let shown = Arc::clone(breaker);
    let help = "0 while a circuit breaker is closed, 1 half-open, 2 open.";
    registry.register_gauge_fn(BREAKER_OPEN, help, &label, move || match shown.shown().state {
        State::Closed => 0,
        State::HalfOpen => 1,
        State::Open => 2,
    });
    for to in [State::Closed, State::HalfOpen, State::Open] {
        let labels = [label[0], ("to", to.as_str())];
        let breaker = Arc::clone(breaker);
        let help = "Changes of a circuit breaker.";
        registry.register_counter_fn(BREAKER_CHANGES, help, &labels, move || breaker.changes(to));
    }
    let counted = Arc::clone(breaker);
    refused(upstream, registry, "circuit_breaker", move || counted.refused.load(Ordering::Relaxed));
}

fn bulkhead(upstream: &Upstream, registry: &Registry) {
    let Some(places) = &upstream.memory.bulkhead else { return };
    let label = [("upstream", &*upstream.name)];
    let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let shown = Arc::clone(places);
    let help = "Requests under way, where their number is limited.";
    registry.register_gauge_fn(IN_FLIGHT, help, &label, move || gauge(shown.in_flight()));
    let shown = Arc::clone(places);
    let help = "Requests that may be under way.";
    registry.register_gauge_fn(LIMIT, help, &label, move || gauge(shown.limit()));
    let shown = Arc::clone(places);
    registry.register_gauge_fn(WAITING, "Requests that wait for a place.", &label, move || {
        gauge(shown.waiting())
    });
    let (full, late) = (Arc::clone(places), Arc::clone(places));
    refused(upstream, registry, "queue_full", move || full.full.load(Ordering::Relaxed));
    refused(upstream, registry, "max_wait", move || late.late.load(Ordering::Relaxed));
}

fn refused(
    upstream: &Upstream,
    registry: &Registry,
    reason: &str,
    read: impl Fn() -> u64 + Send + Sync + 'static,
) {
    let help = "Requests that did not get to their upstream.";
    registry.register_counter_fn(REFUSED, help, &[("upstream", &upstream.name), ("reason", reason)], read);
}

fn ejections(upstream: &Upstream, registry: &Registry) {
    let judged = upstream.written.health.as_ref().is_some_and(|health| health.outlier.is_some());
    for backend in upstream.backends().iter().filter(|_| judged) {
        let name = backend.written().to_string();
        let labels = [("upstream", &*upstream.name), ("backend", &*name)];
        let stats = Arc::clone(&backend.stats);
        let help = "1 while a backend is ejected for what became of its requests.";
        registry.register_gauge_fn(EJECTED, help, &labels, move || stats.standing.is_ejected().into());
        let stats = Arc::clone(&backend.stats);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let help = "Ejections of a backend.";
        registry.register_counter_fn(EJECTIONS, help, &labels, move || count(&stats.standing.ejections));
    }
}
