//! What five filters cost a request, from its head to the head of its answer; and what none cost.

#[expect(dead_code, reason = "each benchmark uses its own part")]
mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::context::Context;
use tollhouse_filters::path::{PathRules, normalize};
use tollhouse_filters::pipeline::{Entered, Pipeline, Stack};

fn context() -> Context {
    let path = normalize("/service-00000/items/42", &PathRules::default()).expect("a valid path");
    Context::for_tests(path, Instant::now())
}

/// Runs what runs for every request that an upstream answers; no filter here ever waits.
fn run(stack: &Stack, request: &mut RequestHeader, response: &mut ResponseHeader, ctx: &mut Context) {
    let mut entered = Entered::default();
    let reply = entered.request(stack, request, ctx).now_or_never().expect("nothing to wait for");
    assert!(black_box(reply).is_none());
    let filtered = entered.response(stack, request, response, ctx).now_or_never();
    filtered.expect("nothing to wait for").expect("no filter fails");
}

fn pipeline(c: &mut Criterion) {
    let snapshot = common::snapshot(1);
    let none = Arc::new(Pipeline::default());
    let five = Stack::new([none.clone(), none.clone(), snapshot.routes[0].own.clone()]);
    let empty = Stack::new([none.clone(), none.clone(), none]);
    let mut answer = ResponseHeader::build(200, None).expect("valid");
    answer.insert_header("server", "origin/1.0").expect("valid");
    let head = common::request(&common::target(0));
    let mut group = c.benchmark_group("pipeline");
    for (name, stack, logged) in
        [("five", &five, false), ("five, logged", &five, true), ("none", &empty, false)]
    {
        let made = || {
            let mut ctx = context();
            if logged {
                ctx.keep_decisions();
            }
            (head.clone(), answer.clone(), ctx)
        };
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                made,
                |(head, answer, ctx)| run(stack, head, answer, ctx),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
