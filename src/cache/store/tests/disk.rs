//! Entries on disk: there after a restart, whole or not at all, and no trouble to anybody.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tollhouse_filters::caching::Standing;

use super::*;
use crate::cache::store::{BLOCK, DiskNumbers, DiskOptions, How, Inserted, Purge};

const SPACE: u64 = 64 << 20;

fn open(path: &Path, capacity: u64) -> Store {
    let store = Store::new(ROOMY);
    store
        .set_disk(Some(&DiskOptions { path: path.into(), capacity }))
        .expect("a directory that can be written to");
    store
}

/// Waits until everything is written.
fn settle(store: &Store) {
    store.disk.load().as_ref().expect("it has a disk").settle();
}

fn numbers(store: &Store) -> DiskNumbers {
    settle(store);
    store.numbers().disk.expect("it has a disk")
}

/// A directory with these entries in it.
fn kept(entries: &[Arc<Entry>]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), SPACE);
    entries.iter().for_each(|entry| assert_eq!(store.insert(Arc::clone(entry)), Inserted::Stored));
    store.close();
    folder
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let folders =
        fs::read_dir(folder).unwrap().map(|found| found.unwrap().path()).filter(|path| path.is_dir());
    folders.flat_map(|path| fs::read_dir(path).unwrap().map(|found| found.unwrap().path())).collect()
}

async fn variants(store: &Store, text: &str) -> Vec<String> {
    let found = store.load(text.as_bytes()).await;
    let text = |entry: &Arc<Entry>| String::from_utf8(entry.variant().to_vec()).unwrap();
    found.iter().flat_map(|found| found.iter().map(text)).collect()
}

#[tokio::test]
async fn a_restart_serves_what_was_stored() {
    let body: Vec<u8> = (0..3 * BLOCK + 5).map(|at| (at % 253) as u8).collect();
    for length in [0, 5, BLOCK, body.len()] {
        let parts = Parts {
            status: 203,
            lines: Bytes::from_static(b"a: b\r\n"),
            body: vec![Bytes::copy_from_slice(&body[..length])],
            variant: b"en".to_vec(),
            tags: vec!["shop".to_owned()],
            facts: Default::default(),
        };
        let entry = made("https://a/\0", parts);
        let folder = kept(&[Arc::clone(&entry)]);
        let store = open(folder.path(), SPACE);
        assert!(store.has_slow_tier() && store.get(entry.key()).is_none());
        let found = store.load(entry.key()).await.expect("it was kept");
        let found = &found[0];
        assert_eq!(found.body().flatten().collect::<Vec<u8>>(), body[..length]);
        assert_eq!(
            (found.key(), found.variant(), found.lines()),
            (entry.key(), entry.variant(), entry.lines())
        );
        assert_eq!((found.status(), found.facts(), found.is_purged()), (203, entry.facts(), false));
        assert_eq!(found.tags().collect::<Vec<_>>(), ["shop"]);
        assert!(holds(&store, found), "it is in memory from now on");
        assert_eq!(
            numbers(&store),
            DiskNumbers {
                hits: 1,
                entries: 1,
                capacity: SPACE,
                bytes: numbers(&store).bytes,
                ..DiskNumbers::default()
            }
        );
    }
}

#[test]
fn what_waits_to_be_written_is_written_at_the_end() {
    const ENTRIES: u64 = 300;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), SPACE);
    for at in 0..ENTRIES {
        store.insert(sized(&format!("https://a/{at}\0"), 100));
    }
    // Most of them wait for the first to be written.
    store.close();
    assert_eq!(numbers(&open(folder.path(), SPACE)).entries, ENTRIES);
}

