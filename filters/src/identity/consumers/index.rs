//! One state of the consumers: immutable, in shards that the next state shares where nothing changed.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::record::{Credential, Key, Record};
use super::{IdentityNo, Match};
use crate::context::Consumer;
use crate::tree::Path;

/// Few enough to be copied at each change, many enough that one of a million consumers is among a thousand.
const SHARDS: usize = 1024;
/// Different claims that consumers are known by for one identity; each is looked at for every token.
const CLAIMS: usize = 16;
/// What is said of one more.
const CROWDED: &str = "is of one claim more than the 16 by which an identity knows consumers";

/// All consumers at one time.
#[derive(Clone)]
pub struct Index {
    hasher: RandomState,
    names: Shards,
    /// By what each consumer is found by, in as many entries as it has keys.
    keys: Shards,
    /// The claims that any consumer is known by, by identity, and how often each stands for one.
    claims: Vec<Vec<(Arc<str>, usize)>>,
    /// How many consumers have so many credentials that are found by the same, where that is more than one.
    alike: BTreeMap<usize, usize>,
    count: usize,
}

/// A consumer, and by which of its keys it stands here. With its hash: a table that grows looks at no consumer.
#[derive(Clone)]
struct Held {
    record: Arc<Record>,
    slot: u32,
    hash: u32,
}

/// A table in parts that are copied one by one when they are changed.
#[derive(Clone)]
struct Shards(Box<[Arc<HashTable<Held>>]>);

impl Shards {
    fn new() -> Self {
        let empty = Arc::new(HashTable::new());
        Self((0..SHARDS).map(|_| empty.clone()).collect())
    }

    fn at(hash: u32) -> usize {
        hash as usize % SHARDS
    }

    fn find(&self, hash: u32, is_it: impl Fn(&Held) -> bool) -> Option<&Held> {
        self.0[Self::at(hash)].find(spread(hash), |held| held.hash == hash && is_it(held))
    }

    fn shard_mut(&mut self, hash: u32) -> &mut HashTable<Held> {
        Arc::make_mut(&mut self.0[Self::at(hash)])
    }

    /// Adds an entry, or gives the one that is there.
    fn add(&mut self, held: Held, is_it: impl Fn(&Held) -> bool) -> Option<&Held> {
        let hash = held.hash;
        let is_it = |held: &Held| held.hash == hash && is_it(held);
        match self.shard_mut(hash).entry(spread(hash), is_it, |held| spread(held.hash)) {
            Entry::Occupied(taken) => Some(taken.into_mut()),
            Entry::Vacant(vacant) => {
                vacant.insert(held);
                None
            }
        }
    }

    fn remove(&mut self, hash: u32, is_it: impl Fn(&Held) -> bool) -> Option<Held> {
        let found = self.shard_mut(hash).find_entry(spread(hash), is_it).ok()?;
        Some(found.remove().0)
    }

    /// Makes room for so many more, at once.
    fn reserve(&mut self, more: usize) {
        // Some shards get more than others.
        let each = more / SHARDS + more / SHARDS / 8;
        if each > 0 {
            self.0.iter_mut().for_each(|shard| Arc::make_mut(shard).reserve(each, |held| spread(held.hash)));
        }
    }
}

/// Tables use the lowest and the highest bits; those that chose the shard are the same for all in there.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(32)
}

impl Default for Index {
    fn default() -> Self {
        let (hasher, names, keys) = (RandomState::default(), Shards::new(), Shards::new());
        Self { hasher, names, keys, claims: Vec::new(), alike: BTreeMap::new(), count: 0 }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("consumers", &self.count).finish_non_exhaustive()
    }
}

/// Two consumers, or two credentials of one, that nobody could tell apart; or a claim for which there is no room.
#[derive(Debug)]
pub struct Clash {
    /// The one that comes later.
    pub record: Arc<Record>,
    /// Where in it.
    pub path: Path,
    /// The one that was there before; itself where there is no room.
    pub other: Arc<Record>,
    /// Where in that.
    pub other_path: Path,
    /// What is said of the other: it "is the same key", "has the same claim and value".
    pub what: &'static str,
}

