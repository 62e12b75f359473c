//! What filters remember between requests: a keyed store with the tenant in every key.

mod budget;
mod budgets;
mod memory;
mod refusals;
mod tallies;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use budget::{Balance, Budget, Charge};
pub use memory::MemoryState;
pub use tally::{Tally, TallyRow, Window};

/// Longest key accepted, in bytes.
pub(crate) const MAX_KEY: usize = 4096;
/// Longest value accepted, in bytes.
pub(crate) const MAX_VALUE: usize = 1 << 20;

/// Who owns what a request touches; 0 where tenants are not used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantId(pub u32);

/// Names one entry: whose it is, which filter instance keeps it, and the filter's own key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StateKey {
    /// The owner.
    pub tenant: TenantId,
    /// The retained id of the filter instance.
    pub scope: Arc<str>,
    /// The filter's own key; may hold any bytes.
    pub key: Box<[u8]>,
}

impl StateKey {
    /// The key of one entry.
    #[must_use]
    pub fn new(tenant: TenantId, scope: impl Into<Arc<str>>, key: &[u8]) -> Self {
        Self { tenant, scope: scope.into(), key: key.into() }
    }
}

/// The change that [`State::update`] applies: from the present value to the new one, or `None` to leave it alone.
pub type Change<'a> = dyn FnMut(Option<&[u8]>) -> Option<Bytes> + Send + 'a;

/// A bounded store whose entries expire. Full, it may forget counters early, but no other value: what was decided by
/// one is to hold as long as it lasts. It never returns expired ones.
#[async_trait]
pub trait State: Send + Sync {
    /// The value, or `None`; a counter reads as decimal text.
    async fn get(&self, key: &StateKey) -> Result<Option<Bytes>, StateError>;

    /// Sets the value and its time to live; refused where there is no room.
    async fn put(&self, key: &StateKey, value: Bytes, ttl: Duration) -> Result<(), StateError>;

    /// Adds to a counter, atomically, and returns the sum, which stops at the ends of `i64`. A missing counter is 0;
    /// its time to live starts when it is created and later additions do not extend it.
    async fn add(&self, key: &StateKey, delta: i64, ttl: Duration) -> Result<i64, StateError>;

    /// Reads, changes and writes in one atomic step; a written value gets this time to live. `change` may be called
    /// more than once (optimistic stores try again), must not block, and must not reach this store. Refused where there
    /// is no room.
    async fn update(&self, key: &StateKey, ttl: Duration, change: &mut Change<'_>) -> Result<(), StateError>;

    /// Removes the entry, if there is one.
    async fn remove(&self, key: &StateKey) -> Result<(), StateError>;

    /// Spends all of these charges on budgets of a scope, or none of them, in one atomic step: what may not pass
    /// costs nothing. Says whether it may, and leaves in each charge what is left. Each key stands there once.
    async fn spend(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
    ) -> Result<bool, StateError>;

    /// Counts all of these tallies on quotas of a scope, or none of them, in one atomic step. Says whether it
    /// did, and leaves in each what is left and the slot it was counted in. Each key stands there once.
    async fn tally(
        &self,
        tenant: TenantId,
        scope: &str,
        tallies: &mut [Tally<'_>],
    ) -> Result<bool, StateError>;

    /// Gives back units that were counted in this slot. Must not block: it is called where a request is dropped.
    fn give_back(&self, tenant: TenantId, scope: &str, key: &[u8], slot: u64, cost: u64);

    /// Takes what was counted and is not in a file yet, as differences to what is.
    fn take_unsaved(&self) -> Vec<TallyRow> {
        Vec::new()
    }

    /// Puts back what was taken and could not be saved.
    fn unsave(&self, _rows: &[TallyRow]) {}

    /// Takes over what a file knows, where that is more than what is known here.
    fn learn(&self, _rows: &[TallyRow]) {}

    /// Every entry that would be gone with this process, for another one to [`import`](Self::import).
    fn export(&self) -> Vec<StateEntry> {
        Vec::new()
    }

    /// Takes over entries, except where this store already has one of its own: what happened here is newer.
    fn import(&self, _entries: Vec<StateEntry>) {}
}

/// Why a store refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateError {
    /// A key or value beyond the store's limit.
    TooLarge {
        /// `key` or `value`.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// An addition to a value that is not a counter.
    NotACounter,
    /// There is no room for a further entry, and nothing that may be forgotten.
    Full,
    /// The store cannot be reached.
    Unavailable(String),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { what, limit } => write!(f, "the state's {what} exceeds {limit} bytes"),
            Self::NotACounter => f.write_str("the state holds a value that is not a counter"),
            Self::Full => f.write_str("the state has no room for another entry"),
            Self::Unavailable(why) => write!(f, "the state is not available: {why}"),
        }
    }
}

impl std::error::Error for StateError {}

