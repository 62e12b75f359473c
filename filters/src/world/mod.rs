//! The world a filter may reach: clock, state, client, metrics, randomness, and work beside requests.
//!
//! A filter holds these traits and nothing else, so the same filter runs live, in a dry run and in a test.

mod cached;
mod client;
mod clock;
mod metrics;
mod records;
mod retained;
mod revocations;
mod rng;
mod state;
mod store;
mod tasks;

use std::sync::Arc;

pub use cached::{Cached, NothingCached, Purged};
pub use client::{
    Aside, BufferedBody, Client, ClientBody, ClientError, ClientReply, FilePart, NoClient, Origin,
    ScriptedClient, SentRequest, Told, UpstreamId,
};
pub use clock::{Clock, ManualClock, SystemClock};
pub use metrics::{Counter, Gauge, MemoryMetrics, Metrics, NoMetrics};
pub use records::Records;
pub use retained::Retained;
pub use revocations::{Full, Matched, Revocation, Revocations, Revoked};
pub use rng::{Rng, SeededRng, SystemRng};
pub use state::{
    Balance, Budget, Change, Charge, MemoryState, ScopedState, State, StateEntry, StateError, StateKey,
    StateValue, Tally, TallyRow, TenantId, Window,
};
pub use store::{Away, Decided, Ledger, OnFailure, OwnStore, Spent, Store, Stores};
pub(crate) use tasks::GoingOn;
pub use tasks::{NoTasks, Tasks};

/// Entries the default memory state holds at most.
pub const DEFAULT_STATE_ENTRIES: usize = 1_000_000;

/// Everything a filter reaches beyond the message, as traits.
#[derive(Clone)]
pub struct World {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What filters remember between requests.
    pub state: Arc<dyn State>,
    /// Side calls to upstreams.
    pub client: Arc<dyn Client>,
    /// Counters and gauges.
    pub metrics: Arc<dyn Metrics>,
    /// Randomness, not for secrets.
    pub rng: Arc<dyn Rng>,
    /// Work beside requests.
    pub tasks: Arc<dyn Tasks>,
    /// What outlives a reload.
    pub retained: Arc<Retained>,
    /// Tokens that no longer hold.
    pub revocations: Arc<Revocations>,
    /// Answers that are stored.
    pub cached: Arc<dyn Cached>,
}

impl World {
    /// The machine's clock and randomness, memory state, and the given network and metrics.
    #[must_use]
    pub fn live(client: Arc<dyn Client>, metrics: Arc<dyn Metrics>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let state = Arc::new(MemoryState::new(clock.clone(), DEFAULT_STATE_ENTRIES));
        let revocations = Arc::new(Revocations::new(clock.clone()));
        let (rng, tasks, retained) = (Arc::new(SystemRng), Arc::new(NoTasks), Arc::default());
        let cached = Arc::new(NothingCached);
        Self { clock, state, client, metrics, rng, tasks, retained, revocations, cached }
    }

    /// Runs its tasks there.
    #[must_use]
    pub fn with_tasks(self, tasks: Arc<dyn Tasks>) -> Self {
        Self { tasks, ..self }
    }

    /// Purges answers there.
    #[must_use]
    pub fn with_cached(self, cached: Arc<dyn Cached>) -> Self {
        Self { cached, ..self }
    }

    /// A world without effects: a clock that moves only with those that sleep, fresh state, no network, the same randomness each time.
    #[must_use]
    pub fn dry() -> Self {
        Self::dry_at(Arc::new(ManualClock::new().skipping()))
    }

    /// A dry world whose clock the caller moves.
    #[must_use]
    pub fn dry_at(clock: Arc<ManualClock>) -> Self {
        Self {
            state: Arc::new(MemoryState::new(clock.clone(), DEFAULT_STATE_ENTRIES)),
            revocations: Arc::new(Revocations::new(clock.clone())),
            clock,
            client: Arc::new(NoClient),
            metrics: Arc::new(NoMetrics),
            rng: Arc::new(SeededRng::new(0)),
            tasks: Arc::new(NoTasks),
            retained: Arc::default(),
            cached: Arc::new(NothingCached),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_dry_world_repeats_itself() {
        let (one, two) = (World::dry(), World::dry());
        assert_eq!(one.rng.u64(), two.rng.u64());
        assert_eq!(one.clock.wall(), two.clock.wall());
        let key = StateKey::new(TenantId(0), "limit", b"a");
        assert_eq!(one.state.add(&key, 1, Duration::from_secs(1)).await, Ok(1));
        assert_eq!(two.state.add(&key, 1, Duration::from_secs(1)).await, Ok(1), "worlds share no state");
    }

    #[tokio::test]
    async fn state_of_a_dry_world_expires_by_its_own_clock() {
        let clock = Arc::new(ManualClock::new());
        let world = World::dry_at(clock.clone());
        let key = StateKey::new(TenantId(0), "limit", b"a");
        world.state.add(&key, 1, Duration::from_secs(1)).await.unwrap();
        clock.advance(Duration::from_secs(1));
        assert_eq!(world.state.get(&key).await, Ok(None));
    }

    #[tokio::test]
    async fn a_live_world_keeps_the_given_client_and_metrics() {
        let metrics = Arc::new(MemoryMetrics::new());
        let world = World::live(Arc::new(NoClient), metrics.clone());
        world.metrics.counter("calls", "Calls.", &[]).inc();
        assert_eq!(metrics.value("calls", &[]), Some(1));
    }
}
