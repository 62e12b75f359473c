//! Stores of the document: budgets that several gateways share, and what happens while those are away.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Charge, Records, ScopedState, State, StateError, Tally, TenantId};

/// The stores of a document, by name.
pub type Stores = BTreeMap<Arc<str>, Arc<dyn Store>>;

/// A place that several gateways share.
#[async_trait]
pub trait Store: Send + Sync {
    /// As [`State::spend`] of the charges and [`State::tally`] of the tallies together, all of them or none, for all
    /// gateways with this tenant and scope, within a deadline of the store's own. The slots of tallies are those of
    /// the gateway that asks, so gateways have to agree on the time.
    async fn decide(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
        tallies: &mut [Tally<'_>],
    ) -> Result<bool, Away>;

    /// As [`State::give_back`]. Must not block; what cannot be given back because the store is away stays used.
    fn give_back(&self, tenant: TenantId, scope: &str, key: &[u8], slot: u64, cost: u64);

    /// What is done about a decision that it cannot make.
    fn on_failure(&self) -> OnFailure;

    /// Where it keeps values; none if it only decides.
    fn records(&self) -> Option<&dyn Records> {
        None
    }
}

/// A store gave no answer, or none in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away;

/// What is done about decisions while a store is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Each gateway decides for itself, by budgets of its own.
    #[default]
    Local,
    /// Everything passes.
    Open,
    /// Nothing passes: 503 `filter-unavailable`.
    Closed,
}

impl OnFailure {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Stands for a store where there is no network: it is never away, and shares with nobody.
pub struct OwnStore(pub Arc<dyn State>);

#[async_trait]
impl Store for OwnStore {
    async fn decide(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
        tallies: &mut [Tally<'_>],
    ) -> Result<bool, Away> {
        together(&*self.0, tenant, scope, charges, tallies).await.map_err(|_| Away)
    }

    fn give_back(&self, tenant: TenantId, scope: &str, key: &[u8], slot: u64, cost: u64) {
        self.0.give_back(tenant, scope, key, slot, cost);
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Local
    }
}

/// Where one filter instance keeps its budgets: in this process, or in a store.
#[derive(Clone)]
pub struct Ledger {
    own: ScopedState,
    store: Option<Arc<dyn Store>>,
}

/// Whether charges were spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// All of them.
    Yes,
    /// None of them: too little was left.
    No,
    /// Nobody counted them, so they may pass; the balances say nothing.
    Uncounted,
}

/// What became of charges and tallies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// Whether they were spent.
    pub spent: Spent,
    /// By the store, which has to be told what is given back.
    pub by_store: bool,
}

impl Ledger {
    /// Budgets in this part of the process's state or, if there is one, in the store.
    #[must_use]
    pub fn new(own: ScopedState, store: Option<Arc<dyn Store>>) -> Self {
        Self { own, store }
    }

    /// The part of the same places that belongs to another scope.
    #[must_use]
    pub fn of(&self, scope: impl Into<Arc<str>>) -> Self {
        Self { own: self.own.of(scope), store: self.store.clone() }
    }

    /// What tells its store from all others, as long as anybody has this one; none in the process.
    pub(crate) fn store_id(&self) -> Option<usize> {
        self.store.as_ref().map(|store| Arc::as_ptr(store).addr())
    }

