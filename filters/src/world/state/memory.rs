//! The state of one process: sharded maps, bounded in entries, expiring by the clock.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;

use super::budgets::Budgets;
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

/// Keeps entries in memory. Full, it drops expired entries first, then the soonest to expire among a sample.
pub struct MemoryState {
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    capacity: usize,
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
            clock,
            hasher: RandomState::new(),
            shards,
            capacity,
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

    fn with_shard<T>(&self, key: &StateKey, act: impl FnOnce(&mut Shard, Instant) -> T) -> T {
        let now = self.clock.now();
        let hash = self.hasher.hash_one(key);
        // The remainder is below 16.
        let index = usize::try_from(hash % SHARDS as u64).unwrap_or(0);
        act(&mut self.shards[index].lock(), now)
    }
}

impl Shard {
    fn alive(&mut self, key: &StateKey, now: Instant) -> Option<&mut Entry> {
        self.entries.get_mut(key).filter(|entry| entry.expires > now)
    }

    fn insert(&mut self, key: &StateKey, entry: Entry, now: Instant, capacity: usize) {
        if let Some(present) = self.entries.get_mut(key) {
            *present = entry;
            return;
        }
        if self.entries.len() >= capacity {
            self.make_room(now);
        }
        self.entries.insert(key.clone(), entry);
    }

    /// Removes at least one entry from a full shard.
    fn make_room(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            let before = self.entries.len();
            self.entries.retain(|_, entry| entry.expires > now);
            if self.entries.len() < before {
                return;
            }
        }
        if let Some(index) = self.soonest_in_sample() {
            self.entries.swap_remove_index(index);
        }
    }

    /// The entry that expires first among the next few; removal by swapping keeps their order mixed.
    fn soonest_in_sample(&mut self) -> Option<usize> {
        let len = self.entries.len();
        let start = self.cursor;
        self.cursor = start.wrapping_add(SAMPLE);
        let sample = (0..SAMPLE.min(len)).map(|step| start.wrapping_add(step) % len);
        sample.min_by_key(|index| self.entries.get_index(*index).map(|(_, entry)| entry.expires))
    }
}

