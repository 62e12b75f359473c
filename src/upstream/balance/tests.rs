use super::super::backend::Endpoint;
use super::super::resilience::Outcome;
use super::*;

const ALL: [Algorithm; 6] = [
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::LeastRequests,
    Algorithm::P2c,
    Algorithm::Ewma,
    Algorithm::ConsistentHash,
];

const PICKS: usize = 1_000_000;

/// Backends with these weights; those marked `false` have no address.
fn mixed(algorithm: Algorithm, backends: &[(u16, bool)]) -> Balancer {
    fastrand::seed(7);
    let backend = |(at, (weight, open)): (usize, &(u16, bool))| {
        let address = if *open { format!("127.0.0.1:{}", 1000 + at) } else { format!("b{at}.invalid:80") };
        (Arc::new(Backend::new(&address.parse().unwrap(), false)), *weight)
    };
    Balancer::new(algorithm, backends.iter().enumerate().map(backend).collect())
}

fn balancer(algorithm: Algorithm, weights: &[u16]) -> Balancer {
    mixed(algorithm, &weights.iter().map(|weight| (*weight, true)).collect::<Vec<_>>())
}

fn pick(balancer: &Balancer, number: usize) -> Picked {
    balancer.pick(&number.to_be_bytes(), &Tried::default()).unwrap()
}

/// Each algorithm on a thread of its own.
fn each_at_once(test: impl Fn(Algorithm) + Sync) {
    let test = &test;
    std::thread::scope(|scope| {
        for algorithm in ALL {
            scope.spawn(move || test(algorithm));
        }
    });
}

/// How often each backend is picked, one request after the other, each with a key of its own.
fn shares(balancer: &Balancer, picks: usize) -> Vec<usize> {
    let mut counts = vec![0; balancer.backends().len()];
    (0..picks).for_each(|number| counts[pick(balancer, number).index] += 1);
    counts
}

/// Whether counts are what weights make likely: chi-square within six standard deviations of its mean.
fn assert_likely(counts: &[usize], weights: &[u16], what: &str) {
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let picks = counts.iter().sum::<usize>() as f64;
    let mut chi_square = 0.0;
    for (count, weight) in counts.iter().zip(weights) {
        let expected = picks * f64::from(*weight) / sum;
        if *weight == 0 {
            assert_eq!(*count, 0, "{what}: {counts:?}");
        } else {
            chi_square += (*count as f64 - expected).powi(2) / expected;
        }
    }
    let freedom = weights.iter().filter(|weight| **weight > 0).count().max(2) as f64 - 1.0;
    assert!(chi_square < freedom + 6.0 * (2.0 * freedom).sqrt() + 10.0, "{what}: {chi_square} {counts:?}");
}

#[test]
fn a_million_requests_are_shared_by_weight() {
    each_at_once(|algorithm| {
        let weights = [5, 1, 0, 1, 3];
        let counts = shares(&balancer(algorithm, &weights), PICKS);
        assert_likely(&counts, &weights, &format!("{algorithm:?}"));
    });
}

#[test]
fn requests_are_shared_by_weight_among_the_backends_that_are_left() {
    each_at_once(|algorithm| {
        let balancer = mixed(algorithm, &[(5, false), (1, true), (2, false), (1, true), (3, true)]);
        let counts = shares(&balancer, PICKS / 2);
        assert_likely(&counts, &[0, 1, 0, 1, 3], &format!("{algorithm:?}"));
    });
}

