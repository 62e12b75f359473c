//! A circuit breaker: an upstream that fails is left alone for a while, then asked by a few.
//!
//! Closed, it counts what became of requests over a window. When too many of enough failed or were slow it opens:
//! requests are refused at the cost of one load. After a while it is half-open: a few may pass, and what becomes of
//! them closes it or opens it anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::config::circuit_breaker::CircuitBreaker;

/// Parts of the window; the oldest one is forgotten as a whole.
const SLOTS: u32 = 10;
/// After so long the places of probes that were not answered are free again: a client that sends its request slowly holds
/// none for good.
const PROBES_EACH: Duration = Duration::from_secs(1);

/// Refused: the breaker is open, for so long still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) struct Open {
    /// Until probes are let pass.
    pub(in crate::upstream) left: Duration,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum State {
    Closed,
    HalfOpen,
    Open,
}

impl State {
    /// Its name in metrics, logs and the API.
    pub(in crate::upstream) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The breaker of one upstream.
#[derive(Debug)]
pub(in crate::upstream) struct Breaker {
    pub(in crate::upstream) written: CircuitBreaker,
    name: Arc<str>,
    born: Instant,
    /// Milliseconds after `born` until which it is open; 0 while it is closed, and 1 while it is half-open.
    shut_until: AtomicU64,
    /// Requests that were refused.
    pub(in crate::upstream) refused: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Counts changes, so that what began before one says nothing after it.
    era: u64,
    slots: [Counts; SLOTS as usize],
    /// The number of the slot that counts now.
    slot: u64,
    probes: Probes,
    since: SystemTime,
    reason: String,
    /// Changes to open, to half-open and to closed.
    changes: [u64; 3],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    all: u64,
    failed: u64,
    slow: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Probes {
    under_way: u32,
    passed: u32,
    /// When the places were free last.
    since: Option<Instant>,
}

/// A request that was let pass; without a verdict, it says nothing.
#[derive(Debug)]
pub(in crate::upstream) struct Passage {
    breaker: Arc<Breaker>,
    era: u64,
    begun: Instant,
    told: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered.
    Answered,
    /// The upstream failed: no answer, or one of 500 or more.
    Failed,
}

/// A breaker, to be shown.
#[derive(Debug, Clone)]
pub(in crate::upstream) struct Shown {
    pub(in crate::upstream) state: State,
    pub(in crate::upstream) reason: String,
    pub(in crate::upstream) since: SystemTime,
}

impl Breaker {
    /// A closed one.
    pub(in crate::upstream) fn new(written: CircuitBreaker, name: Arc<str>, now: Instant) -> Arc<Self> {
        let inner = Inner {
            state: State::Closed,
            era: 0,
            slots: Default::default(),
            slot: 0,
            probes: Probes::default(),
            since: SystemTime::now(),
            reason: "nothing failed yet".to_owned(),
            changes: [0; 3],
        };
        let (shut_until, refused) = Default::default();
        Arc::new(Self { written, name, born: now, shut_until, refused, inner: Mutex::new(inner) })
    }

    /// Lets a request pass, or says how long none is let.
    pub(in crate::upstream) fn enter(self: &Arc<Self>, now: Instant) -> Result<Passage, Open> {
        let shut_until = self.shut_until.load(Ordering::Relaxed);
        let elapsed = self.millis(now);
        if shut_until > elapsed {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Open { left: Duration::from_millis(shut_until - elapsed) });
        }
        let mut inner = self.inner.lock();
        match inner.state {
            State::Closed => {}
            // Another thread opened it in this moment.
            State::Open if self.shut_until.load(Ordering::Relaxed) > elapsed => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(Open { left: self.written.open.get() });
            }
            State::Open => {
                self.change(&mut inner, State::HalfOpen, "it was open for long enough".to_owned(), now);
                (inner.probes.under_way, inner.probes.since) = (1, Some(now));
            }
            State::HalfOpen => {
                let probes = &mut inner.probes;
                if probes.since.is_none_or(|since| now >= since + PROBES_EACH) {
                    (probes.under_way, probes.since) = (0, Some(now));
                }
                if probes.under_way + probes.passed >= self.written.half_open.get() {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    return Err(Open { left: Duration::from_secs(1) });
                }
                probes.under_way += 1;
            }
        }
        let era = inner.era;
        drop(inner);
        Ok(Passage { breaker: Arc::clone(self), era, begun: now, told: false })
    }

