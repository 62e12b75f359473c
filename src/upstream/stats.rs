//! What a backend has in hand, how fast it answers, and how often it failed.

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::refusals::Refusals;
use super::resilience::{Outcome, Outliers, Standing, Verdict as Ended};

/// Seconds after which an old latency counts for a third (1/e) of what it was.
const DECAY: f32 = 10.0;
/// What a failure counts as at least, in seconds, since failing fast is no speed. Also the guess for a
/// backend that has requests in hand and never answered one.
const PENALTY: f32 = 1.0;
/// No latency is less, in seconds; 0 means that none is known.
const FASTEST: f32 = 1e-6;
/// How far ahead another thread may be, in milliseconds; all that looks later than that is long ago.
const MOMENT: u32 = 60_000;

/// The numbers of one backend. They outlive snapshots: what is still in hand counts after a reload too.
#[derive(Debug, Default)]
// Two backends' numbers share no cache line.
#[repr(align(64))]
pub(super) struct Stats {
    /// Requests begun and ended; those between are in flight.
    begun: AtomicU64,
    ended: AtomicU64,
    failures: AtomicU64,
    /// A packed [`Latency`].
    latency: AtomicU64,
    /// When `ewma` last gave it a request.
    given: AtomicU32,
    /// Whether it gets requests, by what became of them.
    pub(super) standing: Standing,
    /// Which of its addresses could not be connected to.
    pub(super) refusals: Refusals,
}

/// A time in milliseconds since the process began to count; wraps after 49 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick(u32);

/// A latency that rises at once and falls slowly: the peak-sensitive moving average that Finagle and
/// Linkerd balance by.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Latency {
    seconds: f32,
    at: Tick,
}

impl Tick {
    pub(super) fn now() -> Self {
        Self::of(Instant::now())
    }

    pub(super) fn of(instant: Instant) -> Self {
        static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);
        let elapsed = instant.saturating_duration_since(*BASE).as_millis();
        Self(u32::try_from(elapsed & u128::from(u32::MAX)).unwrap_or(0))
    }

    /// Seconds from `earlier` until now; a time that another thread noted a moment ahead is now.
    fn since(self, earlier: Self) -> f32 {
        let elapsed = self.0.wrapping_sub(earlier.0);
        if elapsed > u32::MAX - MOMENT { 0.0 } else { Duration::from_millis(elapsed.into()).as_secs_f32() }
    }
}

impl Latency {
    fn pack(self) -> u64 {
        u64::from(self.seconds.to_bits()) << 32 | u64::from(self.at.0)
    }

    fn unpack(bits: u64) -> Option<Self> {
        let [seconds, at] = [bits >> 32, bits & u64::from(u32::MAX)].map(|half| u32::try_from(half).ok());
        let seconds = f32::from_bits(seconds?);
        (seconds > 0.0).then_some(Self { seconds, at: Tick(at?) })
    }

    /// With this further measurement.
    fn with(known: Option<Self>, seconds: f32, at: Tick) -> Self {
        let seconds = seconds.max(FASTEST);
        match known {
            // No time has passed: nothing changes.
            Some(known) if seconds <= known.seconds && at == known.at => known,
            Some(known) if seconds < known.seconds => {
                let keep = (-at.since(known.at) / DECAY).exp();
                Self { seconds: known.seconds * keep + seconds * (1.0 - keep), at }
            }
            _ => Self { seconds, at },
        }
    }
}

impl Stats {
    pub(super) fn in_flight(&self) -> usize {
        let ended = self.ended.load(Ordering::Relaxed);
        usize::try_from(self.requests().saturating_sub(ended)).unwrap_or(usize::MAX)
    }

    pub(super) fn requests(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn latency(&self) -> Option<Duration> {
        let known = Latency::unpack(self.latency.load(Ordering::Relaxed));
        known.map(|known| Duration::from_secs_f32(known.seconds))
    }

    /// How long a request given now would take, in seconds, by what is known and in hand.
    ///
    /// What is known fades while the backend gets no requests, so that a slow one is tried again; but
    /// one request is enough for that, and until it is answered the old knowledge stands. One that is
    /// not known at all is tried at once, with one request.
    pub(super) fn cost(&self, weight: u16, now: Tick) -> f32 {
        let in_flight = self.in_flight();
        let seconds = match Latency::unpack(self.latency.load(Ordering::Relaxed)) {
            Some(known) => {
                let given = Tick(self.given.load(Ordering::Relaxed));
                known.seconds * (-now.since(known.at).min(now.since(given)) / DECAY).exp()
            }
            None if in_flight == 0 => 0.0,
            None => PENALTY,
        };
        #[expect(clippy::cast_precision_loss, reason = "nobody has 2^24 requests in flight at one backend")]
        let load = in_flight as f32 / f32::from(weight);
        seconds * (load + 1.0)
    }

    /// Notes that it is given a request, for [`Stats::cost`].
    pub(super) fn give(&self, now: Tick) {
        self.given.store(now.0, Ordering::Relaxed);
    }

    /// Takes one measurement in.
    fn measure(&self, seconds: f32, now: Tick) {
        let with = |bits| {
            let new = Latency::with(Latency::unpack(bits), seconds, now).pack();
            (new != bits).then_some(new)
        };
        let _ = self.latency.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with);
    }

    #[cfg(test)]
    pub(super) fn measure_for_tests(&self, seconds: f32) {
        self.measure(seconds, Tick::now());
    }

    /// Nobody waited for the end: it would have taken at least this long.
    fn measure_at_least(&self, seconds: f32, now: Tick) {
        let known = Latency::unpack(self.latency.load(Ordering::Relaxed));
        if seconds > known.map_or(PENALTY, |known| known.seconds) {
            self.measure(seconds, now);
        }
    }
}

