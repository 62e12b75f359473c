//! From written routes and services to resolved ones.

mod captures;
mod keys;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use http::Method;
use tollhouse_filters::condition::Conditions;
use tollhouse_filters::path::PathPattern;
use tollhouse_filters::phase::OnRequest;
use tollhouse_filters::pipeline::Pipeline;
use tollhouse_filters::plan::Priority;
use tollhouse_filters::selector::Selector;
use tollhouse_filters::spec::Item;
use tollhouse_filters::tree::{Path, Raw};
use tollhouse_filters::world::UpstreamId;

use super::compile::{Faults, below, entity, fault};
use super::names::Names;
use super::pipelines::Pipelines;
use super::releases::{self, BuiltVersions, SplitPlan};
use super::{Action, Route, SplitAction, SplitVersions};
use crate::config::concurrency::Concurrency;
use crate::config::hedge::{Hedge, MAX_HEDGES};
use crate::config::retries::RouteRetries;
use crate::config::{self, Match, Name, RouteTimeouts};
use crate::observe::metrics::FirstUse;
use crate::release::Versions;
use crate::routing::{RouteId, RouteMatch, shadowed};
use crate::source::{Loaded, Problems};
use crate::upstream::{Bulkhead, MAX_RETRIES, Upstream};

/// Routes whose upstreams are still ids.
pub(super) struct Built {
    /// For the router, by route id.
    pub(super) matches: Vec<RouteMatch>,
    pub(super) routes: Vec<Unresolved>,
}

/// A route whose upstreams are still ids.
pub(super) struct Unresolved {
    pub(super) name: Arc<str>,
    service: Option<Arc<str>>,
    versions: Option<Arc<Versions>>,
    pub(super) shared: Arc<Pipeline>,
    pub(super) own: Arc<Pipeline>,
    pub(super) target: Target,
    timeouts: Arc<RouteTimeouts>,
    retries: Option<Box<RouteRetries>>,
    hedge: Option<Box<Hedge>>,
    priority: Priority,
    direct: bool,
    bulkhead: Option<Arc<Bulkhead>>,
}

/// What a route does.
#[derive(Clone)]
pub(super) enum Target {
    Upstream(UpstreamId),
    Versions(Vec<UpstreamId>),
    Split(SplitPlan),
    Answer(Arc<dyn OnRequest>),
    Nothing,
}

impl Target {
    /// Every upstream that requests may go to.
    pub(super) fn upstreams(&self) -> Vec<UpstreamId> {
        match self {
            Self::Upstream(id) => vec![*id],
            Self::Versions(ids) => ids.clone(),
            Self::Split(plan) => plan.all_upstreams().collect(),
            Self::Answer(_) | Self::Nothing => Vec::new(),
        }
    }
}

/// A service with its versions.
pub(super) struct Service {
    name: Arc<str>,
    pipeline: Arc<Pipeline>,
    upstream: Option<UpstreamId>,
    /// None, too, where what was written is wrong.
    pub(super) versions: Option<BuiltVersions>,
}

impl Service {
    /// Where the requests of each version go.
    pub(super) fn version_upstreams(&self, path: &Path, faults: &mut Faults<'_>) -> Option<Vec<UpstreamId>> {
        let built = self.versions.as_ref()?;
        let upstreams = built.upstreams.iter().map(|own| own.or(self.upstream));
        if let Some((name, _)) = built.versions.names().zip(upstreams.clone()).find(|(_, id)| id.is_none()) {
            let name = format!("version `{name}` of service `{}` has no upstream", self.name);
            faults.given(&["services"]).add(path, format!("{name}, and neither has the service"));
        }
        upstreams.collect()
    }

    /// Whether some version has an upstream of its own, which a route's action would hide.
    fn sends_versions_apart(&self) -> bool {
        self.versions.as_ref().is_some_and(|built| built.upstreams.iter().any(Option::is_some))
    }
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
    let no_timeouts = Arc::<RouteTimeouts>::default();
    let mut built =
        Built { matches: Vec::with_capacity(routes.len()), routes: Vec::with_capacity(routes.len()) };
    for (at, route) in routes.into_iter().enumerate() {
        let path = entity("routes", at);
        let service =
            route.service.as_ref().and_then(|name| names.service(name, &path.join("service"), faults));
        let service = service.map(|at| &services[at]);
        let target = target(&route, service, names, pipelines, &path, faults);
        check_answer(&route, &target, &path, faults);
        check_retries(route.retries.as_deref(), &path, faults);
        check_concurrency(route.concurrency.as_deref(), &path, faults);
        check_hedge(route.hedge.as_deref(), &target, names, &path, faults);
        let before = names.bulkheads.get(route.name.as_str());
        let unresolved = Unresolved {
            name: route.name.shared(),
            service: service.map(|service| service.name.clone()),
            versions: service.and_then(|service| Some(service.versions.as_ref()?.versions.clone())),
            shared: service.map_or_else(|| none.clone(), |service| service.pipeline.clone()),
            own: own(&route.name, route.filters, &none, pipelines, &path, faults),
            target,
            timeouts: match route.timeouts == *no_timeouts {
                true => no_timeouts.clone(),
                false => Arc::new(route.timeouts),
            },
            retries: route.retries,
            hedge: route.hedge,
            priority: route.priority,
            direct: route.direct,
            bulkhead: route.concurrency.as_ref().map(|written| Bulkhead::retained(written, before)),
        };
        let matched = matches(route.matches, names.is_fallback(&route.name), names, &path, faults);
        built.matches.push(matched);
        built.routes.push(unresolved);
    }
    keys::check_facts(&built, names, faults.given(&["listeners", "services", "chains"]));
    captures::check_filters(&built, names.listeners, faults.given(&["routes"]));
    captures::check_keys(&built, names, faults.given(&["upstreams", "services", "routes"]));
    built
}

