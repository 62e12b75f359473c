//! What is known of the backends of one upstream: the last good set, how old it is, what went wrong since.
//!
//! It belongs to an upstream as its breaker does: a reload that changes nothing of its discovery keeps it, and whoever
//! follows the registry for it goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Failed, Instance};
use crate::config::discovery::Registry;
use crate::config::upstream::{Address, Backend, Host};
use crate::upstream::view::{DiscoveryView, seconds_between};
use crate::upstream::{MAX_BACKENDS, MAX_WEIGHT};

/// How soon a registry is asked again at first; twice as late each time.
const RETRY: Duration = Duration::from_secs(1);
/// A registry that is followed for as long is followed again. What tells a set and fails at once is not: it would be
/// asked for all of it without a pause.
pub(in crate::upstream) const STEADY: Duration = Duration::from_secs(3);
/// Instances that cannot be used and are logged one by one; more are counted.
const NAMED: usize = 8;

/// The backends of an upstream, as its registry tells them.
#[derive(Debug)]
pub(in crate::upstream) struct Following {
    written: Registry,
    /// What files are relative to.
    base: PathBuf,
    upstream: Arc<str>,
    known: Mutex<Known>,
    tried: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    /// The last good set, in the order of addresses.
    backends: Arc<[Backend]>,
    /// When the registry last told a set, which may be the same.
    told: Option<SystemTime>,
    /// Until it does, the set is what was in use before the document named this registry.
    inherited: Option<Inherited>,
    /// When the set last changed, and how often it did.
    changed: Option<SystemTime>,
    changes: u64,
    failing: Option<Failing>,
    /// Since its client was called last, it has told a good set, and been followed for long.
    good: bool,
    steady: bool,
    /// It was tried to follow the registry, and what that led to is in use.
    tried: bool,
    /// The registry says that there are no backends, and the last ones are kept all the same.
    outvoted: bool,
    /// What of the last set could not be used.
    ignored: BTreeSet<(Instance, &'static str)>,
}

/// A set that another registry told, or that was written.
#[derive(Debug, Clone, Copy)]
struct Inherited {
    /// When it was told last; none if it was written.
    told: Option<SystemTime>,
}

#[derive(Debug)]
struct Failing {
    why: Failed,
    since: SystemTime,
    times: u32,
}

impl Following {
    /// Nobody has told anything yet.
    pub(in crate::upstream) fn new(written: Registry, base: &Path, upstream: Arc<str>) -> Self {
        Self { written, base: base.to_owned(), upstream, known: Mutex::default(), tried: Condvar::new() }
    }

    /// The same, with the backends that its upstream has had until now, so that a change of the registry pauses no
    /// traffic: they stay in use until this one has told any. `before` told them, unless they were written.
    pub(in crate::upstream) fn heir_of(self, backends: Arc<[Backend]>, before: Option<&Self>) -> Self {
        let told = before.and_then(|before| before.known.lock().last_told());
        {
            let mut known = self.known.lock();
            known.inherited = (!backends.is_empty()).then_some(Inherited { told });
            known.backends = backends;
        }
        self
    }

    /// Whether it is this registry that is followed.
    pub(in crate::upstream) fn follows(&self, written: &Registry, base: &Path) -> bool {
        self.written == *written && self.base == base
    }

