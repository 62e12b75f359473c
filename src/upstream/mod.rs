//! Backends: choosing one, reaching it, calling it.

mod backend;
mod balance;
pub mod call;
mod check;
mod discovery;
mod export;
mod health;
mod idle;
mod monitor;
mod names;
mod origin;
mod peer;
mod probe;
mod refusals;
mod resilience;
mod resolve;
mod set;
mod stats;
mod sticky;
mod trust;
pub mod view;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pingora::http::RequestHeader;
use sha2::{Digest, Sha256};
use tollhouse_filters::context::Context;

use self::discovery::Following;
use self::resilience::Memory;
use self::set::Backends;
use self::sticky::Sticky;
use self::trust::Trust;
use crate::config::health::Active;
use crate::config::hedge::{After, Hedge};
use crate::config::retries::RouteRetries;
use crate::config::upstream::{self as written, Protocol};
use crate::observe::{Registry, UpstreamSeries};

pub use self::backend::Backend;
pub use self::balance::{Picked, Tried};
pub use self::monitor::Monitor;
pub use self::origin::Origins;
pub use self::resilience::{Admission, Asked, Bulkhead, Fault, Keep, Progress, Refusal, Rules, Verdict};
pub use self::stats::InFlight;

/// Heaviest weight.
const MAX_WEIGHT: u16 = 1000;
/// Most backends of an upstream: some algorithms look at each for every request.
const MAX_BACKENDS: usize = 10_000;
/// Most further attempts.
pub const MAX_RETRIES: u8 = 10;
/// What is wrong with a backend that takes no part in ALPN where HTTP/2 is written.
pub const NOT_HTTP2: &str = "the backend does not speak HTTP/2";

/// An upstream as requests use it: parsed, files read. A [`Monitor`] resolves and probes its backends.
pub struct Upstream {
    /// What routes, logs and metrics call it.
    pub name: Arc<str>,
    written: written::Upstream,
    trust: Option<Trust>,
    group_key: u64,
    backends: Backends,
    check: Option<Arc<Active>>,
    memory: Memory,
    sticky: Option<Sticky>,
    series: OnceLock<UpstreamSeries>,
    /// Whether connections are found to be dead on which nothing is sent, for answers that are waited for long.
    keepalive: bool,
}

/// What is wrong with an upstream: paths below it, and messages.
#[derive(Default)]
struct Problems(Vec<(String, String)>);

impl Upstream {
    /// Builds an upstream: reads its files, relative to `base`. Host names have no addresses yet, and
    /// nothing is known about the health of its backends, before a [`Monitor`] watches it. `retained` is
    /// the upstream of the same name that ran before; its backends' numbers go on.
    ///
    /// # Errors
    /// Every problem, as a path below the upstream (`backends[0].weight`) and a message.
    pub fn build(
        written: &written::Upstream,
        base: &Path,
        retained: Option<&Self>,
    ) -> Result<Self, Vec<(String, String)>> {
        let mut problems = Problems::default();
        check::check(written, &mut problems);
        check::check_registry(written, base, &mut problems);
        let trust = written.tls.as_ref().and_then(|tls| Trust::load(tls, base, &mut problems));
        if !problems.0.is_empty() {
            return Err(problems.0);
        }
        let name = written.name.shared();
        let memory = Memory::build(written, &name, retained.map(|old| &old.memory));
        let sticky = written.balance.sticky.as_ref().map(|sticky| Sticky::new(sticky, &name));
        Ok(Self {
            group_key: group_key(written.protocol, trust.as_ref()),
            backends: Backends::build(written, base, sticky.as_ref(), retained),
            check: written.health.as_ref().and_then(|health| health.active.clone()).map(Arc::new),
            sticky,
            name,
            written: written.clone(),
            trust,
            memory,
            series: OnceLock::new(),
            keepalive: false,
        })
    }

    /// The same, but known and trusted by what was read elsewhere.
    fn trusting(mut self, trust: Trust) -> Self {
        self.group_key = group_key(self.written.protocol, Some(&trust));
        self.trust = Some(trust);
        self
    }

