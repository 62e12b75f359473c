//! From written filter lists to shared pipelines.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use tollhouse_filters::filter::{Build, Declared, Surroundings};
use tollhouse_filters::identity::Identities;
use tollhouse_filters::path::PathRules;
use tollhouse_filters::phase::Phases;
use tollhouse_filters::pipeline::{MAX_STEPS, Pipeline, Siblings, Step};
use tollhouse_filters::plan::Plans;
use tollhouse_filters::registry::{Entry, Registry};
use tollhouse_filters::spec::{FilterSpec, Item, OnError};
use tollhouse_filters::tree::{Node, Path};
use tollhouse_filters::when::When;
use tollhouse_filters::world::{Stores, UpstreamId, World};

use super::NamedFiles;
use super::compile::{Faults, did_you_mean};
use super::releases::{self, Known};
use crate::config::Name;
use crate::source::read_text;

/// Builds every written filter once and shares it between the pipelines that name it.
pub(super) struct Pipelines<'a> {
    registry: &'a Registry,
    world: &'a World,
    named: Named<'a>,
    /// Whether the document is to serve.
    pub(super) live: bool,
    /// Where paths of files begin; none for a document that makes nobody read files.
    folder: Option<&'a FilePath>,
    files: RefCell<NamedFiles>,
    slots: AtomicU32,
    names: HashSet<String>,
    chains: BTreeMap<Arc<str>, Vec<Arc<Step>>>,
    shared: HashMap<Vec<*const Step>, Arc<Pipeline>>,
}

/// What filters may name.
pub(super) struct Named<'a> {
    pub(super) upstreams: &'a BTreeMap<Arc<str>, UpstreamId>,
    pub(super) identities: &'a Identities,
    pub(super) stores: &'a Stores,
    /// And what conditions may.
    pub(super) known: &'a Known<'a>,
}

/// Numbers the filters of one list, each kind on its own: a new filter of another kind before it
/// must not cost an instance its state.
#[derive(Default)]
struct Ordinals(HashMap<String, usize>);