impl Index {
    /// How many consumers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The consumer of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Record>> {
        let hash = narrow(self.hash_of(name));
        self.names.find(hash, |held| *held.record.consumer.name == *name).map(|held| &held.record)
    }

    /// What stands for a name in this index and all that it becomes.
    #[must_use]
    pub fn hash_of(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    /// The consumer whose name has this hash.
    #[must_use]
    pub fn named_by(&self, hash: u64) -> Option<&Arc<Record>> {
        let is_it = |held: &Held| self.hash_of(&held.record.consumer.name) == hash;
        self.names.find(narrow(hash), is_it).map(|held| &held.record)
    }

    /// All consumers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.names.0.iter().flat_map(|shard| shard.iter()).map(|held| &held.record)
    }

    /// Whose credential or claim this is.
    #[must_use]
    pub fn find(&self, identity: IdentityNo, key: Key<'_>) -> Option<Found<'_>> {
        let hash = self.hash(identity, key);
        let held = self.keys.find(hash, |held| held.record.key(held.slot) == (identity, key))?;
        Some(Found { record: &held.record, slot: held.slot })
    }

    /// The credentials that go by a name; all are of one consumer.
    pub fn named<'a>(&'a self, identity: IdentityNo, name: &'a str) -> impl Iterator<Item = Found<'a>> {
        let wanted = (identity, Key::Name(name));
        self.find(identity, Key::Name(name)).into_iter().flat_map(move |found| {
            let record = found.record;
            let slots = (0..record.slots()).filter(move |slot| record.key(*slot) == wanted);
            slots.map(move |slot| Found { record, slot })
        })
    }

    /// The most credentials that go by one name.
    pub(in crate::identity) fn most_alike(&self) -> usize {
        self.alike.last_key_value().map_or(1, |(most, _)| *most)
    }

    /// The claims that consumers are known by.
    pub(super) fn claims(&self, identity: IdentityNo) -> impl Iterator<Item = &Arc<str>> {
        self.claims.get(usize::from(identity.0)).into_iter().flatten().map(|(claim, _)| claim)
    }

    /// Another state: without the consumers of these names, then with these ones, which take the place of those
    /// of the same name.
    ///
    /// # Errors
    /// All that cannot be told apart, and claims for which there is no room.
    pub fn changed<'a>(
        &self,
        without: impl IntoIterator<Item = &'a str>,
        with: &[Arc<Record>],
    ) -> Result<Index, Vec<Clash>> {
        let mut next = self.clone();
        without.into_iter().for_each(|name| next.remove(name));
        next.names.reserve(with.len());
        next.keys.reserve(with.len());
        with.iter().for_each(|record| next.remove(&record.consumer.name));
        let clashes: Vec<Clash> = with.iter().flat_map(|record| next.add(record)).collect();
        if clashes.is_empty() { Ok(next) } else { Err(clashes) }
    }

    /// Adds a consumer whose name nobody has; what it has in common with others, and its claims for which there is no
    /// room.
    pub fn add(&mut self, record: &Arc<Record>) -> Vec<Clash> {
        let hash = narrow(self.hash_of(&record.consumer.name));
        let is_same = |other: &Held| other.record.consumer.name == record.consumer.name;
        if self.names.add(Held { record: record.clone(), slot: 0, hash }, is_same).is_none() {
            self.count += 1;
        }
        let alike = record.most_alike();
        if alike > 1 {
            *self.alike.entry(alike).or_default() += 1;
        }
        let mut clashes: Vec<Clash> =
            (0..record.slots()).filter_map(|slot| self.hold(record, slot)).collect();
        for (at, matched) in record.matches.iter().enumerate() {
            if !self.note(matched) {
                let other_path = Path::default().join("match").join(at);
                let (path, other) = (other_path.join("claim"), record.clone());
                clashes.push(Clash { record: record.clone(), path, other, other_path, what: CROWDED });
            }
        }
        clashes
    }

    fn hold(&mut self, record: &Arc<Record>, slot: u32) -> Option<Clash> {
        let (identity, key) = record.key(slot);
        if identity == IdentityNo::NONE {
            return None;
        }
        let held = Held { record: record.clone(), slot, hash: self.hash(identity, key) };
        let taken = self.keys.add(held, |held| held.record.key(held.slot) == (identity, key))?;
        // The first one leads to the others of its consumer.
        if record.may_repeat(slot) && Arc::ptr_eq(&taken.record, record) {
            return None;
        }
        let (option, what) = record.written(slot);
        let (path, other_path) = (place(record, slot).join(option), place(&taken.record, taken.slot));
        Some(Clash { record: record.clone(), path, other: taken.record.clone(), other_path, what })
    }

    fn remove(&mut self, name: &str) {
        // Looked for first: a shard is not copied for nothing.
        let Some(record) = self.get(name).cloned() else { return };
        let is_it = |held: &Held| Arc::ptr_eq(&held.record, &record);
        self.names.remove(narrow(self.hash_of(name)), is_it);
        self.count -= 1;
        for slot in 0..record.slots() {
            let (identity, key) = record.key(slot);
            self.keys.remove(self.hash(identity, key), |held| is_it(held) && held.slot == slot);
        }
        record.matches.iter().for_each(|matched| self.forget(matched));
        if let Some(count) = self.alike.get_mut(&record.most_alike()) {
            *count -= 1;
            self.alike.retain(|_, count| *count > 0);
        }
    }

    /// Counts a claim that a consumer is known by; false if there is no room for it.
    fn note(&mut self, matched: &Match) -> bool {
        if matched.identity == IdentityNo::NONE {
            return true;
        }
        let at = usize::from(matched.identity.0);
        if self.claims.len() <= at {
            self.claims.resize(at + 1, Vec::new());
        }
        let claims = &mut self.claims[at];
        match claims.iter().position(|(claim, _)| *claim == matched.claim) {
            Some(known) => claims[known].1 += 1,
            None if claims.len() == CLAIMS => return false,
            None => claims.push((matched.claim.clone(), 1)),
        }
        true
    }

    /// A consumer is known by this claim no more: one that nobody has is not looked at.
    fn forget(&mut self, matched: &Match) {
        let Some(claims) = self.claims.get_mut(usize::from(matched.identity.0)) else { return };
        let Some(known) = claims.iter().position(|(claim, _)| *claim == matched.claim) else { return };
        claims[known].1 -= 1;
        if claims[known].1 == 0 {
            claims.remove(known);
        }
    }

    fn hash(&self, identity: IdentityNo, key: Key<'_>) -> u32 {
        narrow(match key {
            // Nobody chooses what a hash begins with.
            Key::ApiKey(key) => key.prefix() ^ u64::from(identity.0),
            Key::Claim(..) | Key::Name(_) => self.hasher.hash_one((identity, key)),
        })
    }
}

