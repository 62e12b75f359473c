//! Units that a gateway takes from a store in advance, so that most requests need no round trip.
//!
//! What is in a purse was spent in the store before, so budgets are never overdrawn by more than what purses hold:
//! units may be used later than they were taken, for as long as a whole budget takes to come back, after which they
//! are forfeited. A budget that is found empty is not asked for again before it can have enough for a request. What is
//! given for a request that went away meanwhile is kept as well.
//!
//! Purses are kept by digests of their keys under a secret, as budgets are in the process: a key may be as long as a
//! client's head. That two of as many as there can be share one by chance is as likely as 1 in 500 million.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast;
use parking_lot::{Mutex, MutexGuard};

use crate::world::{Balance, Budget, Charge, Clock, GoingOn, Ledger, Spent, StateError, TenantId};

/// Parts that are locked on their own.
const SHARDS: usize = 64;
/// Purses of a part: more are made room for by forfeiting those that have ended, else all.
const MOST: usize = 4096;

/// The purses of one filter.
pub(super) struct Leases {
    size: u32,
    clock: Arc<dyn Clock>,
    /// Keeps the secret of the digests; with SipHash, which tells nothing of it.
    hasher: RandomState,
    shards: Box<[Mutex<Purses>]>,
}

/// By the digests of whose they are.
type Purses = HashMap<u64, Purse, fast::RandomState>;

/// What is held of one budget.
#[derive(Debug, Clone, Copy)]
struct Purse {
    units: u32,
    /// When what is in it is forfeited.
    until: Instant,
    /// Before when nobody needs to ask for more: the store has too little for a request.
    empty_until: Instant,
    /// What was left in the store.
    rest: Balance,
}

/// What the store is asked for: units of this budget for a request, and some for the purse.
struct Wish {
    key: Box<[u8]>,
    digest: u64,
    budget: Budget,
    cost: u32,
}

impl Leases {
    /// No units yet, and so many at a time later on.
    pub(super) fn new(size: NonZeroU32, clock: Arc<dyn Clock>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { size: size.get(), clock, hasher: RandomState::new(), shards }
    }