impl Ordinals {
    fn next(&mut self, filter: &str) -> usize {
        let count = self.0.entry(filter.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

impl<'a> Pipelines<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        world: &'a World,
        named: Named<'a>,
        folder: Option<&'a FilePath>,
        files: NamedFiles,
    ) -> Self {
        let empty = HashMap::new();
        Self {
            registry,
            world,
            named,
            live: false,
            folder,
            files: RefCell::new(files),
            slots: AtomicU32::new(0),
            names: HashSet::new(),
            chains: BTreeMap::new(),
            shared: empty,
        }
    }

    /// The world that filters reach.
    pub(super) fn world(&self) -> &World {
        self.world
    }

    /// The files noted so far, those that filters read among them.
    pub(super) fn into_files(self) -> NamedFiles {
        self.files.into_inner()
    }

    /// Builds the chains; those that no list names are checked all the same.
    pub(super) fn build_chains(&mut self, chains: BTreeMap<Name, Vec<Item>>, faults: &mut Faults<'_>) {
        for (name, items) in chains {
            let mut path = Path::default();
            path.push("chains");
            path.push(name.as_str());
            let owner = format!("chain:{name}");
            let mut steps = Vec::with_capacity(items.len());
            let mut ordinals = Ordinals::default();
            for (at, item) in items.into_iter().enumerate() {
                path.push(at);
                match item {
                    Item::Chain(_) => faults.add(&path, "a chain cannot hold another chain"),
                    Item::Filter(spec) => {
                        let ordinal = ordinals.next(&spec.filter);
                        steps.extend(self.step(&owner, ordinal, *spec, &path, faults));
                    }
                }
                path.pop();
            }
            self.chains.insert(name.shared(), steps);
        }
    }

    /// The pipeline of a written list; equal lists of shared steps are one pipeline.
    pub(super) fn build(
        &mut self,
        owner: &str,
        items: Vec<Item>,
        path: &Path,
        faults: &mut Faults<'_>,
    ) -> Arc<Pipeline> {
        let mut steps = Vec::with_capacity(items.len());
        let mut ordinals = Ordinals::default();
        for (at, item) in items.into_iter().enumerate() {
            let mut path = path.clone();
            path.push(at);
            match item {
                Item::Filter(spec) => {
                    let ordinal = ordinals.next(&spec.filter);
                    steps.extend(self.step(owner, ordinal, *spec, &path, faults));
                }
                Item::Chain(name) => match self.chains.get(name.as_str()) {
                    Some(chain) => steps.extend(chain.iter().cloned()),
                    None => {
                        path.push("chain");
                        let hint = did_you_mean(&name, self.chains.keys().map(|name| &**name));
                        faults.add_unknown(&path, format!("no chain is named `{name}`"), hint);
                    }
                },
            }
        }
        if steps.len() > MAX_STEPS {
            faults.add(
                path,
                format!("{} filters are more than the {MAX_STEPS} that one list can hold", steps.len()),
            );
            steps.truncate(MAX_STEPS);
        }
        let key = steps.iter().map(Arc::as_ptr).collect();
        self.shared.entry(key).or_insert_with(|| Arc::new(Pipeline::new(steps))).clone()
    }

    /// A filter built on its own, as the action of a route.
    pub(super) fn action(
        &mut self,
        filter: &str,
        options: &Arc<Node>,
        owner: &str,
        path: &Path,
        faults: &mut Faults<'_>,
    ) -> Option<(Phases, Declared)> {
        let entry = self.registry.get(filter).expect("the built-in filters hold every action");
        self.phases(entry, options, format!("{owner}/{filter}").into(), path, faults)
    }

    fn step(
        &mut self,
        owner: &str,
        ordinal: usize,
        mut spec: FilterSpec,
        path: &Path,
        faults: &mut Faults<'_>,
    ) -> Option<Arc<Step>> {
        let Some(entry) = self.registry.get(&spec.filter) else {
            let hint = did_you_mean(&spec.filter, self.registry.names());
            faults.add_unknown(path, format!("no filter is named `{}`", spec.filter), hint);
            return None;
        };
        check_siblings(entry, &spec, path, faults);
        if let Some(when) = &mut spec.when {
            releases::check_when(when, self.named.known, &path.join("when"), faults);
        }
        let instance = self.instance(owner, ordinal, &spec, path, faults);
        let mut options_path = path.clone();
        options_path.push(spec.filter.as_str());
        let (phases, mut declared) =
            self.phases(entry, &spec.options.0, instance.clone(), &options_path, faults)?;
        let when = spec.when.map(When::new);
        declared.needs.extend(when.as_ref().and_then(When::needs));
        let siblings =
            Siblings { when, continue_on_error: spec.on_error == OnError::Continue, dry_run: spec.dry_run };
        Some(Arc::new(Step::new(entry.name, instance, phases, declared, siblings, &*self.world.metrics)))
    }

    fn instance(
        &mut self,
        owner: &str,
        ordinal: usize,
        spec: &FilterSpec,
        path: &Path,
        faults: &mut Faults<'_>,
    ) -> Arc<str> {
        let Some(name) = &spec.name else { return format!("{owner}/{}#{ordinal}", spec.filter).into() };
        let path = path.join("name");
        if !Name::is_valid(name) {
            // Nor can it be taken for the id of a filter without a name.
            faults.add(&path, Name::EXPECTED);
        } else if !self.names.insert(name.clone()) {
            faults.add(&path, format!("another filter is named `{name}` already"));
        }
        name.as_str().into()
    }

    fn phases(
        &self,
        entry: &Entry,
        options: &Arc<Node>,
        instance: Arc<str>,
        path: &Path,
        faults: &mut Faults<'_>,
    ) -> Option<(Phases, Declared)> {
        let mut build = Build::new(self.world, self, &self.slots, instance);
        match entry.build(options, &mut build) {
            Ok(phases) => Some((phases, build.into_declared())),
            Err(errors) => {
                for error in errors {
                    faults.add_with_hint(&path.concat(&error.path), error.message, error.hint);
                }
                None
            }
        }
    }
}

impl Surroundings for Pipelines<'_> {
    fn upstream(&self, name: &str) -> Option<UpstreamId> {
        self.named.upstreams.get(name).copied()
    }

    fn nearest_upstream(&self, name: &str) -> Option<String> {
        did_you_mean(name, self.named.upstreams.keys().map(|name| &**name))
    }

    fn identities(&self) -> Option<&Identities> {
        Some(self.named.identities)
    }

    fn stores(&self) -> Option<&Stores> {
        Some(self.named.stores)
    }

    fn plans(&self) -> Option<&Plans> {
        Some(self.named.known.plans)
    }

    fn path_rules(&self) -> PathRules {
        self.named.known.paths
    }

    fn file(&self, path: &str) -> Result<String, String> {
        let Some(folder) = self.folder else { return Ok(String::new()) };
        let path = folder.join(path);
        self.files.borrow_mut().note(path.clone());
        read_text(&path)
    }
}

fn check_siblings(entry: &Entry, spec: &FilterSpec, path: &Path, faults: &mut Faults<'_>) {
    let mut at = |key: &str, message: String| {
        let mut path = path.clone();
        path.push(key);
        faults.add(&path, message);
    };
    if entry.guard && spec.on_error == OnError::Continue && !spec.fail_open {
        at(
            "on_error",
            format!(
                "`{}` guards what comes after it; add `fail_open: true` to let requests pass when it fails",
                entry.name
            ),
        );
    }
    if spec.fail_open && !(entry.guard && spec.on_error == OnError::Continue) {
        at("fail_open", "`fail_open` belongs to `on_error: continue` of a guarding filter".to_owned());
    }
    if spec.dry_run && !entry.decides {
        at("dry_run", format!("`{}` does not decide, so there is nothing to run dry", entry.name));
    }
}
