//! Purges hit what they name, and nothing else.

use super::*;
use crate::cache::store::{How, Purge};

const KEYS: [&str; 6] = [
    "https://a/x\0one",
    "https://a/x\0two",
    "https://a/x/y\0one",
    "https://a/xy\0one",
    "https://b/x\0one",
    "https://a/\0",
];

fn filled() -> Store {
    let store = Store::new(ROOMY);
    for text in KEYS {
        store.insert(varied(text, "en"));
        store.insert(varied(text, "de"));
    }
    store
}

/// Keys that have entries that may be fresh.
fn fresh(store: &Store) -> Vec<&'static str> {
    let is_fresh = |text: &&str| {
        store.peek(text.as_bytes()).is_some_and(|found| found.iter().any(|entry| !entry.is_purged()))
    };
    KEYS.into_iter().filter(is_fresh).collect()
}

fn url(text: &str) -> Purge {
    Purge::Url(text.into())
}

fn prefix(text: &str) -> Purge {
    Purge::Prefix(text.into())
}

fn tag(text: &str) -> Purge {
    Purge::Tag(text.into())
}

#[test]
fn a_purge_hits_all_variants_of_the_keys_it_names() {
    let cases: [(Purge, &[&str]); 8] = [
        (
            url("https://a/x"),
            &["https://a/x/y\0one", "https://a/xy\0one", "https://b/x\0one", "https://a/\0"],
        ),
        (url("https://a/"), &KEYS[..5]),
        (url("https://a"), &KEYS),
        (prefix("https://a/x"), &["https://b/x\0one", "https://a/\0"]),
        (
            prefix("https://a/x/"),
            &[
                "https://a/x\0one",
                "https://a/x\0two",
                "https://a/xy\0one",
                "https://b/x\0one",
                "https://a/\0",
            ],
        ),
        (prefix(""), &[]),
        (tag("any"), &KEYS),
        (Purge::All, &[]),
    ];
    for (what, left) in cases {
        for how in [How::Soft, How::Doubt, How::Hard] {
            let store = filled();
            let hit = (KEYS.len() - left.len()) * 2;
            assert_eq!(store.purge(&what, how), hit as u64, "{what:?} {how:?}");
            assert_eq!(fresh(&store), left, "{what:?} {how:?}");
            let entries = if how == How::Hard { left.len() * 2 } else { KEYS.len() * 2 };
            assert_eq!(store.numbers().entries, entries as u64, "{what:?} {how:?}");
            assert_eq!(store.numbers().purged, hit as u64);
        }
    }
}

#[test]
fn a_tag_hits_only_the_variants_that_have_it() {
    for how in [How::Soft, How::Hard] {
        let store = Store::new(ROOMY);
        let entries = [
            tagged("a\0", "en", &["shop", "en"]),
            tagged("a\0", "de", &["shop", "de", "de"]),
            tagged("b\0", "", &["de"]),
            tagged("c\0", "", &["SHOP"]),
        ];
        entries.iter().for_each(|entry| _ = store.insert(Arc::clone(entry)));
        let is_there = |entry: &Arc<Entry>| {
            let found = store.peek(entry.key());
            found
                .iter()
                .any(|found| found.iter().any(|other| Arc::ptr_eq(other, entry) && !other.is_purged()))
        };
        assert_eq!(store.purge(&tag("de"), how), 2);
        assert_eq!(entries.each_ref().map(is_there), [true, false, false, true]);
        // What is gone is not hit again; what is marked is.
        assert_eq!(store.purge(&tag("shop"), how), if how == How::Hard { 1 } else { 2 });
        assert_eq!(entries.each_ref().map(is_there), [false, false, false, true]);
    }
}

#[test]
fn entries_that_left_are_in_no_index_any_more() {
    let store = Store::new(ROOMY);
    let entry = tagged("a\0", "", &["shop"]);
    store.insert(Arc::clone(&entry));
    store.remove(&entry);
    store.insert(tagged("b\0", "", &["shop"]));
    store.insert(tagged("b\0", "", &["other"]));
    assert_eq!(store.purge(&tag("shop"), How::Hard), 0);
    assert_eq!(store.purge(&tag("other"), How::Hard), 1);
    assert_eq!(store.purge(&Purge::All, How::Soft), 0);
    assert_eq!(Arc::strong_count(&entry), 1, "something holds on to it");
}

#[test]
fn purges_of_more_than_a_step_hit_everything() {
    for how in [How::Soft, How::Hard] {
        for what in [prefix("https://a/"), url("https://a/one"), tag("all"), Purge::All] {
            let store = Store::new(ROOMY);
            (0..1000).for_each(|at| _ = store.insert(tagged(&format!("https://a/one\0{at}"), "", &["all"])));
            assert_eq!(store.purge(&what, how), 1000, "{what:?} {how:?}");
            assert_eq!(store.numbers().entries, if how == How::Soft { 1000 } else { 0 });
        }
    }
}

#[test]
fn a_purged_key_can_be_filled_again() {
    for how in [How::Soft, How::Hard] {
        let store = filled();
        store.purge(&Purge::All, how);
        for text in KEYS {
            store.insert(varied(text, "en"));
        }
        assert_eq!(fresh(&store), KEYS);
        assert_eq!(store.purge(&prefix("https://a/x/"), How::Hard), if how == How::Soft { 2 } else { 1 });
    }
}

#[test]
fn every_purge_makes_another_generation() {
    let store = filled();
    let before = store.generation();
    store.purge(&url("https://nowhere/"), How::Soft);
    store.purge(&Purge::All, How::Hard);
    assert_eq!(store.generation(), before + 2);
}
