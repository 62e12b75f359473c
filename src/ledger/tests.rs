use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures_util::FutureExt;
use tempfile::TempDir;
use tollhouse_filters::world::{MemoryMetrics, MemoryState, SystemClock, Tally, TenantId, Window};

use super::*;

/// A process as far as its quotas go.
struct Process {
    state: Arc<dyn State>,
    metrics: MemoryMetrics,
    writer: Writer,
    file: File,
}

fn process(path: PathBuf) -> Process {
    let state: Arc<dyn State> = Arc::new(MemoryState::new(Arc::new(SystemClock), 1000));
    let metrics = MemoryMetrics::new();
    let mut writer = Writer::new(state.clone(), &metrics);
    let mut file = File::at(path);
    writer.load(&mut file);
    Process { state, metrics, writer, file }
}

impl Process {
    /// What is left of a quota of 100, once one more unit was used.
    fn left(&self) -> u64 {
        self.left_in(7)
    }

    /// The same in this slot.
    fn left_in(&self, slot: u64) -> u64 {
        self.left_of("acme", slot, 1)
    }

    /// The same of this key's quota, once so many more units were used.
    fn left_of(&self, key: &str, slot: u64, units: u64) -> u64 {
        let seconds = Duration::from_secs;
        // Until 2100, whenever this runs.
        let (now, ends) = (seconds(1_000_000_000), seconds(4_102_444_800));
        let window = Window { now, slot, slots: 1, ends, length: Duration::ZERO };
        let mut tally = [Tally::new(key.as_bytes(), 100, units, window)];
        let counted = self.state.tally(TenantId(0), "test", &mut tally);
        assert!(counted.now_or_never().expect("memory does not wait").expect("works"));
        tally[0].balance.available
    }

    fn write(&mut self) {
        self.writer.write(&mut self.file);
    }

    /// Writes, and keeps the file in bounds.
    fn keep(&mut self) {
        let written = self.writer.write(&mut self.file);
        self.writer.prune(&mut self.file, written);
    }

    fn failures(&self) -> (Option<i64>, Option<i64>) {
        let value = |name| self.metrics.value(name, &[]);
        (value("tollhouse_quota_file_failures_total"), value("tollhouse_quota_file_failing"))
    }
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state/quotas.sqlite");
    (folder, path)
}

#[test]
fn what_was_written_is_known_after_a_restart_and_the_rest_is_lost() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    assert_eq!((one.left(), one.left()), (99, 98));
    one.write();
    assert_eq!(one.left(), 97);
    drop(one);
    assert_eq!(process(path.clone()).left(), 97);
    let mode = fs::metadata(&path).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_orderly_end_writes_everything_down() {
    let (_folder, path) = folder();
    let one = process(path.clone());
    let ledger = Ledger::start(one.file, one.state.clone(), &one.metrics).expect("a thread");
    let window = Window {
        now: Duration::from_secs(1_000_000_000),
        slot: 7,
        slots: 1,
        ends: Duration::from_secs(4_102_444_800),
        length: Duration::ZERO,
    };
    let mut tally = [Tally::new(b"acme", 100, 40, window)];
    one.state.tally(TenantId(0), "test", &mut tally).now_or_never().expect("memory").expect("works");
    drop(ledger);
    assert_eq!(process(path).left(), 59);
}

#[test]
fn without_a_quota_there_is_no_file() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    one.write();
    assert!(!path.exists() && one.failures() == (Some(0), Some(0)));
}

#[test]
fn two_processes_add_up_in_one_file_and_learn_from_each_other() {
    let (_folder, path) = folder();
    let (mut one, mut two) = (process(path.clone()), process(path.clone()));
    assert_eq!((one.left(), two.left(), two.left()), (99, 99, 98));
    one.write();
    two.write();
    assert_eq!(two.left(), 96);
    two.write();
    assert_eq!(process(path).left(), 95);
}

