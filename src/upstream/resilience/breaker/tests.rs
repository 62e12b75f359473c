use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn breaker(written: Value) -> (Arc<Breaker>, Instant) {
    let now = Instant::now();
    (Breaker::new(serde_json::from_value(written).unwrap(), "u".into(), now), now)
}

fn after(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

fn ask(breaker: &Arc<Breaker>, verdict: Verdict, now: Instant) -> bool {
    match breaker.enter(now) {
        Ok(mut passage) => {
            passage.settle(verdict, now, Duration::ZERO);
            true
        }
        Err(_) => false,
    }
}

fn state(breaker: &Breaker) -> &'static str {
    breaker.shown().state.as_str()
}

#[test]
fn probes_that_are_not_answered_hold_their_places_for_a_second() {
    let (breaker, start) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 2}));
    ask(&breaker, Verdict::Failed, start);
    let half = after(start, 2000);
    let held: Vec<Passage> = (0..2).map(|_| breaker.enter(half).expect("a probe")).collect();
    assert!(breaker.enter(after(half, 999)).is_err());
    for passed in ["half_open", "closed"] {
        assert!(ask(&breaker, Verdict::Answered, after(half, 1000)));
        assert_eq!(state(&breaker), passed);
    }
    drop(held);
}

#[test]
fn the_clients_time_is_not_slowness() {
    let rules = json!({"min_requests": 1, "slow": "1s", "slow_ratio": "50%"});
    let (breaker, start) = breaker(rules);
    for (of_client, expected) in [(2500, "closed"), (500, "open")] {
        let mut passage = breaker.enter(start).expect("it is closed");
        passage.settle(Verdict::Answered, after(start, 3000), Duration::from_millis(of_client));
        assert_eq!(state(&breaker), expected);
    }
}

#[test]
fn it_opens_when_half_of_enough_requests_failed_and_not_before() {
    let (breaker, now) = breaker(json!({"min_requests": 4, "error_ratio": "50%"}));
    for (verdict, then) in [
        (Verdict::Failed, "closed"),
        (Verdict::Answered, "closed"),
        (Verdict::Answered, "closed"),
        (Verdict::Failed, "open"),
    ] {
        assert!(ask(&breaker, verdict, now));
        assert_eq!(state(&breaker), then);
    }
    assert_eq!(breaker.shown().reason, "2 of 4 requests failed within 10s");
    let open = breaker.enter(after(now, 4000)).unwrap_err();
    assert_eq!(open.left, Duration::from_secs(6));
    assert_eq!(breaker.refused.load(Ordering::Relaxed), 1);
}

#[test]
fn slow_answers_open_it_where_that_is_written() {
    let written = json!({"min_requests": 2, "slow": "1s", "slow_ratio": "100%"});
    let (breaker, now) = breaker(written);
    for _ in 0..2 {
        let mut passage = breaker.enter(now).unwrap();
        passage.settle(Verdict::Answered, after(now, 1000), Duration::ZERO);
    }
    assert_eq!((state(&breaker), &*breaker.shown().reason), ("open", "2 of 2 requests were slow within 10s"));
}

#[test]
fn half_open_it_lets_a_few_pass_and_closes_when_all_of_them_are_answered() {
    let written = json!({"min_requests": 1, "open": "1s", "half_open": 2});
    let (breaker, now) = breaker(written);
    assert!(ask(&breaker, Verdict::Failed, now));
    assert!(breaker.enter(after(now, 999)).is_err());
    let then = after(now, 1000);
    let (mut one, mut two) = (breaker.enter(then).unwrap(), breaker.enter(then).unwrap());
    assert_eq!(state(&breaker), "half_open");
    assert!(breaker.enter(then).is_err(), "no more than two");
    one.settle(Verdict::Answered, then, Duration::ZERO);
    assert!(breaker.enter(then).is_err(), "the other one is still under way");
    two.settle(Verdict::Answered, then, Duration::ZERO);
    assert_eq!(state(&breaker), "closed");
}

#[test]
fn a_probe_that_fails_opens_it_anew() {
    let (breaker, now) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 2}));
    assert!(ask(&breaker, Verdict::Failed, now));
    let then = after(now, 1500);
    let mut other = breaker.enter(then).unwrap();
    assert!(ask(&breaker, Verdict::Failed, then));
    assert_eq!(state(&breaker), "open");
    other.settle(Verdict::Answered, then, Duration::ZERO);
    assert_eq!(state(&breaker), "open", "what began before says nothing");
    assert!(breaker.enter(after(then, 999)).is_err());
    assert!(breaker.enter(after(then, 1000)).is_ok());
}