    /// Spends of the purses, and of the store where one has too little, for that purse too.
    pub(super) async fn spend(
        self: &Arc<Self>,
        ledger: &Ledger,
        tenant: TenantId,
        charges: &mut [Charge<'_>],
    ) -> Result<Spent, StateError> {
        let now = self.clock.now();
        let mut taken = Taken { leases: self, units: Vec::with_capacity(charges.len()) };
        let (mut places, mut wishes) = (Vec::new(), Vec::new());
        for (place, charge) in charges.iter_mut().enumerate() {
            let digest = self.digest(tenant, charge.key);
            match self.take(digest, charge, now) {
                Some(Spent::Yes) => taken.units.push((digest, charge.cost)),
                Some(refused) => return Ok(refused),
                None => {
                    places.push(place);
                    let (key, budget, cost) = (charge.key.into(), charge.budget, charge.cost);
                    wishes.push(Wish { key, digest, budget, cost });
                }
            }
        }
        if wishes.is_empty() {
            taken.keep();
            return Ok(Spent::Yes);
        }
        let asked = self.clone().ask(ledger.clone(), tenant, wishes, now);
        let (spent, balances) = GoingOn::new(asked).await?;
        for (place, balance) in places.into_iter().zip(balances) {
            charges[place].balance = balance;
        }
        if spent == Spent::Yes {
            taken.keep();
        }
        Ok(spent)
    }

    /// Asks the store, and keeps what it gives; what is left of each budget.
    async fn ask(
        self: Arc<Self>,
        ledger: Ledger,
        tenant: TenantId,
        wishes: Vec<Wish>,
        now: Instant,
    ) -> Result<(Spent, Vec<Balance>), StateError> {
        let mut charges = Vec::with_capacity(wishes.len());
        for wish in &wishes {
            let mut charge = Charge::new(&wish.key, wish.budget, wish.cost);
            charge.want(self.size);
            charges.push(charge);
        }
        let decided = ledger.decide(tenant, &mut charges, &mut []).await?;
        if decided.by_store {
            for (wish, charge) in wishes.iter().zip(&mut charges) {
                self.note(wish.digest, charge, decided.spent, now);
            }
        }
        Ok((decided.spent, charges.iter().map(|charge| charge.balance).collect()))
    }

    /// Spends of a purse, or refuses because the budget is known to be empty; none if the store has to be asked.
    fn take(&self, digest: u64, charge: &mut Charge<'_>, now: Instant) -> Option<Spent> {
        let mut shard = self.shard(digest);
        let purse = shard.get_mut(&digest)?;
        if purse.until > now && purse.units >= charge.cost {
            purse.units -= charge.cost;
            charge.balance = balance(purse);
            return Some(Spent::Yes);
        }
        let wait = purse.empty_until.checked_duration_since(now).filter(|wait| !wait.is_zero())?;
        // As the store told it: what is held is too little, and counts for nothing.
        charge.balance = Balance { available: purse.rest.available, more_in: wait, wait };
        Some(Spent::No)
    }

    fn put_back(&self, digest: u64, units: u32) {
        if let Some(purse) = self.shard(digest).get_mut(&digest) {
            purse.units = purse.units.saturating_add(units);
        }
    }

    /// Keeps what the store gave beyond the request's own, or that it had too little.
    fn note(&self, digest: u64, charge: &mut Charge<'_>, spent: Spent, now: Instant) {
        let rest = charge.balance;
        let (units, lasts) = match spent {
            Spent::Yes => {
                (charge.granted.saturating_sub(charge.cost), Duration::from_nanos(charge.budget.whole()))
            }
            // Of several budgets the others may have enough.
            _ => (0, rest.wait),
        };
        if lasts.is_zero() || (units == 0 && spent == Spent::Yes) {
            return;
        }
        let Some(until) = now.checked_add(lasts) else { return };
        let mut shard = self.shard(digest);
        if shard.len() >= MOST {
            shard.retain(|_, purse| purse.until.max(purse.empty_until) > now);
            if shard.len() >= MOST {
                shard.clear();
            }
        }
        let nothing = Purse { units: 0, until: now, empty_until: now, rest };
        let purse = shard.entry(digest).or_insert(nothing);
        if spent != Spent::Yes {
            // What is held stays: another request may have got the last of the store, or it is less than one costs.
            (purse.empty_until, purse.rest) = (until, rest);
            return;
        }
        // Another request may have filled it meanwhile.
        let held = if purse.until > now { purse.units } else { 0 };
        *purse = Purse {
            units: held.saturating_add(units),
            until: purse.until.max(until),
            empty_until: now,
            rest,
        };
        charge.balance = balance(purse);
    }

    fn digest(&self, tenant: TenantId, key: &[u8]) -> u64 {
        self.hasher.hash_one((tenant, key))
    }

    fn shard(&self, digest: u64) -> MutexGuard<'_, Purses> {
        let at = usize::try_from(digest % SHARDS as u64).unwrap_or_default();
        self.shards[at].lock()
    }
}

/// Units that were taken of purses for a request, which are put back when this is dropped: the store refused the
/// request, or it went away while that was asked.
struct Taken<'a> {
    leases: &'a Leases,
    /// Of which purse, and how many.
    units: Vec<(u64, u32)>,
}

impl Taken<'_> {
    /// They are spent.
    fn keep(&mut self) {
        self.units.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for (digest, units) in self.units.drain(..) {
            self.leases.put_back(digest, units);
        }
    }
}

/// What is told of a budget that was spent of: what is held, and what was left when that was taken.
fn balance(purse: &Purse) -> Balance {
    let available = purse.rest.available.saturating_add(purse.units.into());
    Balance { available, more_in: purse.rest.more_in, wait: Duration::ZERO }
}
