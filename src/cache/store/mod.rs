//! Where responses are kept: in memory, within a number of bytes, in parts that do not wait for each other.
//!
//! Entries are complete and never change; who has one keeps it, whatever becomes of it here. A lookup takes
//! a read lock for as long as it takes to find a key and count a use. What a full store keeps is decided by
//! S3-FIFO (the order in which entries leave) and TinyLFU (whether one that comes in is worth one that would
//! have to leave). Keys are hashed with a secret, and compared whole.

mod entry;
mod index;
mod purge;
mod queue;
mod shard;
mod sketch;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::{RwLock, RwLockReadGuard};

pub use self::entry::{BLOCK, Entry, LONGEST_TAG, MOST_TAGS, Parts, Pieces, Variants};
pub use self::purge::{How, Purge};
use self::shard::Shard;
use self::sketch::Sketch;

/// Parts with a lock of their own.
const PARTS: usize = 64;
/// Bytes of the store for each counter of the sketch: several counters for each small entry.
const BYTES_FOR_A_COUNTER: usize = 128;
/// One entry takes this part of the store at most.
const LARGEST_PART: usize = 2;

/// How large a store may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of memory, with everything that it takes to keep and find entries.
    pub capacity: usize,
    /// Responses kept for one key that vary, such as by language.
    pub max_variants: usize,
}

/// Responses in memory.
pub struct Store {
    parts: Box<[Part]>,
    hashes: RandomState,
    sketch: ArcSwap<Sketch>,
    max_variants: usize,
    /// Bytes that entries may take.
    room: AtomicUsize,
    capacity: AtomicUsize,
    /// Bytes of the entries in it, and of those on their way.
    held: AtomicUsize,
    coming: AtomicUsize,
    entries: AtomicUsize,
    /// The part that is looked at first for one to take from.
    turn: AtomicUsize,
    generation: AtomicU64,
    evicted: AtomicU64,
    not_admitted: AtomicU64,
    purged: AtomicU64,
}

// No two parts share a line of the processor's cache.
#[repr(align(128))]
#[derive(Default)]
struct Part {
    shard: RwLock<Shard>,
    /// What is in it, for those who have no lock.
    bytes: AtomicUsize,
}

/// Where a key belongs: all of a URL in one part.
#[derive(Debug, Clone, Copy)]
struct Place {
    part: usize,
    tag: u32,
}

/// What became of an entry that was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is in.
    Stored,
    /// What would have had to leave for it is asked for more often.
    NotAdmitted,
    /// It would take more than half of the store.
    TooLarge,
}

/// What a store has in it, and what it did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Entries in it.
    pub entries: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that it may take.
    pub capacity: u64,
    /// Entries that left for others.
    pub evicted: u64,
    /// Entries that did not get in.
    pub not_admitted: u64,
    /// Entries that purges hit.
    pub purged: u64,
}

/// What came of looking for an entry to give up.
enum Victim {
    Gone,
    Spared,
    None,
}

impl Store {
    /// An empty one.
    #[must_use]
    pub fn new(options: StoreOptions) -> Self {
        let store = Self {
            parts: (0..PARTS).map(|_| Part::default()).collect(),
            hashes: RandomState::new(),
            sketch: ArcSwap::from_pointee(Sketch::new(0)),
            max_variants: options.max_variants,
            room: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            coming: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            not_admitted: AtomicU64::new(0),
            purged: AtomicU64::new(0),
        };
        store.resize(options.capacity);
        store
    }

    /// Gives it another capacity; what does not fit leaves.
    pub fn resize(&self, capacity: usize) {
        let sketch = Sketch::new(capacity / BYTES_FOR_A_COUNTER);
        self.room.store(capacity.saturating_sub(sketch.bytes()), Relaxed);
        self.capacity.store(capacity, Relaxed);
        if sketch.bytes() != self.sketch.load().bytes() {
            self.sketch.store(Arc::new(sketch));
        }
        self.make_room(u8::MAX);
    }

