//! Registries that are followed for upstreams, and what becomes of what they tell.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::members::{Seeds, renewed};
use super::{Shared, Task, Watched, jittered};
use crate::config::discovery::Registry;
use crate::upstream::Upstream;
use crate::upstream::discovery::{Failed, Following, STEADY, Tell};
use crate::upstream::export::export_backends;

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
                shared.renew(&known);
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

    /// Gives the upstreams of this registry the backends that it told.
    fn renew(self: &Arc<Self>, following: &Arc<Following>) {
        let mut watched = self.watched.lock();
        let is_its = |upstream: &&Arc<Upstream>| {
            upstream.following().is_some_and(|other| Arc::ptr_eq(other, following))
        };
        let affected: Vec<_> = watched.upstreams.iter().filter(is_its).cloned().collect();
        for upstream in &affected {
            upstream.renew();
            let members = renewed(&watched.members, upstream, &self.registry);
            watched.members = members;
            // Who stays is probed on as it was.
            self.connect_all(
                &mut watched,
                |member| Arc::ptr_eq(&member.upstream, upstream),
                &Seeds::default(),
            );
        }
        export_backends(&watched.upstreams, following.upstream(), &self.registry);
        self.registry.tidy_backends();
    }
}
