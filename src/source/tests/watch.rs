//! Changes are noticed however they are made. Waiting is by channel, with a deadline.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::*;
use crate::source::{Fingerprint, Stir, Tap, Timing, Watch};

const DEADLINE: Duration = Duration::from_secs(10);

/// Long after a burst ended.
const SILENCE: Duration = Duration::from_millis(200);

/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);

fn timing() -> Timing {
    Timing {
        quiet: Duration::from_millis(30),
        longest: Duration::from_millis(300),
        poll: Duration::from_millis(50),
        stalled: HOUR,
        unclosed: HOUR,
    }
}

fn watch(inputs: Vec<PathBuf>) -> (Watch, Receiver<()>) {
    let (sender, receiver) = channel();
    let watch = Watch::start_with(inputs, timing(), move || {
        let _ = sender.send(());
    });
    (watch.expect("a thread"), receiver)
}

/// A watch on inputs, and what the last of them holds whenever it tells of a change.
fn reading(inputs: &[PathBuf], timing: Timing) -> (Watch, Receiver<String>) {
    let (sender, receiver) = channel();
    let file = inputs.last().expect("an input").clone();
    let watch = Watch::start_with(inputs.to_vec(), timing, move || {
        let _ = sender.send(fs::read_to_string(&file).unwrap_or_default());
    });
    (watch.expect("a thread"), receiver)
}

fn noticed(receiver: &Receiver<()>) {
    receiver.recv_timeout(DEADLINE).expect("the change is noticed");
}

#[test]
fn a_file_written_in_place_or_replaced_is_noticed() {
    let temp = Temp::new(&[("a.yaml", "1"), ("new", "3")]);
    let (_watch, receiver) = watch(vec![temp.path("a.yaml")]);
    temp.write("a.yaml", "2");
    noticed(&receiver);
    fs::rename(temp.path("new"), temp.path("a.yaml")).unwrap();
    noticed(&receiver);
    fs::remove_file(temp.path("a.yaml")).unwrap();
    noticed(&receiver);
    temp.write("a.yaml", "4");
    noticed(&receiver);
}

