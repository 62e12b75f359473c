//! Chooses one of the backends, by Pingora's selection algorithms.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use pingora::lb::selection::{BackendIter, BackendSelection, Random, RoundRobin};
use pingora::lb::{Backend as Candidate, Extensions};
use pingora::protocols::l4::socket::SocketAddr as CandidateAddress;

use super::backend::{Backend, InFlight};
use crate::config::upstream::Algorithm;

/// Draws from the algorithm before the backends are simply walked through.
const MAX_DRAWS: usize = 16;

/// Backends already tried for a request: a set of their indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried {
    first: u64,
    rest: Vec<u64>,
}

impl Tried {
    /// Adds a backend.
    pub fn insert(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        match word.checked_sub(1) {
            None => self.first |= bit,
            Some(word) => {
                self.rest.resize(self.rest.len().max(word + 1), 0);
                self.rest[word] |= bit;
            }
        }
    }

    /// Whether this backend was tried.
    pub fn contains(&self, index: usize) -> bool {
        let word = match (index / 64).checked_sub(1) {
            None => self.first,
            Some(word) => self.rest.get(word).copied().unwrap_or(0),
        };
        word & (1 << (index % 64)) != 0
    }

    /// Whether nothing was tried yet.
    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.rest.iter().all(|word| *word == 0)
    }
}

/// The backend chosen for one attempt; it counts as in flight until this is dropped.
#[derive(Debug)]
pub struct Picked {
    /// Its place in the written list, for [`Tried`].
    pub index: usize,
    /// Where to connect.
    pub address: SocketAddr,
    /// The backend itself.
    pub backend: Arc<Backend>,
    /// Keeps the in-flight count.
    pub guard: InFlight,
}

impl Picked {
    /// Notes that this address could not be connected to.
    pub fn connect_failed(&self) {
        self.backend.connect_failed(self.address);
    }
}

/// The backends of an upstream and the rule that chooses among them.
pub(super) struct Balancer {
    backends: Box<[Arc<Backend>]>,
    /// Indexes of the backends that get requests at all.
    members: Box<[usize]>,
    selector: Selector,
}

enum Selector {
    RoundRobin(Arc<RoundRobin>),
    Random(Arc<Random>),
}

impl Balancer {
    /// A balancer; backends of weight 0 are never chosen.
    pub(super) fn new(algorithm: Algorithm, backends: Vec<(Arc<Backend>, u16)>) -> Self {
        let divisor = backends.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        let weighted = |(index, (_, weight)): (usize, &(Arc<Backend>, u16))| {
            (*weight > 0).then_some((index, usize::from(weight / divisor)))
        };
        let weights: Vec<_> = backends.iter().enumerate().filter_map(weighted).collect();
        let candidates = weights.iter().map(|(index, weight)| candidate(*index, *weight)).collect();
        Self {
            members: weights.iter().map(|(index, _)| *index).collect(),
            backends: backends.into_iter().map(|(backend, _)| backend).collect(),
            selector: Selector::new(algorithm, &candidates),
        }
    }

    pub(super) fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Chooses a backend that was not tried while one is left, then any again; `None` if none can get requests.
    pub(super) fn pick(&self, key: &[u8], tried: &Tried) -> Option<Picked> {
        // Pingora's selectors divide by the number of backends.
        if self.members.is_empty() {
            return None;
        }
        let fresh = self.choose(key, |index| !tried.contains(index));
        fresh.or_else(|| if tried.is_empty() { None } else { self.choose(key, |_| true) })
    }

    fn choose(&self, key: &[u8], accept: impl Fn(usize) -> bool) -> Option<Picked> {
        let take = |index: usize| if accept(index) { self.take(index) } else { None };
        let draws = MAX_DRAWS.min(self.members.len() * 2);
        let drawn = match &self.selector {
            Selector::RoundRobin(selector) => draw(selector, key, draws, take),
            Selector::Random(selector) => draw(selector, key, draws, take),
        };
        drawn.or_else(|| self.members.iter().copied().find_map(take))
    }

    fn take(&self, index: usize) -> Option<Picked> {
        let backend = self.backends.get(index)?;
        let address = backend.next_address()?;
        let guard = InFlight::enter(backend);
        Some(Picked { index, address, backend: Arc::clone(backend), guard })
    }
}

impl Selector {
    fn new(algorithm: Algorithm, candidates: &BTreeSet<Candidate>) -> Self {
        match algorithm {
            Algorithm::RoundRobin => Self::RoundRobin(Arc::new(RoundRobin::build(candidates))),
            Algorithm::Random => Self::Random(Arc::new(Random::build(candidates))),
        }
    }
}