#[test]
fn a_damaged_file_is_put_aside_and_what_is_known_goes_into_a_new_one() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    one.left();
    one.write();
    drop(std::mem::replace(&mut one.file, File::at(path.clone())));
    fs::write(&path, "this was a database once, and is long enough to be none").expect("written");
    one.left();
    one.write();
    assert_eq!(one.failures(), (Some(1), Some(0)));
    assert_eq!(process(path.clone()).left(), 97);
    let names = fs::read_dir(path.parent().expect("a folder")).expect("a folder");
    let aside =
        names.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().contains("damaged"));
    assert_eq!(aside.count(), 1);
}

#[test]
fn a_file_that_is_taken_away_is_made_again_with_all_that_is_known() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    for _ in 0..3 {
        one.left();
        one.write();
    }
    for name in ["quotas.sqlite", "quotas.sqlite-wal", "quotas.sqlite-shm"] {
        let _ = fs::remove_file(path.with_file_name(name));
    }
    one.left();
    one.write();
    assert_eq!(process(path).left(), 95);
}

#[test]
fn a_file_that_another_one_locks_is_written_later() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    one.left();
    one.write();
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    assert_eq!(one.left(), 98);
    one.write();
    assert_eq!(one.failures(), (Some(1), Some(1)));
    other.execute_batch("ROLLBACK").expect("unlocks");
    assert_eq!(one.left(), 97);
    one.write();
    assert_eq!(one.failures(), (Some(1), Some(0)));
    assert_eq!(process(path).left(), 96);
}

#[test]
fn what_was_used_while_the_clock_was_ahead_counts_once() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    assert_eq!(one.left_in(20), 99);
    one.write();
    assert_eq!(one.left_in(7), 98, "it is of now");
    one.write();
    let mut one = process(path.clone());
    assert_eq!(one.left_in(7), 97, "nor does a restart count it twice");
    one.write();
    assert_eq!(one.left_in(20), 99, "nothing was used in that slot after all");
    one.write();
    assert_eq!(one.left_in(20), 98);
    one.write();
    assert_eq!(process(path).left_in(20), 97);
}

#[test]
fn what_counts_in_another_slot_is_taken_out_of_the_file_once_it_can_be_written() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    assert_eq!(one.left_in(20), 99);
    one.write();
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    assert_eq!(one.left_in(7), 98);
    one.write();
    assert_eq!(one.failures(), (Some(1), Some(1)));
    other.execute_batch("ROLLBACK").expect("unlocks");
    one.write();
    assert_eq!(process(path).left_in(7), 97);
}

/// How many rows there are, and of how many nothing was used.
fn rows(path: &Path) -> (i64, i64) {
    let other = rusqlite::Connection::open(path).expect("opens");
    let count = "SELECT count(*), count(*) FILTER (WHERE used = 0) FROM used";
    other.query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("counts")
}

#[test]
fn a_flood_of_keys_leaves_the_file_in_bounds_and_spares_those_who_used_much() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    let much = |process: &Process| {
        let left = (0..20).map(|n| process.left_of(&format!("much {n}"), 7, 30));
        left.collect::<Vec<_>>()
    };
    assert_eq!(much(&one), [70; 20]);
    one.left_of("given back", 7, 1);
    one.write();
    one.state.give_back(TenantId(0), "test", b"given back", 7, 1);
    for flood in 0..10 {
        for key in 0..1000 {
            one.left_of(&format!("{flood} {key}"), 7, 1);
        }
        one.keep();
    }
    let (all, unused) = rows(&path);
    // 256 parts of 8 rows.
    assert!(all <= 2048 && unused == 0, "{all} rows, {unused} of them without use");
    drop(one);
    assert_eq!(much(&process(path)), [40; 20]);
}

