//! Who is watched: every backend of every upstream of the running document.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::upstream::Host;
use crate::observe::{BackendSeries, Registry};
use crate::upstream::health::{Health, State};
use crate::upstream::{Backend, Upstream};

/// A backend of an upstream.
pub(super) struct Member {
    pub(super) upstream: Arc<Upstream>,
    backend: Arc<Backend>,
    /// None without a check, and for what only prepares to follow one that is shown. Locked, so that what is shown last is the latest.
    series: Option<Mutex<BackendSeries>>,
}

/// The backends of these upstreams, which now are as their registries said last.
pub(super) fn members(upstreams: &[Arc<Upstream>], registry: &Registry) -> Vec<Arc<Member>> {
    joined(&[], upstreams, registry)
}

/// These members and, besides, the backends of these upstreams. What both have is shown and counted for
/// those that were there before alone.
pub(super) fn joined(
    before: &[Arc<Member>],
    upstreams: &[Arc<Upstream>],
    registry: &Registry,
) -> Vec<Arc<Member>> {
    let held: HashSet<_> = before.iter().map(|member| Arc::as_ptr(&member.upstream)).collect();
    let shown: HashSet<_> = before.iter().map(|member| (&*member.upstream.name, member.label())).collect();
    let new =
        upstreams.iter().filter(|upstream| !held.contains(&Arc::as_ptr(upstream))).flat_map(|upstream| {
            upstream.renew();
            let is_shown = |label: &str| !shown.contains(&(&*upstream.name, label.to_owned()));
            upstream
                .backends()
                .into_iter()
                .map(move |backend| Member::new(upstream, backend, registry, is_shown))
        });
    before.iter().cloned().chain(new).collect()
}

/// These members, where the backends of this upstream are others than before: who stays is the same member, who is new
/// is among them, who is gone is not.
pub(super) fn renewed(
    before: &[Arc<Member>],
    upstream: &Arc<Upstream>,
    registry: &Registry,
) -> Vec<Arc<Member>> {
    let (own, mut members): (Vec<_>, Vec<_>) =
        before.iter().cloned().partition(|member| Arc::ptr_eq(&member.upstream, upstream));
    let shown: HashSet<_> = members
        .iter()
        .filter(|member| member.upstream.name == upstream.name)
        .map(|member| member.label())
        .collect();
    let mut known: HashMap<_, _> =
        own.into_iter().map(|member| (Arc::as_ptr(&member.backend), member)).collect();
    let member = |backend: Arc<Backend>| {
        let stays = known.remove(&Arc::as_ptr(&backend));
        stays.unwrap_or_else(|| Member::new(upstream, backend, registry, |label| !shown.contains(label)))
    };
    members.extend(upstream.backends().into_iter().map(member));
    members
}

impl Member {
    /// One that is shown if its label is wanted and it is checked.
    fn new(
        upstream: &Arc<Upstream>,
        backend: Arc<Backend>,
        registry: &Registry,
        is_shown: impl Fn(&str) -> bool,
    ) -> Arc<Self> {
        let member = Self { upstream: Arc::clone(upstream), backend, series: None };
        let label = member.label();
        let shown = upstream.check().is_some() && is_shown(&label);
        let series = shown.then(|| Mutex::new(registry.backend(&upstream.name, &label)));
        Arc::new(Self { series, ..member })
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// What metrics call the backend.
    fn label(&self) -> String {
        self.backend().written().to_string()
    }

    /// Where the backend is, as far as that is known.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let backend = self.backend();
        let port = backend.written().port;
        match (&backend.written().host, backend.resolution()) {
            (Host::Ip(ip), _) => vec![SocketAddr::new(*ip, port)],
            (Host::Name(_), Some(name)) => {
                name.addresses().into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
            }
            (Host::Name(_), None) => Vec::new(),
        }
    }

    /// Counts a change of one of its addresses.
    pub(super) fn count(&self, to: State) {
        if let Some(series) = &self.series {
            series.lock().changed(to == State::Healthy);
        }
    }

    /// Brings its gauge up to date.
    pub(super) fn show(&self) {
        if let Some(series) = &self.series {
            let series = series.lock();
            series.set_healthy(self.backend().is_healthy());
        }
    }
}

/// What was known before a document changed, by upstream and address.
#[derive(Default)]
pub(super) struct Seeds(HashMap<(Arc<str>, SocketAddr), Arc<Health>>);

impl Seeds {
    /// What these know.
    pub(super) fn new(members: &[Arc<Member>]) -> Self {
        let mut known = HashMap::new();
        for member in members {
            for endpoint in member.backend().endpoints() {
                let key = (Arc::clone(&member.upstream.name), endpoint.address);
                endpoint.health.into_iter().for_each(|health| drop(known.insert(key.clone(), health)));
            }
        }
        Self(known)
    }

    /// What was known about this address as one of the same upstream's.
    pub(super) fn find(&self, member: &Member, address: SocketAddr) -> Option<&Health> {
        self.0.get(&(Arc::clone(&member.upstream.name), address)).map(|health| &**health)
    }
}
