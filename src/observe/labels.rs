//! Label sets, interned and bounded: names from documents and filters cannot grow the metrics without limit.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// The value of every label of the series that counts what is beyond the cap.
pub const OTHER: &str = "other";

/// The values of a series' labels, in the order of the family's names.
pub type Values = Box<[Arc<str>]>;

/// How many series all families may hold together, and how often that was not enough.
#[derive(Debug)]
pub struct Budget {
    cap: usize,
    used: AtomicUsize,
    overflow: AtomicU64,
    texts: Mutex<HashSet<Arc<str>>>,
}

impl Budget {
    /// Room for this many series.
    #[must_use]
    pub fn new(cap: usize) -> Arc<Self> {
        Arc::new(Self {
            cap,
            used: AtomicUsize::new(0),
            overflow: AtomicU64::new(0),
            texts: Mutex::default(),
        })
    }

    /// Series held now, without the overflow series.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How often a new series found no room.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }

    /// Takes room for a series; without any, it counts that.
    pub(super) fn take(&self) -> bool {
        let room = |used: usize| (used < self.cap).then_some(used + 1);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok();
        if !taken {
            self.overflow.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Gives the room of series back.
    pub(super) fn give_back(&self, series: usize) {
        self.used.fetch_sub(series, Ordering::Relaxed);
    }

    /// The values, sharing the texts that other series already hold: a route's name appears in many.
    fn shared(&self, values: &[&str]) -> Values {
        let texts = self.texts.lock();
        values.iter().map(|text| texts.get(*text).cloned().unwrap_or_else(|| Arc::from(*text))).collect()
    }

    /// Remembers the texts of a series that was made, for the next one to share.
    fn keep(&self, values: &Values) {
        self.texts.lock().extend(values.iter().cloned());
    }

    /// Drops the texts that no series uses any more.
    pub fn tidy(&self) {
        let mut texts = self.texts.lock();
        texts.retain(|text| Arc::strong_count(text) > 1);
        texts.shrink_to_fit();
    }
}

/// The series of one metric: label values to a handle.
pub struct Family<T> {
    budget: Arc<Budget>,
    width: usize,
    /// Called when a row goes: how many series go with it.
    leave: fn(&T) -> usize,
    // Ordered, so that the page reads the same each time.
    rows: Mutex<BTreeMap<Values, Row<T>>>,
    other: Mutex<Option<T>>,
}

struct Row<T> {
    handle: T,
    // Already found unused by the sweep before.
    marked: bool,
}

impl<T: Clone> Family<T> {
    /// A family whose series have this many labels.
    #[must_use]
    pub fn new(budget: Arc<Budget>, width: usize) -> Self {
        Self::of_rows(budget, width, |_| 1)
    }

    /// A family whose rows stand for several series each, which take room themselves; when a row goes, `leave` says
    /// for how many.
    #[must_use]
    pub fn of_rows(budget: Arc<Budget>, width: usize, leave: fn(&T) -> usize) -> Self {
        Self { budget, width, leave, rows: Mutex::default(), other: Mutex::default() }
    }

    /// The handle of the row of these label values, made when it is new.
    pub fn row(&self, values: &[&str], make: impl FnOnce() -> T) -> T {
        let shared = self.budget.shared(values);
        let mut rows = self.rows.lock();
        if let Some(row) = rows.get_mut(&shared) {
            row.marked = false;
            return row.handle.clone();
        }
        let handle = make();
        self.budget.keep(&shared);
        rows.insert(shared, Row { handle: handle.clone(), marked: false });
        handle
    }

    /// The handle of these label values, made when it is new; beyond the cap the handle whose labels are all `other`.
    pub fn series(&self, values: &[&str], make: impl FnOnce(&[&str]) -> T) -> T {
        let shared = self.budget.shared(values);
        let mut rows = self.rows.lock();
        if let Some(row) = rows.get_mut(&shared) {
            row.marked = false;
            return row.handle.clone();
        }
        if !self.budget.take() {
            drop(rows);
            let others = vec![OTHER; self.width];
            return self.other.lock().get_or_insert_with(|| make(&others)).clone();
        }
        let handle = make(values);
        self.budget.keep(&shared);
        rows.insert(shared, Row { handle: handle.clone(), marked: false });
        handle
    }

    /// Removes the series that are out of use in two sweeps in a row: the last numbers can still be collected.
    pub fn sweep(&self, in_use: impl Fn(&[Arc<str>], &T) -> bool) {
        self.remove_where(|values, row| {
            let unused = !in_use(values, &row.handle);
            let gone = unused && row.marked;
            row.marked = unused;
            gone
        });
    }

    /// Removes series at once.
    pub fn forget(&self, gone: impl Fn(&[Arc<str>]) -> bool) {
        self.remove_where(|values, _| gone(values));
    }

    /// Visits every series, the overflow series last.
    pub fn each(&self, mut visit: impl FnMut(&[&str], &T)) {
        // First taken out: requests that look for a row do not wait until all of a page is written.
        let rows: Vec<(Values, T)> = {
            let rows = self.rows.lock();
            rows.iter().map(|(values, row)| (values.clone(), row.handle.clone())).collect()
        };
        for (values, handle) in &rows {
            let values: Vec<&str> = values.iter().map(|value| &**value).collect();
            visit(&values, handle);
        }
        let other = self.other.lock().clone();
        if let Some(handle) = &other {
            visit(&vec![OTHER; self.width], handle);
        }
    }

    /// Whether there is no series at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.lock().is_empty() && self.other.lock().is_none()
    }

    fn remove_where(&self, mut gone: impl FnMut(&[Arc<str>], &mut Row<T>) -> bool) {
        let mut left = 0;
        self.rows.lock().retain(|values, row| {
            let gone = gone(values, row);
            if gone {
                left += (self.leave)(&row.handle);
            }
            !gone
        });
        self.budget.give_back(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Cells = Family<Arc<AtomicU64>>;

    fn cells(cap: usize) -> (Arc<Budget>, Cells) {
        let budget = Budget::new(cap);
        (budget.clone(), Family::new(budget, 2))
    }

    fn listed(family: &Cells) -> Vec<String> {
        let mut all = Vec::new();
        family
            .each(|values, cell| all.push(format!("{}={}", values.join(","), cell.load(Ordering::Relaxed))));
        all
    }

    fn hit(family: &Cells, values: [&str; 2]) {
        family.series(&values, |_| Arc::default()).fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn the_same_values_give_the_same_handle() {
        let (budget, family) = cells(10);
        hit(&family, ["a", "b"]);
        hit(&family, ["a", "b"]);
        hit(&family, ["ab", ""]);
        assert_eq!(listed(&family), ["a,b=2", "ab,=1"]);
        assert_eq!(budget.used(), 2);
    }

    #[test]
    fn beyond_the_cap_new_series_are_counted_as_other_and_known_ones_go_on() {
        let (budget, family) = cells(1);
        for values in [["a", "b"], ["c", "d"], ["e", "f"], ["a", "b"]] {
            hit(&family, values);
        }
        assert_eq!(listed(&family), ["a,b=2", "other,other=2"]);
        assert_eq!((budget.used(), budget.overflow()), (1, 2));
    }

    #[test]
    fn the_cap_holds_over_all_families() {
        let (budget, one) = cells(1);
        let two: Cells = Family::new(budget.clone(), 2);
        hit(&one, ["a", "b"]);
        hit(&two, ["a", "b"]);
        assert_eq!(listed(&two), ["other,other=1"]);
    }

    #[test]
    fn a_series_out_of_use_survives_one_sweep_but_not_two() {
        let (budget, family) = cells(1);
        hit(&family, ["a", "b"]);
        family.sweep(|_, _| false);
        assert_eq!(listed(&family), ["a,b=1"]);
        family.sweep(|_, _| false);
        assert!(listed(&family).is_empty());
        hit(&family, ["c", "d"]);
        assert_eq!(listed(&family), ["c,d=1"], "the room is free again");
        assert_eq!(budget.overflow(), 0);
    }

    #[test]
    fn a_series_back_in_use_starts_its_grace_anew() {
        let (_, family) = cells(1);
        hit(&family, ["a", "b"]);
        family.sweep(|_, _| false);
        family.sweep(|_, _| true);
        family.sweep(|_, _| false);
        assert_eq!(listed(&family), ["a,b=1"]);
    }

    #[test]
    fn who_looks_for_a_series_does_not_wait_for_those_that_visit_all() {
        let (_, family) = cells(1);
        hit(&family, ["a", "b"]);
        hit(&family, ["c", "d"]);
        let mut visited = 0;
        family.each(|_, _| {
            assert!(family.rows.try_lock().is_some() && family.other.try_lock().is_some());
            visited += 1;
        });
        assert_eq!(visited, 2);
    }

    #[test]
    fn texts_of_removed_series_are_dropped() {
        let (budget, family) = cells(10);
        hit(&family, ["a", "b"]);
        hit(&family, ["a", "c"]);
        family.forget(|values| &*values[1] == "b");
        budget.tidy();
        let mut texts: Vec<String> = budget.texts.lock().iter().map(ToString::to_string).collect();
        texts.sort();
        assert_eq!(texts, ["a", "c"]);
    }
}
