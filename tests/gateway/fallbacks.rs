//! Where requests go while the breaker of their upstream is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Answer, Gateway, Origin, Wire, refusing, soon, until};

/// The second way is Pingora's.
const WAYS: [&str; 2] = ["direct.test", "proxied.test"];
const OPENS_AT_ONCE: &str = "min_requests: 1, error_ratio: 1%, open: 1h";

async fn ask(gateway: &Gateway, way: &str, line: &str) -> Answer {
    let mut client = Wire::connect(gateway.address()).await;
    client.send(format!("{line} HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
    soon("an answer", client.answer()).await.expect("an answer")
}

/// The first answer that is no failure, and how many failures there were: that a breaker opens is known a moment after
/// the answer that opened it.
async fn once_open(gateway: &Gateway, way: &str, line: &str) -> (Answer, usize) {
    let mut failures = 0;
    soon("an open breaker", async {
        loop {
            let answer = ask(gateway, way, line).await;
            if answer.status != 502 {
                return (answer, failures);
            }
            failures += 1;
        }
    })
    .await
}

/// The number of good answers that came through a route from an upstream.
fn requests(route: &str, upstream: &str) -> String {
    let labels = format!("route=\"{route}\",upstream=\"{upstream}\",code_class=\"2xx\"");
    format!("tollhouse_requests_total{{listener=\"plain\",{labels}}}")
}

/// Answers 500 after so many answers; says in its answers how many it has given.
pub(crate) async fn failing_after(good: usize, fields: &'static str) -> Origin {
    let asked = Arc::new(AtomicUsize::new(0));
    Origin::new(move |mut wire| {
        let asked = asked.clone();
        async move {
            while wire.head().await.is_ok() {
                let nth = asked.fetch_add(1, Ordering::SeqCst) + 1;
                let status = if nth <= good { "200 OK" } else { "500 Oh" };
                wire.send(format!("HTTP/1.1 {status}\r\n{fields}Content-Length: 1\r\n\r\n{nth}")).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_open_breaker_hands_requests_to_another_route_as_their_filters_left_them() {
    let (bad, other) = (refusing().await, Origin::echo().await);
    let gateway = Gateway::administered(&format!(
        "upstreams:
  - {{name: main, backends: [{{address: \"{bad}\"}}], retries: {{max: 0}}, circuit_breaker: {{{OPENS_AT_ONCE}, fallback: {{route: standby}}}}}}
  - {{name: other, backends: [{{address: \"{}\"}}]}}
routes:
  - name: direct
    match: {{hosts: [direct.test]}}
    filters: [headers: {{request: {{set: {{x-filtered: by-direct}}}}}}]
    upstream: main
  - name: proxied
    match: {{hosts: [proxied.test]}}
    filters: [headers: {{request: {{set: {{x-filtered: by-proxied}}}}}}]
    direct: false
    upstream: main
  - {{name: standby, match: {{hosts: [standby.test]}}, filters: [respond: {{status: 403}}], upstream: other}}
",
        other.address
    ))
    .await;
    for (way, filtered) in WAYS.iter().zip(["by-direct", "by-proxied"]) {
        let (first, _) = once_open(&gateway, way, "GET /x").await;
        assert_eq!(first.status, 200, "{way}: {}", first.text());
        let seen = first.text().to_lowercase();
        assert!(seen.contains("get /x ") && seen.contains(filtered), "{way}: {seen}");
        let route = way.trim_end_matches(".test");
        let line = gateway.log_line(|line| line["route"] == route && line["status"] == 200).await;
        assert_eq!(line["upstream"], "other", "{line}");
        assert_eq!(gateway.number(&requests(route, "other")).await, 1, "{way}");
    }
}

#[tokio::test]
async fn where_there_is_no_room_for_what_fallbacks_took_that_is_found_once() {
    let (bad, other) = (refusing().await, Origin::echo().await);
    let mut gateway = Gateway::administered(&format!(
        "upstreams:
  - {{name: main, backends: [{{address: \"{bad}\"}}], retries: {{max: 0}}, circuit_breaker: {{{OPENS_AT_ONCE}, fallback: {{route: standby}}}}}}
  - {{name: other, backends: [{{address: \"{}\"}}]}}
routes:
  - {{name: direct, match: {{hosts: [direct.test]}}, upstream: main}}
  - {{name: standby, match: {{hosts: [standby.test]}}, upstream: other}}
",
        other.address
    ))
    .await;
    let text = std::fs::read_to_string(gateway.file()).expect("the document");
    let few = text.replace("observability: {", "observability: {metrics: {max_series: 1}, ");
    std::fs::write(gateway.file(), few).expect("write");
    gateway.signal("TERM");
    gateway.ended().await;
    let gateway = gateway.again().await;
    let (answer, failures) = once_open(&gateway, "direct.test", "GET /").await;
    assert_eq!(answer.status, 200);
    let beyond = async |answers: usize| {
        // The numbers of a request come before its line.
        until("the lines", || (gateway.log().len() == failures + answers).then_some(())).await;
        gateway.number("tollhouse_metrics_overflow_total").await
    };
    let first = beyond(1).await;
    for _ in 0..5 {
        assert_eq!(ask(&gateway, "direct.test", "GET /").await.status, 200);
    }
    assert_eq!(beyond(6).await, first);
}

#[tokio::test]
async fn an_open_breaker_hands_requests_on_from_fallback_to_fallback_and_to_an_answer() {
    let bad = refusing().await;
    let breaker = |fallback| format!("circuit_breaker: {{{OPENS_AT_ONCE}, fallback: {{route: {fallback}}}}}");
    let gateway = Gateway::start(&format!(
        "upstreams:
  - {{name: a, backends: [{{address: \"{bad}\"}}], retries: {{max: 0}}, {}}}
  - {{name: b, backends: [{{address: \"{bad}\"}}], retries: {{max: 0}}, {}}}
routes:
  - {{name: one, match: {{hosts: [direct.test]}}, upstream: a}}
  - {{name: two, match: {{hosts: [two.test]}}, upstream: b}}
  - {{name: sorry, match: {{hosts: [sorry.test]}}, respond: {{status: 200, body: sorry}}}}
",
        breaker("two"),
        breaker("sorry")
    ))
    .await;
    let (answer, failures) = once_open(&gateway, "direct.test", "GET /").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "sorry"));
    assert!(failures >= 2, "{failures}");
}

#[tokio::test]
async fn an_open_breaker_has_the_cache_answer_with_what_it_has_however_old() {
    for (fields, expected) in [
        ("Cache-Control: max-age=0\r\nETag: \"1\"\r\n", (200, "1")),
        // What the origin forbade is not done.
        ("Cache-Control: max-age=0, must-revalidate\r\nETag: \"1\"\r\n", (503, "")),
    ] {
        let origin = failing_after(1, fields).await;
        let gateway = Gateway::administered(&format!(
            "upstreams: [{{name: o, backends: [{{address: \"{}\"}}], circuit_breaker: {{{OPENS_AT_ONCE}, fallback: {{stale: true}}}}}}]
routes:
  - {{name: cached, match: {{hosts: [direct.test]}}, upstream: o, filters: [cache: {{}}]}}
  - {{name: other, match: {{hosts: [other.test]}}, upstream: o}}",
            origin.address
        ))
        .await;
        assert_eq!(ask(&gateway, "direct.test", "GET /").await.text(), "1");
        assert_eq!(ask(&gateway, "other.test", "GET /").await.status, 500, "which opens the breaker");
        // It may be counted a moment after it is answered.
        let open = async { while ask(&gateway, "other.test", "GET /").await.status != 503 {} };
        soon("an open breaker", open).await;
        let answer = ask(&gateway, "direct.test", "GET /").await;
        assert_eq!(answer.status, expected.0, "{fields}");
        if expected.0 == 200 {
            assert_eq!(answer.text(), expected.1, "{fields}");
        } else {
            assert_eq!(answer.problem(), "circuit-open", "{fields}");
        }
        // Without a cache, or with nothing in it, there is nothing to serve.
        assert_eq!(ask(&gateway, "other.test", "GET /").await.status, 503);
        let missed = ask(&gateway, "direct.test", "GET /new").await;
        assert_eq!((missed.status, missed.problem().as_str()), (503, "circuit-open"));
    }
}

#[tokio::test]
async fn what_a_fallback_answers_is_neither_stored_nor_takes_what_is() {
    let lasting = "Cache-Control: max-age=3600\r\n";
    for other in [lasting, "Cache-Control: no-store\r\n"] {
        let origin = failing_after(1, "Cache-Control: max-age=0\r\nETag: \"1\"\r\n").await;
        let standby = failing_after(usize::MAX, other).await;
        let gateway = Gateway::administered(&format!(
            "upstreams:
  - {{name: o, backends: [{{address: \"{}\"}}], circuit_breaker: {{{OPENS_AT_ONCE}, fallback: {{route: standby}}}}}}
  - {{name: s, backends: [{{address: \"{}\"}}]}}
routes:
  - {{name: cached, match: {{hosts: [direct.test]}}, upstream: o, filters: [cache: {{}}]}}
  - {{name: other, match: {{hosts: [other.test]}}, upstream: o}}
  - {{name: standby, match: {{hosts: [standby.test]}}, upstream: s}}",
            origin.address, standby.address
        ))
        .await;
        assert_eq!(ask(&gateway, "direct.test", "GET /").await.status, 200);
        assert_eq!(ask(&gateway, "other.test", "GET /").await.status, 500, "which opens the breaker");
        let look = async || {
            gateway.ask_admin("GET /api/cache/lookup?url=http://direct.test/", "").await.json()["stored"]
                .clone()
        };
        let stored = look().await;
        for nth in 1..=2 {
            let answer = ask(&gateway, "direct.test", "GET /").await;
            assert_eq!((answer.status, answer.text()), (200, nth.to_string()), "the standby's, each time");
            let status = answer.field("cache-status").unwrap_or_default().to_owned();
            assert!(status.ends_with("detail=diverted"), "{status}");
        }
        assert_eq!(stored.as_array().map(Vec::len), Some(1));
        assert_eq!(look().await.as_array().map(Vec::len), Some(1), "it stays: {other}");
        until("both lines of the standby's", || {
            (gateway.log().iter().filter(|line| line["upstream"] == "s").count() == 2).then_some(())
        })
        .await;
        for (upstream, answers) in [("o", 1), ("s", 2)] {
            assert_eq!(gateway.number(&requests("cached", upstream)).await, answers, "{upstream}");
        }
    }
}

#[tokio::test]
async fn what_opens_the_breaker_by_a_stored_url_has_that_served_all_the_same() {
    let origin = failing_after(1, "Cache-Control: max-age=0\r\nETag: \"1\"\r\n").await;
    let rules = "min_requests: 4, error_ratio: 50%, open: 1h, fallback: {stale: true}";
    let gateway = Gateway::start(&format!(
        "upstreams: [{{name: o, backends: [{{address: \"{}\"}}], circuit_breaker: {{{rules}}}}}]
routes: [{{name: cached, upstream: o, filters: [cache: {{}}]}}]",
        origin.address
    ))
    .await;
    for status in [200, 500, 500, 500] {
        assert_eq!(ask(&gateway, "direct.test", "GET /").await.status, status);
    }
    gateway.says("a circuit breaker opened").await;
    for _ in 0..5 {
        let answer = ask(&gateway, "direct.test", "GET /").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "1"));
    }
}