fn narrow(hash: u64) -> u32 {
    (hash >> 32) as u32 ^ hash as u32
}

/// Where in a written consumer a slot stands.
fn place(record: &Record, slot: u32) -> Path {
    let at = slot as usize;
    match at.checked_sub(record.credentials.len()) {
        None => Path::default().join("credentials").join(at),
        Some(at) => Path::default().join("match").join(at),
    }
}

/// A consumer, and which credential or claim of it was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    record: &'a Arc<Record>,
    slot: u32,
}

/// Why a credential that is known does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapse {
    /// Its consumer is disabled.
    Consumer,
    /// It is disabled itself.
    Disabled,
    /// Its time is over.
    Expired,
}

impl Lapse {
    /// Why, in words: the first for what has expired, the second for what is disabled.
    pub(in crate::identity) fn reason(self, [expired, disabled]: [&'static str; 2]) -> &'static str {
        match self {
            Self::Consumer => "the consumer is disabled",
            Self::Disabled => disabled,
            Self::Expired => expired,
        }
    }
}

impl<'a> Found<'a> {
    /// The consumer with all it has.
    #[must_use]
    pub fn record(&self) -> &'a Arc<Record> {
        self.record
    }

    /// What requests are told of it.
    #[must_use]
    pub fn consumer(&self) -> &'a Arc<Consumer> {
        &self.record.consumer
    }

    /// The credential; none where a claim was asked for.
    #[must_use]
    pub fn credential(&self) -> Option<&'a Credential> {
        self.record.credentials.get(self.slot as usize)
    }

    /// Why it does not count at this time, if so.
    #[must_use]
    pub fn lapse(&self, now: SystemTime) -> Option<Lapse> {
        if self.record.disabled {
            return Some(Lapse::Consumer);
        }
        let credential = self.credential()?;
        if credential.disabled {
            return Some(Lapse::Disabled);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        (now >= credential.expires).then_some(Lapse::Expired)
    }
}
