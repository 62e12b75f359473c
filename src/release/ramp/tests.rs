use tollhouse_filters::draw::{fraction, mix};
use tollhouse_filters::world::ManualClock;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn world() -> (World, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new());
    (World::dry_at(clock.clone()), clock)
}

fn ramp_in(world: &World, text: &str) -> Ramp {
    let ramp = candidate_in(world, text);
    ramp.watch();
    ramp
}

/// A ramp of a document that does not serve.
fn candidate_in(world: &World, text: &str) -> Ramp {
    let written: config::Ramp = serde_yaml::from_str(text).expect("a ramp");
    Ramp::new(&written, "checkout", ((0, 100), (1, 0)), world, true)
}

const PLAIN: &str = "{from: a, to: b, over: 10h, steps: 5, until: 50%}";
const WATCHED: &str = "{from: a, to: b, over: 10h, steps: 5, \
                       abort_if: {error_ratio: 5%, p99: 2x, min_requests: 20, window: 1m}}";

#[test]
fn a_share_moves_in_steps_of_which_the_first_begins_at_once() {
    let (world, clock) = world();
    let ramp = ramp_in(&world, PLAIN);
    let mut seen = Vec::new();
    for _ in 0..12 {
        let Standing { step, share, .. } = ramp.standing();
        seen.push((step, (share * 100.0).round() as u32));
        clock.advance(HOUR);
    }
    let expected = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5].map(|step| (step, step * 10));
    assert_eq!(seen, expected);
}

#[test]
fn keys_move_to_the_new_variant_and_never_back_while_it_goes_on() {
    let (world, clock) = world();
    let ramp = ramp_in(&world, PLAIN);
    let sides = || (0..2000_u64).map(|key| ramp.side(fraction(mix(key)))).collect::<Vec<_>>();
    let mut before = sides();
    for step in 2..=5_usize {
        clock.advance(HOUR * 2);
        let now = sides();
        assert!(before.iter().zip(&now).all(|(before, now)| now >= before));
        let new = now.iter().sum::<usize>();
        assert!(new.abs_diff(step * 200) < 100, "{new} of 2000 in step {step}");
        before = now;
    }
}

fn note(ramp: &Ramp, variant: usize, count: u32, failed: u32, millis: u64) {
    for request in 0..count {
        ramp.note(variant, request < failed, Some(Duration::from_millis(millis)));
    }
}

#[test]
fn failures_of_the_new_variant_give_the_ramp_up_until_somebody_takes_note() {
    let (world, clock) = world();
    let ramp = ramp_in(&world, WATCHED);
    clock.advance(HOUR * 5);
    note(&ramp, 0, 100, 1, 10);
    note(&ramp, 1, 19, 19, 10);
    assert_eq!(ramp.standing().aborted, None, "19 are too few to tell");
    note(&ramp, 1, 1, 1, 10);
    let standing = ramp.standing();
    let why = &standing.aborted.as_ref().expect("given up").why;
    assert_eq!(why, "20 of 20 requests failed (100.0%, 1.0% of the old variant's)");
    assert_eq!((standing.step, standing.share), (0, 0.0), "the old weights are back");
    assert!((0..1000).all(|key| ramp.side(fraction(mix(key))) == 0));
    // It stays so: by itself, and over a reload that changes how it goes.
    clock.advance(HOUR * 50);
    note(&ramp, 1, 100, 0, 10);
    assert!(ramp.standing().aborted.is_some());
    let reloaded = ramp_in(&world, &WATCHED.replace("over: 10h", "over: 20h"));
    assert!(reloaded.standing().aborted.is_some());
    assert!(reloaded.acknowledge() && !reloaded.acknowledge());
    let standing = reloaded.standing();
    assert_eq!((standing.step, standing.aborted), (1, None), "it begins anew");
    assert_eq!(standing.seen.expect("watched").map(|seen| seen.requests), [0, 0]);
}

#[test]
fn failures_that_the_old_variant_has_too_are_nobodys_fault() {
    let (world, _clock) = world();
    let ramp = ramp_in(&world, WATCHED);
    note(&ramp, 0, 1000, 500, 10);
    note(&ramp, 1, 50, 0, 10);
    note(&ramp, 1, 50, 50, 10);
    assert_eq!(ramp.standing().aborted, None);
    note(&ramp, 1, 100, 100, 10);
    assert!(ramp.standing().aborted.is_some());
}

#[test]
fn once_the_old_variant_gets_nothing_for_good_nothing_is_given_up() {
    for (until, hours, given_up) in [("100%", 9, true), ("100%", 10, false), ("50%", 10, true)] {
        let (world, clock) = world();
        let ramp = ramp_in(&world, &WATCHED.replace("steps: 5", &format!("steps: 5, until: {until}")));
        clock.advance(HOUR * hours);
        note(&ramp, 1, 100, 20, 10);
        assert_eq!(ramp.standing().aborted.is_some(), given_up, "{until} after {hours} hours");
    }
}

