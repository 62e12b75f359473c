//! Entries of one key, and one entry in the place of another.

use super::*;
use crate::cache::store::Inserted;

fn variants(store: &Store, text: &str) -> Vec<String> {
    let found = store.get(text.as_bytes());
    let text = |entry: &Arc<Entry>| String::from_utf8(entry.variant().to_vec()).unwrap();
    found.iter().flat_map(|found| found.iter().map(text)).collect()
}

#[test]
fn what_is_put_in_is_found_by_its_whole_key() {
    let store = Store::new(ROOMY);
    let entry = sized("https://a/b\0", 10);
    assert_eq!(store.insert(Arc::clone(&entry)), Inserted::Stored);
    assert!(holds(&store, &entry));
    for other in ["https://a/b", "https://a/b\0\0", "https://a/\0", "", "\0"] {
        assert!(store.get(other.as_bytes()).is_none(), "{other:?}");
    }
}

#[test]
fn the_empty_key_is_a_key() {
    let store = Store::new(ROOMY);
    let entry = sized("", 10);
    store.insert(Arc::clone(&entry));
    assert!(holds(&store, &entry));
}

#[test]
fn variants_of_a_key_are_given_newest_first() {
    let store = Store::new(ROOMY);
    for variant in ["en", "de", "fr"] {
        store.insert(varied("a\0", variant));
    }
    assert_eq!(variants(&store, "a\0"), ["fr", "de", "en"]);
    assert_eq!(store.numbers().entries, 3);
}

#[test]
fn an_entry_takes_the_place_of_that_of_its_variant() {
    let store = Store::new(ROOMY);
    let (old, new) = (varied("a\0", "en"), varied("a\0", "en"));
    store.insert(Arc::clone(&old));
    store.insert(varied("a\0", "de"));
    store.insert(Arc::clone(&new));
    assert_eq!(variants(&store, "a\0"), ["en", "de"]);
    assert!(Arc::ptr_eq(&store.get(b"a\0").unwrap()[0], &new));
    assert_eq!(Arc::strong_count(&old), 1, "the old one is held on to");
}

#[test]
fn of_too_many_variants_the_oldest_leaves() {
    let store = Store::new(StoreOptions { max_variants: 2, ..ROOMY });
    for variant in ["en", "de", "fr"] {
        store.insert(varied("a\0", variant));
    }
    assert_eq!(variants(&store, "a\0"), ["fr", "de"]);
}

#[test]
fn an_entry_is_replaced_only_by_its_like_and_only_while_it_is_there() {
    let store = Store::new(ROOMY);
    let (old, new) = (varied("a\0", "en"), varied("a\0", "en"));
    assert!(!store.replace(&old, Arc::clone(&new)), "it was never there");
    store.insert(Arc::clone(&old));
    store.insert(varied("a\0", "de"));
    assert!(!store.replace(&old, varied("b\0", "en")));
    assert!(!store.replace(&old, varied("a\0", "fr")));
    assert!(store.replace(&old, Arc::clone(&new)));
    assert!(!store.replace(&old, varied("a\0", "en")), "it is gone");
    assert_eq!(variants(&store, "a\0"), ["de", "en"]);
    assert!(Arc::ptr_eq(&store.get(b"a\0").unwrap()[1], &new));
}

#[test]
fn an_entry_is_removed_only_while_it_is_there() {
    let store = Store::new(ROOMY);
    let (old, new) = (varied("a\0", "en"), varied("a\0", "en"));
    store.insert(Arc::clone(&old));
    store.insert(Arc::clone(&new));
    assert!(!store.remove(&old));
    assert!(holds(&store, &new));
    assert!(store.remove(&new));
    assert!(!store.remove(&new));
    assert!(store.get(b"a\0").is_none());
    assert_eq!(store.numbers().entries, 0);
}

#[test]
fn a_url_is_looked_up_in_all_its_partitions() {
    let store = Store::new(ROOMY);
    for text in ["https://a/b\0one", "https://a/b\0two", "https://a/b/c\0one", "https://a/\0"] {
        store.insert(sized(text, 1));
    }
    let keys = |most| {
        store.of_url(b"https://a/b", most).iter().map(|found| found[0].key().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(keys(10), [b"https://a/b\0one", b"https://a/b\0two"]);
    assert_eq!(keys(1), [b"https://a/b\0one"]);
}
