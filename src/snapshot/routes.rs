//! From written routes and services to resolved ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use http::Method;
use tollhouse_filters::condition::Conditions;
use tollhouse_filters::filter::Fact;
use tollhouse_filters::phase::OnRequest;
use tollhouse_filters::pipeline::Pipeline;
use tollhouse_filters::selector::Selector;
use tollhouse_filters::tree::{Path, Raw};
use tollhouse_filters::world::UpstreamId;

use super::compile::{Faults, did_you_mean, entity, fault};
use super::pipelines::Pipelines;
use super::{Action, ListenerPlan, Route, Snapshot, facts};
use crate::config::retries::RouteRetries;
use crate::config::{self, Match, Name, RouteTimeouts, Test};
use crate::observe::RouteSeries;
use crate::routing::{ListenerId, RouteId, RouteMatch, shadowed};
use crate::source::{Loaded, Problems};
use crate::upstream::{Bulkhead, MAX_RETRIES, Upstream};

/// The names that others can refer to.
pub(super) struct Names<'a> {
    listeners: &'a [ListenerPlan],
    upstreams: &'a BTreeMap<Arc<str>, UpstreamId>,
    services: HashMap<Arc<str>, usize>,
    /// Places of the routes that ran before, by name.
    bulkheads: HashMap<Arc<str>, Arc<Bulkhead>>,
    /// Upstreams whose `hash_on` needs facts.
    keyed: HashMap<UpstreamId, (Arc<str>, Vec<Fact>)>,
}

impl<'a> Names<'a> {
    pub(super) fn new(
        listeners: &'a [ListenerPlan],
        upstreams: &'a BTreeMap<Arc<str>, UpstreamId>,
        services: &[config::Service],
    ) -> Self {
        let services = services.iter().enumerate().map(|(at, service)| (service.name.shared(), at)).collect();
        Self { listeners, upstreams, services, bulkheads: HashMap::new(), keyed: HashMap::new() }
    }

    /// Notes the places of routes that go on.
    pub(super) fn with_bulkheads_of(mut self, previous: Option<&Snapshot>) -> Self {
        let routes = previous.into_iter().flat_map(|snapshot| &snapshot.routes);
        self.bulkheads =
            routes.filter_map(|route| Some((route.name.clone(), route.bulkhead.clone()?))).collect();
        self
    }

    /// Notes what the keys need that these upstreams balance by.
    pub(super) fn with_keys_of(mut self, upstreams: &[config::Upstream]) -> Self {
        for upstream in upstreams {
            let needs = upstream.balance.hash_on.as_ref().map(Selector::needs).unwrap_or_default();
            let id = self.upstreams.get(upstream.name.as_str()).filter(|_| !needs.is_empty());
            if let Some(id) = id {
                self.keyed.insert(*id, (upstream.name.shared(), needs));
            }
        }
        self
    }

    fn upstream(&self, name: &Name, path: &Path, faults: &mut Faults<'_>) -> Option<UpstreamId> {
        let found = self.upstreams.get(name.as_str()).copied();
        if found.is_none() {
            let hint = did_you_mean(name.as_str(), self.upstreams.keys().map(|name| &**name));
            faults.add_with_hint(path, format!("no upstream is named `{name}`"), hint);
        }
        found
    }

    fn listener(&self, name: &Name, path: &Path, faults: &mut Faults<'_>) -> Option<ListenerId> {
        let known = |listener: &ListenerPlan| !listener.retired && *listener.name == *name.as_str();
        let found = self.listeners.iter().position(known);
        if found.is_none() {
            let current = self.listeners.iter().filter(|listener| !listener.retired);
            let hint = did_you_mean(name.as_str(), current.map(|listener| &*listener.name));
            faults.add_with_hint(path, format!("no listener is named `{name}`"), hint);
        }
        found.and_then(|at| u16::try_from(at).ok()).map(ListenerId)
    }

    fn service(&self, name: &Name, path: &Path, faults: &mut Faults<'_>) -> Option<usize> {
        let found = self.services.get(name.as_str()).copied();
        if found.is_none() {
            let hint = did_you_mean(name.as_str(), self.services.keys().map(|name| &**name));
            faults.add_with_hint(path, format!("no service is named `{name}`"), hint);
        }
        found
    }

    /// Checks that a test names what exists.
    pub(super) fn check_test(&self, at: usize, test: &Test, faults: &mut Faults<'_>) {
        let path = entity("tests", at);
        if let Some(name) = &test.request.listener {
            self.listener(name, &path.join("request").join("listener"), faults);
        }
        if let Some(name) = &test.expect.upstream {
            self.upstream(name, &path.join("expect").join("upstream"), faults);
        }
    }
}

