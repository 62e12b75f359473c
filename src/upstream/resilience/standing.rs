//! Where a backend stands by what became of its requests: in, out for a while, or warming up; or not before it was probed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::outlier::Outcome;

/// How long a backend is out after it could not be connected to; twice as long each further time, up to the longest.
const COOLING: Duration = Duration::from_secs(1);
const LONGEST_COOLING: Duration = Duration::from_secs(10);
/// One request at a time tries a backend that was out; who says nothing for as long is not waited for.
const TRIAL: Duration = Duration::from_secs(60);
/// The least share that a backend gets that begins to warm up.
const COLDEST: f64 = 0.1;

const OUT: u64 = 1 << 62;
const WARMING: u64 = 2 << 62;
/// Out since it could not be connected to.
const COOLS: u64 = OUT | WARMING;
const TIME: u64 = (1 << 62) - 1;
/// It waits for its first probe: none of the above, as all of those have their flag.
const UNPROBED: u64 = 1;

/// Where a backend stands. Requests read one atomic, which is 0 for one that is in.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Standing {
    /// What it is, and until or since when, in milliseconds.
    word: AtomicU64,
    /// Failures in a row.
    pub(super) failures: AtomicU32,
    /// How often it was put out for what it answered.
    pub(in crate::upstream) ejections: AtomicU64,
    pub(super) record: Mutex<Record>,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    /// Times it was put out without being well in between: for what it answered, and as it could not be connected to.
    ejected: u32,
    cooled: u32,
    /// How long the last time was.
    last: Duration,
    reason: String,
    since: Option<SystemTime>,
    /// When it came back.
    back: Option<Instant>,
    /// What is counted now.
    pub(super) window: Window,
}

/// Requests of a while.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    begun: Option<Instant>,
    pub(super) requests: u32,
    pub(super) failed: u32,
    /// How long answers took, and how many of which that is known.
    took: Duration,
    timed: u32,
}

/// Whether a backend gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum Turn {
    /// As any other.
    Yes,
    /// As the one that finds out whether it is well again.
    Trial,
    /// Not this one: it warms up, or was not probed.
    NotYet,
    /// It is out.
    No,
}

/// A standing, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::upstream) struct Shown {
    pub(in crate::upstream) state: &'static str,
    pub(in crate::upstream) reason: String,
    pub(in crate::upstream) since: Option<SystemTime>,
}

impl Window {
    /// Counts a request, in a new window if this one lasts for as long.
    pub(super) fn count(&mut self, outcome: Outcome, lasts: Duration, now: Instant) {
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= lasts) {
            *self = Self { begun: Some(now), ..Self::default() };
        }
        // One that broke off was counted with its head, unless that was in another window.
        if !matches!(outcome, Outcome::Broken(_)) || self.failed == self.requests {
            self.requests += 1;
        }
        match outcome {
            Outcome::Failed | Outcome::Broken(_) => self.failed += 1,
            Outcome::Answered(None) => {}
            Outcome::Answered(Some(took)) => {
                self.took += took;
                self.timed += 1;
            }
        }
    }

    /// The mean of how long answers took, if any did.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.took.checked_div(self.timed)
    }
}

impl Standing {
    /// Whether it is in, and nothing else is to be said.
    pub(in crate::upstream) fn is_in(&self) -> bool {
        self.word.load(Ordering::Relaxed) == 0
    }

    /// Whether it is out, for its time is not over or somebody tries.
    pub(in crate::upstream) fn is_out(&self) -> bool {
        self.word.load(Ordering::Relaxed) & OUT != 0
    }

    /// Whether it is out for what became of its requests, which not being connected to is none of.
    pub(in crate::upstream) fn is_ejected(&self) -> bool {
        self.word.load(Ordering::Relaxed) & COOLS == OUT
    }

    /// Whether one that was chosen gets the request; `random` is from 0 to 1.
    pub(in crate::upstream) fn turn(&self, now: Instant, warm_up: Option<Duration>, random: f64) -> Turn {
        let word = self.word.load(Ordering::Relaxed);
        let (time, now) = (word & TIME, millis(now));
        if word == 0 {
            return Turn::Yes;
        }
        if word == UNPROBED {
            return Turn::NotYet;
        }
        if word & OUT != 0 {
            let next = word & !TIME | waited_for_until(now);
            let is_mine =
                || self.word.compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            return if now >= time && is_mine() { Turn::Trial } else { Turn::No };
        }
        let whole = warm_up.map_or(0, as_millis);
        let passed = now.saturating_sub(time);
        if passed >= whole {
            let _ = self.word.compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed);
            return Turn::Yes;
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody warms up for 2^52 milliseconds")]
        let share = (passed as f64 / whole as f64).max(COLDEST);
        if random < share { Turn::Yes } else { Turn::NotYet }
    }

    /// It could not be connected to, or a trial of that found it so again; true if it was in before.
    pub(in crate::upstream) fn cool(&self, reason: &str, now: Instant) -> bool {
        let doubled = |times: u32| COOLING.saturating_mul(1 << times.min(8)).min(LONGEST_COOLING);
        self.leave(COOLS, reason.to_owned(), now, doubled)
    }

