//! Ramps: a share that moves from one variant to another over a time, in steps, and back at once when the new one
//! does worse than the old one.

mod keeper;
mod window;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tollhouse_filters::world::{Clock, Counter, Gauge, Metrics, World};

pub use self::keeper::Keeper;
pub use self::window::Seen;
use self::window::Window;
use crate::config;
use crate::observe::Timestamp;

/// Requests of the new variant between two looks at how long they take.
const LOOK_EVERY: u32 = 16;

/// A ramp as its document says, and how far it is.
pub struct Ramp {
    /// The place of the variant that gives requests away.
    pub from: usize,
    /// The place of the variant that gets them.
    pub to: usize,
    plan: Plan,
    progress: Arc<Progress>,
}

/// What is to happen.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// The share of the new variant before and after, of what both have together.
    before: f64,
    until: f64,
    over: Duration,
    steps: u32,
    abort_if: Option<config::AbortIf>,
}

/// How far a ramp is, over reloads; and over restarts, if somebody keeps it.
pub struct Progress {
    /// Route, old and new variant: who changes the rest of a ramp goes on with it.
    key: [Arc<str>; 3],
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    window: Mutex<Option<Window>>,
    aborts: Counter,
    aborted: Gauge,
    share: Gauge,
}

/// Where a ramp is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    started: SystemTime,
    /// Why it was given up, until somebody takes note of it.
    aborted: Option<Aborted>,
    /// When any of this changed.
    changed: SystemTime,
    /// It is known whether an earlier process was further; until then nothing moves.
    settled: bool,
}

/// When and why a ramp was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aborted {
    /// When.
    pub at: SystemTime,
    /// What was seen.
    pub why: String,
}

/// A ramp as it is now.
#[derive(Debug, Clone)]
pub struct Standing {
    /// When it began.
    pub started: SystemTime,
    /// The step it is on, from 1; 0 while it is given up.
    pub step: u32,
    /// Of how many.
    pub steps: u32,
    /// The share of the new variant, of what both have together.
    pub share: f64,
    /// Why it was given up.
    pub aborted: Option<Aborted>,
    /// What was seen of the old and the new variant lately; none without `abort_if`.
    pub seen: Option<[Seen; 2]>,
}

impl Ramp {
    /// The ramp of a route, between the variants at these places, with these weights.
    #[must_use]
    pub fn new(
        written: &config::Ramp,
        route: &str,
        (from, to): ((usize, u16), (usize, u16)),
        world: &World,
        settled: bool,
    ) -> Self {
        let weight = u32::from(from.1) + u32::from(to.1);
        let key = [route, written.from.as_str(), written.to.as_str()];
        let plan = Plan {
            before: f64::from(to.1) / f64::from(weight.max(1)),
            until: written.until.fraction(),
            over: written.over.get(),
            steps: u32::from(written.steps).max(1),
            abort_if: written.abort_if,
        };
        let shape = format!("ramp\n{}", key.join("\n"));
        let make = || Arc::new(Progress::new(key.map(Arc::from), world, settled));
        let progress = world.retained.get_or_make(&shape, make);
        Self { from: from.0, to: to.0, plan, progress }
    }

    /// Has requests looked at as this ramp says, once its document is the one that serves: until then another one
    /// may go by the same progress.
    pub fn watch(&self) {
        self.progress.watch(&self.plan);
    }

    /// Which of both a key gets that lies here between the new one, at 0, and the old one, at 1: once it has the new
    /// one, it keeps it while the ramp goes on.
    #[must_use]
    pub fn side(&self, place: f64) -> usize {
        if place < self.progress.share(&self.plan) { self.to } else { self.from }
    }

    /// Notes how a request of a variant ended, and how long that took, if it is known.
    pub fn note(&self, variant: usize, failed: bool, took: Option<Duration>) {
        if self.plan.abort_if.is_none() || (variant != self.from && variant != self.to) {
            return;
        }
        self.progress.note(variant == self.to, failed, took, &self.plan);
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.progress.standing(&self.plan)
    }

    /// Takes note of that it was given up, which begins it anew; false if it was not.
    #[must_use]
    pub fn acknowledge(&self) -> bool {
        self.progress.acknowledge()
    }

    /// Takes over how far another one is, for who asks what happens now; apart from it from then on.
    pub fn stand_as(&self, other: &Self) {
        let state = other.progress.state.lock().clone();
        *self.progress.state.lock() = state;
    }

    /// What lives longer than the document.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

impl Plan {
    /// The step after this much time, from 1.
    fn step(&self, since: Duration) -> u32 {
        let steps = f64::from(self.steps);
        let done = (since.as_secs_f64() / self.over.as_secs_f64() * steps).clamp(0.0, steps - 1.0);
        // Whole and small.
        1 + done as u32
    }

    fn share(&self, step: u32) -> f64 {
        self.before + (self.until - self.before) * f64::from(step) / f64::from(self.steps)
    }
}

impl Progress {
    fn new(key: [Arc<str>; 3], world: &World, settled: bool) -> Self {
        let [route, from, to] = &key;
        let labels = [("route", &**route), ("from", &**from), ("to", &**to)];
        let metrics: &dyn Metrics = &*world.metrics;
        let now = world.clock.wall();
        Self {
            clock: world.clock.clone(),
            state: Mutex::new(State { started: now, aborted: None, changed: now, settled }),
            window: Mutex::default(),
            aborts: metrics.counter("tollhouse_ramp_aborts_total", "Ramps that were given up.", &labels),
            aborted: metrics.gauge("tollhouse_ramp_aborted", "1 while a ramp is given up.", &labels),
            share: metrics.gauge(
                "tollhouse_ramp_share_percent",
                "The new variant's share of what it and the old one have together.",
                &labels,
            ),
            key,
        }
    }

