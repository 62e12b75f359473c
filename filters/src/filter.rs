//! The filter contract: what a filter is, and what it is given when it is built.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::HeaderName;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::caching::Counted;
use crate::context::Slot;
use crate::identity::{Identities, Identity};
use crate::path::PathRules;
use crate::phase::Phases;
use crate::plan::Plans;
use crate::selector::Selector;
use crate::template::Template;
use crate::traffic::mirror::Report;
use crate::tree::{Path, suggest};
use crate::values::hex;
use crate::world::{Clock, Ledger, Metrics, Rng, ScopedState, Store, Stores, UpstreamId, World};

/// One kind of filter: what users write in a `filters` list.
///
/// An instance is one written list item, shared by every route that uses it. It reaches the world
/// only through what [`Build`] hands out, so that it can be tested, dry-run and replayed.
///
/// A filter that panics ends its own request without an answer, and nothing else: guards in slots
/// are dropped as the stack unwinds, [`OnFinish`](crate::phase::OnFinish) is not told, and the
/// instance goes on serving other requests.
pub trait Filter: Sized {
    /// What users write: `rate_limit`. Also its file, metric label and log field.
    const NAME: &'static str;
    /// A guard refuses `on_error: continue` unless `fail_open: true` is written too.
    const GUARD: bool = false;
    /// Only deciding filters accept `dry_run`.
    const DECIDES: bool = false;
    /// What users write under the name.
    type Options: DeserializeOwned + JsonSchema;
    /// Checks the options and makes the instance's phases.
    fn build(options: Self::Options, build: &mut Build<'_>) -> Result<Phases, BuildError>;
}

/// Something that a filter establishes about a request and that later filters may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fact {
    /// Who calls is known, or the request was refused.
    Consumer,
    /// The claims of a verified credential are known.
    Claims,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consumer => "the consumer",
            Self::Claims => "claims",
        })
    }
}

/// Why an instance cannot be built; the fault is in the user's document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// Where in the options, empty for the options as a whole.
    pub path: Path,
    /// What is wrong and how to mend it, in lower case.
    pub message: String,
    /// A near name, when there is one.
    pub hint: Option<String>,
}

impl BuildError {
    /// An error about the options as a whole.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { path: Path::default(), message: message.into(), hint: None }
    }

    /// An error about one option.
    #[must_use]
    pub fn at(option: &str, message: impl Into<String>) -> Self {
        let mut path = Path::default();
        path.push(option);
        Self { path, message: message.into(), hint: None }
    }
}

/// What the compiler of a document offers to the filters it builds.
pub trait Surroundings {
    /// The upstream of this name.
    fn upstream(&self, name: &str) -> Option<UpstreamId>;
    /// The name nearest to this one, for "did you mean".
    fn nearest_upstream(&self, name: &str) -> Option<String>;
    /// The identities of the document; none where there is no document.
    fn identities(&self) -> Option<&Identities> {
        None
    }
    /// The stores of the document; none where there is no document.
    fn stores(&self) -> Option<&Stores> {
        None
    }
    /// The plans of the document; none where there is no document.
    fn plans(&self) -> Option<&Plans> {
        None
    }
    /// How the paths of requests are normalised.
    fn path_rules(&self) -> PathRules {
        PathRules::default()
    }
    /// The text of a file, relative to the document, which is reloaded when the file changes; an empty
    /// text for a document that may not make this machine read its files. Else why it cannot be read.
    fn file(&self, path: &str) -> Result<String, String> {
        Err(format!("cannot read {path}: there are no files here"))
    }
}

/// The store of this name; `option` is where the name was written.
pub(crate) fn store(
    surroundings: &dyn Surroundings,
    option: &str,
    name: &str,
) -> Result<Arc<dyn Store>, BuildError> {
    let stores = surroundings.stores();
    stores.and_then(|all| all.get(name)).cloned().ok_or_else(|| {
        let mut error = BuildError::at(option, format!("no store is named `{name}`"));
        let names = stores.into_iter().flat_map(Stores::keys).map(|name| &**name);
        error.hint = suggest(name, names).map(|near| format!("did you mean `{near}`?"));
        error
    })
}

