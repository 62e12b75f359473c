//! The gateway's numbers, in the Prometheus text format 0.0.4.
//!
//! Handles are made once and kept by the caller; a request costs atomic operations and nothing else.

mod cells;
mod custom;
mod first_use;
mod page;
mod series;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tollhouse_filters::world::{Counter, Gauge, Metrics};

use self::custom::CustomFamilies;
pub use self::first_use::FirstUse;
pub use self::page::CONTENT_TYPE;
use self::page::Page;
use self::series::{
    ATTEMPTS, BACKEND_HEALTHY, BYTES_IN, BYTES_OUT, CONNECT_FAILURES, DURATION, HEALTH_CHANGES,
    OUT_OF_BUDGET, REQUESTS, RETRIES, RouteFamilies, UpstreamFamilies,
};
pub use self::series::{AttemptOutcome, BackendSeries, RouteSeries, UpstreamSeries};
use super::labels::Budget;

/// Series held when the document does not say.
pub const DEFAULT_MAX_SERIES: usize = 20_000;

/// The label value where a request has no listener, route or upstream.
pub const NONE: &str = "none";

const IN_FLIGHT: &str = "tollhouse_requests_in_flight";
const BUFFERED: &str = "tollhouse_buffered_bytes";
const GENERATION: &str = "tollhouse_config_generation";
const RELOADS: &str = "tollhouse_config_reloads_total";
const LAST_SUCCESS: &str = "tollhouse_config_last_reload_success_timestamp_seconds";
const SERIES: &str = "tollhouse_metrics_series";
const OVERFLOW: &str = "tollhouse_metrics_overflow_total";
const PANICS: &str = "tollhouse_panics_total";
const BUILD: &str = "tollhouse_build_info";
const STARTED: &str = "process_start_time_seconds";

/// Names that no filter may use.
const RESERVED: &[&str] = &[
    REQUESTS,
    DURATION,
    BYTES_IN,
    BYTES_OUT,
    ATTEMPTS,
    CONNECT_FAILURES,
    RETRIES,
    OUT_OF_BUDGET,
    BACKEND_HEALTHY,
    HEALTH_CHANGES,
    IN_FLIGHT,
    BUFFERED,
    GENERATION,
    RELOADS,
    LAST_SUCCESS,
    SERIES,
    OVERFLOW,
    PANICS,
    BUILD,
    STARTED,
];

/// Every number of the process.
pub struct Registry {
    budget: Arc<Budget>,
    routes: Arc<RouteFamilies>,
    upstreams: Arc<UpstreamFamilies>,
    custom: CustomFamilies,
    functions: Mutex<BTreeMap<FunctionKey, Function>>,
    in_flight: Gauge,
    config: ConfigNumbers,
    started: SystemTime,
}

#[derive(Default)]
struct ConfigNumbers {
    generation: AtomicU64,
    applied: AtomicU64,
    rejected: AtomicU64,
    last_success: AtomicU64,
}

/// Name, then labels.
type FunctionKey = (Box<str>, Vec<(Box<str>, Box<str>)>);

struct Function {
    help: Box<str>,
    read: Read,
}

enum Read {
    Counter(Box<dyn Fn() -> u64 + Send + Sync>),
    Gauge(Box<dyn Fn() -> i64 + Send + Sync>),
}

/// The names that the running document holds, for [`Registry::retain`].
#[derive(Debug, Clone, Copy)]
pub struct Live<'a> {
    /// Names of listeners.
    pub listeners: &'a HashSet<&'a str>,
    /// Names of routes.
    pub routes: &'a HashSet<&'a str>,
    /// Names of upstreams.
    pub upstreams: &'a HashSet<&'a str>,
}

impl Live<'_> {
    fn knows(&self, listener: &str, route: &str, upstream: &str) -> bool {
        let holds = |set: &HashSet<&str>, name: &str| name == NONE || set.contains(name);
        holds(self.listeners, listener) && holds(self.routes, route) && holds(self.upstreams, upstream)
    }
}

