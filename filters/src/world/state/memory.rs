//! The state of one process: sharded maps, bounded in entries, expiring by the clock.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;

use super::budgets::Budgets;
use super::refusals::Refusals;
use super::tallies::Tallies;
use super::{
    Change, Charge, MAX_KEY, MAX_VALUE, State, StateEntry, StateError, StateKey, StateValue, Tally, TallyRow,
    TenantId,
};
use crate::world::Clock;

const SHARDS: usize = 16;
/// Entries looked at to find one to evict.
const SAMPLE: usize = 16;
/// A full shard is searched for expired entries at most this often, so that a flood of keys costs no full scan each.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Stands for "never": a time to live beyond it is cut.
const LONGEST_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Keeps entries in memory. Full, it drops expired entries first, then the soonest to expire among the counters of a
/// sample.
pub struct MemoryState {
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    capacity: usize,
    started: Instant,
    refusals: Refusals,
    budgets: Budgets,
    tallies: Tallies,
}

#[derive(Default)]
struct Shard {
    entries: IndexMap<StateKey, Entry>,
    swept: Option<Instant>,
    cursor: usize,
}

struct Entry {
    value: Value,
    expires: Instant,
}

enum Value {
    Counter(i64),
    Bytes(Bytes),
}

impl MemoryState {
    /// An empty store of at most about `max_entries` entries (each of 16 shards holds its share, rounded up),
    /// and as many budgets and quotas.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, max_entries: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let budgets = Budgets::new(clock.clone(), max_entries);
        let capacity = max_entries.div_ceil(SHARDS).max(1);
        Self {
            started: clock.now(),
            clock,
            hasher: RandomState::new(),
            shards,
            capacity,
            refusals: Refusals::default(),
            budgets,
            tallies: Tallies::new(max_entries),
        }
    }

    /// Entries held, including expired ones that nothing has removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn unix_seconds(&self) -> u64 {
        self.clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    fn with_shard<T>(&self, key: &StateKey, act: impl FnOnce(&mut Shard, Instant) -> T) -> T {
        let now = self.clock.now();
        let hash = self.hasher.hash_one(key);
        // The remainder is below 16.
        let index = usize::try_from(hash % SHARDS as u64).unwrap_or(0);
        act(&mut self.shards[index].lock(), now)
    }

    /// Puts an entry into its shard; tells as entries begin to be refused, and when that is over.
    fn insert(
        &self,
        shard: &mut Shard,
        key: &StateKey,
        entry: Entry,
        now: Instant,
    ) -> Result<(), StateError> {
        let inserted = shard.insert(key, entry, now, self.capacity);
        let second = now.saturating_duration_since(self.started).as_secs().saturating_add(1);
        if inserted.is_err() {
            if self.refusals.begin(second) {
                log::warn!(entries = self.capacity * SHARDS; "too much has to be remembered: new nonces are answered 503");
            }
        } else if self.refusals.end(second) {
            log::info!("there is room again for what has to be remembered");
        }
        inserted
    }
}

impl Shard {
    fn alive(&mut self, key: &StateKey, now: Instant) -> Option<&mut Entry> {
        self.entries.get_mut(key).filter(|entry| entry.expires > now)
    }

    fn insert(
        &mut self,
        key: &StateKey,
        entry: Entry,
        now: Instant,
        capacity: usize,
    ) -> Result<(), StateError> {
        if let Some(present) = self.entries.get_mut(key) {
            *present = entry;
            return Ok(());
        }
        if self.entries.len() >= capacity && !self.make_room(now) {
            return Err(StateError::Full);
        }
        self.entries.insert(key.clone(), entry);
        Ok(())
    }

    /// Removes at least one entry from a full shard, if one may go; whether it did.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            let before = self.entries.len();
            self.entries.retain(|_, entry| entry.expires > now);
            if self.entries.len() < before {
                return true;
            }
        }
        let gone = self.soonest_in_sample(now);
        gone.is_some_and(|index| self.entries.swap_remove_index(index).is_some())
    }

    /// Of the next few entries that may go, the one that expires first; removal by swapping keeps their order mixed.
    fn soonest_in_sample(&mut self, now: Instant) -> Option<usize> {
        let len = self.entries.len();
        let start = self.cursor;
        self.cursor = start.wrapping_add(SAMPLE);
        let sample = (0..SAMPLE.min(len)).map(|step| start.wrapping_add(step) % len);
        let expiries = sample.filter_map(|index| {
            let (_, entry) = self.entries.get_index(index)?;
            entry.may_go(now).then_some((index, entry.expires))
        });
        expiries.min_by_key(|(_, expires)| *expires).map(|(index, _)| index)
    }
}

impl Entry {
    /// Whether a full shard may forget it: a counter that starts again counts too little, but a value that is gone
    /// undoes what was decided by it.
    fn may_go(&self, now: Instant) -> bool {
        self.expires <= now || matches!(self.value, Value::Counter(_))
    }

