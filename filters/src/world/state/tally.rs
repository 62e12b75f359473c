//! Quotas: what was used of so many units in a stretch of time that is cut into slots.
//!
//! The slot of now and those before it that still count hold together at most `limit` units. One slot is
//! a day or a month of the calendar. Of a window that rolls there are many and one more than it is long, so
//! that in any time as long as the window at most `limit` units are used, wherever that time begins; what
//! was used comes back at most a slot later than it could.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Balance;

/// Which slot is now, and how many count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Now, since 1970.
    pub now: Duration,
    /// The number of the slot of now.
    pub slot: u64,
    /// How many slots count, with the one of now; at least 1.
    pub slots: u32,
    /// When the slot of now ends, since 1970.
    pub ends: Duration,
    /// How long a slot is, where several count.
    pub length: Duration,
}

impl Window {
    /// When what was used in a slot is no longer counted, since 1970.
    fn end_of(&self, slot: u64) -> Duration {
        let later = (slot + u64::from(self.slots)).saturating_sub(self.slot + 1);
        self.ends.saturating_add(self.length.saturating_mul(u32::try_from(later).unwrap_or(u32::MAX)))
    }

    /// Whether what was used in a slot is still counted.
    fn counts(&self, slot: u64) -> bool {
        slot + u64::from(self.slots) > self.slot
    }
}

/// What a request takes of one quota.
#[derive(Debug)]
pub struct Tally<'a> {
    /// Names the quota within its scope; any bytes.
    pub key: &'a [u8],
    /// Units that may be used in the window.
    pub limit: u64,
    /// Units to use.
    pub cost: u64,
    /// The window of this moment.
    pub window: Window,
    /// What is left, once the tally was counted.
    pub balance: Balance,
}

impl<'a> Tally<'a> {
    /// A tally that is not counted yet.
    #[must_use]
    pub fn new(key: &'a [u8], limit: u64, cost: u64, window: Window) -> Self {
        Self { key, limit, cost, window, balance: Balance::default() }
    }

    /// Seconds after which what is counted now counts no longer.
    #[must_use]
    pub fn counts_for(&self) -> u64 {
        seconds_up(self.window.end_of(self.window.slot).saturating_sub(self.window.now))
    }

    /// Notes what is left where so many units are used in each of these slots.
    pub fn settle(&mut self, slots: impl IntoIterator<Item = (u64, u64)>) {
        let mut slots: Vec<Slot> =
            slots.into_iter().map(|(number, used)| Slot { number, used, unsaved: 0 }).collect();
        slots.sort_unstable_by_key(|slot| slot.number);
        let newest = slots.pop().unwrap_or_default();
        let used = Used { newest, older: slots, ..Used::default() };
        self.balance = used.balance(self);
    }
}

/// What was used in one slot, on its way to a file or from it, or to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyRow {
    /// The digest of whose it is.
    pub id: [u64; 2],
    /// The slot.
    pub slot: u64,
    /// Units used; in what is not saved yet, how many more or fewer than is known.
    pub used: i64,
    /// When it counts no longer, in Unix seconds.
    pub ends: u64,
}

/// What was used of one quota.
#[derive(Debug, Default)]
pub(super) struct Used {
    newest: Slot,
    /// Earlier slots that still count, the oldest first.
    older: Vec<Slot>,
    /// What a file still has of slots that were given up, and is to lose.
    given_up: Box<[Slot]>,
    /// When nothing of it counts any longer, in Unix seconds.
    pub(super) ends: u64,
    /// Whether it is among those that are to be saved.
    pub(super) listed: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    number: u64,
    used: u64,
    unsaved: i64,
}

impl Used {
    /// Units that count.
    pub(super) fn sum(&self) -> u64 {
        self.slots().fold(0, |sum, slot| sum.saturating_add(slot.used))
    }

