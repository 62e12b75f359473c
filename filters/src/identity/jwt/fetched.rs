//! Keys that are fetched, ahead of need: by one task, which requests can only ask to make haste.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

use super::keys::Keys;
use super::options::AlgorithmName;
use super::place::{KeySetAnswer, Place};
use crate::identity::{KeysState, Unavailable};
use crate::world::{Clock, Counter, Gauge, Metrics, Rng, Tasks, World};

/// Bounds of what an answer says of how long its keys are good for.
const LIFETIME: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
/// After a request had the keys fetched, how long no other has.
const COOL_DOWN: Duration = Duration::from_secs(5);
/// Longest wait of a request for keys.
pub(in crate::identity) const PATIENCE: Duration = Duration::from_secs(15);
/// Requests that wait for keys at a time.
const WAITING: usize = 256;
/// Keys that were looked for in vain just now and are remembered.
const MISSED: usize = 1024;
/// How soon a failed fetch is tried again at first; twice as late each time.
const RETRY: Duration = Duration::from_secs(1);
/// Longest pause between failed fetches.
const LATEST_RETRY: Duration = Duration::from_secs(60);

/// The fetched keys of one identity.
pub(super) struct FetchedKeys {
    name: Arc<str>,
    place: Place,
    algorithms: Vec<AlgorithmName>,
    /// How long keys are good for that do not say.
    lifetime: Duration,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    keys: ArcSwapOption<Keys>,
    progress: Mutex<Progress>,
    /// Fetches that have ended.
    done: watch::Sender<u64>,
    /// Makes the task go on.
    wake: Arc<Notify>,
    waiting: Semaphore,
    meters: Meters,
}

#[derive(Default)]
struct Progress {
    /// Fetches that have begun.
    started: u64,
    /// The one that was asked for last.
    wanted: u64,
    /// When that was.
    asked: Option<Instant>,
    /// Ids of keys that were not there when they were last looked for, and when that was.
    missed: HashMap<Box<str>, Instant>,
    fetched: Option<SystemTime>,
    next: Option<Instant>,
    failing: Option<Failing>,
}

struct Failing {
    why: String,
    since: SystemTime,
    times: u32,
}

struct Meters {
    fetched: Counter,
    failed: Counter,
    count: Gauge,
    at: Gauge,
}

impl Meters {
    fn new(identity: &str, metrics: &dyn Metrics) -> Self {
        let fetches = |outcome| {
            let help = "Fetches of keys that tokens are verified with, by outcome.";
            let labels = [("identity", identity), ("outcome", outcome)];
            metrics.counter("tollhouse_identity_key_fetches_total", help, &labels)
        };
        let gauge = |name, help| metrics.gauge(name, help, &[("identity", identity)]);
        Self {
            fetched: fetches("fetched"),
            failed: fetches("failed"),
            count: gauge("tollhouse_identity_keys", "Fetched keys that tokens are verified with."),
            at: gauge(
                "tollhouse_identity_keys_fetched_timestamp_seconds",
                "When the keys that tokens are verified with were last fetched.",
            ),
        }
    }
}

impl FetchedKeys {
    /// Keys from this place, which are fetched from now on for as long as somebody holds them; `first` are
    /// gone by until then.
    pub(super) fn start(
        name: Arc<str>,
        place: Place,
        algorithms: Vec<AlgorithmName>,
        lifetime: Duration,
        first: Option<Keys>,
        world: &World,
    ) -> Arc<Self> {
        let keys = Arc::new(Self {
            meters: Meters::new(&name, &*world.metrics),
            name,
            place,
            algorithms,
            lifetime,
            clock: world.clock.clone(),
            rng: world.rng.clone(),
            keys: ArcSwapOption::from_pointee(first),
            progress: Mutex::default(),
            done: watch::Sender::new(0),
            wake: Arc::default(),
            waiting: Semaphore::new(WAITING),
        });
        keys.run(&*world.tasks);
        keys
    }

    fn run(self: &Arc<Self>, tasks: &dyn Tasks) {
        let task = refresh(Arc::downgrade(self), self.wake.clone(), self.clock.clone());
        let mut done = self.done.subscribe();
        let tried = async move { drop(done.wait_for(|done| *done > 0).await) };
        tasks.spawn(Box::pin(task), Box::pin(tried));
    }