/// One request in flight; dropping it ends the request.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Registry {
    /// No numbers yet, with room for this many series; more are counted under labels that are all `other`.
    #[must_use]
    pub fn new(max_series: usize) -> Arc<Self> {
        let budget = Budget::new(max_series);
        Arc::new(Self {
            routes: RouteFamilies::new(&budget),
            upstreams: UpstreamFamilies::new(&budget),
            custom: CustomFamilies::new(&budget, RESERVED),
            budget,
            functions: Mutex::default(),
            in_flight: Gauge::default(),
            config: ConfigNumbers::default(),
            started: SystemTime::now(),
        })
    }

    /// The numbers of a listener, route and upstream ([`NONE`] where there is none), to be kept by the caller.
    #[must_use]
    pub fn route(&self, listener: &str, route: &str, upstream: &str) -> RouteSeries {
        self.variant(listener, route, upstream, "")
    }

    /// As [`route`](Self::route), of one variant of a route that splits its requests.
    #[must_use]
    pub fn variant(&self, listener: &str, route: &str, upstream: &str, variant: &str) -> RouteSeries {
        self.routes.series([listener, route, upstream, variant])
    }

    /// The numbers of an upstream, to be kept by the caller.
    #[must_use]
    pub fn upstream(&self, upstream: &str) -> UpstreamSeries {
        self.upstreams.series(upstream)
    }

    /// The numbers of a backend that is probed, to be kept by the caller.
    #[must_use]
    pub fn backend(&self, upstream: &str, backend: &str) -> BackendSeries {
        self.upstreams.backend(upstream, backend)
    }

    /// Counts a request in flight until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Requests being handled now.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Notes that the snapshot of this generation serves since `at`.
    pub fn config_applied(&self, generation: u64, at: SystemTime) {
        self.config.generation.store(generation, Ordering::Relaxed);
        self.config.last_success.store(seconds(at), Ordering::Relaxed);
        self.config.applied.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a document was refused and the old snapshot goes on.
    pub fn config_rejected(&self) {
        self.config.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// Exports a number that is read at each scrape; the same name and labels replace the earlier function, which must
    /// not block and must not reach this registry. Names must be valid and their kind the same each time.
    pub fn register_gauge_fn(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        read: impl Fn() -> i64 + Send + Sync + 'static,
    ) {
        self.register(name, help, labels, Read::Gauge(Box::new(read)));
    }

    /// As [`register_gauge_fn`](Self::register_gauge_fn), for a number that only rises.
    pub fn register_counter_fn(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.register(name, help, labels, Read::Counter(Box::new(read)));
    }

    /// Exports no more of the numbers that functions were registered for under this name.
    pub fn forget_fns(&self, name: &str) {
        self.functions.lock().retain(|(known, _), _| **known != *name);
    }

    /// As [`forget_fns`](Self::forget_fns), of those alone that have this label.
    pub fn forget_fns_of(&self, name: &str, label: (&str, &str)) {
        let has =
            |labels: &[(Box<str>, Box<str>)]| labels.iter().any(|(name, value)| (&**name, &**value) == label);
        self.functions.lock().retain(|(known, labels), _| **known != *name || !has(labels));
    }

    /// Removes the series of backends that are gone for long enough, where a registry tells other ones.
    pub fn tidy_backends(&self) {
        self.upstreams.sweep_backends();
        self.budget.tidy();
    }

    /// Called after each reload: removes the series of names that this and the reload before do not know, and those of
    /// filters that are gone, but for the counts of routes that are not. One reload's grace lets the last numbers be
    /// collected and a rollback find them.
    pub fn retain(&self, live: &Live<'_>) {
        self.routes.sweep(live);
        self.upstreams.sweep(live);
        self.custom.sweep(live);
        self.budget.tidy();
    }

    /// Removes a route's series at once.
    pub fn forget(&self, route: &str) {
        self.routes.forget(route);
        self.budget.tidy();
    }

    /// Everything as text, to be served as [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = Page::default();
        self.write_process(&mut page);
        self.write_config(&mut page);
        self.routes.write(&mut page);
        self.upstreams.write(&mut page);
        self.write_functions(&mut page);
        self.custom.write(&mut page);
        page.render()
    }

    fn register(&self, name: &str, help: &str, labels: &[(&str, &str)], read: Read) {
        let labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.functions.lock().insert((name.into(), labels), Function { help: help.into(), read });
    }

    fn write_process(&self, page: &mut Page) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauge(BUILD, "The running version; always 1.", &version, 1);
        page.gauge(STARTED, "When the process started, in Unix seconds.", &[], clamp(seconds(self.started)));
        page.gauge(IN_FLIGHT, "Requests being handled now.", &[], self.in_flight.get());
        page.counter(PANICS, "Panics caught; each is a bug.", &[], super::log::panics());
        let used = i64::try_from(self.budget.used()).unwrap_or(i64::MAX);
        page.gauge(SERIES, "Series held, of at most `max_series`.", &[], used);
        let help = "New series beyond `max_series`, counted under `other`.";
        page.counter(OVERFLOW, help, &[], self.budget.overflow());
    }

    fn write_config(&self, page: &mut Page) {
        let ConfigNumbers { generation, applied, rejected, last_success } = &self.config;
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        page.gauge(GENERATION, "Generation of the running snapshot.", &[], clamp(read(generation)));
        let help = "When a document was last applied, in Unix seconds.";
        page.gauge(LAST_SUCCESS, help, &[], clamp(read(last_success)));
        for (outcome, number) in [("applied", applied), ("rejected", rejected)] {
            page.counter(RELOADS, "Documents loaded, by outcome.", &[("outcome", outcome)], read(number));
        }
    }

    fn write_functions(&self, page: &mut Page) {
        for ((name, labels), Function { help, read }) in &*self.functions.lock() {
            let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
            match read {
                Read::Counter(read) => page.counter(name, help, &labels, read()),
                Read::Gauge(read) => page.gauge(name, help, &labels, read()),
            }
        }
    }
}

impl Metrics for Registry {
    fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        self.custom.counter(name, help, labels)
    }

    fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        self.custom.gauge(name, help, labels)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
