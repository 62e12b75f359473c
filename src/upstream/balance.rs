//! Chooses one of the backends, by the upstream's algorithm and the backends' weights.
//!
//! An algorithm first chooses as if every backend were well, which costs nothing extra; only if the chosen
//! one has no address to go to, it chooses again among those that have. Both ways give each backend the
//! share that it has among those left.

mod draws;
mod levels;
mod rendezvous;
#[cfg(test)]
mod tests;
mod tried;
mod turns;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollhouse_filters::values::Percent;

use self::draws::Draws;
use self::levels::Levels;
use self::rendezvous::Rendezvous;
use self::turns::Turns;
use super::backend::Backend;
use super::resilience::{Outliers, Turn};
use super::stats::{InFlight, Judge, Stats, Tick};
use crate::config::balance::Algorithm;
use crate::config::outlier::Outlier;

pub(super) use self::levels::Place;
pub use self::tried::Tried;

/// Turns that are let pass when they are those of backends that cannot be chosen, before all backends
/// are looked through instead.
const TURNS: usize = 16;

/// The backend chosen for one attempt; it counts as in flight until this is dropped.
#[derive(Debug)]
pub struct Picked {
    /// Its number among the upstream's backends, for [`Tried`].
    pub index: usize,
    /// Where to connect.
    pub address: SocketAddr,
    /// The backend itself.
    pub backend: Arc<Backend>,
    /// Keeps the in-flight count, and is told what became of the attempt.
    pub guard: InFlight,
    /// Its place among those that got requests then.
    at: usize,
}

