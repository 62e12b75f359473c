//! How many requests an upstream takes at once, found out by how long it takes to answer.
//!
//! The gradient of Envoy's adaptive concurrency and of Netflix's concurrency-limits (`Gradient2`): at the end of each
//! window
//!
//! ```text
//! gradient = base * (1 + tolerance) / median         at least 0.5, at most 1
//! limit    = limit * gradient + sqrt(limit)           at least `min`, at most `in_flight`
//! ```
//!
//! `median` is that of the window, and `base` the lowest median since the last calibration. As long as answers are about
//! as quick as they can be, the limit grows by its root; once requests queue up at the upstream, the gradient takes away
//! as much as is too much. It does not grow while fewer than half of the places are taken, which says nothing.
//!
//! What is quick may change: now and then the limit is halved, so that nothing queues, and the next median is the new
//! `base`. (Envoy goes down to three requests for that, which those behind a busy upstream would notice.)

use std::time::{Duration, Instant};

use crate::config::concurrency::Adaptive;

/// Fewer answers do not end a window.
const ENOUGH: usize = 10;
/// More are not looked at.
const MOST: usize = 500;

/// Finds the limit.
#[derive(Debug)]
pub(super) struct Gradient {
    written: Adaptive,
    most: f64,
    limit: f64,
    /// Seconds.
    base: Option<f64>,
    window: Vec<f64>,
    since: Instant,
    /// The most that were under way in this window.
    busiest: usize,
    calibrated: Instant,
    phase: Phase,
}

/// What a window is for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Usual,
    /// The limit was halved: what was under way before is on its way out. It was this.
    Draining(f64),
    /// The median is the new base; the limit was this.
    Measuring(f64),
}

impl Gradient {
    /// Begins with the least, and grows.
    pub(super) fn new(written: Adaptive, most: u32, now: Instant) -> Self {
        let most = f64::from(most);
        Self {
            limit: f64::from(written.min.get()).min(most),
            written,
            most,
            base: None,
            window: Vec::new(),
            since: now,
            busiest: 0,
            calibrated: now,
            phase: Phase::Usual,
        }
    }

    /// The limit now.
    pub(super) fn limit(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to `in_flight`")]
        let limit = self.limit as usize;
        limit.max(1)
    }

    /// Whether this is longer than the quickest that is known.
    pub(super) fn is_slow(&self, took: Duration) -> bool {
        self.base.is_some_and(|base| took.as_secs_f64() > base)
    }

    /// Notes how long an answer took, with so many requests under way; true if the limit may be another now.
    pub(super) fn note(&mut self, took: Duration, in_flight: usize, now: Instant) -> bool {
        self.busiest = self.busiest.max(in_flight);
        if self.window.len() < MOST {
            self.window.push(took.as_secs_f64());
        }
        let over = now.saturating_duration_since(self.since) >= self.written.window.get();
        if !over || self.window.len() < ENOUGH {
            return false;
        }
        self.end(now);
        true
    }

    fn end(&mut self, now: Instant) {
        let middle = self.window.len() / 2;
        let (_, median, _) = self.window.select_nth_unstable_by(middle, f64::total_cmp);
        let median = median.max(1e-6);
        match self.phase {
            Phase::Draining(before) => self.phase = Phase::Measuring(before),
            Phase::Measuring(before) => {
                (self.base, self.calibrated, self.phase) = (Some(median), now, Phase::Usual);
                self.limit = before;
            }
            Phase::Usual => self.follow(median, now),
        }
        (self.since, self.busiest) = (now, 0);
        self.window.clear();
    }

    fn follow(&mut self, median: f64, now: Instant) {
        let base = self.base.map_or(median, |base| base.min(median));
        self.base = Some(base);
        let tolerance = f64::from(self.written.tolerance.hundredths()) / 10_000.0;
        let gradient = (base * (1.0 + tolerance) / median).clamp(0.5, 1.0);
        let new = self.limit * gradient + self.limit.sqrt();
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 requests under way")]
        let idle = (self.busiest as f64) < self.limit / 2.0;
        if new < self.limit || !idle {
            self.limit = self.clamped(new);
        }
        if now.saturating_duration_since(self.calibrated) >= self.written.calibrate.get() {
            self.phase = Phase::Draining(self.limit);
            self.limit = self.clamped(self.limit / 2.0);
        }
    }

