//! All problems at once: read, prune what was wrong, read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::de::{Class, Located, attempt};
use super::{Error, Node, Path, Step, Value};

/// Errors that one reading reports.
const MAX_ERRORS: usize = 100;
/// Readings, those that met only consequences of pruning included, before all that is unresolved is passed over.
const MAX_ATTEMPTS: usize = 500;
/// Readings after that.
const LAST_ATTEMPTS: usize = MAX_ERRORS;
/// Length from which a list or map is long enough that its good items are not read again.
const LONG_LIST: usize = 32;

/// Reads a node into a type, reporting every problem rather than the first.
///
/// After an error, the key or item concerned is passed over and the rest is read again; what is
/// wrong only because something was passed over is not reported, nor what an
/// [unresolved](super::Scalar::unresolved) scalar is not. At most 100 errors. Good items of a long list or map are read
/// once, so 10,000 items with 100 errors cost little more than one reading. Of what stands beside unresolved scalars,
/// nothing more is reported once there were many hundreds of these.
///
/// # Errors
/// Every problem found, in document order for each map.
pub fn from_node_all<T: DeserializeOwned>(node: &Arc<Node>) -> Result<T, Vec<Error>> {
    gather(node).map_err(|gathered| gathered.errors)
}

/// What could be read of a node, and what is wrong with the rest.
#[derive(Debug)]
pub struct Partly<T> {
    /// The value without what is wrong; none where nothing can be read without that, or there is more of it than is
    /// reported.
    pub value: Option<T>,
    /// As [`from_node_all`] reports them.
    pub errors: Vec<Error>,
    /// What the value is without.
    pub lost: Lost,
}

/// As [`from_node_all`], with the value as far as it can be read.
pub fn from_node_partly<T: DeserializeOwned>(node: &Arc<Node>) -> Partly<T> {
    let Gathered { errors, mut prune, is_all } = match gather(node) {
        Ok(value) => return Partly { value: Some(value), errors: Vec::new(), lost: Lost::default() },
        Err(gathered) => gathered,
    };
    // Good items of long lists were passed over too, and belong to the value.
    prune.read_again();
    let value = if is_all { attempt(node, Some(&prune)).ok() } else { None };
    Partly { value, errors, lost: Lost(prune) }
}

/// What a value is without that was read in part.
#[derive(Debug, Default)]
pub struct Lost(Prune);

impl Lost {
    /// Where in the node something is that is at this place of the value: what comes after a lost item of a list is one
    /// further on.
    pub fn written(&self, path: &Path) -> Path {
        let mut place = Some(&self.0);
        let written = path.steps().iter().map(|step| {
            let step = match (step, place) {
                (Step::Index(nth), Some(here)) => Step::Index(here.nth_kept(*nth)),
                _ => step.clone(),
            };
            place = place.and_then(|here| here.below.get(&step));
            step
        });
        written.collect()
    }

    /// Whether the value is without what is written here.
    pub fn lacks(&self, path: &Path) -> bool {
        let mut place = Some(&self.0);
        path.steps().iter().any(|step| {
            place = place.and_then(|here| here.below.get(step));
            place.is_some_and(|here| here.gone)
        })
    }
}

/// What is wrong with a node.
struct Gathered {
    errors: Vec<Error>,
    prune: Prune,
    /// Whether that is all.
    is_all: bool,
}

fn gather<T: DeserializeOwned>(node: &Arc<Node>) -> Result<T, Gathered> {
    let mut located = match attempt(node, None) {
        Ok(value) => return Ok(value),
        Err(located) => located,
    };
    let mut found = Gathered { errors: Vec::new(), prune: Prune::default(), is_all: false };
    for attempts in 1..=MAX_ATTEMPTS + LAST_ATTEMPTS {
        let path = located.error.path.clone();
        let consequence = found.prune.explains(&located);
        found.prune.cut(&path, &located.class);
        found.prune.keep_read(node, &path);
        if !consequence {
            found.errors.push(located.error);
        }
        if path.is_empty() || found.errors.len() == MAX_ERRORS {
            break;
        }
        if attempts == MAX_ATTEMPTS {
            found.prune.cut_unresolved(node);
        }
        located = match attempt::<T>(node, Some(&found.prune)) {
            Ok(_) => {
                found.is_all = true;
                break;
            }
            Err(located) => located,
        };
    }
    Err(found)
}

/// Places of a tree that are passed over, as a tree of its own.
#[derive(Debug, Default)]
pub(super) struct Prune {
    /// This place is passed over.
    gone: bool,
    /// Keys and items right below are gone that should have been there.
    torn: bool,
    /// The first so many items of a list, or entries of a map, are known to be good.
    read: usize,
    /// That is so of a map: what is wrong with it as a whole may only seem to be.
    is_map_read: bool,
    /// Keys that only seem to be missing.
    excused: Vec<Box<str>>,
    below: BTreeMap<Step, Prune>,
}

impl Prune {
    pub(super) fn item(&self, index: usize) -> Option<&Prune> {
        self.below.get(&Step::Index(index))
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Prune> {
        if self.below.is_empty() { None } else { self.below.get(&Step::from(key)) }
    }

    pub(super) fn skips_item(&self, index: usize) -> bool {
        index < self.read || self.item(index).is_some_and(|below| below.gone)
    }

    pub(super) fn skips_entry(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|below| below.gone)
    }