    /// The keys as they are now.
    pub(super) fn get(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// What the keys are known by; another number for other keys.
    pub(super) fn epoch(&self) -> u64 {
        self.keys.load().as_ref().map_or(0, |keys| keys.epoch())
    }

    /// The keys of now, fetched if there are none.
    pub(super) async fn some(&self) -> Result<Arc<Keys>, Unavailable> {
        if let Some(keys) = self.get() {
            return Ok(keys);
        }
        self.newer(0, None).await?;
        self.get().ok_or_else(|| self.unavailable("the keys of the identity were never fetched"))
    }

    /// Other keys than those, if there are: as of after this was asked, so that no token of a key that is new is
    /// refused. Who names keys at random only waits longer: fetches have a pause between them.
    pub(super) async fn newer(&self, than: u64, id: Option<&str>) -> Result<Option<Arc<Keys>>, Unavailable> {
        let newer = || self.get().filter(|keys| keys.epoch() != than);
        if let Some(keys) = newer() {
            return Ok(Some(keys));
        }
        let Some(wanted) = self.worthwhile(id)? else { return Ok(None) };
        let place = self.waiting.try_acquire();
        let _place =
            place.map_err(|_| self.unavailable("too many requests wait for keys of the identity"))?;
        let fetched = std::pin::pin!(self.fetched(wanted, id));
        if let Either::Right(_) = select(fetched, self.clock.sleep(PATIENCE)).await {
            return Err(self.unavailable("fetching the keys of the identity takes too long"));
        }
        match newer() {
            Some(keys) => Ok(Some(keys)),
            None if self.progress.lock().failing.is_some() => {
                Err(self.unavailable("the keys of the identity cannot be fetched"))
            }
            None => {
                self.missed(id.unwrap_or_default());
                Ok(None)
            }
        }
    }

    /// The number of the fetch that would tell; none where there is no fetching, or was one just now.
    fn worthwhile(&self, id: Option<&str>) -> Result<Option<u64>, Unavailable> {
        let progress = self.progress.lock();
        let now = self.clock.now();
        let just_now = |at: &Instant| now.saturating_duration_since(*at) < COOL_DOWN;
        let missed = progress.missed.get(id.unwrap_or_default()).is_some_and(just_now);
        if progress.started == 0 || missed {
            return Ok(None);
        }
        if progress.failing.is_some() && progress.asked.as_ref().is_some_and(just_now) {
            drop(progress);
            return Err(self.unavailable("the keys of the identity cannot be fetched"));
        }
        // One that is under way may have been answered before the keys changed.
        Ok(Some(progress.started + 1))
    }

    /// Waits for this fetch, which it sets off when it may, or for one before it that brings the key.
    async fn fetched(&self, wanted: u64, id: Option<&str>) {
        let mut done = self.done.subscribe();
        let has = || id.is_some_and(|id| self.keys.load().as_ref().is_some_and(|keys| keys.has(id)));
        while *done.borrow_and_update() < wanted && !has() {
            let more = std::pin::pin!(done.changed());
            match self.ask(wanted) {
                Some(pause) => drop(select(self.clock.sleep(pause), more).await),
                None => drop(more.await),
            }
        }
    }

    /// Sets a fetch off, unless somebody did; else says when it may be.
    fn ask(&self, wanted: u64) -> Option<Duration> {
        let mut progress = self.progress.lock();
        if progress.wanted.max(progress.started) >= wanted {
            return None;
        }
        let now = self.clock.now();
        let since = progress.asked.map_or(COOL_DOWN, |asked| now.saturating_duration_since(asked));
        if since < COOL_DOWN {
            return Some(COOL_DOWN - since);
        }
        progress.asked = Some(now);
        progress.wanted = wanted;
        self.wake.notify_one();
        None
    }

    fn missed(&self, id: &str) {
        let now = self.clock.now();
        let mut progress = self.progress.lock();
        if progress.missed.len() >= MISSED {
            progress.missed.clear();
        }
        progress.missed.insert(id.into(), now);
    }

    fn unavailable(&self, reason: &'static str) -> Unavailable {
        let next = self.progress.lock().next;
        let left = next.map(|next| next.saturating_duration_since(self.clock.now())).unwrap_or_default();
        let retry_after = left.as_secs_f64().ceil().clamp(1.0, LATEST_RETRY.as_secs_f64()) as u64;
        Unavailable { reason: reason.into(), retry_after }
    }

    /// Fetches the keys; gives when to do so again.
    async fn fetch(&self) -> Duration {
        let (started, is_wanted) = {
            let mut progress = self.progress.lock();
            progress.started += 1;
            (progress.started, progress.wanted == progress.started)
        };
        let answer = self.place.fetch(self.clock.now(), is_wanted).await;
        let outcome = answer.and_then(|KeySetAnswer { set, max_age }| {
            let keys = Keys::from_answer(&set, &self.algorithms);
            keys.map(|keys| (keys, max_age)).map_err(|why| format!("{}: {why}", self.place.name()))
        });
        let pause = match outcome {
            Ok((keys, max_age)) => self.take(keys, max_age),
            Err(why) => self.fail(why),
        };
        self.progress.lock().next = self.clock.now().checked_add(pause);
        self.done.send_replace(started);
        pause
    }

    fn take(&self, keys: Keys, max_age: Option<Duration>) -> Duration {
        let now = self.clock.wall();
        self.meters.fetched.inc();
        self.meters.at.set(unix(now));
        self.meters.count.set(i64::try_from(keys.len()).unwrap_or(i64::MAX));
        if self.epoch() != keys.epoch() {
            log::info!(identity = &*self.name, keys = keys.len(); "an identity has new keys");
            self.keys.store(Some(Arc::new(keys)));
        }
        let mut progress = self.progress.lock();
        progress.fetched = Some(now);
        if progress.failing.take().is_some() {
            log::info!(identity = &*self.name; "the keys of an identity can be fetched again");
        }
        let lifetime = max_age.map_or(self.lifetime, |age| age.clamp(LIFETIME.0, LIFETIME.1));
        // Before they end, and not with all other gateways at once.
        lifetime.mul_f64(0.8 - (self.rng.u64() % 1000) as f64 / 10_000.0)
    }

    /// The last good keys stay.
    fn fail(&self, why: String) -> Duration {
        self.meters.failed.inc();
        let mut progress = self.progress.lock();
        let (since, times) = match &progress.failing {
            Some(failing) => (failing.since, failing.times),
            None if self.keys.load().is_some() => {
                log::warn!(identity = &*self.name, error = why.as_str(); "cannot fetch keys; keeping the last ones");
                (self.clock.wall(), 0)
            }
            None => {
                log::warn!(identity = &*self.name, error = why.as_str(); "cannot fetch keys; tokens are answered 503");
                (self.clock.wall(), 0)
            }
        };
        progress.failing = Some(Failing { why, since, times: times.saturating_add(1) });
        RETRY.saturating_mul(1 << times.min(8)).min(LATEST_RETRY)
    }

    /// For whoever operates the gateway.
    pub(super) fn state(&self) -> KeysState {
        let progress = self.progress.lock();
        let left = progress.next.map(|next| next.saturating_duration_since(self.clock.now()));
        KeysState {
            from: self.place.name().to_owned(),
            count: self.get().map_or(0, |keys| keys.len()),
            fetched: progress.fetched,
            next: left.and_then(|left| self.clock.wall().checked_add(left)),
            failing: progress.failing.as_ref().map(|failing| (failing.why.clone(), failing.since)),
        }
    }
}

impl Drop for FetchedKeys {
    fn drop(&mut self) {
        // The task sees that nobody needs it.
        self.wake.notify_one();
    }
}

async fn refresh(keys: Weak<FetchedKeys>, wake: Arc<Notify>, clock: Arc<dyn Clock>) {
    loop {
        let pause = match keys.upgrade() {
            Some(keys) => keys.fetch().await,
            None => return,
        };
        let _ = select(clock.sleep(pause), std::pin::pin!(wake.notified())).await;
    }
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