    fn settle(&self, era: u64, failed: bool, elapsed: Duration, now: Instant) {
        let slow = self.written.slow.is_some_and(|slow| elapsed >= slow.get());
        let mut inner = self.inner.lock();
        if inner.era != era {
            return;
        }
        match inner.state {
            State::Closed => {
                self.count(&mut inner, failed, slow, now);
                if let Some(reason) = self.too_bad(&inner) {
                    self.change(&mut inner, State::Open, reason, now);
                }
            }
            State::HalfOpen if failed || slow => {
                let reason = if failed { "a probe failed" } else { "a probe was slow" };
                self.change(&mut inner, State::Open, reason.to_owned(), now);
            }
            State::HalfOpen => {
                inner.probes.under_way = inner.probes.under_way.saturating_sub(1);
                inner.probes.passed += 1;
                if inner.probes.passed >= self.written.half_open.get() {
                    let reason = format!("{} probes passed", inner.probes.passed);
                    self.change(&mut inner, State::Closed, reason, now);
                }
            }
            State::Open => {}
        }
    }

    /// A request ended without a verdict; a probe's place is free again.
    fn give_back(&self, era: u64) {
        let mut inner = self.inner.lock();
        if inner.era == era && inner.state == State::HalfOpen {
            inner.probes.under_way = inner.probes.under_way.saturating_sub(1);
        }
    }

    fn count(&self, inner: &mut Inner, failed: bool, slow: bool, now: Instant) {
        let length = (self.written.window.get() / SLOTS).max(Duration::from_millis(1));
        let slot = u64::try_from(now.saturating_duration_since(self.born).as_nanos() / length.as_nanos());
        let slot = slot.unwrap_or(u64::MAX).max(inner.slot);
        for old in (inner.slot + 1..=slot).take(SLOTS as usize) {
            inner.slots[at(old.max(slot.saturating_sub(u64::from(SLOTS) - 1)))] = Counts::default();
        }
        if slot - inner.slot >= u64::from(SLOTS) {
            inner.slots = Default::default();
        }
        inner.slot = slot;
        let counts = &mut inner.slots[at(slot)];
        counts.all += 1;
        counts.failed += u64::from(failed);
        counts.slow += u64::from(slow);
    }

    /// Why it has to open, if it has to.
    fn too_bad(&self, inner: &Inner) -> Option<String> {
        let mut sum = Counts::default();
        for slot in &inner.slots {
            sum.all += slot.all;
            sum.failed += slot.failed;
            sum.slow += slot.slow;
        }
        if sum.all < u64::from(self.written.min_requests.get()) {
            return None;
        }
        let reached = |count: u64, ratio: u16| count > 0 && count * 10_000 >= sum.all * u64::from(ratio);
        let window = self.written.window;
        if reached(sum.failed, self.written.error_ratio.hundredths()) {
            return Some(format!("{} of {} requests failed within {window}", sum.failed, sum.all));
        }
        let slow = self.written.slow_ratio.filter(|ratio| reached(sum.slow, ratio.hundredths()));
        slow.map(|_| format!("{} of {} requests were slow within {window}", sum.slow, sum.all))
    }

    fn change(&self, inner: &mut Inner, to: State, reason: String, now: Instant) {
        let upstream = &*self.name;
        match to {
            State::Open => log::warn!(upstream, reason; "a circuit breaker opened; requests are refused"),
            State::HalfOpen => {
                log::info!(upstream, reason; "a circuit breaker is half open; a few requests pass")
            }
            State::Closed => log::info!(upstream, reason; "a circuit breaker closed"),
        }
        let shut_until = match to {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => self.millis(now).saturating_add(millis(self.written.open.get())),
        };
        inner.changes[to as usize] += 1;
        (inner.state, inner.era, inner.reason, inner.since) = (to, inner.era + 1, reason, SystemTime::now());
        (inner.slots, inner.probes) = Default::default();
        self.shut_until.store(shut_until, Ordering::Relaxed);
    }

