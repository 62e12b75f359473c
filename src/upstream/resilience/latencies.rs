//! How long an upstream took lately to begin an answer, for who waits by a percentile of that.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// What is remembered.
const REMEMBERED: usize = 256;
/// Fewer say nothing.
const ENOUGH: usize = 32;

/// The last times to the head of an answer, in microseconds.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Latencies {
    /// Made with the first one; 0 is none.
    samples: OnceLock<Box<[AtomicU32]>>,
    next: AtomicUsize,
}

impl Latencies {
    /// Notes one more.
    pub(in crate::upstream) fn note(&self, took: Duration) {
        let samples = self.samples.get_or_init(|| (0..REMEMBERED).map(|_| AtomicU32::new(0)).collect());
        let at = self.next.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        samples[at].store(micros.max(1), Ordering::Relaxed);
    }

    /// What so many of a hundred did not take longer than; none while too few are known.
    pub(in crate::upstream) fn percentile(&self, of: u8) -> Option<Duration> {
        let samples = self.samples.get()?.iter().map(|sample| sample.load(Ordering::Relaxed));
        let mut known: Vec<u32> = samples.filter(|sample| *sample > 0).collect();
        if known.len() < ENOUGH {
            return None;
        }
        // The nearest rank.
        let rank = (known.len() * usize::from(of)).div_ceil(100).clamp(1, known.len());
        let (_, found, _) = known.select_nth_unstable(rank - 1);
        Some(Duration::from_micros((*found).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank_of_the_last_answers() {
        let latencies = Latencies::default();
        let millis = Duration::from_millis;
        (1..=31).for_each(|time| latencies.note(millis(time)));
        assert_eq!(latencies.percentile(95), None, "31 are too few");
        (32..=100).for_each(|time| latencies.note(millis(time)));
        assert_eq!(
            [50, 95, 99].map(|of| latencies.percentile(of)),
            [50, 95, 99].map(|time| Some(millis(time)))
        );
        // What is long ago is forgotten.
        (0..256).for_each(|_| latencies.note(millis(7)));
        assert_eq!(latencies.percentile(99), Some(millis(7)));
    }
}
