//! Deciding what happens to a request, with one route and with ten thousand.

mod common;

use std::hint::black_box;
use std::time::Instant;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use tollhouse::engine::{Decision, Exchange};
use tollhouse_filters::context::RequestId;

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for routes in [1, 10_000] {
        let snapshot = common::snapshot(routes);
        let connection = common::connection();
        let head = common::request(&common::target(routes / 2));
        let started = Instant::now();
        group.bench_function(routes.to_string(), |b| {
            b.iter_batched_ref(
                || head.clone(),
                |head| {
                    let mut exchange =
                        Exchange::begin(snapshot.clone(), &connection, head, RequestId::Made(1), started);
                    let decision = exchange.decide(head).now_or_never().expect("nothing to wait for");
                    assert!(matches!(decision, Decision::Forward(_)));
                    black_box(exchange)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