#[test]
fn what_somebody_read_and_is_no_more_there_is_told_of() {
    let temp = Temp::new(&[("a.yaml", "1")]);
    let inputs = vec![temp.path("a.yaml")];
    let held = Fingerprint::of_inputs(&inputs);
    temp.write("a.yaml", "2");
    let (watch, receiver) = watch(inputs.clone());
    watch.was_read(held);
    noticed(&receiver);
    watch.was_read(Fingerprint::of_inputs(&inputs));
    drop(watch);
    // The thread ends and with it the sender; whatever it told before would be here.
    assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_change_that_leaves_the_contents_alone_is_none() {
    let temp = Temp::new(&[("a.yaml", "1")]);
    let (watch, receiver) = watch(vec![temp.path("a.yaml")]);
    temp.write("other.yaml", "1");
    temp.write("a.yaml", "1");
    temp.write("a.yaml", "2");
    noticed(&receiver);
    drop(watch);
    // The thread ends and with it the sender; whatever it told before would be here.
    let rest: Vec<()> = std::iter::from_fn(|| receiver.recv_timeout(DEADLINE).ok()).collect();
    assert!(rest.len() <= 1, "a truncated file may have been seen, nothing more");
}

#[test]
fn a_swapped_data_link_is_noticed_as_kubernetes_does_it() {
    let temp = Temp::new(&[("..v1/a.yaml", "1"), ("..v2/a.yaml", "2")]);
    symlink("..v1", temp.path("..data")).unwrap();
    symlink("..data/a.yaml", temp.path("a.yaml")).unwrap();
    let (_watch, receiver) = watch(vec![temp.path("a.yaml")]);
    symlink("..v2", temp.path("..data_tmp")).unwrap();
    fs::rename(temp.path("..data_tmp"), temp.path("..data")).unwrap();
    noticed(&receiver);
    // The new target is watched as well.
    temp.write("..v2/a.yaml", "3");
    noticed(&receiver);
}

#[test]
fn a_swapped_directory_link_is_noticed() {
    let temp = Temp::new(&[("releases/1/a.yaml", "1"), ("releases/2/a.yaml", "2")]);
    symlink("releases/1", temp.path("current")).unwrap();
    let (_watch, receiver) = watch(vec![temp.path("current/a.yaml")]);
    symlink("releases/2", temp.path("next")).unwrap();
    fs::rename(temp.path("next"), temp.path("current")).unwrap();
    noticed(&receiver);
}

#[test]
fn a_swapped_link_that_another_link_leads_through_is_noticed() {
    let temp = Temp::new(&[("srv/releases/1/a.yaml", "1"), ("srv/releases/2/a.yaml", "2")]);
    fs::create_dir(temp.path("etc")).unwrap();
    symlink("releases/1", temp.path("srv/current")).unwrap();
    symlink("../srv/current/a.yaml", temp.path("etc/a.yaml")).unwrap();
    let (_watch, receiver) = watch(vec![temp.path("etc/a.yaml")]);
    symlink("releases/2", temp.path("srv/next")).unwrap();
    fs::rename(temp.path("srv/next"), temp.path("srv/current")).unwrap();
    noticed(&receiver);
}

#[test]
fn what_a_link_leads_to_may_go_and_come_back() {
    let temp = Temp::new(&[("b/b.yaml", "1")]);
    symlink("b/b.yaml", temp.path("a.yaml")).unwrap();
    let (_watch, receiver) = watch(vec![temp.path("a.yaml")]);
    fs::remove_file(temp.path("b/b.yaml")).unwrap();
    noticed(&receiver);
    temp.write("b/b.yaml", "2");
    noticed(&receiver);
}

#[test]
fn a_file_that_appears_in_an_include_directory_is_noticed() {
    let temp = Temp::new(&[("conf.d/a.yaml", "1")]);
    let (_watch, receiver) = watch(vec![temp.path("conf.d"), temp.path("conf.d/a.yaml")]);
    temp.write("conf.d/b.yaml", "2");
    noticed(&receiver);
}

#[test]
fn a_directory_that_goes_and_comes_back_is_watched_again() {
    let temp = Temp::new(&[("d/e/a.yaml", "1")]);
    let (_watch, receiver) = watch(vec![temp.path("d/e/a.yaml")]);
    fs::remove_dir_all(temp.path("d")).unwrap();
    noticed(&receiver);
    temp.write("d/e/a.yaml", "2");
    noticed(&receiver);
    temp.write("d/e/a.yaml", "3");
    noticed(&receiver);
}

#[test]
fn a_directory_that_is_made_anew_at_once_is_watched_again() {
    let temp = Temp::new(&[("conf.d/a.yaml", "1")]);
    let (_watch, receiver) = watch(vec![temp.path("conf.d"), temp.path("conf.d/a.yaml")]);
    // Many file systems give the new one the inode of the old one.
    fs::remove_dir_all(temp.path("conf.d")).unwrap();
    temp.write("conf.d/a.yaml", "2");
    noticed(&receiver);
    temp.write("conf.d/a.yaml", "3");
    noticed(&receiver);
}

#[test]
fn other_inputs_replace_the_old_ones() {
    let temp = Temp::new(&[("a/a.yaml", "1"), ("b/b.yaml", "1"), ("c/c.yaml", "1")]);
    let (watch, receiver) = watch(vec![temp.path("a/a.yaml")]);
    // Each time it is told: they may have changed after they were read, and before they were watched.
    watch.set_inputs(vec![temp.path("b/b.yaml")]);
    noticed(&receiver);
    watch.set_inputs(vec![temp.path("b/b.yaml"), temp.path("c/c.yaml")]);
    noticed(&receiver);
    temp.write("a/a.yaml", "2");
    temp.write("c/c.yaml", "2");
    noticed(&receiver);
    drop(watch);
    let rest: Vec<()> = std::iter::from_fn(|| receiver.recv_timeout(DEADLINE).ok()).collect();
    assert!(rest.len() <= 1, "a truncated file may have been seen, nothing more");
}

#[test]
fn the_same_inputs_are_nothing_new() {
    let temp = Temp::new(&[("a.yaml", "1")]);
    let (watch, receiver) = watch(vec![temp.path("a.yaml")]);
    watch.set_inputs(vec![temp.path("a.yaml")]);
    drop(watch);
    assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_dropped_watch_ends_its_thread() {
    let temp = Temp::new(&[("a.yaml", "1")]);
    let (watch, receiver) = watch(vec![temp.path("a.yaml"), temp.path("missing/b.yaml")]);
    drop(watch);
    assert_eq!(receiver.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_file_that_is_written_slowly_is_told_of_once_its_writer_closed_it() {
    let temp = Temp::new(&[("a.yaml", "before")]);
    let (_watch, receiver) = reading(&[temp.path("a.yaml")], timing());
    let mut file = fs::File::create(temp.path("a.yaml")).unwrap();
    for part in ["one", "two", "three"] {
        file.write_all(part.as_bytes()).unwrap();
        assert_eq!(receiver.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout), "{part}");
    }
    drop(file);
    assert_eq!(receiver.recv_timeout(DEADLINE), Ok("onetwothree".to_owned()));
}

#[test]
fn another_file_in_the_place_of_one_that_is_being_written_is_told_of() {
    let temp = Temp::new(&[("a.yaml", "1"), ("new", "3")]);
    let (_watch, receiver) = reading(&[temp.path("a.yaml")], timing());
    let mut file = fs::File::create(temp.path("a.yaml")).unwrap();
    file.write_all(b"2").unwrap();
    assert_eq!(receiver.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout));
    fs::rename(temp.path("new"), temp.path("a.yaml")).unwrap();
    assert_eq!(receiver.recv_timeout(DEADLINE), Ok("3".to_owned()));
}

#[test]
fn a_writer_who_does_not_close_a_file_is_waited_for_as_long_as_is_said() {
    let brief = Duration::from_millis(100);
    for (stalled, unclosed) in [(brief, HOUR), (HOUR, brief)] {
        let temp = Temp::new(&[("a.yaml", "1")]);
        let (_watch, receiver) = reading(&[temp.path("a.yaml")], Timing { stalled, unclosed, ..timing() });
        let mut file = fs::File::create(temp.path("a.yaml")).unwrap();
        file.write_all(b"2").unwrap();
        // On a slow machine it may be told of before it is written.
        while receiver.recv_timeout(DEADLINE).expect("it is told") != "2" {}
    }
}

#[test]
fn a_file_that_a_pattern_will_find_is_told_of_once_its_writer_closed_it() {
    let temp = Temp::new(&[("conf.d/a.yaml", "1")]);
    let (_watch, receiver) = watch(vec![temp.path("conf.d"), temp.path("conf.d/a.yaml")]);
    let mut file = fs::File::create(temp.path("conf.d/b.yaml")).unwrap();
    assert_eq!(receiver.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout), "nothing is in it");
    file.write_all(b"2").unwrap();
    assert_eq!(receiver.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout));
    drop(file);
    noticed(&receiver);
}