    /// Whether it is out only since it could not be connected to: an answer shows that it can.
    pub(in crate::upstream) fn is_cooling(&self) -> bool {
        self.word.load(Ordering::Relaxed) & COOLS == COOLS
    }

    /// Puts it out for a time that goes by how often that was; true if it was in before.
    pub(super) fn put_out(&self, reason: String, now: Instant, lasts: impl Fn(u32) -> Duration) -> bool {
        self.leave(OUT, reason, now, lasts)
    }

    fn leave(&self, how: u64, reason: String, now: Instant, lasts: impl Fn(u32) -> Duration) -> bool {
        let record = &mut *self.record.lock();
        let (was_out, was_ejected) = (self.is_out(), self.is_ejected());
        // One that was well for as long as it was out begins anew.
        let well = |back: Instant| now.saturating_duration_since(back) >= record.last;
        if !was_out && record.back.is_none_or(well) {
            (record.ejected, record.cooled) = (0, 0);
        }
        // Each has its own times: many short ones make no long one.
        let times = if how == COOLS { &mut record.cooled } else { &mut record.ejected };
        record.last = lasts(*times);
        *times = times.saturating_add(1);
        record.reason = reason;
        if !was_out {
            record.since = Some(SystemTime::now());
        }
        if how == OUT && !was_ejected {
            self.ejections.fetch_add(1, Ordering::Relaxed);
        }
        record.window = Window::default();
        self.failures.store(0, Ordering::Relaxed);
        self.word.store(how | (millis(now) + as_millis(record.last)), Ordering::Relaxed);
        !was_out
    }

    /// A trial was answered: it is in, or warms up. True if it was out before.
    pub(in crate::upstream) fn back(&self, now: Instant, warm_up: Option<Duration>) -> bool {
        let mut record = self.record.lock();
        if !self.is_out() {
            return false;
        }
        (record.back, record.since) = (Some(now), Some(SystemTime::now()));
        "a request was answered".clone_into(&mut record.reason);
        let word = warm_up.map_or(0, |_| WARMING | millis(now));
        self.word.store(word, Ordering::Relaxed);
        true
    }

