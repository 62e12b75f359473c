//! What is counted of a store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tollhouse_filters::world::{Counter, Gauge, Metrics, OnFailure};

/// How much the past counts in the moving average: as 15 to 1.
const WEIGHT: u64 = 16;

pub(super) struct Numbers {
    /// 1 while it decides.
    pub(super) up: Gauge,
    /// Decisions that it made.
    pub(super) shared: Counter,
    /// Decisions that it did not make.
    pub(super) missed: Counter,
    micros: Counter,
    /// Moving average of what a decision takes, in nanoseconds; 0 before the first.
    latency: AtomicU64,
}

impl Numbers {
    pub(super) fn new(store: &str, on_failure: OnFailure, metrics: &dyn Metrics) -> Self {
        let decisions = |outcome| {
            let help = "Decisions for a store: made by it (shared), or as its on_failure says.";
            metrics.counter(
                "tollhouse_store_decisions_total",
                help,
                &[("store", store), ("outcome", outcome)],
            )
        };
        let help = "Time that a store's decisions took.";
        let micros =
            metrics.counter("tollhouse_store_decision_microseconds_total", help, &[("store", store)]);
        Self {
            up: metrics.gauge("tollhouse_store_up", "1 while a store decides.", &[("store", store)]),
            shared: decisions("shared"),
            missed: decisions(on_failure.name()),
            micros,
            latency: AtomicU64::new(0),
        }
    }

    /// Counts a decision of the store.
    pub(super) fn decided(&self, took: Duration) {
        self.shared.inc();
        self.micros.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.latency.load(Relaxed);
        // Two at a time may lose one of them: it is an average.
        let after = if before == 0 { took } else { before - before / WEIGHT + took / WEIGHT };
        self.latency.store(after, Relaxed);
    }

    /// What a decision takes; none before the first.
    pub(super) fn latency(&self) -> Option<Duration> {
        Some(self.latency.load(Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }
}
