//! From the text of a document to a snapshot, for 10 to 10,000 routes, beside a bare typed parse.
//!
//! Compiling is to be linear in the number of routes and to take at most four times the bare parse.

#[expect(dead_code, reason = "each benchmark uses its own part")]
mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde::Deserialize;
use tollhouse_filters::world::World;

/// The same document in plain structs: nothing located, nothing checked, nothing built.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Bare {
    version: u32,
    admin: BTreeMap<String, String>,
    listeners: Vec<BTreeMap<String, String>>,
    upstreams: Vec<Upstream>,
    chains: BTreeMap<String, Vec<BTreeMap<String, serde_yaml::Value>>>,
    routes: Vec<Route>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Upstream {
    name: String,
    backends: Vec<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Route {
    name: String,
    r#match: Match,
    filters: Vec<BTreeMap<String, String>>,
    upstream: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only parsed")]
struct Match {
    paths: Vec<String>,
    methods: Vec<String>,
}

/// The shortest of some runs.
fn shortest(runs: usize, mut run: impl FnMut()) -> Duration {
    let once = |_| {
        let started = Instant::now();
        run();
        started.elapsed()
    };
    (0..runs).map(once).min().unwrap_or_default()
}

#[expect(clippy::print_stderr, reason = "the result of this benchmark")]
fn compile(c: &mut Criterion) {
    let (registry, world) = (tollhouse_filters::builtin(), World::dry());
    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    for routes in [10, 100, 1_000, 10_000] {
        let text = common::document(routes);
        let bare = || drop(black_box(serde_yaml::from_str::<Bare>(&text).expect("a valid document")));
        let load = || drop(black_box(common::load(&text)));
        let whole = || drop(black_box(common::compile(&common::load(&text), &registry, &world)));
        let runs = (20_000 / routes).clamp(3, 100);
        let (parsed, loaded, compiled) = (shortest(runs, bare), shortest(runs, load), shortest(runs, whole));
        eprintln!(
            "{routes} routes: bare parse {parsed:?}, load {loaded:?}, load and compile {compiled:?} ({:.2} times, {:?} a route)",
            compiled.as_secs_f64() / parsed.as_secs_f64(),
            compiled / u32::try_from(routes).expect("a small number"),
        );
        group.bench_function(format!("bare/{routes}"), |b| b.iter(bare));
        group.bench_function(format!("whole/{routes}"), |b| b.iter(whole));
    }
    group.finish();
}

criterion_group!(benches, compile);
criterion_main!(benches);
