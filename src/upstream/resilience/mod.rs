//! What an upstream does when backends fail: policy and state, without sockets.
//!
//! Both ways to forward a request, and calls of filters, ask here what becomes of a failed attempt. Times are passed
//! in. State belongs to the upstream's name and outlives snapshots.

mod budget;
mod retry;

use std::sync::Arc;
use std::time::Instant;

use self::budget::Budget;

pub use self::retry::{Asked, Fault, Keep, Progress, Rules};

/// What an upstream remembers of how it went.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) budget: Budget,
}

impl Memory {
    /// Nothing happened yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { budget: Budget::new(Instant::now()) })
    }
}
