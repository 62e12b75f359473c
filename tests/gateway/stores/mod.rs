//! Stores: what gateways share over a real Redis, and what happens while that is away.

mod decisions;
mod failures;
mod gateways;
mod quotas;
mod reloads;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tollhouse::store::{Keeper, RedisStore};
use tollhouse_filters::world::{Away, Budget, Charge, MemoryMetrics, Store, TenantId};

use crate::harness::{Redis, until};

/// A store as a document describes it, kept connected.
struct Kept {
    store: Arc<RedisStore>,
    metrics: MemoryMetrics,
    _keeper: Keeper,
}

/// Answers may take long on a busy machine; no test is about that.
const PATIENT: &str = "1s";

fn kept(redis: &Redis, more: Value) -> Kept {
    let mut options = json!({"type": "redis", "url": redis.url(), "timeout": PATIENT});
    for (key, value) in more.as_object().expect("a map") {
        options[key] = value.clone();
    }
    kept_as(options)
}

fn kept_as(options: Value) -> Kept {
    let options = serde_json::from_value(options).expect("a store");
    let metrics = MemoryMetrics::new();
    let store = RedisStore::new("main".into(), &options, Some("/".as_ref()), &metrics);
    let store = Arc::new(store.expect("it can be built"));
    let keeper = Keeper::default();
    keeper.keep(std::slice::from_ref(&store)).expect("a thread");
    Kept { store, metrics, _keeper: keeper }
}

impl Kept {
    /// Spends one of a budget of this size that comes back in an hour for each.
    async fn spend(&self, key: &str, burst: u32) -> Result<bool, Away> {
        let budget = Budget::new(Duration::from_secs(3600), burst).expect("a budget");
        self.store.decide(TenantId(0), "test", &mut [Charge::new(key.as_bytes(), budget, 1)], &mut []).await
    }

    /// Waits until it is away for this reason.
    async fn away(&self, reason: &str) {
        until(reason, || self.store.view().reason.filter(|found| found.contains(reason))).await;
        assert_eq!(self.metrics.value("tollhouse_store_up", &[("store", "main")]), Some(0));
    }

    /// Waits until it decides.
    async fn back(&self) {
        until("the store", || self.store.view().up.then_some(())).await;
        assert_eq!(self.store.view().reason, None);
    }

    fn decisions(&self, outcome: &str) -> i64 {
        let labels = [("store", "main"), ("outcome", outcome)];
        self.metrics.value("tollhouse_store_decisions_total", &labels).expect("a number")
    }
}
