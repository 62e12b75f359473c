//! Budgets that come back steadily: the generic cell rate algorithm (GCRA, ITU-T I.371 annex A).
//!
//! All that is kept of a budget is when it will be whole again. What is spent puts that off, and may be
//! spent as long as it is not put off for longer than a whole budget takes to come back. So in any time
//! `t` at most `burst + t / interval` units are spent, wherever that time begins.

use std::time::Duration;

/// Longer than any budget takes to come back: sums of times stay far from overflowing.
const LONGEST: u64 = 366 * 24 * 3600 * 1_000_000_000;

/// How much a budget holds, and how fast it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Nanoseconds in which one unit comes back; at least 1.
    interval: u64,
    /// Units of a whole budget; at least 1.
    burst: u32,
}

impl Budget {
    /// A budget of `burst` units, one of which comes back in each `interval`; `None` if either is
    /// nothing, or a whole budget took more than a year.
    #[must_use]
    pub fn new(interval: Duration, burst: u32) -> Option<Self> {
        let interval = u64::try_from(interval.as_nanos()).ok()?;
        let whole = interval.checked_mul(burst.into())?;
        (1..=LONGEST).contains(&whole).then_some(Self { interval, burst })
    }

    /// Units of a whole budget.
    #[must_use]
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// The time in which one unit comes back.
    #[must_use]
    pub fn interval(self) -> Duration {
        Duration::from_nanos(self.interval)
    }

    /// Nanoseconds in which all of it comes back.
    #[must_use]
    pub fn whole(self) -> u64 {
        self.interval * u64::from(self.burst)
    }
}

/// What a request takes of one budget.
#[derive(Debug)]
pub struct Charge<'a> {
    /// Names the budget within its scope; any bytes, and as many as there are.
    pub key: &'a [u8],
    /// How much it holds, and how fast it comes back.
    pub budget: Budget,
    /// Units to spend.
    pub cost: u32,
    /// What is left, once the charge was settled.
    pub balance: Balance,
    /// Units that a store gave for the charge: `cost`, or more if those were wanted.
    pub granted: u32,
    wanted: u32,
}

/// What is left of a budget.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Whole units that could be spent at once.
    pub available: u64,
    /// Until there is one more of them; zero when the budget is whole.
    pub more_in: Duration,
    /// Until the cost of the charge could be spent the next time; zero if at once.
    pub wait: Duration,
}

impl<'a> Charge<'a> {
    /// A charge that is not settled yet.
    #[must_use]
    pub fn new(key: &'a [u8], budget: Budget, cost: u32) -> Self {
        Self { key, budget, cost, balance: Balance::default(), granted: cost, wanted: cost }
    }

    /// Has a store give up to so many units, if there are; at least `cost` all the same.
    pub fn want(&mut self, units: u32) {
        self.wanted = units.max(self.cost);
    }

    /// Units that are wanted of a store.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Nanoseconds in which what it spends comes back.
    #[must_use]
    pub fn price(&self) -> u64 {
        self.budget.interval.saturating_mul(self.cost.into())
    }

    /// Whether the cost can be spent of a budget that is whole in `debt` nanoseconds.
    pub(super) fn fits(&self, debt: u64) -> bool {
        self.after(debt) <= self.budget.whole()
    }

    /// In how many nanoseconds the budget is whole once the cost was spent.
    pub(super) fn after(&self, debt: u64) -> u64 {
        debt.saturating_add(self.price())
    }

    /// Notes what is left of a budget that is whole in `debt` nanoseconds.
    pub fn settle(&mut self, debt: u64) {
        let (whole, interval) = (self.budget.whole(), self.budget.interval);
        // The debt is larger than the budget where the budget was made smaller.
        let units = whole.saturating_sub(debt) / interval;
        let missing_for = |units: u64| (debt + units * interval).saturating_sub(whole);
        let more_in = if debt == 0 { 0 } else { missing_for(units + 1) };
        self.balance = Balance {
            available: units,
            more_in: Duration::from_nanos(more_in),
            wait: Duration::from_nanos(self.after(debt).saturating_sub(whole)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn balance(debt: Duration, cost: u32) -> Balance {
        let mut charge = Charge::new(b"", Budget::new(SECOND, 5).unwrap(), cost);
        charge.settle(u64::try_from(debt.as_nanos()).unwrap());
        charge.balance
    }

    #[test]
    fn a_budget_of_nothing_or_of_more_than_a_year_cannot_exist() {
        assert!(Budget::new(Duration::ZERO, 1).is_none());
        assert!(Budget::new(SECOND, 0).is_none());
        assert!(Budget::new(SECOND, 366 * 24 * 3600).is_some());
        assert!(Budget::new(SECOND, 366 * 24 * 3600 + 1).is_none());
        assert!(Budget::new(Duration::MAX, u32::MAX).is_none());
    }

    #[test]
    fn what_is_left_is_counted_in_whole_units() {
        let whole = Balance { available: 5, more_in: Duration::ZERO, wait: Duration::ZERO };
        assert_eq!(balance(Duration::ZERO, 1), whole);
        let spent = Balance { available: 3, more_in: SECOND / 2, wait: Duration::ZERO };
        assert_eq!(balance(SECOND * 3 / 2, 1), spent);
        let empty = Balance { available: 0, more_in: SECOND, wait: 2 * SECOND };
        assert_eq!(balance(5 * SECOND, 2), empty);
    }

    #[test]
    fn a_budget_that_was_made_smaller_takes_longer_to_come_back() {
        let balance = balance(7 * SECOND, 1);
        assert_eq!((balance.available, balance.more_in, balance.wait), (0, 3 * SECOND, 3 * SECOND));
    }
}