    /// The entries of a key. Counts as a use of them.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Variants> {
        let place = self.place(key);
        let shard = self.read(place.part);
        let node = shard.get(place.tag, key)?;
        node.used();
        Some(node.variants.clone())
    }

    /// The entries of a key; nobody uses them.
    #[must_use]
    pub fn peek(&self, key: &[u8]) -> Option<Variants> {
        let place = self.place(key);
        Some(self.read(place.part).get(place.tag, key)?.variants.clone())
    }

    /// The entries of a URL in all its partitions, of at most `most` keys; nobody uses them.
    #[must_use]
    pub fn of_url(&self, url: &[u8], most: usize) -> Vec<Variants> {
        let prefix = [url, b"\0"].concat();
        let keys = self.read(self.place(&prefix).part).keys(&prefix, None, most);
        keys.iter().filter_map(|entry| self.peek(entry.key())).collect()
    }

    /// Counts that a key was asked for and not there. Gives how often that was of late, up to 255. Admission
    /// goes by it.
    pub fn note_use(&self, key: &[u8]) -> u32 {
        self.sketch.load().add(self.place(key).tag).into()
    }

    /// Puts an entry in, in place of one with the same key and variant.
    pub fn insert(&self, entry: Arc<Entry>) -> Inserted {
        let weight = entry.weight();
        if weight > self.room.load(Relaxed) / LARGEST_PART {
            return Inserted::TooLarge;
        }
        let place = self.place(entry.key());
        let _coming = Coming::new(&self.coming, weight);
        let is_known = self.read(place.part).get(place.tag, entry.key()).is_some();
        let uses = if is_known { u8::MAX } else { self.sketch.load().of(place.tag) };
        if !self.make_room(uses) {
            self.not_admitted.fetch_add(1, Relaxed);
            return Inserted::NotAdmitted;
        }
        let out = self.change(place.part, |shard| shard.put(place.tag, entry, self.max_variants));
        // Freed behind the lock.
        drop(out);
        Inserted::Stored
    }

    /// Puts an entry in the place of another one with the same key and variant, if that one is still there;
    /// whether it was.
    pub fn replace(&self, old: &Arc<Entry>, entry: Arc<Entry>) -> bool {
        let place = self.place(old.key());
        if entry.key() != old.key() || entry.variant() != old.variant() {
            return false;
        }
        let replaced = self.change(place.part, |shard| shard.swap(place.tag, old, entry));
        self.make_room(u8::MAX);
        replaced
    }

    /// Takes an entry out, if it is still there; whether it was.
    pub fn remove(&self, entry: &Arc<Entry>) -> bool {
        let place = self.place(entry.key());
        self.change(place.part, |shard| shard.take(place.tag, entry))
    }

    /// Grows with every purge.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// What is in it, and what it did.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        Numbers {
            entries: self.entries.load(Relaxed) as u64,
            bytes: (self.held.load(Relaxed) + self.sketch.load().bytes()) as u64,
            capacity: self.capacity.load(Relaxed) as u64,
            evicted: self.evicted.load(Relaxed),
            not_admitted: self.not_admitted.load(Relaxed),
            purged: self.purged.load(Relaxed),
        }
    }

    fn place(&self, key: &[u8]) -> Place {
        let (url, partition) = key.split_at(entry::url_of(key).len());
        let mut hasher = self.hashes.build_hasher();
        hasher.write(url);
        // Below the number of parts.
        let part = (hasher.finish() % PARTS as u64) as usize;
        hasher.write(partition);
        Place { part, tag: (hasher.finish() >> 32) as u32 }
    }

    fn parts(&self) -> Range<usize> {
        0..self.parts.len()
    }

    fn read(&self, part: usize) -> RwLockReadGuard<'_, Shard> {
        self.parts[part].shard.read()
    }

    /// Changes a part, and the sums with it.
    fn change<T>(&self, part: usize, change: impl FnOnce(&mut Shard) -> T) -> T {
        let part = &self.parts[part];
        let mut shard = part.shard.write();
        let (bytes, entries) = (shard.bytes(), shard.entries());
        let given = change(&mut shard);
        part.bytes.store(shard.bytes(), Relaxed);
        shift(&self.held, bytes, shard.bytes());
        shift(&self.entries, entries, shard.entries());
        given
    }

    /// Gives up entries until those that are in and coming fit; not for an entry that is asked for less than
    /// one that would have to leave. Whether they fit.
    fn make_room(&self, uses: u8) -> bool {
        while self.held.load(Relaxed) + self.coming.load(Relaxed) > self.room.load(Relaxed) {
            let Some(part) = self.full_part() else { return false };
            match self.give_up(part, uses) {
                Victim::Gone => _ = self.evicted.fetch_add(1, Relaxed),
                Victim::Spared => return false,
                Victim::None => {}
            }
        }
        true
    }

    /// A part to take from: the next one that has its share, or else the one that has most.
    fn full_part(&self) -> Option<usize> {
        let bytes = |part: &usize| self.parts[*part].bytes.load(Relaxed);
        let share = self.room.load(Relaxed) / PARTS;
        let turn = self.turn.load(Relaxed);
        let next = (turn..PARTS).chain(0..turn).find(|part| bytes(part) > share);
        let part = next.or_else(|| self.parts().max_by_key(bytes).filter(|part| bytes(part) > 0))?;
        self.turn.store((part + 1) % PARTS, Relaxed);
        Some(part)
    }

    fn give_up(&self, part: usize, uses: u8) -> Victim {
        let sketch = self.sketch.load();
        let (outcome, _freed_behind_the_lock) = self.change(part, |shard| {
            let Some(victim) = shard.victim() else { return (Victim::None, None) };
            if sketch.of(victim.tag) > uses {
                shard.spare(&victim);
                return (Victim::Spared, None);
            }
            shard.take(victim.tag, &victim.entry);
            (Victim::Gone, Some(victim.entry))
        });
        outcome
    }
}

/// Bytes that are about to be in the store.
struct Coming<'a> {
    coming: &'a AtomicUsize,
    bytes: usize,
}

impl<'a> Coming<'a> {
    fn new(coming: &'a AtomicUsize, bytes: usize) -> Self {
        coming.fetch_add(bytes, Relaxed);
        Self { coming, bytes }
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.coming.fetch_sub(self.bytes, Relaxed);
    }
}

fn shift(sum: &AtomicUsize, before: usize, after: usize) {
    if after >= before {
        sum.fetch_add(after - before, Relaxed);
    } else {
        sum.fetch_sub(before - after, Relaxed);
    }
}
