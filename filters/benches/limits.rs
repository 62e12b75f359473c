//! What one decision of `rate_limit` costs, and how much memory a million budgets take.

mod common;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use pingora_http::RequestHeader;
use tollhouse_filters::builtin;
use tollhouse_filters::context::Context;
use tollhouse_filters::filter::Build;
use tollhouse_filters::path::{PathRules, normalize};
use tollhouse_filters::phase::OnRequest;
use tollhouse_filters::tree::{FileId, Limits, parse};
use tollhouse_filters::world::{Budget, Charge, TenantId, World};

use common::{Nothing, memory, world};

const KEYS: u32 = 1_000_000;

fn filter(world: &World, options: &str) -> Arc<dyn OnRequest> {
    let registry = builtin();
    let slots = AtomicU32::new(0);
    let mut build = Build::new(world, &Nothing, &slots, Arc::from("bench/rate_limit#0"));
    let options = Arc::new(parse(options, FileId(0), &Limits::default()).expect("YAML"));
    let phases = registry.get("rate_limit").expect("built in").build(&options, &mut build);
    phases.unwrap_or_else(|errors| panic!("{errors:?}")).into_request().expect("a request phase")
}

/// Numbers without any order.
fn scattered(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *state >> 4
}

fn limits(c: &mut Criterion) {
    let mut group = c.benchmark_group("limits");
    let world = world();
    let budget = Budget::new(Duration::from_secs(3600), 100).expect("less than a year");
    let spend = |key: u32, budget: Budget| {
        let key = key.to_be_bytes();
        let mut charge = [Charge::new(&key, budget, 1)];
        world.state.spend(TenantId(0), "bench", &mut charge).now_or_never().expect("memory").expect("works")
    };
    let before = memory();
    let begun = Instant::now();
    for key in 0..KEYS {
        black_box(spend(key, budget));
    }
    let (took, grown) = (begun.elapsed(), memory() - before);
    #[expect(clippy::print_stderr, reason = "the sizes belong to the result")]
    {
        eprintln!("a million budgets: {} bytes each, made in {took:?}", grown / KEYS as usize);
    }
    let mut state = 7;
    group.bench_function("one of a million", |b| b.iter(|| spend(scattered(&mut state) % KEYS, budget)));
    let quick = Budget::new(Duration::from_micros(1), 1_000_000).expect("less than a year");
    group.bench_function("the same one", |b| b.iter(|| spend(KEYS, quick)));

    let path = normalize("/", &PathRules::default()).expect("a valid path");
    let mut ctx = Context::for_tests(path, Instant::now());
    let mut head = RequestHeader::build("GET", b"/", None).expect("valid");
    for (name, options) in [
        ("filter, by address", "{per: ip, limit: 1000000/s}"),
        ("filter, refusing", "{per: ip, limit: 1/h}"),
        (
            "filter, three rules",
            "{rules: [{per: ip, limit: 1000000/s}, {per: host, limit: 900000/s}, {per: route, limit: 800000/s}]}",
        ),
    ] {
        let filter = filter(&world, options);
        let mut state = 7;
        group.bench_function(name, |b| {
            b.iter(|| {
                let address = Ipv4Addr::from(scattered(&mut state) % 1024);
                ctx.client.address = IpAddr::V4(address);
                ctx.limits.clear();
                let outcome = filter.on_request(&mut head, &mut ctx).now_or_never();
                black_box(outcome.expect("nothing to wait for").expect("works"));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
