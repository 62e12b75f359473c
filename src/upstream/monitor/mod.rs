//! Keeps the backends of the running document looked up and probed, off the request path.
//!
//! One thread does it for the whole process and for all generations: a name is looked up once and an
//! address probed once, whoever shares them, and what is known survives reloads. It also follows the registries that
//! tell backends.

mod followed;
mod lanes;
mod members;
mod probing;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use self::lanes::{Lane, Lanes};
use self::members::{Member, Seeds, joined, members};
use self::probing::Probing;
use super::backend::Endpoint;
use super::call::Caller;
use super::discovery::{Following, Open, World, jittered};
use super::export::export;
use super::names::Name;
use super::probe::{Key, Prober};
use super::resolve::{Bounded, Lookup};
use super::{Origins, Upstream};
use crate::config::Dns;
use crate::observe::Registry;

/// Lookups under way at the same time, and slow ones besides: each takes a few sockets.
const LOOKUPS: [usize; 2] = [16, 64];
/// Names under way at the same time that are registries, or lead to them: each takes a socket or two.
const LOOKUPS_OF_REGISTRIES: usize = 64;
/// Probes under way at the same time, and slow ones besides: each takes a socket.
const PROBES: [usize; 2] = [128, 512];
/// Longest wait for the first lookups.
const FIRST_LOOKUPS: Duration = Duration::from_secs(3);
/// Longest wait for the first lookups and probes together.
const WARM_UP: Duration = Duration::from_secs(8);

/// Looks names up and probes addresses for as long as it lives.
pub struct Monitor {
    shared: Arc<Shared>,
    runtime: Handle,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

struct Shared {
    lookup: Arc<dyn Lookup>,
    prober: Arc<dyn Prober>,
    directories: Arc<dyn Open>,
    registry: Arc<Registry>,
    lookups: Lanes,
    probes: Lanes,
    watched: Mutex<Watched>,
}

/// What is looked up and probed now.
#[derive(Default)]
struct Watched {
    /// Counts the documents that were watched.
    generation: u64,
    upstreams: Vec<Arc<Upstream>>,
    members: Vec<Arc<Member>>,
    names: HashMap<Box<str>, Task<Name>>,
    /// The settings that names are looked up by.
    dns: Dns,
    probes: HashMap<Key, Task<Probing>>,
    /// Registries that are followed, by what is known of them.
    followed: HashMap<usize, Task<Following>>,
}

/// Something that a task of its own keeps up to date, until this is dropped.
struct Task<T> {
    of: Arc<T>,
    task: AbortHandle,
    /// The generation that it came with.
    born: u64,
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    /// Starts the thread; nothing is watched yet. Probes share the caller's certificate authorities, not
    /// its connections; names are looked up as those of origins are.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(caller: Caller, origins: &Origins, registry: Arc<Registry>) -> io::Result<Self> {
        let lookup = Arc::new(Bounded::new(origins.lookup(), LOOKUPS_OF_REGISTRIES));
        let directories = World { lookup, caller: caller.clone() };
        Self::start_with(origins.lookup(), Arc::new(caller), Arc::new(directories), registry)
    }

    fn start_with(
        lookup: Arc<dyn Lookup>,
        prober: Arc<dyn Prober>,
        directories: Arc<dyn Open>,
        registry: Arc<Registry>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("backends".to_owned()).spawn(move || {
            let _ = runtime.block_on(stopped);
        })?;
        let shared = Shared {
            lookup,
            prober,
            directories,
            registry,
            lookups: Lanes::new(LOOKUPS),
            probes: Lanes::new(PROBES),
            watched: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), runtime: handle, _stop: stop })
    }

    /// Watches the backends of these upstreams from now on, and no others. What is known about their
    /// names and addresses already holds for them at once.
    pub fn watch(&self, upstreams: &[Arc<Upstream>], dns: &Dns) {
        export(upstreams, &self.shared.registry);
        let replaced = upstreams.to_vec();
        self.replace(dns, |_, _| (replaced, members(upstreams, &self.shared.registry)));
    }

    /// Watches the backends of these upstreams too: those that serve until these do are watched on.
    /// [`watch`](Self::watch) ends that.
    pub fn prepare(&self, upstreams: &[Arc<Upstream>], dns: &Dns) {
        self.replace(dns, |before, members| {
            let new = upstreams.iter().filter(|new| !before.iter().any(|old| Arc::ptr_eq(old, new)));
            let both = before.iter().chain(new).cloned().collect();
            (both, joined(members, upstreams, &self.shared.registry))
        });
    }

    /// Watches other upstreams and members.
    fn replace(
        &self,
        dns: &Dns,
        replaced: impl FnOnce(&[Arc<Upstream>], &[Arc<Member>]) -> (Vec<Arc<Upstream>>, Vec<Arc<Member>>),
    ) {
        let _entered = self.runtime.enter();
        let mut watched = self.shared.watched.lock();
        let (upstreams, members) = replaced(&watched.upstreams, &watched.members);
        watched.generation += 1;
        self.shared.look_up_by(&mut watched, dns);
        watched.upstreams = upstreams;
        self.shared.follow(&mut watched);
        let before = std::mem::replace(&mut watched.members, members);
        let seeds = Seeds::new(&before);
        self.shared.connect_all(&mut watched, |_| true, &seeds);
    }

    /// Waits until all that came with the last [`watch`](Self::watch) or [`prepare`](Self::prepare) was
    /// looked up and probed once, within bounds: what is slower than that is used as soon as it is known.
    pub fn warm_up(&self) {
        let started = Instant::now();
        let followed = self.shared.watched.lock().followed();
        followed.iter().for_each(|followed| followed.wait_until_tried(started + FIRST_LOOKUPS));
        let names = self.shared.watched.lock().names();
        names.iter().for_each(|name| name.wait_until_tried(started + FIRST_LOOKUPS));
        let probes = self.shared.watched.lock().probes();
        probes.iter().for_each(|probe| probe.health().wait_until_known(started + WARM_UP));
    }
}

