//! Registries that are followed for upstreams, and what becomes of what they tell.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use super::lanes::Lane;
use super::members::{Seeds, renewed};
use super::{FIRST_LOOKUPS, Shared, Task, Watched, jittered};
use crate::config::discovery::Registry;
use crate::config::upstream::{Backend, Host};
use crate::upstream::Upstream;
use crate::upstream::discovery::{Failed, Following, STEADY, Tell};
use crate::upstream::export::export_backends;
use crate::upstream::names::Name;
use crate::upstream::resolve::Found;

/// A set that a registry told and that waits, as nobody of it can be reached yet.
struct Waiting {
    following: Arc<Following>,
    told: Arc<[Backend]>,
    /// What is in use meanwhile.
    used: Arc<[Backend]>,
}

/// What stands for one, as long as a task holds it.
fn id(following: &Arc<Following>) -> usize {
    Arc::as_ptr(following).addr()
}

impl Shared {
    /// Follows the registries of all upstreams, each once, and no others.
    pub(super) fn follow(self: &Arc<Self>, watched: &mut Watched) {
        let all: Vec<_> =
            watched.upstreams.iter().filter_map(|upstream| upstream.following()).cloned().collect();
        let wanted: HashSet<usize> = all.iter().map(id).collect();
        watched.followed.retain(|followed, _| wanted.contains(followed));
        let born = watched.generation;
        for of in all {
            watched.followed.entry(id(&of)).or_insert_with(|| {
                let task = tokio::spawn(Arc::clone(self).keep_followed(Arc::clone(&of))).abort_handle();
                Task { of, task, born }
            });
        }
    }

    /// Asks anew for what names stand for: others are asked now.
    pub(super) fn follow_names_anew(self: &Arc<Self>, watched: &mut Watched) {
        for followed in watched.followed.values_mut() {
            if matches!(followed.of.written(), Registry::Dns(_) | Registry::DnsSrv(_)) {
                followed.task.abort();
                let following = Arc::clone(&followed.of);
                followed.task = tokio::spawn(Arc::clone(self).keep_followed(following)).abort_handle();
            }
        }
    }

