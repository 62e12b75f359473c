//! Backends that fail, as the gateway's users see it: breakers, ejection, places, and who is killed or frozen.

mod told;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Answer, Gateway, Origin, Wire, get, refusing, soon};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const WAYS: [&str; 2] = ["direct.test", "proxied.test"];

/// The second route is Pingora's.
fn document(backends: &[SocketAddr], upstream: &str, route: &str) -> String {
    let list: Vec<_> = backends.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
    format!(
        "upstreams: [{{name: origin, backends: [{}], {upstream}}}]
routes:
  - {{name: direct, match: {{hosts: [direct.test]}}, upstream: origin{route}}}
  - {{name: proxied, match: {{hosts: [proxied.test]}}, upstream: origin, direct: false{route}}}
",
        list.join(", ")
    )
}

async fn before(backends: &[SocketAddr], upstream: &str, route: &str) -> Gateway {
    Gateway::administered(&document(backends, upstream, route)).await
}

async fn ask(gateway: &Gateway, way: &str, line: &str) -> Answer {
    let mut client = Wire::connect(gateway.address()).await;
    client.send(format!("{line} HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
    soon("an answer", client.answer()).await.expect("an answer")
}

/// The upstream as the admin API shows it.
async fn shown(gateway: &Gateway) -> Value {
    gateway.ask_admin("GET /api/upstreams/origin", "").await.json()
}

/// Answers as it is told: 200 or 500.
async fn moody() -> (Origin, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (bad, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (mood, count) = (bad.clone(), asked.clone());
    let origin = Origin::new(move |mut wire| {
        let (mood, count) = (mood.clone(), count.clone());
        async move {
            while wire.head().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
                let bad = mood.load(Ordering::SeqCst);
                wire.send(if bad { b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno" } else { OK }).await;
            }
        }
    });
    (origin.await, bad, asked)
}

#[tokio::test]
async fn a_breaker_opens_refuses_tries_and_closes_and_says_so() {
    for way in WAYS {
        let (origin, bad, asked) = moody().await;
        let rules = "circuit_breaker: {min_requests: 4, error_ratio: 50%, open: 1s, half_open: 2}";
        let gateway = before(&[origin.address], rules, "").await;
        assert_eq!(ask(&gateway, way, "GET /").await.status, 200);
        assert_eq!(shown(&gateway).await["circuit_breaker"]["state"], "closed");
        bad.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            assert_eq!(ask(&gateway, way, "GET /").await.status, 500, "{way}");
        }
        let line = gateway.says("a circuit breaker opened").await;
        assert!(line.contains("3 of 4 requests failed within 10s") && line.contains(" WARN "), "{line}");
        let seen = asked.load(Ordering::SeqCst);
        let refused = ask(&gateway, way, "GET /refused").await;
        assert_eq!((refused.status, refused.problem().as_str()), (503, "circuit-open"), "{way}");
        assert_eq!(refused.field("retry-after"), Some("1"), "{way}");
        assert_eq!(asked.load(Ordering::SeqCst), seen, "nothing was sent");
        let breaker = shown(&gateway).await["circuit_breaker"].clone();
        assert_eq!(
            (&breaker["state"], &breaker["reason"]),
            (&"open".into(), &"3 of 4 requests failed within 10s".into())
        );
        assert!(breaker["since"].is_string());
        assert_eq!(gateway.number("tollhouse_upstream_breaker_state{upstream=\"origin\"}").await, 2);
        let line = gateway.log_line(|line| line["path"] == "/refused").await;
        assert_eq!((&line["error"], &line["attempts"]), (&"circuit-open".into(), &0.into()));

        // What is open stays open over a reload that changes something else.
        let more = format!(
            "{}\n  - {{name: more, match: {{hosts: [more.test]}}, upstream: origin}}",
            document(&[origin.address], rules, "")
        );
        gateway.rewrite_administered(&more);
        gateway.signal("HUP");
        soon("the reload", async {
            while gateway.said("generation=2") == 0 {
                tokio::task::yield_now().await
            }
        })
        .await;
        assert_eq!(shown(&gateway).await["circuit_breaker"]["state"], "open");

        bad.store(false, Ordering::SeqCst);
        soon("the end of a second", async { while ask(&gateway, way, "GET /").await.status == 503 {} }).await;
        soon("a closed breaker", async {
            while shown(&gateway).await["circuit_breaker"]["state"] != "closed" {
                ask(&gateway, way, "GET /").await;
            }
        })
        .await;
        gateway.says("a circuit breaker is half open").await;
        gateway.says("a circuit breaker closed").await;
    }
}

/// Answers 500 as it is told; what is good goes on until its client has enough.
async fn endless() -> (Origin, Arc<AtomicBool>) {
    let bad = Arc::new(AtomicBool::new(false));
    let mood = bad.clone();
    let origin = Origin::new(move |mut wire| {
        let mood = mood.clone();
        async move {
            while wire.head().await.is_ok() {
                let bad = mood.load(Ordering::SeqCst);
                let good = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nand so on";
                wire.send(if bad { "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno" } else { good }).await;
            }
        }
    });
    (origin.await, bad)
}

/// Clients whose answers have begun, so many of them; who is refused asks again.
async fn begun(gateway: &Gateway, way: &str, count: usize) -> Vec<Wire> {
    let mut clients = Vec::new();
    soon("answers", async {
        while clients.len() < count {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            if client.head().await.expect("a head").line.contains(" 200 ") {
                clients.push(client);
            }
        }
    })
    .await;
    clients
}

#[tokio::test]
async fn answers_that_do_not_end_count_with_their_heads() {
    for way in WAYS {
        let (origin, bad) = endless().await;
        let rules = "circuit_breaker: {min_requests: 4, error_ratio: 60%, open: 100ms, half_open: 3}";
        let gateway = before(&[origin.address], rules, "").await;
        let state = async || shown(&gateway).await["circuit_breaker"]["state"].clone();
        let streams = begun(&gateway, way, 3).await;
        bad.store(true, Ordering::SeqCst);
        for _ in 0..4 {
            assert_eq!(ask(&gateway, way, "GET /").await.status, 500, "{way}");
        }
        assert_eq!(state().await, "closed", "{way}: 4 of 7 failed");
        assert_eq!(ask(&gateway, way, "GET /").await.status, 500, "{way}");
        assert_eq!(state().await, "open", "{way}: 5 of 8 failed");
        bad.store(false, Ordering::SeqCst);
        let probes = begun(&gateway, way, 3).await;
        assert_eq!(state().await, "closed", "{way}: all probes are answered");
        drop((streams, probes));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure_of_its_upstream() {
    for way in WAYS {
        let origin = Origin::dying_after(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        let rules = "circuit_breaker: {min_requests: 2, error_ratio: 100%, open: 1h}";
        let gateway = before(&[origin.address], rules, "").await;
        for _ in 0..2 {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            assert!(soon("the end", client.answer()).await.is_err(), "{way}");
        }
        let line = gateway.says("a circuit breaker opened").await;
        assert!(line.contains("2 of 2 requests failed"), "{way}: {line}");
    }
}

#[tokio::test]
async fn an_open_breaker_may_answer_something_else() {
    let rules = "circuit_breaker: {min_requests: 1, error_ratio: 1%, open: 1h, \
                 fallback: {status: 203, headers: {content-type: application/json}, body: \"[]\"}}";
    for way in WAYS {
        let gateway = before(&[refusing().await], rules, "").await;
        assert_eq!(ask(&gateway, way, "GET /").await.status, 502, "{way}");
        let answer = ask(&gateway, way, "GET /").await;
        assert_eq!((answer.status, answer.text().as_str()), (203, "[]"), "{way}");
        assert_eq!(answer.field("content-type"), Some("application/json"), "{way}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_nobodys_failure() {
    for way in WAYS {
        let (origin, mut events) = Origin::silent().await;
        let rules = "circuit_breaker: {min_requests: 1, error_ratio: 1%}, health: {outlier: {consecutive_failures: 1}}";
        let gateway = before(&[origin.address, origin.address], rules, "").await;
        for _ in 0..3 {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            assert_eq!(soon("the request", events.recv()).await, Some("asked"));
            drop(client);
            assert_eq!(soon("the close", events.recv()).await, Some("closed"));
        }
        let upstream = shown(&gateway).await;
        assert_eq!(upstream["circuit_breaker"]["state"], "closed", "{way}");
        assert_eq!(upstream["backends"][0]["standing"]["state"], "in", "{way}");
    }
}

#[tokio::test]
async fn a_backend_that_fails_is_ejected_and_comes_back_by_one_request() {
    for way in WAYS {
        let (good, _, _) = moody().await;
        let (other, bad, asked) = moody().await;
        bad.store(true, Ordering::SeqCst);
        let rules = "health: {outlier: {consecutive_failures: 3, base_ejection: 1s}}";
        let gateway = before(&[good.address, other.address], rules, "").await;
        let mut failed = 0;
        for _ in 0..20 {
            failed += usize::from(ask(&gateway, way, "GET /").await.status == 500);
        }
        assert_eq!((failed, asked.load(Ordering::SeqCst)), (3, 3), "{way}");
        let line = gateway.says("a backend is ejected").await;
        assert!(line.contains("3 failures in a row") && line.contains(&other.address.to_string()), "{line}");
        let standing = shown(&gateway).await["backends"][1]["standing"].clone();
        assert_eq!(
            (&standing["state"], &standing["reason"]),
            (&"ejected".into(), &"3 failures in a row".into())
        );
        let labels = format!("{{upstream=\"origin\",backend=\"{}\"}}", other.address);
        assert_eq!(gateway.number(&format!("tollhouse_upstream_backend_ejected{labels}")).await, 1);
        assert_eq!(gateway.number(&format!("tollhouse_upstream_ejections_total{labels}")).await, 1);

        bad.store(false, Ordering::SeqCst);
        soon("its return", async {
            while shown(&gateway).await["backends"][1]["standing"]["state"] != "in" {
                assert_eq!(ask(&gateway, way, "GET /").await.status, 200, "{way}");
            }
        })
        .await;
        gateway.says("a backend is in use again").await;
    }
}

#[tokio::test]
async fn a_backend_that_cannot_be_connected_to_costs_few_attempts() {
    for way in WAYS {
        let (good, gone) = (Origin::answering(OK).await, refusing().await);
        let rules = "retries: {max: 1}, health: {outlier: {}}";
        let gateway = before(&[gone, good.address, good.address], rules, "").await;
        for _ in 0..100 {
            assert_eq!(ask(&gateway, way, "POST /").await.status, 200, "{way}");
        }
        let failed = gateway.number("tollhouse_upstream_connect_failures_total{upstream=\"origin\"}").await;
        assert!((1..=8).contains(&failed), "{way}: {failed}");
        gateway.says("a backend cannot be connected to").await;
        // It is down, and not ejected for what it did.
        for name in ["backend_ejected", "ejections_total"] {
            let series = format!("tollhouse_upstream_{name}{{upstream=\"origin\",backend=\"{gone}\"}}");
            assert_eq!(gateway.number(&series).await, 0, "{way} {name}");
        }
        assert_eq!(shown(&gateway).await["backends"][0]["standing"]["state"], "unreachable", "{way}");
    }
}

#[tokio::test]
async fn places_are_taken_in_turn_and_come_back_however_a_request_ends() {
    for way in WAYS {
        let (origin, mut taken) = Origin::handing_over().await;
        let rules = "concurrency: {in_flight: 1, queue: 1, max_wait: 30s}";
        let gateway = before(&[origin.address], rules, "").await;
        let client = async |path: &str| {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            client
        };
        let first = client("/1").await;
        let mut at_origin = soon("the first", taken.recv()).await.expect("a connection");
        at_origin.head().await.expect("a request");
        let mut second = client("/2").await;
        let waiting = "tollhouse_upstream_waiting{upstream=\"origin\"}";
        soon("one that waits", async { while gateway.number(waiting).await == 0 {} }).await;
        let third = ask(&gateway, way, "GET /3").await;
        assert_eq!((third.status, third.problem().as_str()), (503, "upstream-busy"), "{way}");
        assert!(third.field("retry-after").is_some(), "{way}");
        let places = shown(&gateway).await["concurrency"].clone();
        assert_eq!(places, serde_json::json!({"limit": 1, "in_flight": 1, "waiting": 1}));
        // The first client leaves without an answer: its place is the second one's.
        drop(first);
        let mut at_origin = soon("the second", taken.recv()).await.expect("a connection");
        assert!(at_origin.head().await.expect("a request").line.contains("/2"), "{way}");
        at_origin.send(OK).await;
        assert_eq!(second.answer().await.map(|answer| answer.status), Ok(200), "{way}");
        soon("a free place", async { while shown(&gateway).await["concurrency"]["in_flight"] != 0 {} }).await;
        let line = gateway.log_line(|line| line["path"] == "/2").await;
        assert!(line["throttled_ms"].as_f64().is_some_and(|waited| waited > 0.0), "{way} {line}");
    }
}

#[tokio::test]
async fn who_waits_too_long_is_refused_and_a_route_has_places_of_its_own() {
    for way in WAYS {
        let (origin, mut events) = Origin::silent().await;
        for (upstream, route, reason) in [
            ("concurrency: {in_flight: 1, queue: 5, max_wait: 50ms}", "", "max_wait"),
            ("host: preserve", ", concurrency: {in_flight: 1, queue: 5, max_wait: 50ms}", "route"),
        ] {
            let gateway = before(&[origin.address], upstream, route).await;
            let mut held = Wire::connect(gateway.address()).await;
            held.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            assert_eq!(soon("the request", events.recv()).await, Some("asked"));
            let late = ask(&gateway, way, "GET /").await;
            assert_eq!((late.status, late.problem().as_str()), (503, "upstream-busy"), "{way}");
            let refused =
                format!("tollhouse_upstream_refused_total{{upstream=\"origin\",reason=\"{reason}\"}}");
            assert_eq!(gateway.number(&refused).await, 1, "{way}");
            drop(held);
            assert_eq!(soon("the close", events.recv()).await, Some("closed"));
        }
    }
}

#[tokio::test]
async fn adaptive_places_begin_with_the_fewest_and_grow_with_quick_answers() {
    for way in WAYS {
        let origin = Origin::answering(OK).await;
        let rules = "concurrency: {in_flight: 50, queue: 5, adaptive: {min: 1, window: 1ms}}";
        let gateway = before(&[origin.address], rules, "").await;
        assert_eq!(shown(&gateway).await["concurrency"]["limit"], 1);
        let limit = "tollhouse_upstream_concurrency_limit{upstream=\"origin\"}";
        soon("more places", async {
            while gateway.number(limit).await < 2 {
                assert_eq!(ask(&gateway, way, "GET /").await.status, 200, "{way}");
            }
        })
        .await;
    }
}

/// A backend in a process of its own; at the same place again, if it was there before.
async fn backend(at: Option<SocketAddr>) -> Gateway {
    let address = at.map_or("127.0.0.1:0".to_owned(), |address| address.to_string());
    let listeners = format!("{{name: plain, address: \"{address}\"}}");
    let rest = "routes: [{name: all, respond: {status: 200, body: ok}}]";
    Gateway::within(TempDir::new().expect("a directory"), &listeners, rest).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_idempotent_request_fails_while_backends_are_killed_frozen_and_restarted() {
    let mut backends = [backend(None).await, backend(None).await, backend(None).await];
    let addresses = [0, 1, 2].map(|at| backends[at].address());
    let rules = "timeouts: {connect: 500ms, read: 500ms}, retries: {max: 2, conditions: [connect, reset, stale]}, \
                 health: {outlier: {consecutive_failures: 3, base_ejection: 1s}}";
    let gateway = Arc::new(before(&addresses, rules, "").await);
    let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..12)
        .map(|n| {
            let (gateway, served, stop) = (gateway.clone(), served.clone(), stop.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                let mut client = Wire::connect(gateway.address()).await;
                while !stop.load(Ordering::SeqCst) {
                    client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", WAYS[n % 2])).await;
                    match soon("an answer", client.answer()).await {
                        Ok(answer) if answer.status == 200 => drop(served.fetch_add(1, Ordering::SeqCst)),
                        other => {
                            failures.push(format!("{other:?}"));
                            client = Wire::connect(gateway.address()).await;
                        }
                    }
                }
                failures
            })
        })
        .collect();
    let more = async |count: usize| {
        let until = served.load(Ordering::SeqCst) + count;
        soon("requests", async {
            while served.load(Ordering::SeqCst) < until {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    more(120).await;
    for at in 0..3 {
        backends[at].signal("KILL");
        backends[at].ended().await;
        more(120).await;
        backends[at] = backend(Some(addresses[at])).await;
        more(120).await;
        backends[at].signal("STOP");
        more(120).await;
        backends[at].signal("CONT");
        more(120).await;
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        let failures = client.await.expect("a client");
        assert!(failures.is_empty(), "{failures:?}");
    }
    assert_eq!(get(gateway.address(), "/").await.status, 404, "it goes on");
}

/// Answers with its own name.
async fn named(name: &'static str) -> Origin {
    Origin::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len())).await
}

/// The names of those who answer so many requests, each once.
async fn who(gateway: &Gateway, way: &str, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(ask(gateway, way, "GET /").await.text());
    }
    names.sort();
    names.dedup();
    names
}

fn groups(backends: &[(SocketAddr, &str)], upstream: &str) -> String {
    let list: Vec<_> =
        backends.iter().map(|(address, more)| format!("{{address: \"{address}\", {more}}}")).collect();
    document(&[], upstream, "").replace("backends: []", &format!("backends: [{}]", list.join(", ")))
}

#[tokio::test]
async fn the_next_group_gets_requests_when_the_first_one_fails_and_a_zone_is_preferred() {
    for way in WAYS {
        let (first, spare, far) = (named("first").await, named("spare").await, named("far").await);
        let backends =
            [(far.address, "zone: b"), (first.address, "zone: a"), (spare.address, "priority: 1, zone: a")];
        let rules = "balance: {zone: a}, retries: {max: 2}";
        let gateway = Gateway::administered(&groups(&backends, rules)).await;
        assert_eq!(who(&gateway, way, 12).await, ["first"], "{way}");
        drop(first);
        assert_eq!(who(&gateway, way, 12).await, ["far"], "{way}");
        drop(far);
        assert_eq!(who(&gateway, way, 12).await, ["spare"], "{way}");
    }
}

#[tokio::test]
async fn a_client_stays_with_its_backend_by_a_cookie_as_long_as_that_is_there() {
    for way in WAYS {
        let (one, two) = (named("one").await, named("two").await);
        let rules = "balance: {sticky: {cookie: lb, secret: s3cret}}";
        let gateway = before(&[one.address, two.address], rules, "").await;
        let with = async |cookie: &str| {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\nCookie: a=b; {cookie}\r\n\r\n")).await;
            client.answer().await.expect("an answer")
        };
        let mut cookies = Vec::new();
        for _ in 0..2 {
            let answer = ask(&gateway, way, "GET /").await;
            let set = answer.field("set-cookie").expect("a cookie").to_owned();
            assert!(set.starts_with("lb=") && set.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{set}");
            cookies.push((set.split(';').next().expect("a cookie").to_owned(), answer.text()));
        }
        assert_ne!(cookies[0], cookies[1], "{way}");
        for (cookie, name) in &cookies {
            for _ in 0..4 {
                let answer = with(cookie).await;
                assert_eq!((&answer.text(), answer.field("set-cookie")), (name, None), "{way}");
            }
        }
        // A forged one is as none.
        let id = cookies[0].0.split('.').next().expect("an id").to_owned();
        assert!(with(&format!("{id}.00112233445566778899aabbccddeeff")).await.field("set-cookie").is_some());
        // Who has lost his backend gets another one, and stays with that.
        drop(one);
        let lost = cookies.iter().find(|(_, name)| name == "one").expect("of one").0.clone();
        let answer = with(&lost).await;
        assert_eq!(answer.text(), "two", "{way}");
        assert!(answer.field("set-cookie").is_some(), "{way}");
    }
}