/// What a filter is given while it is built, and what it declares about itself.
pub struct Build<'a> {
    world: &'a World,
    surroundings: &'a dyn Surroundings,
    slots: &'a AtomicU32,
    instance: Arc<str>,
    declared: Declared,
}

/// What a filter declared about itself while it was built.
#[derive(Debug, Default, Clone)]
pub struct Declared {
    /// Facts that must be established before this step.
    pub needs: Vec<Fact>,
    /// Facts that hold after this step.
    pub provides: Vec<Fact>,
    /// Fields written for upstreams; a client's own copies are dropped on every route.
    pub identity_headers: Vec<HeaderName>,
    /// The step answers CORS preflight requests.
    pub answers_preflight: bool,
    /// What came of the copies that the step makes.
    pub mirror: Option<Arc<Report>>,
    /// How the step counts queries of URLs under which answers are stored.
    pub caches: Option<Counted>,
    /// Captures that the step reads, each once: some path pattern that leads to it must have them.
    pub captures: Vec<Box<str>>,
}

impl<'a> Build<'a> {
    /// Prepares the building of the instance with this retained id.
    #[must_use]
    pub fn new(
        world: &'a World,
        surroundings: &'a dyn Surroundings,
        slots: &'a AtomicU32,
        instance: Arc<str>,
    ) -> Self {
        Self { world, surroundings, slots, instance, declared: Declared::default() }
    }

    /// What the filter declared while it was built.
    #[must_use]
    pub fn into_declared(self) -> Declared {
        self.declared
    }

    /// The instance's retained id: its name, or owner, filter and ordinal.
    #[must_use]
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    /// The upstream of this name, which a side call may use; `option` is where the name was written.
    pub fn upstream(&self, option: &str, name: &str) -> Result<UpstreamId, BuildError> {
        self.surroundings.upstream(name).ok_or_else(|| {
            let mut error = BuildError::at(option, format!("no upstream is named `{name}`"));
            error.hint = self.surroundings.nearest_upstream(name);
            error
        })
    }

    /// The identity of this name; `option` is the list and `at` the place where the name was written.
    pub fn identity(&self, option: &str, at: usize, name: &str) -> Result<Arc<dyn Identity>, BuildError> {
        let identities = self.surroundings.identities();
        identities.and_then(|all| all.get(name)).cloned().ok_or_else(|| {
            let mut error = BuildError::at(option, format!("no identity is named `{name}`"));
            error.path.push(at);
            let names = identities.into_iter().flat_map(Identities::names);
            error.hint = suggest(name, names).map(|near| format!("did you mean `{near}`?"));
            error
        })
    }

    /// The plans of the document; none where there is no document.
    #[must_use]
    pub fn plans(&self) -> Option<&Plans> {
        self.surroundings.plans()
    }

    /// How the paths of requests are normalised: `server.paths`.
    #[must_use]
    pub fn path_rules(&self) -> PathRules {
        self.surroundings.path_rules()
    }

    /// Whether some identity of the document looks for credentials in this field.
    #[must_use]
    pub fn has_credentials(&self, field: &HeaderName) -> bool {
        self.surroundings.identities().is_some_and(|all| all.read_field(field))
    }

    /// What the cookies of logins are called, which are for nobody but the gateway.
    #[must_use]
    pub fn login_cookies(&self) -> Vec<Box<str>> {
        let identities = self.surroundings.identities();
        identities.into_iter().flat_map(Identities::login_cookies).map(Box::from).collect()
    }

    /// The text of a file that an option names, relative to the document; a change of it reloads the
    /// document.
    pub fn file(&self, option: &str, path: &str) -> Result<String, BuildError> {
        self.surroundings.file(path).map_err(|message| BuildError::at(option, message))
    }

