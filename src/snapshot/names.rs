//! The names of a document that its parts refer to each other by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tollhouse_filters::filter::Fact;
use tollhouse_filters::tree::Path;
use tollhouse_filters::world::UpstreamId;

use super::compile::{Faults, below, did_you_mean, entity};
use super::releases::Known;
use super::{ListenerPlan, Snapshot, fallbacks};
use crate::config::{self, Name, Test};
use crate::routing::ListenerId;
use crate::upstream::Bulkhead;

/// The names that others can refer to.
pub(super) struct Names<'a> {
    pub(super) listeners: &'a [ListenerPlan],
    upstreams: &'a BTreeMap<Arc<str>, UpstreamId>,
    pub(super) services: HashMap<Arc<str>, usize>,
    /// Places of the routes that ran before, by name.
    pub(super) bulkheads: HashMap<Arc<str>, Arc<Bulkhead>>,
    /// What conditions are checked against.
    pub(super) known: &'a Known<'a>,
    /// Upstreams with `hash_on`.
    pub(super) keyed: BTreeMap<UpstreamId, Keyed>,
    /// By the name of a route, the upstreams whose requests it takes while their breakers are open.
    pub(super) fallbacks: HashMap<Arc<str>, Vec<UpstreamId>>,
    /// Upstreams whose clients stay with their backends.
    pub(super) sticky: BTreeSet<UpstreamId>,
}

/// The key that an upstream balances by.
pub(super) struct Keyed {
    /// The name of the upstream.
    pub(super) name: Arc<str>,
    /// Where the key is written.
    pub(super) place: Path,
    /// Facts without which there is no key.
    pub(super) needs: Vec<Fact>,
    /// Captures without which there is none.
    pub(super) captures: Vec<Box<str>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(
        listeners: &'a [ListenerPlan],
        upstreams: &'a BTreeMap<Arc<str>, UpstreamId>,
        services: &[config::Service],
        known: &'a Known<'a>,
    ) -> Self {
        let services = services.iter().enumerate().map(|(at, service)| (service.name.shared(), at)).collect();
        Self {
            listeners,
            upstreams,
            services,
            known,
            bulkheads: HashMap::new(),
            keyed: BTreeMap::new(),
            fallbacks: HashMap::new(),
            sticky: BTreeSet::new(),
        }
    }

    /// Notes the places of routes that go on.
    pub(super) fn with_bulkheads_of(mut self, previous: Option<&Snapshot>) -> Self {
        let routes = previous.into_iter().flat_map(|snapshot| &snapshot.routes);
        self.bulkheads =
            routes.filter_map(|route| Some((route.name.clone(), route.bulkhead.clone()?))).collect();
        self
    }

    /// Notes what the keys need that these upstreams balance by, and the routes that take requests of theirs.
    pub(super) fn with_keys_and_fallbacks_of(mut self, upstreams: &[config::Upstream]) -> Self {
        for (at, upstream) in upstreams.iter().enumerate() {
            let Some(id) = self.upstreams.get(upstream.name.as_str()).copied() else { continue };
            if upstream.balance.sticky.is_some() {
                self.sticky.insert(id);
            }
            if let Some(selector) = &upstream.balance.hash_on {
                let keyed = Keyed {
                    name: upstream.name.shared(),
                    place: entity("upstreams", at).concat(&below("balance.hash_on")),
                    needs: selector.needs(),
                    captures: selector.captures().into_iter().map(Box::from).collect(),
                };
                self.keyed.insert(id, keyed);
            }
            if let Some(route) = fallbacks::of(upstream).and_then(|fallback| fallback.route.as_ref()) {
                self.fallbacks.entry(route.shared()).or_default().push(id);
            }
        }
        self
    }

    /// Whether some fallback names this route.
    pub(super) fn is_fallback(&self, route: &Name) -> bool {
        self.fallbacks.contains_key(route.as_str())
    }

    pub(super) fn upstream(&self, name: &Name, path: &Path, faults: &mut Faults<'_>) -> Option<UpstreamId> {
        let found = self.upstreams.get(name.as_str()).copied();
        if found.is_none() {
            let hint = did_you_mean(name.as_str(), self.upstreams.keys().map(|name| &**name));
            faults.add_unknown(path, format!("no upstream is named `{name}`"), hint);
        }
        found
    }

    pub(super) fn listener(&self, name: &Name, path: &Path, faults: &mut Faults<'_>) -> Option<ListenerId> {
        let known = |listener: &ListenerPlan| !listener.retired && *listener.name == *name.as_str();
        let found = self.listeners.iter().position(known);
        if found.is_none() {
            let current = self.listeners.iter().filter(|listener| !listener.retired);
            let hint = did_you_mean(name.as_str(), current.map(|listener| &*listener.name));
            faults.add_unknown(path, format!("no listener is named `{name}`"), hint);
        }
        found.and_then(|at| u16::try_from(at).ok()).map(ListenerId)
    }

    pub(super) fn service(&self, name: &Name, path: &Path, faults: &mut Faults<'_>) -> Option<usize> {
        let found = self.services.get(name.as_str()).copied();
        if found.is_none() {
            let hint = did_you_mean(name.as_str(), self.services.keys().map(|name| &**name));
            faults.add_unknown(path, format!("no service is named `{name}`"), hint);
        }
        found
    }

    /// Checks that tests name what exists.
    pub(super) fn check_tests(&self, tests: &[Test], faults: &mut Faults<'_>) {
        tests.iter().enumerate().for_each(|(at, test)| self.check_test(at, test, faults));
    }

    fn check_test(&self, at: usize, test: &Test, faults: &mut Faults<'_>) {
        let path = entity("tests", at);
        if let Some(name) = &test.request.listener {
            self.listener(name, &path.join("request").join("listener"), faults);
        }
        if let Some(name) = &test.expect.upstream {
            self.upstream(name, &path.join("expect").join("upstream"), faults);
        }
        for (nth, name) in test.expect.mirrors.iter().flatten().enumerate() {
            self.upstream(name, &path.join("expect").join("mirrors").join(nth), faults);
        }
        let versions = || self.known.versions.iter().map(|name| &**name);
        let variants = || versions().chain(self.upstreams.keys().map(|name| &**name));
        self.check_expected("version", test.expect.version.as_ref(), versions, &path, faults);
        self.check_expected("variant", test.expect.variant.as_ref(), variants, &path, faults);
    }

    fn check_expected<'n, I: Iterator<Item = &'n str>>(
        &self,
        what: &str,
        name: Option<&Name>,
        known: impl Fn() -> I,
        path: &Path,
        faults: &mut Faults<'_>,
    ) {
        let Some(name) = name.filter(|name| !known().any(|known| known == name.as_str())) else { return };
        let (path, hint) = (path.join("expect").join(what), did_you_mean(name.as_str(), known()));
        faults.given(&["services"]).add_unknown(&path, format!("no {what} is named `{name}`"), hint);
    }
}
