//! Finding a route among 1, 100 and 10,000, and indexing 10,000.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use tollhouse::routing::{ListenerId, RouteMatch, Router, View};
use tollhouse_filters::condition::RequestView;
use tollhouse_filters::host::HostPattern;
use tollhouse_filters::path::{NormalPath, PathPattern, PathRules, normalize};

fn routes(count: usize) -> Vec<RouteMatch> {
    let pattern = |text: String| PathPattern::parse(&text).expect("a valid pattern");
    let prefixes = (1..count).map(|number| pattern(format!("/svc{number}/*")));
    let paths = std::iter::once(pattern("/users/{id}/orders/{order}".to_owned())).chain(prefixes);
    paths.map(|path| RouteMatch { paths: vec![path], ..RouteMatch::default() }).collect()
}

/// Bytes of memory in use by this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4096
}

/// Ten thousand routes are to take less than 10 MiB.
#[expect(clippy::print_stderr, reason = "the result of this benchmark")]
fn memory(_: &mut Criterion) {
    for (name, hosts) in [("one host", false), ("a host each", true)] {
        let before = resident();
        let mut routes = routes(10_000);
        if hosts {
            for (route, number) in routes.iter_mut().zip(0..) {
                let host = HostPattern::parse(&format!("tenant-{number}.example.com"));
                route.hosts.push(host.expect("a valid host"));
            }
        }
        let router = Router::build(routes);
        let taken = resident().saturating_sub(before);
        eprintln!("10,000 routes, {name}: {:.1} MiB", taken as f64 / f64::from(1 << 20));
        // Kept, so that the next one cannot reuse its memory.
        std::mem::forget(router);
    }
}

fn path(text: &str) -> NormalPath {
    normalize(text, &PathRules::default()).expect("a valid path")
}

fn find(c: &mut Criterion) {
    let headers = HeaderMap::new();
    let mut group = c.benchmark_group("find");
    for count in [1, 100, 10_000] {
        let router = Router::build(routes(count));
        let hit = path(&format!("/svc{}/a/b/c", count / 2));
        for (name, path) in
            [("hit", hit), ("miss", path("/nowhere/a/b")), ("params", path("/users/42/orders/7"))]
        {
            let request = RequestView {
                method: &Method::GET,
                path: &path,
                query: None,
                headers: &headers,
                host: Some("api.example.com"),
            };
            let view = View { request, listener: ListenerId(0) };
            group.bench_function(format!("{name}/{count}"), |b| b.iter(|| router.find(black_box(&view))));
        }
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let routes = routes(10_000);
    let mut group = c.benchmark_group("build");
    group.sample_size(20);
    group.bench_function("10000", |b| {
        b.iter_batched(|| routes.clone(), Router::build, criterion::BatchSize::LargeInput);
    });
    group.finish();
}

fn normalise(c: &mut Criterion) {
    let mut group = c.benchmark_group("normalize");
    for (name, text) in [("plain", "/users/42/orders/7"), ("escaped", "/users/%34%32/../or%20ders;v=1/7")] {
        group.bench_function(name, |b| b.iter(|| normalize(black_box(text), &PathRules::default())));
    }
    group.finish();
}

criterion_group!(benches, memory, find, build, normalise);
criterion_main!(benches);