#[test]
fn who_writes_another_file_beside_an_input_is_not_waited_for() {
    let temp = Temp::new(&[("a.yaml", "1"), ("whole", "1")]);
    let (_watch, receiver) = reading(&[temp.0.clone(), temp.path("a.yaml")], timing());
    let mut open = Vec::new();
    for name in ["access.log", ".a.yaml.swp"] {
        let mut file = fs::File::create(temp.path(name)).unwrap();
        file.write_all(b"and on").unwrap();
        open.push(file);
    }
    // Nobody writes these: they are there at once.
    symlink("a.yaml", temp.path("b.yaml")).unwrap();
    fs::hard_link(temp.path("whole"), temp.path("c.yaml")).unwrap();
    temp.write("a.yaml", "2");
    while receiver.recv_timeout(DEADLINE).expect("it is told") != "2" {}
}

#[test]
fn a_log_beside_an_input_keeps_nobody_from_being_told_of_a_change() {
    let temp = Temp::new(&[("a.yaml", "1"), ("access.log", "")]);
    let timing = Timing { longest: HOUR, ..timing() };
    let (_watch, receiver) = reading(&[temp.path("a.yaml")], timing);
    let mut log = fs::File::options().append(true).open(temp.path("access.log")).unwrap();
    let (done, is_done) = channel::<()>();
    let logging = thread::spawn(move || {
        while is_done.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
            log.write_all(b"GET /\n").unwrap();
        }
    });
    temp.write("a.yaml", "2");
    assert_eq!(receiver.recv_timeout(DEADLINE), Ok("2".to_owned()));
    drop(done);
    logging.join().unwrap();
}

#[test]
fn what_is_begun_while_somebody_tells_what_was_read_is_told_of_once_it_is_whole() {
    let temp = Temp::new(&[("a.yaml", "1")]);
    let (watch, receiver) = reading(&[temp.path("a.yaml")], timing());
    let read = Fingerprint::of_inputs(&[temp.path("none")]);
    for round in ["one", "two", "three", "four", "five"] {
        watch.was_read(read);
        let mut file = fs::File::create(temp.path("a.yaml")).unwrap();
        file.write_all(b"half").unwrap();
        while let Ok(told) = receiver.recv_timeout(SILENCE) {
            assert_ne!(told, "half");
        }
        file.write_all(round.as_bytes()).unwrap();
        drop(file);
        let whole = format!("half{round}");
        while receiver.recv_timeout(DEADLINE).expect("it is told") != whole {}
    }
}

