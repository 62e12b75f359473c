//! Keeps stores connected, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tollhouse_filters::world::{Budget, Charge, TenantId};

use super::link::Link;
use super::script::{Demand, Keyed};
use super::view::State;
use super::{Reason, RedisStore, Shared};

/// Longest wait for a connection, and for a store to take the script.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// Wait after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that held as long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);
/// How often an idle connection is tried.
const EVERY: Duration = Duration::from_secs(1);
/// Attempts at a decision, one of which has to be in time.
const ATTEMPTS: u32 = 3;
/// Longest wait for the first attempts of new stores.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);

/// Connects stores; its thread starts with the first one.
#[derive(Default)]
pub struct Keeper {
    running: Mutex<Option<Running>>,
}

struct Running {
    runtime: Handle,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl Keeper {
    /// Connects those of these stores that are new, and waits, within bounds, until each was tried once.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn keep(&self, stores: &[Arc<RedisStore>]) -> io::Result<()> {
        let new: Vec<_> = stores.iter().filter(|store| store.task.get().is_none()).collect();
        if new.is_empty() {
            return Ok(());
        }
        let runtime = self.runtime()?;
        for store in &new {
            let task = runtime.spawn(keep(store.shared.clone())).abort_handle();
            let _ = store.runtime.set(runtime.clone());
            if let Err(second) = store.task.set(task) {
                second.abort();
            }
        }
        let until = Instant::now() + FIRST_ATTEMPT;
        for store in new {
            let shared = &store.shared;
            let starting = |health: &mut super::Health| health.state == State::Starting;
            shared.tried.wait_while_until(&mut shared.health.lock(), starting, until);
        }
        Ok(())
    }

    fn runtime(&self) -> io::Result<Handle> {
        let mut running = self.running.lock();
        if let Some(running) = &*running {
            return Ok(running.runtime.clone());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("stores".to_owned()).spawn(move || {
            let _ = runtime.block_on(stopped);
        })?;
        *running = Some(Running { runtime: handle.clone(), _stop: stop });
        Ok(handle)
    }
}

/// Connects a store, and connects it anew whenever it is away.
async fn keep(shared: Arc<Shared>) {
    let mut pause = Pause::default();
    loop {
        let began = Instant::now();
        match timeout(CONNECT, connect(&shared)).await {
            Ok(Ok((link, driver))) => {
                shared.rise(link.clone());
                watch(&shared, link, driver).await;
            }
            Ok(Err(reason)) => shared.sink(reason),
            Err(_) => shared.sink(Reason::Slow(CONNECT)),
        }
        if began.elapsed() >= GOOD {
            pause = Pause::default();
        }
        sleep(pause.next()).await;
    }
}

/// How long to wait before the next attempt.
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pause {
    /// The wait, which is longer each time.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        // Gateways that lost a store together do not come back to it together.
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The task that runs a connection; it ends with this, whatever it still waits for.
pub(super) struct Driver(pub(super) JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection over which the store has shown that it decides in time, and what runs it.
async fn connect(shared: &Shared) -> Result<(Arc<Link>, Driver), Reason> {
    let (connection, driver) = shared.target.connect().await?;
    let driver = Driver(tokio::spawn(driver));
    let link = Arc::new(Link::new(connection).await?);
    let deadline = shared.options.timeout.get();
    for _ in 0..ATTEMPTS {
        if let Ok(decided) = timeout(deadline, probe(shared, &link)).await {
            return decided.map(|()| (link, driver));
        }
    }
    Err(Reason::Slow(deadline))
}

/// Returns once the link is given up.
async fn watch(shared: &Shared, link: Arc<Link>, mut driver: Driver) {
    while shared.is_current(&link) {
        tokio::select! {
            () = shared.fallen.notified() => {}
            _ = &mut driver.0 => shared.fall(&link, Reason::Closed),
            () = sleep(EVERY) => try_out(shared, &link).await,
        }
    }
}

/// Gives the link up if the store decides nothing over it any more, though nobody may have asked.
async fn try_out(shared: &Shared, link: &Arc<Link>) {
    let deadline = shared.options.timeout.get();
    loop {
        match timeout(deadline, probe(shared, link)).await {
            Ok(Ok(())) => return link.answered(),
            Ok(Err(reason)) => return shared.fall(link, reason),
            Err(_) if link.missed() => return shared.fall(link, Reason::Slow(deadline)),
            Err(_) => {}
        }
    }
}

/// A decision that costs nobody anything: it is made as all are, down to what it writes.
async fn probe(shared: &Shared, link: &Link) -> Result<(), Reason> {
    let budget = Budget::new(Duration::from_micros(1), 1000).expect("a millisecond is no year");
    let mut charges = [Charge::new(b"probe", budget, 1)];
    let prefix = shared.options.prefix.to_string();
    let mut demand = Demand::new(&Keyed::new(&prefix, TenantId(0), ""), &mut charges, &mut []);
    let answer = link.decide(&demand).await?;
    demand.settle(&answer).map(|_| ()).ok_or(Reason::Nonsense)
}