#[tokio::test]
async fn what_memory_has_no_room_for_is_served_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), SPACE);
    store.resize(1 << 20);
    let large = sized("https://a/large\0", 2 << 20);
    assert_eq!(store.insert(Arc::clone(&large)), Inserted::TooLarge);
    for at in 0..300 {
        store.insert(sized(&format!("https://a/{at}\0"), 10_000));
    }
    settle(&store);
    for text in (0..300).map(|at| format!("https://a/{at}\0")).chain(["https://a/large\0".to_owned()]) {
        let found = store.get(text.as_bytes());
        let found = if found.is_some() { found } else { store.load(text.as_bytes()).await };
        assert!(found.is_some_and(|found| found[0].key() == text.as_bytes()), "{text}");
    }
}

#[tokio::test]
async fn variants_come_back_newest_first_and_each_once() {
    let folder = kept(&[varied("a\0", "en"), varied("a\0", "de"), varied("a\0", "en"), varied("a\0b", "fr")]);
    let store = open(folder.path(), SPACE);
    assert_eq!(variants(&store, "a\0").await, ["en", "de"]);
    assert_eq!(numbers(&store).entries, 3);
    assert_eq!(files(folder.path()).len(), 3);
}

#[tokio::test]
async fn what_is_in_doubt_on_disk_stays_so() {
    let (one, two) = (sized("one\0", 5), sized("two\0", 5));
    let folder = kept(&[Arc::clone(&one)]);
    let store = open(folder.path(), SPACE);
    store.purge(&Purge::All, How::Doubt);
    // Said of this one before it is written, of that one behind it.
    two.mark(Standing::InDoubt);
    store.insert(two);
    settle(&store);
    store.purge(&Purge::All, How::Soft);
    store.close();
    let store = open(folder.path(), SPACE);
    for key in ["one\0", "two\0"] {
        let found = store.load(key.as_bytes()).await.expect("it was kept");
        assert_eq!(found[0].standing(), Standing::InDoubt, "{key}");
    }
}

#[tokio::test]
async fn what_is_removed_or_replaced_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), SPACE);
    let (removed, old) = (sized("a\0", 5), sized("b\0", 5));
    store.insert(Arc::clone(&removed));
    store.insert(Arc::clone(&old));
    settle(&store);
    store.remove(&removed);
    let (lines, variant) = (Bytes::from_static(b"new: 1\r\n"), old.variant().to_vec());
    let new = Arc::new(old.renewed(lines, variant, Vec::new(), *old.facts()));
    assert!(store.replace(&old, new));
    store.close();
    let store = open(folder.path(), SPACE);
    assert!(store.load(b"a\0").await.is_none());
    assert_eq!(store.load(b"b\0").await.unwrap()[0].lines(), b"new: 1\r\n");
}

#[tokio::test]
async fn a_file_that_is_changed_anywhere_is_a_miss() {
    for length in [3, BLOCK + 1] {
        let folder = kept(&[sized("https://a/\0", length)]);
        let file = files(folder.path()).pop().unwrap();
        let whole = fs::read(&file).unwrap();
        let mut random = fastrand::Rng::with_seed(length as u64);
        let anywhere: Vec<usize> = (0..40).map(|_| random.usize(0..whole.len())).collect();
        for at in (0..40).chain(anywhere) {
            let mut changed = whole.clone();
            changed[at] ^= 1 << random.u32(0..8);
            check_damaged(folder.path(), &file, &changed).await;
        }
        for cut in [0, 1, 39, 40, 43, 44, whole.len() / 2, whole.len() - 1] {
            check_damaged(folder.path(), &file, &whole[..cut]).await;
        }
        check_damaged(folder.path(), &file, &[&*whole, b"x"].concat()).await;
        check_damaged(folder.path(), &file, &vec![0; whole.len()]).await;
        fs::write(&file, &whole).unwrap();
        assert!(open(folder.path(), SPACE).load(b"https://a/\0").await.is_some(), "whole again");
    }
}

