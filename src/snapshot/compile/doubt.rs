//! A document with something wrong in it, read as far as it goes. What is told of the rest is wrong by itself: nothing
//! that may only come of what could not be read.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tollhouse_filters::path::EncodedSlash;
use tollhouse_filters::tree::{
    Error, Key, Lost, Mark, Node, Partly, Path, Scalar, Step, Trail, Value, from_node_partly, suggest,
};

use super::{below, located};
use crate::config::{Document, Name};
use crate::source::{Loaded, Problems};

/// Sections whose entities others name.
const NAMED: [&str; 7] = ["upstreams", "listeners", "services", "stores", "identities", "chains", "plans"];
/// Sections that others go by.
const SECTIONS: [&str; 10] = [
    "upstreams",
    "listeners",
    "services",
    "stores",
    "identities",
    "chains",
    "plans",
    "routes",
    "consumers",
    "server",
];

/// A document as far as it could be read.
pub(super) struct Read {
    pub(super) document: Document,
    pub(super) doubt: Doubt,
    /// All that is wrong so far.
    pub(super) errors: Vec<Error>,
}

/// What is not known of a document.
#[derive(Default)]
pub(super) struct Doubt {
    /// Places with something wrong, as they are written.
    wrong: BTreeSet<Path>,
    /// Where something is wrong that was found while the document was loaded.
    told: HashSet<Mark>,
    /// Sections with something wrong in them.
    unsound: BTreeSet<Box<str>>,
    lost: Lost,
}

/// Reads a loaded document without what is wrong with it.
///
/// Nobody can tell what the rest means where it is not known what there is, as a file of the document is not there or
/// something that others name has no name, nor where more is wrong than is reported: then that is all.
pub(super) fn read(loaded: &Loaded) -> Result<Read, Problems> {
    let Partly { value, mut errors, lost } = from_node_partly::<Document>(&loaded.root);
    // What is wrong with the document as a whole is not wrong with its first key, which stands where it does.
    let of_parts = loaded.errors.iter().filter(|error| !error.path.is_empty());
    let told: HashSet<Mark> = of_parts.map(|error| error.at).collect();
    errors.retain(|error| !told.contains(&error.at));
    let (doubt, places) = Doubt::of(&loaded.root, told, &errors, lost);
    errors.extend(loaded.errors.iter().cloned().map(|error| match places.get(&error.at) {
        // Its file counts without what other files have.
        Some(place) if !error.path.is_empty() => error.on(place.clone()),
        _ => error,
    }));
    errors.extend(loaded.duplicates.iter().cloned());
    let value = value.filter(|_| loaded.complete);
    match value.and_then(|document| doubt.filled_in(document, &loaded.root)) {
        Some(document) => Ok(Read { document, doubt, errors }),
        None => Err(located(errors, loaded)),
    }
}

impl Doubt {
    /// And where in the document what was told before stands.
    fn of(root: &Node, told: HashSet<Mark>, errors: &[Error], lost: Lost) -> (Self, HashMap<Mark, Path>) {
        let wrong = errors.iter().map(|error| error.path.clone()).collect();
        let mut doubt = Self { wrong, told, unsound: BTreeSet::new(), lost };
        let mut places = HashMap::new();
        if !doubt.told.is_empty() {
            doubt.note_unresolved(root, &Trail::root(), &mut places);
        }
        for path in &doubt.wrong {
            let [Step::Key(section), rest @ ..] = path.steps() else { continue };
            let meant = rest.is_empty().then(|| suggest(section, SECTIONS)).flatten();
            doubt.unsound.extend(meant.map(Box::from));
            doubt.unsound.insert(section.clone());
        }
        (doubt, places)
    }

