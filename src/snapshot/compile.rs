//! From a loaded document to a snapshot, or every problem at once.

mod doubt;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use tollhouse_filters::pipeline::Pipeline;
use tollhouse_filters::plan::{PlanSpec, Priority};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::tree::{Error, FileId, Mark, Node, Path, Scalar, suggest};
use tollhouse_filters::values::ByteSize;
use tollhouse_filters::world::{UpstreamId, World};

use self::doubt::{Doubt, Read, read, together};
use super::caches::{self, Caches};
use super::pipelines::{Named, Pipelines};
use super::releases::Known;
use super::{Action, fallbacks, identities, listeners, names, routes, stores};
use super::{ListenerPlan, NamedFiles, Snapshot, UpstreamIds};
use crate::config::{self, Document, Name};
use crate::consumers::Roster;
use crate::source::{Files, Loaded, Problems};
use crate::store::files_of;
use crate::upstream::Upstream;

/// Most fields that a head may be allowed to have: Pingora reads no more than one beyond.
const MAX_FIELDS: usize = 255;

/// What the fields of a head may have at most: with the longest target, no more than Pingora reads of a head.
const MAX_FIELD_BYTES: ByteSize = ByteSize::from_kib(900);

/// Longest target that may be allowed: those who read URIs for the gateway take no longer ones.
const MAX_TARGET: ByteSize = ByteSize::from_kib(64);

/// Shortest `min_ttl`: some answers hold for no time at all.
const MIN_TTL: Duration = Duration::from_millis(100);

/// Sections that say which way requests go.
const WAYS: [&str; 4] = ["listeners", "services", "chains", "routes"];

/// Whether a snapshot is to serve or only to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It will serve requests.
    Live,
    /// It decides about made-up requests: nothing outside is looked up or reached.
    Dry,
    /// As [`Mode::Dry`], for a document that came from afar: it makes nobody read this machine's files.
    Afar,
}

/// Compiles documents.
pub struct Compiler<'a> {
    /// The filters that exist.
    pub registry: &'a Registry,
    /// The world its filters reach.
    pub world: &'a World,
    /// The snapshot in use, whose upstreams live on where nothing changed.
    pub previous: Option<&'a Snapshot>,
    /// Whether it is to serve.
    pub mode: Mode,
    /// Consumers that were read before, for a document that asks for the same ones.
    pub roster: Option<Arc<Roster>>,
}

/// Loads and compiles on a thread of its own: what only that needed goes back to the system with the
/// thread, however much it was; and a fault of the program in there is not the end of the caller.
pub fn apart<T: Send, E: Send + From<Problems>>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| {
        let message = "compiling failed; this is a fault of the program, please report it";
        let nowhere = Error::new(Mark::default(), message);
        Err(Problems::located([nowhere], &Files::default()).into())
    })
}

/// Problems found so far, by their place in the document.
pub(super) struct Faults<'a> {
    root: &'a Arc<Node>,
    doubt: &'a Doubt,
    found: Vec<Error>,
    /// For what nobody is told.
    unheard: Option<Box<Self>>,
    /// What references gave, once somebody asked.
    given: OnceCell<HashSet<String>>,
}

impl<'a> Faults<'a> {
    /// With those that were found so far.
    fn new(root: &'a Arc<Node>, doubt: &'a Doubt, found: Vec<Error>) -> Self {
        Self { root, doubt, found, unheard: None, given: OnceCell::new() }
    }

    /// Whether these sections could be read in full.
    pub(super) fn is_sound(&self, sections: &[&str]) -> bool {
        self.doubt.is_sound(sections)
    }

    /// For problems that are none unless these sections could be read in full.
    pub(super) fn given(&mut self, sections: &[&str]) -> &mut Self {
        if self.is_sound(sections) {
            return self;
        }
        let (root, doubt) = (self.root, self.doubt);
        self.unheard.get_or_insert_with(|| Box::new(Self::new(root, doubt, Vec::new())))
    }

    /// Something suspicious at this place, which is not wrong.
    pub(super) fn remark(&self, path: &Path, message: impl Into<String>) -> Error {
        fault(self.root, path, message)
    }

    pub(super) fn add(&mut self, path: &Path, message: impl Into<String>) {
        self.add_with_hint(path, message, None);
    }

    pub(super) fn add_with_hint(&mut self, path: &Path, message: impl Into<String>, hint: Option<String>) {
        let written = self.doubt.written(self.root, path, Some(together(path)));
        self.push(written, message.into(), hint);
    }

    /// Adds what is wrong by the whole entity: its key and index, or key and name, are the first two steps.
    pub(super) fn add_by_entity(&mut self, path: &Path, message: impl Into<String>, hint: Option<String>) {
        let written = self.doubt.written(self.root, path, Some(2));
        self.push(written, message.into(), hint);
    }

