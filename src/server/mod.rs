//! Assembles everything: the only place that knows every part.

mod admin_socket;
mod aside;
mod descriptors;
mod drain;
mod first;
mod lifetime;
mod outside;
mod people;
mod reloading;
mod signals;
mod succession;
mod supervisor;
mod takeover;
mod tls;
mod upgrade;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::{Revocations, State, Tasks, World};

use self::lifetime::Lifetime;
use self::signals::Signals;
use self::takeover::Predecessor;
use self::upgrade::Upgrades;
use crate::admin::{self, AdminState};
use crate::cache::Cache;
use crate::config::Protocol;
use crate::door::{self, Desk, Door, Draining, HandshakeFailure, Pause, Permits, Refusals, Refused, Rule};
use crate::engine::{Background, SideCalls};
use crate::handover::Sockets;
use crate::ledger::{self, Ledger};
use crate::observe::{self, Observe};
use crate::proxy::{Budget, Front, Gateway};
use crate::release::ramp;
use crate::snapshot::{Live, Reloader, Snapshot, apart};
use crate::source::Problems;
use crate::store::Keeper;
use crate::upstream::Monitor;

/// Why the gateway did not start.
#[derive(Debug)]
pub enum StartError {
    /// The document has problems.
    Document(Problems),
    /// The machine refuses something, such as a port.
    Runtime(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Document(problems) => problems.fmt(f),
            Self::Runtime(message) => message.fmt(f),
        }
    }
}

impl From<Problems> for StartError {
    fn from(problems: Problems) -> Self {
        Self::Document(problems)
    }
}

/// How a process came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody started it.
    First,
    /// As `First`, and nothing can take its place: it has more to do than to serve.
    Sole,
    /// It is to take the place of the process at the other end of standard input, and is that one's child.
    Child,
    /// As `Child`, and nobody's child any more.
    Successor,
}

/// Serves traffic as the document at `path` says, until the process is told to end; calls `bound` once its sockets
/// are open.
pub fn run<E: From<StartError>>(
    path: PathBuf,
    registry: Arc<Registry>,
    origin: Origin,
    bound: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    if origin == Origin::Child {
        return Ok(takeover::orphan(&path)?);
    }
    observe::log::init(log::LevelFilter::Info);
    descriptors::raise();
    let signals = signals::listen()
        .map_err(|error| StartError::Runtime(format!("cannot listen for signals: {error}")))?;
    let mut before = match origin {
        Origin::Successor => Some(Predecessor::meet()?),
        Origin::First | Origin::Sole | Origin::Child => None,
    };
    match Parts::prepare(path, registry, before.as_mut()) {
        Ok(parts) => {
            bound()?;
            Ok(parts.serve(signals, origin, before)?)
        }
        Err(error) => {
            if let Some(before) = &mut before {
                before.disappoint(&error);
            }
            Err(error.into())
        }
    }
}

/// Everything that is there before the first connection is accepted.
struct Parts {
    path: PathBuf,
    state: Arc<dyn State>,
    revocations: Arc<Revocations>,
    live: Arc<Live>,
    reloader: Arc<Reloader>,
    desk: Desk,
    budget: Arc<Budget>,
    cache: Arc<Cache>,
    bound: Vec<door::Bound>,
    admin: Option<(SocketAddr, TcpListener)>,
    /// What writes down, until the process ends, what is used of quotas, and how far ramps are.
    kept: (Option<Ledger>, Option<ramp::Keeper>),
}

