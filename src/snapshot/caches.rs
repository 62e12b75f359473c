//! What is known of all caches of a document, for requests that change what they hold.

use std::collections::HashSet;
use std::sync::Arc;

use tollhouse_filters::caching::Counted;
use tollhouse_filters::world::Cached;

use super::compile::{Faults, below, did_you_mean};
use super::{ListenerPlan, Route};
use crate::config;
use crate::config::Name;
use crate::release::{bare, looks_like_a_version};

/// The caches of a document, where there are any.
pub struct Caches {
    /// What they store.
    pub cached: Arc<dyn Cached>,
    /// How they count queries, each way once.
    pub counted: Vec<Counted>,
    /// The names of versions that paths begin with, bare and in lower case.
    versions: HashSet<String>,
}

impl Caches {
    /// Those of these listeners and routes.
    pub(super) fn of(
        listeners: &[ListenerPlan],
        routes: &[Arc<Route>],
        cached: &Arc<dyn Cached>,
    ) -> Option<Self> {
        let of_routes = routes.iter().flat_map(|route| [&route.shared, &route.own]);
        let pipelines = listeners.iter().map(|listener| &listener.pipeline).chain(of_routes);
        let mut counted: Vec<Counted> = Vec::new();
        for cache in
            pipelines.flat_map(|pipeline| pipeline.steps()).filter_map(|step| step.declared.caches.as_ref())
        {
            if !counted.contains(cache) {
                counted.push(cache.clone());
            }
        }
        let of_paths =
            routes.iter().filter_map(|route| route.versions.as_ref()).filter(|all| all.reads_path());
        let versions =
            of_paths.flat_map(|versions| versions.names()).map(|name| bare(name).to_ascii_lowercase());
        (!counted.is_empty()).then(|| Self { cached: cached.clone(), counted, versions: versions.collect() })
    }

    /// Whether a segment that a path begins with may be taken for a version.
    #[must_use]
    pub fn is_version(&self, segment: &str) -> bool {
        !self.versions.is_empty()
            && (looks_like_a_version(segment)
                || (segment.starts_with(['v', 'V'])
                    && self.versions.contains(&bare(segment).to_ascii_lowercase())))
    }
}

/// Whether the store over which purges are shared is one of these.
pub(super) fn check<'a>(
    written: &config::Cache,
    stores: impl Iterator<Item = &'a Name> + Clone,
    faults: &mut Faults<'_>,
) {
    let Some(name) = &written.store else { return };
    if !stores.clone().any(|known| known == name) {
        let hint = did_you_mean(name.as_str(), stores.map(Name::as_str));
        faults.add_with_hint(&below("server.cache.store"), format!("no store is named `{name}`"), hint);
    }
}
