//! Where requests go while the breaker of their upstream is open.

use std::collections::HashMap;
use std::sync::Arc;

use tollhouse_filters::pipeline::Pipeline;
use tollhouse_filters::tree::Path;
use tollhouse_filters::world::UpstreamId;

use super::compile::{Faults, below, did_you_mean, entity};
use super::routes::{Built, Target};
use super::{ListenerPlan, Route, UpstreamIds};
use crate::config::circuit_breaker::Fallback;
use crate::config::{self, Name};

/// By the name of the upstream, the place of the route that takes its requests.
pub(super) type Fallbacks = HashMap<Arc<str>, usize>;

/// Finds the routes that upstreams name, and checks that fallbacks can do what they say.
pub(super) fn find(
    upstreams: &[config::Upstream],
    ids: &UpstreamIds,
    built: &Built,
    listeners: &[ListenerPlan],
    faults: &mut Faults<'_>,
) -> Fallbacks {
    let mut found = Fallbacks::new();
    for (at, upstream) in upstreams.iter().enumerate() {
        let Some(fallback) = of(upstream) else { continue };
        let path = entity("upstreams", at).concat(&below("circuit_breaker.fallback"));
        if let Some(name) = &fallback.route
            && let Some(route) = route(name, built, &path.join("route"), faults)
        {
            found.insert(upstream.name.shared(), route);
        }
        if fallback.stale && !is_cached(ids.by_name[upstream.name.as_str()], built, listeners) {
            faults.add(&path.join("stale"), "no route to this upstream has a filter `cache`");
        }
    }
    for (at, upstream) in upstreams.iter().enumerate() {
        if let Some(through) = leads_back(&upstream.name.shared(), &found, built, ids) {
            let path = entity("upstreams", at).concat(&below("circuit_breaker.fallback.route"));
            faults.add(&path, format!("leads back to this upstream, by route `{through}`"));
        }
    }
    found
}

/// The routes themselves.
pub(super) fn resolve(found: &Fallbacks, routes: &[Arc<Route>]) -> HashMap<Arc<str>, Arc<Route>> {
    found.iter().map(|(upstream, at)| (upstream.clone(), routes[*at].clone())).collect()
}

/// The fallback of an upstream, if it has one.
pub(super) fn of(upstream: &config::Upstream) -> Option<&Fallback> {
    upstream.circuit_breaker.as_ref()?.fallback.as_ref()
}

fn route(name: &Name, built: &Built, path: &Path, faults: &mut Faults<'_>) -> Option<usize> {
    let Some(at) = built.routes.iter().position(|route| *route.name == *name.as_str()) else {
        let hint = did_you_mean(name.as_str(), built.routes.iter().map(|route| &*route.name));
        faults.add_with_hint(path, format!("no route is named `{name}`"), hint);
        return None;
    };
    if !matches!(built.routes[at].target, Target::Upstream(_) | Target::Answer(_)) {
        let message = format!("route `{name}` has neither an upstream of its own nor an answer");
        faults.add(path, message);
        return None;
    }
    Some(at)
}

/// Whether some route to this upstream has a cache.
fn is_cached(upstream: UpstreamId, built: &Built, listeners: &[ListenerPlan]) -> bool {
    let caches = |pipeline: &Arc<Pipeline>| pipeline.steps().iter().any(|step| step.filter == "cache");
    let all = listeners.iter().any(|listener| caches(&listener.pipeline));
    let mut routes = built.routes.iter().filter(|route| route.target.upstreams().contains(&upstream));
    routes.any(|route| all || caches(&route.shared) || caches(&route.own))
}

/// The last route on a way from this upstream back to it, if there is one.
fn leads_back(start: &Arc<str>, found: &Fallbacks, built: &Built, ids: &UpstreamIds) -> Option<Arc<str>> {
    let mut upstream = start.clone();
    for _ in 0..found.len() {
        let route = &built.routes[*found.get(&upstream)?];
        let Target::Upstream(id) = &route.target else { return None };
        upstream = ids.by_name.iter().find(|(_, known)| *known == id)?.0.clone();
        if upstream == *start {
            return Some(route.name.clone());
        }
    }
    None
}
