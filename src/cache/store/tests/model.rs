//! Whatever is done to a store, it says what a simple model of it says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cache::store::{BLOCK, How, Inserted, Purge};

const VARIANTS: usize = 3;

/// Each key's entries, the newest first.
type Model = BTreeMap<String, Vec<Arc<Entry>>>;

#[derive(Debug, Clone)]
enum Action {
    Insert { key: String, variant: String, tags: Vec<String>, length: usize },
    Renew { key: String, index: usize },
    Remove { key: String, index: usize },
    Get { key: String },
    Purge { what: Purge, how: How },
}

fn a_key() -> impl Strategy<Value = String> {
    ("[ab]", "[xy]{0,2}", "[01]")
        .prop_map(|(host, path, partition)| format!("https://{host}/{path}\0{partition}"))
}

fn a_purge() -> impl Strategy<Value = Purge> {
    prop_oneof![
        4 => a_key().prop_map(|key| Purge::Url(key.split('\0').next().unwrap().into())),
        2 => "https://[ab]/?[xy]?".prop_map(|text| Purge::Prefix(text.into())),
        2 => "[t-v]".prop_map(Purge::Tag),
        1 => Just(Purge::All),
    ]
}

fn an_action() -> impl Strategy<Value = Action> {
    let length = prop_oneof![0..200_usize, Just(BLOCK), BLOCK..3 * BLOCK];
    let how = prop_oneof![Just(How::Soft), Just(How::Hard)];
    prop_oneof![
        8 => (a_key(), "[v-z]?", proptest::collection::vec("[t-v]", 0..3), length)
            .prop_map(|(key, variant, tags, length)| Action::Insert { key, variant, tags, length }),
        2 => (a_key(), 0..VARIANTS).prop_map(|(key, index)| Action::Renew { key, index }),
        2 => (a_key(), 0..VARIANTS).prop_map(|(key, index)| Action::Remove { key, index }),
        4 => a_key().prop_map(|key| Action::Get { key }),
        2 => (a_purge(), how).prop_map(|(what, how)| Action::Purge { what, how }),
    ]
}

fn is_hit(what: &Purge, entry: &Entry) -> bool {
    match what {
        Purge::Url(url) => entry.url() == url,
        Purge::Prefix(prefix) => entry.key().starts_with(prefix),
        Purge::Tag(tag) => entry.tags().any(|other| other == tag),
        Purge::All => true,
    }
}

/// Does the same to both.
fn act(store: &Store, model: &mut Model, action: Action) {
    match action {
        Action::Insert { key, variant, tags, length } => {
            let body = vec![vec![b'x'; length].into()];
            let entry = made(&key, Parts { variant: variant.into(), tags, body, ..Parts::default() });
            assert_eq!(store.insert(Arc::clone(&entry)), Inserted::Stored);
            let entries = model.entry(key).or_default();
            entries.retain(|old| old.variant() != entry.variant());
            entries.insert(0, entry);
            entries.truncate(VARIANTS);
        }
        Action::Renew { key, index } => {
            let Some(old) = model.get_mut(&key).and_then(|entries| entries.get_mut(index)) else { return };
            let (lines, variant, tags) =
                (Bytes::from_static(b"a: b\r\n"), old.variant().to_vec(), vec!["t".to_owned()]);
            let new = Arc::new(old.renewed(lines, variant, tags, *old.facts()));
            assert!(store.replace(old, Arc::clone(&new)));
            assert!(!store.remove(old));
            *old = new;
        }
        Action::Remove { key, index } => {
            let Some(entries) = model.get_mut(&key) else { return };
            if index < entries.len() {
                let entry = entries.remove(index);
                assert!(store.remove(&entry));
                assert_eq!(Arc::strong_count(&entry), 1, "it is still held");
            }
        }
        Action::Get { key } => _ = store.get(key.as_bytes()),
        Action::Purge { what, how } => purge(store, model, &what, how),
    }
}

fn purge(store: &Store, model: &mut Model, what: &Purge, how: How) {
    let marks = || model.values().flatten().map(|entry| entry.is_purged());
    let before: Vec<bool> = marks().collect();
    let hit = model.values().flatten().filter(|entry| is_hit(what, entry)).count();
    assert_eq!(store.purge(what, how), hit as u64, "{what:?} {how:?}");
    if how == How::Hard {
        assert!(before.iter().copied().eq(marks()));
        model.values_mut().for_each(|entries| entries.retain(|entry| !is_hit(what, entry)));
    } else {
        let wanted =
            model.values().flatten().zip(before).map(|(entry, before)| before || is_hit(what, entry));
        assert!(wanted.eq(marks()), "{what:?}");
    }
}

fn compare(store: &Store, model: &Model) {
    let entries: Vec<_> = model.values().flatten().collect();
    let weight: usize = entries.iter().map(|entry| entry.weight()).sum();
    assert_eq!(store.numbers().entries, entries.len() as u64);
    assert_eq!(store.held.load(std::sync::atomic::Ordering::Relaxed), weight);
    for (key, entries) in model {
        let found = store.peek(key.as_bytes());
        let found = found.as_deref().unwrap_or_default();
        assert_eq!(found.len(), entries.len(), "{key}");
        assert!(found.iter().zip(entries).all(|(found, wanted)| Arc::ptr_eq(found, wanted)), "{key}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_store_with_room_is_a_map(actions in proptest::collection::vec(an_action(), 1..100)) {
        let store = Store::new(StoreOptions { capacity: 64 << 20, max_variants: VARIANTS });
        let mut model = Model::new();
        for action in actions {
            act(&store, &mut model, action);
            compare(&store, &model);
        }
    }

    #[test]
    fn a_full_store_forgets_but_never_errs(seed: u64, length in 1..3000_usize) {
        let store = Store::new(StoreOptions { capacity: 1 << 18, max_variants: VARIANTS });
        let mut random = fastrand::Rng::with_seed(seed);
        let mut newest = BTreeMap::new();
        for _ in 0..300 {
            let text = format!("https://a/{}\0", random.u32(0..100));
            if let Some(found) = store.get(text.as_bytes()) {
                prop_assert!(Arc::ptr_eq(&found[0], &newest[&text]), "an entry that was replaced");
                continue;
            }
            store.note_use(text.as_bytes());
            let entry = sized(&text, random.usize(0..length));
            if store.insert(Arc::clone(&entry)) == Inserted::Stored {
                newest.insert(text, entry);
            }
            let held: usize = newest.values().filter(|entry| holds(&store, entry)).map(|entry| entry.weight()).sum();
            prop_assert_eq!(store.held.load(std::sync::atomic::Ordering::Relaxed), held);
            prop_assert!(store.numbers().bytes <= store.numbers().capacity);
        }
    }
}
