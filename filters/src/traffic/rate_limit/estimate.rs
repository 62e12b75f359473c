//! Counts that are estimates: the same memory however many keys there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use pingora_limits::estimator::Estimator;

use crate::world::{Balance, Charge, Clock, TenantId};

/// Rows of the sketch: a count that is off is off in all of them, which is as likely as e^-4.
const HASHES: usize = 4;
/// Counters in a row: a count is off by at most e/8192 of all that was counted.
const SLOTS: usize = 8192;

/// How often keys came in this period and the one before it.
pub(super) struct Estimate {
    clock: Arc<dyn Clock>,
    started: Instant,
    period: Duration,
    sketches: RwLock<Sketches>,
}

struct Sketches {
    /// The number of this period.
    number: u128,
    now: Estimator,
    before: Estimator,
}

impl Estimate {
    pub(super) fn new(period: Duration, clock: Arc<dyn Clock>) -> Self {
        let sketch = || Estimator::new(HASHES, SLOTS);
        let sketches = Sketches { number: 0, now: sketch(), before: sketch() };
        Self { started: clock.now(), clock, period, sketches: RwLock::new(sketches) }
    }

    /// Counts a charge; how many units with its key came, with these.
    fn add(&self, tenant: TenantId, charge: &Charge<'_>) -> Count {
        let (number, into) = self.turn();
        let cost = isize::try_from(charge.cost).unwrap_or(isize::MAX);
        let sketches = self.sketches.read();
        let key = (tenant, charge.key);
        sketches.now.incr(key, cost);
        // Looked at only now: of two that count row by row at the same time, each may be the first in another row.
        let now = sketches.now.get(key);
        // Another thread may have begun the next period.
        let before = if sketches.number > number { 0 } else { sketches.before.get(key) };
        Count { now: units(now), before: units(before), into }
    }

    fn take_back(&self, tenant: TenantId, charge: &Charge<'_>) {
        let cost = isize::try_from(charge.cost).unwrap_or(isize::MAX);
        self.sketches.read().now.decr((tenant, charge.key), cost);
    }

    /// The number of this period, which it begins if need be, and how much of it is over.
    fn turn(&self) -> (u128, Duration) {
        let elapsed = self.clock.now().saturating_duration_since(self.started).as_nanos();
        let period = self.period.as_nanos();
        let number = elapsed / period;
        if self.sketches.read().number < number {
            let mut sketches = self.sketches.write();
            let passed = number.saturating_sub(sketches.number);
            if passed > 0 {
                let Sketches { number: current, now, before } = &mut *sketches;
                *current = number;
                std::mem::swap(now, before);
                now.reset();
                if passed > 1 {
                    before.reset();
                }
            }
        }
        (number, Duration::from_nanos(u64::try_from(elapsed % period).unwrap_or(u64::MAX)))
    }
}

/// How many units with one key came.
struct Count {
    /// In this period.
    now: u64,
    /// In the one before it.
    before: u64,
    /// How much of this period is over.
    into: Duration,
}

impl Count {
    /// How many count: those of the period before by the share of it that is less than a period ago.
    fn recent(&self, period: Duration) -> u64 {
        self.now + share(self.before, period.saturating_sub(self.into), period)
    }

    /// How long until no more than `most` count, if none come meanwhile.
    fn until(&self, most: u64, period: Duration) -> Duration {
        let left = period.saturating_sub(self.into);
        match most.checked_sub(self.now) {
            Some(room) => left.saturating_sub(part(room, self.before, period)),
            // Then those of this period are those of the one before.
            None => left + period.saturating_sub(part(most, self.now, period)),
        }
    }

    /// What is left for who is charged so.
    fn balance(&self, charge: &Charge<'_>, period: Duration) -> Balance {
        let (limit, cost) = (u64::from(charge.budget.burst()), u64::from(charge.cost));
        let used = self.recent(period);
        let available = limit.saturating_sub(used);
        let until_left = |units: u64| self.until(limit.saturating_sub(units), period);
        Balance {
            available,
            more_in: if used == 0 { Duration::ZERO } else { until_left(available + 1) },
            wait: if cost <= available { Duration::ZERO } else { until_left(cost) },
        }
    }
}

