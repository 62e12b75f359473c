//! Reloading when an input changes, on SIGHUP, or when the admin API asks.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{aside, outside, people, tls};
use crate::cache::Cache;
use crate::consumers::{QUIET, is_passing};
use crate::door::{self, Desk, HeadLimits};
use crate::observe::metrics;
use crate::proxy::Budget;
use crate::snapshot::{Reloaded, Reloader, Snapshot};
use crate::source::{Fingerprint, Problems, Stir, Watch};
use crate::store::RedisStore;

/// When memory that compiling took is free for long enough.
const SETTLED: Duration = Duration::from_millis(1500);

/// When a reload that panicked is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How often certificates that end soon are warned about.
const REMIND: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest target that can be read; just short of the most that the document may allow, as nobody writes such a number.
const LONGEST_TARGET: u64 = 65_534;

/// What a new snapshot sets beside itself.
pub(super) struct Applied {
    pub(super) desk: Desk,
    pub(super) budget: Arc<Budget>,
    pub(super) cache: Arc<Cache>,
    /// Who follows the consumers' file.
    pub(super) people: people::Stirs,
}

/// A reload is wanted and, perhaps, its outcome.
type Wish = Option<oneshot::Sender<Arc<Reloaded>>>;

/// Asks for a reload and, if wanted, for its outcome.
pub(super) type Requests = UnboundedSender<Wish>;

/// Starts what reloads, and what wakes it.
pub(super) fn start(
    reloader: Arc<Reloader>,
    applied: Applied,
    snapshot: &Snapshot,
    hangups: UnboundedReceiver<()>,
    runtime: &Handle,
) -> Requests {
    let (requests, wishes) = unbounded_channel::<Wish>();
    let changed = requests.clone();
    let watch = Watch::start(snapshot.inputs(), move || drop(changed.send(None)));
    let watch = watch.inspect_err(|error| log::error!("cannot watch the configuration: {error}")).ok();
    // What changed after it was read and before it was watched, nobody tells.
    drop(requests.send(None));
    applied.note(snapshot);
    settle(runtime);
    runtime.spawn(pass_on(hangups, requests.clone()));
    runtime.spawn(remind_of_certificates(reloader.clone()));
    let watched = Mutex::new(snapshot.inputs());
    runtime.spawn(follow(wishes, Arc::new(Reloads { reloader, applied, watch, watched })));
    requests
}

/// Does as is wished, one reload after the other, on a thread that is there for as long as it takes.
async fn follow(mut wishes: UnboundedReceiver<Wish>, reloads: Arc<Reloads>) {
    let mut again = None;
    while let Some(asked) = next(&mut wishes, again).await {
        // Several wishes are one reload.
        let more = std::iter::from_fn(|| wishes.try_recv().ok());
        let answers: Vec<_> = std::iter::once(asked).chain(more).flatten().collect();
        let reloads = reloads.clone();
        let reloaded = aside::run("reload", move || reloads.reload()).await;
        let Ok(outcome) = reloaded.inspect_err(|error| log::error!("a reload failed: {error}")) else {
            // What changed is told once.
            again = Some(RETRY);
            continue;
        };
        again = wait_after(&outcome);
        if matches!(&*outcome, Reloaded::Swapped { .. }) {
            settle(&Handle::current());
        }
        for answer in answers {
            let _ = answer.send(outcome.clone());
        }
    }
}

/// The next wish; after a while nobody's, where it has to be tried again.
async fn next(wishes: &mut UnboundedReceiver<Wish>, again: Option<Duration>) -> Option<Wish> {
    let Some(wait) = again else { return wishes.recv().await };
    timeout(wait, wishes.recv()).await.unwrap_or(Some(None))
}

/// When what came of a reload has to be tried again though nobody tells.
fn wait_after(outcome: &Reloaded) -> Option<Duration> {
    matches!(outcome, Reloaded::Refused { problems, .. } if is_passing(problems)).then_some(QUIET)
}

/// What a reload takes.
struct Reloads {
    reloader: Arc<Reloader>,
    applied: Applied,
    watch: Option<Watch>,
    /// Its inputs.
    watched: Mutex<Vec<PathBuf>>,
}

impl Reloads {
    fn reload(&self) -> Arc<Reloaded> {
        let mut watched = self.watched.lock();
        let held = Fingerprint::of_inputs(&watched);
        let outcome = self.reloader.reload();
        let inputs = self.applied.apply(&self.reloader, &outcome);
        if let Some(watch) = &self.watch {
            // Whoever wished for it: what changes back before the watch looks is a change all the same.
            watch.was_read(held);
            if let Some(inputs) = inputs {
                watched.clone_from(&inputs);
                watch.set_inputs(inputs);
            }
        }
        Arc::new(outcome)
    }
}