    /// Notes where references could not be resolved, and where they stand in keys.
    fn note_unresolved(&mut self, node: &Node, trail: &Trail<'_>, places: &mut HashMap<Mark, Path>) {
        match &node.value {
            Value::Null => {}
            Value::Scalar(scalar) => {
                if scalar.is_unresolved() {
                    self.note(node.at, trail, places);
                }
            }
            Value::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.note_unresolved(item, &trail.index(at), places);
                }
            }
            Value::Map(entries) => {
                for (key, item) in entries {
                    let trail = trail.key(&key.text);
                    if self.told.contains(&key.at) {
                        self.note(key.at, &trail, places);
                    }
                    self.note_unresolved(item, &trail, places);
                }
            }
        }
    }

    /// Notes that this is wrong; of what aliases share, the first place is told.
    fn note(&mut self, at: Mark, trail: &Trail<'_>, places: &mut HashMap<Mark, Path>) {
        let path = trail.path();
        places.entry(at).or_insert_with(|| path.clone());
        self.wrong.insert(path);
    }

    /// Whether these sections are as they should be, so far.
    pub(super) fn is_sound(&self, sections: &[&str]) -> bool {
        sections.iter().all(|section| !self.unsound.contains(*section))
    }

    /// Whether enough was said of what is there.
    pub(super) fn is_told(&self, at: Mark) -> bool {
        self.told.contains(&at)
    }

    /// Where that is written which has this place in the document as it was read; none if nothing is to be told of it.
    /// That is so where something is wrong in what is judged [`together`] with it: in what so many steps of its path
    /// lead to. Without them, it is wrong whatever is wrong around it.
    pub(super) fn written(&self, root: &Node, path: &Path, together: Option<usize>) -> Option<Path> {
        let path = self.lost.written(path);
        let is_wrong = !path.is_empty()
            && !self.wrong.is_empty()
            && (self.stands_in(&path, root)
                || together.is_some_and(|steps| self.is_wrong_below(&first_steps(&path, steps))));
        (!is_wrong).then_some(path)
    }

    /// Whether this is in an entity that is not written, or could not be read, so that another one
    /// [stands in](Self::filled_in) for it.
    fn stands_in(&self, path: &Path, root: &Node) -> bool {
        let is_named = matches!(path.steps(), [Step::Key(section), _, ..] if NAMED.contains(&&**section));
        self.lost.lacks(path) || (is_named && root.find(&first_steps(path, 2)).is_none())
    }

    /// Whether something is wrong here, or further down.
    fn is_wrong_below(&self, path: &Path) -> bool {
        let first = self.wrong.range(path.clone()..).next();
        first.is_some_and(|first| first.steps().starts_with(path.steps()))
    }

    /// The document with all that is named in it, so that nobody is told it is not there; none if some name is not
    /// known.
    fn filled_in(&self, mut document: Document, root: &Node) -> Option<Document> {
        for section in NAMED.into_iter().filter(|section| !self.is_sound(&[*section])) {
            let names = self.names(root, section)?;
            // No more than what has to be there.
            let written = match section {
                "listeners" => json!({"address": "127.0.0.1:0"}),
                "stores" => json!({"type": "redis", "url": "redis://127.0.0.1"}),
                "plans" => json!({"limits": []}),
                "chains" => json!([]),
                _ => json!({}),
            };
            match section {
                "upstreams" => extend(&mut document.upstreams, |known| &known.name, names, &written),
                "listeners" => extend(&mut document.listeners, |known| &known.name, names, &written),
                "services" => extend(&mut document.services, |known| &known.name, names, &written),
                "stores" => insert(&mut document.stores, names, &written),
                "identities" => insert(&mut document.identities, names, &written),
                "plans" => insert(&mut document.plans, names, &written),
                _ => insert(&mut document.chains, names, &written),
            }
        }
        let paths = below("server.paths");
        if self.lost.lacks(&paths) || self.is_wrong_below(&paths) {
            // Rules that refuse nothing.
            document.server.paths.encoded_slash = EncodedSlash::Keep;
        }
        Some(document)
    }

    /// The names that are written in a section, however it is written; none if one of them is not known.
    fn names(&self, root: &Node, section: &str) -> Option<BTreeSet<Name>> {
        let is_it = |key: &Key| {
            let is_meant = || suggest(&key.text, SECTIONS) == Some(section);
            *key.text == *section || (self.wrong.contains(&Path::default().join(&*key.text)) && is_meant())
        };
        let mut names = BTreeSet::new();
        for (_, node) in root.as_map()?.iter().filter(|(key, _)| is_it(key)) {
            match &node.value {
                Value::Null => {}
                Value::Scalar(_) => return None,
                Value::List(items) => {
                    for item in items {
                        names.extend(name(name_of(item)?));
                    }
                }
                Value::Map(entries) => {
                    if entries.iter().any(|(key, _)| self.told.contains(&key.at)) {
                        return None;
                    }
                    names.extend(entries.iter().filter_map(|(key, _)| name(&key.text)));
                    // A list that was not written as one.
                    names.extend(name_of(node).and_then(name));
                }
            }
        }
        Some(names)
    }
}

