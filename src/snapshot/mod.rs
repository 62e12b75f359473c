//! What requests use: immutable, everything resolved.

mod begun;
mod caches;
mod compile;
mod facts;
mod fallbacks;
mod identities;
mod listeners;
mod names;
mod pipelines;
mod releases;
mod reload;
mod routes;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use http::HeaderName;
use parking_lot::RwLock;
use tollhouse_filters::identity::Identities;
use tollhouse_filters::phase::OnRequest;
use tollhouse_filters::pipeline::{Pipeline, Stack};
use tollhouse_filters::plan::Priority;
use tollhouse_filters::traffic::mirror::Report;
use tollhouse_filters::world::UpstreamId;

use crate::config::hedge::Hedge;
use crate::config::retries::RouteRetries;
use crate::config::{Address, Admin, Listener, Observability, RouteTimeouts, Server, Test};
use crate::consumers::{Look, Roster};
use crate::observe::RouteSeries;
use crate::observe::metrics::FirstUse;
use crate::release::{Ramp, Split, Versions};
use crate::routing::{ListenerId, RouteId, Router};
use crate::source::{Fingerprint, Packed, Problems};
use crate::store::RedisStore;
use crate::tls::ServerTls;
use crate::upstream::{Bulkhead, Upstream};

pub use caches::Caches;
pub(crate) use compile::fault;
pub use compile::{Compiler, Mode, apart};
pub use reload::{Reloaded, Reloader, Verify};
pub use routes::UNROUTED;

/// One compiled document: everything a request needs, from start to end.
pub struct Snapshot {
    /// Counts successful loads of this process, from 1.
    pub generation: u64,
    /// Of all inputs that the document is made of.
    pub fingerprint: Fingerprint,
    /// Files that the document names beside those: certificates and keys.
    pub files: NamedFiles,
    /// The process: limits, trusted proxies, path rules.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// Listeners, by [`ListenerId`].
    pub listeners: Vec<ListenerPlan>,
    /// Finds a request's route.
    pub router: Router,
    /// Routes, by [`RouteId`].
    pub routes: Vec<Arc<Route>>,
    /// Those whose weights move.
    pub ramping: Box<[Arc<Route>]>,
    /// What happens to requests that no route matches.
    pub unrouted: Arc<Route>,
    /// Upstreams, in written order.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Priorities of consumers' requests instead of the routes', by plan.
    pub priorities: BTreeMap<Arc<str>, Priority>,
    /// The routes that take requests while the breakers of these upstreams are open.
    pub fallbacks: HashMap<Arc<str>, Arc<Route>>,
    /// What filters call them.
    pub upstream_ids: UpstreamIds,
    /// Stores, by name; none in a snapshot that is not to serve.
    pub stores: Vec<Arc<RedisStore>>,
    /// Caches; none where no route has one.
    pub caches: Option<Caches>,
    /// Ways to prove who is calling.
    pub identities: Identities,
    /// Fields that filters write for upstreams; a client's own copies are dropped.
    pub identity_headers: Vec<HeaderName>,
    /// Fields by which testers choose variants; dropped on all routes but those whose splits go by them.
    pub forcing_headers: Vec<HeaderName>,
    /// Some service reads the version from the path.
    pub reads_path_versions: bool,
    /// Logs and metrics.
    pub observability: Observability,
    /// Tests written in the document.
    pub tests: Vec<Test>,
    /// What is suspicious but not wrong.
    pub warnings: Problems,
    /// Who calls; they change without the document.
    pub consumers: Arc<Roster>,
    /// The document it was compiled from, with the files it came from.
    pub packed: Packed,
}

/// Files whose contents took part in compiling.
#[derive(Debug, Clone, Default)]
pub struct NamedFiles(BTreeMap<PathBuf, Fingerprint>);

impl NamedFiles {
    /// Notes a file before it is read: what changes after this is noticed.
    fn note(&mut self, path: PathBuf) {
        self.0.entry(path).or_insert_with_key(|path| Fingerprint::of_inputs(std::slice::from_ref(path)));
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.keys()
    }

    /// Whether any of them holds something else by now.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.0.iter().any(|(path, seen)| Fingerprint::of_inputs(std::slice::from_ref(path)) != *seen)
    }
}

/// Ids of upstreams, by name.
#[derive(Debug, Clone, Default)]
pub struct UpstreamIds {
    by_name: BTreeMap<Arc<str>, UpstreamId>,
    /// The last one given out by this process.
    next: u32,
}

/// A listener and its filters.
pub struct ListenerPlan {
    /// As written.
    pub options: Listener,
    /// Its name.
    pub name: Arc<str>,
    /// Its filters.
    pub pipeline: Arc<Pipeline>,
    /// What its handshakes need; none without TLS, and where files are not read.
    pub tls: Option<Arc<ServerTls>>,
    /// It has a socket; others get theirs from an upgrade.
    pub bound: bool,
    /// It is no longer in the document, but its socket is still open.
    pub retired: bool,
}