fn draw<S>(
    selector: &Arc<S>,
    key: &[u8],
    draws: usize,
    take: impl Fn(usize) -> Option<Picked>,
) -> Option<Picked>
where
    S: BackendSelection,
    S::Iter: BackendIter,
{
    let mut candidates = selector.iter(key);
    (0..draws).find_map(|_| take(index_of(candidates.next()?)?))
}

/// Pingora identifies candidates by their address. Ours may share one or have none yet, so each
/// stands in by an address made of its index.
fn candidate(index: usize, weight: usize) -> Candidate {
    let index = u32::try_from(index).expect("an upstream has at most 65535 backends");
    let address = SocketAddr::new(Ipv4Addr::from_bits(index).into(), 0);
    Candidate { addr: CandidateAddress::Inet(address), weight, ext: Extensions::new() }
}

fn index_of(candidate: &Candidate) -> Option<usize> {
    match candidate.addr.as_inet()? {
        SocketAddr::V4(address) => usize::try_from(address.ip().to_bits()).ok(),
        SocketAddr::V6(_) => None,
    }
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balancer(algorithm: Algorithm, weights: &[u16]) -> Balancer {
        let backends = weights
            .iter()
            .map(|weight| (Arc::new(Backend::new(&"127.0.0.1:9001".parse().unwrap(), false)), *weight));
        Balancer::new(algorithm, backends.collect())
    }

    fn share(balancer: &Balancer, picks: usize) -> Vec<usize> {
        let mut counts = vec![0; balancer.backends().len()];
        for _ in 0..picks {
            counts[balancer.pick(b"", &Tried::default()).unwrap().index] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_takes_each_in_turn_even_where_addresses_are_equal() {
        assert_eq!(share(&balancer(Algorithm::RoundRobin, &[1, 1, 1]), 9), [3, 3, 3]);
    }

    #[test]
    fn weights_are_exact_shares_of_a_round_and_their_common_factor_does_not_matter() {
        assert_eq!(share(&balancer(Algorithm::RoundRobin, &[900, 100]), 10), [9, 1]);
    }

    #[test]
    fn random_reaches_every_backend() {
        assert!(share(&balancer(Algorithm::Random, &[1, 1, 1]), 300).iter().all(|count| *count > 0));
    }

    #[test]
    fn weight_zero_gets_nothing_and_all_zero_means_no_backend() {
        let mixed = balancer(Algorithm::RoundRobin, &[0, 1]);
        assert_eq!(share(&mixed, 5), [0, 5]);
        let mut tried = Tried::default();
        tried.insert(1);
        assert_eq!(mixed.pick(b"", &tried).unwrap().index, 1);
        for algorithm in [Algorithm::RoundRobin, Algorithm::Random] {
            assert!(balancer(algorithm, &[0, 0]).pick(b"", &Tried::default()).is_none());
        }
    }

    #[test]
    fn tried_backends_are_passed_over_while_another_is_left() {
        for algorithm in [Algorithm::RoundRobin, Algorithm::Random] {
            let balancer = balancer(algorithm, &[1000, 1, 1]);
            let mut tried = Tried::default();
            for _ in 0..3 {
                let picked = balancer.pick(b"", &tried).unwrap();
                assert!(!tried.contains(picked.index));
                tried.insert(picked.index);
            }
            assert!(balancer.pick(b"", &tried).is_some(), "then any again");
        }
    }

    #[test]
    fn a_backend_without_an_address_is_passed_over() {
        let unresolved = Arc::new(Backend::new(&"nowhere.invalid:80".parse().unwrap(), false));
        let resolved = Arc::new(Backend::new(&"127.0.0.1:80".parse().unwrap(), false));
        let both = Balancer::new(Algorithm::RoundRobin, vec![(Arc::clone(&unresolved), 1), (resolved, 1)]);
        assert_eq!(share(&both, 4), [0, 4]);
        let alone = Balancer::new(Algorithm::RoundRobin, vec![(unresolved, 1)]);
        assert!(alone.pick(b"", &Tried::default()).is_none());
    }

    #[test]
    fn a_pick_counts_as_in_flight_until_it_is_dropped() {
        let balancer = balancer(Algorithm::RoundRobin, &[1]);
        let first = balancer.pick(b"", &Tried::default()).unwrap();
        let second = balancer.pick(b"", &Tried::default()).unwrap();
        assert_eq!(balancer.backends()[0].in_flight(), 2);
        drop((first, second));
        assert_eq!(balancer.backends()[0].in_flight(), 0);
    }

    #[test]
    fn the_set_of_tried_backends_has_no_upper_end() {
        let mut tried = Tried::default();
        assert!(tried.is_empty());
        for index in [0, 63, 64, 1000] {
            assert!(!tried.contains(index));
            tried.insert(index);
            assert!(tried.contains(index));
        }
        assert!(!tried.contains(65) && !tried.contains(100_000));
    }
}
