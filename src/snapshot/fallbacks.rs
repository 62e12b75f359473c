//! Where requests go while the breaker of their upstream is open.

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tollhouse_filters::pipeline::Pipeline;
use tollhouse_filters::tree::Path;
use tollhouse_filters::world::UpstreamId;

use super::compile::{Faults, below, did_you_mean, entity};
use super::routes::{Built, Target, Unresolved};
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
    let places = LazyCell::new(|| places(built));
    let cached = LazyCell::new(|| cached(built, listeners));
    for (at, upstream) in upstreams.iter().enumerate() {
        let Some(fallback) = of(upstream) else { continue };
        let path = entity("upstreams", at).concat(&below("circuit_breaker.fallback"));
        if let Some(name) = &fallback.route
            && let Some(route) = route(name, &places, built, &path.join("route"), faults)
        {
            found.insert(upstream.name.shared(), route);
        }
        if fallback.stale && !cached.contains(&ids.by_name[upstream.name.as_str()]) {
            faults.add(&path.join("stale"), "no route to this upstream has a filter `cache`");
        }
    }
    let circles = circles(&found, built, ids);
    for (at, upstream) in upstreams.iter().enumerate() {
        if let Some(through) = circles.get(&ids.by_name[upstream.name.as_str()]) {
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

/// Where each route stands; of those with one name, the first.
fn places(built: &Built) -> HashMap<&str, usize> {
    built.routes.iter().enumerate().rev().map(|(at, route)| (&*route.name, at)).collect()
}

fn route(
    name: &Name,
    places: &HashMap<&str, usize>,
    built: &Built,
    path: &Path,
    faults: &mut Faults<'_>,
) -> Option<usize> {
    let Some(&at) = places.get(name.as_str()) else {
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

/// The upstreams to which some route has a cache.
fn cached(built: &Built, listeners: &[ListenerPlan]) -> HashSet<UpstreamId> {
    let caches = |pipeline: &Arc<Pipeline>| pipeline.steps().iter().any(|step| step.filter == "cache");
    let all = listeners.iter().any(|listener| caches(&listener.pipeline));
    let routes = built.routes.iter().filter(|route| all || caches(&route.shared) || caches(&route.own));
    routes.flat_map(|route| route.target.upstreams()).collect()
}

/// For each upstream whose fallbacks lead back to it, the last route on that way.
fn circles<'b>(found: &Fallbacks, built: &'b Built, ids: &UpstreamIds) -> HashMap<UpstreamId, &'b str> {
    let step = |(upstream, at): (&Arc<str>, &usize)| match &built.routes[*at] {
        Unresolved { target: Target::Upstream(next), name, .. } => {
            Some((ids.by_name[upstream], (*next, &**name)))
        }
        _ => None,
    };
    let steps: HashMap<UpstreamId, (UpstreamId, &str)> = found.iter().filter_map(step).collect();
    let mut circles: HashMap<UpstreamId, &str> = HashMap::new();
    // Each upstream is passed once, and belongs to the way that did: another one ends there.
    let mut walked: HashMap<UpstreamId, UpstreamId> = HashMap::new();
    for start in steps.keys() {
        let mut at = *start;
        while let Some((next, _)) = steps.get(&at).filter(|_| !walked.contains_key(&at)) {
            walked.insert(at, *start);
            at = *next;
        }
        // Only what this very way passed leads back to itself.
        if walked.get(&at) != Some(start) {
            continue;
        }
        while let Some((next, route)) = steps.get(&at).filter(|(next, _)| !circles.contains_key(next)) {
            circles.insert(*next, *route);
            at = *next;
        }
    }
    circles
}
