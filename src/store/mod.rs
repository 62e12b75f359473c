//! Stores over Redis' protocol: decisions that gateways share, each with a deadline.
//!
//! A decision is one command over a connection that all requests share. Nobody connects, or waits for a
//! connection, on a request's path: while there is none, the store is away at once. A task of its own
//! connects, looks every second whether the store still decides, and connects anew when it does not.

mod journal;
mod keeper;
mod link;
mod numbers;
mod reason;
mod records;
mod script;
mod target;
mod view;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use redis::{RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tollhouse_filters::world::{Away, Charge, Metrics, OnFailure, Records, Store, Tally, TenantId};

pub use self::journal::{Journal, News, Place, Reader};
pub use self::keeper::Keeper;
use self::link::Link;
use self::numbers::Numbers;
use self::reason::Reason;
use self::script::{Demand, Keyed};
use self::target::Target;
pub(crate) use self::target::files_of;
pub use self::view::StoreView;
use self::view::{Health, State};
use crate::config;

/// The longest `timeout`: requests wait as long when a store begins to hang.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A store of the document. What is connected for it ends with it.
pub struct RedisStore {
    shared: Arc<Shared>,
    task: OnceLock<AbortHandle>,
    /// Where what nobody waits for runs.
    runtime: OnceLock<Handle>,
}

/// What requests and the task that keeps the connection have in common.
struct Shared {
    name: Arc<str>,
    options: config::Store,
    target: Target,
    link: ArcSwapOption<Link>,
    health: Mutex<Health>,
    /// Somebody waits for the first attempt to connect.
    tried: Condvar,
    /// A request found the store away.
    fallen: Notify,
    numbers: Numbers,
}

impl RedisStore {
    /// A store that is away until a [`Keeper`] has it. Problems have their key before them. Files are read
    /// only relative to a `base`.
    ///
    /// # Errors
    /// With all that is wrong with what is written.
    pub fn new(
        name: Arc<str>,
        options: &config::Store,
        base: Option<&Path>,
        metrics: &dyn Metrics,
    ) -> Result<Self, Vec<(&'static str, String)>> {
        let target = Target::new(options, base);
        let too_long = options.timeout.get() > LONGEST_TIMEOUT;
        let too_long = too_long.then(|| ("timeout", "expected at most 1s".to_owned()));
        let target = match (target, too_long) {
            (Ok(target), None) => target,
            (target, too_long) => {
                return Err(target.err().into_iter().flatten().chain(too_long).collect());
            }
        };
        let shared = Shared {
            numbers: Numbers::new(&name, options.on_failure, metrics),
            name,
            options: options.clone(),
            target,
            link: ArcSwapOption::empty(),
            health: Mutex::default(),
            tried: Condvar::new(),
            fallen: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared), task: OnceLock::new(), runtime: OnceLock::new() })
    }

    /// Its name in the document.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Whether the other one is written and connected to in the same way.
    #[must_use]
    pub fn same_shape(&self, other: &Self) -> bool {
        self.shared.options == other.shared.options && self.shared.target.same_files(&other.shared.target)
    }

    /// As an administrator sees it.
    #[must_use]
    pub fn view(&self) -> StoreView {
        StoreView::of(&self.shared)
    }
}

