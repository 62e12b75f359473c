//! What purges go by: keys in their order, and the nodes that have a tag.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::entry::Entry;

/// The indexes of a shard. Bounded by its entries: each has one key, and tags that it weighs more for.
#[derive(Default)]
pub(super) struct Index {
    /// One entry of each key, which stands for it.
    ordered: BTreeSet<ByKey>,
    /// The nodes that have an entry with a tag.
    tagged: HashMap<Box<str>, BTreeSet<u32>>,
}

struct ByKey(Arc<Entry>);

impl Index {
    /// A node's entries were these, and are those now.
    pub(super) fn change(&mut self, at: u32, old: &[Arc<Entry>], new: &[Arc<Entry>]) {
        match (old.first(), new.first()) {
            (Some(old), None) => _ = self.ordered.remove(old.key()),
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
            (_, Some(new)) => _ = self.ordered.replace(ByKey(Arc::clone(new))),
            (None, None) => {}
        }
        for tag in old.iter().flat_map(|entry| entry.tags()) {
            if let Some(nodes) = self.tagged.get_mut(tag) {
                nodes.remove(&at);
                if nodes.is_empty() {
                    self.tagged.remove(tag);
                }
            }
        }
        for tag in new.iter().flat_map(|entry| entry.tags()) {
            match self.tagged.get_mut(tag) {
                Some(nodes) => _ = nodes.insert(at),
                None => _ = self.tagged.insert(tag.into(), BTreeSet::from([at])),
            }
        }
    }

    /// The next keys with a prefix, in their order, after one.
    pub(super) fn keys<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let range = self.ordered.range::<[u8], _>((from, Bound::Unbounded));
        range.map(|ByKey(entry)| entry).take_while(move |entry| entry.key().starts_with(prefix))
    }

    /// The next nodes that have a tag, after one.
    pub(super) fn tagged(&self, tag: &str, after: Option<u32>) -> impl Iterator<Item = u32> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.tagged.get(tag).into_iter().flat_map(move |nodes| nodes.range((from, Bound::Unbounded))).copied()
    }
}

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(other.0.key())
    }
}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}