impl Parts {
    /// All that is to be done before a connection is accepted; whoever is there `before` hands over.
    fn prepare(
        path: PathBuf,
        registry: Arc<Registry>,
        mut before: Option<&mut Predecessor>,
    ) -> Result<Self, StartError> {
        let calls = Arc::new(SideCalls::new());
        let background = Background::start()
            .map_err(|error| StartError::Runtime(format!("cannot start a thread: {error}")))?;
        let succeeds = before.is_some();
        let (snapshot, world, observe, cache) =
            apart(|| first::snapshot(&path, &registry, &calls, &background, succeeds))?;
        let monitor = Monitor::start(calls.caller().clone(), calls.origins(), observe.registry.clone())
            .map_err(|error| StartError::Runtime(format!("cannot watch backends: {error}")))?;
        let monitor = Arc::new(monitor);
        monitor.watch(&snapshot.upstreams, &snapshot.server.dns);
        let keeper = Keeper::default();
        keeper
            .keep(&snapshot.stores)
            .map_err(|error| StartError::Runtime(format!("cannot connect to stores: {error}")))?;
        cache.share(reloading::shared_by(&snapshot));
        if let Some(before) = &mut before {
            before.resume(&snapshot);
        }
        let mut sockets =
            before.as_mut().map(|before| std::mem::take(&mut before.sockets)).unwrap_or_default();
        let (state, revocations) = (world.state.clone(), world.revocations.clone());
        let ledger = keep_quotas(&snapshot, &path, &state, &observe)?;
        let mut parts = Self::new(
            snapshot,
            path,
            registry,
            world,
            (observe, cache),
            (monitor.clone(), keeper),
            &mut sockets,
        )?;
        parts.kept = (ledger, Some(keep_ramps(&parts)?));
        calls.follow(&parts.live);
        background.begin();
        // Connections wait meanwhile; none is given to a backend that nothing is known about.
        monitor.warm_up();
        background.settle();
        if let Some(before) = before {
            before.remember(&*state, &revocations)?;
        }
        Ok(parts)
    }

    /// Opens every socket, so that a busy port is an error and not a gateway without a listener.
    fn new(
        snapshot: Snapshot,
        path: PathBuf,
        registry: Arc<Registry>,
        world: World,
        (observe, cache): (Arc<Observe>, Arc<Cache>),
        (monitor, keeper): (Arc<Monitor>, Keeper),
        sockets: &mut Sockets,
    ) -> Result<Self, StartError> {
        let listeners: Vec<door::Listener> = (0u16..)
            .zip(&snapshot.listeners)
            .map(|(id, plan)| door::Listener {
                id,
                name: plan.name.clone(),
                address: plan.options.address.clone(),
                h2c: plan.options.protocols().contains(&Protocol::H2c),
                proxied: plan.options.accept_proxy_protocol,
            })
            .collect();
        // Before any other is opened, so that what is left is what nobody takes.
        let inherited = admin_socket::take(snapshot.admin.address, sockets);
        let bound =
            door::bind(&listeners, sockets).map_err(|error| StartError::Runtime(error.to_string()))?;
        for (bound, listener) in bound.iter().zip(&listeners) {
            let address = bound
                .local_addr()
                .map_or_else(|| listener.address.to_string(), |address| address.to_string());
            log::info!(listener = &*listener.name, address:% = address; "bound");
        }
        let admin = admin_socket::bind(snapshot.admin.address, inherited, sockets)?;
        let limits = &snapshot.server.limits;
        let budget = Arc::new(Budget::new(limits.buffered_bytes.get()));
        let live = Arc::new(Live::new(snapshot));
        let trusted = live.clone();
        let exempt = move |address| trusted.load().server.trusted_proxies.contains(address);
        let desk = Desk {
            permits: Permits::new(reloading::door_limits(&live.load()), exempt),
            limits: Arc::new(ArcSwap::from_pointee(reloading::head_limits(&live.load()))),
            refusals: Arc::new(Refusals::default()),
            tls: Arc::new(ArcSwap::from_pointee(tls::by_id(&live.load()))),
            handshakes: Arc::default(),
            observe,
            draining: Draining::default(),
            over: Draining::default(),
            pause: Pause::default(),
        };
        let (state, revocations) = (world.state.clone(), world.revocations.clone());
        let verify = outside::verify(registry.clone());
        let reloader = Reloader::new(path.clone(), registry, world, live.clone(), verify);
        let reloader = Arc::new(reloader.watched_by(monitor).connected_by(keeper));
        let kept = (None, None);
        Ok(Self { path, state, revocations, live, reloader, desk, budget, cache, bound, admin, kept })
    }

