//! Which backends of an upstream do worse than they should, and are put out for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::standing::Window;
use crate::config::outlier::Outlier;
use crate::upstream::stats::Stats;

/// Judges the backends of an upstream by what becomes of requests.
#[derive(Debug)]
pub(in crate::upstream) struct Outliers {
    rules: Option<Outlier>,
    warm_up: Option<Duration>,
    upstream: Arc<str>,
    /// What logs call them, and their numbers.
    pool: Box<[(Box<str>, Arc<Stats>)]>,
    /// One is put out at a time, so that they are not too many.
    gate: Mutex<()>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum Outcome {
    /// The head of its answer is here, after this time, if that says anything of the backend.
    Answered(Option<Duration>),
    /// The answer broke off, before whose head there were so many failures in a row.
    Broken(u32),
    /// There is none, or one with a status of 500 or more.
    Failed,
}

impl Outliers {
    pub(in crate::upstream) fn new(
        rules: Option<Outlier>,
        warm_up: Option<Duration>,
        upstream: Arc<str>,
        pool: Box<[(Box<str>, Arc<Stats>)]>,
    ) -> Self {
        Self { rules, warm_up, upstream, pool, gate: Mutex::new(()) }
    }

    /// How long a backend that comes back takes to get its whole share.
    pub(in crate::upstream) const fn warm_up(&self) -> Option<Duration> {
        self.warm_up
    }

    /// Whether so few of all can be used that those who are out are used too.
    pub(in crate::upstream) fn panics(&self, usable: usize, all: usize) -> bool {
        let share = self.rules.as_ref().map_or(0, |rules| rules.panic_threshold.hundredths());
        usable * 10_000 < all * usize::from(share)
    }

    /// The backend at this place could not be connected to, maybe in the trial of one that is out.
    pub(in crate::upstream) fn unreachable(&self, at: usize, trial: bool, now: Instant) {
        let Some((backend, stats)) = self.pool.get(at).filter(|_| self.pool.len() > 1) else { return };
        // Of all who found it so at the same time, one is enough: the others say nothing new.
        if stats.standing.is_out() && !trial {
            return;
        }
        if stats.standing.cool("it cannot be connected to", now) {
            let upstream = &*self.upstream;
            log::warn!(upstream, backend; "a backend cannot be connected to; others are preferred");
        }
    }

    /// What became of a request to the backend at this place; it may have been the trial of one that is out. Gives how
    /// many failures in a row there were before.
    pub(in crate::upstream) fn told(&self, at: usize, outcome: Outcome, trial: bool, now: Instant) -> u32 {
        let Some((backend, stats)) = self.pool.get(at) else { return 0 };
        let standing = &stats.standing;
        if standing.is_out() {
            // Where too many are out, all get requests; and the only one there is gets them in any case.
            let counts = trial || standing.is_cooling() || self.pool.len() == 1;
            match outcome {
                Outcome::Answered(_) if counts && standing.back(now, self.warm_up) => {
                    log::info!(upstream = &*self.upstream, backend; "a backend is in use again");
                }
                // It may be starting: one bad answer ejects nobody.
                Outcome::Failed if trial && standing.is_cooling() => {
                    standing.cool("a trial failed", now);
                }
                Outcome::Failed if trial => self.eject(at, "a trial failed".to_owned(), now),
                // It began before.
                _ => {}
            }
            return 0;
        }
        let Some(rules) = &self.rules else { return 0 };
        let before = standing.failures.load(Ordering::Relaxed);
        let reason = match outcome {
            Outcome::Answered(_) => {
                if before != 0 {
                    standing.failures.store(0, Ordering::Relaxed);
                }
                None
            }
            // Its head ended the row, and should not have.
            Outcome::Broken(row) => self.in_a_row(rules, stats, row),
            Outcome::Failed => self.in_a_row(rules, stats, 0),
        };
        let reason = reason.or_else(|| self.by_window(rules, at, outcome, now));
        if let Some(reason) = reason {
            self.eject(at, reason, now);
        }
        before
    }

