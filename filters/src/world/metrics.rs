//! Counters and gauges that filters make once and then change with one atomic operation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Where filters make their metrics.
///
/// Make a handle while a filter is built and keep it: the same name and labels give the same number, and a registry
/// may drop a number that nobody holds any more. Label values must come from the configuration, never from a request.
pub trait Metrics: Send + Sync {
    /// A number that only rises. Names follow Prometheus: `tollhouse_<what>_total`.
    fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter;
    /// A number that rises and falls.
    fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge;
}

/// A handle on a number that only rises; clones share the number.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds this much; wraps beyond `u64::MAX`.
    pub fn add(&self, by: u64) {
        // Most requests have no content: other threads' caches need not know of that.
        if by > 0 {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// The number so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<Arc<AtomicU64>> for Counter {
    fn from(number: Arc<AtomicU64>) -> Self {
        Self(number)
    }
}

/// A handle on a number that rises and falls; clones share the number.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds this much, which may be negative.
    pub fn add(&self, by: i64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// Replaces the number.
    pub fn set(&self, to: i64) {
        self.0.store(to, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<Arc<AtomicI64>> for Gauge {
    fn from(number: Arc<AtomicI64>) -> Self {
        Self(number)
    }
}

/// Counts into numbers that nobody reads, for dry runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMetrics;

impl Metrics for NoMetrics {
    fn counter(&self, _name: &str, _help: &str, _labels: &[(&str, &str)]) -> Counter {
        Counter::default()
    }

    fn gauge(&self, _name: &str, _help: &str, _labels: &[(&str, &str)]) -> Gauge {
        Gauge::default()
    }
}

/// Keeps every number readable, for tests.
#[derive(Debug, Default)]
pub struct MemoryMetrics {
    counters: Mutex<BTreeMap<String, Counter>>,
    gauges: Mutex<BTreeMap<String, Gauge>>,
}

impl MemoryMetrics {
    /// No metrics yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter or gauge of this name and these labels, in any order; `None` when it was never made.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<i64> {
        let key = series_key(name, labels);
        let counter = self.counters.lock().get(&key).map(|counter| counter.get().cast_signed());
        counter.or_else(|| self.gauges.lock().get(&key).map(Gauge::get))
    }
}

impl Metrics for MemoryMetrics {
    fn counter(&self, name: &str, _help: &str, labels: &[(&str, &str)]) -> Counter {
        self.counters.lock().entry(series_key(name, labels)).or_default().clone()
    }

    fn gauge(&self, name: &str, _help: &str, labels: &[(&str, &str)]) -> Gauge {
        self.gauges.lock().entry(series_key(name, labels)).or_default().clone()
    }
}

fn series_key(name: &str, labels: &[(&str, &str)]) -> String {
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    format!("{name}{labels:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_and_labels_share_one_number() {
        let metrics = MemoryMetrics::new();
        metrics.counter("hits", "", &[("a", "1"), ("b", "2")]).inc();
        metrics.counter("hits", "", &[("b", "2"), ("a", "1")]).add(2);
        metrics.counter("hits", "", &[("a", "other")]).inc();
        assert_eq!(metrics.value("hits", &[("a", "1"), ("b", "2")]), Some(3));
        assert_eq!(metrics.value("hits", &[]), None);
    }

    #[test]
    fn a_gauge_rises_and_falls() {
        let metrics = MemoryMetrics::new();
        let gauge = metrics.gauge("open", "", &[]);
        gauge.add(5);
        gauge.dec();
        gauge.clone().inc();
        assert_eq!(metrics.value("open", &[]), Some(5));
        gauge.set(-1);
        assert_eq!(gauge.get(), -1);
    }

    #[test]
    fn without_metrics_handles_still_count_for_themselves() {
        let counter = NoMetrics.counter("hits", "", &[]);
        counter.inc();
        assert_eq!(counter.get(), 1);
        assert_eq!(NoMetrics.counter("hits", "", &[]).get(), 0);
    }
}