#[test]
fn other_inputs_are_told_of_once_nobody_is_writing_them() {
    let temp = Temp::new(&[("a.yaml", "1"), ("b.yaml", "1")]);
    let (watch, receiver) = watch(vec![temp.path("a.yaml")]);
    let mut file = fs::File::create(temp.path("b.yaml")).unwrap();
    file.write_all(b"2").unwrap();
    assert_eq!(receiver.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout), "it is no input yet");
    watch.set_inputs(vec![temp.path("a.yaml"), temp.path("b.yaml")]);
    assert_eq!(receiver.recv_timeout(SILENCE), Err(RecvTimeoutError::Timeout));
    drop(file);
    noticed(&receiver);
}

#[test]
fn what_cannot_be_watched_is_told_of_once_it_was_left_alone() {
    const PARTS: usize = 40;
    let temp = Temp::new(&[]);
    let timing = Timing { poll: Duration::from_millis(500), ..timing() };
    let (_watch, receiver) = reading(&[temp.path("missing/a.yaml")], timing);
    fs::create_dir(temp.path("missing")).unwrap();
    let mut file = fs::File::create(temp.path("missing/a.yaml")).unwrap();
    for _ in 0..PARTS {
        file.write_all(b"part ").unwrap();
        // A slow writer.
        thread::sleep(Duration::from_millis(20));
    }
    drop(file);
    assert_eq!(receiver.recv_timeout(DEADLINE), Ok("part ".repeat(PARTS)));
}

/// A tap on a file, and what it tells.
fn tap(file: &std::path::Path) -> (Tap, Receiver<Stir>) {
    let (sender, receiver) = channel();
    let mut tap = Tap::new(move |stir| {
        let _ = sender.send(stir);
    });
    assert!(tap.watch(Some(file)));
    (tap, receiver)
}

/// What is told up to the first event that says so.
fn until(receiver: &Receiver<Stir>, last: Stir) -> Vec<Stir> {
    let mut told = Vec::new();
    while told.last() != Some(&last) {
        told.push(receiver.recv_timeout(DEADLINE).expect("it is told"));
    }
    told
}

#[test]
fn a_file_is_whole_once_its_writer_closed_it_or_another_took_its_place() {
    let temp = Temp::new(&[("a.jsonl", "1"), ("next", "3")]);
    let (_tap, receiver) = tap(&temp.path("a.jsonl"));
    temp.write("a.jsonl", "2");
    until(&receiver, Stir::Settled);
    fs::rename(temp.path("next"), temp.path("a.jsonl")).unwrap();
    until(&receiver, Stir::Settled);
}

#[test]
fn a_file_that_is_renamed_away_is_not_whole_for_that() {
    let temp = Temp::new(&[("a.jsonl", "1")]);
    let (_tap, receiver) = tap(&temp.path("a.jsonl"));
    fs::rename(temp.path("a.jsonl"), temp.path("a.jsonl.bak")).unwrap();
    let mut file = fs::File::create(temp.path("a.jsonl")).unwrap();
    file.write_all(b"2").unwrap();
    // Told after all of that: what happens to other files is not about this one.
    fs::rename(temp.path("a.jsonl.bak"), temp.path("b")).unwrap();
    let told: Vec<Stir> = (0..5).map(|_| receiver.recv_timeout(DEADLINE).expect("it is told")).collect();
    assert!(!told.contains(&Stir::Settled), "{told:?}");
    drop(file);
    until(&receiver, Stir::Settled);
}

#[test]
fn a_file_is_whole_when_a_link_on_the_way_to_it_is_turned() {
    let temp = Temp::new(&[("..v1/a.jsonl", "1"), ("..v2/a.jsonl", "2")]);
    symlink("..v1", temp.path("..data")).unwrap();
    symlink("..data/a.jsonl", temp.path("a.jsonl")).unwrap();
    let (_tap, receiver) = tap(&temp.path("a.jsonl"));
    symlink("..v2", temp.path("..data_tmp")).unwrap();
    fs::rename(temp.path("..data_tmp"), temp.path("..data")).unwrap();
    until(&receiver, Stir::Settled);
}
