//! How much memory encoders may hold, all together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// What all encoders of the process may hold.
const LIMIT: u64 = 128 << 20;

static PROCESS: LazyLock<Arc<Budget>> = LazyLock::new(|| Arc::new(Budget::new(LIMIT)));

/// Bytes of which shares are taken, and given back when they are dropped.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    taken: AtomicU64,
}

/// A part of a [`Budget`].
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, taken: AtomicU64::new(0) }
    }

    /// That of the process, 128 MiB.
    #[must_use]
    pub fn of_process() -> Arc<Self> {
        PROCESS.clone()
    }

    /// A share of the first half: the other one is kept for who is content with little.
    #[must_use]
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        self.take_below(self.limit / 2, bytes)
    }

    /// A share of what is left.
    #[must_use]
    pub fn take_last(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        self.take_below(self.limit, bytes)
    }

    fn take_below(self: &Arc<Self>, limit: u64, bytes: u64) -> Option<Share> {
        let more = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Share { budget: self.clone(), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_end_with_the_budget_and_come_back() {
        let budget = Arc::new(Budget::new(100));
        let first = budget.take(50).expect("the first half");
        assert!(budget.take(1).is_none());
        let second = budget.take_last(50).expect("the second half");
        assert!(budget.take_last(1).is_none());
        drop(first);
        assert!(budget.take(1).is_none(), "half of it is still taken");
        drop(second);
        assert!(budget.take(50).is_some());
    }
}
