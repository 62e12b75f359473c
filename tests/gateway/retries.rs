//! What is tried again, by both ways to forward: on the connections themselves, and through Pingora's proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::harness::{Answer, Broken, Gateway, Origin, Wire, noise, refusing_each, soon};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// The second route is Pingora's.
const WAYS: [&str; 2] = ["direct.test", "proxied.test"];

/// A gateway before these backends, with keys of the upstream and of both routes.
async fn before(backends: &[SocketAddr], upstream: &str, route: &str) -> Gateway {
    let list: Vec<_> = backends.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
    let document = format!(
        "upstreams: [{{name: origin, backends: [{}], {upstream}}}]
routes:
  - {{name: direct, match: {{hosts: [direct.test]}}, upstream: origin{route}}}
  - {{name: proxied, match: {{hosts: [proxied.test]}}, upstream: origin, direct: false{route}}}
",
        list.join(", ")
    );
    Gateway::counting_all(&document).await
}

/// One request on a connection of its own; `line` is method and path.
async fn ask(gateway: &Gateway, way: &str, line: &str, fields: &str, body: &[u8]) -> Result<Answer, Broken> {
    let mut client = Wire::connect(gateway.address()).await;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    client.send(format!("{line} HTTP/1.1\r\nHost: {way}\r\n{fields}{length}\r\n")).await;
    client.send(body).await;
    soon("an answer", client.answer()).await
}

async fn status(gateway: &Gateway, way: &str, line: &str) -> u16 {
    ask(gateway, way, line, "", b"").await.expect("an answer").status
}

/// Reads the head and the body of a request, and resets the connection.
async fn resetting() -> Origin {
    Origin::new(|mut wire| async move {
        if let Ok(head) = wire.head().await {
            let _ = wire.body(&head).await;
        }
        wire.reset();
    })
    .await
}

/// The answer to every request, and what was asked and with which body.
async fn recording(answer: &'static [u8]) -> (Origin, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (told, bodies) = mpsc::unbounded_channel();
    let origin = Origin::new(move |mut wire| {
        let told = told.clone();
        async move {
            while let Ok(head) = wire.head().await {
                let Ok(body) = wire.body(&head).await else { return };
                let _ = told.send(body);
                wire.send(answer).await;
            }
        }
    });
    (origin.await, bodies)
}

#[tokio::test]
async fn a_reset_before_the_answer_is_tried_at_another_backend_where_that_is_written() {
    for (written, get, post) in [
        ("retries: {conditions: [connect]}", 502, 502),
        ("retries: {conditions: [connect, reset]}", 200, 502),
        ("retries: {conditions: [connect, reset], methods: [POST]}", 502, 200),
        ("retries: {conditions: [connect, reset], methods: all}", 200, 200),
        ("retries: {max: 0, conditions: [connect, reset], methods: all}", 502, 502),
    ] {
        for way in WAYS {
            let (bad, good) = (resetting().await, Origin::answering(OK).await);
            let gateway = before(&[bad.address, good.address], written, "").await;
            let mut seen = [0; 2];
            for (at, method) in ["GET", "POST"].into_iter().enumerate() {
                // One of both begins at the backend that resets.
                let answers = [
                    status(&gateway, way, &format!("{method} /1")).await,
                    status(&gateway, way, &format!("{method} /2")).await,
                ];
                seen[at] = answers.into_iter().max().unwrap_or_default();
                assert!(answers.contains(&200), "{written} {way} {answers:?}");
            }
            assert_eq!(seen, [get, post], "{written} {way}");
        }
    }
}

#[tokio::test]
async fn the_log_says_of_every_attempt_what_the_metrics_count() {
    for way in WAYS {
        let gateway = before(&refusing_each::<2>().await, "retries: {max: 1}", "").await;
        let answer = ask(&gateway, way, "GET /", "", b"").await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-unreachable"), "{way}");
        let line = gateway.log_line(|line| line["attempts"] == 2).await;
        let tries = line["tries"].as_str().expect("text").split(", ");
        let ends: Vec<_> = tries.filter_map(|attempt| attempt.split(' ').nth(1)).collect();
        assert_eq!(ends, ["connect_failed"; 2], "{way}: {line}");
        let failed = "tollhouse_upstream_attempts_total{upstream=\"origin\",outcome=\"connect_failed\"}";
        assert_eq!(gateway.number(failed).await, 2, "{way}");
    }
}