impl Applied {
    /// Has a new snapshot take effect beside itself, and says what came of the reload; gives what is to be watched if that
    /// may be something else.
    fn apply(&self, reloader: &Reloader, outcome: &Reloaded) -> Option<Vec<PathBuf>> {
        let snapshot = reloader.live().load();
        match outcome {
            Reloaded::Unchanged => None,
            Reloaded::Refused { problems, again } => {
                if !again {
                    report(problems, snapshot.generation);
                    self.desk.observe.registry.config_rejected();
                }
                Some(problems.inputs.iter().cloned().chain(snapshot.inputs()).collect())
            }
            Reloaded::Swapped { generation, needs_upgrade } => {
                for name in needs_upgrade {
                    log::warn!(setting = *name; "a change needs `tollhouse upgrade` to take effect");
                }
                self.note(&snapshot);
                log::info!(generation = generation, routes = snapshot.routes.len(); "configuration reloaded");
                Some(snapshot.inputs())
            }
        }
    }

    /// Carries settings that live outside the snapshot to where they work.
    fn note(&self, snapshot: &Snapshot) {
        self.desk.permits.set_limits(door_limits(snapshot));
        self.desk.limits.store(Arc::new(head_limits(snapshot)));
        // Its thread lives as long as the process.
        let _ = self.people.send(Stir::Written);
        self.desk.tls.store(Arc::new(tls::by_id(snapshot)));
        tls::export(snapshot, &self.desk.observe.registry);
        self.budget.set_limit(snapshot.server.limits.buffered_bytes.get());
        if snapshot.caches.is_none() {
            // What is in a directory goes too, also in one that is given up now.
            self.cache.set_used(false);
        }
        if let Err(error) = outside::furnish(self.cache.store(), &snapshot.server.cache) {
            log::error!("cannot use the directory of `server.cache.disk`, it stays as it was: {error}");
        }
        self.cache.share(shared_by(snapshot));
        self.cache.set_used(snapshot.caches.is_some());
        let log = &snapshot.observability.access_log;
        if let Err(error) = self.desk.observe.reopen(&log.format, &log.to) {
            log::error!("cannot open the access log, the old one stays: {error}");
        }
        for warning in &snapshot.warnings.list {
            log::warn!("{warning}");
        }
        let registry = &self.desk.observe.registry;
        registry.config_applied(snapshot.generation, SystemTime::now());
        let routes: HashSet<&str> =
            snapshot.routes.iter().map(|route| &*route.name).chain([&*snapshot.unrouted.name]).collect();
        let listeners: HashSet<&str> = snapshot.listeners.iter().map(|listener| &*listener.name).collect();
        let upstreams: HashSet<&str> = snapshot.upstreams.iter().map(|upstream| &*upstream.name).collect();
        registry.retain(&metrics::Live { listeners: &listeners, routes: &routes, upstreams: &upstreams });
    }
}

/// Says once what is wrong with a refused candidate.
fn report(problems: &Problems, generation: u64) {
    for problem in &problems.list {
        log::error!("{problem}");
    }
    log::error!(generation = generation; "the changed configuration is refused; the running one stays");
}

/// The store over which the cache shares purges.
pub(super) fn shared_by(snapshot: &Snapshot) -> Option<&Arc<RedisStore>> {
    let name = snapshot.server.cache.store.as_ref()?;
    snapshot.stores.iter().find(|store| **store.name() == *name.as_str())
}

/// What the door enforces.
pub(super) fn door_limits(snapshot: &Snapshot) -> door::Limits {
    let limits = &snapshot.server.limits;
    door::Limits {
        total: limits.connections.get(),
        per_ip: limits.connections_per_ip.map(std::num::NonZero::get),
    }
}

/// What the door asks of a request's head.
pub(super) fn head_limits(snapshot: &Snapshot) -> HeadLimits {
    let limits = &snapshot.server.limits;
    HeadLimits {
        header_bytes: limits.header_bytes.get(),
        header_count: limits.header_count.get(),
        uri_bytes: limits.uri_bytes.get().min(LONGEST_TARGET),
        header_timeout: limits.header_timeout.get(),
        idle_timeout: limits.idle_timeout.get(),
        body_timeout: limits.body_timeout.get(),
        min_rate: limits.min_rate.get(),
    }
}

/// Gives back what compiling a large document took. The allocator keeps free memory for a second, and
/// looks for such whenever a thread ends.
fn settle(runtime: &Handle) {
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);
    if UNDER_WAY.swap(true, Relaxed) {
        return;
    }
    runtime.spawn(async {
        sleep(SETTLED).await;
        UNDER_WAY.store(false, Relaxed);
        // A thread that never held memory has nothing to tidy at its end.
        let _ = aside::run("settle", || drop(std::hint::black_box(vec![0_u8; 64]))).await;
    });
}

async fn pass_on(mut hangups: UnboundedReceiver<()>, requests: Requests) {
    while hangups.recv().await.is_some() && requests.send(None).is_ok() {}
}

/// Certificates that end soon are warned about when they are read, and every day from then on.
async fn remind_of_certificates(reloader: Arc<Reloader>) {
    loop {
        sleep(REMIND).await;
        tls::remind(&reloader.live().load());
    }
}
