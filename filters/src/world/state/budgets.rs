//! The budgets of one process: 16 bytes for each that is not whole, sharded, bounded.
//!
//! Keys are kept as digests under a secret of this process. That two of a million keys share a budget by
//! chance is as likely as 1 in 40 million, and without the secret nobody can look for another's digest.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::{Charge, StateEntry, StateValue, TenantId};
use crate::world::Clock;

const SHARDS: usize = 64;
/// Budgets that a shard holds before it looks for those that are whole again.
const FEW: usize = 256;
/// Debts in one exported entry.
const TOGETHER: usize = 1024;

/// Keeps when budgets are whole again; those that are whole need no keeping.
pub(super) struct Budgets {
    clock: Arc<dyn Clock>,
    started: Instant,
    secret: OnceLock<[u64; 2]>,
    shards: Box<[Mutex<Shard>]>,
    bounds: Bounds,
}

/// How many budgets there can be, and what happens when there are more.
struct Bounds {
    /// Most budgets of one shard.
    capacity: usize,
    /// The minute, from 1, in which it was last said that there are more.
    warned: AtomicU64,
}

/// Budgets by digest: when they are whole again, in nanoseconds since the store began.
#[derive(Default)]
struct Shard {
    whole_at: HashMap<u64, u64, BuildHasherDefault<AsItIs>>,
    /// How many there are when those that are whole again are next looked for.
    sweep_at: usize,
}

impl Budgets {
    /// No budgets yet; at least `max` of them can be away at a time.
    pub(super) fn new(clock: Arc<dyn Clock>, max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        // Chance does not fill all shards alike.
        let capacity = (max.div_ceil(SHARDS) * 5 / 4).max(FEW);
        let bounds = Bounds { capacity, warned: AtomicU64::new(0) };
        Self { started: clock.now(), clock, secret: OnceLock::new(), shards, bounds }
    }

