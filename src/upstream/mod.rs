//! Backends: choosing one, reaching it, calling it.

mod backend;
mod balance;
pub mod call;
mod peer;
mod trust;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::backend::{Lookup, system_lookup};
use self::balance::Balancer;
use self::trust::Trust;
use crate::config::upstream::{self as written, Host, Protocol};
use crate::observe::{Registry, UpstreamSeries};

pub use self::backend::{Backend, InFlight};
pub use self::balance::{Picked, Tried};

/// Heaviest weight: a round of the selector holds a place for each unit of weight.
const MAX_WEIGHT: u16 = 1000;
/// Most backends of an upstream: Pingora's selectors count them in 16 bits.
const MAX_BACKENDS: usize = 10_000;
/// Most further attempts.
const MAX_RETRIES: u8 = 10;
/// Names resolved at the same time.
const LOOKUPS: usize = 16;

/// An upstream as requests use it: parsed, files read, backends resolved.
pub struct Upstream {
    /// What routes, logs and metrics call it.
    pub name: Arc<str>,
    written: written::Upstream,
    trust: Option<Trust>,
    group_key: u64,
    balancer: Balancer,
    series: OnceLock<UpstreamSeries>,
}

/// What is wrong with an upstream: paths below it, and messages.
#[derive(Default)]
struct Problems(Vec<(String, String)>);

impl Upstream {
    /// Builds an upstream: reads its files (relative to `base`) and resolves its names, blocking.
    ///
    /// A name that does not resolve is no error; its backend gets no requests until
    /// [`Upstream::refresh`] finds it. `retained` is the upstream of the same name that ran before;
    /// addresses it knows are kept.
    ///
    /// # Errors
    /// Every problem, as a path below the upstream (`backends[0].weight`) and a message.
    pub fn build(
        written: &written::Upstream,
        base: &Path,
        retained: Option<&Self>,
    ) -> Result<Self, Vec<(String, String)>> {
        Self::build_with(written, base, retained, &system_lookup)
    }

    /// As [`Upstream::build`], without looking names up: for checking and for dry runs.
    ///
    /// # Errors
    /// As [`Upstream::build`].
    pub fn build_offline(written: &written::Upstream, base: &Path) -> Result<Self, Vec<(String, String)>> {
        Self::assemble(written, base)
    }

    fn build_with(
        written: &written::Upstream,
        base: &Path,
        retained: Option<&Self>,
        lookup: &Lookup,
    ) -> Result<Self, Vec<(String, String)>> {
        let upstream = Self::assemble(written, base)?;
        retained.into_iter().for_each(|retained| upstream.inherit(retained));
        upstream.refresh_with(lookup);
        Ok(upstream)
    }

    fn assemble(written: &written::Upstream, base: &Path) -> Result<Self, Vec<(String, String)>> {
        let mut problems = Problems::default();
        check_backends(written, &mut problems);
        check_protocol(written, &mut problems);
        let trust = written.tls.as_ref().and_then(|tls| Trust::load(tls, base, &mut problems));
        if !problems.0.is_empty() {
            return Err(problems.0);
        }
        let backends = written
            .backends
            .iter()
            .map(|entry| (Arc::new(Backend::new(&entry.address, written.tls.is_some())), entry.weight));
        Ok(Self {
            name: written.name.shared(),
            group_key: group_key(written.protocol, trust.as_ref()),
            balancer: Balancer::new(written.balance.algorithm, backends.collect()),
            written: written.clone(),
            trust,
            series: OnceLock::new(),
        })
    }

    /// Chooses a backend for one attempt: another than those tried while one is left. `None` when
    /// no backend can get requests.
    pub fn pick(&self, key: &[u8], tried: &Tried) -> Option<Picked> {
        self.balancer.pick(key, tried)
    }

    /// The backends, in written order.
    pub fn backends(&self) -> &[Arc<Backend>] {
        self.balancer.backends()
    }

    /// As written in the document.
    pub const fn written(&self) -> &written::Upstream {
        &self.written
    }

    /// Its metrics, made on first use.
    pub fn series(&self, registry: &Registry) -> &UpstreamSeries {
        self.series.get_or_init(|| registry.upstream(&self.name))
    }

    /// Further attempts allowed after a connection could not be made.
    pub const fn retries(&self) -> u8 {
        self.written.retries.max
    }

    /// The limit on a whole exchange, retries included.
    pub const fn total_timeout(&self) -> Option<Duration> {
        self.written.timeouts.total.get()
    }

    /// The limit on one wait for the response.
    pub const fn read_timeout(&self) -> Option<Duration> {
        self.written.timeouts.read.get()
    }

    /// Whether connections are made over TLS.
    pub const fn is_tls(&self) -> bool {
        self.trust.is_some()
    }

    /// The HTTP version spoken to the backends.
    pub const fn protocol(&self) -> Protocol {
        self.written.protocol
    }

    /// Resolves the host names again and keeps the last good answer of those that fail. Blocks: call
    /// it from a background thread.
    pub fn refresh(&self) {
        self.refresh_with(&system_lookup);
    }

    /// Whether this upstream behaves as the other one does, so that the other, with its place in the
    /// round and its counts, may stay. File contents count, not file names alone.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.written == other.written && self.group_key == other.group_key
    }

    fn refresh_with(&self, lookup: &Lookup) {
        let named: Vec<_> = self.backends().iter().filter(|backend| backend.name().is_some()).collect();
        for group in named.chunks(LOOKUPS) {
            thread::scope(|scope| {
                for backend in group {
                    scope.spawn(|| backend.resolve(lookup));
                }
            });
        }
    }

    fn inherit(&self, retained: &Self) {
        for backend in self.backends().iter().filter(|backend| backend.name().is_some()) {
            let known = retained.backends().iter().find(|known| known.written() == backend.written());
            known.into_iter().for_each(|known| backend.inherit(known));
        }
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

/// Separates pooled connections that differ in protocol or trust.
fn group_key(protocol: Protocol, trust: Option<&Trust>) -> u64 {
    let mut digest = Sha256::new();
    digest.update([protocol as u8, u8::from(trust.is_some())]);
    trust.into_iter().for_each(|trust| digest.update(trust.digest));
    let digest: [u8; 32] = digest.finalize().into();
    let (key, _) = digest.split_first_chunk().expect("32 bytes hold 8");
    u64::from_be_bytes(*key)
}