    /// Adds a name that nothing has, which is wrong whatever else is.
    pub(super) fn add_unknown(&mut self, path: &Path, message: impl Into<String>, hint: Option<String>) {
        let written = self.doubt.written(self.root, path, None);
        self.push(written, message.into(), hint);
    }

    fn push(&mut self, written: Option<Path>, message: String, hint: Option<String>) {
        let Some(path) = written else { return };
        let error = fault(self.root, &path, message);
        if self.doubt.is_told(error.at) {
            return;
        }
        // A name near what a reference gave would tell that.
        let hint = hint.filter(|hint| substituted(self.root, &path).is_none() && !self.gives_away(hint));
        self.found.push(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        });
    }

    /// Whether the name that a hint quotes came through a reference.
    fn gives_away(&self, hint: &str) -> bool {
        let given = self.given.get_or_init(|| {
            let mut texts = HashSet::new();
            self.root.map_scalars(|scalar, _, _| {
                if scalar.is_substituted() {
                    texts.insert(scalar.text().to_owned());
                }
                None
            });
            texts
        });
        hint.split('`').nth(1).is_some_and(|name| given.contains(name))
    }
}

/// Something wrong at this place of a document; what a reference gave is not quoted.
pub(crate) fn fault(root: &Node, path: &Path, message: impl Into<String>) -> Error {
    let mut message = message.into();
    if let Some(text) = substituted(root, path) {
        message = message.replace(&format!("`{text}`"), "`***`");
    }
    Error::new(root.nearest(path).at, message).on(path.clone())
}

/// The text at this place, if it came through a reference.
fn substituted<'a>(root: &'a Node, path: &Path) -> Option<&'a str> {
    root.nearest(path).as_scalar().filter(|scalar| scalar.is_substituted()).map(Scalar::text)
}

/// "did you mean", when one of these names is near enough to be what was meant.
pub(super) fn did_you_mean<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    suggest(wanted, names).map(|near| format!("did you mean `{near}`?"))
}