async fn check_damaged(folder: &Path, file: &Path, bytes: &[u8]) {
    fs::write(file, bytes).unwrap();
    let store = open(folder, SPACE);
    assert!(store.load(b"https://a/\0").await.is_none());
    let DiskNumbers { corrupt, entries, errors, .. } = numbers(&store);
    assert_eq!((corrupt, entries, errors), (1, 0, 0));
    assert!(!file.exists(), "it is deleted");
    let entry = sized("https://a/\0", 1);
    store.insert(Arc::clone(&entry));
    store.close();
    fs::remove_dir_all(files(folder).pop().unwrap().parent().unwrap()).unwrap();
    fs::create_dir_all(file.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn files_and_folders_that_disappear_are_misses() {
    let folder = kept(&[sized("a\0", 1), sized("b\0", 1), sized("c\0", 1)]);
    let store = open(folder.path(), SPACE);
    let found = files(folder.path());
    fs::remove_file(&found[0]).unwrap();
    fs::remove_file(&found[1]).unwrap();
    fs::create_dir(&found[1]).unwrap();
    let mut hits = 0;
    for text in ["a\0", "b\0", "c\0"] {
        hits += usize::from(store.load(text.as_bytes()).await.is_some());
    }
    assert_eq!(hits, 1);
    fs::remove_dir_all(folder.path()).unwrap();
    assert_eq!(store.insert(sized("d\0", 1)), Inserted::Stored);
    assert!(store.load(b"a\0").await.is_none());
}

#[tokio::test]
async fn files_of_others_are_left_alone_and_bring_nothing_down() {
    let folder = kept(&[sized("a\0", 1)]);
    let ours = files(folder.path()).pop().unwrap();
    let other = ours.with_file_name(format!("{}-{:016x}-{:08x}", "0".repeat(40), 1, 1));
    fs::write(&other, "not ours").unwrap();
    fs::write(ours.with_extension("new"), "not finished").unwrap();
    for name in ["README", "00", "purges.new"] {
        _ = fs::write(folder.path().join(name), "something");
    }
    let store = open(folder.path(), SPACE);
    assert!(store.load(b"a\0").await.is_some());
    assert!(!ours.with_extension("new").exists());
    assert!(folder.path().join("README").exists());
}

#[tokio::test]
async fn a_file_that_was_moved_to_another_name_is_not_served_for_it() {
    let folder = kept(&[sized("a\0", 1), sized("b\0", 1)]);
    let found = files(folder.path());
    let contents: Vec<Vec<u8>> = found.iter().map(|path| fs::read(path).unwrap()).collect();
    fs::write(&found[0], &contents[1]).unwrap();
    fs::write(&found[1], &contents[0]).unwrap();
    let store = open(folder.path(), SPACE);
    assert!(store.load(b"a\0").await.is_none() && store.load(b"b\0").await.is_none());
}

#[test]
fn the_directory_never_takes_more_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20);
    let size = |folder: &Path| {
        files(folder).iter().map(|path| fs::metadata(path).unwrap().len().next_multiple_of(4096)).sum::<u64>()
    };
    for at in 0..200 {
        store.insert(sized(&format!("{at}\0"), 20_000));
        if at % 20 == 0 {
            assert!(numbers(&store).bytes <= 1 << 20);
            assert!(size(folder.path()) <= 1 << 20);
        }
    }
    let DiskNumbers { evicted, entries, dropped, .. } = numbers(&store);
    assert!(evicted > 100 && entries > 20 && dropped == 0, "{evicted} {entries}");
    store.set_disk(Some(&DiskOptions { path: folder.path().into(), capacity: 1 << 18 })).unwrap();
    // What comes next finds the new capacity, if it is not made already.
    store.insert(sized("next\0", 1));
    assert!(numbers(&store).bytes <= 1 << 18 && size(folder.path()) <= 1 << 18);
    assert!(numbers(&store).entries > 5);
}