/// The backends of an upstream and the rule that chooses among them.
pub(super) struct Balancer {
    backends: Box<[Arc<Backend>]>,
    /// The backends that get requests at all: those with a weight.
    members: Box<[Member]>,
    rule: Rule,
    outliers: Arc<Outliers>,
    /// Whether more is judged than connections.
    judges: bool,
    /// Groups that get requests one after the other; none for most.
    levels: Option<Levels>,
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
            outliers: Arc::new(Outliers::new(None, None, Arc::from(""), pool(&members))),
            judges: false,
            levels: None,
            rule: Rule::new(algorithm, &members),
            members,
            backends: backends.into_iter().map(|(backend, _)| backend).collect(),
        }
    }

    /// Has backends judged by these rules too; one that comes back warms up.
    pub(super) fn judged_by(
        self,
        rules: Option<Outlier>,
        warm_up: Option<Duration>,
        upstream: &Arc<str>,
    ) -> Self {
        let judges = rules.is_some();
        let outliers = Outliers::new(rules, warm_up, Arc::clone(upstream), pool(&self.members));
        Self { outliers: Arc::new(outliers), judges, ..self }
    }

    /// Has groups of backends get requests one after the other; `places` are those of all backends, in written order.
    pub(super) fn grouped(self, places: &[Place], below: Percent) -> Self {
        let of_members: Vec<Place> =
            self.members.iter().filter_map(|member| places.get(member.index).copied()).collect();
        Self { levels: Levels::new(&of_members, below), ..self }
    }

    /// Gives the backends other numbers than their places in the list.
    pub(super) fn numbered(mut self, numbers: &[usize]) -> Self {
        self.members.iter_mut().for_each(|member| member.index = numbers[member.index]);
        self
    }

    /// This backend, if it is one of those that can get requests.
    pub(super) fn pick_this(&self, backend: &Arc<Backend>, tried: &Tried) -> Option<Picked> {
        let at = self.members.iter().position(|member| Arc::ptr_eq(&member.backend, backend))?;
        let standing = &self.members[at].stats.standing;
        let well = !tried.contains(self.members[at].index) && !standing.is_out() && !standing.awaits_probe();
        if well { self.take(at, None) } else { None }
    }

    /// A chosen backend could not be connected to: it is passed over for a while, if that is so of all its addresses.
    pub(super) fn unreachable(&self, picked: &mut Picked) {
        if picked.backend.is_reachable_elsewhere() {
            return picked.guard.failed();
        }
        let is_it = |member: &Member| Arc::ptr_eq(&member.backend, &picked.backend);
        // It may have been chosen before the backends changed.
        let at = Some(picked.at).filter(|at| self.members.get(*at).is_some_and(is_it));
        if let Some(at) = at.or_else(|| self.members.iter().position(is_it)) {
            self.outliers.unreachable(at, picked.guard.is_trial(), Instant::now());
        }
        picked.guard.unreachable();
    }

    pub(super) fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// Whether more than one of them gets requests at all.
    pub(super) fn has_several(&self) -> bool {
        self.members.len() > 1
    }

    /// Whether there is one that was not tried, and has an address to go to.
    pub(super) fn has_another(&self, tried: &Tried) -> bool {
        self.members.iter().any(|member| !tried.contains(member.index) && member.backend.is_usable())
    }

    /// Chooses a backend that was not tried while one is left, then any again; `None` if none can get requests.
    pub(super) fn pick(&self, key: &[u8], tried: &Tried) -> Option<Picked> {
        match &*self.members {
            [] => return None,
            [_] => return self.take(0, None),
            _ => {}
        }
        if let Some(levels) = &self.levels
            && let Some(picked) = self.pick_by_level(key, tried, levels)
        {
            return Some(picked);
        }
        let first = self.choose(key, |at| !tried.contains(self.members[at].index));
        let well = first.filter(|at| self.members[*at].stats.standing.is_in());
        well.and_then(|at| self.take(at, None)).or_else(|| self.pick_around(key, tried, first))
    }

    /// Chooses among those of the first group that has enough to choose from.
    #[cold]
    fn pick_by_level(&self, key: &[u8], tried: &Tried, levels: &Levels) -> Option<Picked> {
        let standing = |at: usize| &self.members[at].stats.standing;
        // One that was not probed yet is none of its group while there is any other, in whichever group.
        let others = LazyCell::new(|| self.members.iter().any(|member| member.backend.is_well()));
        let counts = |at: usize| !(standing(at).awaits_probe() && *others);
        let open = |at: usize| self.members[at].backend.is_usable() && counts(at);
        (0..levels.count()).find_map(|level| {
            let here = |at: usize| levels.holds(level, at) && !tried.contains(self.members[at].index);
            let all = (0..self.members.len()).filter(|at| levels.holds(level, *at) && counts(*at));
            let usable = all.clone().filter(|at| open(*at) && !standing(*at).is_out());
            let first = self.choose(key, here)?;
            let now = Instant::now();
            let turn = self.turn(first, now);
            if turn == Turn::Trial {
                return self.take(first, Some(now));
            }
            if !levels.keeps(usable.count(), all.count(), fastrand::f64()) {
                return None;
            }
            let chosen = if turn == Turn::Yes { self.take(first, None) } else { None };
            let choose = |accept: &dyn Fn(usize) -> bool| {
                self.choose(key, |at| here(at) && open(at) && accept(at)).and_then(|at| self.take(at, None))
            };
            chosen
                .or_else(|| choose(&|at| standing(at).is_in()))
                .or_else(|| choose(&|at| !standing(at).is_out()))
        })
    }

    /// Chooses where the first choice is none, or not well, or has no address: those that are out and those that
    /// were tried only while there is no other.
    #[cold]
    fn pick_around(&self, key: &[u8], tried: &Tried, first: Option<usize>) -> Option<Picked> {
        let standing = |at: usize| &self.members[at].stats.standing;
        let untried = |at: usize| !tried.contains(self.members[at].index);
        let open = |at: usize| self.members[at].backend.is_usable();
        let take = |at: usize| self.take(at, None);
        let now = Instant::now();
        let picked = match first.map(|at| (at, self.turn(at, now))) {
            Some((at, Turn::Trial)) => self.take(at, Some(now)),
            Some((at, Turn::Yes)) => take(at),
            Some((_, Turn::No | Turn::NotYet)) | None => None,
        };
        if picked.is_some() {
            return picked;
        }
        // Who cannot be connected to takes nothing off the others: a retry for each request would be more than may be.
        // Nor does who was not probed.
        let listens = |at: &usize| open(*at) && !standing(*at).is_cooling() && !standing(*at).awaits_probe();
        let all = (0..self.members.len()).filter(listens);
        let usable = all.clone().filter(|at| !standing(*at).is_out()).count();
        let panics = self.outliers.panics(usable, all.count());
        let choose = |accept: &dyn Fn(usize) -> bool| self.choose(key, accept).and_then(take);
        let again = !tried.is_empty();
        let panicky = |at: usize| untried(at) && listens(&at);
        None.or_else(|| first.filter(|at| panics && panicky(*at)).and_then(take))
            .or_else(|| if panics { choose(&panicky) } else { None })
            .or_else(|| choose(&|at| untried(at) && open(at) && standing(at).is_in()))
            .or_else(|| choose(&|at| untried(at) && self.members[at].backend.is_well()))
            .or_else(|| choose(&|at| untried(at) && open(at) && !standing(at).is_out()))
            .or_else(|| choose(&|at| untried(at) && open(at)))
            .or_else(|| if again { choose(&|at| open(at) && !standing(at).is_out()) } else { None })
            .or_else(|| if again { choose(&open) } else { None })
            // The chosen one was lost in the very moment.
            .or_else(|| (0..self.members.len()).find_map(take))
    }

    /// Whether the one at this place gets the request that it was chosen for.
    fn turn(&self, at: usize, now: Instant) -> Turn {
        let member = &self.members[at];
        // A trial that goes nowhere would keep all others from being one.
        if !member.backend.is_usable() {
            return Turn::No;
        }
        member.stats.standing.turn(now, self.outliers.warm_up(), fastrand::f64())
    }

    /// Gives a request to the one at this place; it may be a trial that began then.
    fn take(&self, at: usize, trial: Option<Instant>) -> Option<Picked> {
        let member = self.members.get(at)?;
        let Some(address) = member.backend.next_address() else {
            // A probe failed in between.
            if let Some(begun) = trial {
                member.stats.standing.give_back(begun, Instant::now());
            }
            return None;
        };
        let judge = || Judge { outliers: Arc::clone(&self.outliers), at, trial };
        let guard = InFlight::enter(
            &member.stats,
            (self.judges || trial.is_some() || member.stats.standing.is_out()).then(judge),
        )
        .to(address);
        if matches!(self.rule, Rule::Ewma(_)) {
            // Not where it was chosen: another one may have got that request.
            member.stats.give(Tick::of(guard.started()));
        }
        Some(Picked { index: member.index, address, backend: Arc::clone(&member.backend), guard, at })
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
                draws.better_of_two(accept, |at| self.members[at].cost(now))
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

/// What is judged of these.
fn pool(members: &[Member]) -> Box<[(Box<str>, Arc<Stats>)]> {
    let named = |member: &Member| (member.backend.written().to_string().into(), Arc::clone(&member.stats));
    members.iter().map(named).collect()
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
