//! A circuit breaker: an upstream that fails is left alone for a while, then asked by a few.
//!
//! Closed, it counts what became of requests over a window. When too many of enough failed or were slow it opens:
//! requests are refused at the cost of one load. After a while it is half-open: a few may pass, and what becomes of
//! them closes it or opens it anew. What is answered counts with its head, as an answer may go on for hours; one that breaks
//! off is a failure then.

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
    told: Told,
}

/// What was said of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// The head of its answer was well, and is counted in this slot.
    Well(u64),
    Failed,
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
        Ok(Passage { breaker: Arc::clone(self), era, begun: now, told: Told::Nothing })
    }

    /// Counts a request; gives the slot that it is counted in.
    fn settle(&self, era: u64, failed: bool, elapsed: Duration, now: Instant) -> u64 {
        let slow = self.written.slow.is_some_and(|slow| elapsed >= slow.get());
        let mut inner = self.inner.lock();
        if inner.era != era {
            return inner.slot;
        }
        match inner.state {
            State::Closed => {
                self.turn(&mut inner, now);
                let slot = inner.slot;
                let counts = &mut inner.slots[at(slot)];
                counts.all += 1;
                counts.failed += u64::from(failed);
                counts.slow += u64::from(slow);
                self.open_if_too_bad(&mut inner, now);
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
        inner.slot
    }

    /// An answer broke off whose head was counted as well in this slot.
    fn broke_off(&self, era: u64, head: u64, now: Instant) {
        let mut inner = self.inner.lock();
        if inner.era != era {
            return;
        }
        match inner.state {
            State::Closed => {
                self.turn(&mut inner, now);
                // With its head, if that is not forgotten.
                let forgotten = inner.slot - head >= u64::from(SLOTS);
                let slot = if forgotten { inner.slot } else { head };
                let counts = &mut inner.slots[at(slot)];
                counts.all += u64::from(forgotten);
                counts.failed += 1;
                self.open_if_too_bad(&mut inner, now);
            }
            State::HalfOpen => {
                self.change(&mut inner, State::Open, "the answer to a probe broke off".to_owned(), now);
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

    /// Begins the slot of this time, and forgets what is too old.
    fn turn(&self, inner: &mut Inner, now: Instant) {
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
    }

    fn open_if_too_bad(&self, inner: &mut Inner, now: Instant) {
        if let Some(reason) = self.too_bad(inner) {
            self.change(inner, State::Open, reason, now);
        }
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
        if self.told != Told::Nothing {
            return;
        }
        let failed = verdict == Verdict::Failed;
        let elapsed = now.saturating_duration_since(self.begun).saturating_sub(of_client);
        let slot = self.breaker.settle(self.era, failed, elapsed, now);
        self.told = if failed { Told::Failed } else { Told::Well(slot) };
    }

    /// The answer broke off, which is a failure though its head was none.
    pub(super) fn broke_off(&mut self, now: Instant) {
        if let Told::Well(slot) = self.told {
            self.told = Told::Failed;
            self.breaker.broke_off(self.era, slot, now);
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if self.told == Told::Nothing {
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
mod tests;
