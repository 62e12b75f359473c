//! How many bytes of bodies the process holds, and the most it may hold.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number of bytes shared by all bodies held in memory; clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Counts>);

struct Counts {
    limit: AtomicU64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Counts { limit: AtomicU64::new(limit), used: AtomicU64::new(0) }))
    }

    /// Changes the limit; what is held stays held, also when it is more than the new limit.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }

    /// Bytes that may be held.
    pub fn limit(&self) -> u64 {
        self.0.limit.load(Relaxed)
    }

    /// Takes `bytes` of the budget until the reservation is dropped; `None` if so many are not free.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let mut reservation = self.reserve_nothing();
        if reservation.grow(bytes) { Some(reservation) } else { None }
    }

    /// A reservation to let grow.
    pub fn reserve_nothing(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {} bytes)", self.used(), self.limit())
    }
}

/// Bytes taken from a [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Reservation {
    /// Takes more; whether so many were free. If not, nothing changes.
    #[must_use]
    pub fn grow(&mut self, bytes: u64) -> bool {
        let limit = self.budget.limit();
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        if bytes > 0 && self.budget.0.used.fetch_update(Relaxed, Relaxed, more).is_err() {
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_free_again() {
        let budget = Budget::new(10);
        let mut held = budget.try_reserve(6).unwrap();
        assert!(budget.try_reserve(5).is_none());
        assert!(!held.grow(5) && held.grow(4));
        assert_eq!((budget.used(), held.bytes()), (10, 10));
        drop(held);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn absurd_sizes_are_refused_and_nothing_costs_nothing() {
        let budget = Budget::new(u64::MAX - 1);
        let held = budget.try_reserve(2).unwrap();
        assert!(budget.try_reserve(u64::MAX).is_none());
        assert_eq!(budget.used(), 2);
        budget.set_limit(0);
        assert!(budget.try_reserve(0).is_some(), "an empty body needs no budget");
        drop(held);
        assert_eq!(budget.used(), 0);
    }
}