impl Entry {
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
            shard.insert(key, entry, now, self.capacity);
        });
        Ok(())
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
            shard.insert(key, entry, now, self.capacity);
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
            shard.insert(key, entry, now, self.capacity);
            Ok(())
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
        self.tallies.learn(rows);
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
                    self.tallies.learn(&rows);
                    continue;
                }
            };
            if check_size(&key, value.len()).is_ok() {
                self.with_shard(&key, |shard, now| {
                    if shard.alive(&key, now).is_none() {
                        let entry = Entry { value, expires: expiry(now, Duration::from_millis(ttl_ms)) };
                        shard.insert(&key, entry, now, self.capacity);
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TenantId;
    use super::*;
    use crate::world::ManualClock;

    const MINUTE: Duration = Duration::from_secs(60);

    fn store(max_entries: usize) -> (Arc<ManualClock>, MemoryState) {
        let clock = Arc::new(ManualClock::new());
        (clock.clone(), MemoryState::new(clock, max_entries))
    }

    fn key(text: &str) -> StateKey {
        StateKey::new(TenantId(0), "test", text.as_bytes())
    }

    #[tokio::test]
    async fn an_entry_lives_until_its_time_is_up() {
        let (clock, state) = store(100);
        state.put(&key("a"), "1".into(), MINUTE).await.unwrap();
        clock.advance(MINUTE - Duration::from_nanos(1));
        assert_eq!(state.get(&key("a")).await, Ok(Some("1".into())));
        clock.advance(Duration::from_nanos(1));
        assert_eq!(state.get(&key("a")).await, Ok(None));
    }

    #[tokio::test]
    async fn additions_do_not_extend_the_window_and_a_new_window_starts_at_zero() {
        let (clock, state) = store(100);
        assert_eq!(state.add(&key("a"), 1, MINUTE).await, Ok(1));
        clock.advance(MINUTE / 2);
        assert_eq!(state.add(&key("a"), 2, MINUTE).await, Ok(3));
        clock.advance(MINUTE / 2);
        assert_eq!(state.add(&key("a"), 1, MINUTE).await, Ok(1));
    }

    #[tokio::test]
    async fn a_counter_stops_at_the_ends_of_its_range() {
        let (_, state) = store(100);
        state.add(&key("a"), i64::MAX, Duration::MAX).await.unwrap();
        assert_eq!(state.add(&key("a"), 1, MINUTE).await, Ok(i64::MAX));
    }

    #[tokio::test]
    async fn adding_to_something_else_is_an_error() {
        let (_, state) = store(100);
        state.put(&key("a"), "text".into(), MINUTE).await.unwrap();
        assert_eq!(state.add(&key("a"), 1, MINUTE).await, Err(StateError::NotACounter));
    }

    #[tokio::test]
    async fn an_update_sees_the_present_value_and_may_leave_it_alone() {
        let (clock, state) = store(100);
        let mut seen = Vec::new();
        for _ in 0..2 {
            let mut change = |present: Option<&[u8]>| {
                seen.push(present.map(<[u8]>::to_vec));
                present.is_none().then(|| Bytes::from_static(b"new"))
            };
            state.update(&key("a"), MINUTE, &mut change).await.unwrap();
            clock.advance(MINUTE / 2);
        }
        assert_eq!(seen, [None, Some(b"new".to_vec())]);
        assert_eq!(state.get(&key("a")).await, Ok(None), "what is left alone is not extended either");
    }

    #[tokio::test]
    async fn additions_from_many_tasks_are_all_counted() {
        let (_, state) = store(100);
        let state = Arc::new(state);
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let state = state.clone();
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        futures_util::FutureExt::now_or_never(state.add(&key("a"), 1, MINUTE));
                    }
                })
            })
            .collect();
        tasks.into_iter().for_each(|task| task.join().unwrap());
        assert_eq!(state.add(&key("a"), 0, MINUTE).await, Ok(4000));
    }

    #[tokio::test]
    async fn a_flood_of_keys_does_not_grow_the_store_beyond_its_bound() {
        let (_, state) = store(160);
        for index in 0..10_000 {
            state.add(&key(&index.to_string()), 1, MINUTE).await.unwrap();
        }
        assert_eq!(state.len(), 160);
        assert_eq!(state.get(&key("9999")).await, Ok(Some("1".into())), "the newest entry is kept");
    }

    #[test]
    fn expired_entries_make_room_before_living_ones() {
        let mut shard = Shard::default();
        let start = Instant::now();
        let entry = |expires| Entry { value: Value::Counter(1), expires };
        shard.insert(&key("long"), entry(start + 10 * MINUTE), start, 3);
        shard.insert(&key("dead 1"), entry(start + MINUTE), start, 3);
        shard.insert(&key("dead 2"), entry(start + MINUTE), start, 3);
        shard.insert(&key("new"), entry(start + 20 * MINUTE), start + 2 * MINUTE, 3);
        let keys: Vec<_> = shard.entries.keys().cloned().collect();
        assert_eq!(keys, [key("long"), key("new")]);
    }

    #[test]
    fn with_nothing_expired_the_soonest_to_expire_goes() {
        let start = Instant::now();
        let mut shard = Shard::default();
        for (name, minutes) in [("b", 2), ("a", 1), ("c", 3), ("d", 4)] {
            let entry = Entry { value: Value::Counter(1), expires: start + minutes * MINUTE };
            shard.insert(&key(name), entry, start, 3);
        }
        assert!(!shard.entries.contains_key(&key("a")));
        assert_eq!(shard.entries.len(), 3);
    }

    #[tokio::test]
    async fn what_is_exported_lives_on_elsewhere_for_the_time_it_had_left() {
        let (clock, old) = store(100);
        old.add(&key("count"), 7, MINUTE).await.unwrap();
        old.put(&key("gone"), "x".into(), MINUTE / 4).await.unwrap();
        old.put(&key("bytes"), Bytes::from_static(b"\xff\0"), MINUTE).await.unwrap();
        clock.advance(MINUTE / 2);
        let text = serde_json::to_string(&old.export()).unwrap();
        let (clock, new) = store(100);
        new.add(&key("count"), 1, MINUTE).await.unwrap();
        new.import(serde_json::from_str::<Vec<StateEntry>>(&text).unwrap());
        assert_eq!(new.len(), 2);
        assert_eq!(new.add(&key("count"), 0, MINUTE).await, Ok(1), "the newer entry wins");
        assert_eq!(new.get(&key("bytes")).await, Ok(Some(Bytes::from_static(b"\xff\0"))));
        clock.advance(MINUTE / 2);
        assert_eq!(new.get(&key("bytes")).await, Ok(None));
    }

    #[tokio::test]
    async fn oversized_keys_and_values_are_refused() {
        let (_, state) = store(100);
        let long = StateKey::new(TenantId(0), "test", &[0; MAX_KEY + 1]);
        assert_eq!(
            state.add(&long, 1, MINUTE).await,
            Err(StateError::TooLarge { what: "key", limit: MAX_KEY })
        );
        let big = Bytes::from(vec![0; MAX_VALUE + 1]);
        assert!(matches!(
            state.put(&key("a"), big, MINUTE).await,
            Err(StateError::TooLarge { what: "value", .. })
        ));
    }
}
