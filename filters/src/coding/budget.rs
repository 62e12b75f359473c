//! How much memory encoders may hold, all together, and decoders.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// What all encoders of the process may hold, and all decoders.
const LIMIT: u64 = 128 << 20;

/// Who holds no more than this part of a budget holds little.
const LITTLE: u64 = 256;

static ENCODERS: LazyLock<Arc<Budget>> = LazyLock::new(|| Arc::new(Budget::new(LIMIT)));
static DECODERS: LazyLock<Arc<Budget>> = LazyLock::new(|| Arc::new(Budget::new(LIMIT)));

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

    /// That of the process for encoders, 128 MiB.
    #[must_use]
    pub fn of_encoders() -> Arc<Self> {
        ENCODERS.clone()
    }

    /// That of the process for decoders, 128 MiB: who sends bodies takes nothing from who is answered.
    #[must_use]
    pub fn of_decoders() -> Arc<Self> {
        DECODERS.clone()
    }

    /// A share of nothing yet, which can grow.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: self.clone(), bytes: 0 }
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
        self.add_below(limit, bytes).then(|| Share { budget: self.clone(), bytes })
    }

    fn add_below(&self, limit: u64, bytes: u64) -> bool {
        let more = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

impl Share {
    /// Makes it at least so large; false where not so much is left. The second half is kept for who holds little.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let limit =
            if bytes <= self.budget.limit / LITTLE { self.budget.limit } else { self.budget.limit / 2 };
        let grown = more == 0 || self.budget.add_below(limit, more);
        if grown {
            self.bytes += more;
        }
        grown
    }

    /// Whether it could be so large if there were no others.
    #[must_use]
    pub fn could_be(&self, bytes: u64) -> bool {
        bytes <= self.budget.limit / 2
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

    #[test]
    fn a_share_grows_until_the_budget_ends_and_comes_back_whole() {
        let budget = Arc::new(Budget::new(2560));
        let (mut first, mut second, mut little) = (budget.share(), budget.share(), budget.share());
        assert!(first.grow(1000) && first.grow(900), "it is no smaller than it was");
        assert!(second.grow(280) && !second.grow(281), "that is half of it");
        assert!(little.grow(10) && !little.grow(11), "the other half is for who holds little");
        assert!(little.could_be(1280) && !little.could_be(1281));
        drop(first);
        assert!(second.grow(1270) && !second.grow(1271));
        drop((second, little));
        assert!(budget.take_last(2560).is_some());
    }
}