/// Routes whose upstreams are still ids.
pub(super) struct Built {
    /// For the router, by route id.
    pub(super) matches: Vec<RouteMatch>,
    routes: Vec<Unresolved>,
}

struct Unresolved {
    name: Arc<str>,
    service: Option<Arc<str>>,
    shared: Arc<Pipeline>,
    own: Arc<Pipeline>,
    target: Target,
    timeouts: RouteTimeouts,
    retries: Option<RouteRetries>,
    bulkhead: Option<Arc<Bulkhead>>,
}

#[derive(Clone)]
enum Target {
    Upstream(UpstreamId),
    Answer(Arc<dyn OnRequest>),
    Nothing,
}

struct Service {
    name: Arc<str>,
    pipeline: Arc<Pipeline>,
    upstream: Option<UpstreamId>,
}

/// Builds services and routes.
pub(super) fn build(
    services: Vec<config::Service>,
    routes: Vec<config::Route>,
    names: &Names<'_>,
    pipelines: &mut Pipelines<'_>,
    faults: &mut Faults<'_>,
) -> Built {
    let services: Vec<Service> = services
        .into_iter()
        .enumerate()
        .map(|(at, service)| build_service(at, service, names, pipelines, faults))
        .collect();
    let none = pipelines.build("", Vec::new(), &Path::default(), faults);
    let mut built =
        Built { matches: Vec::with_capacity(routes.len()), routes: Vec::with_capacity(routes.len()) };
    for (at, route) in routes.into_iter().enumerate() {
        let path = entity("routes", at);
        let service =
            route.service.as_ref().and_then(|name| names.service(name, &path.join("service"), faults));
        let service = service.map(|at| &services[at]);
        let target = target(&route, service, names, pipelines, &path, faults);
        check_retries(route.retries.as_ref(), &path, faults);
        let owner = format!("route:{}", route.name);
        let before = names.bulkheads.get(route.name.as_str());
        let unresolved = Unresolved {
            name: route.name.shared(),
            service: service.map(|service| service.name.clone()),
            shared: service.map_or_else(|| none.clone(), |service| service.pipeline.clone()),
            own: pipelines.build(&owner, route.filters, &path.join("filters"), faults),
            target,
            timeouts: route.timeouts,
            retries: route.retries,
            bulkhead: route.concurrency.as_ref().map(|written| Bulkhead::retained(written, before)),
        };
        let matched = matches(route.matches, names, &path.join("match"), faults);
        check_facts(&unresolved, &matched, names, &path, faults);
        built.matches.push(matched);
        built.routes.push(unresolved);
    }
    built
}

fn check_retries(retries: Option<&RouteRetries>, path: &Path, faults: &mut Faults<'_>) {
    if retries.and_then(|retries| retries.max).is_some_and(|max| max > MAX_RETRIES) {
        faults.add(&path.join("retries").join("max"), format!("expected 0 to {MAX_RETRIES}"));
    }
}

fn build_service(
    at: usize,
    service: config::Service,
    names: &Names<'_>,
    pipelines: &mut Pipelines<'_>,
    faults: &mut Faults<'_>,
) -> Service {
    let path = entity("services", at);
    let owner = format!("service:{}", service.name);
    Service {
        name: service.name.shared(),
        pipeline: pipelines.build(&owner, service.filters, &path.join("filters"), faults),
        upstream: service
            .upstream
            .as_ref()
            .and_then(|name| names.upstream(name, &path.join("upstream"), faults)),
    }
}

/// What the route does: exactly one action, or what its service gives.
fn target(
    route: &config::Route,
    service: Option<&Service>,
    names: &Names<'_>,
    pipelines: &mut Pipelines<'_>,
    path: &Path,
    faults: &mut Faults<'_>,
) -> Target {
    let written = [route.upstream.is_some(), route.respond.is_some(), route.redirect.is_some()];
    if written.iter().filter(|written| **written).count() > 1 {
        faults.add(path, "a route has one action; keep one of `upstream`, `respond` and `redirect`");
        return Target::Nothing;
    }
    let owner = format!("route:{}", route.name);
    let mut answer = |filter: &str, options: &Raw| {
        let phases = pipelines.action(filter, &options.0, &owner, &path.join(filter), faults);
        phases.and_then(|phases| phases.into_request()).map_or(Target::Nothing, Target::Answer)
    };
    match (&route.upstream, &route.respond, &route.redirect) {
        (_, Some(options), _) => answer("respond", options),
        (_, _, Some(options)) => answer("redirect", options),
        (Some(name), ..) => {
            names.upstream(name, &path.join("upstream"), faults).map_or(Target::Nothing, Target::Upstream)
        }
        (None, None, None) => match service.map(|service| service.upstream) {
            Some(Some(upstream)) => Target::Upstream(upstream),
            // The service's own problem was reported with the service.
            None if route.service.is_some() => Target::Nothing,
            _ => {
                faults.add(path, "the route does nothing; add `upstream`, `respond` or `redirect`, or a `service` with an upstream");
                Target::Nothing
            }
        },
    }
}