#[test]
fn a_disk_that_fails_fails_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("cache"), SPACE);
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    fs::write(folder.path().join("cache"), "a file").unwrap();
    for at in 0..10 {
        assert_eq!(store.insert(sized(&format!("{at}\0"), 5)), Inserted::Stored);
    }
    store.purge(&Purge::Tag("x".to_owned()), How::Hard);
    let DiskNumbers { errors, dropped, entries, .. } = numbers(&store);
    assert!(errors >= 1 && errors + dropped >= 10 && entries == 0, "{errors} {dropped}");
    assert_eq!(store.numbers().entries, 10);
}

#[test]
fn a_path_that_cannot_be_a_directory_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    let store = Store::new(ROOMY);
    assert!(store.set_disk(Some(&DiskOptions { path, capacity: SPACE })).is_err());
    assert!(!store.has_slow_tier());
}

#[tokio::test]
async fn purges_hold_on_disk_and_after_a_restart() {
    let purges = [
        Purge::Url("https://a/x".into()),
        Purge::Prefix("https://a/x".into()),
        Purge::Tag("shop".to_owned()),
        Purge::All,
    ];
    for (what, how) in purges.iter().flat_map(|what| [(what, How::Hard), (what, How::Soft)]) {
        for restart in [false, true] {
            let folder =
                kept(&[tagged("https://a/x\0", "en", &["shop"]), tagged("https://b/\0", "", &["other"])]);
            let mut store = open(folder.path(), SPACE);
            store.purge(what, how);
            if restart {
                store.close();
                store = open(folder.path(), SPACE);
            }
            let is_fresh = |found: Option<crate::cache::store::Variants>| {
                found.is_some_and(|found| !found[0].is_purged())
            };
            assert!(!is_fresh(store.load(b"https://a/x\0").await), "{what:?} {how:?} {restart}");
            let other = is_fresh(store.load(b"https://b/\0").await);
            assert_eq!(other, *what != Purge::All, "{what:?} {how:?} {restart}");
            // What comes after the purge is not hit by it.
            store.insert(tagged("https://a/x\0", "en", &["shop"]));
            store.close();
            let store = open(folder.path(), SPACE);
            assert!(is_fresh(store.load(b"https://a/x\0").await), "{what:?} {how:?} {restart}");
        }
    }
}

#[tokio::test]
async fn a_purge_hits_what_is_still_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..30 {
        let store = open(folder.path(), SPACE);
        for at in 0..10 {
            store.insert(tagged(&format!("https://a/{at}\0"), "", &["shop"]));
        }
        let what = [Purge::Prefix("https://a/".into()), Purge::Tag("shop".to_owned()), Purge::All][round % 3]
            .clone();
        store.purge(&what, How::Hard);
        store.close();
        let store = open(folder.path(), SPACE);
        for at in 0..10 {
            assert!(store.load(format!("https://a/{at}\0").as_bytes()).await.is_none(), "{what:?}");
        }
    }
}

#[tokio::test]
async fn purges_that_cannot_be_read_purge_everything() {
    let folder = kept(&[sized("a\0", 1)]);
    fs::write(folder.path().join("purges"), "[{").unwrap();
    assert!(open(folder.path(), SPACE).load(b"a\0").await.is_none());
}

#[tokio::test]
async fn more_purges_than_are_noted_purge_too_much_rather_than_too_little() {
    let folder = kept(&[tagged("a\0", "", &["first"]), tagged("b\0", "", &["other"])]);
    let store = open(folder.path(), SPACE);
    store.purge(&Purge::Tag("first".to_owned()), How::Hard);
    (0..3000).for_each(|at| _ = store.purge(&Purge::Tag(at.to_string()), How::Hard));
    assert!(store.load(b"a\0").await.is_none());
    store.insert(sized("c\0", 1));
    store.close();
    assert!(open(folder.path(), SPACE).load(b"c\0").await.is_some());
}

#[tokio::test]
async fn a_directory_has_one_store_at_a_time_and_the_next_one_takes_it_over() {
    let folder = kept(&[sized("a\0", 1)]);
    let (first, second) = (open(folder.path(), SPACE), open(folder.path(), SPACE));
    assert!(second.load(b"a\0").await.is_none(), "it is not the second one's yet");
    first.insert(sized("b\0", 1));
    drop(first);
    settle(&second);
    assert!(second.load(b"a\0").await.is_some() && second.load(b"b\0").await.is_some());
}