    /// Has a window for what is looked at.
    fn watch(&self, plan: &Plan) {
        let mut window = self.window.lock();
        match plan.abort_if {
            None => *window = None,
            Some(abort_if) if window.as_ref().is_none_or(|old| old.length() != abort_if.window.get()) => {
                *window = Some(Window::new(abort_if.window.get(), self.clock.now()));
            }
            Some(_) => {}
        }
    }

    /// The step it is on; 0 where nothing moves.
    fn step(&self, state: &State, plan: &Plan) -> u32 {
        if state.aborted.is_some() || !state.settled {
            return 0;
        }
        plan.step(self.since(state))
    }

    fn since(&self, state: &State) -> Duration {
        self.clock.wall().duration_since(state.started).unwrap_or_default()
    }

    /// Whether the old variant gets nothing any more, for good: there is nothing to compare the new one with.
    fn is_over(&self, plan: &Plan) -> bool {
        plan.until >= 1.0 && self.since(&self.state.lock()) >= plan.over
    }

    fn share(&self, plan: &Plan) -> f64 {
        let state = self.state.lock();
        let share = plan.share(self.step(&state, plan));
        self.share.set((share * 100.0).round() as i64);
        share
    }

    fn standing(&self, plan: &Plan) -> Standing {
        let seen = self.window.lock().as_mut().map(|window| window.seen(self.clock.now()));
        let state = self.state.lock();
        let step = self.step(&state, plan);
        Standing {
            started: state.started,
            step,
            steps: plan.steps,
            share: plan.share(step),
            aborted: state.aborted.clone(),
            seen,
        }
    }

    fn note(&self, is_new: bool, failed: bool, took: Option<Duration>, plan: &Plan) {
        let Some(abort_if) = &plan.abort_if else { return };
        let why = {
            let mut window = self.window.lock();
            let Some(window) = window.as_mut() else { return };
            let count = window.add(self.clock.now(), is_new, failed, took);
            let look = is_new && (failed || count.is_multiple_of(LOOK_EVERY)) && !self.is_over(plan);
            look.then(|| worse(window.seen(self.clock.now()), abort_if)).flatten()
        };
        if let Some(why) = why {
            self.abort(why);
        }
    }

    fn abort(&self, why: String) {
        let mut state = self.state.lock();
        if state.aborted.is_some() || !state.settled {
            return;
        }
        let [route, from, to] = self.key.each_ref().map(|name| &**name);
        log::error!(route = route, from = from, to = to; "the ramp is given up, {from} gets its share back: {why}");
        let now = self.clock.wall();
        state.aborted = Some(Aborted { at: now, why });
        state.changed = now;
        self.aborts.inc();
        self.aborted.set(1);
    }

    fn acknowledge(&self) -> bool {
        let mut state = self.state.lock();
        if state.aborted.take().is_none() {
            return false;
        }
        let [route, from, to] = self.key.each_ref().map(|name| &**name);
        log::info!(route = route, from = from, to = to; "the ramp begins anew");
        let now = self.clock.wall();
        (state.started, state.changed) = (now, now);
        self.aborted.set(0);
        drop(state);
        if let Some(window) = self.window.lock().as_mut() {
            window.clear();
        }
        true
    }

    /// What an earlier process, or another one, knows better.
    fn learn(&self, known: State) {
        let mut state = self.state.lock();
        if state.settled && known.changed <= state.changed {
            return;
        }
        if !state.settled && known.aborted.is_none() {
            let [route, from, to] = self.key.each_ref().map(|name| &**name);
            let began = Timestamp(known.started);
            log::info!(route = route, from = from, to = to; "the ramp that began at {began} goes on");
        }
        self.aborted.set(known.aborted.is_some().into());
        *state = State { settled: true, ..known };
    }

    /// Nobody knows better: it begins now.
    fn settle(&self) {
        let mut state = self.state.lock();
        if state.settled {
            return;
        }
        let now = self.clock.wall();
        *state = State { started: now, aborted: None, changed: now, settled: true };
        drop(state);
        if let Some(window) = self.window.lock().as_mut() {
            window.clear();
        }
    }

    /// The document has it no more. Requests that began before may hold on to it, and it begins anew if it is written
    /// again meanwhile.
    fn leave(&self) {
        let mut state = self.state.lock();
        let [route, from, to] = self.key.each_ref().map(|name| &**name);
        log::info!(route = route, from = from, to = to; "the ramp is no longer written, and is forgotten");
        (state.aborted, state.settled) = (None, false);
        self.aborted.set(0);
    }
}

/// What is worse about the new variant, if anything is and enough was seen.
fn worse([old, new]: [Seen; 2], abort_if: &config::AbortIf) -> Option<String> {
    let enough = u64::from(abort_if.min_requests.get());
    if new.requests < enough {
        return None;
    }
    if let Some(limit) = abort_if.error_ratio {
        let (ratio, baseline) = (new.error_ratio(), old.error_ratio());
        if ratio - baseline > limit.fraction() {
            let (ratio, baseline) = (ratio * 100.0, baseline * 100.0);
            let seen = format!("{} of {} requests failed ({ratio:.1}%", new.errors, new.requests);
            return Some(format!("{seen}, {baseline:.1}% of the old variant's)"));
        }
    }
    let times = abort_if.p99?;
    if old.timed.min(new.timed) < enough {
        return None;
    }
    // As far as it is known: the least that the one may be, and the most that the other may be.
    let ([least, _], [_, most]) = (new.p99, old.p99);
    (least.as_secs_f64() > most.as_secs_f64() * times.factor()).then(|| {
        format!("99% of {} requests took up to {least:?} or more, {most:?} or less before", new.timed)
    })
}

#[cfg(test)]
mod tests;