    /// Spends all of these charges, whose keys differ, or none; says which, and what is left of each.
    pub(super) fn spend(&self, tenant: TenantId, scope: &str, charges: &mut [Charge<'_>]) -> bool {
        if let [charge] = charges {
            let digest = self.digest(tenant, scope, charge.key);
            let mut shard = self.shards[shard_of(digest)].lock();
            // Read under the lock, so that no budget sees time go back.
            let now = self.now();
            let fits = charge.fits(shard.owed(digest, charge, now));
            shard.settle(digest, charge, fits, now, &self.bounds);
            return fits;
        }
        let digests: Vec<u64> = charges.iter().map(|charge| self.digest(tenant, scope, charge.key)).collect();
        let mut shards = self.lock(&digests);
        let now = self.now();
        let fits = |(charge, digest): (&Charge<'_>, &u64)| {
            charge.fits(shards[place(&shards, *digest)].1.owed(*digest, charge, now))
        };
        let fit = charges.iter().zip(&digests).all(fits);
        for (charge, digest) in charges.iter_mut().zip(&digests) {
            let at = place(&shards, *digest);
            shards[at].1.settle(*digest, charge, fit, now, &self.bounds);
        }
        fit
    }

    /// The shards of these digests; everybody takes them in the same order, or two could wait for each other.
    fn lock(&self, digests: &[u64]) -> Vec<(usize, MutexGuard<'_, Shard>)> {
        let mut order: Vec<usize> = digests.iter().map(|digest| shard_of(*digest)).collect();
        order.sort_unstable();
        order.dedup();
        order.into_iter().map(|at| (at, self.shards[at].lock())).collect()
    }

    fn now(&self) -> u64 {
        let elapsed = self.clock.now().saturating_duration_since(self.started);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    fn digest(&self, tenant: TenantId, scope: &str, key: &[u8]) -> u64 {
        let random = || RandomState::new().hash_one(());
        let [first, second] = *self.secret.get_or_init(|| [random(), random()]);
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(first);
        hasher.write_u64(second);
        hasher.write_u32(tenant.0);
        hasher.write_usize(scope.len());
        hasher.write(scope.as_bytes());
        hasher.write(key);
        hasher.finish()
    }

    /// Every budget that is not whole, with the secret without which its digest means nothing.
    pub(super) fn export(&self) -> Vec<StateEntry> {
        let Some(secret) = self.secret.get() else { return Vec::new() };
        let now = self.now();
        let mut debts = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let owing = shard.whole_at.iter().filter(|(_, whole_at)| **whole_at > now);
            debts.extend(owing.map(|(digest, whole_at)| (*digest, whole_at - now)));
        }
        let entry = |debts: &[(u64, u64)]| {
            let longest = debts.iter().map(|(_, debt)| *debt).max().unwrap_or_default();
            StateEntry {
                tenant: TenantId::default(),
                scope: Arc::from(""),
                key: Vec::new(),
                value: StateValue::Budgets { secret: *secret, debts: debts.to_vec() },
                ttl_ms: longest.div_ceil(1_000_000),
            }
        };
        debts.chunks(TOGETHER).map(entry).collect()
    }

    /// Takes over budgets of another process, unless this one has some of its own already.
    pub(super) fn import(&self, secret: [u64; 2], debts: Vec<(u64, u64)>) {
        if *self.secret.get_or_init(|| secret) != secret {
            return;
        }
        let now = self.now();
        for (digest, debt) in debts {
            let mut shard = self.shards[shard_of(digest)].lock();
            let debt = debt.max(shard.debt(digest, now));
            shard.owe(digest, debt, now, &self.bounds);
        }
    }
}

impl Bounds {
    /// At most one line a minute, however many keys there are.
    fn warn(&self, now: u64) {
        const MINUTE: u64 = 60_000_000_000;
        let minute = now / MINUTE + 1;
        if self.warned.swap(minute, Ordering::Relaxed) != minute {
            log::warn!("too many limits of rate are under way: those that are used least are forgotten");
        }
    }
}

/// Where among locked shards the one of this digest is.
fn place(shards: &[(usize, MutexGuard<'_, Shard>)], digest: u64) -> usize {
    let place = shards.iter().position(|(at, _)| *at == shard_of(digest));
    place.expect("the shard of each digest is locked")
}

/// Bits that the maps in the shards do not sort by.
fn shard_of(digest: u64) -> usize {
    // The remainder is below 64.
    usize::try_from((digest >> 40) % SHARDS as u64).unwrap_or(0)
}

impl Shard {
    /// In how many nanoseconds a budget is whole.
    fn debt(&self, digest: u64, now: u64) -> u64 {
        self.whole_at.get(&digest).map_or(0, |whole_at| whole_at.saturating_sub(now))
    }

    /// The debt of a charge's budget: more than the whole of it is owed only where it was made smaller or faster, and
    /// what it was then is not to lock out who is kept to it now.
    fn owed(&self, digest: u64, charge: &Charge<'_>, now: u64) -> u64 {
        self.debt(digest, now).min(charge.budget.whole())
    }

    fn settle(&mut self, digest: u64, charge: &mut Charge<'_>, spend: bool, now: u64, bounds: &Bounds) {
        let owed = self.owed(digest, charge, now);
        let debt = if spend { charge.after(owed) } else { owed };
        // Also where nothing is spent: what was too much is to come back from now on.
        if debt != self.debt(digest, now) {
            self.owe(digest, debt, now, bounds);
        }
        charge.settle(debt);
    }

    fn owe(&mut self, digest: u64, debt: u64, now: u64, bounds: &Bounds) {
        let whole_at = now.saturating_add(debt);
        if let Some(present) = self.whole_at.get_mut(&digest) {
            *present = whole_at;
            return;
        }
        if self.whole_at.len() >= self.sweep_at.max(FEW) {
            self.make_room(now, bounds);
        }
        self.whole_at.insert(digest, whole_at);
    }

    /// Forgets what is whole again, and of a full shard the eighth that owes least: whoever lives by many
    /// keys makes room with his own. It is done only once for many that come, so it costs each little.
    fn make_room(&mut self, now: u64, bounds: &Bounds) {
        let capacity = bounds.capacity;
        self.whole_at.retain(|_, whole_at| *whole_at > now);
        if self.whole_at.len() > capacity - capacity / 16 {
            let mut times: Vec<u64> = self.whole_at.values().copied().collect();
            let (_, last, _) = times.select_nth_unstable(capacity / 8);
            let last = *last;
            self.whole_at.retain(|_, whole_at| *whole_at > last);
            bounds.warn(now);
        }
        let left = self.whole_at.len();
        self.whole_at.shrink_to(2 * left);
        self.sweep_at = (2 * left).clamp(FEW, capacity);
    }
}

/// Digests are hashes already.
#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Budget;
    use super::*;
    use crate::world::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    fn store(max: usize) -> (Arc<ManualClock>, Budgets) {
        let clock = Arc::new(ManualClock::new());
        (clock.clone(), Budgets::new(clock, max))
    }

    fn held(store: &Budgets) -> usize {
        store.shards.iter().map(|shard| shard.lock().whole_at.len()).sum()
    }

    fn spends(store: &Budgets, key: &str, burst: u32, cost: u32) -> bool {
        let budget = Budget::new(SECOND, burst).unwrap();
        store.spend(TenantId(0), "test", &mut [Charge::new(key.as_bytes(), budget, cost)])
    }

    #[test]
    fn what_is_spent_comes_back_unit_by_unit() {
        let (clock, store) = store(1000);
        assert!(spends(&store, "a", 3, 3));
        assert!(!spends(&store, "a", 3, 1));
        clock.advance(SECOND - Duration::from_nanos(1));
        assert!(!spends(&store, "a", 3, 1));
        clock.advance(Duration::from_nanos(1));
        assert!(spends(&store, "a", 3, 1));
        assert!(!spends(&store, "a", 3, 1));
        clock.advance(1000 * SECOND);
        assert!(spends(&store, "a", 3, 3), "a budget holds no more than the whole");
        assert!(!spends(&store, "a", 3, 1));
    }

    #[test]
    fn a_budget_that_was_made_faster_is_owed_no_more_than_the_whole_of_it() {
        let hour = Budget::new(3600 * SECOND, 5).unwrap();
        let (clock, store) = store(1000);
        for other in [None, Some(b"other")] {
            // The key alone, and beside another one.
            let spend = |key: &[u8], budget, cost| {
                let mut charges = vec![Charge::new(key, budget, cost)];
                charges.extend(other.map(|other| Charge::new(other, hour, 0)));
                store.spend(TenantId(0), "test", &mut charges)
            };
            let key: &[u8] = if other.is_some() { b"beside" } else { b"alone" };
            let second = Budget::new(SECOND, 5).unwrap();
            assert!(spend(key, hour, 5));
            assert!(!spend(key, second, 1), "it is used up");
            clock.advance(SECOND);
            assert!(spend(key, second, 1));
            assert!(!spend(key, second, 1));
        }
    }

    #[test]
    fn several_charges_are_spent_together_or_not_at_all() {
        let (_, store) = store(1000);
        let budget = |burst| Budget::new(SECOND, burst).unwrap();
        let spend = || {
            let mut charges = [Charge::new(b"wide", budget(5), 1), Charge::new(b"narrow", budget(2), 1)];
            (store.spend(TenantId(0), "test", &mut charges), charges[0].balance.available)
        };
        assert_eq!([spend(), spend(), spend(), spend()], [(true, 4), (true, 3), (false, 3), (false, 3)]);
        assert!(store.spend(TenantId(0), "test", &mut []));
    }

    #[test]
    fn eight_threads_with_several_charges_each_spend_exactly_what_passes() {
        let (_, store) = store(1000);
        let budget = Budget::new(SECOND, 1000).unwrap();
        let spend = |thread: u8| {
            let turns = (0..1500_u16).filter(|turn| {
                let [first, second] = [turn % 7, turn % 5 + 7].map(|key| key.to_be_bytes());
                let mut charges = [Charge::new(&first, budget, 2), Charge::new(&second, budget, 2)];
                // Half of the threads name them the other way round.
                charges.rotate_left(usize::from(thread % 2));
                store.spend(TenantId(0), "test", &mut charges)
            });
            u64::try_from(turns.count()).unwrap()
        };
        let passed: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    scope.spawn({
                        let spend = &spend;
                        move || spend(thread)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let owed = |store: &Budgets| -> u64 {
            store.shards.iter().map(|shard| shard.lock().whole_at.values().sum::<u64>()).sum()
        };
        assert_eq!(owed(&store), passed * 4 * 1_000_000_000);
        assert_eq!(passed, 5 * 500, "the five budgets that more is asked of are used up");
    }

    #[test]
    fn tenants_and_scopes_have_budgets_of_their_own() {
        let (_, store) = store(1000);
        for (tenant, scope) in [(0, "a"), (1, "a"), (0, "ab")] {
            let mut charge = [Charge::new(b"key", Budget::new(SECOND, 1).unwrap(), 1)];
            assert!(store.spend(TenantId(tenant), scope, &mut charge), "{tenant} {scope}");
        }
    }

    #[test]
    fn budgets_that_are_whole_again_are_forgotten() {
        let (clock, store) = store(1_000_000);
        for round in 0..10 {
            for key in 0..20_000 {
                assert!(spends(&store, &format!("{round} {key}"), 5, 1));
            }
            clock.advance(SECOND);
        }
        assert!(held(&store) <= 40_000 + 2 * FEW * SHARDS, "{}", held(&store));
    }

    #[test]
    fn a_flood_of_keys_stays_in_bounds_and_does_not_wipe_out_what_others_owe() {
        let (_, store) = store(20_000);
        for key in 0..100 {
            assert!(spends(&store, &format!("debtor {key}"), 100, 100));
        }
        for key in 0..200_000 {
            assert!(spends(&store, &key.to_string(), 100, 1));
        }
        assert!(held(&store) <= store.bounds.capacity * SHARDS, "{}", held(&store));
        let debtors = (0..100).filter(|key| spends(&store, &format!("debtor {key}"), 100, 1)).count();
        assert_eq!(debtors, 0);
    }

    #[test]
    fn no_budget_of_as_many_as_there_is_room_for_is_forgotten() {
        let (_, store) = store(100_000);
        for key in 0..100_000 {
            assert!(spends(&store, &key.to_string(), 1, 1));
        }
        assert_eq!((0..100_000).filter(|key| spends(&store, &key.to_string(), 1, 1)).count(), 0);
    }

    #[test]
    fn what_is_owed_is_owed_to_the_next_process_too() {
        let (_, old) = store(10_000);
        for key in 0..3000 {
            assert!(spends(&old, &key.to_string(), 2, 2));
        }
        let text = serde_json::to_string(&old.export()).unwrap();
        let (clock, new) = store(10_000);
        clock.advance(7 * SECOND);
        for entry in serde_json::from_str::<Vec<StateEntry>>(&text).unwrap() {
            let StateValue::Budgets { secret, debts } = entry.value else { panic!("another kind") };
            assert_eq!(entry.ttl_ms, 2000);
            new.import(secret, debts);
        }
        assert_eq!((0..3000).filter(|key| spends(&new, &key.to_string(), 2, 1)).count(), 0);
        clock.advance(SECOND);
        assert_eq!((0..3000).filter(|key| spends(&new, &key.to_string(), 2, 1)).count(), 3000);
    }

    #[test]
    fn digests_under_another_secret_are_not_taken_over() {
        let (_, old) = store(100);
        let (_, new) = store(100);
        assert!(spends(&old, "a", 1, 1) && spends(&new, "b", 1, 1));
        let StateValue::Budgets { secret, debts } = old.export().remove(0).value else {
            panic!("another kind")
        };
        new.import(secret, debts);
        assert_eq!(held(&new), 1);
    }
}