/// A route's own filters; of many thousand routes most have none.
fn own(
    route: &Name,
    filters: Vec<Item>,
    none: &Arc<Pipeline>,
    pipelines: &mut Pipelines<'_>,
    path: &Path,
    faults: &mut Faults<'_>,
) -> Arc<Pipeline> {
    if filters.is_empty() {
        return none.clone();
    }
    pipelines.build(&format!("route:{route}"), filters, &path.join("filters"), faults)
}

/// What is written for an upstream does nothing on a route that goes to none.
fn check_answer(route: &config::Route, target: &Target, path: &Path, faults: &mut Faults<'_>) {
    if !matches!(target, Target::Answer(_)) {
        return;
    }
    let written = [
        ("timeouts", route.timeouts != RouteTimeouts::default()),
        ("retries", route.retries.is_some()),
        ("hedge", route.hedge.is_some()),
        ("concurrency", route.concurrency.is_some()),
    ];
    for (key, _) in written.into_iter().filter(|(_, is_written)| *is_written) {
        faults.add(&path.join(key), "is for requests to an upstream, and this route answers by itself");
    }
}

fn check_retries(retries: Option<&RouteRetries>, path: &Path, faults: &mut Faults<'_>) {
    if retries.and_then(|retries| retries.max).is_some_and(|max| max > MAX_RETRIES) {
        faults.add(&path.join("retries").join("max"), format!("expected 0 to {MAX_RETRIES}"));
    }
}

fn check_concurrency(written: Option<&Concurrency>, path: &Path, faults: &mut Faults<'_>) {
    if let Some((place, message)) = written.and_then(Concurrency::problem) {
        faults.add(&path.join("concurrency").concat(&below(place)), message);
    }
}

