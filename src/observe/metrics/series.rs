//! Handles that requests count into: made once for a route or an upstream, then one atomic operation each.

use std::sync::atomic::{AtomicI64, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tollhouse_filters::world::Counter;

use super::cells::{self, CLASSES, Cells, Number};
use super::page::Page;
use super::{Live, NONE};
use crate::observe::labels::{Budget, Family, OTHER};

const OUTCOMES: [&str; 5] = ["answered", "connect_failed", "broken", "timed_out", "cancelled"];

pub(super) const REQUESTS: &str = "tollhouse_requests_total";
pub(super) const DURATION: &str = "tollhouse_request_duration_seconds";
pub(super) const BYTES_IN: &str = "tollhouse_request_bytes_total";
pub(super) const BYTES_OUT: &str = "tollhouse_response_bytes_total";
pub(super) const ATTEMPTS: &str = "tollhouse_upstream_attempts_total";
pub(super) const CONNECT_FAILURES: &str = "tollhouse_upstream_connect_failures_total";
pub(super) const RETRIES: &str = "tollhouse_upstream_retries_total";
pub(super) const OUT_OF_BUDGET: &str = "tollhouse_upstream_retries_out_of_budget_total";
pub(super) const BACKEND_HEALTHY: &str = "tollhouse_upstream_backend_healthy";
pub(super) const HEALTH_CHANGES: &str = "tollhouse_upstream_health_changes_total";

/// How one attempt at a backend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptOutcome {
    /// The backend sent a response head, whatever its status.
    Answered,
    /// No connection could be made, TLS included.
    ConnectFailed,
    /// The connection broke or the answer was no HTTP.
    Broken,
    /// The backend took too long.
    TimedOut,
    /// The client went away first.
    Cancelled,
}

impl AttemptOutcome {
    /// Its name in metrics and the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        OUTCOMES[self as usize]
    }
}

/// The series of all routes.
pub(super) struct RouteFamilies {
    budget: Arc<Budget>,
    rows: Family<Arc<Cells>>,
    /// What there is no room for.
    other: Cells,
}

/// The numbers of one listener, route, upstream and variant. The caller keeps it as long as the route exists.
pub struct RouteSeries {
    families: Arc<RouteFamilies>,
    cells: Arc<Cells>,
    /// The numbers that found no room, each by its bit.
    refused: AtomicU16,
}

impl RouteSeries {
    /// Counts one finished request: its status (0 when none was sent), time, and bytes of content each way.
    pub fn record(&self, status: u16, elapsed: Duration, bytes_in: u64, bytes_out: u64) {
        let class = class(status);
        self.cells_of(class).requests[class].fetch_add(1, Ordering::Relaxed);
        self.cells_of(cells::DURATION).duration.observe(elapsed);
        self.cells_of(cells::BYTES_IN).bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.cells_of(cells::BYTES_OUT).bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
    }

    /// Where this number is counted.
    fn cells_of(&self, number: Number) -> &Cells {
        if self.cells.has(number) { &self.cells } else { self.find_room(number) }
    }

    #[cold]
    fn find_room(&self, number: Number) -> &Cells {
        let RouteFamilies { budget, other, .. } = &*self.families;
        let bit = 1 << number;
        if self.refused.load(Ordering::Relaxed) & bit != 0 {
            return other;
        }
        if budget.take() {
            if !self.cells.give(number) {
                // Another thread was first, or the row is gone.
                budget.give_back(1);
            }
            return &self.cells;
        }
        self.refused.fetch_or(bit, Ordering::Relaxed);
        other.give(number);
        other
    }
}