    /// At least 2, so that a half-open one is not taken for open.
    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.born)) + 2
    }

    /// Where it stands, and why.
    pub(in crate::upstream) fn shown(&self) -> Shown {
        let inner = self.inner.lock();
        Shown { state: inner.state, reason: inner.reason.clone(), since: inner.since }
    }

    /// How often it came to this state.
    pub(in crate::upstream) fn changes(&self, to: State) -> u64 {
        self.inner.lock().changes[to as usize]
    }
}

impl Passage {
    /// The request goes to the upstream only now.
    pub(super) const fn begin(&mut self, now: Instant) {
        self.begun = now;
    }

    /// Says what became of the request; the first word counts.
    pub(super) fn settle(&mut self, verdict: Verdict, now: Instant, of_client: Duration) {
        if !std::mem::replace(&mut self.told, true) {
            let elapsed = now.saturating_duration_since(self.begun).saturating_sub(of_client);
            self.breaker.settle(self.era, verdict == Verdict::Failed, elapsed, now);
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if !self.told {
            self.breaker.give_back(self.era);
        }
    }
}

fn at(slot: u64) -> usize {
    usize::try_from(slot % u64::from(SLOTS)).unwrap_or_default()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn breaker(written: Value) -> (Arc<Breaker>, Instant) {
        let now = Instant::now();
        (Breaker::new(serde_json::from_value(written).unwrap(), "u".into(), now), now)
    }

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn ask(breaker: &Arc<Breaker>, verdict: Verdict, now: Instant) -> bool {
        match breaker.enter(now) {
            Ok(mut passage) => {
                passage.settle(verdict, now, Duration::ZERO);
                true
            }
            Err(_) => false,
        }
    }

    fn state(breaker: &Breaker) -> &'static str {
        breaker.shown().state.as_str()
    }

