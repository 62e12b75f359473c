//! Backends: choosing one, reaching it, calling it.

mod backend;
mod balance;
pub mod call;
mod discovery;
mod export;
mod health;
mod idle;
mod monitor;
mod names;
mod origin;
mod peer;
mod probe;
mod resilience;
mod resolve;
mod stats;
mod sticky;
mod trust;
pub mod view;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use pingora::http::RequestHeader;
use sha2::{Digest, Sha256};
use tollhouse_filters::context::Context;
use tollhouse_filters::values::ByteSize;

use self::balance::Balancer;
use self::resilience::Memory;
use self::sticky::Sticky;
use self::trust::Trust;
use crate::config::balance::{Algorithm, Balance};
use crate::config::circuit_breaker::CircuitBreaker;
use crate::config::health::{Active, ProbeKind, ProbeMethod};
use crate::config::retries::RouteRetries;
use crate::config::upstream::{self as written, Host, Protocol};
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
/// The most of a body that is kept for another attempt; Pingora keeps no more.
const MAX_KEPT: ByteSize = ByteSize::from_kib(64);
/// Fields that every message needs for itself.
const OF_MESSAGES: [&str; 10] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "via",
];
/// Shortest interval between probes.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// An upstream as requests use it: parsed, files read. A [`Monitor`] resolves and probes its backends.
pub struct Upstream {
    /// What routes, logs and metrics call it.
    pub name: Arc<str>,
    written: written::Upstream,
    trust: Option<Trust>,
    group_key: u64,
    balancer: Balancer,
    check: Option<Arc<Active>>,
    memory: Memory,
    sticky: Option<Sticky>,
    series: OnceLock<UpstreamSeries>,
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
        check_backends(written, &mut problems);
        check_balance(&written.balance, &mut problems);
        check_protocol(written, &mut problems);
        check_health(written, &mut problems);
        check_breaker(written.circuit_breaker.as_ref(), &mut problems);
        let trust = written.tls.as_ref().and_then(|tls| Trust::load(tls, base, &mut problems));
        if !problems.0.is_empty() {
            return Err(problems.0);
        }
        let name = written.name.shared();
        let memory = Memory::build(written, &name, retained.map(|old| &old.memory));
        let health = written.health.as_ref();
        let outlier = health.and_then(|health| health.outlier.clone());
        let warm_up = health.and_then(|health| health.slow_start).map(|time| time.get());
        Ok(Self {
            group_key: group_key(written.protocol, trust.as_ref()),
            balancer: Balancer::new(written.balance.algorithm, backends(written, retained))
                .judged_by(outlier, warm_up, &name)
                .grouped(&places(written), written.balance.failover_below),
            sticky: sticky(written, &name),
            check: health.and_then(|health| health.active.clone()).map(Arc::new),
            name,
            written: written.clone(),
            trust,
            memory,
            series: OnceLock::new(),
        })
    }

    /// The same, but known and trusted by what was read elsewhere.
    fn trusting(mut self, trust: Trust) -> Self {
        self.group_key = group_key(self.written.protocol, Some(&trust));
        self.trust = Some(trust);
        self
    }

    /// Chooses a backend for one attempt: another than those tried while one is left. `None` when
    /// no backend can get requests. `key` is what [`Upstream::write_key`] made of the request.
    pub fn pick(&self, key: &[u8], tried: &Tried) -> Option<Picked> {
        self.balancer.pick(key, tried)
    }

    /// As [`Upstream::pick`], with the backend that a cookie is for first, if it can be used.
    pub fn pick_for(&self, stuck: Option<usize>, key: &[u8], tried: &Tried) -> Option<Picked> {
        let stuck = stuck.and_then(|index| self.balancer.pick_this(index, tried));
        stuck.or_else(|| self.pick(key, tried))
    }

    /// The backend that this request's cookie is for, if clients stay with theirs.
    pub fn stuck_to(&self, request: &RequestHeader) -> Option<usize> {
        self.sticky.as_ref()?.backend(&request.headers)
    }

    /// Whether clients stay with their backends by a cookie.
    pub const fn is_sticky(&self) -> bool {
        self.sticky.is_some()
    }

    /// The `Set-Cookie` by which a client stays with this backend, if clients do.
    pub fn stick(&self, backend: usize, tls: bool) -> Option<http::HeaderValue> {
        self.sticky.as_ref()?.set(backend, tls)
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

    /// The backends, in written order.
    pub fn backends(&self) -> &[Arc<Backend>] {
        self.balancer.backends()
    }

    /// Its metrics, made on first use.
    pub fn series(&self, registry: &Registry) -> &UpstreamSeries {
        self.series.get_or_init(|| registry.upstream(&self.name))
    }

    /// What is tried again, for a route that has rules of its own or not.
    pub fn rules<'a>(&'a self, route: Option<&'a RouteRetries>) -> Rules<'a> {
        Rules::new(&self.written.retries, route, &self.memory.budget)
    }

    /// Counts a request, which pays for retries.
    pub fn asked(&self, now: Instant) {
        self.memory.budget.deposit(now);
    }

    /// The field that says how much time is left, if one does.
    pub fn remaining_header(&self) -> Option<&http::HeaderName> {
        self.written.timeouts.remaining_header.as_ref().map(|name| name.get())
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

    /// Notes that a chosen backend could not be connected to.
    pub fn connect_failed(&self, picked: &mut Picked) {
        picked.backend.connect_failed(picked.address);
        self.balancer.unreachable(picked);
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

fn check_backends(written: &written::Upstream, problems: &mut Problems) {
    match written.backends.len() {
        0 => problems.add("backends", "at least one backend is needed"),
        count if count > MAX_BACKENDS => {
            problems.add("backends", format!("at most {MAX_BACKENDS} backends are possible"));
        }
        _ => {}
    }
    for (index, backend) in written.backends.iter().enumerate() {
        if backend.weight > MAX_WEIGHT {
            problems.add(format!("backends[{index}].weight"), format!("expected 0 to {MAX_WEIGHT}"));
        }
    }
    if written.retries.max > MAX_RETRIES {
        problems.add("retries.max", format!("expected 0 to {MAX_RETRIES}"));
    }
    if let Some(name) = &written.timeouts.remaining_header
        && OF_MESSAGES.contains(&name.get().as_str())
    {
        problems.add("timeouts.remaining_header", "is a field that says something else");
    }
    if written.retries.body_bytes > MAX_KEPT {
        problems.add("retries.body_bytes", format!("expected at most {MAX_KEPT}"));
    }
}

/// Where backends are among the groups.
fn places(written: &written::Upstream) -> Vec<balance::Place> {
    let zone = written.balance.zone.as_ref();
    let elsewhere = |backend: &written::Backend| zone.is_some() && backend.zone.as_ref() != zone;
    written.backends.iter().map(|backend| (backend.priority, elsewhere(backend))).collect()
}

fn sticky(written: &written::Upstream, name: &str) -> Option<Sticky> {
    let addresses = written.backends.iter().map(|backend| backend.address.to_string());
    written.balance.sticky.as_ref().map(|sticky| Sticky::new(sticky, name, addresses))
}

fn check_balance(balance: &Balance, problems: &mut Problems) {
    let token = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    if balance.sticky.as_ref().is_some_and(|sticky| !token(&sticky.cookie)) {
        problems.add("balance.sticky.cookie", "expected the name of a cookie (RFC 6265 s4.1.1)");
    }
    let by_key = balance.algorithm == Algorithm::ConsistentHash;
    match &balance.hash_on {
        None if by_key => {
            problems.add("balance.hash_on", "is needed by `consistent_hash`: add one, such as `hash_on: ip`");
        }
        Some(_) if !by_key => {
            problems.add("balance.hash_on", "only `consistent_hash` goes by a key; add that `algorithm`");
        }
        _ => {}
    }
}

/// The backends with their weights. One that was there before, with the same address and TLS, keeps its
/// numbers; where an address is written more than once, the first is the first.
fn backends(written: &written::Upstream, retained: Option<&Upstream>) -> Vec<(Arc<Backend>, u16)> {
    let tls = written.tls.is_some();
    let mut known: HashMap<&written::Address, VecDeque<&Backend>> = HashMap::new();
    for backend in retained.into_iter().filter(|old| old.is_tls() == tls).flat_map(Upstream::backends) {
        known.entry(backend.written()).or_default().push_back(backend);
    }
    let build = |entry: &written::Backend| {
        let backend = Backend::new(&entry.address, tls);
        let old = known.get_mut(&entry.address).and_then(VecDeque::pop_front);
        let backend = match old {
            Some(old) => backend.counting_with(old),
            None => backend,
        };
        (Arc::new(backend), entry.weight)
    };
    written.backends.iter().map(build).collect()
}

fn check_protocol(written: &written::Upstream, problems: &mut Problems) {
    match (written.protocol, &written.tls) {
        (Protocol::H2, None) => problems.add("protocol", "`h2` needs `tls`; without TLS it is `h2c`"),
        (Protocol::H2c, Some(_)) => problems.add("protocol", "`h2c` is without TLS; with `tls` it is `h2`"),
        _ => {}
    }
    let nameless = |backend: &written::Backend| matches!(backend.address.host, Host::Ip(_));
    if let Some(tls) = &written.tls
        && tls.sni.is_none()
        && let Some(index) = written.backends.iter().position(nameless)
    {
        let address = &written.backends[index].address;
        problems.add("tls.sni", format!("is needed, as the backend {address} has no host name to verify"));
    }
}

fn check_breaker(breaker: Option<&CircuitBreaker>, problems: &mut Problems) {
    let Some(breaker) = breaker else { return };
    let here = |key: &str| format!("circuit_breaker.{key}");
    match (breaker.slow, breaker.slow_ratio) {
        (Some(_), None) => problems.add(here("slow"), "needs `slow_ratio`: how many may be slow"),
        (None, Some(_)) => problems.add(here("slow_ratio"), "needs `slow`: what is slow"),
        _ => {}
    }
    let Some(fallback) = &breaker.fallback else { return };
    if !(200..=599).contains(&fallback.status) {
        problems.add(here("fallback.status"), "expected 200 to 599");
    }
    for (name, value) in &fallback.headers {
        let place = here(&format!("fallback.headers.{name}"));
        if OF_MESSAGES.contains(&name.get().as_str()) && name.get() != http::header::CONTENT_TYPE {
            problems.add(place, "is made by the gateway");
        } else if http::HeaderValue::from_str(value).is_err() {
            problems.add(place, "expected text on one line");
        }
    }
}

fn check_health(written: &written::Upstream, problems: &mut Problems) {
    let Some(health) = &written.health else { return };
    if health.active.is_none() && health.outlier.is_none() && health.slow_start.is_none() {
        problems.add("health", "says nothing; add `active` or `outlier`");
    }
    let Some(active) = &health.active else { return };
    let (http, grpc) = (active.kind == ProbeKind::Http, active.kind == ProbeKind::Grpc);
    let here = |key: &str| format!("health.active.{key}");
    for (key, is_written, fits, kinds) in [
        ("path", active.path.is_some(), http, "`type: http`"),
        ("method", active.method.is_some(), http, "`type: http`"),
        ("expect", active.expect.is_some(), http, "`type: http`"),
        ("body", active.body.is_some(), http, "`type: http`"),
        ("host", active.host.is_some(), http || grpc, "`type: http` and `type: grpc`"),
        ("service", active.service.is_some(), grpc, "`type: grpc`"),
    ] {
        if is_written && !fits {
            problems.add(here(key), format!("is only for {kinds}"));
        }
    }
    if active.expect.as_ref().is_some_and(Vec::is_empty) {
        problems.add(here("expect"), "at least one status is needed");
    }
    if active.body.is_some() && active.method == Some(ProbeMethod::Head) {
        problems.add(here("body"), "an answer to `HEAD` has no body");
    }
    if active.interval.get() < MIN_INTERVAL {
        problems.add(here("interval"), "expected at least 10ms");
    }
    let speaks_h2 = match written.protocol {
        Protocol::H2 | Protocol::H2c => true,
        Protocol::Auto => written.tls.is_some(),
        Protocol::Http1 => false,
    };
    if grpc && !speaks_h2 {
        problems.add(here("type"), "`grpc` needs an upstream with `protocol: h2` or `h2c`");
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
