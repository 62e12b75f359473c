//! How many retries there may be: a share of the requests of the last seconds, so that an outage does not multiply
//! the load on what is left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tollhouse_filters::values::Percent;

/// Seconds that are looked back.
const WINDOW: u64 = 10;
/// Retries in a window whatever the share, for upstreams with few requests.
const LEAST: u64 = 10;
/// A power of two above the window, so that no slot is used for two seconds of one window.
const SLOTS: usize = 16;
/// Bits of a slot that count; the rest is the second they were counted in.
const COUNT_BITS: u32 = 32;

/// Requests and retries of the last seconds.
#[derive(Debug)]
pub(in crate::upstream) struct Budget {
    born: Instant,
    /// Requests begun, by second: written by each request.
    requests: [AtomicU64; SLOTS],
    /// Retries, by second: written by retries only.
    retries: Mutex<[u64; SLOTS]>,
}

impl Budget {
    /// Nothing was asked for yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { born: now, requests: Default::default(), retries: Mutex::default() }
    }

    /// Counts a request, its first attempt.
    pub(in crate::upstream) fn deposit(&self, now: Instant) {
        let second = self.second(now);
        let slot = &self.requests[at(second)];
        if slot.load(Ordering::Relaxed) >> COUNT_BITS == second {
            slot.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let anew = |old: u64| match old >> COUNT_BITS {
            // Somebody else was first; a thread that is seconds late is not counted.
            known if known >= second => (known == second).then_some(old + 1),
            _ => Some(second << COUNT_BITS | 1),
        };
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, anew);
    }

    /// Takes one retry out, if the share allows for it.
    pub(super) fn withdraw(&self, now: Instant, share: Percent) -> bool {
        let second = self.second(now);
        let requests: u64 =
            self.requests.iter().map(|slot| count(slot.load(Ordering::Relaxed), second)).sum();
        let mut retries = self.retries.lock();
        let made: u64 = retries.iter().map(|slot| count(*slot, second)).sum();
        let allowed = requests * u64::from(share.hundredths()) / 10_000 + LEAST;
        if made >= allowed {
            return false;
        }
        let slot = &mut retries[at(second)];
        *slot = if *slot >> COUNT_BITS == second { *slot + 1 } else { second << COUNT_BITS | 1 };
        true
    }

    /// From 1, so that an empty slot is of no second.
    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_secs() + WINDOW
    }
}

fn at(second: u64) -> usize {
    usize::try_from(second % SLOTS as u64).unwrap_or_default()
}

/// What a slot counted, if that was in the window that ends with this second.
fn count(slot: u64, second: u64) -> u64 {
    let (counted_in, count) = (slot >> COUNT_BITS, slot & u64::from(u32::MAX));
    if counted_in + WINDOW > second && counted_in <= second { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SHARE: Percent = Percent::from_whole(20);

    #[test]
    fn an_outage_of_all_backends_gets_a_fifth_and_ten_retries() {
        let now = Instant::now();
        let budget = Budget::new(now);
        let retried = (0..1000).filter(|_| {
            budget.deposit(now);
            budget.withdraw(now, SHARE)
        });
        assert_eq!(retried.count(), 210);
    }

    #[test]
    fn few_requests_have_ten_retries_in_ten_seconds() {
        let born = Instant::now();
        let budget = Budget::new(born);
        let retries = |second| {
            let now = born + Duration::from_secs(second);
            (0..100).filter(|_| budget.withdraw(now, SHARE)).count()
        };
        assert_eq!([0, 5, 9, 10, 19, 20].map(retries), [10, 0, 0, 10, 0, 10]);
    }

    #[test]
    fn what_was_asked_for_before_pays_for_a_burst_of_failures() {
        let born = Instant::now();
        let budget = Budget::new(born);
        (0..500).for_each(|_| budget.deposit(born));
        let later = born + Duration::from_millis(9900);
        assert_eq!((0..500).filter(|_| budget.withdraw(later, SHARE)).count(), 110);
    }

    #[test]
    fn threads_at_once_lose_no_request() {
        let now = Instant::now();
        let budget = Budget::new(now);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2500).for_each(|_| budget.deposit(now)));
            }
        });
        assert_eq!((0..9999).filter(|_| budget.withdraw(now, SHARE)).count(), 2010);
    }

    proptest! {
        /// Beside a model that remembers the second of each request and each retry.
        #[test]
        fn it_is_as_the_list_of_all_that_happened_says(
            steps in prop::collection::vec((0u64..2500, 0usize..40, 0usize..20), 1..60),
            percent in 0u8..=100,
        ) {
            let born = Instant::now();
            let budget = Budget::new(born);
            let share = Percent::from_whole(percent);
            let (mut elapsed, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (millis, asked, failed) in steps {
                elapsed += millis;
                let (now, second) = (born + Duration::from_millis(elapsed), elapsed / 1000);
                for _ in 0..asked {
                    budget.deposit(now);
                    requests.push(second);
                }
                let recent = |list: &Vec<u64>| list.iter().filter(|then| **then + 10 > second).count();
                for _ in 0..failed {
                    let allowed = recent(&requests) * usize::from(percent) / 100 + 10;
                    let expected = recent(&retries) < allowed;
                    prop_assert_eq!(budget.withdraw(now, share), expected);
                    if expected {
                        retries.push(second);
                    }
                }
            }
        }
    }
}
