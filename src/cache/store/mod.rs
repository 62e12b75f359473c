//! Where responses are kept: in memory, within a number of bytes, in parts that do not wait for each other.
//!
//! Entries are complete and never change; who has one keeps it, whatever becomes of it here. While large bodies that
//! left take half of the room, since clients read them slowly, no more of these come in; a small one is no more than
//! what is on its way to any client. A lookup takes a read lock for as long as it takes to find a key and count a
//! use. What a full store keeps is decided by
//! S3-FIFO (the order in which entries leave) and TinyLFU (whether one that comes in is worth one that would
//! have to leave). Keys are hashed with a secret, and compared whole.

mod arena;
mod body;
mod counted;
mod disk;
mod entry;
mod index;
mod purge;
mod queue;
mod shard;
mod sketch;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::{RwLock, RwLockReadGuard};

pub use self::body::Pieces;
use self::counted::Counted;
use self::disk::{Disk, Loaded};
pub use self::disk::{DiskNumbers, DiskOptions};
pub use self::entry::{BLOCK, Entry, LONGEST_TAG, MOST_TAGS, Parts, Variants};
pub use self::purge::{How, Purge};
use self::shard::Shard;
use self::sketch::Sketch;

/// Parts with a lock of their own.
const PARTS: usize = 64;
/// Bytes of the store for each counter of the sketch: several counters for each small entry.
const BYTES_FOR_A_COUNTER: usize = 128;
/// One entry takes this part of the store at most.
const LARGEST_PART: usize = 2;
/// What share of the room large bodies that left it may take, before no more of them come in.
const MOST_LINGERING: usize = 2;

/// How large a store may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of memory, with everything that it takes to keep and find entries.
    pub capacity: usize,
    /// Responses kept for one key that vary, such as by language.
    pub max_variants: usize,
}

/// Responses in memory, and on disk behind it.
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
    /// Bytes of large bodies that left it, and that somebody has still.
    lingering: Arc<AtomicUsize>,
    entries: AtomicUsize,
    /// The part that is the next to be taken from.
    turn: AtomicUsize,
    generation: AtomicU64,
    evicted: AtomicU64,
    not_admitted: AtomicU64,
    purged: AtomicU64,
    disk: ArcSwapOption<Disk>,
}

