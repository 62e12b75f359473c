//! The quotas of one process: kept in memory, sharded and bounded, with what a file does not know of yet.
//!
//! They are kept by digests of their keys, which may be secrets; a file shows nobody's key or address. The
//! digest is SHA-256, cut to 128 bits, so that a file can be read by any later version.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};

use super::budgets::AsItIs;
use super::tally::{Tally, TallyRow, Used, Window};
use super::{StateEntry, StateValue, TenantId};

const SHARDS: usize = 64;
/// Quotas that a shard holds before it looks for those that count no longer.
const FEW: usize = 256;
/// Rows in one exported entry.
const TOGETHER: usize = 1024;

type Id = [u64; 2];

/// What was used, by digest.
pub(super) struct Tallies {
    shards: Box<[Mutex<Shard>]>,
    /// Most quotas of one shard.
    capacity: usize,
    /// The minute in which it was last said that there are more.
    warned: AtomicU64,
}

#[derive(Default)]
struct Shard {
    used: HashMap<Id, Used, BuildHasherDefault<AsItIs>>,
    /// Those with something that is not saved yet.
    unsaved: Vec<Id>,
    /// How many there are when those that count no longer are next looked for.
    sweep_at: usize,
}

impl Tallies {
    /// Nothing used yet; at least `max` quotas can be kept.
    pub(super) fn new(max: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let capacity = (max.div_ceil(SHARDS) * 5 / 4).max(FEW);
        Self { shards, capacity, warned: AtomicU64::new(0) }
    }