    fn export(&self, key: &StateKey, now: Instant) -> StateEntry {
        let left = self.expires.saturating_duration_since(now);
        let value = match &self.value {
            Value::Counter(number) => StateValue::Counter(*number),
            Value::Bytes(bytes) => StateValue::Bytes(bytes.to_vec()),
        };
        StateEntry {
            tenant: key.tenant,
            scope: key.scope.clone(),
            key: key.key.to_vec(),
            value,
            ttl_ms: u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
        }
    }
}

impl Value {
    fn bytes(&self) -> Bytes {
        match self {
            Self::Counter(number) => number.to_string().into(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Counter(_) => size_of::<i64>(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

fn check_size(key: &StateKey, value: usize) -> Result<(), StateError> {
    if key.key.len() > MAX_KEY {
        return Err(StateError::TooLarge { what: "key", limit: MAX_KEY });
    }
    if value > MAX_VALUE {
        return Err(StateError::TooLarge { what: "value", limit: MAX_VALUE });
    }
    Ok(())
}

fn expiry(now: Instant, ttl: Duration) -> Instant {
    now.checked_add(ttl.min(LONGEST_TTL)).unwrap_or(now)
}

#[async_trait]
impl State for MemoryState {
    async fn get(&self, key: &StateKey) -> Result<Option<Bytes>, StateError> {
        Ok(self.with_shard(key, |shard, now| shard.alive(key, now).map(|entry| entry.value.bytes())))
    }

    async fn put(&self, key: &StateKey, value: Bytes, ttl: Duration) -> Result<(), StateError> {
        check_size(key, value.len())?;
        self.with_shard(key, |shard, now| {
            let entry = Entry { value: Value::Bytes(value), expires: expiry(now, ttl) };
            self.insert(shard, key, entry, now)
        })
    }

    async fn add(&self, key: &StateKey, delta: i64, ttl: Duration) -> Result<i64, StateError> {
        check_size(key, 0)?;
        self.with_shard(key, |shard, now| {
            if let Some(entry) = shard.alive(key, now) {
                let Value::Counter(number) = &mut entry.value else { return Err(StateError::NotACounter) };
                *number = number.saturating_add(delta);
                return Ok(*number);
            }
            let entry = Entry { value: Value::Counter(delta), expires: expiry(now, ttl) };
            self.insert(shard, key, entry, now)?;
            Ok(delta)
        })
    }

    async fn update(&self, key: &StateKey, ttl: Duration, change: &mut Change<'_>) -> Result<(), StateError> {
        check_size(key, 0)?;
        self.with_shard(key, |shard, now| {
            let present = shard.alive(key, now).map(|entry| entry.value.bytes());
            let Some(value) = change(present.as_deref()) else { return Ok(()) };
            check_size(key, value.len())?;
            let entry = Entry { value: Value::Bytes(value), expires: expiry(now, ttl) };
            self.insert(shard, key, entry, now)
        })
    }

    async fn remove(&self, key: &StateKey) -> Result<(), StateError> {
        self.with_shard(key, |shard, _| shard.entries.swap_remove(key));
        Ok(())
    }

    async fn spend(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
    ) -> Result<bool, StateError> {
        Ok(self.budgets.spend(tenant, scope, charges))
    }

    async fn tally(
        &self,
        tenant: TenantId,
        scope: &str,
        tallies: &mut [Tally<'_>],
    ) -> Result<bool, StateError> {
        Ok(self.tallies.count(tenant, scope, tallies))
    }

    fn give_back(&self, tenant: TenantId, scope: &str, key: &[u8], slot: u64, cost: u64) {
        self.tallies.give_back(tenant, scope, key, slot, cost);
    }

    fn take_unsaved(&self) -> Vec<TallyRow> {
        self.tallies.take_unsaved()
    }

    fn unsave(&self, rows: &[TallyRow]) {
        self.tallies.unsave(rows);
    }

    fn learn(&self, rows: &[TallyRow]) {
        self.tallies.learn(rows, self.unix_seconds());
    }

    fn export(&self) -> Vec<StateEntry> {
        let now = self.clock.now();
        let mut exported = self.budgets.export();
        exported.extend(self.tallies.export());
        for shard in &self.shards {
            let shard = shard.lock();
            let alive = shard.entries.iter().filter(|(_, entry)| entry.expires > now);
            exported.extend(alive.map(|(key, entry)| entry.export(key, now)));
        }
        exported
    }

    fn import(&self, entries: Vec<StateEntry>) {
        for StateEntry { tenant, scope, key, value, ttl_ms } in entries {
            let key = StateKey::new(tenant, scope, &key);
            let value = match value {
                StateValue::Counter(number) => Value::Counter(number),
                StateValue::Bytes(bytes) => Value::Bytes(bytes.into()),
                StateValue::Budgets { secret, debts } => {
                    self.budgets.import(secret, debts);
                    continue;
                }
                StateValue::Tallies(rows) => {
                    self.tallies.learn(&rows, self.unix_seconds());
                    continue;
                }
            };
            if check_size(&key, value.len()).is_ok() {
                self.with_shard(&key, |shard, now| {
                    if shard.alive(&key, now).is_none() {
                        let entry = Entry { value, expires: expiry(now, Duration::from_millis(ttl_ms)) };
                        // Without a bound: the other process had one, and shared its entries out otherwise.
                        shard.entries.insert(key.clone(), entry);
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
