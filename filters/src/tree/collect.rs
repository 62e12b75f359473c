//! All problems at once: read, prune what was wrong, read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::de::{Class, Located, attempt};
use super::{Error, Node, Path, Step, Value};

/// Errors that one reading reports.
const MAX_ERRORS: usize = 100;
/// Readings, those that met only consequences of pruning included.
const MAX_ATTEMPTS: usize = 500;
/// Length from which a list is long enough that its good items are not read again.
const LONG_LIST: usize = 32;

/// Reads a node into a type, reporting every problem rather than the first.
///
/// After an error, the key or item concerned is passed over and the rest is read again; what is
/// wrong only because something was passed over is not reported. At most 100 errors. Good items of
/// a long list are read once, so 10,000 items with 100 errors cost little more than one reading.
///
/// # Errors
/// Every problem found, in document order for each map.
pub fn from_node_all<T: DeserializeOwned>(node: &Arc<Node>) -> Result<T, Vec<Error>> {
    let mut located = match attempt(node, None) {
        Ok(value) => return Ok(value),
        Err(located) => located,
    };
    let mut prune = Prune::default();
    let mut errors = Vec::new();
    for _ in 0..MAX_ATTEMPTS {
        let path = located.error.path.clone();
        let consequence = prune.explains(&located);
        prune.cut(&path, &located.class);
        prune.keep_read(node, &path);
        if !consequence {
            errors.push(located.error);
        }
        if path.is_empty() || errors.len() == MAX_ERRORS {
            break;
        }
        located = match attempt::<T>(node, Some(&prune)) {
            Ok(_) => break,
            Err(located) => located,
        };
    }
    Err(errors)
}

/// Places of a tree that are passed over, as a tree of its own.
#[derive(Debug, Default)]
pub(super) struct Prune {
    /// This place is passed over.
    gone: bool,
    /// Keys and items right below are gone that should have been there.
    torn: bool,
    /// The first so many items are known to be good.
    read: usize,
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

    /// Whether an error is nothing but the consequence of what was pruned before.
    fn explains(&self, located: &Located) -> bool {
        let mut place = self;
        for step in located.error.path.steps() {
            let Some(below) = place.below.get(step) else { return false };
            place = below;
        }
        match &located.class {
            Class::Missing(key) => place.excused.iter().any(|excused| **excused == **key),
            Class::Value => place.torn,
            Class::Unknown(_) => false,
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
            (Value::Map(entries), Step::Key(_)) => {
                for (key, item) in entries {
                    let here = Step::Key(Box::from(&*key.text));
                    if here == *step {
                        let below = self.below.entry(here).or_default();
                        return below.keep_read(item, &rest.iter().cloned().collect());
                    }
                    if let Some(items) = item.as_list().filter(|items| items.len() > LONG_LIST) {
                        // One item stays, as a type may refuse an empty list.
                        self.below.entry(here).or_default().read = items.len() - 1;
                    }
                }
            }
            _ => {}
        }
    }
}