/// How many steps of a path lead to what is judged together with its end: what is wrong in there may be all that is
/// wrong here.
pub(super) fn together(path: &Path) -> usize {
    let steps = path.steps();
    let key = |at: usize| match steps.get(at) {
        Some(Step::Key(key)) => &**key,
        _ => "",
    };
    let together = match (key(0), key(1), key(2)) {
        ("stores", ..)
        | ("server", "dns", _)
        | ("upstreams", _, "protocol" | "tls" | "backends" | "discovery" | "health")
        | ("listeners", _, "protocols" | "tls")
        | ("services", _, "versioning" | "versions")
        | ("routes", _, "split") => 2,
        ("upstreams" | "routes", _, "balance" | "circuit_breaker" | "concurrency") => 3,
        ("plans", ..) | ("consumers", _, "credentials") => 4,
        _ if matches!(key(steps.len().saturating_sub(1)), "on_error" | "fail_open") => steps.len() - 1,
        _ => steps.len(),
    };
    together.min(steps.len())
}

fn first_steps(path: &Path, count: usize) -> Path {
    path.steps().iter().take(count).cloned().collect()
}

/// What an entity of a list is called: by its `name`, or by what is spelt much like it.
fn name_of(item: &Node) -> Option<&str> {
    let alike = || item.as_map()?.iter().find(|(key, _)| suggest(&key.text, ["name"]).is_some());
    let node = item.get("name").or_else(|| alike().map(|(_, node)| node))?;
    node.as_scalar().filter(|scalar| !scalar.is_unresolved()).map(Scalar::text)
}

/// A name, if the text is one; else nobody can name it.
fn name(text: &str) -> Option<Name> {
    serde_json::from_value(Json::from(text)).ok()
}

/// Adds what is not in a list.
fn extend<T: DeserializeOwned>(
    list: &mut Vec<T>,
    name_of: impl Fn(&T) -> &Name,
    mut names: BTreeSet<Name>,
    rest: &Json,
) {
    for known in &*list {
        names.remove(name_of(known));
    }
    for name in names {
        let mut written = rest.clone();
        written["name"] = Json::from(name.as_str());
        list.extend(serde_json::from_value::<T>(written));
    }
}

/// Adds what is not in a map.
fn insert<T: DeserializeOwned>(map: &mut BTreeMap<Name, T>, names: BTreeSet<Name>, written: &Json) {
    for name in names {
        if let (Entry::Vacant(place), Ok(new)) = (map.entry(name), serde_json::from_value(written.clone())) {
            place.insert(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::load_str;

    fn read(sections: &str) -> Result<Read, Problems> {
        let text = format!("{{version: 1, {sections}}}");
        super::read(&load_str(&text, "t.yaml", None, &|_| None).expect("a document"))
    }

    #[test]
    fn what_cannot_be_read_is_known_by_its_name() {
        let sections = "upstreams: [{nam: a}], listeners: [{name: b}], servces: [{name: c}], stores: {d: {}},
            identities: [{name: e}], chains: [{name: f}], plans: {g: {}}";
        let Ok(Read { document, errors, .. }) = read(sections) else { panic!("a name is not known") };
        let names: Vec<&str> = [
            document.upstreams.iter().map(|upstream| upstream.name.as_str()).collect::<Vec<_>>(),
            document.listeners.iter().map(|listener| listener.name.as_str()).collect(),
            document.services.iter().map(|service| service.name.as_str()).collect(),
            document.stores.keys().map(Name::as_str).collect(),
            document.identities.keys().map(Name::as_str).collect(),
            document.chains.keys().map(Name::as_str).collect(),
            document.plans.keys().map(Name::as_str).collect(),
        ]
        .concat();
        assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(errors.len(), 7, "{errors:?}");
    }

    #[test]
    fn nothing_is_told_of_the_rest_where_a_name_is_not_known() {
        for sections in [
            "upstreams: [{protocol: h2}]",
            "services: [{name: [a]}]",
            "listeners: [{name: '${env:NOT_SET}', address: '127.0.0.1:0'}]",
            "chains: '${env:NOT_SET}'",
            "chains: {'${env:NOT_SET}': []}",
            "plans: 5",
        ] {
            let problems = read(sections).err().unwrap_or_default();
            assert_eq!(problems.list.len(), 1, "{sections}: {problems}");
        }
    }

    #[test]
    fn a_right_document_leaves_no_doubt() {
        let Ok(Read { doubt, errors, .. }) = read("routes: [{name: a, upstream: b}]") else {
            panic!("is right")
        };
        assert!(errors.is_empty() && doubt.is_sound(&SECTIONS));
    }
}