    /// Counts all of these tallies, whose keys differ, or none; says which, and what is left of each. The
    /// window's slot becomes the one that was counted in.
    pub(super) fn count(&self, tenant: TenantId, scope: &str, tallies: &mut [Tally<'_>]) -> bool {
        let ids: Vec<Id> = tallies.iter().map(|tally| id(tenant, scope, tally.key)).collect();
        let mut shards = self.lock(&ids);
        let mut fit = true;
        for (tally, id) in tallies.iter().zip(&ids) {
            let used = of(&mut shards, *id).used.get_mut(id).map_or(0, |used| {
                used.turn(&tally.window);
                used.sum()
            });
            fit &= used.saturating_add(tally.cost) <= tally.limit;
        }
        for (tally, id) in tallies.iter_mut().zip(&ids) {
            let shard = of(&mut shards, *id);
            if fit {
                let slot = self.change(shard, *id, &tally.window, |used| used.add(tally.cost));
                tally.balance = shard.used[id].balance(tally);
                tally.window.slot = slot;
            } else {
                let none = Used::default();
                tally.balance = shard.used.get(id).unwrap_or(&none).balance(tally);
            }
        }
        fit
    }

    /// Gives back what was counted in this slot.
    pub(super) fn give_back(&self, tenant: TenantId, scope: &str, key: &[u8], slot: u64, cost: u64) {
        let id = id(tenant, scope, key);
        let mut shard = self.shards[shard_of(id)].lock();
        let given = shard.used.get_mut(&id).is_some_and(|used| used.give_back(slot, cost));
        if given {
            shard.list(id);
        }
    }

    fn change<T>(&self, shard: &mut Shard, id: Id, window: &Window, act: impl FnOnce(&mut Used) -> T) -> T {
        let used = self.used(shard, id, window.now.as_secs());
        used.turn(window);
        let result = act(used);
        shard.list(id);
        result
    }

    /// What was used of a quota, that is kept from now on.
    fn used<'a>(&self, shard: &'a mut Shard, id: Id, now: u64) -> &'a mut Used {
        if !shard.used.contains_key(&id) && shard.used.len() >= shard.sweep_at.max(FEW) {
            self.make_room(shard, now);
        }
        shard.used.entry(id).or_default()
    }

    /// Forgets what counts no longer, and of a full shard the eighth of which least was used.
    fn make_room(&self, shard: &mut Shard, now: u64) {
        shard.used.retain(|_, used| used.ends > now);
        if shard.used.len() > self.capacity - self.capacity / 16 {
            let mut sums: Vec<u64> = shard.used.values().map(Used::sum).collect();
            let (_, most, _) = sums.select_nth_unstable(self.capacity / 8);
            let (most, mut left) = (*most, self.capacity / 8);
            shard.used.retain(|_, used| {
                let goes = left > 0 && used.sum() <= most;
                left -= usize::from(goes);
                !goes
            });
            let minute = now / 60 + 1;
            if self.warned.swap(minute, Ordering::Relaxed) != minute {
                log::warn!("too many quotas are under way: those that are used least are forgotten");
            }
        }
        let kept = shard.used.len();
        shard.used.shrink_to(2 * kept);
        // Where there is no file, nobody else takes them out.
        let Shard { used, unsaved, .. } = &mut *shard;
        unsaved.retain(|id| used.contains_key(id));
        shard.sweep_at = (2 * kept).clamp(FEW, self.capacity);
    }

    /// The shards of these digests; everybody takes them in the same order.
    fn lock(&self, ids: &[Id]) -> Vec<(usize, MutexGuard<'_, Shard>)> {
        let mut order: Vec<usize> = ids.iter().map(|id| shard_of(*id)).collect();
        order.sort_unstable();
        order.dedup();
        order.into_iter().map(|at| (at, self.shards[at].lock())).collect()
    }

    /// Takes what a file does not know of yet, as differences.
    pub(super) fn take_unsaved(&self) -> Vec<TallyRow> {
        let mut rows = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for id in std::mem::take(&mut shard.unsaved) {
                if let Some(used) = shard.used.get_mut(&id) {
                    used.take_unsaved(id, &mut rows);
                }
            }
        }
        rows
    }

    /// Puts back what was taken and could not be saved.
    pub(super) fn unsave(&self, rows: &[TallyRow]) {
        for row in rows {
            let mut shard = self.shards[shard_of(row.id)].lock();
            if shard.used.get_mut(&row.id).is_some_and(|used| used.unsave(row)) {
                shard.list(row.id);
            }
        }
    }

    /// Takes over what a file or another process knows, where that is more; of more than there is room for, those of
    /// which most was used. Now is in Unix seconds.
    pub(super) fn learn(&self, rows: &[TallyRow], now: u64) {
        for row in rows.iter().filter(|row| row.used > 0) {
            let mut shard = self.shards[shard_of(row.id)].lock();
            self.used(&mut shard, row.id, now).learn(row);
        }
    }

    /// All that counts, for another process.
    pub(super) fn export(&self) -> Vec<StateEntry> {
        let mut rows = Vec::new();
        for shard in &self.shards {
            rows.extend(shard.lock().used.iter().flat_map(|(id, used)| used.rows(*id)));
        }
        let entry = |rows: &[TallyRow]| StateEntry {
            tenant: TenantId::default(),
            scope: "".into(),
            key: Vec::new(),
            value: StateValue::Tallies(rows.to_vec()),
            ttl_ms: u64::MAX,
        };
        rows.chunks(TOGETHER).map(entry).collect()
    }
}

impl Shard {
    fn list(&mut self, id: Id) {
        if let Some(used) = self.used.get_mut(&id)
            && !std::mem::replace(&mut used.listed, true)
        {
            self.unsaved.push(id);
        }
    }
}