    fn serve(self, signals: Signals, origin: Origin, before: Option<Predecessor>) -> Result<(), StartError> {
        let serving = self.kept.1.as_ref().map(|keeper| keeper.serving().clone()).unwrap_or_default();
        let upgrades = Upgrades::new(
            self.path.clone(),
            self.live.clone(),
            self.state.clone(),
            self.revocations.clone(),
            (self.desk.pause.clone(), serving.clone()),
            self.shared()?,
            origin,
        );
        let upgrades = Arc::new(upgrades);
        let snapshot = self.live.load();
        let lifetime = Lifetime { origin, before, upgrades: upgrades.clone() };
        let opened = lifetime.begin(&snapshot.server, &signals.runtime)?;
        let mut server = Server::new_with_opt_and_conf(None, server_conf(&snapshot));
        server.bootstrap();
        let gateway = self.gateway();
        let opened = watched(opened, &gateway, serving);
        let mut proxy = pingora::proxy::http_proxy(&server.configuration, gateway.clone());
        proxy.server_options = Some(http_options());
        proxy.h2_options = Some(h2_options(&snapshot));
        self.export();
        self.cache.export();
        people::export(&self.desk.observe.registry, &self.live);
        let people = people::start(self.live.clone(), &signals.runtime);
        let (desk, budget, cache) = (self.desk.clone(), self.budget.clone(), self.cache.clone());
        let applied = reloading::Applied { desk, budget, cache, people };
        let (reloader, runtime) = (self.reloader.clone(), &signals.runtime);
        let reloads = reloading::start(reloader, applied, &snapshot, signals.hangups, runtime);
        let stopping = Draining::default();
        let state = AdminState {
            live: self.live.clone(),
            reloads,
            observe: self.desk.observe.clone(),
            stopping: stopping.clone(),
            registry: self.reloader.registry().clone(),
            revocations: self.revocations.clone(),
            cache: self.cache.clone(),
        };
        let admin = self.admin.map(|(_, listener)| admin::start(listener, state)).transpose();
        let admin = admin
            .map_err(|error| StartError::Runtime(format!("cannot start the admin listener: {error}")))?;
        let front = Front { gateway, proxy: Arc::new(proxy) };
        let door = Door::new(Arc::new(front), self.bound, self.desk.clone()).when_open(opened);
        server.add_service(door);
        signals.serving.store(true, Relaxed);
        let stops = tokio::sync::Mutex::new(signals.stops);
        let leaving =
            drain::Leaving { desk: self.desk.clone(), live: self.live, admin, upgrades, stops, stopping };
        // Held on, it would keep what later ones have no more: connections to stores, for one.
        drop(snapshot);
        server.run(RunArgs { shutdown_signal: Box::new(leaving) });
        // What the last requests used is written down, and what they stored.
        drop(self.kept);
        self.cache.store().close();
        self.desk.observe.flush();
        Ok(())
    }

    fn gateway(&self) -> Gateway {
        Gateway {
            live: self.live.clone(),
            observe: self.desk.observe.clone(),
            cache: self.cache.clone(),
            overload: Arc::default(),
            budget: self.budget.clone(),
            draining: self.desk.draining.clone(),
        }
    }

    /// Copies of every listening socket, by name, for the next process.
    fn shared(&self) -> Result<Vec<(String, OwnedFd)>, StartError> {
        let listeners = self.bound.iter().map(door::Bound::share);
        let admin = self.admin.iter().map(|(written, listener)| {
            Ok((admin_socket::name(*written), OwnedFd::from(listener.try_clone()?)))
        });
        let shared: std::io::Result<Vec<_>> = listeners.chain(admin).collect();
        shared
            .map_err(|error| StartError::Runtime(format!("cannot keep sockets for a next process: {error}")))
    }