#[test]
fn round_robin_shares_are_exact_with_and_without_an_outage() {
    let well = shares(&balancer(Algorithm::RoundRobin, &[900, 100, 0]), 1000);
    assert_eq!(well, [900, 100, 0]);
    let outage = mixed(Algorithm::RoundRobin, &[(1, true), (1, false), (1, true)]);
    let order: Vec<_> = (0..10).map(|number| pick(&outage, number).index).collect();
    assert!(order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
}

#[test]
fn the_last_one_of_a_thousand_is_found_at_once_by_every_request() {
    let mut backends = vec![(1, false); 1000];
    backends[617] = (1, true);
    for algorithm in ALL {
        let balancer = mixed(algorithm, &backends);
        assert!((0..100).all(|number| pick(&balancer, number).index == 617), "{algorithm:?}");
    }
    backends[0].0 = 1000;
    for algorithm in ALL {
        let balancer = mixed(algorithm, &backends);
        assert!((0..100).all(|number| pick(&balancer, number).index == 617), "{algorithm:?}");
    }
}

#[test]
fn without_any_backend_that_may_get_requests_there_is_none() {
    for algorithm in ALL {
        for backends in
            [&[(0, true)][..], &[(0, true), (0, true)], &[(1, false)], &[(0, true), (1, false), (1, false)]]
        {
            let balancer = mixed(algorithm, backends);
            assert!(balancer.pick(b"key", &Tried::default()).is_none(), "{algorithm:?} {backends:?}");
        }
    }
}

#[test]
fn tried_backends_are_passed_over_while_another_is_left_and_drained_ones_always() {
    for algorithm in ALL {
        let balancer = balancer(algorithm, &[1000, 1, 0, 1]);
        let mut tried = Tried::default();
        for _ in 0..3 {
            let picked = balancer.pick(b"key", &tried).unwrap();
            assert!(!tried.contains(picked.index));
            tried.insert(picked.index);
        }
        assert!(!tried.contains(2));
        assert_ne!(balancer.pick(b"key", &tried).unwrap().index, 2, "then any again");
    }
}

#[test]
fn a_retry_passes_over_backends_that_are_out_and_comes_back_if_no_other_is_left() {
    for algorithm in ALL {
        let balancer = mixed(algorithm, &[(1, true), (1000, false), (1, true)]);
        let mut tried = Tried::default();
        tried.insert(0);
        assert_eq!(balancer.pick(b"key", &tried).unwrap().index, 2, "{algorithm:?}");
        tried.insert(2);
        assert_ne!(balancer.pick(b"key", &tried).unwrap().index, 1, "{algorithm:?}");
    }
}

/// Four backends, of which half can be ejected and the first is.
fn one_ejected_of_four(algorithm: Algorithm) -> Balancer {
    let rules = serde_json::from_value(serde_json::json!({"consecutive_failures": 1})).unwrap();
    let balancer = balancer(algorithm, &[1, 1, 1, 1]).judged_by(Some(rules), None, &Arc::from("u"));
    balancer.outliers.told(0, Outcome::Failed, false, Instant::now());
    balancer
}

#[test]
fn of_too_few_that_are_left_who_cannot_be_connected_to_is_the_last() {
    for algorithm in ALL {
        let balancer = one_ejected_of_four(algorithm);
        let now = Instant::now();
        balancer.outliers.told(1, Outcome::Failed, false, now);
        balancer.outliers.unreachable(2, false, now);
        let counts = shares(&balancer, 1000);
        assert!(counts.iter().enumerate().all(|(at, count)| (*count > 0) == (at != 2)), "{counts:?}");
        balancer.outliers.unreachable(3, false, now);
        let counts = shares(&balancer, 1000);
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2..] == [0, 0], "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn who_cannot_be_connected_to_does_not_bring_back_who_is_ejected() {
    for algorithm in ALL {
        let balancer = one_ejected_of_four(algorithm);
        balancer.outliers.unreachable(1, false, Instant::now());
        balancer.outliers.unreachable(2, false, Instant::now());
        let counts = shares(&balancer, 1000);
        assert_eq!(counts, [0, 0, 0, 1000], "{algorithm:?}: one of two can be used, which is half of them");
    }
}

#[test]
fn a_trial_waits_until_probes_find_the_backend_well() {
    for algorithm in ALL {
        let balancer = balancer(algorithm, &[1, 1]);
        let backend = balancer.backends()[0].clone();
        balancer.outliers.unreachable(0, false, Instant::now());
        let later = Instant::now() + Duration::from_secs(2);
        assert_eq!(backend.stats.standing.turn(later, None, 0.0), Turn::Trial);
        backend.stats.standing.give_back(later, Instant::now());
        let endpoints = backend.endpoints();
        backend.set_endpoints(Vec::new());
        assert_eq!(shares(&balancer, 100), [0, 100], "{algorithm:?}: no probe finds it well");
        backend.set_endpoints(endpoints);
        assert!(shares(&balancer, 100)[0] > 0, "{algorithm:?}: the next one tries it");
    }
}

#[test]
fn one_that_is_to_be_probed_first_gets_only_what_nobody_else_can_take() {
    let awaits = |balancer: &Balancer, at: usize| balancer.backends()[at].stats.standing.await_probe();
    for algorithm in ALL {
        let alike = balancer(algorithm, &[1, 1, 1]);
        awaits(&alike, 0);
        assert_eq!(shares(&alike, 100)[0], 0, "{algorithm:?}");
        assert!(alike.pick_this(&alike.backends()[0], &Tried::default()).is_none());
        alike.backends()[1..].iter().for_each(|backend| backend.stats.standing.warm(Instant::now()));
        assert_eq!(shares(&alike, 100)[0], 0, "{algorithm:?}: those that warm up are there");
        let mut tried = Tried::default();
        (1..3).for_each(|at| tried.insert(at));
        assert_eq!(alike.pick(b"key", &tried).unwrap().index, 0, "{algorithm:?}: the others were tried");
        alike.backends()[1..].iter().for_each(|backend| backend.set_endpoints(Vec::new()));
        assert_eq!(shares(&alike, 100), [100, 0, 0], "{algorithm:?}: there is no other");
        let groups = [(0, false), (1, false), (0, false)];
        let grouped = balancer(algorithm, &[1, 1, 1]).grouped(&groups, Percent::from_whole(70));
        [0, 2].into_iter().for_each(|at| awaits(&grouped, at));
        assert_eq!(shares(&grouped, 100), [0, 100, 0], "{algorithm:?}: not even before another group");
        awaits(&grouped, 1);
        assert_eq!(shares(&grouped, 100)[1], 0, "{algorithm:?}: among their like, the first group");
    }
}

#[test]
fn a_group_loses_no_requests_by_those_of_it_that_are_to_be_probed_first() {
    // Two that are there, eight that join them, and one to fail over to.
    let groups: Vec<Place> = (0..11).map(|at| (u8::from(at == 10), false)).collect();
    for algorithm in ALL {
        let grouped = balancer(algorithm, &[1; 11]).grouped(&groups, Percent::from_whole(70));
        grouped.backends()[2..10].iter().for_each(|backend| backend.stats.standing.await_probe());
        let counts = shares(&grouped, 1000);
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2..] == [0; 9], "{algorithm:?}: {counts:?}");
    }
}