    /// As [`State::spend`]; while its store is away, as that one's [`OnFailure`] says.
    pub async fn spend(&self, tenant: TenantId, charges: &mut [Charge<'_>]) -> Result<Spent, StateError> {
        self.decide(tenant, charges, &mut []).await.map(|decided| decided.spent)
    }

    /// As [`Store::decide`]; while its store is away, as that one's [`OnFailure`] says.
    pub async fn decide(
        &self,
        tenant: TenantId,
        charges: &mut [Charge<'_>],
        tallies: &mut [Tally<'_>],
    ) -> Result<Decided, StateError> {
        let scope = self.own.scope();
        if let Some(store) = &self.store {
            match (store.decide(tenant, scope, charges, tallies).await, store.on_failure()) {
                (Ok(passes), _) => return Ok(Decided { spent: passes.into(), by_store: true }),
                (Err(Away), OnFailure::Local) => {}
                (Err(Away), OnFailure::Open) => {
                    return Ok(Decided { spent: Spent::Uncounted, by_store: false });
                }
                (Err(Away), OnFailure::Closed) => {
                    return Err(StateError::Unavailable("its store is away".to_owned()));
                }
            }
        }
        let passes = together(self.own.state(), tenant, scope, charges, tallies).await?;
        Ok(Decided { spent: passes.into(), by_store: false })
    }

    /// As [`State::give_back`], where it was counted.
    pub fn give_back(&self, tenant: TenantId, key: &[u8], slot: u64, cost: u64, by_store: bool) {
        match self.store.as_ref().filter(|_| by_store) {
            Some(store) => store.give_back(tenant, self.own.scope(), key, slot, cost),
            None => self.own.give_back(tenant, key, slot, cost),
        }
    }
}

impl From<bool> for Spent {
    fn from(passes: bool) -> Self {
        if passes { Self::Yes } else { Self::No }
    }
}

/// Counts tallies, then spends charges; what was counted is given back if there is too little to spend.
async fn together(
    state: &dyn State,
    tenant: TenantId,
    scope: &str,
    charges: &mut [Charge<'_>],
    tallies: &mut [Tally<'_>],
) -> Result<bool, StateError> {
    if !tallies.is_empty() && !state.tally(tenant, scope, tallies).await? {
        return Ok(false);
    }
    if charges.is_empty() || state.spend(tenant, scope, charges).await? {
        return Ok(true);
    }
    for tally in tallies {
        state.give_back(tenant, scope, tally.key, tally.window.slot, tally.cost);
        tally.balance.available += tally.cost;
        tally.balance.wait = Duration::ZERO;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Budget, ManualClock, MemoryState, Window};

    /// A store that is away.
    struct Gone(OnFailure);

    #[async_trait]
    impl Store for Gone {
        async fn decide(
            &self,
            _: TenantId,
            _: &str,
            _: &mut [Charge<'_>],
            _: &mut [Tally<'_>],
        ) -> Result<bool, Away> {
            Err(Away)
        }

        fn give_back(&self, _: TenantId, _: &str, _: &[u8], _: u64, _: u64) {
            panic!("nothing was counted");
        }

        fn on_failure(&self) -> OnFailure {
            self.0
        }
    }

    fn state() -> Arc<dyn State> {
        Arc::new(MemoryState::new(Arc::new(ManualClock::new()), 100))
    }

    fn ledger(store: Option<Arc<dyn Store>>) -> Ledger {
        Ledger::new(ScopedState::new(state(), "limit".into()), store)
    }

    /// Spends one of a budget of two.
    async fn spend(ledger: &Ledger) -> Result<Spent, StateError> {
        let budget = Budget::new(Duration::from_secs(1), 2).expect("a budget");
        ledger.spend(TenantId(0), &mut [Charge::new(b"key", budget, 1)]).await
    }

    #[tokio::test]
    async fn who_shares_a_store_shares_its_budgets() {
        let shared = state();
        let store: Arc<dyn Store> = Arc::new(OwnStore(shared));
        let (one, two) = (ledger(Some(store.clone())), ledger(Some(store)));
        assert_eq!(spend(&one).await, Ok(Spent::Yes));
        assert_eq!(spend(&two).await, Ok(Spent::Yes));
        assert_eq!(spend(&one).await, Ok(Spent::No));
        assert_eq!(spend(&ledger(None)).await, Ok(Spent::Yes), "and with nobody else");
    }

    #[tokio::test]
    async fn quotas_and_budgets_are_taken_together_or_not_at_all() {
        let ledger = ledger(Some(Arc::new(OwnStore(state()))));
        let window = Window {
            now: Duration::from_secs(1),
            slot: 0,
            slots: 1,
            ends: Duration::from_secs(10),
            length: Duration::from_secs(10),
        };
        let budget = Budget::new(Duration::from_secs(1), 2).expect("a budget");
        let take = async |limit: u64| {
            let mut tallies = [Tally::new(b"quota", limit, 1, window)];
            let mut charges = [Charge::new(b"rate", budget, 1)];
            let decided = ledger.decide(TenantId(0), &mut charges, &mut tallies).await.expect("decided");
            (decided.spent, tallies[0].balance.available)
        };
        assert_eq!(take(5).await, (Spent::Yes, 4));
        assert_eq!(take(1).await, (Spent::No, 0), "the quota is used up");
        assert_eq!(take(5).await, (Spent::Yes, 3), "and took nothing of the budget");
        assert_eq!(take(5).await.0, Spent::No, "the budget is used up");
        ledger.give_back(TenantId(0), b"quota", 0, 2, true);
        let mut tallies = [Tally::new(b"quota", 5, 1, window)];
        assert_eq!(ledger.decide(TenantId(0), &mut [], &mut tallies).await.map(|d| d.spent), Ok(Spent::Yes));
        assert_eq!(tallies[0].balance.available, 4, "and took nothing of the quota");
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_made_up_for_as_it_says() {
        let gone = |on_failure| ledger(Some(Arc::new(Gone(on_failure))));
        let local = gone(OnFailure::Local);
        assert_eq!(spend(&local).await, Ok(Spent::Yes));
        assert_eq!(spend(&local).await, Ok(Spent::Yes));
        assert_eq!(spend(&local).await, Ok(Spent::No));
        let open = gone(OnFailure::Open);
        for _ in 0..5 {
            assert_eq!(spend(&open).await, Ok(Spent::Uncounted));
        }
        assert!(matches!(spend(&gone(OnFailure::Closed)).await, Err(StateError::Unavailable(_))));
    }
}