fn units(count: isize) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// The share of what came in a period that came in the last part of it, rounded up.
fn share(count: u64, part: Duration, period: Duration) -> u64 {
    let share = (u128::from(count) * part.as_nanos()).div_ceil(period.as_nanos());
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// How long the last part of a period may be for at most `most` of a count to be its share.
fn part(most: u64, count: u64, period: Duration) -> Duration {
    if count <= most {
        return period;
    }
    let nanos = u128::from(most) * period.as_nanos() / u128::from(count);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Counts all of these charges, or none of them if one is over its limit; whether it did.
pub(super) fn spend(estimates: &[Arc<Estimate>], tenant: TenantId, charges: &mut [Charge<'_>]) -> bool {
    let counts: Vec<Count> =
        estimates.iter().zip(&*charges).map(|(estimate, charge)| estimate.add(tenant, charge)).collect();
    let fits =
        estimates.iter().zip(&counts).zip(&*charges).all(|((estimate, count), charge)| {
            count.recent(estimate.period) <= u64::from(charge.budget.burst())
        });
    for ((estimate, charge), mut count) in estimates.iter().zip(&mut *charges).zip(counts) {
        if !fits {
            estimate.take_back(tenant, charge);
            count.now = count.now.saturating_sub(charge.cost.into());
        }
        charge.balance = count.balance(charge, estimate.period);
    }
    fits
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::testing::{Chain, chain, get};

    fn passing(chain: &Chain, requests: usize, key: &str) -> usize {
        let passes = |_: &usize| {
            let sent = chain.send(get("/").header("x", key)).now_or_never().expect("does not wait");
            sent.ctx.ended_by.is_none()
        };
        (0..requests).filter(passes).count()
    }

    #[test]
    fn a_key_passes_as_often_as_it_may_and_again_as_the_period_goes_by() {
        let chain = chain("- rate_limit: {per: header:x, limit: 100/s, strategy: estimate}");
        assert_eq!(passing(&chain, 300, "a"), 100);
        assert_eq!(passing(&chain, 300, "b"), 100);
        chain.clock.advance(Duration::from_millis(1250));
        // Three quarters of the last period are less than a period ago.
        assert_eq!(passing(&chain, 300, "a"), 25);
        chain.clock.advance(Duration::from_secs(3));
        assert_eq!(passing(&chain, 300, "a"), 100);
    }

    #[test]
    fn a_retry_after_that_is_kept_to_is_enough_and_no_longer_than_it_has_to_be() {
        for options in ["limit: 7/min", "limit: 100/h, cost: 30", "limit: 3/s", "limit: 2/min, cost: 2"] {
            let chain = chain(&format!("- rate_limit: {{per: header:x, {options}, strategy: estimate}}"));
            for pause in 0..100 {
                chain.clock.advance(Duration::from_millis(pause * 377 % 5000));
                passing(&chain, 10, "a");
                let sent = chain.send(get("/").header("x", "a")).now_or_never().expect("does not wait");
                let wait = sent.responds(429).field("retry-after").expect("Retry-After");
                let wait = Duration::from_secs(wait.parse().expect("whole seconds"));
                let last = Duration::from_secs(1);
                chain.clock.advance(wait - last);
                assert_eq!(passing(&chain, 1, "a"), 0, "{options}");
                chain.clock.advance(last);
                assert_eq!(passing(&chain, 1, "a"), 1, "{options}");
            }
        }
    }

    #[test]
    fn what_is_told_of_an_estimate_is_when_there_is_more() {
        let chain = chain("- rate_limit: {per: header:x, limit: 4/min, strategy: estimate}");
        assert_eq!(passing(&chain, 4, "a"), 4);
        let send = || chain.send(get("/").header("x", "a")).now_or_never().expect("does not wait");
        // All of them count until the minute is over, and a quarter of them for three quarters of the next one.
        send().responds(429).header("retry-after", "75").header("ratelimit", "\"4/min\";r=0;t=75");
        chain.clock.advance(Duration::from_secs(74));
        send().responds(429).header("retry-after", "1");
        chain.clock.advance(Duration::from_secs(1));
        send().continues();
    }

    #[test]
    fn no_key_is_counted_too_low_and_few_too_high_beyond_the_bound() {
        let estimate = Estimate::new(Duration::from_secs(60), Arc::new(crate::world::ManualClock::new()));
        let budget = crate::world::Budget::new(Duration::from_secs(1), 1000).expect("a budget");
        let keys: Vec<_> = (0..50_000_u32).map(u32::to_be_bytes).collect();
        for key in &keys {
            estimate.add(TenantId(0), &Charge::new(key, budget, 1));
        }
        let sketches = estimate.sketches.read();
        let counts = || keys.iter().map(|key| units(sketches.now.get((TenantId(0), &key[..]))));
        assert!(counts().all(|count| count >= 1));
        // e/8192 of 50,000 are 17.
        let off = counts().filter(|count| count - 1 > 17).count();
        assert!(off * 50 < keys.len(), "{off}");
    }

    #[test]
    fn what_is_refused_by_one_rule_is_not_counted_by_the_others() {
        let chain = chain(
            "- rate_limit: {strategy: estimate, rules: [{name: a, per: header:x, limit: 10/min}, \
             {name: b, per: ip, limit: 15/min}]}",
        );
        assert_eq!(passing(&chain, 100, "one"), 10);
        assert_eq!(passing(&chain, 100, "two"), 5);
    }

    #[test]
    fn eight_threads_pass_no_more_than_the_limit_in_a_period() {
        let chain = chain("- rate_limit: {per: header:x, limit: 500/s, strategy: estimate}");
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| passing(&chain, 300, "a"))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert!((450..=500).contains(&passed), "{passed}");
    }
}