impl RouteFamilies {
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        let rows = Family::of_rows(budget.clone(), 4, |cells: &Arc<Cells>| cells.retire());
        Arc::new(Self { budget: budget.clone(), rows, other: Cells::default() })
    }

    pub(super) fn series(self: &Arc<Self>, labels: [&str; 4]) -> RouteSeries {
        let cells = self.rows.row(&labels, Arc::default);
        RouteSeries { families: self.clone(), cells, refused: AtomicU16::new(0) }
    }

    pub(super) fn sweep(&self, live: &Live<'_>) {
        self.rows.sweep(|values, _| live.knows(&values[0], &values[1], &values[2]));
    }

    pub(super) fn forget(&self, route: &str) {
        self.rows.forget(|values| &*values[1] == route);
    }

    pub(super) fn write(&self, page: &mut Page) {
        self.rows.each(|values, cells| {
            let classes = (0..CLASSES.len()).filter(|class| cells.has(*class));
            classes.for_each(|class| {
                write_requests(page, values, CLASSES[class], &cells.requests[class..=class])
            });
            write_rest(page, values, cells);
        });
        let has_requests = (0..CLASSES.len()).any(|class| self.other.has(class));
        if has_requests {
            write_requests(page, &[OTHER; 4], OTHER, &self.other.requests);
        }
        write_rest(page, &[OTHER; 4], &self.other);
    }
}

const ROUTE_LABELS: [&str; 4] = ["listener", "route", "upstream", "variant"];

/// Writes how many requests there were of these classes together.
fn write_requests(page: &mut Page, values: &[&str], class: &str, cells: &[AtomicU64]) {
    let mut labels = zip(&ROUTE_LABELS, values);
    labels.push(("code_class", class));
    let requests = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum();
    page.counter(REQUESTS, "Requests finished, by class of status code.", &labels, requests);
}

fn write_rest(page: &mut Page, values: &[&str], cells: &Cells) {
    let labels = zip(&ROUTE_LABELS, values);
    if cells.has(cells::BYTES_IN) {
        let bytes = cells.bytes_in.load(Ordering::Relaxed);
        page.counter(BYTES_IN, "Bytes of content received from clients.", &labels, bytes);
    }
    if cells.has(cells::BYTES_OUT) {
        let bytes = cells.bytes_out.load(Ordering::Relaxed);
        page.counter(BYTES_OUT, "Bytes of content sent to clients.", &labels, bytes);
    }
    if cells.has(cells::DURATION) {
        let help = "Seconds from a request's head to the end of its response.";
        page.histogram(DURATION, help, &labels, &cells.duration.read());
    }
}

/// The series of all upstreams.
pub(super) struct UpstreamFamilies {
    attempts: Family<Counter>,
    connect_failures: Family<Counter>,
    retries: Family<Counter>,
    out_of_budget: Family<Counter>,
    healthy: Family<Arc<AtomicI64>>,
    changes: Family<Arc<AtomicU64>>,
}

/// The numbers of a backend that is probed. They go with the last holder.
#[derive(Debug)]
pub struct BackendSeries {
    healthy: Arc<AtomicI64>,
    /// Changes to unhealthy, and to healthy.
    changes: [Arc<AtomicU64>; 2],
}

impl BackendSeries {
    /// Whether the backend has a healthy address.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy.into(), Ordering::Relaxed);
    }

    /// Counts a change of one of its addresses.
    pub fn changed(&self, to_healthy: bool) {
        self.changes[usize::from(to_healthy)].fetch_add(1, Ordering::Relaxed);
    }
}

/// The numbers of one upstream. The caller keeps it as long as the upstream exists.
pub struct UpstreamSeries {
    families: Arc<UpstreamFamilies>,
    upstream: Box<str>,
    outcomes: [OnceLock<Counter>; OUTCOMES.len()],
    connect_failures: Counter,
}

impl UpstreamSeries {
    /// Counts one attempt; a failure to connect is counted in its own metric too.
    pub fn attempt(&self, outcome: AttemptOutcome) {
        if outcome == AttemptOutcome::ConnectFailed {
            self.connect_failures.inc();
        }
        let index = outcome as usize;
        self.outcomes[index].get_or_init(|| self.families.attempts(&self.upstream, index)).inc();
    }

    /// Counts one more attempt, made for this reason.
    pub fn retried(&self, reason: &'static str) {
        self.families.retries.series(&[&self.upstream, reason], |_| Counter::default()).inc();
    }