impl ListenerPlan {
    /// Its address, where that tells its socket from all others.
    #[must_use]
    pub fn fixed_address(&self) -> Option<&Address> {
        listeners::fixed_address(&self.options)
    }

    fn retire(&self) -> Self {
        let (options, name, tls) = (self.options.clone(), self.name.clone(), self.tls.clone());
        Self { options, name, pipeline: Arc::default(), tls, bound: self.bound, retired: true }
    }
}

/// A route with everything resolved.
pub struct Route {
    /// Its place in the document; `None` for the route of unrouted requests.
    pub id: Option<RouteId>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service's name.
    pub service: Option<Arc<str>>,
    /// Its service's versions.
    pub versions: Option<Arc<Versions>>,
    /// Its service's filters, shared by all routes of the service.
    pub shared: Arc<Pipeline>,
    /// Its own filters.
    pub own: Arc<Pipeline>,
    /// What it does.
    pub action: Action,
    /// Timeouts instead of the upstream's.
    pub timeouts: Arc<RouteTimeouts>,
    /// Retries instead of the upstream's.
    pub retries: Option<Box<RouteRetries>>,
    /// A hedge instead of the upstream's.
    pub hedge: Option<Box<Hedge>>,
    /// Which requests are refused first while the gateway has too much to do.
    pub priority: Priority,
    /// Its requests are forwarded on the connections themselves where they can be.
    pub direct: bool,
    /// Places for its requests, besides the upstream's.
    pub bulkhead: Option<Arc<Bulkhead>>,
    /// Its pipelines with the listener's, by listener, made on first use; routes with the same pipelines share them.
    stacks: Arc<[OnceLock<Stack>]>,
    /// Its metrics, by listener and branch, made on first use.
    series: Box<[OnceLock<RouteSeries>]>,
    /// The same of requests that fallbacks took elsewhere, also by the upstream that they went to.
    diverted: FirstUse<(ListenerId, usize, Option<Arc<str>>), RouteSeries>,
}

impl Route {
    /// Its weights, if they move.
    fn ramp(&self) -> Option<&Ramp> {
        match &self.action {
            Action::Split(split) => split.split.ramp(),
            _ => None,
        }
    }

    /// Whether its requests may name a version in their path.
    #[must_use]
    pub fn reads_path_version(&self) -> bool {
        self.versions.as_ref().is_some_and(|versions| versions.reads_path())
    }

    /// Whether it chooses a version for requests that name none.
    #[must_use]
    pub fn splits_versions(&self) -> bool {
        matches!(&self.action, Action::Split(split) if split.versions.is_some())
    }

    /// In how many ways requests may go from here; the first is that of those that go nowhere, or the only way.
    #[must_use]
    pub fn branches(&self) -> usize {
        match &self.action {
            Action::Upstream(_) | Action::Answer(_) | Action::NotFound => 1,
            Action::Versions(upstreams) => 1 + upstreams.len(),
            Action::Split(split) => {
                let versions = split.versions.as_ref().map_or(0, |versions| versions.upstreams.len());
                1 + split.upstreams.len() + versions
            }
        }
    }

    /// The variant and the upstream of a branch.
    #[must_use]
    pub fn branch(&self, at: usize) -> (Option<&Arc<str>>, Option<&Arc<Upstream>>) {
        match &self.action {
            Action::Upstream(upstream) => (None, Some(upstream)),
            Action::Answer(_) | Action::NotFound => (None, None),
            _ if at == 0 => (None, None),
            Action::Versions(upstreams) => (None, upstreams.get(at - 1)),
            Action::Split(split) => match split.split.variants().get(at - 1) {
                Some(variant) => (Some(&variant.name), split.upstreams.get(at - 1)),
                None => {
                    let versions = split.versions.as_ref();
                    (None, versions.and_then(|all| all.upstreams.get(at - 1 - split.upstreams.len())))
                }
            },
        }
    }

    /// The metrics of requests that came through this listener and went this way; `make` makes them from the
    /// variant and the upstream.
    pub fn series(
        &self,
        listener: ListenerId,
        branch: usize,
        make: impl FnOnce(Option<&Arc<str>>, Option<&Arc<Upstream>>) -> RouteSeries,
    ) -> &RouteSeries {
        let series = &self.series[usize::from(listener.0) * self.branches() + branch];
        series.get_or_init(|| {
            let (variant, upstream) = self.branch(branch);
            make(variant, upstream)
        })
    }

    /// As [`series`](Self::series), of requests that a fallback took to this upstream, another route's; `make` makes
    /// them from the variant.
    pub fn diverted_series(
        &self,
        listener: ListenerId,
        branch: usize,
        upstream: Option<&Arc<str>>,
        make: impl Fn(Option<&Arc<str>>) -> RouteSeries,
    ) -> &RouteSeries {
        self.diverted.find(
            |(through, way, to)| (*through, *way, to.as_ref()) == (listener, branch, upstream),
            || ((listener, branch, upstream.cloned()), make(self.branch(branch).0)),
        )
    }
}

