//! The store's numbers among the metrics.

use tollhouse_filters::world::{Counter, Metrics};

use super::Cache;
use super::store::{DiskNumbers, Numbers};

/// A name, what it means, and where it comes from.
type Shown<T> = (&'static str, &'static str, fn(&T) -> u64);

const GAUGES: &[Shown<Numbers>] = &[
    ("tollhouse_cache_entries", "Answers that are stored.", |numbers| numbers.entries),
    ("tollhouse_cache_bytes", "Memory that stored answers take.", |numbers| numbers.bytes),
    ("tollhouse_cache_capacity_bytes", "Memory that they may take.", |numbers| numbers.capacity),
];

const COUNTERS: &[Shown<Numbers>] = &[
    ("tollhouse_cache_evictions_total", "Stored answers that left for others.", |numbers| numbers.evicted),
    (
        "tollhouse_cache_not_admitted_total",
        "Answers that were not stored, since others are asked for more often.",
        |numbers| numbers.not_admitted,
    ),
    ("tollhouse_cache_purged_total", "Answers that were purged.", |numbers| numbers.purged),
];

const DISK_GAUGES: &[Shown<DiskNumbers>] = &[
    ("tollhouse_cache_disk_entries", "Answers that are on disk.", |disk| disk.entries),
    ("tollhouse_cache_disk_bytes", "Space that they take.", |disk| disk.bytes),
    ("tollhouse_cache_disk_capacity_bytes", "Space that they may take.", |disk| disk.capacity),
];

const DISK_COUNTERS: &[Shown<DiskNumbers>] = &[
    ("tollhouse_cache_disk_reads_total", "Answers read from disk.", |disk| disk.hits),
    ("tollhouse_cache_disk_writes_total", "Answers written to disk.", |disk| disk.written),
    ("tollhouse_cache_disk_evictions_total", "Answers on disk that left for others.", |disk| disk.evicted),
    (
        "tollhouse_cache_disk_dropped_total",
        "Answers not written, since too many waited or the disk had failed.",
        |disk| disk.dropped,
    ),
    ("tollhouse_cache_disk_corrupt_total", "Files that were not whole.", |disk| disk.corrupt),
    (
        "tollhouse_cache_disk_errors_total",
        "Reads and writes that failed, and reads that took too long.",
        |disk| disk.errors,
    ),
];

/// What is counted as it happens.
pub(super) struct Counts {
    pub(super) stored: Counter,
    pub(super) not_stored: Counter,
    pub(super) failed: Counter,
    /// Purges that other gateways were told of at once, and those that they will be.
    told: Counter,
    told_late: Counter,
    /// Purges of other gateways.
    pub(super) heard: Counter,
    /// Times at which such may have been missed.
    pub(super) gaps: Counter,
}

impl Counts {
    pub(super) fn new(metrics: &dyn Metrics) -> Self {
        let fills = |result| {
            let help = "Answers fetched for caches, by what became of them.";
            metrics.counter("tollhouse_cache_fills_total", help, &[("result", result)])
        };
        let purges = |way| {
            let help =
                "Purges shared with other gateways: sent, sent once the store was back (late), received.";
            metrics.counter("tollhouse_cache_shared_purges_total", help, &[("way", way)])
        };
        let help = "Times at which purges of other gateways may have been missed: all is validated before it is served.";
        Self {
            stored: fills("stored"),
            not_stored: fills("not_stored"),
            failed: fills("failed"),
            told: purges("sent"),
            told_late: purges("late"),
            heard: purges("received"),
            gaps: metrics.counter("tollhouse_cache_shared_gaps_total", help, &[]),
        }
    }

    /// Counts a purge that others were told of, or will be.
    pub(super) fn told(&self, at_once: bool) {
        if at_once { self.told.inc() } else { self.told_late.inc() }
    }
}

impl Cache {
    /// Shows the store's numbers among the metrics. Without a directory, those of the disk are 0.
    pub fn export(&self) {
        for &(name, help, read) in GAUGES {
            self.gauge(name, help, read);
        }
        for &(name, help, read) in COUNTERS {
            self.counter(name, help, read);
        }
        for &(name, help, read) in DISK_GAUGES {
            self.gauge(name, help, move |numbers| read(&numbers.disk.unwrap_or_default()));
        }
        for &(name, help, read) in DISK_COUNTERS {
            self.counter(name, help, move |numbers| read(&numbers.disk.unwrap_or_default()));
        }
    }

    fn gauge(&self, name: &str, help: &str, read: impl Fn(&Numbers) -> u64 + Send + Sync + 'static) {
        let store = self.store.clone();
        let read = move || i64::try_from(read(&store.numbers())).unwrap_or(i64::MAX);
        self.observe.registry.register_gauge_fn(name, help, &[], read);
    }

    fn counter(&self, name: &str, help: &str, read: impl Fn(&Numbers) -> u64 + Send + Sync + 'static) {
        let store = self.store.clone();
        self.observe.registry.register_counter_fn(name, help, &[], move || read(&store.numbers()));
    }
}
