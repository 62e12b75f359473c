//! Smooth weighted round robin: each backend as often as its weight in every round, and evenly spread.
//!
//! Backends of equal weight form a class and are served in turn. The heaviest class gets its places
//! spread evenly over the round; what is between them is the round of the others, in which the next
//! class is spread in the same way, and so on. Where a place belongs is thus computed from its number,
//! and all that requests share is a counter: no lock, no table as long as the round.

use std::sync::atomic::{AtomicU64, Ordering};

/// The turns of one upstream.
#[derive(Debug)]
pub(super) struct Turns {
    classes: Box<[Class]>,
    /// Places in a round.
    round: u64,
    next: Counter,
}

/// Backends of equal weight.
#[derive(Debug)]
struct Class {
    members: Box<[usize]>,
    /// Places in the round of this class and all lighter ones, and those of the lighter ones alone.
    places: u64,
    lighter: u64,
}

/// A counter on a cache line of its own: writing it must not slow those down who only read its neighbours.
#[derive(Debug)]
#[repr(align(128))]
struct Counter(AtomicU64);

impl Turns {
    /// The turns of backends with these weights, none of which is 0.
    pub(super) fn new(weights: &[u16]) -> Self {
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|at| weights[*at]);
        let mut classes: Vec<Class> = Vec::new();
        let mut lighter = 0;
        for members in order.chunk_by(|a, b| weights[*a] == weights[*b]) {
            let weight = members.first().map_or(0, |first| u64::from(weights[*first] / divisor));
            let places = lighter + weight * members.len() as u64;
            classes.push(Class { members: members.into(), places, lighter });
            lighter = places;
        }
        classes.reverse();
        // Gateways that start together must not all begin with the same backend.
        let start = fastrand::u64(..lighter.max(1));
        Self { classes: classes.into(), round: lighter.max(1), next: Counter(AtomicU64::new(start)) }
    }

    /// Takes the next turn: the position of a backend among the weights.
    pub(super) fn take(&self) -> Option<usize> {
        self.at(self.next.0.fetch_add(1, Ordering::Relaxed) % self.round)
    }

    /// Who has this place of the round.
    fn at(&self, mut place: u64) -> Option<usize> {
        for class in &self.classes {
            let before = class.lighter_before(place);
            if class.lighter_before(place + 1) == before {
                let turn = usize::try_from(place - before).ok()?;
                return class.members.get(turn.checked_rem(class.members.len())?).copied();
            }
            place = before;
        }
        None
    }
}

impl Class {
    /// How many of the places before this one are those of lighter classes: rounded to the nearest, so
    /// that what is rounded at one class is not added up by the next.
    const fn lighter_before(&self, place: u64) -> u64 {
        (place * self.lighter + self.places / 2) / self.places
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round(weights: &[u16]) -> Vec<usize> {
        let turns = Turns::new(weights);
        (0..turns.round).map(|place| turns.at(place).unwrap()).collect()
    }

    /// The longest run of one backend in a round that repeats.
    fn longest_run(round: &[usize], of: usize) -> usize {
        let twice = round.iter().chain(round);
        let runs = twice.scan(0, |run, at| {
            *run = if *at == of { *run + 1 } else { 0 };
            Some(*run)
        });
        runs.max().unwrap_or(0).min(round.len())
    }

    /// With how many of one backend must follow each other at least, given what is there to go between.
    fn necessary_run(weight: u64, others: u64) -> usize {
        usize::try_from(weight.div_ceil(others)).unwrap()
    }

    #[test]
    fn a_heavy_backend_is_spread_over_the_round() {
        assert_eq!(round(&[5, 1, 1]), [0, 1, 0, 0, 0, 2, 0]);
        assert_eq!(round(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(round(&[3, 2, 2]), [1, 0, 2, 0, 1, 0, 2]);
    }

    #[test]
    fn a_common_factor_makes_the_round_no_longer() {
        assert_eq!(round(&[500, 100, 100]), round(&[5, 1, 1]));
    }

    #[test]
    fn turns_are_taken_one_after_the_other_from_somewhere_on() {
        let turns = Turns::new(&[1, 1, 1]);
        let taken: Vec<_> = (0..30).map(|_| turns.take().unwrap()).collect();
        assert!(taken.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{taken:?}");
    }

    #[test]
    fn threads_together_keep_the_shares_exactly() {
        let turns = Turns::new(&[5, 1, 1]);
        let count = || {
            (0..7000).map(|_| turns.take().unwrap()).fold([0; 3], |mut counts: [u32; 3], at| {
                counts[at] += 1;
                counts
            })
        };
        let sum = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).fold([0; 3], |mut sum, counts| {
                sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                sum
            })
        });
        assert_eq!(sum, [20_000, 4000, 4000]);
    }

    #[test]
    fn ten_thousand_backends_of_many_weights_have_their_exact_shares() {
        let weights: Vec<u16> = (0..10_000).map(|n| 1 + n % 100).collect();
        let turns = Turns::new(&weights);
        let mut counts = vec![0_u16; weights.len()];
        (0..turns.round).for_each(|place| counts[turns.at(place).unwrap()] += 1);
        assert_eq!(counts, weights);
    }

    proptest! {
        #[test]
        fn every_round_holds_each_backend_as_often_as_its_weight(
            weights in prop::collection::vec(1_u16..200, 1..20)
        ) {
            let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight));
            let round = round(&weights);
            for (at, weight) in weights.iter().enumerate() {
                prop_assert_eq!(round.iter().filter(|taken| **taken == at).count(), usize::from(weight / divisor));
            }
        }

        #[test]
        fn no_run_is_longer_than_necessary(weights in prop::collection::vec(1_u16..60, 2..10)) {
            let round = round(&weights);
            let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let heaviest = *weights.iter().max().unwrap();
            for (at, weight) in weights.iter().enumerate() {
                let necessary = necessary_run(u64::from(*weight), sum - u64::from(*weight));
                // Lighter ones may meet themselves once, where two rounds or two classes do.
                let spare = usize::from(*weight < heaviest);
                prop_assert!(longest_run(&round, at) <= necessary + spare, "{at}: {round:?}");
            }
        }

        #[test]
        fn no_backend_is_ever_far_ahead_or_behind(
            weights in prop::collection::vec(1_u16..60, 2..10)
        ) {
            // Half a place is rounded at each heavier class, of which the backend has its part of what is left:
            // at most 1, 1/2, 1/3 and so on; and one turn in its own class.
            let bound = 1.0 + (1..=10).map(|n| 0.5 / f64::from(n)).sum::<f64>();
            let round = round(&weights);
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            for (at, weight) in weights.iter().enumerate() {
                let mut count = 0.0;
                for (place, taken) in (1_u32..).zip(&round) {
                    count += f64::from(u8::from(*taken == at));
                    let ideal = f64::from(place) * f64::from(*weight) / f64::from(sum);
                    prop_assert!((count - ideal).abs() < bound, "{at} after {place} of {round:?}");
                }
            }
        }
    }
}
