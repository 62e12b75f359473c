//! Who is watched: every backend of every upstream of the running document.

use std::collections::HashMap;
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
    at: usize,
    /// None without a check. Locked, so that what is shown last is the latest.
    series: Option<Mutex<BackendSeries>>,
}

/// The backends of these upstreams.
pub(super) fn members(upstreams: &[Arc<Upstream>], registry: &Registry) -> Vec<Arc<Member>> {
    let all = upstreams.iter().flat_map(|upstream| {
        upstream.backends().iter().enumerate().map(move |(at, backend)| {
            let checked = upstream.check().is_some();
            let series = checked.then(|| registry.backend(&upstream.name, &backend.written().to_string()));
            Arc::new(Member { upstream: Arc::clone(upstream), at, series: series.map(Mutex::new) })
        })
    });
    all.collect()
}

impl Member {
    pub(super) fn backend(&self) -> &Backend {
        &self.upstream.backends()[self.at]
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
