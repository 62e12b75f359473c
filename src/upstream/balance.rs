//! Chooses one of the backends, by the upstream's algorithm and the backends' weights.
//!
//! An algorithm first chooses as if every backend were well, which costs nothing extra; only if the chosen
//! one has no address to go to, it chooses again among those that have. Both ways give each backend the
//! share that it has among those left.

mod draws;
mod rendezvous;
#[cfg(test)]
mod tests;
mod tried;
mod turns;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use self::draws::Draws;
use self::rendezvous::Rendezvous;
use self::turns::Turns;
use super::backend::Backend;
use super::stats::{InFlight, Stats, Tick};
use crate::config::balance::Algorithm;

pub use self::tried::Tried;

/// Turns that are let pass when they are those of backends that cannot be chosen, before all backends
/// are looked through instead.
const TURNS: usize = 16;

/// The backend chosen for one attempt; it counts as in flight until this is dropped.
#[derive(Debug)]
pub struct Picked {
    /// Its place in the written list, for [`Tried`].
    pub index: usize,
    /// Where to connect.
    pub address: SocketAddr,
    /// The backend itself.
    pub backend: Arc<Backend>,
    /// Keeps the in-flight count, and is told what became of the attempt.
    pub guard: InFlight,
}

impl Picked {
    /// Notes that this address could not be connected to.
    pub fn connect_failed(&mut self) {
        self.guard.failed();
        self.backend.connect_failed(self.address);
    }
}

/// The backends of an upstream and the rule that chooses among them.
pub(super) struct Balancer {
    backends: Box<[Arc<Backend>]>,
    /// The backends that get requests at all: those with a weight.
    members: Box<[Member]>,
    rule: Rule,
}

struct Member {
    index: usize,
    weight: u16,
    backend: Arc<Backend>,
    /// The backend's, one step nearer for those who look at many.
    stats: Arc<Stats>,
}

/// Choosing by position among the members.
enum Rule {
    RoundRobin(Box<Turns>, Draws),
    Random(Draws),
    LeastRequests,
    P2c(Draws),
    Ewma(Draws),
    ConsistentHash(Rendezvous, Draws),
}

impl Balancer {
    /// A balancer; backends of weight 0 are never chosen.
    pub(super) fn new(algorithm: Algorithm, backends: Vec<(Arc<Backend>, u16)>) -> Self {
        let weighty = backends.iter().enumerate().filter(|(_, (_, weight))| *weight > 0);
        let members: Box<[Member]> =
            weighty.map(|(index, (backend, weight))| Member::new(index, backend, *weight)).collect();
        Self {
            rule: Rule::new(algorithm, &members),
            members,
            backends: backends.into_iter().map(|(backend, _)| backend).collect(),
        }
    }

    pub(super) fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Chooses a backend that was not tried while one is left, then any again; `None` if none can get requests.
    pub(super) fn pick(&self, key: &[u8], tried: &Tried) -> Option<Picked> {
        match &*self.members {
            [] => return None,
            [only] => return only.take(),
            _ => {}
        }
        let untried = |at: usize| !tried.contains(self.members[at].index);
        let open = |at: usize| self.members[at].backend.next_address().is_some();
        let take = |at: usize| self.members[at].take();
        self.choose(key, untried)
            .and_then(take)
            .or_else(|| self.choose(key, |at| untried(at) && open(at)).and_then(take))
            .or_else(|| if tried.is_empty() { None } else { self.choose(key, open).and_then(take) })
            // The chosen one was lost in the very moment.
            .or_else(|| self.members.iter().find_map(Member::take))
    }

    fn choose(&self, key: &[u8], accept: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.rule {
            Rule::RoundRobin(turns, draws) => {
                let taken = (0..TURNS).find_map(|_| turns.take().filter(|at| accept(*at)));
                taken.or_else(|| draws.scan(accept))
            }
            Rule::Random(draws) => draws.one(accept),
            Rule::LeastRequests => self.least_busy(accept),
            Rule::P2c(draws) => draws.better_of_two(accept, |at| self.members[at].load()),
            Rule::Ewma(draws) => {
                let now = Tick::now();
                let chosen = draws.better_of_two(accept, |at| self.members[at].cost(now));
                chosen.inspect(|at| self.members[*at].stats.give(now))
            }
            Rule::ConsistentHash(_, draws) if key.is_empty() => draws.one(accept),
            Rule::ConsistentHash(rendezvous, _) => rendezvous.choose(key, accept),
        }
    }

    /// The one with the least load; among equals, each as likely as its weight.
    fn least_busy(&self, accept: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut best, mut equals) = (None, 0);
        // One of its own: the thread's takes longer than all else here.
        let mut rng = fastrand::Rng::with_seed(fastrand::u64(..));
        for (at, member) in self.members.iter().enumerate() {
            let load = member.load();
            let is_less = best.as_ref().is_none_or(|(_, least)| load < *least);
            let is_equal = best.as_ref().is_some_and(|(_, least)| load == *least);
            if !(is_less || is_equal) || !accept(at) {
                continue;
            }
            let weight = u32::from(member.weight);
            equals = if is_less { weight } else { equals + weight };
            if is_less || rng.u32(..equals) < weight {
                best = Some((at, load));
            }
        }
        best.map(|(at, _)| at)
    }
}

impl Member {
    fn new(index: usize, backend: &Arc<Backend>, weight: u16) -> Self {
        Self { index, weight, backend: Arc::clone(backend), stats: Arc::clone(&backend.stats) }
    }

    fn take(&self) -> Option<Picked> {
        let address = self.backend.next_address()?;
        let guard = InFlight::enter(&self.stats);
        Some(Picked { index: self.index, address, backend: Arc::clone(&self.backend), guard })
    }

    /// Requests in flight for the weight.
    fn load(&self) -> Load {
        Load { in_flight: self.stats.in_flight() as u64, weight: u64::from(self.weight) }
    }

    fn cost(&self, now: Tick) -> f32 {
        self.stats.cost(self.weight, now)
    }
}

/// Requests in flight for a weight: a fraction, compared without dividing.
#[derive(Debug, Clone, Copy)]
struct Load {
    in_flight: u64,
    weight: u64,
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other).is_some_and(std::cmp::Ordering::is_eq)
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self.in_flight * other.weight).partial_cmp(&(other.in_flight * self.weight))
    }
}

impl Rule {
    fn new(algorithm: Algorithm, members: &[Member]) -> Self {
        let weights: Vec<u16> = members.iter().map(|member| member.weight).collect();
        let draws = Draws::new(&weights);
        match algorithm {
            Algorithm::RoundRobin => Self::RoundRobin(Box::new(Turns::new(&weights)), draws),
            Algorithm::Random => Self::Random(draws),
            Algorithm::LeastRequests => Self::LeastRequests,
            Algorithm::P2c => Self::P2c(draws),
            Algorithm::Ewma => Self::Ewma(draws),
            Algorithm::ConsistentHash => Self::ConsistentHash(rendezvous(members), draws),
        }
    }
}

/// An address that is written more than once stands for as many backends.
fn rendezvous(members: &[Member]) -> Rendezvous {
    let addresses: Vec<String> = members.iter().map(|member| member.backend.written().to_string()).collect();
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let candidates = addresses.iter().zip(members).map(|(address, member)| {
        let ordinal = seen.entry(address).or_default();
        *ordinal += 1;
        (address.as_str(), *ordinal, member.weight)
    });
    Rendezvous::new(candidates)
}
