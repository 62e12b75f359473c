//! Captures that routes read: some path pattern that leads there has to have each.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter;
use std::sync::Arc;

use tollhouse_filters::path::PathPattern;
use tollhouse_filters::pipeline::Step;
use tollhouse_filters::tree::Path;
use tollhouse_filters::world::UpstreamId;

use super::super::ListenerPlan;
use super::super::compile::{Faults, did_you_mean, entity};
use super::super::names::Names;
use super::Built;
use super::keys::instead;

/// Checks captures that a route itself reads, at this place of it.
pub(super) fn check<'n>(
    names: impl Iterator<Item = &'n str>,
    patterns: &[PathPattern],
    path: &Path,
    faults: &mut Faults<'_>,
) {
    let captured = || patterns.iter().flat_map(PathPattern::names);
    for name in names {
        if captured().all(|known| known != name) {
            let message = format!("reads the capture `{name}`, which no path pattern of the route has");
            faults.add_by_entity(path, message, did_you_mean(name, captured()));
        }
    }
}

/// A filter that reads captures.
struct Reader<'a> {
    step: &'a Arc<Step>,
    /// The first of the routes that have it.
    route: usize,
    /// What the patterns of all of these capture.
    captured: BTreeSet<&'a str>,
}

/// Checks captures that filters read. What several routes share may lack one on some of them, and what listeners share
/// on any.
pub(super) fn check_filters(built: &Built, listeners: &[ListenerPlan], faults: &mut Faults<'_>) {
    let open = listeners.iter().filter(|listener| !listener.retired);
    let of_listeners: HashSet<*const Step> =
        open.flat_map(|listener| listener.pipeline.steps()).map(Arc::as_ptr).collect();
    let mut places: HashMap<*const Step, usize> = HashMap::new();
    let mut readers: Vec<Reader<'_>> = Vec::new();
    for (route, (unresolved, matched)) in built.routes.iter().zip(&built.matches).enumerate() {
        let steps = [&unresolved.shared, &unresolved.own].into_iter().flat_map(|pipeline| pipeline.steps());
        for step in steps.filter(|step| !step.declared.captures.is_empty()) {
            if of_listeners.contains(&Arc::as_ptr(step)) {
                continue;
            }
            let place = *places.entry(Arc::as_ptr(step)).or_insert_with(|| {
                readers.push(Reader { step, route, captured: BTreeSet::new() });
                readers.len() - 1
            });
            readers[place].captured.extend(matched.paths.iter().flat_map(PathPattern::names));
        }
    }
    for Reader { step, route, captured } in &readers {
        for name in step.declared.captures.iter().filter(|name| !captured.contains(&***name)) {
            let told = "which no path pattern that leads to it has";
            let message = format!("filter `{}` reads the capture `{name}`, {told}", step.instance);
            let hint = did_you_mean(name, captured.iter().copied());
            faults.add_with_hint(&entity("routes", *route), message, hint);
        }
    }
}

/// Checks captures that upstreams balance by. What several routes lead to may lack one on some of them.
pub(super) fn check_keys(built: &Built, names: &Names<'_>, faults: &mut Faults<'_>) {
    if names.keyed.values().all(|keyed| keyed.captures.is_empty()) {
        return;
    }
    let captured = captured_on_the_way(built, names);
    for (id, keyed) in &names.keyed {
        // What no route leads to is for calls of filters, which have no captures.
        let Some(captured) = captured.get(id) else { continue };
        for name in keyed.captures.iter().filter(|name| !captured.contains(&***name)) {
            let message = format!("reads the capture `{name}`, which no path pattern that leads there has");
            let hint = did_you_mean(name, captured.iter().copied());
            faults.add_with_hint(&keyed.place, message, hint);
        }
    }
}

/// By upstream, what the patterns of all routes capture that lead there, by themselves or by fallbacks.
fn captured_on_the_way<'a>(built: &'a Built, names: &Names<'_>) -> HashMap<UpstreamId, BTreeSet<&'a str>> {
    let instead = instead(built, names);
    let mut captured: HashMap<UpstreamId, BTreeSet<&str>> = HashMap::new();
    for (route, matched) in built.routes.iter().zip(&built.matches) {
        // One that is for fallbacks alone takes no requests of its own.
        if matched.listeners.as_ref().is_some_and(Vec::is_empty) {
            continue;
        }
        for first in route.target.upstreams() {
            // Those that lead in a circle are an error of their own.
            let way = iter::successors(Some(first), |id| instead.get(id).copied()).take(instead.len() + 1);
            for id in way {
                captured.entry(id).or_default().extend(matched.paths.iter().flat_map(PathPattern::names));
            }
        }
    }
    captured
}
