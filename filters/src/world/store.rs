//! Stores of the document: budgets that several gateways share, and what happens while those are away.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Charge, ScopedState, State, StateError, TenantId};

/// The stores of a document, by name.
pub type Stores = BTreeMap<Arc<str>, Arc<dyn Store>>;

/// A place that several gateways share.
#[async_trait]
pub trait Store: Send + Sync {
    /// As [`State::spend`], for all gateways with this tenant and scope together, within a deadline of the
    /// store's own.
    async fn spend(&self, tenant: TenantId, scope: &str, charges: &mut [Charge<'_>]) -> Result<bool, Away>;

    /// What is done about a decision that it cannot make.
    fn on_failure(&self) -> OnFailure;
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
    async fn spend(&self, tenant: TenantId, scope: &str, charges: &mut [Charge<'_>]) -> Result<bool, Away> {
        self.0.spend(tenant, scope, charges).await.map_err(|_| Away)
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

impl Ledger {
    /// Budgets in this part of the process's state or, if there is one, in the store.
    #[must_use]
    pub fn new(own: ScopedState, store: Option<Arc<dyn Store>>) -> Self {
        Self { own, store }
    }

    /// As [`State::spend`]; while its store is away, as that one's [`OnFailure`] says.
    pub async fn spend(&self, tenant: TenantId, charges: &mut [Charge<'_>]) -> Result<Spent, StateError> {
        let passes = match &self.store {
            None => self.own.spend(tenant, charges).await?,
            Some(store) => match (store.spend(tenant, self.own.scope(), charges).await, store.on_failure()) {
                (Ok(passes), _) => passes,
                (Err(Away), OnFailure::Local) => self.own.spend(tenant, charges).await?,
                (Err(Away), OnFailure::Open) => return Ok(Spent::Uncounted),
                (Err(Away), OnFailure::Closed) => {
                    return Err(StateError::Unavailable("its store is away".to_owned()));
                }
            },
        };
        Ok(if passes { Spent::Yes } else { Spent::No })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{Budget, ManualClock, MemoryState};

    /// A store that is away.
    struct Gone(OnFailure);

    #[async_trait]
    impl Store for Gone {
        async fn spend(&self, _: TenantId, _: &str, _: &mut [Charge<'_>]) -> Result<bool, Away> {
            Err(Away)
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