#[test]
fn a_new_variant_that_takes_much_longer_is_given_up() {
    let (world, _clock) = world();
    let ramp = ramp_in(&world, WATCHED);
    note(&ramp, 0, 500, 0, 10);
    note(&ramp, 1, 500, 0, 18);
    assert_eq!(ramp.standing().aborted, None, "not twice as long");
    note(&ramp, 1, 500, 0, 30);
    assert!(ramp.standing().aborted.expect("given up").why.starts_with("99% of "));
}

#[test]
fn requests_that_a_variant_did_not_take_say_nothing_of_how_long_it_takes() {
    let (world, _clock) = world();
    let ramp = ramp_in(&world, &WATCHED.replace("p99: 2x", "p99: 1.5x"));
    // The old one is left alone, and refused in no time.
    let refuse = |count: u32| (0..count).for_each(|_| ramp.note(0, true, None));
    refuse(1000);
    note(&ramp, 1, 100, 0, 12);
    assert_eq!(ramp.standing().aborted, None, "there is nothing to compare it with");
    note(&ramp, 0, 30, 0, 10);
    refuse(1000);
    note(&ramp, 1, 100, 0, 12);
    let Standing { aborted, seen, .. } = ramp.standing();
    assert_eq!(aborted, None, "not half as long again");
    let [old, new] = seen.expect("watched");
    assert_eq!((old.requests, old.errors, old.timed, new.timed), (2030, 2000, 30, 200));
    note(&ramp, 1, 100, 0, 30);
    assert!(ramp.standing().aborted.expect("given up").why.starts_with("99% of "));
}

#[test]
fn what_happened_before_the_window_does_not_count() {
    let (world, clock) = world();
    let ramp = ramp_in(&world, WATCHED);
    note(&ramp, 1, 19, 19, 10);
    clock.advance(Duration::from_secs(61));
    note(&ramp, 1, 19, 19, 10);
    assert_eq!(ramp.standing().aborted, None);
}

#[test]
fn a_candidate_that_is_not_taken_stops_no_watch() {
    let (world, _clock) = world();
    let ramp = ramp_in(&world, WATCHED);
    note(&ramp, 1, 10, 10, 10);
    drop(candidate_in(&world, PLAIN));
    drop(candidate_in(&world, &WATCHED.replace("window: 1m", "window: 1h")));
    note(&ramp, 1, 10, 10, 10);
    assert!(ramp.standing().aborted.is_some());
}

mod kept {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A process with one ramp, whose clock is that much later.
    fn process(later: Duration) -> (World, Arc<ManualClock>, Ramp) {
        let (world, clock) = world();
        clock.advance(later);
        let written: config::Ramp = serde_yaml::from_str(WATCHED).expect("a ramp");
        let ramp = Ramp::new(&written, "checkout", ((0, 100), (1, 0)), &world, false);
        ramp.watch();
        (world, clock, ramp)
    }

    /// What keeps it, in a process that serves.
    fn keeper(path: &Path, world: &World, ramp: &Ramp) -> Keeper {
        let progress = ramp.progress().clone();
        keeper_of(path, world, move || vec![progress.clone()])
    }

    /// The same of a document with these ramps.
    fn keeper_of(
        path: &Path,
        world: &World,
        ramps: impl Fn() -> Vec<Arc<Progress>> + Send + 'static,
    ) -> Keeper {
        let keeper = Keeper::start(Some(path.to_owned()), ramps, &*world.metrics).expect("a thread");
        keeper.serving().store(true, Ordering::SeqCst);
        keeper
    }