#[test]
fn an_answer_that_breaks_off_is_one_request_that_failed() {
    let (breaker, now) = breaker(json!({"min_requests": 4, "error_ratio": "50%", "window": "10s"}));
    let head = |at| {
        let mut passage = breaker.enter(at).expect("it is closed");
        passage.settle(Verdict::Answered, at, Duration::ZERO);
        passage
    };
    let (mut one, mut other) = (head(now), head(now));
    let whole = [head(now), head(now)];
    one.broke_off(after(now, 3000));
    one.broke_off(after(now, 3000));
    one.settle(Verdict::Failed, after(now, 3000), Duration::ZERO);
    assert_eq!(state(&breaker), "closed", "1 of 4");
    other.broke_off(after(now, 9900));
    drop(whole);
    assert_eq!((state(&breaker), &*breaker.shown().reason), ("open", "2 of 4 requests failed within 10s"));
}

#[test]
fn an_answer_that_breaks_off_long_after_its_head_counts_when_it_does() {
    let (breaker, now) = breaker(json!({"min_requests": 2, "error_ratio": "50%", "window": "1s"}));
    let mut stream = breaker.enter(now).expect("it is closed");
    stream.settle(Verdict::Answered, now, Duration::ZERO);
    let later = after(now, 5000);
    assert!(ask(&breaker, Verdict::Answered, later));
    assert_eq!(state(&breaker), "closed");
    stream.broke_off(later);
    assert_eq!((state(&breaker), &*breaker.shown().reason), ("open", "1 of 2 requests failed within 1s"));
}

#[test]
fn a_probe_whose_answer_breaks_off_opens_it_anew() {
    let (breaker, now) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 2}));
    assert!(ask(&breaker, Verdict::Failed, now));
    let then = after(now, 1000);
    let mut probe = breaker.enter(then).expect("a probe");
    probe.settle(Verdict::Answered, then, Duration::ZERO);
    probe.broke_off(then);
    assert_eq!((state(&breaker), &*breaker.shown().reason), ("open", "the answer to a probe broke off"));
}

#[test]
fn a_probe_that_is_given_up_gives_its_place_back() {
    let (breaker, now) = breaker(json!({"min_requests": 1, "open": "1s", "half_open": 1}));
    assert!(ask(&breaker, Verdict::Failed, now));
    let then = after(now, 1000);
    drop(breaker.enter(then).unwrap());
    assert!(ask(&breaker, Verdict::Answered, then));
    assert_eq!(state(&breaker), "closed");
}

#[test]
fn failures_are_forgotten_with_the_window() {
    let (breaker, now) = breaker(json!({"min_requests": 2, "window": "1s"}));
    assert!(ask(&breaker, Verdict::Failed, now));
    assert!(ask(&breaker, Verdict::Failed, after(now, 1100)));
    assert_eq!(state(&breaker), "closed");
    assert!(ask(&breaker, Verdict::Failed, after(now, 1900)));
    assert_eq!(state(&breaker), "open");
}

/// The simplest breaker that there is: it remembers every request.
struct Model {
    state: &'static str,
    opened: u64,
    passed: u32,
    seen: Vec<(u64, bool)>,
}

proptest! {
    #[test]
    fn it_does_as_a_breaker_that_remembers_everything(
        steps in prop::collection::vec((0u64..700, any::<bool>()), 1..200),
    ) {
        let written = json!({"min_requests": 5, "error_ratio": "40%", "window": "2s", "open": "1s", "half_open": 2});
        let (breaker, start) = breaker(written);
        let mut model = Model { state: "closed", opened: 0, passed: 0, seen: Vec::new() };
        let mut elapsed = 0;
        for (pause, fails) in steps {
            elapsed += pause;
            let now = after(start, elapsed);
            let verdict = if fails { Verdict::Failed } else { Verdict::Answered };
            let passes = model.state != "open" || elapsed - model.opened >= 1000;
            if passes && model.state == "open" {
                (model.state, model.passed) = ("half_open", 0);
            }
            prop_assert_eq!(ask(&breaker, verdict, now), passes);
            match (model.state, fails) {
                ("half_open", true) => (model.state, model.opened) = ("open", elapsed),
                ("half_open", false) => {
                    model.passed += 1;
                    if model.passed == 2 {
                        (model.state, model.seen) = ("closed", Vec::new());
                    }
                }
                ("closed", _) => {
                    model.seen.push((elapsed / 200, fails));
                    let recent: Vec<_> = model.seen.iter().filter(|(at, _)| at + 10 > elapsed / 200).collect();
                    let failed = recent.iter().filter(|(_, failed)| *failed).count();
                    if recent.len() >= 5 && failed > 0 && failed * 100 >= recent.len() * 40 {
                        (model.state, model.opened) = ("open", elapsed);
                    }
                }
                _ => {}
            }
            prop_assert_eq!(state(&breaker), model.state);
        }
    }
}