    pub(in crate::upstream) const fn written(&self) -> &Registry {
        &self.written
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// The name of its upstream.
    pub(in crate::upstream) const fn upstream(&self) -> &Arc<str> {
        &self.upstream
    }

    /// The last good set.
    pub(in crate::upstream) fn backends(&self) -> Arc<[Backend]> {
        Arc::clone(&self.known.lock().backends)
    }

    /// Takes in what the registry tells; whether the set changed.
    pub(in crate::upstream) fn told(&self, instances: Option<Vec<Instance>>, now: SystemTime) -> bool {
        let mut known = self.known.lock();
        let Some(instances) = instances else {
            // Still the same, unless that is one that could not be used.
            if known.good {
                known.told = known.told.map(|_| now);
            }
            return false;
        };
        let told = instances.len();
        let (backends, ignored) = usable(instances);
        let upstream = &*self.upstream;
        log_ignored(upstream, &ignored, &known.ignored);
        known.ignored = ignored;
        if backends.is_empty() && told > 0 {
            // No registry means that; nothing of what it tells is trusted.
            let why = format!("none of the {told} instances that it tells can be used");
            self.fail(&mut known, why.into(), now);
            return false;
        }
        known.good = true;
        self.recover(&mut known);
        known.inherited = None;
        let is_first = known.told.replace(now).is_none();
        let outvoted =
            backends.is_empty() && !known.backends.is_empty() && self.written.shared().keeps_last_on_empty();
        if outvoted && !known.outvoted {
            log::warn!(upstream; "a registry says that there are no backends; keeping the last ones");
        }
        known.outvoted = outvoted;
        if outvoted || (*known.backends == *backends && !is_first) {
            return false;
        }
        if backends.is_empty() {
            log::warn!(upstream; "a registry says that there are no backends; there is nobody to ask");
        } else {
            let before = known.backends.len();
            log::info!(upstream, backends = backends.len(), before; "a registry tells other backends");
        }
        known.backends = backends.into();
        known.changed = Some(now);
        known.changes += 1;
        true
    }

    /// Its client is called.
    pub(in crate::upstream) fn begins(&self) {
        let mut known = self.known.lock();
        (known.good, known.steady) = (false, false);
    }

    /// Its client goes on after [`STEADY`].
    pub(in crate::upstream) fn lasts(&self) {
        let mut known = self.known.lock();
        known.steady = true;
        self.recover(&mut known);
    }

    fn recover(&self, known: &mut Known) {
        if known.good && known.steady && known.failing.take().is_some() {
            log::info!(upstream = &*self.upstream, registry = self.written.kind(); "a registry is followed again");
        }
    }

    /// The registry cannot be followed: how long to wait before it is tried again, at most as long as this.
    pub(in crate::upstream) fn failed(&self, why: Failed, patience: Duration, now: SystemTime) -> Duration {
        let mut known = self.known.lock();
        self.fail(&mut known, why, now);
        let times = known.failing.as_ref().map_or(0, |failing| failing.times.saturating_sub(1));
        RETRY.saturating_mul(1 << times.min(8)).min(patience)
    }

    fn fail(&self, known: &mut Known, why: Failed, now: SystemTime) {
        known.good = false;
        let failing = known.failing.take();
        let (upstream, registry) = (&*self.upstream, self.written.kind());
        if failing.as_ref().is_none_or(|failing| failing.why != why) {
            let kept = known.backends.len();
            let message = if kept > 0 { "keeping the last backends" } else { "it has no backends" };
            log::warn!(upstream, registry, backends = kept, error:% = why; "cannot follow a registry; {message}");
        }
        let (since, times) = failing.map_or((now, 0), |failing| (failing.since, failing.times));
        known.failing = Some(Failing { why, since, times: times.saturating_add(1) });
    }

    /// What was told last is in use, or nothing could be: wakes who waits for that.
    pub(in crate::upstream) fn wake(&self) {
        self.known.lock().tried = true;
        self.tried.notify_all();
    }

    /// Waits until what the registry told is in use, or it cannot be followed; at most until the deadline.
    pub(in crate::upstream) fn wait_until_tried(&self, deadline: Instant) {
        let mut known = self.known.lock();
        while !known.tried {
            if self.tried.wait_until(&mut known, deadline).timed_out() {
                return;
            }
        }
    }

    /// Whether the registry is followed, as far as is known.
    pub(in crate::upstream) fn is_up(&self) -> bool {
        is_up(&self.known.lock())
    }

    /// Seconds since the backends in use were last told; none before they were.
    pub(in crate::upstream) fn age(&self, now: SystemTime) -> Option<u64> {
        self.known.lock().last_told().map(|told| seconds_between(told, now))
    }

    /// Whether there is a set, told or inherited.
    pub(in crate::upstream) fn is_known(&self) -> bool {
        let known = self.known.lock();
        known.told.is_some() || known.inherited.is_some()
    }

    /// How often the set changed.
    pub(in crate::upstream) fn changes(&self) -> u64 {
        self.known.lock().changes
    }

    /// Everything, to be shown.
    pub(in crate::upstream) fn view(&self, now: SystemTime) -> DiscoveryView {
        let known = self.known.lock();
        let failing = known.failing.as_ref();
        DiscoveryView {
            kind: self.written.kind(),
            up: is_up(&known),
            told: known.last_told().map(Into::into),
            age: known.last_told().map(|told| seconds_between(told, now)),
            inherited: known.inherited.is_some(),
            changed: known.changed.map(Into::into),
            changes: known.changes,
            ignored: known.ignored.len(),
            kept_on_empty: known.outvoted,
            error: failing.map(|failing| failing.why.to_string()),
            failing_since: failing.map(|failing| failing.since.into()),
        }
    }
}

impl Known {
    /// When the set in use was last told, by whomever.
    fn last_told(&self) -> Option<SystemTime> {
        self.told.or_else(|| self.inherited.and_then(|inherited| inherited.told))
    }
}

fn is_up(known: &MutexGuard<'_, Known>) -> bool {
    known.told.is_some() && known.failing.is_none()
}

/// What of a set can be used, each address once and in their order, and what cannot.
fn usable(mut instances: Vec<Instance>) -> (Vec<Backend>, BTreeSet<(Instance, &'static str)>) {
    instances.sort_unstable();
    instances.dedup();
    let mut ignored = BTreeSet::new();
    let mut backends: Vec<Backend> = Vec::with_capacity(instances.len());
    for instance in instances {
        match backend(&instance) {
            Ok(backend) => backends.push(backend),
            Err(why) => drop(ignored.insert((instance, why))),
        }
    }
    let key = |backend: &Backend| (backend.address.to_string(), backend.priority, backend.weight);
    backends.sort_by_cached_key(key);
    // The same address told twice is one backend: the one of the first group.
    backends.dedup_by(|later, earlier| later.address.to_string() == earlier.address.to_string());
    for extra in backends.drain(backends.len().min(MAX_BACKENDS)..) {
        let instance = Instance::at(&extra.address.to_string(), extra.address.port.into());
        ignored.insert((instance, "there are too many"));
    }
    (backends, ignored)
}

fn backend(instance: &Instance) -> Result<Backend, &'static str> {
    let host = &*instance.host;
    let host = host.parse().map(Host::Ip).ok().or_else(|| Host::read(host)).ok_or("the host is none")?;
    let port = u16::try_from(instance.port).ok().filter(|port| *port != 0).ok_or("the port is none")?;
    let weight = u16::try_from(instance.weight.unwrap_or(1)).ok().filter(|weight| *weight <= MAX_WEIGHT);
    let priority = u8::try_from(instance.priority.unwrap_or(0));
    Ok(Backend {
        address: Address { host, port },
        weight: weight.ok_or("the weight is over 1000")?,
        priority: priority.map_err(|_| "the priority is over 255")?,
        zone: instance.zone.as_deref().map(str::to_owned),
    })
}

/// Logs what cannot be used, each once for as long as it is told.
fn log_ignored(
    upstream: &str,
    ignored: &BTreeSet<(Instance, &'static str)>,
    before: &BTreeSet<(Instance, &'static str)>,
) {
    let new = || ignored.difference(before);
    for (instance, why) in new().take(NAMED) {
        // Whatever a registry tells as a host, a line of the log stays one line of bounded length.
        let host: String = instance.host.chars().take(255).flat_map(char::escape_default).collect();
        log::warn!(upstream, host, port = instance.port, why; "an instance that a registry tells is not used");
    }
    let more = new().count().saturating_sub(NAMED);
    if more > 0 {
        log::warn!(upstream, more; "instances that a registry tells are not used");
    }
}

#[cfg(test)]
mod tests;