/// Has the stores of a document be told of instead of those of the one before it: those that it has no more may go on,
/// but what becomes of them is no news of those that have their names.
pub fn hand_over(before: &[Arc<RedisStore>], now: &[Arc<RedisStore>]) {
    for store in before.iter().filter(|store| !now.iter().any(|kept| Arc::ptr_eq(kept, store))) {
        store.shared.health.lock().retired = true;
    }
    for store in now {
        store.shared.publish(&store.shared.health.lock());
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn decide(
        &self,
        tenant: TenantId,
        scope: &str,
        charges: &mut [Charge<'_>],
        tallies: &mut [Tally<'_>],
    ) -> Result<bool, Away> {
        if charges.is_empty() && tallies.is_empty() {
            return Ok(true);
        }
        let Some(link) = self.shared.link.load_full() else {
            self.shared.numbers.missed.inc();
            return Err(Away);
        };
        let started = Instant::now();
        let prefix = self.shared.options.prefix.to_string();
        let demand = Demand::new(&Keyed::new(&prefix, tenant, scope), charges, tallies);
        let spent = self.shared.decide(&link, demand).await;
        match spent {
            Some(_) => self.shared.numbers.decided(started.elapsed()),
            None => self.shared.numbers.missed.inc(),
        }
        spent.ok_or(Away)
    }

    fn give_back(&self, tenant: TenantId, scope: &str, key: &[u8], slot: u64, cost: u64) {
        let (Some(runtime), Some(link)) = (self.runtime.get(), self.shared.link.load_full()) else { return };
        let prefix = self.shared.options.prefix.to_string();
        let key = Keyed::new(&prefix, tenant, scope).quota(key);
        let shared = self.shared.clone();
        runtime.spawn(async move {
            let given = timeout(shared.options.timeout.get(), link.give_back(&key, slot, cost)).await;
            if !matches!(given, Ok(Ok(()))) {
                log::debug!(store = &*shared.name; "units of a quota could not be given back");
            }
        });
    }

    fn on_failure(&self) -> OnFailure {
        self.shared.options.on_failure
    }

    fn records(&self) -> Option<&dyn Records> {
        Some(self)
    }
}

impl Shared {
    /// Decides over this link.
    async fn decide(&self, link: &Arc<Link>, mut demand: Demand<'_, '_, '_>) -> Option<bool> {
        let answer = self.answered(link, link.decide(&demand)).await?;
        let spent = demand.settle(&answer);
        if spent.is_none() {
            self.fall(link, Reason::Nonsense);
        }
        spent
    }

    /// What is answered over this link; without an answer in time, the link may be no good any more.
    async fn answered(
        &self,
        link: &Arc<Link>,
        asked: impl Future<Output = RedisResult<Value>>,
    ) -> Option<Value> {
        let deadline = self.options.timeout.get();
        let reason = match timeout(deadline, asked).await {
            Ok(Ok(answer)) => {
                link.answered();
                return Some(answer);
            }
            Ok(Err(error)) => Reason::from(error),
            Err(_) if link.missed() => Reason::Slow(deadline),
            // Once is no reason to give up a connection.
            Err(_) => return None,
        };
        self.fall(link, reason);
        None
    }

    /// This link decides from now on.
    fn rise(&self, link: Arc<Link>) {
        let mut health = self.health.lock();
        self.link.store(Some(link));
        let before = health.change(State::Up);
        self.publish(&health);
        if let Some(before) = before.filter(|_| !health.retired) {
            let message = if before == State::Starting { "a store is there" } else { "a store is back" };
            log::info!(store = &*self.name; "{message}");
        }
        self.tried.notify_all();
    }

    /// This link decides no more, if it still did: a late failure of an earlier one changes nothing.
    fn fall(&self, link: &Arc<Link>, reason: Reason) {
        let mut health = self.health.lock();
        if !self.is_current(link) {
            return;
        }
        self.link.store(None);
        self.sink_in(&mut health, reason);
        self.fallen.notify_one();
    }

    /// No link could be made.
    fn sink(&self, reason: Reason) {
        self.sink_in(&mut self.health.lock(), reason);
        self.tried.notify_all();
    }

    /// Says what is wrong when that is news.
    fn sink_in(&self, health: &mut Health, reason: Reason) {
        let text = reason.to_string();
        let is_news = health.change(State::Down(reason)).is_some() && !health.retired;
        self.publish(health);
        if is_news {
            let on_failure = self.options.on_failure.name();
            log::warn!(store = &*self.name, on_failure = on_failure; "a store is away: {text}");
        }
    }

    /// Sets the number that says whether it decides, which it shares with all of its name.
    fn publish(&self, health: &Health) {
        if !health.retired {
            self.numbers.up.set((health.state == State::Up).into());
        }
    }

    fn is_current(&self, link: &Arc<Link>) -> bool {
        self.link.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, link))
    }
}
