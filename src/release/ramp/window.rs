//! What was seen of two variants lately: counts and times, in a window that slides by tenths.

use std::time::{Duration, Instant};

/// Parts of a window; it is between nine and ten of them long.
const SLICES: usize = 10;
/// Parts of an octave of times: each time is known to an eighth.
const PARTS: usize = 8;
/// Up to 2^36 microseconds, which is most of a day.
const BUCKETS: usize = 37 * PARTS;

/// What was seen of one variant.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// Requests that ended.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// Those of which it is known how long they took.
    pub timed: u64,
    /// What 99% of those took at most: it is between these.
    pub p99: [Duration; 2],
}

impl Seen {
    /// The share of requests that failed; 0 of none.
    #[must_use]
    pub fn error_ratio(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

/// A window over both variants, the old one first.
pub(super) struct Window {
    length: Duration,
    began: Instant,
    slices: Box<[[Slice; 2]; SLICES]>,
}

#[derive(Clone)]
struct Slice {
    /// Which stretch of time it is about.
    number: u64,
    requests: u32,
    errors: u32,
    times: Box<[u32]>,
}

impl Default for Slice {
    fn default() -> Self {
        Self { number: 0, requests: 0, errors: 0, times: vec![0; BUCKETS].into() }
    }
}

impl Window {
    pub(super) fn new(length: Duration, began: Instant) -> Self {
        Self { length, began, slices: Box::new(std::array::from_fn(|_| Default::default())) }
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.length, self.began);
    }

    /// Notes a request, and how long it took, if that is known; how many of its variant are in this slice.
    pub(super) fn add(&mut self, now: Instant, is_new: bool, failed: bool, took: Option<Duration>) -> u32 {
        let number = self.number(now);
        let at = usize::try_from(number % SLICES as u64).unwrap_or(0);
        let slice = &mut self.slices[at][usize::from(is_new)];
        if slice.number != number {
            (slice.number, slice.requests, slice.errors) = (number, 0, 0);
            slice.times.fill(0);
        }
        slice.requests += 1;
        slice.errors += u32::from(failed);
        if let Some(took) = took {
            slice.times[bucket(took)] += 1;
        }
        slice.requests
    }

    /// What is in the window.
    pub(super) fn seen(&self, now: Instant) -> [Seen; 2] {
        let number = self.number(now);
        let oldest = number.saturating_sub(SLICES as u64 - 1);
        [0, 1].map(|variant| {
            let slices = self.slices.iter().map(|both| &both[variant]);
            seen(slices.filter(|slice| (oldest..=number).contains(&slice.number)))
        })
    }

    /// From 1, so that no slice is about the stretch 0.
    fn number(&self, now: Instant) -> u64 {
        let slice = (self.length / SLICES as u32).max(Duration::from_nanos(1));
        let since = now.saturating_duration_since(self.began);
        1 + u64::try_from(since.as_nanos() / slice.as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

fn seen<'a>(slices: impl Iterator<Item = &'a Slice> + Clone) -> Seen {
    let mut seen = Seen::default();
    let mut times = [0_u64; BUCKETS];
    for slice in slices {
        seen.requests += u64::from(slice.requests);
        seen.errors += u64::from(slice.errors);
        times.iter_mut().zip(&slice.times).for_each(|(sum, count)| *sum += u64::from(*count));
    }
    seen.timed = times.iter().sum();
    let wanted = (seen.timed * 99).div_ceil(100);
    let mut passed = 0;
    let reached = times.iter().position(|count| {
        passed += count;
        wanted > 0 && passed >= wanted
    });
    seen.p99 = reached.map_or([Duration::ZERO; 2], |at| [at, at + 1].map(lower_bound));
    seen
}

/// Eight for each octave of microseconds, and one for each of the first eight.
fn bucket(elapsed: Duration) -> usize {
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    if micros < PARTS as u64 {
        return usize::try_from(micros).unwrap_or(0);
    }
    let octave = micros.ilog2() as usize;
    let part = usize::try_from((micros >> (octave - 3)) & 7).unwrap_or(0);
    ((octave - 2) * PARTS + part).min(BUCKETS - 1)
}

/// The least time of a bucket.
fn lower_bound(bucket: usize) -> Duration {
    if bucket < PARTS {
        return Duration::from_micros(bucket as u64);
    }
    let (octave, part) = (bucket / PARTS + 2, bucket % PARTS);
    Duration::from_micros(((PARTS + part) as u64) << (octave - 3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let began = Instant::now();
        let mut window = Window::new(10 * SECOND, began);
        for second in 0..25 {
            window.add(began + SECOND * second, true, second % 5 == 0, Some(SECOND));
        }
        let [old, new] = window.seen(began + SECOND * 24);
        assert_eq!((old.requests, new.requests, new.errors), (0, 10, 2));
        assert_eq!(window.seen(began + SECOND * 100)[1].requests, 0);
        window.clear();
        assert_eq!(window.seen(began + SECOND * 24)[1].requests, 0);
    }

    #[test]
    fn one_in_a_hundred_may_take_longer() {
        let now = Instant::now();
        let mut window = Window::new(SECOND, now);
        for request in 0..200_u32 {
            let millis = if request % 100 == 0 { 900 } else { 10 };
            window.add(now, false, false, Some(Duration::from_millis(millis)));
        }
        let [least, most] = window.seen(now)[0].p99;
        assert!(least <= Duration::from_millis(10) && Duration::from_millis(10) < most, "{least:?} {most:?}");
        window.add(now, false, false, Some(Duration::from_millis(900)));
        assert!(window.seen(now)[0].p99[1] > Duration::from_millis(900));
    }

    proptest! {
        #[test]
        fn a_time_is_in_its_bucket_and_known_to_an_eighth(micros in 0_u64..1 << 36) {
            let at = bucket(Duration::from_micros(micros));
            let [least, most] = [at, at + 1].map(|at| lower_bound(at).as_micros() as u64);
            prop_assert!(least <= micros && micros < most, "{least} {micros} {most}");
            prop_assert!(most - least <= 1.max(least / 8));
        }
    }
}
