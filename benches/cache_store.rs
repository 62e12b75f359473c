//! The store of the cache: what entries take in memory, and what looking them up and putting them in takes,
//! with few of them and a million. Says first what a million small entries take.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tollhouse::cache::Key;
use tollhouse::cache::store::{Entry, How, Parts, Purge, Store, StoreOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MILLION: u64 = 1_000_000;
const SIZES: [u64; 3] = [1000, 100_000, MILLION];
const LINES: &[u8] = b"Content-Type: application/json\r\nETag: \"5d8c72a5edda8d6a\"\r\n\
    Cache-Control: public, max-age=3600\r\nDate: Sun, 29 Nov 2026 10:00:00 GMT\r\nVary: Accept-Encoding\r\n";

fn key(number: u64) -> Key {
    Key::from_bytes(Bytes::from(format!("https://api.example.com/v1/items/{number:08}\0route,tenant")))
}

fn entry(number: u64, length: usize) -> Arc<Entry> {
    let body = vec![Bytes::from(vec![b'x'; length])];
    Arc::new(Entry::new(&key(number), Parts { status: 200, lines: LINES.into(), body, ..Parts::default() }))
}

/// A store with this many entries.
fn filled(entries: u64, length: usize, capacity: usize) -> Store {
    let store = Store::new(StoreOptions { capacity, max_variants: 32 });
    for number in 0..entries {
        store.note_use(key(number).bytes());
        store.insert(entry(number, length));
    }
    store
}

/// Bytes of memory that the process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

/// What a million entries take, used and not.
#[expect(clippy::print_stderr, reason = "it is what this is for")]
fn memory(_: &mut Criterion) {
    // Kept, so that the second does not have memory that the first one gave back.
    let mut stores = Vec::new();
    for length in [100, 1000] {
        let before = resident();
        let store = filled(MILLION, length, 4 << 30);
        let report = |what: &str| {
            let numbers = store.numbers();
            let own = (key(0).bytes().len() + LINES.len() + length) as f64;
            let taken = (resident() - before) as f64 / numbers.entries as f64;
            eprintln!(
                "{} entries of {own} bytes (bodies of {length}), {what}: {taken:.0} bytes each, {:.0} more, \
                 goal {:.0}; the store counts {:.0}",
                numbers.entries,
                taken - own,
                own * 1.3 + 200.0,
                numbers.bytes as f64 / numbers.entries as f64,
            );
        };
        report("put in");
        for number in 0..MILLION {
            let found = store.get(key(number).bytes()).expect("it is there");
            black_box(found[0].body().count());
        }
        report("each used");
        stores.push(store);
    }
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("cache lookup");
    for entries in SIZES {
        let store = filled(entries, 1000, 4 << 30);
        let keys: Vec<Key> = (0..entries.min(100_000)).map(|_| key(fastrand::u64(0..entries))).collect();
        let mut at = 0;
        let mut next = || {
            at = (at + 1) % keys.len();
            &keys[at]
        };
        group.bench_function(BenchmarkId::new("hit", entries), |b| {
            b.iter(|| {
                let found = store.get(next().bytes()).expect("it is there");
                let entry = &found[0];
                black_box((entry.lines_bytes(), entry.body().next()));
            });
        });
        let absent = key(MILLION * 2);
        group.bench_function(BenchmarkId::new("miss", entries), |b| {
            b.iter(|| black_box(store.get(absent.bytes()).is_none()));
        });
        let one = key(0);
        group.bench_function(BenchmarkId::new("the same by two threads", entries), |b| {
            b.iter_custom(|times| together(times, || black_box(store.get(one.bytes()).is_some())));
        });
    }
    group.finish();
}

/// Putting in, into a store that is full.
fn inserts(c: &mut Criterion) {
    let mut group = c.benchmark_group("cache insert");
    for entries in [1000, 100_000, 500_000] {
        let store = filled(entries * 2, 1000, usize::try_from(entries).expect("small") * 1500);
        let mut number = entries * 2;
        group.bench_function(BenchmarkId::new("into a full store", entries), |b| {
            b.iter(|| {
                number += 1;
                store.note_use(key(number).bytes());
                store.insert(entry(number, 1000))
            });
        });
        group.bench_function(BenchmarkId::new("a purge of a URL", entries), |b| {
            b.iter(|| {
                number -= 1;
                store.purge(&Purge::Url(key(number).bytes()[..41].to_vec()), How::Soft)
            });
        });
    }
    group.finish();
}

/// The time of one call on each of two threads.
fn together(times: u64, call: impl Fn() -> bool + Sync) -> Duration {
    let start = Barrier::new(3);
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|_| {
            scope.spawn(|| {
                start.wait();
                (0..times).for_each(|_| assert!(call()));
            })
        });
        start.wait();
        let started = Instant::now();
        threads.into_iter().for_each(|thread| thread.join().expect("finds it"));
        started.elapsed()
    })
}

criterion_group!(benches, memory, lookups, inserts);
criterion_main!(benches);
