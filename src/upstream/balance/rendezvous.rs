//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights after Schindelhauer and Schomaker 2005).
//!
//! Each key draws a number for each backend, and the best one gets it. A backend that goes takes along
//! only its own keys, one whose weight changes gains or loses only its own, and nothing is stored but a
//! seed for each backend. Seeds come from addresses, so all gateways agree.

use tollhouse_filters::draw::{fraction, hash, mix, seed};

/// A backend as keys see it.
#[derive(Debug)]
pub(super) struct Rendezvous {
    candidates: Box<[Candidate]>,
    heaviest: f64,
    /// All weights are equal: then the draws themselves can be compared.
    even: bool,
}

#[derive(Debug)]
struct Candidate {
    seed: u64,
    weight: f64,
}

impl Rendezvous {
    /// Candidates by what identifies them, each once, and their weights, none of which is 0.
    pub(super) fn new<'a>(backends: impl IntoIterator<Item = (&'a str, u32, u16)>) -> Self {
        let candidate = |(address, ordinal, weight): (&str, u32, u16)| Candidate {
            seed: seed(address, ordinal),
            weight: f64::from(weight),
        };
        let candidates: Box<[Candidate]> = backends.into_iter().map(candidate).collect();
        let heaviest = candidates.iter().map(|candidate| candidate.weight).fold(0.0, f64::max);
        let even = candidates.windows(2).all(|pair| pair[0].weight.total_cmp(&pair[1].weight).is_eq());
        Self { candidates, heaviest, even }
    }

    /// The best of the candidates that are accepted, by position.
    pub(super) fn choose(&self, key: &[u8], accept: impl Fn(usize) -> bool) -> Option<usize> {
        let key = hash(key);
        if self.even { self.choose_even(key, accept) } else { self.choose_weighted(key, accept) }
    }

    fn choose_even(&self, key: u64, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best = None;
        for (at, candidate) in self.candidates.iter().enumerate() {
            let draw = mix(key ^ candidate.seed);
            if best.is_none_or(|(_, best)| draw > best) && accept(at) {
                best = Some((at, draw));
            }
        }
        best.map(|(at, _)| at)
    }

    /// The least of `-ln(draw) / weight` wins. As few draws beat the best one so far, and only those
    /// above `limit` can, hardly any logarithm is taken.
    fn choose_weighted(&self, key: u64, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut best, mut least, mut limit) = (None, f64::INFINITY, 0.0);
        for (at, candidate) in self.candidates.iter().enumerate() {
            let draw = fraction(mix(key ^ candidate.seed));
            if draw < limit {
                continue;
            }
            let score = -draw.ln() / candidate.weight;
            if (score < least || best.is_none()) && accept(at) {
                (best, least) = (Some(at), score);
                // A little less, lest rounding decides.
                limit = (-score * self.heaviest).exp() * (1.0 - 1e-9);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYS: u32 = 20_000;

    fn of(backends: &[(&str, u16)]) -> Rendezvous {
        Rendezvous::new(backends.iter().map(|(address, weight)| (*address, 1, *weight)))
    }

    /// The address that each of many keys goes to.
    fn owners<'a>(backends: &[(&'a str, u16)]) -> Vec<&'a str> {
        let rendezvous = of(backends);
        let owner = |key: u32| backends[rendezvous.choose(&key.to_be_bytes(), |_| true).unwrap()].0;
        (0..KEYS).map(owner).collect()
    }

    /// The definition, without shortcuts.
    fn plainly(rendezvous: &Rendezvous, key: &[u8]) -> usize {
        let score =
            |candidate: &Candidate| -fraction(mix(hash(key) ^ candidate.seed)).ln() / candidate.weight;
        let scores: Vec<f64> = rendezvous.candidates.iter().map(score).collect();
        (0..scores.len()).min_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
    }

    fn weighted(weights: &[u16]) -> Vec<(String, u16)> {
        weights.iter().enumerate().map(|(at, weight)| (format!("10.0.0.{at}:80"), *weight)).collect()
    }

    fn borrowed(backends: &[(String, u16)]) -> Vec<(&str, u16)> {
        backends.iter().map(|(address, weight)| (address.as_str(), *weight)).collect()
    }

    #[test]
    fn keys_stay_where_they_are_over_releases() {
        let backends = [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("users.internal:80", 2)];
        let rendezvous = of(&backends);
        let of = |key: &str| rendezvous.choose(key.as_bytes(), |_| true).unwrap();
        assert_eq!(["a", "b", "c", "d", "alice", "bob", "carol", "dave"].map(of), [0, 2, 1, 2, 2, 2, 1, 1]);
    }

    #[test]
    fn the_order_in_which_backends_are_written_does_not_matter() {
        let backends = [("a:1", 1), ("b:1", 5), ("c:1", 2)];
        let mut reversed = backends;
        reversed.reverse();
        assert_eq!(owners(&backends), owners(&reversed));
    }

    #[test]
    fn an_address_that_is_written_twice_has_two_shares() {
        let rendezvous = Rendezvous::new([("a:1", 1, 1), ("a:1", 2, 1), ("b:1", 1, 1)]);
        let mut counts = [0_u32; 3];
        (0..KEYS).for_each(|key| counts[rendezvous.choose(&key.to_be_bytes(), |_| true).unwrap()] += 1);
        assert!(counts.iter().all(|count| count.abs_diff(KEYS / 3) < KEYS / 30), "{counts:?}");
    }

    #[test]
    fn similar_keys_are_spread_evenly() {
        let rendezvous = of(&[("a:1", 1), ("b:1", 1), ("c:1", 1), ("d:1", 1)]);
        for prefix in ["", "user-", "/api/v1/users/0000"] {
            let mut counts = [0_u32; 4];
            for key in 0..KEYS {
                let key = format!("{prefix}{key}");
                counts[rendezvous.choose(key.as_bytes(), |_| true).unwrap()] += 1;
            }
            // Six standard deviations of a binomial count.
            let bound = 6.0 * (f64::from(KEYS) * 0.25 * 0.75).sqrt();
            let even = |count: &u32| (f64::from(*count) - f64::from(KEYS) / 4.0).abs() < bound;
            assert!(counts.iter().all(even), "{prefix}: {counts:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn shortcuts_change_no_choice(
            weights in prop::collection::vec(1_u16..=1000, 1..40), keys in prop::collection::vec(any::<u64>(), 50)
        ) {
            for weights in [vec![7; weights.len()], weights] {
                let backends = weighted(&weights);
                let rendezvous = of(&borrowed(&backends));
                for key in &keys {
                    let key = key.to_be_bytes();
                    prop_assert_eq!(rendezvous.choose(&key, |_| true), Some(plainly(&rendezvous, &key)));
                }
            }
        }

        #[test]
        fn when_one_goes_only_its_own_keys_move(
            weights in prop::collection::vec(1_u16..=1000, 2..20), gone in any::<prop::sample::Index>()
        ) {
            let all = weighted(&weights);
            let mut left = all.clone();
            let (gone, _) = left.remove(gone.index(all.len()));
            for (before, after) in owners(&borrowed(&all)).iter().zip(owners(&borrowed(&left))) {
                prop_assert!(*before == gone || *before == after);
            }
        }

        #[test]
        fn when_a_weight_changes_only_the_difference_of_the_shares_moves(
            weights in prop::collection::vec(1_u16..=1000, 2..12), at in any::<prop::sample::Index>(), new in 1_u16..=1000
        ) {
            let old = weighted(&weights);
            let at = at.index(old.len());
            let mut changed = old.clone();
            changed[at].1 = new;
            let name = old[at].0.as_str();
            let mut moved = 0_u32;
            for (before, after) in owners(&borrowed(&old)).iter().zip(owners(&borrowed(&changed))) {
                let lost_or_won = if new < old[at].1 { *before == name } else { after == name };
                prop_assert!(*before == after || lost_or_won);
                moved += u32::from(*before != after);
            }
            let share = |backends: &[(String, u16)]| {
                let sum: f64 = backends.iter().map(|(_, weight)| f64::from(*weight)).sum();
                f64::from(backends[at].1) / sum
            };
            let expected = (share(&old) - share(&changed)).abs();
            // Six standard deviations of the count, and some for small ones.
            let slack = 6.0 * (f64::from(KEYS) * expected * (1.0 - expected)).sqrt() + 6.0;
            prop_assert!((f64::from(moved) - f64::from(KEYS) * expected).abs() <= slack, "{moved} {expected}");
        }
    }
}
