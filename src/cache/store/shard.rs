//! A part of the store behind one lock: a table by hash, the queues, and the indexes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use hashbrown::HashTable;
use slab::Slab;

use super::body::Large;
use super::entry::{Entry, Variants};
use super::index::Index;
use super::queue::{Node, Queues};

/// A part of the store.
pub(super) struct Shard {
    places: HashTable<Place>,
    nodes: Slab<Node>,
    queues: Queues,
    index: Index,
    entries: usize,
    /// Bytes of large bodies that left the store, and that somebody has still.
    lingering: Arc<AtomicUsize>,
}

/// Where a key's node is. Its tag, a part of the key's hash, tells most other keys from it.
struct Place {
    tag: u32,
    at: u32,
}

/// What a shard would give up next.
pub(super) struct Victim {
    pub(super) tag: u32,
    pub(super) entry: Arc<Entry>,
    at: u32,
}

impl Shard {
    /// An empty one; large bodies that leave it are in this sum for as long as somebody has them.
    pub(super) fn new(lingering: Arc<AtomicUsize>) -> Self {
        Self {
            places: HashTable::new(),
            nodes: Slab::new(),
            queues: Queues::default(),
            index: Index::default(),
            entries: 0,
            lingering,
        }
    }

    /// Bytes of everything in it.
    pub(super) fn bytes(&self) -> usize {
        self.queues.bytes()
    }

    /// Entries in it.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// The node of a key.
    pub(super) fn get(&self, tag: u32, key: &[u8]) -> Option<&Node> {
        Some(&self.nodes[self.find(tag, key)? as usize])
    }

    /// Puts an entry in, in place of that with the same variant. Gives what is given up for it: that entry,
    /// and the oldest one if there are more than `most` variants.
    pub(super) fn put(&mut self, tag: u32, entry: Arc<Entry>, most: usize) -> Vec<Arc<Entry>> {
        let Some(at) = self.find(tag, entry.key()) else {
            self.add(tag, entry);
            return Vec::new();
        };
        let old = self.nodes[at as usize].variants.to_vec();
        let (mut out, others): (Vec<_>, Vec<_>) =
            old.into_iter().partition(|old| old.variant() == entry.variant());
        let mut kept = vec![entry];
        kept.extend(others);
        out.extend(kept.drain(most.clamp(1, kept.len())..));
        self.set(at, kept);
        out
    }

    /// Puts an entry in the place of another one, if that one is still there.
    pub(super) fn swap(&mut self, tag: u32, old: &Arc<Entry>, entry: Arc<Entry>) -> bool {
        let Some((at, index)) = self.locate(tag, old) else { return false };
        let mut kept = self.nodes[at as usize].variants.to_vec();
        kept[index] = entry;
        self.set(at, kept);
        true
    }

    /// Takes an entry out; whether it was still there.
    pub(super) fn take(&mut self, tag: u32, entry: &Arc<Entry>) -> bool {
        let Some((at, index)) = self.locate(tag, entry) else { return false };
        let mut kept = self.nodes[at as usize].variants.to_vec();
        kept.remove(index);
        self.set(at, kept);
        true
    }

    /// Takes out the entries of a node that a purge is for.
    pub(super) fn take_if(
        &mut self,
        tag: u32,
        key: &[u8],
        is_for: impl Fn(&Entry) -> bool,
    ) -> Vec<Arc<Entry>> {
        let Some(at) = self.find(tag, key) else { return Vec::new() };
        let all = self.nodes[at as usize].variants.to_vec();
        let (out, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|entry| is_for(entry));
        if !out.is_empty() {
            self.set(at, kept);
        }
        out
    }

    /// Takes everything out.
    pub(super) fn take_all(&mut self) -> Self {
        let empty = Self::new(Arc::clone(&self.lingering));
        std::mem::replace(self, empty)
    }