fn matches(mut written: Match, names: &Names<'_>, path: &Path, faults: &mut Faults<'_>) -> RouteMatch {
    let methods: Vec<Method> = written.methods.into_iter().map(Method::from).collect();
    let headers = written.headers.into_iter().map(|(name, value)| (name.into(), value));
    let listeners = written.listeners.map(|list| {
        let path = path.join("listeners");
        list.iter()
            .enumerate()
            .filter_map(|(at, name)| names.listener(name, &path.join(at), faults))
            .collect()
    });
    written.hosts.shrink_to_fit();
    written.paths.shrink_to_fit();
    RouteMatch {
        hosts: written.hosts,
        paths: written.paths,
        listeners,
        conditions: Conditions::new(methods, headers, written.query, written.cookies),
    }
}

/// A need must be met on every listener that the route can be reached through.
fn check_facts(
    route: &Unresolved,
    matched: &RouteMatch,
    names: &Names<'_>,
    path: &Path,
    faults: &mut Faults<'_>,
) {
    let needy = |pipeline: &Pipeline| pipeline.steps().iter().any(|step| !step.declared.needs.is_empty());
    let keyed = match route.target {
        Target::Upstream(id) => names.keyed.get(&id),
        Target::Answer(_) | Target::Nothing => None,
    };
    if !needy(&route.shared) && !needy(&route.own) && keyed.is_none() {
        return;
    }
    for (id, listener) in (0u16..).map(ListenerId).zip(names.listeners) {
        if listener.retired || matched.listeners.as_ref().is_some_and(|list| !list.contains(&id)) {
            continue;
        }
        let pipelines = [&listener.pipeline, &route.shared, &route.own];
        if let Some((instance, fact)) = facts::unmet(pipelines) {
            faults.add(path, facts::message(&instance, fact));
            return;
        }
        if let Some((upstream, needs)) = keyed
            && let Some(fact) = facts::missing(needs, pipelines)
        {
            let message = format!(
                "`hash_on` of upstream `{upstream}` needs {fact}, but nothing before it establishes that"
            );
            faults.add(path, message);
            return;
        }
    }
}

impl Built {
    /// Puts upstreams in the place of their ids.
    pub(super) fn resolve(
        &self,
        upstreams: &HashMap<UpstreamId, Arc<Upstream>>,
        listeners: usize,
    ) -> Vec<Arc<Route>> {
        let action = |target: &Target| match target {
            Target::Upstream(id) => Action::Upstream(upstreams[id].clone()),
            Target::Answer(filter) => Action::Answer(filter.clone()),
            Target::Nothing => Action::NotFound,
        };
        let ids = (0u32..).map(RouteId);
        ids.zip(&self.routes)
            .map(|(id, route)| {
                Arc::new(Route {
                    id: Some(id),
                    name: route.name.clone(),
                    service: route.service.clone(),
                    shared: route.shared.clone(),
                    own: route.own.clone(),
                    action: action(&route.target),
                    timeouts: route.timeouts,
                    retries: route.retries.clone(),
                    bulkhead: route.bulkhead.clone(),
                    series: series(listeners),
                })
            })
            .collect()
    }
}

/// What logs and metrics call the route of requests that have none; no route can be named so.
pub const UNROUTED: &str = "(none)";

/// The route of requests that no route matches.
pub(super) fn unrouted(listeners: usize) -> Route {
    let none = Arc::new(Pipeline::default());
    Route {
        id: None,
        name: Arc::from(UNROUTED),
        service: None,
        shared: none.clone(),
        own: none,
        action: Action::NotFound,
        timeouts: RouteTimeouts::default(),
        retries: None,
        bulkhead: None,
        series: series(listeners),
    }
}

fn series(listeners: usize) -> Box<[OnceLock<Arc<RouteSeries>>]> {
    std::iter::repeat_with(OnceLock::new).take(listeners).collect()
}

/// Warns of routes that can never match, naming what shadows them.
pub(super) fn shadow_warnings(matches: &[RouteMatch], routes: &[Arc<Route>], loaded: &Loaded) -> Problems {
    let name = |id: RouteId| &routes[id.0 as usize].name;
    let warnings = shadowed(matches).into_iter().map(|shadow| {
        let (route, by) = (name(shadow.route), name(shadow.by));
        let message = format!("route `{route}` can never match: `{by}` takes all its requests");
        fault(&loaded.root, &entity("routes", shadow.route.0 as usize), message)
    });
    Problems::located(warnings, &loaded.files)
}
