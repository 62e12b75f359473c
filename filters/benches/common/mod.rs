//! What benchmarks of filters share.

use std::sync::Arc;

use tollhouse_filters::filter::Surroundings;
use tollhouse_filters::world::{NoClient, NoMetrics, UpstreamId, World};

/// No upstreams.
pub(crate) struct Nothing;

impl Surroundings for Nothing {
    fn upstream(&self, _: &str) -> Option<UpstreamId> {
        None
    }

    fn nearest_upstream(&self, _: &str) -> Option<String> {
        None
    }
}

/// The world as it is, of which nothing is told.
pub(crate) fn world() -> World {
    World::live(Arc::new(NoClient), Arc::new(NoMetrics))
}

/// Resident memory in bytes.
pub(crate) fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}
