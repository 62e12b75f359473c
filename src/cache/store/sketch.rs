//! How often keys are asked for, roughly, in little memory: what TinyLFU decides by.
//!
//! A count-min sketch whose counters fade (Einziger, Friedman, Manes: TinyLFU, 2017): each key has four
//! counters, and has been asked for as often as the smallest of them says. All counters are halved over the
//! course of a window of uses, a few with each use, so that no use waits for all of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

/// Uses for each counter in a window.
const WINDOW: usize = 8;
/// Counters halved at a time.
const STRIDE: usize = 64;
/// Odd numbers that send a key to its counters.
const WAYS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x27d4_eb2f_1656_67c5];

pub(super) struct Sketch {
    /// A power of two.
    length: usize,
    /// Made with the first use: most gateways cache nothing.
    counters: OnceLock<Box<[AtomicU8]>>,
    uses: AtomicUsize,
}

impl Sketch {
    /// One with at least that many counters, and not fewer than 4,096.
    pub(super) fn new(counters: usize) -> Self {
        let length = counters.next_power_of_two().max(4096);
        Self { length, counters: OnceLock::new(), uses: AtomicUsize::new(0) }
    }

    /// Bytes that it takes once it is used.
    pub(super) fn bytes(&self) -> usize {
        self.length
    }

    /// Counts a use; gives the uses of late, this one included, up to 255.
    pub(super) fn add(&self, tag: u32) -> u8 {
        let counters = self.counters.get_or_init(|| (0..self.length).map(|_| AtomicU8::new(0)).collect());
        let uses = self.uses.fetch_add(1, Relaxed);
        if uses.is_multiple_of(WINDOW * STRIDE) {
            fade(counters, uses / WINDOW);
        }
        let before = self.of(tag);
        let after = before.saturating_add(1);
        for counter in counters_of(counters, tag) {
            // Only the smallest: the others have more from other keys. A use lost to another thread is no loss.
            if counter.load(Relaxed) == before {
                counter.store(after, Relaxed);
            }
        }
        after
    }

    /// The uses of late, up to 255.
    pub(super) fn of(&self, tag: u32) -> u8 {
        let counters = self.counters.get().map(|counters| &**counters).unwrap_or_default();
        counters_of(counters, tag).map(|counter| counter.load(Relaxed)).min().unwrap_or(0)
    }
}

/// The counters of a key; none if there are none at all.
fn counters_of(counters: &[AtomicU8], tag: u32) -> impl Iterator<Item = &AtomicU8> {
    let shift = 64 - counters.len().trailing_zeros();
    // The high bits of a product depend on all bits of the key; the shift makes them an index.
    WAYS.iter().filter_map(move |way| counters.get((u64::from(tag).wrapping_mul(*way) >> shift) as usize))
}

fn fade(counters: &[AtomicU8], from: usize) {
    let start = from % counters.len();
    for counter in &counters[start..start + STRIDE] {
        counter.store(counter.load(Relaxed) / 2, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_counted_up_to_255() {
        let sketch = Sketch::new(0);
        assert_eq!(sketch.of(7), 0);
        let counts: Vec<u8> = (0..300).map(|_| sketch.add(7)).collect();
        assert_eq!(counts[..3], [1, 2, 3]);
        assert_eq!(counts[299], 255);
    }

    #[test]
    fn a_key_that_is_used_more_counts_more_among_many() {
        let sketch = Sketch::new(1 << 14);
        let mut random = fastrand::Rng::with_seed(1);
        for round in 0..2000_u32 {
            sketch.add(random.u32(..));
            if round.is_multiple_of(100) {
                sketch.add(42);
            }
        }
        let often = sketch.of(42);
        let more = (0..1000).filter(|_| sketch.of(random.u32(..)) >= often).count();
        assert!(often >= 10 && more == 0, "{often} {more}");
    }

    #[test]
    fn what_is_not_asked_for_any_more_is_forgotten() {
        let sketch = Sketch::new(0);
        (0..100).for_each(|_| _ = sketch.add(7));
        let mut random = fastrand::Rng::with_seed(2);
        let window = sketch.bytes() * WINDOW;
        // Few keys, far from the one in question most likely: their counters stay away from its own.
        let others: Vec<u32> = (0..50).map(|_| random.u32(..)).collect();
        (0..window * 4).for_each(|at| _ = sketch.add(others[at % others.len()]));
        assert!(sketch.of(7) <= 100 / 8, "{}", sketch.of(7));
    }
}
