use super::*;

fn after(seconds: u32) -> Tick {
    Tick(seconds * 1000)
}

/// In seconds.
const DAY: u32 = 24 * 60 * 60;

fn known(seconds: f32) -> Stats {
    let stats = Stats::default();
    stats.measure(seconds, after(0));
    stats
}

fn seconds(stats: &Stats) -> f32 {
    stats.latency().unwrap().as_secs_f32()
}

#[test]
fn latency_rises_at_once_and_falls_by_the_time_that_passed() {
    let stats = known(0.1);
    stats.measure(0.5, after(0));
    assert_eq!(seconds(&stats), 0.5);
    stats.measure(0.1, after(0));
    assert_eq!(seconds(&stats), 0.5, "no time has passed");
    stats.measure(0.1, after(10));
    let expected = 0.1 + 0.4 / std::f32::consts::E;
    assert!((seconds(&stats) - expected).abs() < 1e-4, "{}", seconds(&stats));
    stats.measure(0.1, after(210));
    assert!((seconds(&stats) - 0.1).abs() < 1e-4);
}

#[test]
fn what_is_known_fades_while_a_backend_gets_nothing_and_stands_while_it_is_tried() {
    let stats = known(1.0);
    assert!(stats.cost(1, after(70)) < 0.001);
    stats.begun.store(1, Ordering::Relaxed);
    stats.give(after(70));
    assert!(stats.cost(1, after(70)) > 1.9, "one request is enough to find out");
}

#[test]
fn what_another_algorithm_found_out_weeks_later_fades_too() {
    let stats = Stats::default();
    stats.measure(1.0, after(30 * DAY));
    assert!(stats.cost(1, after(30 * DAY + 70)) < 0.001, "nothing was given to it for all that time");
}

#[test]
fn an_unknown_backend_gets_one_request_at_a_time_until_it_answers() {
    let (unknown, well) = (Stats::default(), known(0.01));
    assert!(unknown.cost(1, after(0)) < well.cost(1, after(0)));
    unknown.begun.store(1, Ordering::Relaxed);
    assert!(unknown.cost(1, after(0)) > well.cost(1, after(0)));
}

#[test]
fn cost_grows_with_what_is_in_flight_for_the_weight() {
    let (light, heavy) = (known(0.1), known(0.1));
    for stats in [&light, &heavy] {
        stats.begun.store(4, Ordering::Relaxed);
    }
    let now = after(0);
    assert!((light.cost(1, now) - 0.5).abs() < 1e-6);
    assert!((heavy.cost(4, now) - 0.2).abs() < 1e-6);
}

#[test]
fn failing_fast_is_not_being_fast() {
    let stats = Arc::new(Stats::default());
    InFlight::enter(&stats, None).failed();
    assert!(seconds(&stats) >= PENALTY);
    let mut refused = InFlight::enter(&stats, None);
    refused.answered(503);
    refused.failed();
    drop(refused);
    assert_eq!((stats.requests(), stats.failures(), stats.in_flight()), (2, 2, 0));
}

#[test]
fn an_answer_that_breaks_off_keeps_its_latency_and_counts_as_failed() {
    let stats = Arc::new(Stats::default());
    let mut request = InFlight::enter(&stats, None);
    request.answered(200);
    request.failed();
    assert!(seconds(&stats) < PENALTY);
    assert_eq!(stats.failures(), 1);
}

fn judged(stats: &Arc<Stats>, rules: serde_json::Value) -> Arc<Outliers> {
    let pool = [stats.clone(), Arc::default(), Arc::default()].map(|stats| ("b".into(), stats));
    let rules = serde_json::from_value(rules).unwrap();
    Arc::new(Outliers::new(Some(rules), None, "u".into(), pool.into()))
}

#[test]
fn answers_that_break_off_are_failures_in_a_row() {
    let stats = Arc::new(Stats::default());
    let outliers = judged(&stats, serde_json::json!({"consecutive_failures": 3}));
    let request = || {
        let judge = Judge { outliers: outliers.clone(), at: 0, trial: None };
        let mut request = InFlight::enter(&stats, Some(judge));
        request.answered(200);
        request
    };
    for _ in 0..2 {
        request().failed();
    }
    drop(request());
    for _ in 0..2 {
        request().failed();
    }
    assert!(!stats.standing.is_out(), "a whole answer came between");
    request().failed();
    assert!(stats.standing.is_out());
}

#[test]
fn heads_of_answers_that_go_on_count_for_a_backend() {
    let stats = Arc::new(Stats::default());
    let outliers = judged(&stats, serde_json::json!({"consecutive_failures": 2}));
    let request = || InFlight::enter(&stats, Some(Judge { outliers: outliers.clone(), at: 0, trial: None }));
    let mut streams = Vec::new();
    for _ in 0..5 {
        request().failed();
        let mut stream = request();
        stream.answered(200);
        streams.push(stream);
    }
    assert!(!stats.standing.is_out(), "no two in a row");
    outliers.unreachable(0, false, Instant::now());
    drop(streams);
    assert!(stats.standing.is_out(), "what began before says nothing of now");
}

#[test]
fn one_that_is_out_comes_back_with_the_head_of_an_answer() {
    let stats = Arc::new(Stats::default());
    let outliers = judged(&stats, serde_json::json!({}));
    outliers.unreachable(0, false, Instant::now());
    let judge = Judge { outliers, at: 0, trial: Some(Instant::now()) };
    let mut request = InFlight::enter(&stats, Some(judge));
    request.answered(200);
    assert!(stats.standing.is_in());
}

#[test]
fn a_request_given_up_early_says_nothing_and_one_given_up_late_says_slow() {
    let stats = Arc::new(known(0.5));
    drop(InFlight::enter(&stats, None));
    assert_eq!(seconds(&stats), 0.5);
    stats.measure_at_least(3.0, after(1));
    assert_eq!(seconds(&stats), 3.0);
    let unknown = Stats::default();
    unknown.measure_at_least(0.9, after(0));
    assert_eq!(unknown.latency(), None);
}

#[test]
fn a_closed_old_connection_says_nothing_of_the_backend() {
    let stats = Arc::new(Stats::default());
    InFlight::enter(&stats, None).unseen();
    assert_eq!((stats.latency(), stats.failures()), (None, 0));
}

#[test]
fn ticks_may_wrap_and_may_come_from_a_moment_ahead() {
    assert_eq!(Tick(500).since(Tick(u32::MAX - 499)), 1.0);
    assert_eq!(Tick(500).since(Tick(501)), 0.0);
    assert_eq!(after(40 * DAY).since(after(10 * DAY)), 2_592_000.0, "thirty days");
}

#[test]
fn counts_are_right_after_many_threads_at_once() {
    let stats = Arc::new(Stats::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..5000 {
                    let mut request = InFlight::enter(&stats, None);
                    if n % 2 == 0 { request.answered(200) } else { request.failed() }
                }
            });
        }
    });
    assert_eq!((stats.in_flight(), stats.requests(), stats.failures()), (0, 20_000, 10_000));
}