/// What a route does with a request that its filters let pass.
pub enum Action {
    /// Sends it to an upstream.
    Upstream(Arc<Upstream>),
    /// Sends it to the upstream of its version; by their places.
    Versions(Box<[Arc<Upstream>]>),
    /// Sends it to one of several upstreams.
    Split(Box<SplitAction>),
    /// Answers it.
    Answer(Arc<dyn OnRequest>),
    /// There is nothing here.
    NotFound,
}

/// A split with its upstreams.
pub struct SplitAction {
    /// Chooses.
    pub split: Arc<Split>,
    /// By the place of the variant.
    pub upstreams: Box<[Arc<Upstream>]>,
    /// Where variants are versions.
    pub versions: Option<SplitVersions>,
}

/// The versions behind a split.
pub struct SplitVersions {
    /// The place of each variant's version.
    pub of: Box<[usize]>,
    /// By the place of the version.
    pub upstreams: Box<[Arc<Upstream>]>,
}

impl Snapshot {
    /// Everything whose change makes a reload worthwhile.
    #[must_use]
    pub fn inputs(&self) -> Vec<PathBuf> {
        self.packed.inputs().iter().chain(self.files.paths()).cloned().collect()
    }

    /// The route of this id.
    #[must_use]
    pub fn route(&self, id: RouteId) -> &Arc<Route> {
        &self.routes[id.0 as usize]
    }

    /// The listener of this id.
    #[must_use]
    pub fn listener(&self, id: ListenerId) -> &ListenerPlan {
        &self.listeners[usize::from(id.0)]
    }

    /// The listener of this name.
    #[must_use]
    pub fn listener_named(&self, name: &str) -> Option<ListenerId> {
        let at = self.listeners.iter().position(|listener| !listener.retired && &*listener.name == name)?;
        u16::try_from(at).ok().map(ListenerId)
    }

    /// The upstream of this name.
    #[must_use]
    pub fn upstream_named(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| *upstream.name == *name)
    }

    /// The upstream of this id; none when a newer document dropped it.
    #[must_use]
    pub fn upstream(&self, id: UpstreamId) -> Option<&Arc<Upstream>> {
        let (name, _) = self.upstream_ids.by_name.iter().find(|(_, known)| **known == id)?;
        self.upstream_named(name)
    }

    /// What came of the copies that filters make, each once.
    pub fn mirrors(&self) -> Vec<Arc<Report>> {
        let listeners = self.listeners.iter().map(|listener| &listener.pipeline);
        let routes = self.routes.iter().flat_map(|route| [&route.shared, &route.own]);
        let steps = listeners.chain(routes).flat_map(|pipeline| pipeline.steps());
        let mut reports: Vec<Arc<Report>> = Vec::new();
        for report in steps.filter_map(|step| step.declared.mirror.as_ref()) {
            if !reports.iter().any(|known| Arc::ptr_eq(known, report)) {
                reports.push(report.clone());
            }
        }
        reports
    }

    /// Weights that move, by their routes.
    pub fn ramps(&self) -> impl Iterator<Item = (&Arc<Route>, &Ramp)> {
        self.ramping.iter().filter_map(|route| Some((route, route.ramp()?)))
    }

    /// The pipelines of a request on this listener and route.
    #[must_use]
    pub fn stack(&self, listener: ListenerId, route: &Route) -> Stack {
        let stack = || {
            Stack::new([self.listener(listener).pipeline.clone(), route.shared.clone(), route.own.clone()])
        };
        route.stacks.get(usize::from(listener.0)).map_or_else(stack, |known| known.get_or_init(stack).clone())
    }
}

/// The snapshot in use; requests keep the one they began with.
pub struct Live {
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    /// Shared by those who change consumers, and not by who puts others in their place.
    changes: RwLock<()>,
}

impl Live {
    /// Starts with this snapshot.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        let generation = AtomicU64::new(snapshot.generation);
        Self { current: ArcSwap::from_pointee(snapshot), generation, changes: RwLock::default() }
    }

    /// The snapshot in use now.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The generation in use now.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Changes the consumers in use; a snapshot that is put into use later goes by what was changed.
    pub fn change_consumers<T>(&self, change: impl FnOnce(&Roster) -> T) -> T {
        let _changing = self.changes.read();
        change(&self.load().consumers)
    }

    /// Puts this snapshot into use for requests that begin from now on; one at a time.
    pub fn swap(&self, snapshot: Snapshot) {
        let before = self.load().consumers.clone();
        // Who changes consumers may wait long for a disk, which is nothing to those who have the same ones.
        let unchanged = (!Arc::ptr_eq(&before, &snapshot.consumers)).then(|| self.changes.write());
        if unchanged.is_some() {
            // Read before its tests ran and its backends were probed, and somebody may have been disabled since.
            snapshot.consumers.look(Look::Early);
            snapshot.consumers.catch_up_with(&before);
        }
        self.generation.store(snapshot.generation, Ordering::Relaxed);
        self.current.store(Arc::new(snapshot));
    }
}
