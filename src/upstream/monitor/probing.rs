//! One address under probes, and the backends that go by what they tell.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::members::Member;
use crate::upstream::health::{Health, Outcome, State};
use crate::upstream::probe::Target;

/// Upstreams that a log line names; more are only counted.
const NAMED: usize = 3;

/// An address that is probed, once for all its users.
pub(super) struct Probing {
    target: Target,
    health: Arc<Health>,
    users: Mutex<Vec<Weak<Member>>>,
}

impl Probing {
    /// Begins with what is known, if anything is.
    pub(super) fn new(target: Target, known: Option<&Health>) -> Self {
        let health = known.map_or_else(|| Health::new(SystemTime::now()), Health::seeded);
        Self { target, health: Arc::new(health), users: Mutex::default() }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    pub(super) fn interval(&self) -> Duration {
        self.target.key.check.interval.get()
    }

    pub(super) fn add_user(&self, member: &Arc<Member>) {
        self.users.lock().push(Arc::downgrade(member));
    }

    pub(super) fn forget_users(&self, which: impl Fn(&Member) -> bool) {
        self.users.lock().retain(|user| user.upgrade().is_some_and(|member| !which(&member)));
    }

    pub(super) fn has_users(&self) -> bool {
        !self.users.lock().is_empty()
    }

    /// Takes the outcome of a probe in; a change is logged and counted.
    pub(super) fn note(&self, outcome: Outcome, took: Duration) {
        let change = self.health.note(outcome, took, SystemTime::now(), &self.target.key.check);
        let Some((before, after)) = change else { return };
        let users: Vec<_> = self.users.lock().iter().filter_map(Weak::upgrade).collect();
        self.log(before, after, &users);
        for member in users {
            // What the first probe finds is no change.
            if before == State::Unknown {
                member.upstream.probed(member.backend());
            } else {
                member.count(after);
            }
            if (before, after) == (State::Unhealthy, State::Healthy) {
                member.upstream.warm_up(member.backend());
            }
            member.show();
        }
    }

    fn log(&self, before: State, after: State, users: &[Arc<Member>]) {
        let (address, reason, upstreams) = (self.target.key.address, self.health.reason(), named(users));
        match (before, after) {
            (_, State::Unhealthy) => {
                log::warn!(upstreams, address:%, reason; "a backend is unhealthy; it gets no requests");
            }
            (State::Unknown, _) => log::debug!(upstreams, address:%, reason; "a backend is healthy"),
            _ => log::info!(upstreams, address:%, reason; "a backend is healthy again"),
        }
    }
}

/// The upstreams of these, a few by name.
fn named(users: &[Arc<Member>]) -> String {
    let mut names: Vec<&str> = users.iter().map(|member| &*member.upstream.name).collect();
    names.sort_unstable();
    names.dedup();
    match names.len().saturating_sub(NAMED) {
        0 => names.join(","),
        more => format!("{},+{more}", names[..NAMED].join(",")),
    }
}
