//! Routes by host: exact names, then the longest wildcard, then any host.

use std::collections::HashMap;

use tollhouse_filters::condition::RequestView;
use tollhouse_filters::host::HostPattern;

use super::path::{Paths, Trie};
use super::{Entry, RouteId, RouteMatch};

/// Routes by host.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    exact: HashMap<Box<str>, Paths>,
    /// By what stands after `*.`.
    below: HashMap<Box<str>, Paths>,
    any: Option<Paths>,
    /// Bounds the look-ups for a host of very many labels.
    longest: usize,
    trie: Trie,
}

impl Hosts {
    pub(super) fn build(routes: &[RouteMatch]) -> Self {
        let mut hosts = Self::default();
        for (route, id) in routes.iter().zip((0u32..).map(RouteId)) {
            if route.hosts.is_empty() {
                hosts.add(None, id, route);
            }
            for host in &route.hosts {
                hosts.add(Some(host), id, route);
            }
        }
        let buckets = hosts.exact.values_mut().chain(hosts.below.values_mut()).chain(&mut hosts.any);
        buckets.for_each(|bucket| bucket.finish(routes));
        hosts.trie.finish(routes);
        hosts
    }

    fn add(&mut self, host: Option<&HostPattern>, id: RouteId, route: &RouteMatch) {
        let Self { exact, below, any, longest, trie } = self;
        let bucket = match host {
            None => any.get_or_insert_with(|| Paths::new(trie)),
            Some(HostPattern::Exact(name)) => exact.entry(name.clone()).or_insert_with(|| Paths::new(trie)),
            Some(HostPattern::Wildcard(suffix)) => {
                *longest = (*longest).max(suffix.len());
                below.entry(suffix.clone()).or_insert_with(|| Paths::new(trie))
            }
        };
        bucket.add(trie, id, route);
    }

    /// Shows the entries whose host and path match, best first, until one is taken.
    pub(super) fn visit(
        &self,
        request: &RequestView<'_>,
        take: &mut dyn FnMut(Entry) -> bool,
    ) -> Option<Entry> {
        if let Some(host) = request.host {
            if let Some(found) =
                self.exact.get(host).and_then(|bucket| bucket.visit(&self.trie, request.path, take))
            {
                return Some(found);
            }
            // From the longest suffix to the shortest; at least one label stands before it. Most documents have none.
            let dots = if self.below.is_empty() { "" } else { host };
            let suffixes = dots.match_indices('.').map(|(at, _)| &host[at + 1..]);
            for suffix in suffixes.filter(|suffix| suffix.len() <= self.longest) {
                if let Some(found) =
                    self.below.get(suffix).and_then(|bucket| bucket.visit(&self.trie, request.path, take))
                {
                    return Some(found);
                }
            }
        }
        self.any.as_ref()?.visit(&self.trie, request.path, take)
    }
}