#[test]
fn a_backend_none_of_whose_addresses_can_be_connected_to_is_passed_over() {
    for algorithm in ALL {
        let balancer = balancer(algorithm, &[1, 1]);
        let found = |last: u8| Endpoint { address: ([192, 0, 2, last], 80).into(), health: None };
        balancer.backends()[0].set_endpoints(vec![found(1), found(2)]);
        for address in [found(1).address, found(2).address] {
            assert!(!balancer.backends()[0].stats.standing.is_out(), "{algorithm:?}: one is left");
            let mut picked = balancer.take(0, None).unwrap();
            picked.address = address;
            picked.backend.connect_failed(address);
            balancer.unreachable(&mut picked);
        }
        assert_eq!(shares(&balancer, 100), [0, 100], "{algorithm:?}");
    }
}

#[test]
fn a_backend_that_comes_back_gets_its_share_again() {
    for algorithm in ALL {
        let balancer = mixed(algorithm, &[(1, true), (1, false)]);
        assert_eq!(shares(&balancer, 100), [100, 0]);
        let found = Endpoint { address: "192.0.2.1:80".parse().unwrap(), health: None };
        balancer.backends()[1].set_endpoints(vec![found]);
        assert_likely(&shares(&balancer, 10_000), &[1, 1], &format!("{algorithm:?}"));
    }
}

#[test]
fn a_pick_counts_as_in_flight_until_it_is_dropped() {
    let balancer = balancer(Algorithm::RoundRobin, &[1]);
    let (first, second) = (pick(&balancer, 0), pick(&balancer, 1));
    assert_eq!(balancer.backends()[0].in_flight(), 2);
    drop((first, second));
    assert_eq!(balancer.backends()[0].in_flight(), 0);
}

#[test]
fn requests_in_flight_are_kept_in_the_proportion_of_the_weights() {
    for (algorithm, slack) in [(Algorithm::LeastRequests, 1), (Algorithm::P2c, 60)] {
        let balancer = balancer(algorithm, &[2, 1, 1]);
        let held: Vec<_> = (0..1000).map(|number| pick(&balancer, number)).collect();
        for (backend, expected) in balancer.backends().iter().zip([500, 250, 250]) {
            assert!(backend.in_flight().abs_diff(expected) <= slack, "{algorithm:?} {}", backend.in_flight());
        }
        drop(held);
    }
}

/// Twelve requests at a time for 20,000 moments; backend 0 takes fifty moments for each, the others one.
fn with_a_slow_one(balancer: &Balancer) -> usize {
    let (mut held, mut slow): (Vec<(usize, Picked)>, usize) = (Vec::new(), 0);
    for moment in 0..20_000 {
        held.retain(|(end, _)| *end > moment);
        while held.len() < 12 {
            let picked = pick(balancer, moment * 16 + held.len());
            slow += usize::from(picked.index == 0);
            held.push((moment + if picked.index == 0 { 50 } else { 1 }, picked));
        }
    }
    slow
}

#[test]
fn a_slow_backend_gets_fewer_requests_by_what_it_has_in_flight() {
    let fair = with_a_slow_one(&balancer(Algorithm::RoundRobin, &[1, 1, 1, 1]));
    for algorithm in [Algorithm::LeastRequests, Algorithm::P2c] {
        let avoided = with_a_slow_one(&balancer(algorithm, &[1, 1, 1, 1]));
        // Three requests in hand all the time is its fair part of twelve.
        assert!(avoided <= 5 * 20_000 / 50, "{algorithm:?}: {avoided}");
        assert!(fair > 2 * avoided, "{fair} {avoided}");
    }
}