    /// What it would give up next: the oldest entry of a key.
    pub(super) fn victim(&mut self) -> Option<Victim> {
        let at = self.queues.victim(&mut self.nodes)?;
        let node = &self.nodes[at as usize];
        Some(Victim { tag: node.tag, entry: node.variants.last()?.clone(), at })
    }

    /// Keeps a victim for another round.
    pub(super) fn spare(&mut self, victim: &Victim) {
        self.queues.move_to_main(&mut self.nodes, victim.at);
    }

    /// The entries of the next keys with a prefix, after one.
    pub(super) fn keys(&self, prefix: &[u8], after: Option<&[u8]>, most: usize) -> Vec<Arc<Entry>> {
        self.index.keys(prefix, after).take(most).cloned().collect()
    }

    /// The next nodes that have an entry with a tag, after one; with an entry that has their key.
    pub(super) fn tagged(&self, tag: &str, after: Option<u32>, most: usize) -> Vec<(u32, Arc<Entry>)> {
        let nodes = self.index.tagged(tag, after).take(most);
        nodes.map(|at| (at, Arc::clone(&self.nodes[at as usize].variants[0]))).collect()
    }

    fn find(&self, tag: u32, key: &[u8]) -> Option<u32> {
        let is_it =
            |place: &Place| place.tag == tag && self.nodes[place.at as usize].variants[0].key() == key;
        Some(self.places.find(spread(tag), is_it)?.at)
    }

    fn locate(&self, tag: u32, entry: &Arc<Entry>) -> Option<(u32, usize)> {
        let at = self.find(tag, entry.key())?;
        let variants = &self.nodes[at as usize].variants;
        Some((at, variants.iter().position(|other| Arc::ptr_eq(other, entry))?))
    }

    fn add(&mut self, tag: u32, entry: Arc<Entry>) {
        let node = Node::new(tag, Variants::One(Arc::clone(&entry)));
        // A node takes far more than a byte: memory ends before the numbers do.
        let at = u32::try_from(self.nodes.insert(node)).expect("fewer than 2^32 nodes");
        self.places.insert_unique(spread(tag), Place { tag, at }, |place| spread(place.tag));
        self.queues.push(&mut self.nodes, at);
        let entries = [entry];
        self.index.change(at, &[], &entries);
        moved(&self.lingering, &[], &entries);
        self.entries += 1;
    }

    /// A node has these entries from now on; without any it is no more.
    fn set(&mut self, at: u32, kept: Vec<Arc<Entry>>) {
        let Some(variants) = Variants::new(kept) else { return self.discard(at) };
        let node = &mut self.nodes[at as usize];
        let weight = node.weight();
        let old = std::mem::replace(&mut node.variants, variants);
        self.queues.reweigh(node, weight);
        self.entries = self.entries - old.len() + node.variants.len();
        self.index.change(at, &old, &node.variants);
        moved(&self.lingering, &old, &node.variants);
    }

    fn discard(&mut self, at: u32) {
        self.queues.remove(&mut self.nodes, at);
        let node = self.nodes.remove(at as usize);
        if let Ok(place) = self.places.find_entry(spread(node.tag), |place| place.at == at) {
            place.remove();
        }
        self.entries -= node.variants.len();
        self.index.change(at, &node.variants, &[]);
        moved(&self.lingering, &node.variants, &[]);
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.nodes.iter().for_each(|(_, node)| moved(&self.lingering, &node.variants, &[]));
    }
}

/// Tells large bodies that they were with these entries in the store, and are with those now.
fn moved(lingering: &Arc<AtomicUsize>, old: &[Arc<Entry>], new: &[Arc<Entry>]) {
    // In this order, so that what stays never seems to have left.
    bodies(new).for_each(|large| large.enter());
    bodies(old).for_each(|large| large.leave(lingering));
}

fn bodies(entries: &[Arc<Entry>]) -> impl Iterator<Item = &Arc<Large>> {
    entries.iter().filter_map(|entry| entry.large.as_ref())
}

/// The table wants bits that differ at both ends of a hash.
fn spread(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