fn of<'a>(shards: &'a mut [(usize, MutexGuard<'_, Shard>)], id: Id) -> &'a mut Shard {
    let found = shards.iter_mut().find(|(at, _)| *at == shard_of(id));
    &mut found.expect("the shard of each digest is locked").1
}

/// Bits that the maps in the shards do not sort by.
fn shard_of(id: Id) -> usize {
    // The remainder is below 64.
    usize::try_from((id[1] >> 40) % SHARDS as u64).unwrap_or(0)
}

fn id(tenant: TenantId, scope: &str, key: &[u8]) -> Id {
    let mut hash = Sha256::new();
    hash.update(tenant.0.to_be_bytes());
    hash.update((scope.len() as u64).to_be_bytes());
    hash.update(scope.as_bytes());
    hash.update(key);
    let digest = hash.finalize();
    let half = |at: usize| digest[at..at + 8].iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    [half(0), half(8)]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WHO: TenantId = TenantId(0);

    /// A day of the calendar, or a slot of a second of a window of `slots - 1` seconds.
    fn window(now: u64, slots: u32) -> Window {
        let length = if slots == 1 { 86_400 } else { 1 };
        let slot = now / length;
        Window {
            now: Duration::from_secs(now),
            slot,
            slots,
            ends: Duration::from_secs((slot + 1) * length),
            length: Duration::from_secs(length),
        }
    }

    fn uses(tallies: &Tallies, key: &str, limit: u64, window: Window) -> bool {
        tallies.count(WHO, "test", &mut [Tally::new(key.as_bytes(), limit, 1, window)])
    }

    #[test]
    fn a_day_holds_what_it_holds_and_the_next_one_again() {
        let tallies = Tallies::new(100);
        for day in 0..3 {
            let passed = (0..10).filter(|_| uses(&tallies, "a", 4, window(day * 86_400 + 5, 1))).count();
            assert_eq!(passed, 4);
        }
    }

    #[test]
    fn a_window_that_rolls_lets_units_come_back_one_after_the_other() {
        let tallies = Tallies::new(100);
        let at = |second| uses(&tallies, "a", 2, window(second, 11));
        assert_eq!([at(0), at(3), at(3), at(10)], [true, true, false, false]);
        // What was used in second 0 counts for ten seconds wherever in that second it was.
        assert_eq!([at(11), at(11), at(13), at(14)], [true, false, false, true]);
    }

    #[test]
    fn what_is_left_and_when_more_comes_back_is_told() {
        let tallies = Tallies::new(100);
        let count = |second| {
            let mut tally = [Tally::new(b"a", 3, 2, window(second, 11))];
            (tallies.count(WHO, "test", &mut tally), tally[0].balance)
        };
        let seconds = Duration::from_secs;
        let (passed, balance) = count(100);
        assert_eq!((passed, balance.available, balance.wait), (true, 1, seconds(11)));
        assert_eq!(balance.more_in, seconds(11));
        let (passed, balance) = count(104);
        assert_eq!((passed, balance.available, balance.wait), (false, 1, seconds(7)));
    }

    #[test]
    fn several_tallies_are_counted_together_or_not_at_all() {
        let tallies = Tallies::new(100);
        let count = || {
            let mut both =
                [Tally::new(b"wide", 5, 1, window(0, 1)), Tally::new(b"narrow", 2, 1, window(0, 1))];
            (tallies.count(WHO, "test", &mut both), both[0].balance.available)
        };
        assert_eq!([count(), count(), count()], [(true, 4), (true, 3), (false, 3)]);
    }

    #[test]
    fn what_is_given_back_can_be_used_again_in_its_own_slot_only() {
        let tallies = Tallies::new(100);
        assert!(uses(&tallies, "a", 1, window(0, 1)));
        tallies.give_back(WHO, "test", b"a", 0, 1);
        assert!(uses(&tallies, "a", 1, window(0, 1)));
        assert!(uses(&tallies, "a", 1, window(86_400, 1)));
        tallies.give_back(WHO, "test", b"a", 0, 1);
        assert!(!uses(&tallies, "a", 1, window(86_400, 1)));
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_quota_new_and_locks_nobody_out() {
        let tallies = Tallies::new(100);
        assert!(uses(&tallies, "a", 2, window(1000 * 86_400, 1)));
        assert!(uses(&tallies, "a", 2, window(10 * 86_400, 1)));
        assert!(!uses(&tallies, "a", 2, window(10 * 86_400, 1)));
        assert!(uses(&tallies, "a", 2, window(11 * 86_400, 1)), "the next day is a new one");
    }

    #[test]
    fn eight_threads_use_exactly_what_there_is() {
        let tallies = Tallies::new(100);
        let ask = || (0..1000_u32).filter(|_| uses(&tallies, "a", 1234, window(7, 61))).count();
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(passed, 1234);
    }

    #[test]
    fn what_is_not_saved_is_told_once_as_a_difference() {
        let tallies = Tallies::new(100);
        for _ in 0..3 {
            assert!(uses(&tallies, "a", 9, window(0, 1)));
        }
        let rows = tallies.take_unsaved();
        assert_eq!(rows.iter().map(|row| row.used).collect::<Vec<_>>(), [3]);
        assert!(tallies.take_unsaved().is_empty());
        tallies.give_back(WHO, "test", b"a", 0, 1);
        tallies.unsave(&rows);
        assert_eq!(tallies.take_unsaved()[0].used, 2);
    }

    #[test]
    fn what_others_used_of_the_same_quota_is_learnt() {
        let (one, two) = (Tallies::new(100), Tallies::new(100));
        assert!(uses(&one, "a", 9, window(0, 1)) && uses(&one, "a", 9, window(0, 1)));
        let rows = one.take_unsaved();
        two.learn(&rows, 0);
        assert!(uses(&two, "a", 3, window(0, 1)));
        assert!(!uses(&two, "a", 3, window(0, 1)));
        // A file that knows less, since it was lost, takes nothing away.
        two.learn(&[TallyRow { used: 1, ..rows[0] }], 0);
        assert!(uses(&two, "a", 4, window(0, 1)));
        assert!(!uses(&two, "a", 4, window(0, 1)));
    }

    #[test]
    fn a_flood_of_keys_stays_in_bounds_and_spares_those_who_used_much() {
        let tallies = Tallies::new(20_000);
        for key in 0..100 {
            let key = key.to_string();
            let mut tally = [Tally::new(key.as_bytes(), 100, 100, window(0, 1))];
            assert!(tallies.count(TenantId(1), "test", &mut tally));
        }
        for key in 0..200_000 {
            assert!(uses(&tallies, &key.to_string(), 100, window(0, 1)));
        }
        let held: usize = tallies.shards.iter().map(|shard| shard.lock().used.len()).sum();
        assert!(held <= tallies.capacity * SHARDS, "{held}");
        let again = (0..100).filter(|key| {
            let key = key.to_string();
            let mut tally = [Tally::new(key.as_bytes(), 100, 1, window(0, 1))];
            tallies.count(TenantId(1), "test", &mut tally)
        });
        assert_eq!(again.count(), 0);
    }

    #[test]
    fn of_more_than_there_is_room_for_those_who_used_much_are_learnt() {
        let tallies = Tallies::new(100);
        let row = |key: u64| {
            let used = if key % 1000 == 999 { 50 } else { 1 };
            TallyRow { id: id(WHO, "test", &key.to_be_bytes()), slot: 7, used, ends: 9 }
        };
        let rows: Vec<TallyRow> = (0..100_000).map(row).collect();
        tallies.learn(&rows, 8);
        let (mut held, mut much) = (0, 0);
        for shard in &tallies.shards {
            let shard = shard.lock();
            held += shard.used.len();
            much += shard.used.values().filter(|used| used.sum() == 50).count();
        }
        assert!(held <= tallies.capacity * SHARDS && much == 100, "{much} of {held}");
    }

    #[test]
    fn what_is_learnt_of_a_day_that_is_over_takes_nothing_of_the_next_one() {
        let tallies = Tallies::new(100);
        let passing = |day: u64| (0..9).filter(|_| uses(&tallies, "a", 4, window(day * 86_400, 1))).count();
        assert_eq!(passing(0), 4);
        let rows = tallies.take_unsaved();
        assert!(uses(&tallies, "a", 4, window(86_400, 1)));
        // The file tells what it was told of yesterday.
        tallies.learn(&rows, 86_400);
        assert_eq!(passing(1), 3);
    }

    #[test]
    fn what_nobody_saves_is_bounded_too() {
        let tallies = Tallies::new(100);
        for key in 0..200_000 {
            assert!(uses(&tallies, &key.to_string(), 5, window(0, 1)));
        }
        let unsaved: usize = tallies.shards.iter().map(|shard| shard.lock().unsaved.len()).sum();
        assert!(unsaved <= tallies.capacity * SHARDS, "{unsaved}");
    }

    #[test]
    fn what_counts_no_longer_makes_room() {
        let tallies = Tallies::new(1_000_000);
        for day in 0..5 {
            for key in 0..20_000 {
                assert!(uses(&tallies, &format!("{day} {key}"), 5, window(day * 86_400, 1)));
            }
        }
        let held: usize = tallies.shards.iter().map(|shard| shard.lock().used.len()).sum();
        assert!(held <= 40_000 + 2 * FEW * SHARDS, "{held}");
    }
}