    #[test]
    fn a_restart_goes_on_where_the_ramp_was_given_up_or_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state/quotas.sqlite");
        let (world, _clock, ramp) = process(Duration::ZERO);
        assert_eq!(ramp.standing().step, 0, "nothing moves before it is known how far it was");
        drop(keeper(&path, &world, &ramp));
        assert_eq!(ramp.standing().step, 1);
        let (world, _clock, ramp) = process(HOUR * 5);
        let running = keeper(&path, &world, &ramp);
        assert_eq!(ramp.standing().step, 3);
        note(&ramp, 1, 20, 20, 10);
        drop(running);
        let (world, clock, ramp) = process(HOUR * 6);
        let running = keeper(&path, &world, &ramp);
        let aborted = ramp.standing().aborted.expect("still given up");
        assert_eq!(aborted.why, "20 of 20 requests failed (100.0%, 0.0% of the old variant's)");
        clock.advance(HOUR);
        assert!(ramp.acknowledge());
        drop(running);
        let (world, _clock, ramp) = process(HOUR * 8);
        let _running = keeper(&path, &world, &ramp);
        assert_eq!((ramp.standing().step, ramp.standing().aborted), (1, None));
    }

    #[test]
    fn a_ramp_that_was_taken_out_begins_anew_when_it_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("quotas.sqlite");
        let (world, clock, ramp) = process(Duration::ZERO);
        drop(keeper(&path, &world, &ramp));
        let written = Arc::new(Mutex::new(vec![ramp.progress().clone()]));
        let document = written.clone();
        let running = keeper_of(&path, &world, move || document.lock().clone());
        note(&ramp, 1, 20, 20, 10);
        assert!(ramp.standing().aborted.is_some());
        written.lock().clear();
        // It looks once more.
        drop(running);
        clock.advance(HOUR * 5);
        let running = keeper(&path, &world, &ramp);
        let standing = ramp.standing();
        assert_eq!((standing.step, standing.aborted), (1, None), "though requests held on to it");
        assert_eq!(standing.seen.expect("watched").map(|seen| seen.requests), [0, 0]);
        drop(running);
        let (world, _clock, ramp) = process(HOUR * 6);
        let _running = keeper(&path, &world, &ramp);
        assert_eq!(ramp.standing().step, 1, "an hour is no step");
    }

    #[test]
    fn a_ramp_that_no_process_saw_go_begins_anew_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("quotas.sqlite");
        let (world, _clock, ramp) = process(Duration::ZERO);
        drop(keeper(&path, &world, &ramp));
        // One that never serves changes nothing.
        drop(Keeper::start(Some(path.clone()), Vec::new, &*world.metrics).expect("a thread"));
        let (world, _clock, ramp) = process(HOUR * 3);
        drop(keeper(&path, &world, &ramp));
        assert_eq!(ramp.standing().step, 2);
        drop(keeper_of(&path, &world, Vec::new));
        let (world, _clock, ramp) = process(HOUR * 5);
        let _running = keeper(&path, &world, &ramp);
        assert_eq!(ramp.standing().step, 1);
    }

    #[test]
    fn a_process_that_gives_way_tells_what_it_sees_and_brings_nothing_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("quotas.sqlite");
        let (world, clock, ramp) = process(Duration::ZERO);
        drop(keeper(&path, &world, &ramp));
        let gives_way = || {
            let old = keeper(&path, &world, &ramp);
            old.serving().store(false, Ordering::SeqCst);
            old
        };
        let old = gives_way();
        clock.advance(HOUR);
        note(&ramp, 1, 20, 20, 10);
        drop(old);
        let (next, _clock, after) = process(HOUR * 5);
        drop(keeper(&path, &next, &after));
        assert!(after.standing().aborted.is_some());
        let old = gives_way();
        drop(keeper_of(&path, &next, Vec::new));
        drop(old);
        let (next, _clock, after) = process(HOUR * 6);
        let _running = keeper(&path, &next, &after);
        assert_eq!((after.standing().step, after.standing().aborted), (1, None));
    }

    #[test]
    fn a_ramp_goes_on_where_no_file_can_be() {
        let (world, _clock, ramp) = process(Duration::ZERO);
        let path = Path::new("/proc/no/such/folder/quotas.sqlite");
        let _running = keeper(path, &world, &ramp);
        assert_eq!(ramp.standing().step, 1);
    }

    #[test]
    fn a_ramp_waits_for_a_file_that_may_know_it_and_cannot_be_read_yet() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("quotas.sqlite");
        let (world, clock, ramp) = process(Duration::ZERO);
        let running = keeper(&path, &world, &ramp);
        clock.advance(HOUR);
        note(&ramp, 1, 20, 20, 10);
        // It looks once more.
        drop(running);
        let aside = folder.path().join("aside");
        std::fs::rename(&path, &aside).expect("renamed");
        // There is something, but no file.
        std::os::unix::fs::symlink(folder.path(), &path).expect("linked");
        let (world, _clock, ramp) = process(HOUR * 6);
        let running = keeper(&path, &world, &ramp);
        let standing = ramp.standing();
        assert_eq!((standing.step, standing.aborted), (0, None), "it is not known how far it was");
        std::fs::rename(&aside, &path).expect("renamed");
        drop(running);
        assert!(ramp.standing().aborted.is_some(), "still given up");
        let (world, _clock, ramp) = process(HOUR * 7);
        let _running = keeper(&path, &world, &ramp);
        assert!(ramp.standing().aborted.is_some(), "nor was it written otherwise");
    }

    #[test]
    fn without_a_ramp_there_is_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("quotas.sqlite");
        let (world, _) = world();
        let asked = Arc::new(AtomicBool::new(false));
        let noted = asked.clone();
        let none = move || {
            noted.store(true, Ordering::SeqCst);
            Vec::new()
        };
        drop(keeper_of(&path, &world, none));
        assert!(asked.load(Ordering::SeqCst) && !path.exists());
    }
}
