//! What is counted of the requests of one route, side by side: among many thousand routes hardly anything of one is in
//! a processor's cache, and so a request touches few lines of memory.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of durations: 1 ms to 60 s.
const BOUNDS: [Duration; 15] = [
    Duration::from_micros(1000),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// Classes of status codes, and one more for requests without an answer.
pub(super) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "unknown"];

/// A series of one listener, route, upstream and variant: requests of a class, by its place in [`CLASSES`], or one of
/// those below.
pub(super) type Number = usize;
pub(super) const DURATION: Number = CLASSES.len();
pub(super) const BYTES_IN: Number = DURATION + 1;
pub(super) const BYTES_OUT: Number = DURATION + 2;

/// The numbers of one listener, route, upstream and variant.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// Which of the numbers have room, each by its bit; what has none is counted elsewhere.
    room: AtomicU16,
    /// Requests, by [`CLASSES`].
    pub(super) requests: [AtomicU64; CLASSES.len()],
    /// Bytes of content received from clients.
    pub(super) bytes_in: AtomicU64,
    /// Bytes of content sent to clients.
    pub(super) bytes_out: AtomicU64,
    /// What requests took.
    pub(super) duration: Histogram,
}

impl Cells {
    /// Whether this number is counted here.
    pub(super) fn has(&self, number: Number) -> bool {
        self.room.load(Ordering::Relaxed) & 1 << number != 0
    }

    /// Counts this number here from now on; tells whether it was not before.
    pub(super) fn give(&self, number: Number) -> bool {
        self.room.fetch_or(1 << number, Ordering::Relaxed) & 1 << number == 0
    }

    /// Lets all numbers be counted here, as nobody reads them any more; tells how many were.
    pub(super) fn retire(&self) -> usize {
        self.room.swap(u16::MAX, Ordering::Relaxed).count_ones() as usize
    }
}

/// A distribution of durations over buckets from 1 ms to 60 s.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Nanoseconds; wraps after 584 years.
    sum: AtomicU64,
    /// By the first bound that a duration is within; the last one counts what is beyond all.
    counts: [AtomicU64; BOUNDS.len() + 1],
}

/// A histogram as it was at one time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distribution {
    /// Upper bounds in seconds, and how many durations are within each.
    pub(super) within: Vec<(f64, u64)>,
    /// How many there are.
    pub(super) count: u64,
    /// All of them together, in seconds.
    pub(super) sum: f64,
}

impl Histogram {
    /// Counts one duration.
    pub(super) fn observe(&self, elapsed: Duration) {
        let bucket = BOUNDS.iter().position(|bound| elapsed <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All durations so far. One that is counted meanwhile may be in the sum already or not yet.
    pub(super) fn read(&self) -> Distribution {
        let mut count = 0;
        let mut add = |cell: &AtomicU64| {
            count += cell.load(Ordering::Relaxed);
            count
        };
        let (last, counts) = self.counts.split_last().expect("there is one more than there are bounds");
        let within =
            BOUNDS.iter().zip(counts).map(|(bound, cell)| (bound.as_secs_f64(), add(cell))).collect();
        add(last);
        let sum = Duration::from_nanos(self.sum.load(Ordering::Relaxed)).as_secs_f64();
        Distribution { within, count, sum }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;
    use prometheus::core::Metric as _;

    use super::*;

    /// What the `prometheus` crate makes of the same durations.
    fn expected(durations: &[Duration]) -> Distribution {
        let bounds = BOUNDS.map(|bound| bound.as_secs_f64()).to_vec();
        let histogram =
            prometheus::Histogram::with_opts(HistogramOpts::new("d", "d").buckets(bounds)).expect("valid");
        durations.iter().for_each(|duration| histogram.observe(duration.as_secs_f64()));
        let metric = histogram.metric();
        let metric = metric.get_histogram();
        let buckets = metric.get_bucket().iter();
        Distribution {
            within: buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect(),
            count: metric.get_sample_count(),
            sum: metric.get_sample_sum(),
        }
    }

    #[test]
    fn durations_are_distributed_as_the_prometheus_crate_does() {
        let around =
            |bound: Duration| [bound - Duration::from_nanos(1), bound, bound + Duration::from_nanos(1)];
        let mut durations: Vec<Duration> = BOUNDS.into_iter().flat_map(around).collect();
        durations.extend([Duration::ZERO, Duration::from_micros(1), Duration::from_secs(86_400)]);
        let histogram = Histogram::default();
        assert_eq!(histogram.read(), expected(&[]));
        durations.iter().for_each(|duration| histogram.observe(*duration));
        let (read, expected) = (histogram.read(), expected(&durations));
        assert_eq!((&read.within, read.count), (&expected.within, expected.count));
        assert!((read.sum - expected.sum).abs() < 1e-6, "{} is not {}", read.sum, expected.sum);
    }
}
