//! What one decision of `quota`, `concurrency` and estimates costs, and how much memory a million quotas take.

#[expect(dead_code, reason = "each benchmark uses its own part")]
mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use tollhouse_filters::testing::{chain, get};
use tollhouse_filters::world::{State, Tally, TenantId, Window, World};

use common::memory;

const KEYS: u32 = 1_000_000;

fn count(state: &dyn State, key: u32, slots: u32, slot: u64) -> bool {
    let second = Duration::from_secs(1);
    let ends = Duration::from_secs(slot + 1);
    let window = Window { now: Duration::from_secs(slot), slot, slots, ends, length: second };
    let key = key.to_be_bytes();
    let mut tally = [Tally::new(&key, 1000, 1, window)];
    state.tally(TenantId(0), "bench", &mut tally).now_or_never().expect("memory").expect("works")
}

fn amounts(c: &mut Criterion) {
    let mut group = c.benchmark_group("amounts");
    let world = World::dry();
    let before = memory();
    for key in 0..KEYS {
        black_box(count(&*world.state, key, 1, 7));
    }
    let grown = memory() - before;
    #[expect(clippy::print_stderr, reason = "the sizes belong to the result")]
    {
        eprintln!("a million quotas: {} bytes each, with what is to be written", grown / KEYS as usize);
    }
    let mut key = 0;
    group.bench_function("quota, one of a million", |b| {
        b.iter(|| {
            key = (key + 7919) % KEYS;
            count(&*world.state, key, 1, 7)
        });
    });
    for (name, filters) in [
        ("no filter", "[]"),
        ("quota", "- quota: {per: ip, limit: 999999999999/day}"),
        ("concurrency", "- concurrency: {per: ip, limit: 10}"),
        ("exact", "- rate_limit: {per: ip, limit: 1000000/s}"),
        ("patient", "- rate_limit: {per: ip, limit: 1000000/s, over: {delay: 1s, queue: 9}}"),
        ("estimate", "- rate_limit: {per: ip, limit: 1000000/s, strategy: estimate}"),
    ] {
        let chain = chain(filters);
        group.bench_function(name, |b| b.iter(|| chain.send(get("/")).now_or_never().map(drop)));
    }
}

criterion_group!(benches, amounts);
criterion_main!(benches);
