//! What an upstream does when backends fail: policy and state, without sockets.
//!
//! Both ways to forward a request, and calls of filters, ask here what becomes of a failed attempt. Times are passed
//! in. State belongs to the upstream's name or the backend's address, and outlives snapshots.

mod admission;
mod breaker;
mod budget;
mod bulkhead;
mod gradient;
mod latencies;
mod outlier;
mod retry;
mod standing;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use self::breaker::Breaker;
use self::budget::Budget;
use self::latencies::Latencies;
use crate::config::upstream as written;

pub(super) use self::breaker::State;
pub(super) use self::outlier::{Outcome, Outliers};
pub(super) use self::standing::{Standing, Turn};

pub use self::admission::{Admission, Refusal};
pub use self::breaker::Verdict;
pub use self::bulkhead::Bulkhead;
pub use self::retry::{Asked, Fault, Keep, Progress, Rules};

/// What an upstream remembers of how it went.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) budget: Arc<Budget>,
    pub(super) latencies: Arc<Latencies>,
    pub(super) breaker: Option<Arc<Breaker>>,
    pub(super) bulkhead: Option<Arc<Bulkhead>>,
    /// Requests that were refused for want of a place of their own routes.
    pub(super) route_busy: Arc<AtomicU64>,
}

impl Memory {
    /// Goes on where an upstream of this name was, as far as the settings are the same.
    pub(super) fn build(written: &written::Upstream, name: &Arc<str>, before: Option<&Self>) -> Self {
        let now = Instant::now();
        let breaker = |rules: &crate::config::circuit_breaker::CircuitBreaker| {
            let same =
                before.and_then(|before| before.breaker.as_ref()).filter(|same| same.written == *rules);
            same.map_or_else(|| Breaker::new(rules.clone(), Arc::clone(name), now), Arc::clone)
        };
        let bulkhead = |rules: &crate::config::concurrency::Concurrency| {
            Bulkhead::retained(rules, before.and_then(|before| before.bulkhead.as_ref()))
        };
        Self {
            latencies: before.map(|before| Arc::clone(&before.latencies)).unwrap_or_default(),
            budget: before.map_or_else(|| Arc::new(Budget::new(now)), |before| Arc::clone(&before.budget)),
            breaker: written.circuit_breaker.as_ref().map(breaker),
            bulkhead: written.concurrency.as_ref().map(bulkhead),
            route_busy: before.map(|before| Arc::clone(&before.route_busy)).unwrap_or_default(),
        }
    }
}