// No two parts share a line of the processor's cache.
#[repr(align(128))]
struct Part {
    shard: RwLock<Shard>,
    /// Entries in it, for those who have no lock.
    entries: AtomicUsize,
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
    /// What would have had to leave for it is asked for more often, or too much that left is read still.
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
    /// What is on disk, if anything is to be.
    pub disk: Option<DiskNumbers>,
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
        let lingering = Arc::<AtomicUsize>::default();
        let part = |_| {
            let shard = RwLock::new(Shard::new(Arc::clone(&lingering)));
            Part { shard, entries: AtomicUsize::new(0) }
        };
        let store = Self {
            parts: (0..PARTS).map(part).collect(),
            hashes: RandomState::new(),
            sketch: ArcSwap::from_pointee(Sketch::new(0)),
            max_variants: options.max_variants,
            room: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            coming: AtomicUsize::new(0),
            lingering,
            entries: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            not_admitted: AtomicU64::new(0),
            purged: AtomicU64::new(0),
            disk: ArcSwapOption::empty(),
        };
        store.resize(options.capacity);
        store
    }

    /// Gives it another capacity; what does not fit leaves.
    pub fn resize(&self, capacity: usize) {
        if capacity == self.capacity.load(Relaxed) {
            return;
        }
        let sketch = Sketch::new(capacity / BYTES_FOR_A_COUNTER);
        self.room.store(capacity.saturating_sub(sketch.bytes()), Relaxed);
        self.capacity.store(capacity, Relaxed);
        if sketch.bytes() != self.sketch.load().bytes() {
            self.sketch.store(Arc::new(sketch));
        }
        self.make_room(u8::MAX);
    }

    /// Keeps entries on disk too from now on, or not any more. The same directory with another capacity stays
    /// open; another one ends as by [`Store::close`]. Waits for the disk: not for threads that serve requests.
    ///
    /// # Errors
    /// If the directory cannot be made or written to; nothing changes then.
    pub fn set_disk(&self, options: Option<&DiskOptions>) -> io::Result<()> {
        let Some(options) = options else {
            self.close();
            return Ok(());
        };
        if let Some(disk) = self.disk.load().as_ref().filter(|disk| disk.path() == options.path) {
            disk.resize(options.capacity);
            return Ok(());
        }
        let before = self.disk.swap(Some(Arc::new(Disk::open(options)?)));
        if let Some(disk) = before {
            disk.end();
        }
        Ok(())
    }

    /// Keeps nothing on disk from now on, once all that waits is written: for five seconds at most. What is
    /// there stays, for a later start.
    pub fn close(&self) {
        if let Some(disk) = self.disk.swap(None) {
            disk.end();
        }
    }

    /// Writes down, beside what is on disk, how far purges of others were followed; nothing where there is no disk.
    pub fn set_mark(&self, mark: String) {
        if let Some(disk) = &*self.disk.load() {
            disk.set_mark(mark);
        }
    }

    /// What was written down so last, perhaps before a restart.
    #[must_use]
    pub fn mark(&self) -> Option<String> {
        self.disk.load().as_ref()?.mark()
    }

    /// Whether [`Store::load`] may find what [`Store::get`] does not.
    #[must_use]
    pub fn has_slow_tier(&self) -> bool {
        self.disk.load().is_some()
    }

    /// The entries of a key, with those from disk, if there are any; they are in memory afterwards. Waits for a
    /// second at most.
    pub async fn load(&self, key: &[u8]) -> Option<Variants> {
        let disk = self.disk.load_full()?;
        let loaded = disk.load(key, None, self.max_variants).await;
        self.take_in(&disk, key, loaded)
    }

    /// As [`Store::load`], with only this variant from disk.
    pub async fn load_variant(&self, key: &[u8], variant: &[u8]) -> Option<Variants> {
        let disk = self.disk.load_full()?;
        let loaded = disk.load(key, Some(variant), 1).await;
        self.take_in(&disk, key, loaded)
    }

    fn take_in(&self, disk: &Disk, key: &[u8], mut loaded: Vec<Loaded>) -> Option<Variants> {
        if loaded.is_empty() {
            return None;
        }
        // What came into memory while they were read is newer.
        let known = self.peek(key);
        let known = known.as_deref().unwrap_or_default();
        loaded.retain(|found| known.iter().all(|known| known.variant() != found.entry.variant()));
        // The newest last, so that it comes first.
        for found in loaded.iter().rev() {
            self.insert_in_memory(Arc::clone(&found.entry));
        }
        let mut entries = known.to_vec();
        for found in loaded {
            // A purge came while it was read, and did not find it in memory yet.
            if disk.still_has(&found) {
                entries.push(found.entry);
            } else {
                self.remove_from_memory(&found.entry);
            }
        }
        Variants::new(entries)
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

    /// Puts an entry in, in place of one with the same key and variant. What becomes of it in memory does not
    /// keep it from the disk.
    pub fn insert(&self, entry: Arc<Entry>) -> Inserted {
        if let Some(disk) = &*self.disk.load() {
            disk.keep(&entry);
        }
        self.insert_in_memory(entry)
    }

    fn insert_in_memory(&self, entry: Arc<Entry>) -> Inserted {
        let (weight, room) = (entry.weight(), self.room.load(Relaxed));
        if weight > room / LARGEST_PART {
            return Inserted::TooLarge;
        }
        // Nobody else leaves for it: giving up what is read frees nothing.
        if entry.large.is_some() && self.lingering.load(Relaxed) > room / MOST_LINGERING {
            self.not_admitted.fetch_add(1, Relaxed);
            return Inserted::NotAdmitted;
        }
        let place = self.place(entry.key());
        let _coming = Counted::new(&self.coming, weight);
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
        let replaced = self.change(place.part, |shard| shard.swap(place.tag, old, Arc::clone(&entry)));
        self.make_room(u8::MAX);
        if let Some(disk) = self.disk.load().as_ref().filter(|_| replaced) {
            disk.keep(&entry);
        }
        replaced
    }

    /// Takes an entry out, if it is still there; whether it was.
    pub fn remove(&self, entry: &Arc<Entry>) -> bool {
        if let Some(disk) = &*self.disk.load() {
            disk.forget(entry);
        }
        self.remove_from_memory(entry)
    }

    fn remove_from_memory(&self, entry: &Arc<Entry>) -> bool {
        let place = self.place(entry.key());
        self.change(place.part, |shard| shard.take(place.tag, entry))
    }

    /// Grows with every purge.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Bytes of memory that it may take.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Relaxed) as u64
    }

    /// What is in it, and what it did.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        Numbers {
            entries: self.entries.load(Relaxed) as u64,
            bytes: (self.held.load(Relaxed) + self.sketch.load().bytes()) as u64,
            capacity: self.capacity(),
            evicted: self.evicted.load(Relaxed),
            not_admitted: self.not_admitted.load(Relaxed),
            purged: self.purged.load(Relaxed),
            disk: self.disk.load().as_ref().map(|disk| disk.numbers()),
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
        part.entries.store(shard.entries(), Relaxed);
        shift(&self.held, bytes, shard.bytes());
        shift(&self.entries, entries, shard.entries());
        given
    }

    /// Gives up entries until those that are in and coming fit; not for an entry that is asked for less than
    /// the first one that would have to leave. Whether they fit.
    fn make_room(&self, mut uses: u8) -> bool {
        while self.held.load(Relaxed) + self.coming.load(Relaxed) > self.room.load(Relaxed) {
            let Some(part) = self.full_part() else { return false };
            match self.give_up(part, uses) {
                Victim::Gone => {
                    self.evicted.fetch_add(1, Relaxed);
                    // It comes in now: or else others would have left for nothing.
                    uses = u8::MAX;
                }
                Victim::Spared => return false,
                Victim::None => {}
            }
        }
        true
    }

    /// The part to take from: that with the most entries. Of several, the next one in turn.
    fn full_part(&self) -> Option<usize> {
        let entries = |part: &usize| self.parts[*part].entries.load(Relaxed);
        let turn = self.turn.load(Relaxed);
        let part = (turn..PARTS).chain(0..turn).min_by_key(|part| Reverse(entries(part)))?;
        self.turn.store((part + 1) % PARTS, Relaxed);
        Some(part).filter(|part| entries(part) > 0)
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

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn shift(sum: &AtomicUsize, before: usize, after: usize) {
    if after >= before {
        sum.fetch_add(after - before, Relaxed);
    } else {
        sum.fetch_sub(before - after, Relaxed);
    }
}