impl Watched {
    /// The names that came with this generation.
    fn names(&self) -> Vec<Arc<Name>> {
        let new = self.names.values().filter(|name| name.born == self.generation);
        new.map(|name| Arc::clone(&name.of)).collect()
    }

    /// The registries that are followed since this generation.
    fn followed(&self) -> Vec<Arc<Following>> {
        let new = self.followed.values().filter(|followed| followed.born == self.generation);
        new.map(|followed| Arc::clone(&followed.of)).collect()
    }

    /// The probed addresses that came with this generation.
    fn probes(&self) -> Vec<Arc<Probing>> {
        let new = self.probes.values().filter(|probe| probe.born == self.generation);
        new.map(|probe| Arc::clone(&probe.of)).collect()
    }
}

impl Shared {
    /// Looks every name up anew if the settings changed.
    fn look_up_by(self: &Arc<Self>, watched: &mut Watched, dns: &Dns) {
        if watched.dns == *dns {
            return;
        }
        self.lookup.set(dns);
        watched.dns = dns.clone();
        for name in watched.names.values_mut() {
            name.task.abort();
            name.task = self.resolving(&name.of, Duration::ZERO);
        }
        self.follow_names_anew(watched);
    }

    /// Has the names of these members looked up and their addresses probed. What nobody goes by any more ends.
    fn connect_all(self: &Arc<Self>, watched: &mut Watched, which: impl Fn(&Member) -> bool, seeds: &Seeds) {
        let members: Vec<_> = watched.members.iter().filter(|member| which(member)).cloned().collect();
        watched.probes.values().for_each(|probe| probe.of.forget_users(&which));
        for member in &members {
            self.resolve(watched, member);
            self.connect(watched, member, seeds);
        }
        let hosts: HashSet<&str> =
            watched.members.iter().filter_map(|member| member.backend().name()).collect();
        watched.names.retain(|host, _| hosts.contains(&**host));
        watched.probes.retain(|_, probe| probe.of.has_users());
    }

    /// Has the member's name looked up, if it has one.
    fn resolve(self: &Arc<Self>, watched: &mut Watched, member: &Member) {
        let Some(host) = member.backend().name() else { return };
        let born = watched.generation;
        let name = watched.names.entry(host.into()).or_insert_with(|| {
            let of = Arc::new(Name::new(host));
            let task = self.resolving(&of, Duration::ZERO);
            Task { of, task, born }
        });
        member.backend().set_resolution(&name.of);
    }

    /// Has a name looked up again and again, after this time at first.
    fn resolving(self: &Arc<Self>, name: &Arc<Name>, after: Duration) -> AbortHandle {
        tokio::spawn(Arc::clone(self).keep_resolved(Arc::clone(name), after)).abort_handle()
    }

    /// Gives the member's backend its addresses and has them probed, if there is a check.
    fn connect(self: &Arc<Self>, watched: &mut Watched, member: &Arc<Member>, seeds: &Seeds) {
        let born = watched.generation;
        let endpoints = member.addresses().into_iter().map(|address| {
            let target = member.upstream.target(member.backend(), address);
            let health = target.map(|target| {
                let probe = watched.probes.entry(target.key.clone()).or_insert_with(|| {
                    let of = Arc::new(Probing::new(target, seeds.find(member, address)));
                    let task = tokio::spawn(Arc::clone(self).keep_probed(Arc::clone(&of))).abort_handle();
                    Task { of, task, born }
                });
                probe.of.add_user(member);
                Arc::clone(probe.of.health())
            });
            Endpoint { address, health }
        });
        member.backend().set_endpoints(endpoints.collect());
        // Somebody else may have had it probed.
        member.upstream.probed(member.backend());
        member.show();
    }

    async fn keep_resolved(self: Arc<Self>, name: Arc<Name>, mut after: Duration) {
        let mut lane = Lane::default();
        loop {
            // Never before the TTL is over: a cache between would answer with what is left of it.
            tokio::time::sleep(after.mul_f64(1.0 + 0.1 * fastrand::f64())).await;
            let found = self.lookups.run(&mut lane, || self.lookup.lookup(name.host())).await;
            after = {
                // Whoever waits for the name finds its addresses in use.
                let mut watched = self.watched.lock();
                let learned = name.learn(found, SystemTime::now());
                if learned.changed {
                    self.reconnect(&mut watched, &name);
                }
                name.tell();
                learned.again
            };
        }
    }

    /// Gives every backend of this name its new addresses.
    fn reconnect(self: &Arc<Self>, watched: &mut Watched, name: &Name) {
        let has_name = |member: &Member| member.backend().name() == Some(name.host());
        self.connect_all(watched, has_name, &Seeds::default());
    }

    async fn keep_probed(self: Arc<Self>, probing: Arc<Probing>) {
        let interval = probing.interval();
        // The first rounds of all that began together are spread over the interval.
        let mut pause = interval.mul_f64(fastrand::f64());
        let mut lane = Lane::default();
        let probe = || async {
            let started = Instant::now();
            (self.prober.probe(probing.target()).await, started)
        };
        loop {
            let (outcome, started) = self.probes.run(&mut lane, probe).await;
            probing.note(outcome, started.elapsed());
            tokio::time::sleep_until((started + pause).into()).await;
            pause = jittered(interval);
        }
    }
}