    async fn keep_followed(self: Arc<Self>, following: Arc<Following>) {
        let (shared, known) = (Arc::clone(&self), Arc::clone(&following));
        let tell = Tell::new(move |instances| {
            if known.told(instances, SystemTime::now()) {
                let mut watched = shared.watched.lock();
                let told = known.backends();
                let names = unknown_names(&watched, &known, &told);
                if let Some(used) = in_use(&watched, &known)
                    && !names.is_empty()
                {
                    let waiting = Waiting { following: Arc::clone(&known), told, used };
                    tokio::spawn(Arc::clone(&shared).renew_when_known(waiting, names));
                    return;
                }
                shared.renew(&mut watched, &known);
            }
            known.wake();
        });
        let directory = self.directories.open(&following);
        loop {
            following.begins();
            // Somebody else's code may be in it; its bugs are its own.
            let mut follow = pin!(AssertUnwindSafe(directory.follow(&tell)).catch_unwind());
            let followed = match timeout(STEADY, &mut follow).await {
                Ok(followed) => followed,
                Err(_) => {
                    following.lasts();
                    follow.await
                }
            };
            let why = followed.unwrap_or_else(|_| Failed::from("its client panicked"));
            let pause = following.failed(why, directory.patience(), SystemTime::now());
            following.wake();
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Looks names up, and gives the upstreams of this registry the backends that it told as soon as one of them can be
    /// reached; at last, whatever it told in the meantime.
    async fn renew_when_known(self: Arc<Self>, waiting: Waiting, names: Vec<Box<str>>) {
        let _ = timeout(FIRST_LOOKUPS, self.look_up(&waiting, names)).await;
        let mut watched = self.watched.lock();
        if waiting.is_so(&watched) {
            self.renew(&mut watched, &waiting.following);
            drop(watched);
            waiting.following.wake();
        }
    }

    /// Looks names up until one is found, or nobody waits for that any more.
    async fn look_up(self: &Arc<Self>, waiting: &Waiting, names: Vec<Box<str>>) {
        let mut lookups: FuturesUnordered<_> =
            names.into_iter().map(|host| self.look_up_once(host)).collect();
        while let Some((host, found)) = lookups.next().await {
            if self.is_enough(waiting, host, found) {
                return;
            }
        }
        // Others that were told meanwhile have their own names looked up, and are waited for as long as these.
        if !Arc::ptr_eq(&waiting.told, &waiting.following.backends()) {
            std::future::pending::<()>().await;
        }
    }

    async fn look_up_once(&self, host: Box<str>) -> (Box<str>, Result<Found, Failed>) {
        let mut lane = Lane::default();
        let found = self.lookups.run(&mut lane, || self.lookup.lookup(&host)).await;
        (host, found)
    }

    /// Takes in what a name stands for, and what was told last if that can be reached now; whether nothing is waited for
    /// any more.
    fn is_enough(self: &Arc<Self>, waiting: &Waiting, host: Box<str>, found: Result<Found, Failed>) -> bool {
        let (mut watched, following) = (self.watched.lock(), &waiting.following);
        if !waiting.is_so(&watched) {
            return true;
        }
        if let Some(name) = self.learn(&mut watched, host, found) {
            self.reconnect(&mut watched, &name);
            name.tell();
        }
        let is_reachable = unknown_names(&watched, following, &following.backends()).is_empty();
        if is_reachable {
            self.renew(&mut watched, following);
        }
        drop(watched);
        if is_reachable {
            following.wake();
        }
        is_reachable
    }

    /// Takes in what a name stands for; gives the name if that is news for backends that have it already.
    fn learn(
        self: &Arc<Self>,
        watched: &mut Watched,
        host: Box<str>,
        found: Result<Found, Failed>,
    ) -> Option<Arc<Name>> {
        let now = SystemTime::now();
        if let Some(known) = watched.names.get(&host) {
            // Its own task looks it up too, and says what is wrong with it.
            let of = Arc::clone(&known.of);
            let is_used = || watched.members.iter().any(|member| member.backend().name() == Some(&*host));
            return (found.is_ok() && of.learn(found, now).changed && is_used()).then_some(of);
        }
        let of = Arc::new(Name::new(&host));
        let again = of.learn(found, now).again;
        let (task, born) = (self.resolving(&of, again), watched.generation);
        watched.names.insert(host, Task { of, task, born });
        None
    }

    /// Gives the upstreams of this registry the backends that it told.
    fn renew(self: &Arc<Self>, watched: &mut Watched, following: &Arc<Following>) {
        let affected: Vec<_> = fed_by(watched, following).cloned().collect();
        for upstream in &affected {
            let known = |host: &str| watched.names.get(host).map(|name| name.of.addresses());
            upstream.renew_with(&|host| known(host).unwrap_or_default());
            watched.members = renewed(&watched.members, upstream, &self.registry);
            // Who stays is probed on as it was.
            self.connect_all(watched, |member| Arc::ptr_eq(&member.upstream, upstream), &Seeds::default());
        }
        export_backends(&watched.upstreams, following.upstream(), &self.registry);
        self.registry.tidy_backends();
    }
}

impl Waiting {
    /// Whether what was in use still is: nothing that was told since has been taken in.
    fn is_so(&self, watched: &Watched) -> bool {
        in_use(watched, &self.following).is_some_and(|used| Arc::ptr_eq(&used, &self.used))
    }
}

/// What the upstreams go by whose backends this registry tells, if there are any.
fn in_use(watched: &Watched, following: &Arc<Following>) -> Option<Arc<[Backend]>> {
    fed_by(watched, following).next().map(|upstream| upstream.entries())
}

/// The upstreams whose backends this registry tells.
fn fed_by<'a>(
    watched: &'a Watched,
    following: &'a Arc<Following>,
) -> impl Iterator<Item = &'a Arc<Upstream>> {
    let is_its = move |upstream: &&Arc<Upstream>| {
        upstream.following().is_some_and(|other| Arc::ptr_eq(other, following))
    };
    watched.upstreams.iter().filter(is_its)
}

/// The names of the backends that a registry tells, each once, if all of them are names that nobody has looked up, while
/// there are addresses of those in use: they would be given up for what cannot be reached yet.
fn unknown_names(watched: &Watched, following: &Arc<Following>, told: &[Backend]) -> Vec<Box<str>> {
    let unknown = |backend: &Backend| match &backend.address.host {
        Host::Ip(_) => None,
        Host::Name(name) => {
            let known = watched.names.get(name.as_str());
            let is_unknown = known.is_none_or(|known| known.of.addresses().is_empty());
            is_unknown.then(|| Box::<str>::from(name.as_str()))
        }
    };
    let Some(mut names) = told.iter().map(unknown).collect::<Option<Vec<Box<str>>>>() else {
        return Vec::new();
    };
    let serves = |upstream: &Arc<Upstream>| upstream.backends().iter().any(|backend| backend.is_resolved());
    if !fed_by(watched, following).any(serves) {
        return Vec::new();
    }
    names.sort_unstable();
    names.dedup();
    names
}