#[tokio::test]
async fn an_answer_is_dropped_for_another_one_only_while_there_is_another_attempt() {
    for way in WAYS {
        let (busy, good) = (Origin::answering(BUSY).await, Origin::answering(OK).await);
        let gateway = before(&[busy.address, good.address], "retries: {conditions: [500-599]}", "").await;
        for n in 0..4 {
            assert_eq!(status(&gateway, way, &format!("GET /{n}")).await, 200, "{way}");
        }
        let line = gateway.log_line(|line| line["attempts"] == 2).await;
        let tries = line["tries"].as_str().expect("text");
        assert_eq!(tries, format!("{} 503, {} 200", busy.address, good.address), "{way}");

        let gateway = before(&[busy.address], "retries: {max: 2, conditions: [503]}", "").await;
        let answer = ask(&gateway, way, "GET /", "", b"").await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (503, "busy"), "{way}");
        assert_eq!(gateway.log_line(|line| line["path"] == "/").await["attempts"], 3, "{way}");
        let answer = ask(&gateway, way, "POST /p", "", b"x").await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (503, "busy"), "{way}");
        assert_eq!(gateway.log_line(|line| line["path"] == "/p").await["attempts"], 1, "{way}");
    }
}

#[tokio::test]
async fn a_post_with_an_idempotency_key_is_repeated_with_its_body_where_that_is_written() {
    for way in WAYS {
        for (written, repeated) in [("idempotency_key: true, ", true), ("", false)] {
            let (busy, _) = recording(BUSY).await;
            let (good, mut bodies) = recording(OK).await;
            let rules = format!("retries: {{{written}conditions: [503]}}");
            let gateway = before(&[busy.address, good.address], &rules, "").await;
            let key = "Idempotency-Key: \"8e03978e\"\r\n";
            let body = noise(30_000);
            let answer = ask(&gateway, way, "POST /1", key, &body).await.expect("an answer");
            if repeated {
                assert_eq!(answer.status, 200, "{way}");
                assert!(bodies.recv().await.expect("a body") == body, "{way}");
            } else {
                let other = ask(&gateway, way, "POST /2", key, &body).await.expect("an answer");
                assert!([answer.status, other.status].contains(&503), "{way}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_is_repeated_up_to_the_cap_and_not_beyond() {
    for way in WAYS {
        for (size, expected) in [(60 * 1024, 200), (200 * 1024, 502)] {
            let bad = resetting().await;
            let (good, mut bodies) = recording(OK).await;
            let gateway = before(&[bad.address, good.address], "retries: {conditions: [reset]}", "").await;
            let body = noise(size);
            let first = ask(&gateway, way, "PUT /1", "", &body).await.expect("an answer").status;
            let second = ask(&gateway, way, "PUT /2", "", &body).await.expect("an answer").status;
            assert_eq!(first.max(second), expected, "{way} {size}");
            while let Ok(got) = bodies.try_recv() {
                assert!(got == body, "{way} {size}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_a_filter_collected_is_repeated_whatever_its_size() {
    let bad = resetting().await;
    let (good, mut bodies) = recording(OK).await;
    let route = ", retries: {conditions: [reset]}";
    let document = format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}, {{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, upstream: origin, filters: [buffer: {{}}]{route}}}]",
        bad.address, good.address
    );
    let gateway = Gateway::start(&document).await;
    let body = noise(500_000);
    for n in 0..2 {
        let answer = ask(&gateway, "a", &format!("PUT /{n}"), "", &body).await.expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(bodies.recv().await.expect("a body") == body);
    }
}

#[tokio::test]
async fn a_post_whose_kept_connection_was_closed_before_it_was_sent_is_sent_again() {
    for way in WAYS {
        let (told, mut closed) = mpsc::unbounded_channel();
        let origin = Origin::new(move |mut wire| {
            let told = told.clone();
            async move {
                let Ok(head) = wire.head().await else { return };
                let _ = wire.body(&head).await;
                wire.send(OK).await;
                drop(wire);
                let _ = told.send(());
            }
        })
        .await;
        let gateway = before(&[origin.address], "retries: {max: 0}", "").await;
        for n in 0..20 {
            let answer = ask(&gateway, way, &format!("POST /{n}"), "", b"body").await.expect("an answer");
            assert_eq!(answer.status, 200, "{way} {n}");
            soon("the close", closed.recv()).await;
        }
    }
}

#[tokio::test]
async fn a_post_that_was_sent_over_a_kept_connection_is_not_sent_again() {
    // The backend takes a further request of a connection, and dies of it once: it may have acted on it.
    for way in WAYS {
        let dies = Arc::new(AtomicBool::new(false));
        let told = dies.clone();
        let origin = Origin::new(move |mut wire| {
            let dies = told.clone();
            async move {
                let mut kept = false;
                while let Ok(head) = wire.head().await {
                    let _ = wire.body(&head).await;
                    if std::mem::replace(&mut kept, true) && dies.swap(false, Ordering::SeqCst) {
                        return;
                    }
                    wire.send(OK).await;
                }
            }
        })
        .await;
        let gateway = before(&[origin.address], "retries: {max: 3}", "").await;
        for (method, expected) in [("POST", 502), ("PUT", 200)] {
            dies.store(true, Ordering::SeqCst);
            // A connection is kept a moment after its answer went out, so that some requests have new ones.
            soon("a kept connection", async {
                while dies.load(Ordering::SeqCst) {
                    let status = status(&gateway, way, &format!("{method} /")).await;
                    let died = !dies.load(Ordering::SeqCst);
                    assert_eq!(status, if died { expected } else { 200 }, "{way} {method}");
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_kept_connection_that_ends_within_its_answer_was_not_old() {
    for way in WAYS {
        for begun in ["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 200 OK\r\nX-Half: "] {
            let dies = Arc::new(AtomicBool::new(true));
            let told = dies.clone();
            let origin = Origin::new(move |mut wire| {
                let dies = told.clone();
                async move {
                    let mut kept = false;
                    while wire.head().await.is_ok() {
                        if std::mem::replace(&mut kept, true) && dies.swap(false, Ordering::SeqCst) {
                            wire.send(begun).await;
                            return;
                        }
                        wire.send(OK).await;
                    }
                }
            })
            .await;
            let gateway = before(&[origin.address], "retries: {max: 3}", "").await;
            // A connection is kept a moment after its answer went out, so that some requests have new ones.
            soon("a kept connection", async {
                while dies.load(Ordering::SeqCst) {
                    let status = status(&gateway, way, "GET /").await;
                    let died = !dies.load(Ordering::SeqCst);
                    assert_eq!(status, if died { 502 } else { 200 }, "{way} {begun:?}");
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_gives_way_to_another_and_is_named_if_it_was_the_last() {
    for way in WAYS {
        let (silent, good) = (Origin::silent().await.0, Origin::answering(OK).await);
        let rules = "timeouts: {read: 30s}, retries: {conditions: [reset], per_try: 150ms, backoff: 0s..0s}";
        let gateway = before(&[silent.address, good.address], rules, "").await;
        for n in 0..4 {
            assert_eq!(status(&gateway, way, &format!("GET /{n}")).await, 200, "{way}");
        }
        let line = gateway.log_line(|line| line["attempts"] == 2).await;
        let tries = format!("{} timed_out, {} 200", silent.address, good.address);
        assert_eq!(line["tries"], tries.as_str(), "{way}");

        let gateway = before(&[silent.address], rules, ", retries: {max: 0}").await;
        let begun = Instant::now();
        let answer = ask(&gateway, way, "GET /last", "", b"").await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"), "{way}");
        assert_eq!(answer.json()["detail"], "per-try timeout", "{way}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{way}");
        let line = gateway.log_line(|line| line["path"] == "/last").await;
        assert_eq!((&line["status"], &line["error"]), (&504.into(), &"upstream-timeout".into()), "{way}");
    }
}

#[tokio::test]
async fn the_time_of_an_attempt_does_not_end_an_answer_that_has_begun() {
    for way in WAYS {
        let origin = Origin::new(|mut wire| async move {
            while wire.head().await.is_ok() {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await;
                tokio::time::sleep(Duration::from_millis(500)).await;
                wire.send("lf").await;
            }
        })
        .await;
        let rules = "retries: {conditions: [reset], per_try: 200ms}";
        let gateway = before(&[origin.address], rules, "").await;
        let answer = ask(&gateway, way, "GET /", "", b"").await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (200, "half"), "{way}");
    }
}

#[tokio::test]
async fn the_total_timeout_holds_over_all_attempts() {
    for way in WAYS {
        let silent = Origin::silent().await.0;
        let rules = "timeouts: {total: 400ms}, retries: {max: 10, conditions: [reset], per_try: 100ms}";
        let gateway = before(&[silent.address], rules, "").await;
        let answer = ask(&gateway, way, "GET /", "", b"").await.expect("an answer");
        assert_eq!(answer.status, 504, "{way}");
        let line = gateway.log_line(|line| line["path"] == "/").await;
        let attempts = line["attempts"].as_u64().unwrap_or_default();
        assert!((2..=4).contains(&attempts), "{way} {line}");
        assert!(line["elapsed_ms"].as_f64().is_some_and(|elapsed| elapsed < 3000.0), "{way} {line}");
    }
}

#[tokio::test]
async fn no_backend_is_blamed_for_the_little_that_another_left_of_the_total() {
    for way in WAYS {
        // Who is asked first takes most of the time for a failure, and the other one more than there is left.
        let asked = Arc::new(AtomicUsize::new(0));
        let slow = || {
            let asked = asked.clone();
            Origin::new(move |mut wire| {
                let asked = asked.clone();
                async move {
                    while wire.head().await.is_ok() {
                        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                            tokio::time::sleep(Duration::from_millis(800)).await;
                            wire.send(BUSY).await;
                        }
                    }
                }
            })
        };
        let (one, other) = (slow().await, slow().await);
        let rules = "timeouts: {total: 1s}, retries: {conditions: [503], backoff: 0s..0s}, \
                     circuit_breaker: {min_requests: 1, error_ratio: 1%, open: 1h}, \
                     health: {outlier: {consecutive_failures: 1, max_ejected: 100%}}";
        let gateway = before(&[one.address, other.address], rules, "").await;
        let answer = ask(&gateway, way, "GET /", "", b"").await.expect("an answer");
        assert_eq!((answer.status, answer.problem().as_str()), (504, "upstream-timeout"), "{way}");
        let mut ejected = 0;
        for backend in [one.address, other.address] {
            let labels = format!("{{upstream=\"origin\",backend=\"{backend}\"}}");
            ejected += gateway.number(&format!("tollhouse_upstream_backend_ejected{labels}")).await;
        }
        assert_eq!(ejected, 1, "{way}");
        // Both together had all of the time.
        gateway.says("a circuit breaker opened").await;
    }
}

#[tokio::test]
async fn an_answer_with_a_status_of_grpc_is_dropped_for_another_one() {
    // gRPC over HTTP/2, Responses (Trailers-Only): the status is in the head; 14 is UNAVAILABLE.
    const UNAVAILABLE: &[u8] = b"HTTP/1.1 200 OK\r\nGrpc-Status: 14\r\nContent-Length: 0\r\n\r\n";
    for way in WAYS {
        let (bad, good) = (Origin::answering(UNAVAILABLE).await, Origin::answering(OK).await);
        let rules = "retries: {conditions: [\"grpc:unavailable\"], methods: all}";
        let gateway = before(&[bad.address, good.address], rules, "").await;
        for n in 0..4 {
            let answer = ask(&gateway, way, &format!("POST /{n}"), "", b"call").await.expect("an answer");
            assert_eq!((answer.field("grpc-status"), answer.text().as_str()), (None, "ok"), "{way}");
        }
        let line = gateway.log_line(|line| line["attempts"] == 2).await;
        assert_eq!(line["tries"], format!("{} grpc 14, {} 200", bad.address, good.address), "{way}");
    }
}

#[tokio::test]
async fn a_total_outage_gets_no_more_retries_than_the_budget() {
    for way in WAYS {
        let rules = "retries: {max: 3, budget: 20%, backoff: 0s..1ms}";
        let gateway = before(&refusing_each::<2>().await, rules, "").await;
        for n in 0..100 {
            assert_eq!(status(&gateway, way, &format!("GET /{n}")).await, 502, "{way}");
        }
        let retries =
            gateway.number("tollhouse_upstream_retries_total{upstream=\"origin\",reason=\"connect\"}").await;
        // A window of ten seconds may end in between.
        assert!((10..=40).contains(&retries), "{way}: {retries}");
        let refused =
            gateway.number("tollhouse_upstream_retries_out_of_budget_total{upstream=\"origin\"}").await;
        assert!(refused >= 60, "{way}: {refused}");
    }
}

#[tokio::test]
async fn backends_are_told_how_much_time_is_left() {
    for way in WAYS {
        let origin = Origin::echo().await;
        let rules = "timeouts: {total: 20s, remaining_header: x-time-left-ms}";
        let gateway = before(&[origin.address], rules, "").await;
        let forged = "X-Time-Left-Ms: 99999999\r\n";
        assert_eq!(ask(&gateway, way, "GET /", forged, b"").await.expect("an answer").status, 200, "{way}");
        let left = origin.head().all("x-time-left-ms").join(",").parse::<u64>().expect("one number");
        assert!((1..=20_000).contains(&left), "{way} {left}");

        let origin = Origin::echo().await;
        let rules = format!("{rules}, retries: {{per_try: 5s}}");
        let gateway = before(&[origin.address], &rules, ", timeouts: {total: none}").await;
        assert_eq!(status(&gateway, way, "GET /").await, 200, "{way}");
        let left = origin.head().all("x-time-left-ms").join(",").parse::<u64>().expect("one number");
        assert!((1..=5000).contains(&left), "{way} {left}");
    }
}

#[tokio::test]
async fn a_route_has_its_own_rules_within_the_upstreams_budget() {
    for way in WAYS {
        let (busy, good) = (Origin::answering(BUSY).await, Origin::answering(OK).await);
        let rules = "retries: {conditions: [503]}";
        let gateway = before(&[busy.address, good.address], rules, ", retries: {max: 0}").await;
        let answers = [status(&gateway, way, "GET /1").await, status(&gateway, way, "GET /2").await];
        assert!(answers.contains(&503), "{way} {answers:?}");
        let gateway = before(
            &[busy.address, good.address],
            "retries: {max: 0}",
            ", retries: {max: 1, conditions: [503]}",
        )
        .await;
        let answers = [status(&gateway, way, "GET /1").await, status(&gateway, way, "GET /2").await];
        assert_eq!(answers, [200, 200], "{way}");
    }
}

#[tokio::test]
async fn what_follows_a_failed_attempt_on_a_connection_is_not_mixed_up() {
    // The first backend answers half of a head; nothing of that reaches the client, and its connection goes on.
    for way in WAYS {
        let bad = Origin::dying_after(b"HTTP/1.1 200 OK\r\nX-Half: ").await;
        let good = Origin::answering(OK).await;
        let gateway = before(&[bad.address, good.address], "retries: {conditions: [reset]}", "").await;
        let mut client = Wire::connect(gateway.address()).await;
        for n in 0..6 {
            client.send(format!("GET /{n} HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
            let answer = soon("an answer", client.answer()).await.expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{way}");
            assert_eq!(answer.field("x-half"), None, "{way}");
        }
    }
}
