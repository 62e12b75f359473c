//! Which of several origins gets a request.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::{Gateway, Origin, Wire, get, request, soon};

/// Answers with its name, after this long.
async fn named(name: &'static str, delay: Duration) -> Origin {
    Origin::new(move |mut wire| async move {
        while wire.head().await.is_ok() {
            tokio::time::sleep(delay).await;
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len())).await;
        }
    })
    .await
}

/// Ends an origin, and waits until nobody can connect to it.
async fn gone(origin: Origin) {
    let address = origin.address;
    drop(origin);
    soon("the end of the origin", async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn three() -> [Origin; 3] {
    let at_once = Duration::ZERO;
    [named("a", at_once).await, named("b", at_once).await, named("c", at_once).await]
}

/// A document that sends everything to these origins; `/generation` tells it from the others.
fn document(balance: &str, origins: &[(&Origin, u16)], generation: usize) -> String {
    let backend =
        |(origin, weight): &(&Origin, u16)| format!("{{address: \"{}\", weight: {weight}}}", origin.address);
    let backends: Vec<String> = origins.iter().map(backend).collect();
    format!(
        "upstreams: [{{name: u, balance: {{{balance}}}, backends: [{}]}}]\nroutes:\n\
         - {{name: generation, match: {{paths: [/generation]}}, respond: {{body: \"{generation}\"}}}}\n\
         - {{name: all, upstream: u}}\n",
        backends.join(", ")
    )
}

async fn reload(gateway: &Gateway, text: &str, generation: usize) {
    std::fs::write(gateway.file(), gateway.text(text)).expect("write");
    let generation = generation.to_string();
    soon("the new document", async {
        while get(gateway.address(), "/generation").await.text() != generation {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Which origin each of many users reaches.
async fn homes(gateway: &Gateway) -> BTreeMap<usize, String> {
    let mut homes = BTreeMap::new();
    let mut wire = Wire::connect(gateway.address()).await;
    for user in 0..60 {
        wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: user-{user}\r\n\r\n")).await;
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        homes.insert(user, answer.text());
    }
    homes
}

/// How often each origin answers.
async fn counts(gateway: &Gateway, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut wire = Wire::connect(gateway.address()).await;
    for _ in 0..requests {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        *counts.entry(wire.answer().await.expect("an answer").text()).or_default() += 1;
    }
    counts
}

const BY_USER: &str = "algorithm: consistent_hash, hash_on: \"header:x-user\"";

#[tokio::test]
async fn a_user_stays_with_an_origin_and_moves_only_when_it_is_lost() {
    let [a, b, c] = three().await;
    let gateway = Gateway::start(&document(BY_USER, &[(&a, 1), (&b, 1), (&c, 1)], 1)).await;
    let before = homes(&gateway).await;
    assert_eq!(homes(&gateway).await, before);
    assert!(["a", "b", "c"].iter().all(|name| before.values().any(|home| home == name)), "{before:?}");
    gone(c).await;
    for (user, home) in homes(&gateway).await {
        assert!(home != "c" && (before[&user] == "c" || before[&user] == home), "{user}");
    }
}

#[tokio::test]
async fn requests_without_the_key_reach_every_origin() {
    let [a, b, c] = three().await;
    let gateway = Gateway::start(&document(BY_USER, &[(&a, 1), (&b, 1), (&c, 1)], 1)).await;
    // That one of three is missed by 100 random requests has a probability of 1 in 10^17.
    assert_eq!(counts(&gateway, 100).await.len(), 3);
}

#[tokio::test]
async fn an_origin_that_drains_loses_its_users_and_no_other_moves() {
    let [a, b, c] = three().await;
    let gateway = Gateway::start(&document(BY_USER, &[(&a, 1), (&b, 1), (&c, 1)], 1)).await;
    let before = homes(&gateway).await;
    reload(&gateway, &document(BY_USER, &[(&a, 1), (&b, 1), (&c, 0)], 2), 2).await;
    for (user, home) in homes(&gateway).await {
        assert!(home != "c" && (before[&user] == "c" || before[&user] == home), "{user}");
    }
    reload(&gateway, &document(BY_USER, &[(&a, 1), (&b, 1), (&c, 1)], 3), 3).await;
    assert_eq!(homes(&gateway).await, before, "back with its weight, back with its users");
}

#[tokio::test]
async fn weights_are_exact_over_a_round_and_change_with_the_document() {
    let [a, b, c] = three().await;
    let gateway = Gateway::start(&document("", &[(&a, 5), (&b, 1), (&c, 1)], 1)).await;
    let expected = |counts: [usize; 3]| ["a", "b", "c"].map(str::to_owned).into_iter().zip(counts).collect();
    assert_eq!(counts(&gateway, 28).await, expected([20, 4, 4]));
    reload(&gateway, &document("", &[(&a, 1), (&b, 1), (&c, 2)], 2), 2).await;
    assert_eq!(counts(&gateway, 28).await, expected([7, 7, 14]));
}

/// Lets eight clients ask without a pause, and gives how many of 300 answers the slow origin made.
async fn slow_share(algorithm: &str) -> usize {
    let slow = named("slow", Duration::from_millis(300)).await;
    let [a, b, _] = three().await;
    let balance = format!("algorithm: {algorithm}");
    let gateway = Gateway::start(&document(&balance, &[(&slow, 1), (&a, 1), (&b, 1)], 1)).await;
    let answers = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (answers, address) = (answers.clone(), gateway.address());
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                while answers.lock().len() < 300 {
                    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                    let answer = wire.answer().await.expect("an answer");
                    answers.lock().push(answer.text());
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("a client");
    }
    let answers = answers.lock();
    for name in ["a", "b"] {
        let share = answers.iter().filter(|answer| *answer == name).count();
        assert!(share > 60, "{algorithm}: {name} got {share} of {}", answers.len());
    }
    answers.iter().filter(|answer| *answer == "slow").count()
}

#[tokio::test]
async fn a_slow_origin_is_spared_by_what_it_has_in_flight() {
    for algorithm in ["least_requests", "p2c"] {
        let share = slow_share(algorithm).await;
        assert!(share < 50, "{algorithm}: {share} of 300, where 100 are a fair part");
    }
}

#[tokio::test]
async fn a_slow_origin_is_spared_by_how_long_it_takes() {
    let share = slow_share("ewma").await;
    assert!(share < 30, "{share} of 300, where 100 are a fair part");
}

#[tokio::test]
async fn an_origin_that_refuses_connections_costs_ewma_no_request() {
    let [a, b, c] = three().await;
    let gateway = Gateway::start(&document("algorithm: ewma", &[(&a, 1), (&b, 1), (&c, 1)], 1)).await;
    counts(&gateway, 10).await;
    gone(c).await;
    let counts = counts(&gateway, 100).await;
    assert_eq!(counts.values().sum::<usize>(), 100);
    assert!(counts.keys().all(|name| name == "a" || name == "b"), "{counts:?}");
}

#[tokio::test]
async fn what_is_in_flight_counts_after_a_reload_that_changes_weights() {
    let (busy, mut seen) = Origin::handing_over().await;
    let idle = named("idle", Duration::ZERO).await;
    let least = "algorithm: least_requests";
    let gateway = Gateway::start(&document(least, &[(&busy, 1), (&idle, 0)], 1)).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = Wire::connect(gateway.address()).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let wire = soon("the request", seen.recv()).await.expect("a request");
        held.push((client, wire));
    }
    reload(&gateway, &document(least, &[(&idle, 1), (&busy, 2)], 2), 2).await;
    assert_eq!(counts(&gateway, 20).await, BTreeMap::from([("idle".to_owned(), 20)]));
    reload(&gateway, &document(least, &[(&idle, 1), (&busy, 0)], 3), 3).await;
    for (mut client, mut wire) in held {
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        assert_eq!(
            client.answer().await.expect("an answer").text(),
            "done",
            "what was there ends as it began"
        );
    }
    assert_eq!(counts(&gateway, 20).await, BTreeMap::from([("idle".to_owned(), 20)]));
}

#[tokio::test]
async fn when_all_backends_drain_there_is_none() {
    let [a, b, _] = three().await;
    for algorithm in ["round_robin", "least_requests", "ewma"] {
        let balance = format!("algorithm: {algorithm}");
        let gateway = Gateway::start(&document(&balance, &[(&a, 0), (&b, 0)], 1)).await;
        let answer = get(gateway.address(), "/").await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "no-backend"), "{algorithm}");
    }
    assert_eq!(a.connections() + b.connections(), 0);
}

#[tokio::test]
async fn a_retry_never_goes_to_a_backend_that_drains() {
    let [a, b, c] = three().await;
    let gateway = Gateway::start(&document("", &[(&a, 1), (&b, 0), (&c, 1)], 1)).await;
    gone(c).await;
    for _ in 0..10 {
        assert_eq!(request(gateway.address(), "GET /", "").await.text(), "a");
    }
    assert_eq!(b.connections(), 0);
}
