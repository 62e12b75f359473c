//! Choosing a backend: each algorithm, with few backends and many, alone and against other threads.

use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use tollhouse::upstream::{Tried, Upstream};

const ALGORITHMS: [&str; 6] = ["round_robin", "random", "least_requests", "p2c", "ewma", "consistent_hash"];

fn upstream(algorithm: &str, weights: impl IntoIterator<Item = usize>) -> Upstream {
    let backend = |(at, weight)| json!({"address": format!("127.0.0.1:{}", 1 + at), "weight": weight});
    let backends: Vec<Value> = weights.into_iter().enumerate().map(backend).collect();
    let mut written = json!({"name": "bench", "backends": backends, "balance": {"algorithm": algorithm}});
    if algorithm == "consistent_hash" {
        written["balance"]["hash_on"] = "ip".into();
    }
    let written = serde_json::from_value(written).expect("a valid upstream");
    Upstream::build_offline(&written, Path::new("")).expect("a valid upstream")
}

/// A request from the choice of its backend to its end.
fn pick(upstream: &Upstream, number: u64) {
    let picked = black_box(upstream.pick(&number.to_be_bytes(), &Tried::default()));
    picked.expect("a backend").guard.answered(200);
}

/// One request after the other.
fn alone(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick");
    for algorithm in ALGORITHMS {
        for (name, weights) in
            [("1", vec![1]), ("3", vec![1; 3]), ("3 weighted", vec![5, 1, 1]), ("100", vec![1; 100])]
        {
            let upstream = upstream(algorithm, weights);
            let mut number = 0;
            group.bench_function(format!("{algorithm}/{name}"), |b| {
                b.iter(|| {
                    number += 1;
                    pick(&upstream, number);
                });
            });
        }
        let upstream = upstream(algorithm, (0..10_000).map(|at| 1 + at % 1000));
        group.bench_function(format!("{algorithm}/10000 weighted"), |b| {
            b.iter(|| pick(&upstream, fastrand::u64(..)));
        });
    }
    group.finish();
}

/// Two threads at the same upstream; the time of one pick on each.
fn contended(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick by two threads");
    for algorithm in ALGORITHMS {
        let upstream = upstream(algorithm, [5, 1, 1]);
        group.bench_function(algorithm, |b| b.iter_custom(|times| together(&upstream, times)));
    }
    group.finish();
}

fn together(upstream: &Upstream, times: u64) -> Duration {
    let start = Barrier::new(3);
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|_| {
            scope.spawn(|| {
                start.wait();
                (0..times).for_each(|number| pick(upstream, number));
            })
        });
        start.wait();
        let started = Instant::now();
        threads.into_iter().for_each(|thread| thread.join().expect("picks"));
        started.elapsed()
    })
}

criterion_group!(benches, alone, contended);
criterion_main!(benches);