    /// From the oldest to the newest.
    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.older.iter().chain([&self.newest])
    }

    fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.older.iter_mut().chain([&mut self.newest])
    }

    /// Drops what counts no longer. Another thread may have been in the next slot already; where the newest
    /// slot is further ahead, the clock was set back, and what was used is from now.
    pub(super) fn turn(&mut self, window: &Window) {
        // Not only in a new slot: what was learnt may be of one that is over.
        self.older.retain(|slot| window.counts(slot.number));
        if self.newest.number > window.slot + 1 {
            self.set_back(window.slot);
        }
        if self.newest.number < window.slot {
            let next = Slot { number: window.slot, used: 0, unsaved: 0 };
            let last = std::mem::replace(&mut self.newest, next);
            let matters = window.counts(last.number) && (last.used > 0 || last.unsaved != 0);
            self.older.extend(matters.then_some(last));
        }
        self.ends = seconds_up(window.end_of(self.newest.number));
    }

    /// Gives all slots up for this one. What a file has of them is no more: each of them would count once again.
    fn set_back(&mut self, number: u64) {
        let mut now = Slot { number, used: self.sum(), unsaved: 0 };
        now.unsaved = signed(now.used);
        let mut given_up = std::mem::take(&mut self.given_up).into_vec();
        for slot in self.older.drain(..).chain([self.newest]) {
            let saved = signed(slot.used).saturating_sub(slot.unsaved);
            if slot.number == number {
                now.unsaved = now.unsaved.saturating_sub(saved);
            } else if saved > 0 {
                given_up.push(Slot { number: slot.number, used: 0, unsaved: -saved });
            }
        }
        self.given_up = given_up.into();
        self.newest = now;
    }

    /// Uses units in the slot of now; the slot they were used in.
    pub(super) fn add(&mut self, cost: u64) -> u64 {
        self.newest.change(signed(cost));
        self.newest.number
    }

    /// Gives units back that were used in a slot, if it still counts.
    pub(super) fn give_back(&mut self, number: u64, cost: u64) -> bool {
        let Some(slot) = self.slots_mut().find(|slot| slot.number == number) else { return false };
        slot.change(-signed(cost.min(slot.used)));
        true
    }

    /// What is left of a tally now.
    pub(super) fn balance(&self, tally: &Tally<'_>) -> Balance {
        let used = self.sum();
        let available = tally.limit.saturating_sub(used);
        let more_in = if used == 0 { Duration::ZERO } else { self.until(available + 1, tally) };
        let wait = if tally.cost <= available { Duration::ZERO } else { self.until(tally.cost, tally) };
        Balance { available, more_in, wait }
    }

    /// How long until there are so many units.
    fn until(&self, wanted: u64, tally: &Tally<'_>) -> Duration {
        let mut left = self.sum();
        for slot in self.slots() {
            left = left.saturating_sub(slot.used);
            if left.saturating_add(wanted) <= tally.limit || slot.number == self.newest.number {
                return tally.window.end_of(slot.number).saturating_sub(tally.window.now);
            }
        }
        Duration::ZERO
    }

    /// Takes what is not saved yet.
    pub(super) fn take_unsaved(&mut self, id: [u64; 2], rows: &mut Vec<TallyRow>) {
        self.listed = false;
        let ends = self.ends;
        // First: the clock may be there by now, and what is used there since comes on top.
        let given_up = std::mem::take(&mut self.given_up);
        rows.extend(given_up.iter().map(|slot| TallyRow { id, slot: slot.number, used: slot.unsaved, ends }));
        for slot in self.slots_mut().filter(|slot| slot.unsaved != 0) {
            let used = std::mem::take(&mut slot.unsaved);
            rows.push(TallyRow { id, slot: slot.number, used, ends });
        }
    }

    /// Puts back what could not be saved.
    pub(super) fn unsave(&mut self, row: &TallyRow) -> bool {
        if let Some(slot) = self.slots_mut().find(|slot| slot.number == row.slot) {
            slot.unsaved = slot.unsaved.saturating_add(row.used);
            return true;
        }
        // Of a slot that was given up; others count no longer.
        if row.used < 0 {
            let mut given_up = std::mem::take(&mut self.given_up).into_vec();
            given_up.push(Slot { number: row.slot, used: 0, unsaved: row.used });
            self.given_up = given_up.into();
        }
        row.used < 0
    }

    /// Takes over what is known of a slot elsewhere; what was used here and is not known there yet comes on top.
    pub(super) fn learn(&mut self, row: &TallyRow) {
        let total = |unsaved: i64| u64::try_from(row.used.saturating_add(unsaved)).unwrap_or(0);
        if let Some(slot) = self.slots_mut().find(|slot| slot.number == row.slot) {
            slot.used = slot.used.max(total(slot.unsaved));
            return;
        }
        let slot = Slot { number: row.slot, used: total(0), unsaved: 0 };
        // Such as one that was given up.
        if slot.used == 0 {
            return;
        }
        if row.slot > self.newest.number {
            let newest = std::mem::replace(&mut self.newest, slot);
            self.older.extend((newest.used > 0).then_some(newest));
        } else {
            let at = self.older.partition_point(|other| other.number < slot.number);
            self.older.insert(at, slot);
        }
        self.ends = self.ends.max(row.ends);
    }

    /// All that counts, for another process.
    pub(super) fn rows(&self, id: [u64; 2]) -> impl Iterator<Item = TallyRow> {
        let used = self.slots().filter(|slot| slot.used > 0);
        used.map(move |slot| TallyRow { id, slot: slot.number, used: signed(slot.used), ends: self.ends })
    }
}

impl Slot {
    fn change(&mut self, by: i64) {
        self.used = self.used.saturating_add_signed(by);
        self.unsaved = self.unsaved.saturating_add(by);
    }
}

fn signed(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