    fn clamped(&self, limit: f64) -> f64 {
        limit.max(f64::from(self.written.min.get())).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A server that works on so many requests at full speed, and on more of them the slower (processor sharing).
    #[derive(Debug, Clone, Copy)]
    struct Server {
        capacity: f64,
        seconds: f64,
    }

    impl Server {
        fn takes(self, in_flight: f64) -> f64 {
            self.seconds * (in_flight / self.capacity).max(1.0)
        }
    }

    fn gradient(min: u32, most: u32, now: Instant) -> Gradient {
        let written = json!({"min": min, "window": "100ms", "tolerance": "25%", "calibrate": "30s"});
        Gradient::new(serde_json::from_value(written).expect("valid"), most, now)
    }

    /// So many requests at a time are wanted for as long; gives the limits of the last tenth.
    fn run(gradient: &mut Gradient, server: Server, wanted: f64, from: Instant, lasts: f64) -> Vec<usize> {
        let (mut at, mut last) = (0.0, Vec::new());
        while at < lasts {
            let in_flight = wanted.min(gradient.limit() as f64).max(1.0);
            let took = server.takes(in_flight);
            // As many answers as there are in a millisecond, at least one.
            let step = (took / in_flight).max(0.001);
            let answers = (in_flight * step / took).round().max(1.0) as usize;
            at += step;
            for _ in 0..answers {
                let now = from + Duration::from_secs_f64(at);
                gradient.note(Duration::from_secs_f64(took), in_flight as usize, now);
                assert!(gradient.limit() >= gradient.written.min.get() as usize, "{gradient:?}");
                assert!(gradient.limit() as f64 <= gradient.most, "{gradient:?}");
            }
            if at > lasts * 0.9 {
                last.push(gradient.limit());
            }
        }
        last
    }

    fn typical(mut limits: Vec<usize>) -> f64 {
        limits.sort_unstable();
        limits[limits.len() / 2] as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Near means: never less than the server can do, nor much more than tolerance and root allow for.
        #[test]
        fn the_limit_comes_near_the_capacity_and_follows_when_that_changes(
            capacity in 8.0..200.0f64,
            millis in 1.0..100.0f64,
            after in 0.3..3.0f64,
        ) {
            let now = Instant::now();
            let mut gradient = gradient(3, 1000, now);
            let server = Server { capacity, seconds: millis / 1000.0 };
            let near = |limit: f64, capacity: f64| {
                limit >= capacity * 0.8 && limit <= capacity * 1.35 + 2.0 * capacity.sqrt() + 2.0
            };
            let limit = typical(run(&mut gradient, server, 2000.0, now, 60.0));
            prop_assert!(near(limit, capacity), "{limit} for {capacity}");
            // Fewer or more workers behind it.
            let server = Server { capacity: (capacity * after).max(6.0), ..server };
            let later = now + Duration::from_secs(60);
            let limit = typical(run(&mut gradient, server, 2000.0, later, 120.0));
            prop_assert!(near(limit, server.capacity), "{limit} for {}", server.capacity);
        }

        /// All that happens may be anything.
        #[test]
        fn the_limit_stays_between_its_bounds(
            answers in prop::collection::vec((1u64..10_000_000, 0usize..5000, 0u64..200), 1..2000),
            min in 1u32..50,
            most in 50u32..500,
        ) {
            let mut now = Instant::now();
            let mut gradient = gradient(min, most, now);
            for (micros, in_flight, later) in answers {
                now += Duration::from_millis(later);
                gradient.note(Duration::from_micros(micros), in_flight, now);
                prop_assert!((min as usize..=most as usize).contains(&gradient.limit()));
            }
        }
    }

    #[test]
    fn a_server_that_takes_longer_for_all_is_not_choked_for_good() {
        let now = Instant::now();
        let mut gradient = gradient(3, 1000, now);
        let server = Server { capacity: 50.0, seconds: 0.01 };
        run(&mut gradient, server, 2000.0, now, 30.0);
        // Its own backend became slower: the next calibration knows.
        let slower = Server { seconds: 0.05, ..server };
        let limit = typical(run(&mut gradient, slower, 2000.0, now + Duration::from_secs(30), 120.0));
        assert!((40.0..=90.0).contains(&limit), "{limit}");
    }

    #[test]
    fn a_limit_that_nobody_needs_does_not_grow() {
        let now = Instant::now();
        let mut gradient = gradient(20, 1000, now);
        let server = Server { capacity: 500.0, seconds: 0.01 };
        let limits = run(&mut gradient, server, 4.0, now, 20.0);
        assert_eq!(limits.into_iter().max(), Some(20));
    }
}