    /// The same, with connections that are found to be dead though nothing is sent on them.
    fn with_keepalive(self) -> Self {
        Self { keepalive: true, ..self }
    }

    /// Chooses a backend for one attempt: another than those tried while one is left. `None` when
    /// no backend can get requests. `key` is what [`Upstream::write_key`] made of the request.
    pub fn pick(&self, key: &[u8], tried: &Tried) -> Option<Picked> {
        self.backends.now().balancer.pick(key, tried)
    }

    /// As [`Upstream::pick`], with the backend that a cookie is for first, if it can be used.
    pub fn pick_for(&self, stuck: Option<&Arc<Backend>>, key: &[u8], tried: &Tried) -> Option<Picked> {
        let stuck = stuck.and_then(|backend| self.backends.now().balancer.pick_this(backend, tried));
        stuck.or_else(|| self.pick(key, tried))
    }

    /// The backend that this request's cookie is for, if clients stay with theirs.
    pub fn stuck_to(&self, request: &RequestHeader) -> Option<Arc<Backend>> {
        let sticky = self.sticky.as_ref()?;
        self.backends.now().by_cookie(sticky, &request.headers)
    }

    /// Whether clients stay with their backends by a cookie.
    pub const fn is_sticky(&self) -> bool {
        self.sticky.is_some()
    }

    /// The `Set-Cookie` by which a client stays with this backend, if clients do.
    pub fn stick(&self, backend: &Backend, tls: bool) -> Option<http::HeaderValue> {
        self.sticky.as_ref()?.set(backend.written(), tls)
    }

    /// Appends what balancing goes by for this request, if the upstream balances by a key and the request
    /// has it. A side call has a head, but no context.
    pub fn write_key(&self, request: &RequestHeader, ctx: Option<&Context>, key: &mut Vec<u8>) {
        let Some(selector) = &self.written.balance.hash_on else { return };
        let complete = match ctx {
            Some(ctx) => selector.write_key(request, ctx, key),
            None => selector.write_head_key(request, key),
        };
        if !complete {
            key.clear();
        }
    }

    /// The backends now, in written order; those that a registry tells in the order of their addresses.
    pub fn backends(&self) -> Box<[Arc<Backend>]> {
        self.backends.now().balancer.backends().into()
    }

    /// Who tells its backends, unless they are written.
    pub(in crate::upstream) const fn following(&self) -> Option<&Arc<Following>> {
        self.backends.following()
    }

    /// What is written or told of its backends, as it is in use now.
    pub(in crate::upstream) fn entries(&self) -> Arc<[written::Backend]> {
        Arc::clone(&self.backends.now().entries)
    }

    /// Takes in what its registry told last, at once and for all requests to come; whether that is anything new.
    pub(in crate::upstream) fn renew(&self) -> bool {
        self.renew_with(&|_| Vec::new())
    }

    /// The same, where addresses of names are known.
    pub(in crate::upstream) fn renew_with(&self, known: &dyn Fn(&str) -> Vec<IpAddr>) -> bool {
        self.backends.renew(&self.written, self.sticky.as_ref(), known)
    }

    /// Its metrics, made on first use.
    pub fn series(&self, registry: &Registry) -> &UpstreamSeries {
        self.series.get_or_init(|| registry.upstream(&self.name))
    }

    /// What is tried again, for a route that has rules of its own or not.
    pub fn rules<'a>(&'a self, route: Option<&'a RouteRetries>) -> Rules<'a> {
        Rules::new(&self.written.retries, route, &self.memory.budget)
    }

    /// How requests of a route that has a hedge of its own, or not, are hedged, if they are.
    pub fn hedge<'a>(&'a self, route: Option<&'a Hedge>) -> Option<&'a Hedge> {
        let hedge = route.or(self.written.hedge.as_ref())?;
        (hedge.max > 0 && self.backends.now().balancer.has_several()).then_some(hedge)
    }