    fn in_a_row(&self, rules: &Outlier, stats: &Stats, least: u32) -> Option<String> {
        stats.standing.failures.fetch_max(least, Ordering::Relaxed);
        let row = stats.standing.failures.fetch_add(1, Ordering::Relaxed) + 1;
        (row >= rules.consecutive_failures.get()).then(|| format!("{row} failures in a row"))
    }

    /// What ratio and latency of this window say.
    fn by_window(&self, rules: &Outlier, at: usize, outcome: Outcome, now: Instant) -> Option<String> {
        if rules.error_ratio.is_none() && rules.slow_factor.is_none() {
            return None;
        }
        let Window { requests, failed, .. } = {
            let mut record = self.pool[at].1.standing.record.lock();
            record.window.count(outcome, rules.window.get(), now);
            record.window
        };
        if requests < rules.min_requests.get() {
            return None;
        }
        let reached =
            |ratio: u16| failed > 0 && u64::from(failed) * 10_000 >= u64::from(requests) * u64::from(ratio);
        if rules.error_ratio.is_some_and(|ratio| reached(ratio.hundredths())) {
            return Some(format!("{failed} of {requests} requests failed"));
        }
        let factor = rules.slow_factor?.get();
        // Not with each request: it looks at all backends.
        let is_due = requests % rules.min_requests.get() == 0;
        let own = self.latency(at).filter(|_| is_due)?;
        let median = self.median_without(at)?;
        let is_slow = own >= median.saturating_mul(factor).max(Duration::from_millis(1));
        is_slow.then(|| format!("a latency of {own:.0?}, where the median of the others is {median:.0?}"))
    }

    /// The mean latency of what was answered in this window.
    fn latency(&self, at: usize) -> Option<Duration> {
        self.pool[at].1.standing.record.lock().window.latency()
    }

    /// The median latency of the others that are in.
    fn median_without(&self, at: usize) -> Option<Duration> {
        let others =
            (0..self.pool.len()).filter(|other| *other != at && self.pool[*other].1.standing.is_in());
        let mut known: Vec<Duration> = others.filter_map(|other| self.latency(other)).collect();
        known.sort_unstable();
        known.get(known.len() / 2).copied()
    }

