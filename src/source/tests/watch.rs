//! Changes are noticed however they are made. Waiting is by channel, with a deadline.

use std::os::unix::fs::symlink;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::*;
use crate::source::{Stir, Tap, Timing, Watch};

const DEADLINE: Duration = Duration::from_secs(10);

fn watch(inputs: Vec<PathBuf>) -> (Watch, Receiver<()>) {
    let timing = Timing {
        quiet: Duration::from_millis(30),
        longest: Duration::from_millis(300),
        poll: Duration::from_millis(50),
    };
    let (sender, receiver) = channel();
    let watch = Watch::start_with(inputs, timing, move || {
        let _ = sender.send(());
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
    std::io::Write::write_all(&mut file, b"2").unwrap();
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