impl Compiler<'_> {
    /// Compiles a loaded document.
    pub fn compile(&self, loaded: &Arc<Loaded>) -> Result<Snapshot, Problems> {
        let read = read(loaded)?;
        if read.errors.is_empty() || self.mode != Mode::Live {
            return self.build(read, loaded);
        }
        // It will not serve: nothing is fetched for it, and no gauge is told of it.
        let (registry, previous, world) = (self.registry, self.previous, World::dry());
        let dry =
            Compiler { registry, world: &world, previous, mode: Mode::Dry, roster: self.roster.clone() };
        dry.build(read, loaded)
    }

    fn build(&self, read: Read, loaded: &Arc<Loaded>) -> Result<Snapshot, Problems> {
        let Read { mut document, doubt, errors } = read;
        let mut faults = Faults::new(&loaded.root, &doubt, errors);
        let base = FilePath::new(loaded.files.name(FileId(0))).parent().unwrap_or(FilePath::new(""));
        // Noted before they are read: what changes after this is noticed.
        let files = self.files(&document, base);
        let upstreams = self.upstreams(&document.upstreams, base, &mut faults);
        let ids = ids(&document.upstreams, self.previous);
        let folder = (self.mode != Mode::Afar).then_some(base);
        let plans = identities::plans(&document, &mut faults);
        let (roster, unread) =
            identities::roster(&mut document, &plans, folder, self.roster.as_ref(), &mut faults);
        let (stores, by_name) = stores::build(self, &document.stores, base, &mut faults);
        let around = identities::Around { upstreams: &ids.by_name, plans: &plans, stores: &by_name };
        let identities = identities::build(&mut document, &roster, self.world, &around, &mut faults);
        let known = &Known::of(&document, &plans);
        let named = Named { upstreams: &ids.by_name, identities: &identities, stores: &by_name, known };
        let mut pipelines = Pipelines::new(self.registry, self.world, named, folder, files);
        pipelines.live = self.mode == Mode::Live;
        pipelines.build_chains(document.chains, &mut faults);
        let (listeners, unusual) =
            listeners::build(self, document.listeners, base, &document.server, &mut pipelines, &mut faults);
        let names = names::Names::new(&listeners, &ids.by_name, &document.services, known)
            .with_bulkheads_of(self.previous)
            .with_keys_and_fallbacks_of(&document.upstreams);
        let built = routes::build(document.services, document.routes, &names, &mut pipelines, &mut faults);
        let fallbacks = fallbacks::find(&document.upstreams, &ids, &built, &listeners, faults.given(&WAYS));
        names.check_tests(&document.tests, &mut faults);
        check_server(&document.server, document.stores.keys(), &mut faults);
        let files = pipelines.into_files();
        none_of(faults.found, unread, loaded, &files)?;
        let routes = built.resolve(&upstreams_by_id(&ids, &upstreams), listeners.len());
        Ok(Snapshot {
            warnings: warnings(unusual, routes::shadow_warnings(&built.matches, &routes, loaded), loaded),
            generation: self.previous.map_or(1, |previous| previous.generation + 1),
            fingerprint: loaded.fingerprint,
            files,
            server: document.server,
            admin: document.admin,
            identity_headers: identity_headers(&listeners, &routes),
            caches: Caches::of(&listeners, &routes, &self.world.cached),
            forcing_headers: forcing_headers(&routes),
            reads_path_versions: routes.iter().any(|route| route.reads_path_version()),
            identities,
            unrouted: Arc::new(routes::unrouted(listeners.len())),
            listeners,
            router: crate::routing::Router::build(built.matches),
            priorities: priorities(&document.plans),
            fallbacks: fallbacks::resolve(&fallbacks, &routes),
            ramping: routes.iter().filter(|route| route.ramp().is_some()).cloned().collect(),
            routes,
            upstreams,
            upstream_ids: ids,
            stores,
            observability: document.observability,
            tests: document.tests,
            consumers: roster,
            packed: loaded.pack(),
        })
    }

    /// The files that upstreams, listeners and stores name: certificates and keys.
    fn files(&self, document: &Document, base: &FilePath) -> NamedFiles {
        let mut files = NamedFiles::default();
        if self.mode == Mode::Afar {
            return files;
        }
        let registries = document
            .upstreams
            .iter()
            .filter_map(|upstream| upstream.discovery.as_ref()?.registry().ok()?.shared().tls());
        let upstreams =
            document.upstreams.iter().filter_map(|upstream| upstream.tls.as_ref()).chain(registries);
        let upstreams = upstreams.flat_map(|tls| [&tls.ca, &tls.client_cert, &tls.client_key]).flatten();
        let listeners = document.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let stores = document.stores.values().flat_map(files_of);
        let paths = upstreams.chain(listeners.flat_map(config::ListenerTls::files)).chain(stores);
        paths.for_each(|path| files.note(base.join(path)));
        files
    }

    fn upstreams(
        &self,
        written: &[config::Upstream],
        base: &FilePath,
        faults: &mut Faults<'_>,
    ) -> Vec<Arc<Upstream>> {
        let mut built = Vec::with_capacity(written.len());
        for (at, options) in written.iter().enumerate() {
            let path = entity("upstreams", at);
            let registry = options.discovery.as_ref().map(|discovery| discovery.registry());
            if matches!(registry, Some(Err([]))) {
                // That its references could not be resolved was told.
                continue;
            }
            let previous = self.previous.and_then(|snapshot| snapshot.upstream_named(options.name.as_str()));
            let upstream = match self.mode {
                Mode::Live | Mode::Dry => {
                    Upstream::build(options, base, previous.map(|previous| &**previous))
                }
                Mode::Afar => Upstream::build(&without_files(options), base, None),
            };
            match upstream {
                // What nothing changed in lives on, with its place in the round and its counts.
                Ok(upstream) => {
                    built.push(match previous.filter(|previous| previous.same_shape(&upstream)) {
                        Some(previous) => previous.clone(),
                        None => Arc::new(upstream),
                    })
                }
                Err(errors) => errors
                    .into_iter()
                    .for_each(|(place, message)| faults.add(&path.concat(&below(&place)), message)),
            }
        }
        built
    }
}

/// What is unusual, and routes that can never match.
fn warnings(unusual: Vec<Error>, shadowed: Problems, loaded: &Loaded) -> Problems {
    let mut warnings = Problems::located(unusual, &loaded.files);
    warnings.list.extend(shadowed.list);
    warnings
}

/// Priorities of plans that have one.
fn priorities(plans: &BTreeMap<Name, PlanSpec>) -> BTreeMap<Arc<str>, Priority> {
    plans.iter().filter_map(|(name, plan)| Some((name.shared(), plan.priority?))).collect()
}

/// That nothing is wrong with a document; else all that is, and what is to be watched until somebody repairs it.
fn none_of(found: Vec<Error>, unread: Problems, loaded: &Loaded, files: &NamedFiles) -> Result<(), Problems> {
    if found.is_empty() && unread.list.is_empty() {
        return Ok(());
    }
    let mut problems = located(found, loaded);
    problems.list.extend(unread.list);
    problems.inputs.extend(files.paths().chain(&unread.inputs).cloned());
    Err(problems)
}