    /// Numbers that others keep and metrics only read.
    fn export(&self) {
        let registry = &self.desk.observe.registry;
        let permits = || self.desk.permits.clone();
        let open = permits();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let help = "Connections, by state.";
        registry.register_gauge_fn("tollhouse_connections", help, &[("state", "open")], move || {
            count(open.open())
        });
        for why in Refused::ALL {
            let (permits, labels) = (permits(), [("reason", why.name())]);
            let help = "Connections refused, by the reason.";
            registry.register_counter_fn("tollhouse_connections_refused_total", help, &labels, move || {
                permits.refused(why)
            });
        }
        for rule in Rule::all() {
            let refusals = self.desk.refusals.clone();
            let help = "Requests that could not be read, by the rule they broke.";
            let labels = [("reason", rule.name())];
            registry.register_counter_fn("tollhouse_requests_refused_total", help, &labels, move || {
                refusals.count(rule)
            });
        }
        for failure in HandshakeFailure::ALL {
            let handshakes = self.desk.handshakes.clone();
            let name = "tollhouse_tls_handshakes_failed_total";
            let help = "TLS handshakes with clients that failed, by reason.";
            let labels = [("reason", failure.name())];
            registry.register_counter_fn(name, help, &labels, move || handshakes.count(failure));
        }
        let revocations = self.revocations.clone();
        let help = "Entries about tokens that no longer hold.";
        registry.register_gauge_fn("tollhouse_revocations", help, &[], move || count(revocations.len()));
        let budget = self.budget.clone();
        let help = "Bytes of request bodies buffered for filters.";
        registry.register_gauge_fn("tollhouse_buffered_bytes", help, &[], move || {
            i64::try_from(budget.used()).unwrap_or(i64::MAX)
        });
    }
}

/// Looks after the runtime that the door runs on from when it opens; then this process serves.
fn watched(opened: door::Opened, gateway: &Gateway, serving: Arc<AtomicBool>) -> door::Opened {
    gateway.overload.export(&gateway.observe.registry);
    let (overload, live) = (gateway.overload.clone(), Arc::downgrade(&gateway.live));
    Box::new(move |told| {
        tokio::spawn(overload.watch(live));
        serving.store(told.is_ok(), Relaxed);
        opened(told);
    })
}

/// Knows again what was used of quotas, and writes down what will be.
fn keep_quotas(
    snapshot: &Snapshot,
    document: &Path,
    state: &Arc<dyn State>,
    observe: &Observe,
) -> Result<Option<Ledger>, StartError> {
    let place = ledger::place(snapshot.server.quotas.as_ref(), document);
    let ledger = place.map(|path| Ledger::start(ledger::File::at(path), state.clone(), &*observe.registry));
    ledger.transpose().map_err(|error| StartError::Runtime(format!("cannot keep quotas: {error}")))
}

/// Knows again how far ramps were, and keeps how far they are.
fn keep_ramps(parts: &Parts) -> Result<ramp::Keeper, StartError> {
    let snapshot = parts.live.load();
    snapshot.ramps().for_each(|(_, ramp)| ramp.watch());
    let place = ledger::place(snapshot.server.quotas.as_ref(), &parts.path);
    // Held to the end: of a document that is gone, all ramps would be forgotten.
    let live = parts.live.clone();
    let ramps = move || live.load().ramps().map(|(_, ramp)| ramp.progress().clone()).collect();
    let keeper = ramp::Keeper::start(place, ramps, &*parts.desk.observe.registry);
    keeper.map_err(|error| StartError::Runtime(format!("cannot keep ramps: {error}")))
}

/// Windows that keep one upload over a long line going, without letting a client hold much memory.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

/// What is held of an answer for a client that does not read it; of each stream.
const H2_SEND_BUFFER: usize = 64 << 10;

/// Idle connections to backends; upstreams narrow it for themselves.
const POOL: usize = 16_384;

fn server_conf(snapshot: &Snapshot) -> ServerConf {
    ServerConf {
        threads: snapshot.server.threads.count(),
        upstream_keepalive_pool_size: POOL,
        // Draining is over when Pingora is told to stop.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        max_retries: 16,
        ..ServerConf::default()
    }
}

fn http_options() -> HttpServerOptions {
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options
}

fn h2_options(snapshot: &Snapshot) -> H2Options {
    let streams = snapshot.server.limits.h2_streams.get();
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(streams);
    h2.initial_window_size(H2_STREAM_WINDOW).initial_connection_window_size(H2_CONNECTION_WINDOW);
    h2.max_concurrent_reset_streams(usize::try_from(streams).unwrap_or(usize::MAX).min(100));
    h2.max_send_buffer_size(H2_SEND_BUFFER);
    h2
}