/// A request in hand; dropping it gives the place back.
///
/// What became of the request is told once, by [`InFlight::answered`] or [`InFlight::failed`]; without
/// that, it counts as given up by whoever asked.
#[derive(Debug)]
pub struct InFlight {
    stats: Arc<Stats>,
    started: Instant,
    verdict: Verdict,
    /// How many requests the backend had in hand with this one.
    pub(super) rank: usize,
    /// Who judges the backend by what becomes of it; nobody, for most.
    judge: Option<Judge>,
    /// Where it goes.
    address: Option<SocketAddr>,
    /// When the head of the answer was here.
    answered: Option<Instant>,
    /// How many failures in a row there were before that.
    row: u32,
    /// How long the client took to send everything; none while it does.
    upload: Option<Duration>,
}

/// Who judges a backend.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) outliers: Arc<Outliers>,
    /// The backend's place among those that are judged.
    pub(super) at: usize,
    /// Since when this request is to find out whether it is well again, if it is.
    pub(super) trial: Option<Instant>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Open,
    Told,
    Failed,
}

impl InFlight {
    pub(super) fn enter(stats: &Arc<Stats>, judge: Option<Judge>) -> Self {
        let started = Instant::now();
        stats.begun.fetch_add(1, Ordering::Relaxed);
        let rank = stats.in_flight();
        let (stats, verdict, upload) = (Arc::clone(stats), Verdict::Open, Some(Duration::ZERO));
        let (address, answered, row) = Default::default();
        Self { stats, started, verdict, rank, judge, address, answered, row, upload }
    }

    /// Goes to this address of the backend.
    pub(super) const fn to(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// The client has more to send: until it has, its time is not the backend's.
    pub fn uploads(&mut self) {
        self.upload = None;
    }

    /// The client had more to send, and has sent everything.
    pub fn uploaded(&mut self) {
        if self.upload.is_none() {
            self.uploaded_at(Instant::now());
        }
    }

    /// As [`uploaded`](Self::uploaded), at this time.
    pub fn uploaded_at(&mut self, at: Instant) {
        self.upload = Some(at.saturating_duration_since(self.started));
    }

    /// The head of the answer is here; one of 500 or more is a failure.
    pub fn answered(&mut self, status: u16) {
        if !self.stats.refusals.is_empty()
            && let Some(address) = self.address
        {
            self.stats.refusals.forget(address);
        }
        if status >= 500 {
            self.failed();
        } else if self.verdict == Verdict::Open {
            self.verdict = Verdict::Told;
            let now = Instant::now();
            self.answered = Some(now);
            // An answer that comes before the request is whole tells nothing.
            let took = self.upload.map(|_| self.elapsed(now));
            if let Some(took) = took {
                self.stats.measure(took.as_secs_f32(), Tick::of(now));
            }
            self.row = self.judge(Outcome::Answered(took), now);
        }
    }

    /// Tells who judges; gives how many failures in a row there were before.
    fn judge(&self, outcome: Outcome, now: Instant) -> u32 {
        let judge = self.judge.as_ref();
        judge.map_or(0, |Judge { outliers, at, trial }| outliers.told(*at, outcome, trial.is_some(), now))
    }

    /// The backend could not be connected to, broke off or took too long.
    pub fn failed(&mut self) {
        let before = std::mem::replace(&mut self.verdict, Verdict::Failed);
        if before == Verdict::Failed {
            return;
        }
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        // How long an answer took that broke off later is known already.
        if before == Verdict::Open {
            self.answered = Some(now);
            self.stats.measure(self.elapsed(now).as_secs_f32().max(PENALTY), Tick::of(now));
        }
        self.judge(if before == Verdict::Told { Outcome::Broken(self.row) } else { Outcome::Failed }, now);
    }

    fn trial(&self) -> Option<Instant> {
        self.judge.as_ref().and_then(|judge| judge.trial)
    }

    /// Whether it is to find out whether a backend is well again.
    pub(super) fn is_trial(&self) -> bool {
        self.trial().is_some()
    }

    /// The backend could not be connected to, which is judged by who knows that.
    pub(super) fn unreachable(&mut self) {
        self.judge = None;
        self.failed();
    }

    /// What became of the request, when that was known, and how much of the time until then was the client's, unless it
    /// had more to send even then; nothing, if it was given up.
    pub fn ended(&self) -> Option<(Ended, Instant, Option<Duration>)> {
        let at = self.answered.unwrap_or(self.started);
        let of_client = self.upload.filter(|upload| self.started + *upload <= at);
        match self.verdict {
            Verdict::Open => None,
            Verdict::Told => Some((Ended::Answered, at, of_client)),
            Verdict::Failed => Some((Ended::Failed, at, of_client)),
        }
    }

    /// Nothing is known of the backend by this: an old connection was closed before it saw the request.
    pub fn unseen(&mut self) {
        self.verdict = Verdict::Told;
    }

    /// When it was given to the backend.
    pub const fn started(&self) -> Instant {
        self.started
    }

    fn of_client(&self, now: Instant) -> Duration {
        self.upload.unwrap_or_else(|| now.saturating_duration_since(self.started))
    }

    /// How long the backend had.
    fn elapsed(&self, now: Instant) -> Duration {
        let all = now.saturating_duration_since(self.started);
        all.saturating_sub(self.of_client(now))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.verdict == Verdict::Open {
            let now = Instant::now();
            self.stats.measure_at_least(self.elapsed(now).as_secs_f32(), Tick::of(now));
        }
        if self.verdict != Verdict::Failed
            && self.answered.is_none()
            && let Some(begun) = self.trial()
        {
            self.stats.standing.give_back(begun, Instant::now());
        }
        self.stats.ended.fetch_add(1, Ordering::Relaxed);
    }
}