/// Problems in the order of their places.
fn located(mut found: Vec<Error>, loaded: &Loaded) -> Problems {
    found.sort_by_key(|error| (error.at.file, error.at.line, error.at.column));
    Problems { inputs: loaded.inputs.clone(), ..Problems::located(found, &loaded.files) }
}

fn check_server<'a>(
    server: &config::Server,
    stores: impl Iterator<Item = &'a config::Name> + Clone,
    faults: &mut Faults<'_>,
) {
    let limits = &server.limits;
    if limits.header_count.get() > MAX_FIELDS {
        faults.add(&below("server.limits.header_count"), format!("expected 1 to {MAX_FIELDS}"));
    }
    if limits.header_bytes > MAX_FIELD_BYTES {
        faults.add(&below("server.limits.header_bytes"), format!("expected at most {MAX_FIELD_BYTES}"));
    }
    if limits.uri_bytes > MAX_TARGET {
        faults.add(&below("server.limits.uri_bytes"), format!("expected at most {MAX_TARGET}"));
    }
    check_dns(&server.dns, faults);
    caches::check(&server.cache, stores, faults);
}

fn check_dns(dns: &config::Dns, faults: &mut Faults<'_>) {
    let mut path = Path::default();
    ["server", "dns", "min_ttl"].into_iter().for_each(|part| path.push(part));
    if dns.min_ttl.get() < MIN_TTL {
        faults.add(&path, "expected at least 100ms");
    }
    if dns.min_ttl > dns.max_ttl {
        faults.add(&path, format!("is longer than `max_ttl`, which is {}", dns.max_ttl));
    }
}

fn without_files(upstream: &config::Upstream) -> config::Upstream {
    let mut upstream = upstream.clone();
    if let Some(tls) = &mut upstream.tls {
        (tls.ca, tls.client_cert, tls.client_key) = (None, None, None);
    }
    // Of a registry, no more than what it is matters afar.
    if let Some(discovery) = &mut upstream.discovery {
        discovery.forget_files();
    }
    upstream
}

/// A path below an entity, written as in `backends[0].weight`.
pub(super) fn below(text: &str) -> Path {
    let mut path = Path::default();
    for part in text.split(['.', '[']).map(|part| part.trim_end_matches(']')) {
        match part.parse::<usize>() {
            Ok(index) => path.push(index),
            Err(_) => path.push(part),
        }
    }
    path
}

/// The path of an entity in a list.
pub(super) fn entity(section: &str, at: usize) -> Path {
    let mut path = Path::default();
    path.push(section);
    path.push(at);
    path
}

/// Ids of upstreams: a name keeps its id from snapshot to snapshot, and no id is given out twice,
/// so that a filter of an older snapshot never reaches another upstream than it named.
fn ids(upstreams: &[config::Upstream], previous: Option<&Snapshot>) -> UpstreamIds {
    let mut next = previous.map_or(0, |previous| previous.upstream_ids.next);
    let mut id = |name: &str| match previous.and_then(|previous| previous.upstream_ids.by_name.get(name)) {
        Some(kept) => *kept,
        None => {
            next += 1;
            UpstreamId(next)
        }
    };
    let by_name =
        upstreams.iter().map(|upstream| (upstream.name.shared(), id(upstream.name.as_str()))).collect();
    UpstreamIds { by_name, next }
}

fn upstreams_by_id(ids: &UpstreamIds, upstreams: &[Arc<Upstream>]) -> HashMap<UpstreamId, Arc<Upstream>> {
    upstreams.iter().map(|upstream| (ids.by_name[&upstream.name], upstream.clone())).collect()
}

/// Every field that some step writes for upstreams, once.
fn identity_headers(listeners: &[ListenerPlan], routes: &[Arc<super::Route>]) -> Vec<HeaderName> {
    let of = |pipeline: &Arc<Pipeline>| -> Vec<HeaderName> {
        pipeline.steps().iter().flat_map(|step| step.declared.identity_headers.clone()).collect()
    };
    let mut names: Vec<HeaderName> = listeners.iter().flat_map(|listener| of(&listener.pipeline)).collect();
    names.extend(routes.iter().flat_map(|route| [of(&route.shared), of(&route.own)].concat()));
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

/// Every field by which testers choose a variant, once.
fn forcing_headers(routes: &[Arc<super::Route>]) -> Vec<HeaderName> {
    let of = |route: &Arc<super::Route>| match &route.action {
        Action::Split(split) => split.split.forced_by().cloned(),
        _ => None,
    };
    let mut names: Vec<HeaderName> = routes.iter().filter_map(of).collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}