    /// Puts a backend out, if not too many are.
    fn eject(&self, at: usize, reason: String, now: Instant) {
        let _gate = self.gate.lock();
        // The only one there is goes on, however it does.
        let Some((backend, stats)) = self.pool.get(at).filter(|_| self.pool.len() > 1) else { return };
        let was_out = stats.standing.is_out();
        let Some(rules) = &self.rules else {
            stats.standing.cool(&reason, now);
            return;
        };
        let out = self.pool.iter().filter(|(_, stats)| stats.standing.is_ejected()).count();
        let most = self.pool.len() * usize::from(rules.max_ejected.hundredths()) / 10_000;
        let most = if rules.max_ejected.hundredths() == 0 { 0 } else { most.max(1) };
        if !was_out && out >= most {
            return;
        }
        let lasts = |times: u32| {
            let grown = rules.base_ejection.get().saturating_mul(times.saturating_add(1));
            grown.min(rules.max_ejection.get())
        };
        if stats.standing.put_out(reason.clone(), now, lasts) {
            log::warn!(upstream = &*self.upstream, backend, reason; "a backend is ejected; it gets no requests");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::upstream::resilience::standing::Turn;

    struct Pool {
        outliers: Outliers,
        stats: Vec<Arc<Stats>>,
        now: Instant,
    }

    fn pool(rules: Value, size: usize) -> Pool {
        let stats: Vec<Arc<Stats>> = std::iter::repeat_with(Arc::default).take(size).collect();
        let named = stats.iter().map(|stats| ("b".into(), Arc::clone(stats))).collect();
        let rules = serde_json::from_value(rules).unwrap();
        let outliers = Outliers::new(Some(rules), None, "u".into(), named);
        Pool { outliers, stats, now: Instant::now() + Duration::from_secs(1) }
    }

    impl Pool {
        /// `F` fails, `A` is answered.
        fn play(&self, at: usize, told: &str) -> bool {
            for word in told.chars() {
                let outcome = if word == 'F' { Outcome::Failed } else { Outcome::Answered(None) };
                self.outliers.told(at, outcome, false, self.now);
            }
            self.stats[at].standing.is_out()
        }

        /// Answered after so many milliseconds each.
        fn answer(&self, at: usize, each: &[u64]) -> bool {
            for took in each {
                let took = Duration::from_millis(*took);
                self.outliers.told(at, Outcome::Answered(Some(took)), false, self.now);
            }
            self.stats[at].standing.is_out()
        }

        fn turn(&self, at: usize, seconds: u64) -> Turn {
            self.stats[at].standing.turn(self.now + Duration::from_secs(seconds), None, 0.0)
        }
    }

    #[test]
    fn failures_in_a_row_eject_and_an_answer_between_begins_anew() {
        let pool = pool(json!({"consecutive_failures": 3}), 3);
        assert!(!pool.play(0, "FFAFFAFF"));
        assert!(pool.play(0, "F"));
        assert_eq!(pool.stats[0].standing.shown().reason, "3 failures in a row");
        assert_eq!([pool.turn(0, 29), pool.turn(0, 30)], [Turn::No, Turn::Trial]);
    }

    #[test]
    fn no_more_are_ejected_than_may_be_and_one_always() {
        let pool = pool(json!({"consecutive_failures": 1, "max_ejected": "50%"}), 5);
        let out = (0..5).filter(|at| pool.play(*at, "F")).count();
        assert_eq!(out, 2);
        let small = self::pool(json!({"consecutive_failures": 1, "max_ejected": "10%"}), 2);
        assert_eq!((0..2).filter(|at| small.play(*at, "F")).count(), 1);
        let none = self::pool(json!({"consecutive_failures": 1, "max_ejected": "0%"}), 2);
        assert!(!none.play(0, "F"));
    }

    #[test]
    fn a_share_of_failures_ejects_once_there_are_enough_requests() {
        let pool = pool(json!({"consecutive_failures": 99, "error_ratio": "50%", "min_requests": 6}), 3);
        assert!(!pool.play(0, "FAFAF"));
        assert!(pool.play(0, "A"));
        assert_eq!(pool.stats[0].standing.shown().reason, "3 of 6 requests failed");
    }

    #[test]
    fn a_latency_far_above_the_others_ejects() {
        let pool = pool(json!({"slow_factor": 3, "min_requests": 2}), 4);
        for (at, took) in [(1, 100), (2, 100), (3, 200)] {
            assert!(!pool.answer(at, &[took, took]));
        }
        assert!(!pool.answer(0, &[310]));
        assert!(pool.answer(0, &[310]), "310 ms, and the median of the others is 100");
    }

    #[test]
    fn one_slow_answer_or_failure_among_many_is_no_latency() {
        let pool = pool(json!({"slow_factor": 5, "min_requests": 20}), 3);
        for at in [1, 2] {
            pool.answer(at, &[10; 20]);
        }
        pool.play(0, "F");
        assert!(!pool.answer(0, &[[10; 10].as_slice(), &[700], &[10; 8]].concat()), "a mean of 46 ms");
        assert!(pool.answer(0, &[90; 40]));
    }

    #[test]
    fn what_was_counted_in_a_window_that_is_over_says_nothing() {
        let rules =
            json!({"consecutive_failures": 99, "error_ratio": "50%", "min_requests": 4, "window": "10s"});
        let mut pool = pool(rules, 3);
        pool.play(0, "FFF");
        pool.now += Duration::from_secs(10);
        assert!(!pool.play(0, "FFF"));
        assert!(pool.play(0, "F"));
    }

    #[test]
    fn a_trial_that_fails_is_out_for_longer_and_one_that_is_answered_is_back() {
        let pool = pool(json!({"consecutive_failures": 1, "base_ejection": "10s"}), 3);
        pool.play(0, "F");
        let later = pool.now + Duration::from_secs(10);
        assert_eq!(pool.turn(0, 10), Turn::Trial);
        pool.outliers.told(0, Outcome::Answered(None), false, later);
        assert!(pool.stats[0].standing.is_out(), "an answer to what began before says nothing");
        pool.outliers.told(0, Outcome::Failed, true, later);
        assert_eq!([pool.turn(0, 29), pool.turn(0, 30)], [Turn::No, Turn::Trial], "20 s");
        pool.outliers.told(0, Outcome::Answered(None), true, pool.now + Duration::from_secs(30));
        assert!(pool.stats[0].standing.is_in());
    }

    #[test]
    fn any_answer_shows_that_a_backend_can_be_connected_to() {
        let pool = pool(json!({"consecutive_failures": 1, "base_ejection": "10s"}), 3);
        pool.outliers.unreachable(0, false, pool.now);
        pool.outliers.unreachable(0, false, pool.now);
        assert!(pool.play(0, "F"));
        assert_eq!([pool.turn(0, 0), pool.turn(0, 1)], [Turn::No, Turn::Trial], "once is enough");
        assert!(!pool.play(0, "A"));
        assert!(pool.play(0, "F"), "it is ejected for what it does");
        assert!(pool.play(0, "A"));
    }

    #[test]
    fn one_that_comes_back_with_a_bad_answer_is_tried_as_before_and_not_ejected() {
        let rules = json!({"consecutive_failures": 5, "max_ejected": "0%"});
        let pool = pool(rules, 3);
        let mut now = pool.now;
        pool.outliers.unreachable(0, false, now);
        for _ in 0..10 {
            now += Duration::from_secs(10);
            pool.outliers.unreachable(0, true, now);
        }
        pool.outliers.told(0, Outcome::Failed, true, now);
        let turn = |seconds| pool.stats[0].standing.turn(now + Duration::from_secs(seconds), None, 0.0);
        assert_eq!([turn(9), turn(10)], [Turn::No, Turn::Trial]);
        assert!(pool.stats[0].standing.is_cooling(), "it is not ejected");
    }

    #[test]
    fn how_often_one_could_not_be_connected_to_makes_no_ejection_longer() {
        let pool = pool(json!({"consecutive_failures": 1, "base_ejection": "30s"}), 3);
        pool.outliers.unreachable(0, false, pool.now);
        for _ in 0..5 {
            pool.outliers.unreachable(0, true, pool.now);
        }
        assert!(!pool.play(0, "A"));
        assert!(pool.play(0, "F"));
        assert_eq!([pool.turn(0, 29), pool.turn(0, 30)], [Turn::No, Turn::Trial]);
    }

    #[test]
    fn one_that_is_only_down_is_none_of_those_that_may_be_ejected() {
        let pool = pool(json!({"consecutive_failures": 1, "max_ejected": "34%"}), 3);
        pool.outliers.unreachable(1, false, pool.now);
        assert!(pool.play(0, "F"));
        assert!(!pool.play(2, "F"), "one of three may be");
        let told = |at: usize| {
            let standing = &pool.stats[at].standing;
            (standing.is_ejected(), standing.ejections.load(Ordering::Relaxed))
        };
        assert_eq!([told(0), told(1), told(2)], [(true, 1), (false, 0), (false, 0)]);
    }

    #[test]
    fn the_only_one_that_is_left_is_in_again_with_its_first_answer() {
        let pool = pool(json!({"consecutive_failures": 1}), 2);
        assert!(pool.play(0, "F"));
        let named = [("b".into(), Arc::clone(&pool.stats[0]))];
        let rules = serde_json::from_value(json!({"consecutive_failures": 1})).unwrap();
        let left = Outliers::new(Some(rules), None, "u".into(), Box::new(named));
        left.told(0, Outcome::Answered(None), false, pool.now);
        assert!(pool.stats[0].standing.is_in());
    }

    #[test]
    fn with_too_few_usable_ones_all_are_used() {
        let pool = pool(json!({"panic_threshold": "50%"}), 4);
        assert_eq!([0, 1, 2, 4].map(|usable| pool.outliers.panics(usable, 4)), [true, true, false, false]);
    }
}
