//! Many at once: nobody ever sees an entry that is not what its key stands for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::*;
use crate::cache::store::{BLOCK, How, Purge};

const KEYS: u64 = 300;
const ROUNDS: u64 = 4000;

/// A body that tells its key, and a mixed or cut one: numbers that follow each other from one of its own.
fn body(key: u64, version: u64, length: usize) -> Vec<Bytes> {
    let words = (0..length as u64 / 8).flat_map(|at| (key << 48 | version << 24 | at).to_be_bytes());
    let whole: Bytes = words.collect();
    // In pieces of odd sizes.
    whole.chunks(whole.len() / 3 + 1).map(Bytes::copy_from_slice).collect()
}

fn check(key: u64, entry: &Arc<Entry>) {
    let whole: Vec<u8> = entry.body().flatten().collect();
    assert_eq!(whole.len() as u64, entry.length());
    let (words, rest) = whole.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
    assert!(rest.is_empty());
    let told = str::from_utf8(entry.lines()).unwrap().parse::<u64>().unwrap();
    assert_eq!(told, words.len() as u64, "cut");
    let first = words.first().copied().unwrap_or(key << 48);
    assert_eq!(first >> 48, key, "another key's");
    assert!(words.iter().zip(0..).all(|(word, at)| *word == first + at), "mixed");
}

fn work(store: &Store, seed: u64, versions: &AtomicU64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..ROUNDS {
        let key = random.u64(0..KEYS);
        let text = format!("https://a/{}\0{key}", key % 7);
        let found = store.get(text.as_bytes());
        found.iter().flat_map(|found| found.iter()).for_each(|entry| check(key, entry));
        match random.u32(0..100) {
            0 => _ = store.purge(&Purge::Url(format!("https://a/{}", key % 7).into()), How::Hard),
            1 => _ = store.purge(&Purge::Tag((key % 5).to_string()), How::Hard),
            2 => _ = store.purge(&Purge::Prefix("https://a/3".into()), How::Soft),
            3 if random.u32(0..20) == 0 => _ = store.purge(&Purge::All, How::Hard),
            4..10 => found.iter().for_each(|found| _ = store.remove(&found[0])),
            10..20 => {
                let renew = |old: &Arc<Entry>| {
                    let (variant, tags) = (old.variant().to_vec(), vec!["1".to_owned()]);
                    let new = old.renewed(old.lines_bytes(), variant, tags, *old.facts());
                    store.replace(old, Arc::new(new));
                };
                found.iter().for_each(|found| renew(&found[0]));
            }
            20..60 => {
                let length = [80, 4000, BLOCK, 2 * BLOCK + 800][random.usize(0..4)];
                let version = versions.fetch_add(1, Relaxed);
                let (body, lines) = (body(key, version, length), (length / 8).to_string().into());
                let (variant, tags) = (vec![random.u8(0..3)], vec![(key % 5).to_string()]);
                store.note_use(text.as_bytes());
                store.insert(made(&text, Parts { body, lines, variant, tags, ..Parts::default() }));
            }
            _ => {}
        }
        assert!(store.numbers().bytes <= store.numbers().capacity + (1 << 16));
    }
}

#[test]
fn no_reader_ever_sees_a_cut_or_mixed_body() {
    let store = Store::new(StoreOptions { capacity: 4 << 20, max_variants: 2 });
    let versions = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                scope.spawn({
                    let (store, versions) = (&store, &versions);
                    move || work(store, seed, versions)
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("every body is whole"));
    });
    assert!(store.numbers().evicted > 0 && store.numbers().purged > 0, "{:?}", store.numbers());
    store.purge(&Purge::All, How::Hard);
    let left = [&store.held, &store.coming, &store.entries].map(|sum| sum.load(Relaxed));
    assert_eq!(left, [0, 0, 0]);
}

#[test]
fn a_key_that_nobody_takes_out_is_found_while_others_come_and_go() {
    let store = Store::new(ROOMY);
    let entry = sized("https://a/stays\0", 100);
    store.insert(Arc::clone(&entry));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200 {
                (0..50).for_each(|at| _ = store.insert(sized(&format!("https://a/goes{at}\0{round}"), 100)));
                store.purge(&Purge::Prefix("https://a/goes".into()), How::Hard);
            }
            done.store(true, Relaxed);
        });
        while !done.load(Relaxed) {
            assert!(store.get(entry.key()).is_some());
        }
    });
}