    /// Counts an attempt that was not made, since the budget was used up.
    pub fn out_of_budget(&self) {
        self.families.out_of_budget.series(&[&self.upstream], |_| Counter::default()).inc();
    }
}

impl UpstreamFamilies {
    pub(super) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            attempts: Family::new(budget.clone(), 2),
            connect_failures: Family::new(budget.clone(), 1),
            retries: Family::new(budget.clone(), 2),
            out_of_budget: Family::new(budget.clone(), 1),
            healthy: Family::new(budget.clone(), 2),
            changes: Family::new(budget.clone(), 3),
        })
    }

    pub(super) fn series(self: &Arc<Self>, upstream: &str) -> UpstreamSeries {
        UpstreamSeries {
            families: self.clone(),
            upstream: upstream.into(),
            outcomes: Default::default(),
            connect_failures: self.connect_failures.series(&[upstream], |_| Counter::default()),
        }
    }

    pub(super) fn backend(&self, upstream: &str, backend: &str) -> BackendSeries {
        BackendSeries {
            healthy: self.healthy.series(&[upstream, backend], |_| Arc::default()),
            changes: ["unhealthy", "healthy"]
                .map(|to| self.changes.series(&[upstream, backend, to], |_| Arc::default())),
        }
    }

    fn attempts(&self, upstream: &str, outcome: usize) -> Counter {
        self.attempts.series(&[upstream, OUTCOMES[outcome]], |_| Counter::default())
    }

    pub(super) fn sweep(&self, live: &Live<'_>) {
        let known = |values: &[Arc<str>]| live.knows(NONE, NONE, &values[0]);
        self.attempts.sweep(|values, _| known(values));
        self.connect_failures.sweep(|values, _| known(values));
        self.retries.sweep(|values, _| known(values));
        self.out_of_budget.sweep(|values, _| known(values));
        self.sweep_backends();
    }

    pub(super) fn sweep_backends(&self) {
        self.healthy.sweep(|_, cell| Arc::strong_count(cell) > 1);
        self.changes.sweep(|_, cell| Arc::strong_count(cell) > 1);
    }

    pub(super) fn write(&self, page: &mut Page) {
        let names = ["upstream", "outcome"];
        let counters = [
            (&self.attempts, ATTEMPTS, "Attempts at backends, by how they ended."),
            (&self.connect_failures, CONNECT_FAILURES, "Attempts that got no connection."),
        ];
        for (family, name, help) in counters {
            family.each(|values, counter| page.counter(name, help, &zip(&names, values), counter.get()));
        }
        let names = ["upstream", "reason"];
        let counters = [
            (&self.retries, RETRIES, "Attempts that followed a failed one, by what had gone wrong."),
            (&self.out_of_budget, OUT_OF_BUDGET, "Attempts that were not made, as the budget was used up."),
        ];
        for (family, name, help) in counters {
            family.each(|values, counter| page.counter(name, help, &zip(&names, values), counter.get()));
        }
        let names = ["upstream", "backend", "to"];
        let help = "1 while the backend has a healthy address.";
        self.healthy.each(|values, cell| {
            page.gauge(BACKEND_HEALTHY, help, &zip(&names, values), cell.load(Ordering::Relaxed));
        });
        let help = "Changes of an address to healthy or unhealthy.";
        self.changes.each(|values, cell| {
            page.counter(HEALTH_CHANGES, help, &zip(&names, values), cell.load(Ordering::Relaxed));
        });
    }
}

fn class(status: u16) -> usize {
    match status / 100 {
        hundreds @ 1..=5 => usize::from(hundreds) - 1,
        _ => CLASSES.len() - 1,
    }
}

/// Names with values; surplus names are left out, and labels without a value, which is the same to Prometheus.
fn zip<'a>(names: &[&'a str], values: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    names.iter().copied().zip(values.iter().copied()).filter(|(_, value)| !value.is_empty()).collect()
}