    /// It is known to be well by other means: it begins to warm up, if it does that.
    pub(in crate::upstream) fn warm(&self, now: Instant) {
        let _ = self.word.compare_exchange(0, WARMING | millis(now), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// It is new, and others can do without it until it was probed.
    pub(in crate::upstream) fn await_probe(&self) {
        let _ = self.word.compare_exchange(0, UNPROBED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether it was to be probed first, and was not.
    pub(in crate::upstream) fn awaits_probe(&self) -> bool {
        self.word.load(Ordering::Relaxed) == UNPROBED
    }

    /// It was probed: it is in, or warms up.
    pub(in crate::upstream) fn probed(&self, now: Instant, warms_up: bool) {
        let word = if warms_up { WARMING | millis(now) } else { 0 };
        let _ = self.word.compare_exchange(UNPROBED, word, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The trial that began then was given up: the next request may be one, unless another one is or was since.
    pub(in crate::upstream) fn give_back(&self, begun: Instant, now: Instant) {
        let word = self.word.load(Ordering::Relaxed);
        if word & OUT != 0 && word & TIME == waited_for_until(millis(begun)) {
            let next = word & !TIME | millis(now);
            let _ = self.word.compare_exchange(word, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Where it stands, and why.
    pub(in crate::upstream) fn shown(&self) -> Shown {
        let record = self.record.lock();
        let word = self.word.load(Ordering::Relaxed);
        let state = match word {
            0 => "in",
            UNPROBED => "unprobed",
            word if word & COOLS == COOLS => "unreachable",
            word if word & OUT != 0 => "ejected",
            _ => "warming",
        };
        Shown { state, reason: record.reason.clone(), since: record.since }
    }
}

fn millis(now: Instant) -> u64 {
    static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);
    as_millis(now.saturating_duration_since(*BASE))
}

/// Until when a trial is waited for that began then.
fn waited_for_until(begun: u64) -> u64 {
    begun + as_millis(TRIAL)
}

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(TIME).min(TIME >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        millis(Instant::now());
        Instant::now() + Duration::from_secs(1)
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_cannot_be_connected_to_is_tried_by_one_request_after_a_while() {
        let (standing, now) = (Standing::default(), start());
        assert!(standing.is_in());
        assert!(standing.cool("refused", now));
        let turn = |seconds| standing.turn(after(now, seconds), None, 0.0);
        assert_eq!([turn(0), turn(1), turn(1), turn(9)], [Turn::No, Turn::Trial, Turn::No, Turn::No]);
        assert!(!standing.cool("refused", after(now, 2)), "it was out already");
        assert_eq!([turn(3), turn(4)], [Turn::No, Turn::Trial], "twice as long");
        assert_eq!(standing.shown().state, "unreachable");
        assert!(standing.back(after(now, 4), None));
        assert_eq!((standing.shown().state, standing.is_in()), ("in", true));
        assert_eq!(standing.ejections.load(Ordering::Relaxed), 0, "it was only down");
    }

    #[test]
    fn the_time_grows_unless_it_was_well_in_between() {
        let (standing, now) = (Standing::default(), start());
        let lasts = |times: u32| Duration::from_secs(10) * (times + 1);
        let put_out = |seconds| standing.put_out(String::new(), after(now, seconds), lasts);
        let out_at = |seconds| standing.turn(after(now, seconds), None, 0.0) == Turn::No;
        put_out(0);
        assert!(out_at(9));
        standing.back(after(now, 10), None);
        put_out(15);
        assert!(out_at(34), "20 s");
        standing.back(after(now, 35), None);
        put_out(55);
        assert!(out_at(64) && !out_at(65), "10 s again");
        assert_eq!(standing.ejections.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn one_that_is_ejected_and_then_down_is_not_ejected_any_more() {
        let (standing, now) = (Standing::default(), start());
        standing.put_out(String::new(), now, |_| Duration::from_secs(10));
        assert!(standing.is_out() && standing.is_ejected());
        assert_eq!(standing.shown().state, "ejected");
        standing.cool("refused", after(now, 10));
        assert!(standing.is_out() && !standing.is_ejected() && standing.is_cooling());
        assert_eq!(standing.shown().state, "unreachable");
        standing.put_out(String::new(), after(now, 11), |_| Duration::from_secs(10));
        standing.put_out(String::new(), after(now, 12), |_| Duration::from_secs(10));
        assert!(standing.is_ejected());
        assert_eq!(standing.ejections.load(Ordering::Relaxed), 2, "a trial that fails is no other ejection");
    }

    #[test]
    fn a_trial_that_is_given_up_is_the_next_ones() {
        let (standing, now) = (Standing::default(), start());
        standing.cool("refused", now);
        assert_eq!(standing.turn(after(now, 1), None, 0.0), Turn::Trial);
        standing.give_back(after(now, 1), after(now, 1));
        assert_eq!(standing.turn(after(now, 1), None, 0.0), Turn::Trial);
    }

    #[test]
    fn a_trial_that_is_given_up_late_ends_nothing_that_began_since() {
        let (standing, now) = (Standing::default(), start());
        let put_out = |seconds| {
            standing.put_out(String::new(), after(now, seconds), |_| Duration::from_secs(60));
        };
        let turn = |seconds| standing.turn(after(now, seconds), None, 0.0);
        put_out(0);
        assert_eq!([turn(60), turn(119), turn(120)], [Turn::Trial, Turn::No, Turn::Trial], "60 s are over");
        standing.give_back(after(now, 60), after(now, 121));
        assert_eq!(turn(121), Turn::No, "the other trial goes on");
        // It fails.
        put_out(122);
        standing.give_back(after(now, 60), after(now, 123));
        standing.give_back(after(now, 120), after(now, 123));
        assert_eq!([turn(123), turn(181), turn(182)], [Turn::No, Turn::No, Turn::Trial]);
        // It was well in between.
        standing.back(after(now, 183), None);
        put_out(184);
        standing.give_back(after(now, 182), after(now, 185));
        assert_eq!(turn(185), Turn::No);
    }

    #[test]
    fn one_that_is_new_may_have_to_wait_for_its_first_probe() {
        let (standing, now, warm_up) = (Standing::default(), start(), Some(Duration::from_secs(10)));
        standing.await_probe();
        standing.warm(now);
        assert_eq!(standing.turn(after(now, 60), warm_up, 0.0), Turn::NotYet);
        assert!(!standing.is_in() && !standing.is_out() && standing.awaits_probe());
        assert_eq!(standing.shown().state, "unprobed");
        standing.probed(now, true);
        assert_eq!((standing.shown().state, standing.awaits_probe()), ("warming", false));
        let standing = Standing::default();
        standing.probed(now, true);
        assert!(standing.is_in(), "it did not wait");
        standing.await_probe();
        standing.probed(now, false);
        assert!(standing.is_in());
        // It got a request all the same, as there was no other.
        standing.await_probe();
        standing.cool("refused", now);
        standing.probed(now, false);
        assert!(standing.is_out(), "that is for a trial to find out");
    }

    #[test]
    fn one_that_comes_back_gets_its_share_little_by_little() {
        let (standing, now, warm_up) = (Standing::default(), start(), Some(Duration::from_secs(10)));
        standing.cool("refused", now);
        standing.back(now, warm_up);
        assert_eq!(standing.shown().state, "warming");
        let share = |seconds| {
            let turns = (0..100).map(|n| standing.turn(after(now, seconds), warm_up, f64::from(n) / 100.0));
            turns.filter(|turn| *turn == Turn::Yes).count()
        };
        assert_eq!([share(0), share(5), share(9), share(10)], [10, 50, 90, 100]);
        assert!(standing.is_in());
    }
}