#[tokio::test]
async fn what_is_in_memory_stays_beside_a_variant_that_is_only_on_disk() {
    let of = |variant: &str| {
        let parts = Parts {
            status: 200,
            lines: Bytes::new(),
            body: Vec::new(),
            variant: variant.into(),
            tags: Vec::new(),
            facts: Default::default(),
        };
        made("https://a/\0", parts)
    };
    let (german, english) = (of("de"), of("en"));
    let folder = kept(&[Arc::clone(&german), Arc::clone(&english)]);
    let store = open(folder.path(), SPACE);
    let newer = of("en");
    store.insert_in_memory(Arc::clone(&newer));
    assert!(store.load_variant(german.key(), b"fr").await.is_none());
    let found = store.load_variant(german.key(), b"de").await.expect("it was kept");
    assert_eq!(found.iter().map(|entry| entry.variant()).collect::<Vec<_>>(), [&b"en"[..], b"de"]);
    assert_eq!(numbers(&store).hits, 1, "only that one is read");
    // An older one from disk never takes the place of a newer one.
    let found = store.load(german.key()).await.expect("they were kept");
    assert!(found.iter().any(|entry| Arc::ptr_eq(entry, &newer)) && found.len() == 2);
}

#[tokio::test]
async fn urls_that_are_purged_before_it_is_known_what_there_is_take_nothing_else() {
    let folder = kept(&[sized("a\0", 1), sized("b\0", 1), sized("c\0", 1)]);
    let (first, second) = (open(folder.path(), SPACE), open(folder.path(), SPACE));
    // More than lists of purges hold.
    for at in 0..1500 {
        second.purge(&Purge::Url(format!("other/{at}").into()), How::Hard);
    }
    for url in ["b", "c"] {
        second.purge(&Purge::Url(url.into()), How::Hard);
    }
    second.insert(sized("c\0", 2));
    drop(first);
    settle(&second);
    assert!(second.load(b"a\0").await.is_some(), "nobody purged it");
    assert!(second.load(b"b\0").await.is_none());
    assert_eq!((numbers(&second).entries, files(folder.path()).len()), (2, 2));
    second.close();
    let third = open(folder.path(), SPACE);
    assert_eq!(third.load(b"c\0").await.expect("it came after the purge")[0].length(), 2);
}

/// Has the files be as if their process had a clock that was ahead by a day.
fn number_ahead(folder: &Path) {
    const DAY: u64 = 24 * 60 * 60 * 1_000_000;
    for path in files(folder) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        let [id, seq, pages]: [&str; 3] = name.split('-').collect::<Vec<_>>().try_into().unwrap();
        let seq = u64::from_str_radix(seq, 16).unwrap() + DAY;
        fs::rename(&path, path.with_file_name(format!("{id}-{seq:016x}-{pages}"))).unwrap();
    }
}

#[tokio::test]
async fn what_is_purged_before_it_is_known_what_there_is_is_gone_though_the_clock_was_set_back() {
    let shop = |text| tagged(text, "", &["shop"]);
    let folder = kept(&[sized("a\0", 1), shop("b\0"), sized("c\0", 1)]);
    number_ahead(folder.path());
    let (first, second) = (open(folder.path(), SPACE), open(folder.path(), SPACE));
    second.purge(&Purge::Url("a".into()), How::Hard);
    second.purge(&Purge::Tag("shop".to_owned()), How::Hard);
    second.insert(shop("new\0"));
    drop(first);
    settle(&second);
    second.close();
    let third = open(folder.path(), SPACE);
    for (key, is_there) in [("a\0", false), ("b\0", false), ("c\0", true), ("new\0", true)] {
        assert_eq!(third.load(key.as_bytes()).await.is_some(), is_there, "{key}");
    }
}