    /// A private place in each request's context.
    #[must_use]
    pub fn slot<T: Send + Sync + 'static>(&self) -> Slot<T> {
        Slot::new(self.slots.fetch_add(1, Ordering::Relaxed))
    }

    /// Declares that this fact must be established before this step.
    pub fn needs(&mut self, fact: Fact) {
        self.declared.needs.push(fact);
    }

    /// Declares that this step makes keys by this selector: what it needs, and what must be captured.
    pub fn selects(&mut self, selector: &Selector) {
        selector.needs().into_iter().for_each(|fact| self.needs(fact));
        selector.captures().into_iter().for_each(|name| self.capture(name));
    }

    /// Declares that this step fills in this template: what must be captured.
    pub fn fills_in(&mut self, template: &Template) {
        template.captures().for_each(|name| self.capture(name));
    }

    fn capture(&mut self, name: &str) {
        if !self.declared.captures.iter().any(|known| **known == *name) {
            self.declared.captures.push(name.into());
        }
    }

    /// Declares that this fact holds after this step; not for optional results.
    pub fn provides(&mut self, fact: Fact) {
        self.declared.provides.push(fact);
    }

    /// Declares a field that this step writes for upstreams and that no client may forge.
    pub fn identity_header(&mut self, name: HeaderName) {
        self.declared.identity_headers.push(name);
    }

    /// Declares that this step answers CORS preflight requests.
    pub fn answers_preflight(&mut self) {
        self.declared.answers_preflight = true;
    }

    /// Declares that this step copies requests, and where it is told what came of them.
    pub fn mirrors(&mut self, report: Arc<Report>) {
        self.declared.mirror = Some(report);
    }

    /// Declares that answers are stored for this step, under URLs whose queries it counts so.
    pub fn caches(&mut self, counted: Counted) {
        self.declared.caches = Some(counted);
    }

    /// The clock: the machine's, or a test's.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.world.clock.clone()
    }

    /// This instance's own part of the state store; the tenant is given with each call.
    #[must_use]
    pub fn state(&self) -> ScopedState {
        ScopedState::new(self.world.state.clone(), self.instance.clone())
    }

    /// Where this instance's budgets are kept: in the store of this name, which `option` holds, or else in
    /// the process.
    pub fn ledger(&self, option: &str, store: Option<&str>) -> Result<Ledger, BuildError> {
        let store = store.map(|name| self::store(self.surroundings, option, name)).transpose()?;
        Ok(Ledger::new(self.state(), store))
    }

    /// What this instance shares with the one of the same id before it, such as counts of what is under way; made
    /// if there is none, and kept as long as anybody holds it. `part` tells several of one type apart.
    pub fn retained<T: std::any::Any + Send + Sync>(&self, part: &[u8], make: impl FnOnce() -> T) -> Arc<T> {
        let shape = format!("{}\n{}\n{}", self.instance, std::any::type_name::<T>(), hex(part));
        self.world.retained.get_or_make(&shape, || Arc::new(make()))
    }

    /// The client for side calls to upstreams.
    #[must_use]
    pub fn client(&self) -> Arc<dyn crate::world::Client> {
        self.world.client.clone()
    }

    /// Where counters are made.
    #[must_use]
    pub fn metrics(&self) -> &dyn Metrics {
        &*self.world.metrics
    }

    /// The same, to make counters later: for what cannot be known while a filter is built, such as the routes
    /// that use it.
    #[must_use]
    pub fn shared_metrics(&self) -> Arc<dyn Metrics> {
        self.world.metrics.clone()
    }

    /// Answers that are stored.
    #[must_use]
    pub fn cached(&self) -> Arc<dyn crate::world::Cached> {
        self.world.cached.clone()
    }

    /// Randomness, not for secrets.
    #[must_use]
    pub fn rng(&self) -> Arc<dyn Rng> {
        self.world.rng.clone()
    }
}