/// An entry on its way to another process; times are relative, because clocks differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateEntry {
    /// The owner.
    pub tenant: TenantId,
    /// The retained id of the filter instance.
    pub scope: Arc<str>,
    /// The filter's own key.
    pub key: Vec<u8>,
    /// What is kept.
    pub value: StateValue,
    /// Milliseconds left to live, rounded up.
    pub ttl_ms: u64,
}

/// What an entry holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateValue {
    /// A counter.
    Counter(i64),
    /// Anything else.
    Bytes(Vec<u8>),
    /// Budgets that are not whole: by the digests of their keys, in how many nanoseconds they are.
    Budgets {
        /// What the digests were made with.
        secret: [u64; 2],
        /// Digests, and nanoseconds.
        debts: Vec<(u64, u64)>,
    },
    /// What was used of quotas.
    Tallies(Vec<TallyRow>),
}

/// The part of a store that belongs to one filter instance. The tenant is given with each call, so none is forgotten.
#[derive(Clone)]
pub struct ScopedState {
    state: Arc<dyn State>,
    scope: Arc<str>,
}

impl ScopedState {
    /// The entries of this scope (the retained id of a filter instance).
    #[must_use]
    pub fn new(state: Arc<dyn State>, scope: Arc<str>) -> Self {
        Self { state, scope }
    }

    /// The retained id of the filter instance.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// As [`State::get`].
    pub async fn get(&self, tenant: TenantId, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.state.get(&self.key(tenant, key)).await
    }

    /// As [`State::put`].
    pub async fn put(
        &self,
        tenant: TenantId,
        key: &[u8],
        value: Bytes,
        ttl: Duration,
    ) -> Result<(), StateError> {
        self.state.put(&self.key(tenant, key), value, ttl).await
    }

    /// As [`State::add`].
    pub async fn add(
        &self,
        tenant: TenantId,
        key: &[u8],
        delta: i64,
        ttl: Duration,
    ) -> Result<i64, StateError> {
        self.state.add(&self.key(tenant, key), delta, ttl).await
    }

    /// As [`State::update`].
    pub async fn update(
        &self,
        tenant: TenantId,
        key: &[u8],
        ttl: Duration,
        change: &mut Change<'_>,
    ) -> Result<(), StateError> {
        self.state.update(&self.key(tenant, key), ttl, change).await
    }

    /// As [`State::remove`].
    pub async fn remove(&self, tenant: TenantId, key: &[u8]) -> Result<(), StateError> {
        self.state.remove(&self.key(tenant, key)).await
    }

    /// As [`State::spend`].
    pub async fn spend(&self, tenant: TenantId, charges: &mut [Charge<'_>]) -> Result<bool, StateError> {
        self.state.spend(tenant, &self.scope, charges).await
    }

    /// As [`State::tally`].
    pub async fn tally(&self, tenant: TenantId, tallies: &mut [Tally<'_>]) -> Result<bool, StateError> {
        self.state.tally(tenant, &self.scope, tallies).await
    }

    /// As [`State::give_back`].
    pub fn give_back(&self, tenant: TenantId, key: &[u8], slot: u64, cost: u64) {
        self.state.give_back(tenant, &self.scope, key, slot, cost);
    }

    /// The store.
    pub(crate) fn state(&self) -> &dyn State {
        &*self.state
    }

    /// The part of the same store that belongs to another scope.
    #[must_use]
    pub fn of(&self, scope: impl Into<Arc<str>>) -> Self {
        Self { state: self.state.clone(), scope: scope.into() }
    }

    fn key(&self, tenant: TenantId, key: &[u8]) -> StateKey {
        StateKey { tenant, scope: self.scope.clone(), key: key.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::ManualClock;

    const TTL: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn tenants_and_scopes_never_see_each_others_entries() {
        let store: Arc<dyn State> = Arc::new(MemoryState::new(Arc::new(ManualClock::new()), 100));
        let limit = ScopedState::new(store.clone(), "limit".into());
        let quota = ScopedState::new(store, "quota".into());
        assert_eq!(limit.add(TenantId(1), b"k", 5, TTL).await, Ok(5));
        assert_eq!(limit.add(TenantId(2), b"k", 1, TTL).await, Ok(1));
        assert_eq!(quota.add(TenantId(1), b"k", 1, TTL).await, Ok(1));
        limit.remove(TenantId(2), b"k").await.unwrap();
        assert_eq!(limit.get(TenantId(2), b"k").await, Ok(None));
        assert_eq!(limit.get(TenantId(1), b"k").await, Ok(Some(Bytes::from_static(b"5"))));
    }

    #[tokio::test]
    async fn scope_and_key_are_not_run_together() {
        let store: Arc<dyn State> = Arc::new(MemoryState::new(Arc::new(ManualClock::new()), 100));
        ScopedState::new(store.clone(), "a".into()).put(TenantId(0), b"bc", "1".into(), TTL).await.unwrap();
        let other = ScopedState::new(store, "ab".into());
        assert_eq!(other.get(TenantId(0), b"c").await, Ok(None));
    }
}