    #[test]
    fn probes_that_are_not_answered_hold_their_places_for_a_second() {
        let (breaker, start) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 2}));
        ask(&breaker, Verdict::Failed, start);
        let half = after(start, 2000);
        let held: Vec<Passage> = (0..2).map(|_| breaker.enter(half).expect("a probe")).collect();
        assert!(breaker.enter(after(half, 999)).is_err());
        for passed in ["half_open", "closed"] {
            assert!(ask(&breaker, Verdict::Answered, after(half, 1000)));
            assert_eq!(state(&breaker), passed);
        }
        drop(held);
    }

    #[test]
    fn the_clients_time_is_not_slowness() {
        let rules = json!({"min_requests": 1, "slow": "1s", "slow_ratio": "50%"});
        let (breaker, start) = breaker(rules);
        for (of_client, expected) in [(2500, "closed"), (500, "open")] {
            let mut passage = breaker.enter(start).expect("it is closed");
            passage.settle(Verdict::Answered, after(start, 3000), Duration::from_millis(of_client));
            assert_eq!(state(&breaker), expected);
        }
    }

    #[test]
    fn it_opens_when_half_of_enough_requests_failed_and_not_before() {
        let (breaker, now) = breaker(json!({"min_requests": 4, "error_ratio": "50%"}));
        for (verdict, then) in [
            (Verdict::Failed, "closed"),
            (Verdict::Answered, "closed"),
            (Verdict::Answered, "closed"),
            (Verdict::Failed, "open"),
        ] {
            assert!(ask(&breaker, verdict, now));
            assert_eq!(state(&breaker), then);
        }
        assert_eq!(breaker.shown().reason, "2 of 4 requests failed within 10s");
        let open = breaker.enter(after(now, 4000)).unwrap_err();
        assert_eq!(open.left, Duration::from_secs(6));
        assert_eq!(breaker.refused.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn slow_answers_open_it_where_that_is_written() {
        let written = json!({"min_requests": 2, "slow": "1s", "slow_ratio": "100%"});
        let (breaker, now) = breaker(written);
        for _ in 0..2 {
            let mut passage = breaker.enter(now).unwrap();
            passage.settle(Verdict::Answered, after(now, 1000), Duration::ZERO);
        }
        assert_eq!(
            (state(&breaker), &*breaker.shown().reason),
            ("open", "2 of 2 requests were slow within 10s")
        );
    }

    #[test]
    fn half_open_it_lets_a_few_pass_and_closes_when_all_of_them_are_answered() {
        let written = json!({"min_requests": 1, "open": "1s", "half_open": 2});
        let (breaker, now) = breaker(written);
        assert!(ask(&breaker, Verdict::Failed, now));
        assert!(breaker.enter(after(now, 999)).is_err());
        let then = after(now, 1000);
        let (mut one, mut two) = (breaker.enter(then).unwrap(), breaker.enter(then).unwrap());
        assert_eq!(state(&breaker), "half_open");
        assert!(breaker.enter(then).is_err(), "no more than two");
        one.settle(Verdict::Answered, then, Duration::ZERO);
        assert!(breaker.enter(then).is_err(), "the other one is still under way");
        two.settle(Verdict::Answered, then, Duration::ZERO);
        assert_eq!(state(&breaker), "closed");
    }

    #[test]
    fn a_probe_that_fails_opens_it_anew() {
        let (breaker, now) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 2}));
        assert!(ask(&breaker, Verdict::Failed, now));
        let then = after(now, 1500);
        let mut other = breaker.enter(then).unwrap();
        assert!(ask(&breaker, Verdict::Failed, then));
        assert_eq!(state(&breaker), "open");
        other.settle(Verdict::Answered, then, Duration::ZERO);
        assert_eq!(state(&breaker), "open", "what began before says nothing");
        assert!(breaker.enter(after(then, 999)).is_err());
        assert!(breaker.enter(after(then, 1000)).is_ok());
    }

    #[test]
    fn a_probe_that_is_given_up_gives_its_place_back() {
        let (breaker, now) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 1}));
        assert!(ask(&breaker, Verdict::Failed, now));
        let then = after(now, 1000);
        drop(breaker.enter(then).unwrap());
        assert!(ask(&breaker, Verdict::Answered, then));
        assert_eq!(state(&breaker), "closed");
    }

    #[test]
    fn failures_are_forgotten_with_the_window() {
        let (breaker, now) = breaker(json!({"min_requests": 2, "window": "1s"}));
        assert!(ask(&breaker, Verdict::Failed, now));
        assert!(ask(&breaker, Verdict::Failed, after(now, 1100)));
        assert_eq!(state(&breaker), "closed");
        assert!(ask(&breaker, Verdict::Failed, after(now, 1900)));
        assert_eq!(state(&breaker), "open");
    }

    /// The simplest breaker that there is: it remembers every request.
    struct Model {
        state: &'static str,
        opened: u64,
        passed: u32,
        seen: Vec<(u64, bool)>,
    }

    proptest! {
        #[test]
        fn it_does_as_a_breaker_that_remembers_everything(
            steps in prop::collection::vec((0u64..700, any::<bool>()), 1..200),
        ) {
            let written = json!({"min_requests": 5, "error_ratio": "40%", "window": "2s", "open": "1s", "half_open": 2});
            let (breaker, start) = breaker(written);
            let mut model = Model { state: "closed", opened: 0, passed: 0, seen: Vec::new() };
            let mut elapsed = 0;
            for (pause, fails) in steps {
                elapsed += pause;
                let now = after(start, elapsed);
                let verdict = if fails { Verdict::Failed } else { Verdict::Answered };
                let passes = model.state != "open" || elapsed - model.opened >= 1000;
                if passes && model.state == "open" {
                    (model.state, model.passed) = ("half_open", 0);
                }
                prop_assert_eq!(ask(&breaker, verdict, now), passes);
                match (model.state, fails) {
                    ("half_open", true) => (model.state, model.opened) = ("open", elapsed),
                    ("half_open", false) => {
                        model.passed += 1;
                        if model.passed == 2 {
                            (model.state, model.seen) = ("closed", Vec::new());
                        }
                    }
                    ("closed", _) => {
                        model.seen.push((elapsed / 200, fails));
                        let recent: Vec<_> = model.seen.iter().filter(|(at, _)| at + 10 > elapsed / 200).collect();
                        let failed = recent.iter().filter(|(_, failed)| *failed).count();
                        if recent.len() >= 5 && failed > 0 && failed * 100 >= recent.len() * 40 {
                            (model.state, model.opened) = ("open", elapsed);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(state(&breaker), model.state);
            }
        }
    }
}
