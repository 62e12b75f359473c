//! The snapshot that a process begins with.

use std::path::Path;
use std::sync::Arc;

use tollhouse_filters::registry::Registry;
use tollhouse_filters::tree::from_node_all;
use tollhouse_filters::world::World;

use super::{StartError, descriptors, outside};
use crate::cache::Cache;
use crate::cache::store::{Store, StoreOptions};
use crate::config::Observability;
use crate::engine::{Background, SideCalls};
use crate::observe::Observe;
use crate::snapshot::{Compiler, Mode, Snapshot};
use crate::source::{self, Loaded, Problems};

/// Answers to one key that vary, such as by language; the oldest leave first.
const MOST_VARIANTS: usize = 32;

/// The document, compiled, and what it is served with; `succeeds` where it is to take the place of one that serves.
pub(super) fn snapshot(
    path: &Path,
    registry: &Registry,
    calls: &Arc<SideCalls>,
    background: &Arc<Background>,
    succeeds: bool,
) -> Result<(Snapshot, World, Arc<Observe>, Arc<Cache>), StartError> {
    let loaded = Arc::new(source::load(path)?);
    let observe = start_observing(&loaded)?;
    let store = Arc::new(Store::new(StoreOptions { capacity: 0, max_variants: MOST_VARIANTS }));
    let cache = Cache::new(store, calls.caller().clone(), observe.clone());
    let world = World::live(calls.clone(), observe.registry.clone()).with_tasks(background.clone());
    let world = world.with_cached(cache.clone());
    let snapshot = Compiler { registry, world: &world, previous: None, mode: Mode::Live, roster: None }
        .compile(&loaded)?;
    heed(outside::tested(&loaded, &snapshot, registry), succeeds)?;
    descriptors::compare(snapshot.server.limits.connections);
    outside::furnish(cache.store(), &snapshot.server.cache).map_err(|error| {
        StartError::Runtime(format!("cannot use the directory of `server.cache.disk`: {error}"))
    })?;
    Ok((snapshot, world, observe, cache))
}

/// What becomes of a document whose own tests fail: as at a reload, it does not take the place of one that serves.
fn heed(tested: Result<(), Problems>, succeeds: bool) -> Result<(), Problems> {
    match tested {
        // At a start they only warn: a gateway that comes up is worth more than a perfect one.
        Err(problems) if !succeeds => {
            for problem in &problems.list {
                log::warn!("{problem}");
            }
            Ok(())
        }
        tested => tested,
    }
}

/// Filters make their counters while the document is compiled, so these come first.
fn start_observing(loaded: &Loaded) -> Result<Arc<Observe>, StartError> {
    // For a document that will not serve, no file is opened.
    let is_right = loaded.errors.is_empty() && loaded.duplicates.is_empty();
    let written = loaded.root.get("observability").filter(|_| is_right);
    let written = written.map_or(Ok(Observability::default()), from_node_all);
    // Where this part is wrong, compiling tells everything that is.
    let options = written.unwrap_or_default();
    let log = &options.access_log;
    Observe::new(options.metrics.max_series, &log.format, &log.to)
        .map_err(|error| StartError::Runtime(format!("cannot open the access log: {error}")))
}