    /// Whether some backend was not tried that can get requests.
    pub fn has_another(&self, tried: &Tried) -> bool {
        self.backends.now().balancer.has_another(tried)
    }

    /// How long one attempt is waited for before the next; none while that is not known.
    pub fn hedges_after(&self, hedge: &Hedge) -> Option<Duration> {
        match hedge.after {
            After::Time(time) => Some(time.get()),
            After::Percentile(of) => self.memory.latencies.percentile(of),
        }
    }

    /// Notes what the head of an answer took.
    pub fn took(&self, time: Duration) {
        self.memory.latencies.note(time);
    }

    /// Counts a request, which pays for retries.
    pub fn asked(&self, now: Instant) {
        self.memory.budget.deposit(now);
    }

    /// The field that says how much time is left, if one does.
    pub fn remaining_header(&self) -> Option<&http::HeaderName> {
        self.written.timeouts.remaining_header.as_ref().map(|name| name.get())
    }

    /// What one attempt for a route has of the time until this moment, where backends are told of it.
    pub fn time_told(&self, until: Option<Instant>, route: Option<&RouteRetries>) -> Option<Duration> {
        self.remaining_header()?;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        [left, self.rules(route).per_try()].into_iter().flatten().min()
    }

    /// The limit on a whole exchange, retries included.
    pub const fn total_timeout(&self) -> Option<Duration> {
        self.written.timeouts.total.get()
    }

    /// The limit on one wait for the response.
    pub const fn read_timeout(&self) -> Option<Duration> {
        self.written.timeouts.read.get()
    }

    /// The limit on making a connection.
    pub const fn connect_timeout(&self) -> Duration {
        self.written.timeouts.connect.get()
    }

    /// Whether connections are made over TLS.
    pub const fn is_tls(&self) -> bool {
        self.trust.is_some()
    }

    /// The HTTP version spoken to the backends.
    pub const fn protocol(&self) -> Protocol {
        self.written.protocol
    }

    /// Whether backends are spoken to in HTTP/2 and in nothing else.
    pub const fn insists_on_http2(&self) -> bool {
        matches!(self.written.protocol, Protocol::H2 | Protocol::H2c)
    }

    /// Whether this upstream behaves as the other one does, so that the other, with its place in the
    /// round and its counts, may stay. File contents count, not file names alone.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.written == other.written && self.group_key == other.group_key
    }

    /// A backend was found to be well again: it begins with a small share, if that is written.
    fn warm_up(&self, backend: &Backend) {
        let slow_start = self.written.health.as_ref().and_then(|health| health.slow_start);
        if slow_start.is_some() && backend.has_one_address() {
            backend.stats.standing.warm(Instant::now());
        }
    }

    /// A backend may have been probed: if it had to wait for that, it gets requests from now on, and begins with a small
    /// share if that is written.
    fn probed(&self, backend: &Backend) {
        let standing = &backend.stats.standing;
        if standing.awaits_probe() && backend.is_probed() {
            let slow_start = self.written.health.as_ref().and_then(|health| health.slow_start);
            standing.probed(Instant::now(), slow_start.is_some() && backend.is_healthy());
        }
    }

    /// Notes that a chosen backend could not be connected to.
    pub fn connect_failed(&self, picked: &mut Picked) {
        picked.backend.connect_failed(picked.address);
        self.backends.now().balancer.unreachable(picked);
    }

    /// How its backends are probed.
    fn check(&self) -> Option<&Arc<Active>> {
        self.check.as_ref()
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Problems {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push((path.into(), message.into()));
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Separates pooled connections that differ in protocol or trust.
fn group_key(protocol: Protocol, trust: Option<&Trust>) -> u64 {
    let mut digest = Sha256::new();
    digest.update([protocol as u8, u8::from(trust.is_some())]);
    trust.into_iter().for_each(|trust| digest.update(trust.digest));
    let digest: [u8; 32] = digest.finalize().into();
    let (key, _) = digest.split_first_chunk().expect("32 bytes hold 8");
    u64::from_be_bytes(*key)
}