#[test]
fn of_more_than_there_is_room_for_the_quotas_go_of_which_least_was_used_in_all() {
    let (_folder, path) = folder();
    let mut file = File::at(path.clone());
    // All in the part that is looked through first, which has room for eight.
    let row = |quota, slot, used| TallyRow { id: [0, quota], slot, used, ends: 4_102_444_800 };
    let rolling = (0..6).map(|slot| row(1, slot, 10));
    let rows: Vec<TallyRow> = rolling.chain((2..6).map(|quota| row(quota, 0, 20))).collect();
    file.add(&rows, Vec::new).expect("written");
    assert_eq!(file.prune(1).expect("looked through"), 2, "so much is forgotten that still counts");
    let other = rusqlite::Connection::open(&path).expect("opens");
    let left = "SELECT sum(used) FILTER (WHERE used = 10), sum(used) FILTER (WHERE used = 20) FROM used";
    let left: rusqlite::Result<(i64, i64)> = other.query_row(left, [], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(left.expect("counts"), (60, 40));
    assert_eq!(file.prune(1000).expect("looked through"), 0);
}

/// What there is of the quota whose digest is zero, by slot.
fn slots(path: &Path) -> Vec<i64> {
    let other = rusqlite::Connection::open(path).expect("opens");
    let mut query =
        other.prepare("SELECT slot FROM used WHERE id = zeroblob(16) ORDER BY slot").expect("right");
    let found = query.query_map([], |row| row.get(0)).expect("asks");
    found.map(|slot| slot.expect("a number")).collect()
}

#[test]
fn what_ended_before_the_process_began_is_kept_for_a_week_since_its_clock_may_be_ahead() {
    let (_folder, path) = folder();
    let mut one = process(path.clone());
    one.left();
    one.write();
    let other = rusqlite::Connection::open(&path).expect("opens");
    let add = |slot: i64, ended: i64| {
        let row = "INSERT INTO used VALUES (zeroblob(16), ?1, 5, unixepoch() - ?2)";
        other.execute(row, [slot, ended]).expect("written");
    };
    let (minute, day) = (60, 24 * 60 * 60);
    [(1, minute), (2, 6 * day), (3, 8 * day)].into_iter().for_each(|(slot, ended)| add(slot, ended));
    assert_eq!(one.file.prune(1000).expect("looked through"), 0);
    assert_eq!(slots(&path), [1, 2]);
    // Of what still counts, none goes for it.
    (10..17).for_each(|slot| add(slot, -day));
    assert_eq!(one.file.prune(1000).expect("looked through"), 0);
    assert_eq!(slots(&path), [10, 11, 12, 13, 14, 15, 16]);
}

#[test]
fn what_ended_since_the_process_began_is_dropped() {
    let (_folder, path) = folder();
    let mut file = File::at(path.clone());
    file.began = 0;
    let row = |slot, ends| TallyRow { id: [0, 0], slot, used: 1, ends };
    file.add(&[row(1, 1_000_000_000), row(2, 4_102_444_800)], Vec::new).expect("written");
    file.prune(1000).expect("looked through");
    assert_eq!(slots(&path), [2]);
}

#[test]
fn where_no_file_can_be_quotas_hold_in_memory() {
    let mut one = process(PathBuf::from("/proc/no/such/folder/quotas.sqlite"));
    for left in (90..100).rev() {
        assert_eq!(one.left(), left);
        one.write();
    }
    assert_eq!(one.failures(), (Some(10), Some(1)));
}

#[test]
fn what_is_no_regular_file_is_left_alone() {
    let mut one = process(PathBuf::from("/dev/null"));
    assert_eq!(one.left(), 99);
    one.write();
    assert_eq!(one.failures(), (Some(2), Some(1)));
    assert!(fs::metadata("/dev/null").is_ok_and(|found| !found.is_file()));
}

#[test]
fn a_file_of_a_later_version_is_left_alone() {
    let (_folder, path) = folder();
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute_batch("PRAGMA user_version = 2").expect("written");
    let mut one = process(path.clone());
    one.left();
    one.write();
    assert_eq!(one.failures(), (Some(2), Some(1)));
    let version: i64 =
        other.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("still a database");
    assert_eq!(version, 2);
}