#[test]
fn a_backend_that_answers_slowly_is_avoided_by_ewma() {
    let balancer = balancer(Algorithm::Ewma, &[3, 1, 1]);
    for (backend, seconds) in balancer.backends().iter().zip([2.0, 0.001, 0.001]) {
        backend.stats.measure_for_tests(seconds);
    }
    let counts = shares(&balancer, 20_000);
    assert!(counts[0] < 200 && counts[1] > 5000 && counts[2] > 5000, "{counts:?}");
}

#[test]
fn a_backend_that_fails_fast_is_avoided_by_ewma() {
    for fail in
        [|picked: &mut Picked| picked.guard.failed(), |picked: &mut Picked| picked.guard.answered(503)]
    {
        let balancer = balancer(Algorithm::Ewma, &[1, 1, 1]);
        for number in 0..20_000 {
            let mut picked = pick(&balancer, number);
            if picked.index == 0 { fail(&mut picked) } else { picked.guard.answered(200) }
        }
        let counts: Vec<_> = balancer.backends().iter().map(|backend| backend.requests()).collect();
        assert!(counts[0] < 200 && counts[1] > 5000 && counts[2] > 5000, "{counts:?}");
        assert_eq!(balancer.backends()[0].failures(), counts[0]);
    }
}

#[test]
fn one_that_is_ejected_is_given_none_of_the_requests_that_it_is_chosen_for_by_ewma() {
    let balancer = one_ejected_of_four(Algorithm::Ewma);
    for (backend, seconds) in balancer.backends().iter().zip([1.0, 60.0, 60.0, 60.0]) {
        backend.stats.measure_for_tests(seconds);
    }
    let ejected = &balancer.backends()[0].stats;
    let later = Tick::of(Instant::now() + Duration::from_secs(3600));
    ejected.give(later);
    assert_eq!(shares(&balancer, 100)[0], 0);
    assert_eq!(ejected.cost(1, later), 1.0, "what it was given last was given then");
    drop(balancer.take(0, None));
    assert!(ejected.cost(1, later) < 0.001, "that is an hour ago now");
}

#[test]
fn another_one_is_there_while_one_that_can_be_asked_was_not_tried() {
    let some = mixed(Algorithm::RoundRobin, &[(1, true), (0, true), (1, false), (1, true)]);
    let mut tried = Tried::default();
    assert!(some.has_several() && some.has_another(&tried));
    tried.insert(0);
    assert!(some.has_another(&tried));
    tried.insert(3);
    assert!(!some.has_another(&tried), "of the others, one is drained and one has no address");
    assert!(!balancer(Algorithm::RoundRobin, &[1, 0]).has_several());
}

#[test]
fn a_key_goes_to_the_same_backend_each_time_and_requests_without_one_to_all() {
    let balancer = balancer(Algorithm::ConsistentHash, &[1, 1, 1]);
    let of = |key: &[u8]| balancer.pick(key, &Tried::default()).unwrap().index;
    assert!((0..1000_u32).all(|n| of(&n.to_be_bytes()) == of(&n.to_be_bytes())));
    let mut counts = [0; 3];
    (0..30_000).for_each(|_| counts[of(b"")] += 1);
    assert_likely(&counts, &[1, 1, 1], "without a key");
}

#[test]
fn the_keys_of_a_backend_that_is_out_go_to_others_and_all_other_keys_stay() {
    let well = balancer(Algorithm::ConsistentHash, &[1, 2, 3, 4]);
    let mut tried = Tried::default();
    tried.insert(2);
    let mut moved = [0; 4];
    for number in 0..100_000_usize {
        let (before, key) = (pick(&well, number).index, number.to_be_bytes());
        let after = well.pick(&key, &tried).unwrap().index;
        if before == 2 {
            moved[after] += 1;
        } else {
            assert_eq!(before, after);
        }
    }
    assert_likely(&moved, &[1, 2, 0, 4], "moved");
}

#[test]
fn threads_that_pick_at_once_leave_every_count_right() {
    for algorithm in ALL {
        let balancer = balancer(algorithm, &[3, 1, 1, 0]);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let balancer = &balancer;
                scope.spawn(move || {
                    let mut held = std::collections::VecDeque::new();
                    for number in 0..5000 {
                        held.push_back(pick(balancer, thread * 5000 + number));
                        if held.len() > 8 {
                            held.pop_front().unwrap().guard.answered(200);
                        }
                    }
                });
            }
        });
        let backends = balancer.backends();
        assert!(backends.iter().all(|backend| backend.in_flight() == 0), "{algorithm:?}");
        assert_eq!(backends.iter().map(|backend| backend.requests()).sum::<u64>(), 20_000, "{algorithm:?}");
        assert_eq!(backends[3].requests(), 0);
    }
}