fn check_hedge(
    hedge: Option<&Hedge>,
    target: &Target,
    names: &Names<'_>,
    path: &Path,
    faults: &mut Faults<'_>,
) {
    let Some(hedge) = hedge else { return };
    if hedge.max > MAX_HEDGES {
        faults.add(&path.join("hedge").join("max"), format!("expected 0 to {MAX_HEDGES}"));
    }
    if hedge.max > 0 && target.upstreams().iter().any(|id| names.sticky.contains(id)) {
        let message =
            "goes to other backends, and `balance.sticky` of the upstream keeps clients with theirs";
        faults.add(&path.join("hedge"), message);
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
        versions: releases::versions(&service, names, pipelines.world(), &path, faults),
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
    let written = [
        ("upstream", route.upstream.is_some()),
        ("split", route.split.is_some()),
        ("respond", route.respond.is_some()),
        ("redirect", route.redirect.is_some()),
    ];
    let mut written = written.iter().filter(|(_, is)| *is).map(|(key, _)| *key);
    let action = written.next();
    if written.next().is_some() {
        faults.add(path, "a route has one action; keep one of `upstream`, `split`, `respond` and `redirect`");
        return Target::Nothing;
    }
    if let (Some(key), Some(service)) = (action, service.filter(|service| service.sends_versions_apart()))
        && route.split.as_ref().is_none_or(|split| split.versions.is_empty())
    {
        let message = format!(
            "`{key}` hides the upstreams of the versions of service `{}`; take one or the other away",
            service.name
        );
        faults.add(&path.join(key), message);
    }
    let mut answer = |filter: &str, options: &Raw| {
        let (owner, path) = (format!("route:{}", route.name), path.join(filter));
        let (phases, declared) = pipelines.action(filter, &options.0, &owner, &path, faults)?;
        // Requests that a fallback hands over have the captures of their own routes.
        if !names.is_fallback(&route.name) {
            let read = declared.captures.iter().map(|name| &**name);
            captures::check(read, &route.matches.paths, &path, faults.given(&["upstreams"]));
        }
        phases.into_request()
    };
    if let Some(options) = &route.respond {
        return answer("respond", options).map_or(Target::Nothing, Target::Answer);
    }
    if let Some(options) = &route.redirect {
        return answer("redirect", options).map_or(Target::Nothing, Target::Answer);
    }
    if let Some(split) = &route.split {
        let read = split.sticky_by.iter().flat_map(Selector::captures);
        captures::check(read, &route.matches.paths, &path.join("split").join("sticky_by"), faults);
        let at = (&path.join("split"), faults);
        let plan =
            releases::split(split, &route.name, service, names, (pipelines.world(), pipelines.live), at);
        return plan.map_or(Target::Nothing, Target::Split);
    }
    if let Some(name) = &route.upstream {
        let found = names.upstream(name, &path.join("upstream"), faults);
        return found.map_or(Target::Nothing, Target::Upstream);
    }
    given(service, route, path, faults)
}

/// What its service gives a route without an action of its own.
fn given(service: Option<&Service>, route: &config::Route, path: &Path, faults: &mut Faults<'_>) -> Target {
    match service {
        Some(service) if service.versions.is_some() => {
            service.version_upstreams(path, faults).map_or(Target::Nothing, Target::Versions)
        }
        Some(Service { upstream: Some(upstream), .. }) => Target::Upstream(*upstream),
        // The service's own problem was reported with the service.
        None if route.service.is_some() => Target::Nothing,
        _ => {
            let actions = "`upstream`, `split`, `respond` or `redirect`";
            let message = format!("the route does nothing; add {actions}, or a `service` with an upstream");
            let faults = if service.is_some() { faults.given(&["services"]) } else { faults };
            faults.add(path, message);
            Target::Nothing
        }
    }
}

fn matches(
    mut written: Match,
    is_fallback: bool,
    names: &Names<'_>,
    path: &Path,
    faults: &mut Faults<'_>,
) -> RouteMatch {
    let methods: Vec<Method> = written.methods.into_iter().map(Method::from).collect();
    let headers = written.headers.into_iter().map(|(name, value)| (name.into(), value));
    let listeners = written.listeners.map(|list| {
        let path = path.join("match").join("listeners");
        // On no listener, it is for fallbacks alone.
        if list.is_empty() && !is_fallback {
            let message = "at least one listener is needed; for all of them, take the key away";
            faults.given(&["upstreams"]).add(&path, message);
        }
        list.iter()
            .enumerate()
            .filter_map(|(at, name)| names.listener(name, &path.join(at), faults))
            .collect()
    });
    for (at, why) in PathPattern::settle(&mut written.paths, &names.known.paths) {
        faults.add(&path.join("match").join("paths").join(at), why);
    }
    written.hosts.shrink_to_fit();
    written.paths.shrink_to_fit();
    RouteMatch {
        hosts: written.hosts,
        paths: written.paths,
        listeners,
        conditions: Conditions::new(methods, headers, written.query, written.cookies),
    }
}

impl Built {
    /// Puts upstreams in the place of their ids.
    pub(super) fn resolve(
        &self,
        upstreams: &HashMap<UpstreamId, Arc<Upstream>>,
        listeners: usize,
    ) -> Vec<Arc<Route>> {
        let ids = (0u32..).map(RouteId);
        // Most routes have no filters of their own, and all of these share what requests look at each time.
        let mut stacks: HashMap<[*const Pipeline; 2], Arc<[_]>> = HashMap::new();
        ids.zip(&self.routes)
            .map(|(id, route)| {
                let pipelines = [&route.shared, &route.own].map(Arc::as_ptr);
                let mut resolved = Route {
                    id: Some(id),
                    name: route.name.clone(),
                    service: route.service.clone(),
                    versions: route.versions.clone(),
                    shared: route.shared.clone(),
                    own: route.own.clone(),
                    action: action(&route.target, upstreams),
                    timeouts: route.timeouts.clone(),
                    retries: route.retries.clone(),
                    hedge: route.hedge.clone(),
                    priority: route.priority,
                    direct: route.direct,
                    bulkhead: route.bulkhead.clone(),
                    stacks: stacks.entry(pipelines).or_insert_with(|| unmade(listeners)).clone(),
                    series: Box::default(),
                    diverted: FirstUse::default(),
                };
                resolved.series = unmade(listeners * resolved.branches());
                Arc::new(resolved)
            })
            .collect()
    }
}

fn action(target: &Target, upstreams: &HashMap<UpstreamId, Arc<Upstream>>) -> Action {
    let all = |ids: &[UpstreamId]| ids.iter().map(|id| upstreams[id].clone()).collect();
    match target {
        Target::Upstream(id) => Action::Upstream(upstreams[id].clone()),
        Target::Versions(ids) => Action::Versions(all(ids)),
        Target::Split(plan) => Action::Split(Box::new(SplitAction {
            split: plan.split.clone(),
            upstreams: all(&plan.upstreams),
            versions: plan
                .versions
                .as_ref()
                .map(|(of, ids)| SplitVersions { of: of.as_slice().into(), upstreams: all(ids) }),
        })),
        Target::Answer(filter) => Action::Answer(filter.clone()),
        Target::Nothing => Action::NotFound,
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
        versions: None,
        shared: none.clone(),
        own: none,
        action: Action::NotFound,
        timeouts: Arc::default(),
        retries: None,
        hedge: None,
        priority: Priority::default(),
        direct: true,
        bulkhead: None,
        stacks: unmade(listeners),
        series: unmade(listeners),
        diverted: FirstUse::default(),
    }
}

fn unmade<T, C: FromIterator<OnceLock<T>>>(count: usize) -> C {
    std::iter::repeat_with(OnceLock::new).take(count).collect()
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
