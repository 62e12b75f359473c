//! Assembles everything: the only place that knows every part.

mod drain;
mod reloading;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::tree::from_node_all;
use tollhouse_filters::world::World;

use crate::admin::{self, AdminState};
use crate::config::{AdminAddress, Observability, Protocol};
use crate::door::{self, Desk, Door, Draining, HandshakeFailure, Permits, Refusals, Refused, Rule};
use crate::engine::SideCalls;
use crate::engine::dry;
use crate::observe::{self, Observe};
use crate::proxy::{Budget, Gateway};
use crate::snapshot::{Compiler, Live, Mode, Reloader, Snapshot, apart};
use crate::source::{self, Loaded, Problems};
use crate::upstream::Monitor;

/// Why the gateway did not start.
#[derive(Debug)]
pub enum StartError {
    /// The document has problems.
    Document(Problems),
    /// The machine refuses something, such as a port.
    Runtime(String),
}

impl From<Problems> for StartError {
    fn from(problems: Problems) -> Self {
        Self::Document(problems)
    }
}

/// Serves traffic as the document at `path` says, until the process is told to end.
pub fn run(path: PathBuf, registry: Arc<Registry>) -> Result<(), StartError> {
    observe::log::init(log::LevelFilter::Info);
    let calls = Arc::new(SideCalls::new());
    let (snapshot, world, observe) = apart(|| first_snapshot(&path, &registry, &calls))?;
    let monitor = Monitor::start(calls.caller().clone(), observe.registry.clone())
        .map_err(|error| StartError::Runtime(format!("cannot watch backends: {error}")))?;
    let monitor = Arc::new(monitor);
    monitor.watch(&snapshot.upstreams, &snapshot.server.dns);
    let parts = Parts::new(snapshot, path, registry, world, observe, monitor.clone())?;
    calls.follow(&parts.live);
    // Connections wait meanwhile; none is given to a backend that nothing is known about.
    monitor.warm_up();
    parts.serve()
}

fn first_snapshot(
    path: &Path,
    registry: &Registry,
    calls: &Arc<SideCalls>,
) -> Result<(Snapshot, World, Arc<Observe>), StartError> {
    let loaded = Arc::new(source::load(path)?);
    let observe = start_observing(&loaded)?;
    let world = World::live(calls.clone(), observe.registry.clone());
    let snapshot = Compiler { registry, world: &world, previous: None, mode: Mode::Live }.compile(&loaded)?;
    report(&snapshot, &loaded, registry);
    Ok((snapshot, world, observe))
}

/// Filters make their counters while the document is compiled, so these come first.
fn start_observing(loaded: &Loaded) -> Result<Arc<Observe>, StartError> {
    let written = loaded.root.get("observability").map_or(Ok(Observability::default()), from_node_all);
    // Where this part is wrong, compiling tells everything that is.
    let options = written.unwrap_or_default();
    let log = &options.access_log;
    Observe::new(options.metrics.max_series, &log.format, &log.to, &log.redact)
        .map_err(|error| StartError::Runtime(format!("cannot open the access log: {error}")))
}

/// What a document's authors should know when it starts to serve.
fn report(snapshot: &Snapshot, loaded: &Arc<Loaded>, registry: &Registry) {
    // At a start they only warn: a gateway that comes up is worth more than a perfect one.
    if !snapshot.tests.is_empty()
        && let Err(problems) = dry::verify(loaded, registry)
    {
        for problem in &problems.list {
            log::warn!("{problem}");
        }
    }
}

/// Everything that is there before the first connection is accepted.
struct Parts {
    live: Arc<Live>,
    reloader: Arc<Reloader>,
    desk: Desk,
    budget: Arc<Budget>,
    bound: Vec<door::Bound>,
    admin: Option<std::net::TcpListener>,
}

impl Parts {
    /// Opens every socket, so that a busy port is an error and not a gateway without a listener.
    fn new(
        snapshot: Snapshot,
        path: PathBuf,
        registry: Arc<Registry>,
        world: World,
        observe: Arc<Observe>,
        monitor: Arc<Monitor>,
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
        let bound = door::bind(&listeners).map_err(|error| StartError::Runtime(error.to_string()))?;
        for (bound, listener) in bound.iter().zip(&listeners) {
            let address = bound
                .local_addr()
                .map_or_else(|| listener.address.to_string(), |address| address.to_string());
            log::info!(listener = &*listener.name, address:% = address; "bound");
        }
        let admin = bind_admin(snapshot.admin.address)?;
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
        };
        let reloader = Reloader::new(path, registry, world, live.clone(), dry::verify);
        let reloader = Arc::new(reloader.watched_by(monitor));
        Ok(Self { live, reloader, desk, budget, bound, admin })
    }

    fn serve(self) -> Result<(), StartError> {
        let snapshot = self.live.load();
        let mut server = Server::new_with_opt_and_conf(None, server_conf(&snapshot));
        server.bootstrap();
        let gateway = Gateway {
            live: self.live.clone(),
            observe: self.desk.observe.clone(),
            budget: self.budget.clone(),
            draining: self.desk.draining.clone(),
        };
        let mut proxy = pingora::proxy::http_proxy(&server.configuration, gateway);
        proxy.server_options = Some(http_options(&snapshot));
        let streams = usize::try_from(snapshot.server.limits.h2_streams.get()).unwrap_or(usize::MAX);
        let mut h2 = default_h2_options();
        h2.max_concurrent_streams(snapshot.server.limits.h2_streams.get());
        h2.initial_window_size(H2_STREAM_WINDOW).initial_connection_window_size(H2_CONNECTION_WINDOW);
        h2.max_concurrent_reset_streams(streams.min(100));
        h2.max_send_buffer_size(H2_SEND_BUFFER);
        proxy.h2_options = Some(h2);
        self.export();
        let applied = reloading::Applied { desk: self.desk.clone(), budget: self.budget.clone() };
        let reloads = reloading::start(self.reloader.clone(), applied, &snapshot);
        if let Some(listener) = self.admin {
            let state = AdminState {
                live: self.live.clone(),
                reloads,
                observe: self.desk.observe.clone(),
                draining: self.desk.draining.clone(),
                registry: self.reloader.registry().clone(),
            };
            admin::start(listener, state)
                .map_err(|error| StartError::Runtime(format!("cannot start the admin listener: {error}")))?;
        }
        server.add_service(Door::new(Arc::new(proxy), self.bound, self.desk.clone()));
        let signal = drain::Signal::new(self.desk.draining, self.desk.observe.clone(), self.live);
        server.run(RunArgs { shutdown_signal: Box::new(signal) });
        self.desk.observe.flush();
        Ok(())
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
        let budget = self.budget.clone();
        let help = "Bytes of request bodies buffered for filters.";
        registry.register_gauge_fn("tollhouse_buffered_bytes", help, &[], move || {
            i64::try_from(budget.used()).unwrap_or(i64::MAX)
        });
    }
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

fn http_options(snapshot: &Snapshot) -> HttpServerOptions {
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    options.h2_idle_timeout = Some(snapshot.server.limits.idle_timeout.get());
    options
}

fn bind_admin(address: AdminAddress) -> Result<Option<std::net::TcpListener>, StartError> {
    let AdminAddress::At(address) = address else { return Ok(None) };
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    let listener = listener
        .map_err(|error| StartError::Runtime(format!("cannot listen on {address} (admin): {error}")))?;
    if let Ok(address) = listener.local_addr() {
        log::info!(address:% = address; "admin bound");
    }
    Ok(Some(listener))
}
