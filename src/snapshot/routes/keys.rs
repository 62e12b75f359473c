//! What is decided by keys after the filters: the facts that these need must be established before.

use std::collections::{BTreeMap, HashMap};

use tollhouse_filters::filter::Fact;
use tollhouse_filters::world::UpstreamId;

use super::super::compile::{Faults, entity};
use super::super::facts;
use super::super::names::Names;
use super::{Built, Target, Unresolved};
use crate::routing::{ListenerId, RouteMatch};

/// A fact without which there is no key, and the upstream that balances by that key.
#[derive(Clone, Copy)]
struct Need<'n> {
    fact: Fact,
    upstream: UpstreamId,
    name: &'n str,
}

/// By upstream, what its requests may lack.
type Needs<'n> = HashMap<UpstreamId, Vec<Need<'n>>>;

/// Checks what filters and keys need, on each route and on the ways that fallbacks take from there.
pub(super) fn check_facts(built: &Built, names: &Names<'_>, faults: &mut Faults<'_>) {
    let needs = needs(built, names);
    for (at, (route, matched)) in built.routes.iter().zip(&built.matches).enumerate() {
        if let Some(told) = wrong(route, matched, &keys(route, &needs), names) {
            faults.add(&entity("routes", at), told);
        }
    }
}

/// By upstream, where its requests go while its breaker is open.
pub(super) fn instead(built: &Built, names: &Names<'_>) -> BTreeMap<UpstreamId, UpstreamId> {
    let mut instead = BTreeMap::new();
    for route in &built.routes {
        if let (Target::Upstream(to), Some(of)) = (&route.target, names.fallbacks.get(&route.name)) {
            instead.extend(of.iter().map(|of| (*of, *to)));
        }
    }
    instead
}

/// A need must be met on every listener that the route can be reached through.
fn wrong(
    route: &Unresolved,
    matched: &RouteMatch,
    keys: &[(String, &[Fact])],
    names: &Names<'_>,
) -> Option<String> {
    let reached = |id| matched.listeners.as_ref().is_none_or(|list| list.contains(&id));
    let all = (0u16..).map(ListenerId).zip(names.listeners);
    let mut open = all.filter(|(id, listener)| !listener.retired && reached(*id));
    open.find_map(|(_, listener)| facts::wrong([&listener.pipeline, &route.shared, &route.own], keys))
}

/// What is decided by keys after the filters of a route, and the facts that these need.
fn keys<'n>(route: &'n Unresolved, needs: &'n Needs<'_>) -> Vec<(String, &'n [Fact])> {
    let mut keys: Vec<(String, &[Fact])> = Vec::new();
    for id in route.target.upstreams() {
        for need in needs.get(&id).into_iter().flatten() {
            // Requests that a fallback takes there have passed the filters of their own route only.
            let led = if need.upstream == id { "" } else { ", where a fallback leads," };
            let key = format!("`hash_on` of upstream `{}`{led}", need.name);
            keys.push((key, std::slice::from_ref(&need.fact)));
        }
    }
    if let Target::Split(plan) = &route.target
        && !plan.needs.is_empty()
    {
        keys.push(("`split`".to_owned(), &plan.needs));
    }
    keys
}

/// What the keys need of each upstream, and of all to which fallbacks lead from there; each fact once.
fn needs<'n>(built: &Built, names: &'n Names<'_>) -> Needs<'n> {
    let mut found = Needs::new();
    if names.keyed.values().all(|keyed| keyed.needs.is_empty()) {
        return found;
    }
    let instead = instead(built, names);
    for start in instead.keys().chain(names.keyed.keys()) {
        let (mut way, mut next) = (Vec::new(), Some(*start));
        while let Some(id) = next.filter(|id| !found.contains_key(id)) {
            // Noted at once, so that a circle, which is an error of its own, ends here.
            found.insert(id, Vec::new());
            way.push(id);
            next = instead.get(&id).copied();
        }
        let mut later = next.and_then(|id| found.get(&id)).cloned().unwrap_or_default();
        for id in way.into_iter().rev() {
            let mut all = own(id, names);
            later.retain(|need| all.iter().all(|own| own.fact != need.fact));
            all.append(&mut later);
            found.insert(id, all.clone());
            later = all;
        }
    }
    found
}

/// What the key of this upstream needs.
fn own<'n>(id: UpstreamId, names: &'n Names<'_>) -> Vec<Need<'n>> {
    let Some(keyed) = names.keyed.get(&id) else { return Vec::new() };
    keyed.needs.iter().map(|fact| Need { fact: *fact, upstream: id, name: &keyed.name }).collect()
}