    /// How many entries are passed over that a map begins with.
    pub(super) fn entries_read(&self) -> usize {
        self.read
    }

    /// Whether an error is nothing but the consequence of what was pruned before, or was told already.
    fn explains(&self, located: &Located) -> bool {
        let place = located.error.path.steps().iter().try_fold(self, |place, step| place.below.get(step));
        match (&located.class, place) {
            (Class::Unresolved, _) => true,
            (Class::Missing(key), Some(place)) => place.excused.iter().any(|excused| **excused == **key),
            (Class::Value, Some(place)) => place.torn || place.is_map_read,
            (Class::Unknown(_), _) | (_, None) => false,
        }
    }

    /// Where the item stands that is the nth of those that are not gone.
    fn nth_kept(&self, nth: usize) -> usize {
        let gone = self.below.iter().filter(|(_, below)| below.gone).map(|(step, _)| step);
        gone.fold(nth, |at, step| if matches!(step, Step::Index(gone) if *gone <= at) { at + 1 } else { at })
    }

    /// Passes over good items no more.
    fn read_again(&mut self) {
        self.read = 0;
        self.below.values_mut().for_each(Self::read_again);
    }

    /// Passes over each entity with something unresolved in it that is read yet: the first two steps lead to one.
    fn cut_unresolved(&mut self, node: &Node) {
        for (first, section) in children(node) {
            let known = self.below.get(&first);
            if !has_unresolved(section, known) {
                continue;
            }
            let here = Path::new().join(first);
            let mut entities = children(section);
            if entities.is_empty() {
                self.cut(&here, &Class::Unresolved);
                continue;
            }
            entities.retain(|(step, entity)| {
                has_unresolved(entity, known.and_then(|known| known.below.get(step)))
            });
            for (step, _) in entities {
                self.cut(&here.join(step), &Class::Unresolved);
            }
        }
    }

    /// Passes over the place of an error from now on.
    fn cut(&mut self, path: &Path, class: &Class) {
        let Some((last, above)) = path.steps().split_last() else { return };
        let above = above.iter().fold(self, |place, step| place.below.entry(step.clone()).or_default());
        match (class, last) {
            (Class::Unknown(meant), _) => above.excused.extend(meant.map(Box::from)),
            (_, Step::Key(key)) => {
                above.torn = true;
                above.excused.push(key.clone());
            }
            (_, Step::Index(_)) => above.torn = true,
        }
        above.below.entry(last.clone()).or_default().gone = true;
    }

    /// Notes that long lists before the place of an error were read without one.
    fn keep_read(&mut self, node: &Node, path: &Path) {
        let Some((step, rest)) = path.steps().split_first() else { return };
        match (&node.value, step) {
            (Value::List(items), Step::Index(index)) => {
                if *index >= LONG_LIST {
                    self.read = self.read.max(*index);
                }
                let Some(item) = items.get(*index) else { return };
                let below = self.below.entry(step.clone()).or_default();
                below.keep_read(item, &rest.iter().cloned().collect());
            }
            (Value::Map(entries), Step::Key(wanted)) => {
                for (at, (key, item)) in entries.iter().enumerate() {
                    if *key.text == **wanted {
                        if at >= LONG_LIST {
                            (self.read, self.is_map_read) = (self.read.max(at), true);
                        }
                        let below = self.below.entry(step.clone()).or_default();
                        return below.keep_read(item, &rest.iter().cloned().collect());
                    }
                    let length = children_of(item);
                    if length > LONG_LIST && at >= self.read {
                        // One item stays, as a type may refuse an empty list.
                        let below = self.below.entry(Step::from(&*key.text)).or_default();
                        (below.read, below.is_map_read) = (length - 1, item.as_map().is_some());
                    }
                }
            }
            _ => {}
        }
    }
}

/// What is right below a node.
fn children(node: &Node) -> Vec<(Step, &Node)> {
    match &node.value {
        Value::Null | Value::Scalar(_) => Vec::new(),
        Value::List(items) => items.iter().enumerate().map(|(at, item)| (Step::Index(at), &**item)).collect(),
        Value::Map(entries) => entries.iter().map(|(key, item)| (Step::from(&*key.text), &**item)).collect(),
    }
}

/// How much is right below a node.
fn children_of(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Scalar(_) => 0,
        Value::List(items) => items.len(),
        Value::Map(entries) => entries.len(),
    }
}

/// Whether something unresolved is in a node that is not passed over.
fn has_unresolved(node: &Node, prune: Option<&Prune>) -> bool {
    if prune.is_some_and(|prune| prune.gone) {
        return false;
    }
    match &node.value {
        Value::Null => false,
        Value::Scalar(scalar) => scalar.is_unresolved(),
        Value::List(items) => {
            let mut items = items.iter().enumerate();
            items.any(|(at, item)| has_unresolved(item, prune.and_then(|prune| prune.item(at))))
        }
        Value::Map(entries) => {
            let mut entries = entries.iter();
            entries.any(|(key, item)| has_unresolved(item, prune.and_then(|prune| prune.entry(&key.text))))
        }
    }
}
