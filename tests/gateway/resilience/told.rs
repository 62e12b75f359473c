//! What breakers and places are told of requests that waited, whose answers broke off, or came before they were whole.

use std::time::Duration;

use futures_util::future::join_all;

use super::{OK, WAYS, ask, before, document, shown};
use crate::harness::{Gateway, Origin, Wire, soon};

/// Hedges, where there is another backend, and hardly ever makes a further attempt.
const HEDGED: &str = "hedge: {after: 10s}, ";

#[tokio::test]
async fn a_breaker_hears_of_an_upstream_that_hangs_though_requests_wait_for_a_place_most_of_their_time() {
    for (way, hedge) in [(WAYS[0], ""), (WAYS[1], ""), (WAYS[0], HEDGED)] {
        let (silent, mut events) = Origin::silent().await;
        let rules = format!(
            "{hedge}timeouts: {{total: 4500ms}}, concurrency: {{in_flight: 1, queue: 10, max_wait: 10s}}, \
             circuit_breaker: {{min_requests: 2, error_ratio: 100%, open: 1h}}"
        );
        let text = document(&[silent.address, silent.address], &rules, "");
        // It holds the place for two thirds of the time that the next one has.
        let first = "{name: first, match: {hosts: [first.test]}, upstream: origin, timeouts: {total: 3s}}";
        let gateway = Gateway::administered(&format!("{text}  - {first}\n")).await;
        let mut holder = Wire::connect(gateway.address()).await;
        holder.send("GET / HTTP/1.1\r\nHost: first.test\r\n\r\n").await;
        assert_eq!(soon("the request", events.recv()).await, Some("asked"));
        assert_eq!(ask(&gateway, way, "GET /").await.status, 504, "{way} {hedge}");
        let line = gateway.says("a circuit breaker opened").await;
        assert!(line.contains("2 of 2 requests failed"), "{way} {hedge}: {line}");
    }
}

#[tokio::test]
async fn a_breaker_hears_of_an_upstream_that_hangs_though_requests_wait_for_their_turn_most_of_their_time() {
    for way in WAYS {
        let (silent, _events) = Origin::silent().await;
        let rules =
            "timeouts: {total: 4500ms}, circuit_breaker: {min_requests: 2, error_ratio: 100%, open: 1h}";
        let limit =
            ", filters: [rate_limit: {per: ip, limit: 20/min, burst: 1, over: {delay: 5s, queue: 5}}]";
        let gateway = before(&[silent.address], rules, limit).await;
        // The second one waits for three seconds, and has the rest for its answer.
        let both = tokio::join!(ask(&gateway, way, "GET /"), ask(&gateway, way, "GET /"));
        assert_eq!((both.0.status, both.1.status), (504, 504), "{way}");
        let line = gateway.says("a circuit breaker opened").await;
        assert!(line.contains("2 of 2 requests failed"), "{way}: {line}");
    }
}

#[tokio::test]
async fn no_breaker_hears_of_requests_that_clients_had_wait_for_a_place_and_sent_late() {
    for way in WAYS {
        let origin = Origin::new(|mut wire| async move {
            while let Ok(head) = wire.head().await {
                if wire.body(&head).await.is_err() {
                    return;
                }
                if head.target() == "/late" {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                wire.send(OK).await;
            }
        })
        .await;
        let rules = "timeouts: {total: 2s}, concurrency: {in_flight: 1, queue: 10, max_wait: 10s}, \
                     circuit_breaker: {min_requests: 2, error_ratio: 1%, open: 1h}";
        let gateway = before(&[origin.address], rules, "").await;
        let begun = async |path: &str| {
            let mut client = Wire::connect(gateway.address()).await;
            let head = format!("POST {path} HTTP/1.1\r\nHost: {way}\r\nContent-Length: 2\r\n\r\n");
            client.send(format!("{head}a")).await;
            client
        };
        let mut holder = begun("/held").await;
        soon("a holder", async { while shown(&gateway).await["concurrency"]["in_flight"] != 1 {} }).await;
        let mut late = begun("/late").await;
        soon("one that waits", async { while shown(&gateway).await["concurrency"]["waiting"] != 1 {} }).await;
        // More than half of the time of the one that waits.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        holder.send("b").await;
        assert_eq!(soon("an answer", holder.answer()).await.expect("an answer").status, 200, "{way}");
        // More than half of the rest.
        tokio::time::sleep(Duration::from_millis(500)).await;
        late.send("b").await;
        let _ = soon("an answer or an end", late.answer()).await;
        let line = gateway.log_line(|line| line["path"] == "/late").await;
        assert_eq!(line["attempts"], 1, "{way}: {line}");
        assert!(line["throttled_ms"].as_f64().is_some_and(|waited| waited > 1000.0), "{way}: {line}");
        assert_eq!(ask(&gateway, way, "GET /").await.status, 200, "{way}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_behind_a_cache_or_a_hedge_is_a_failure_of_its_upstream() {
    const CUT: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        // To be stored.
        b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 10\r\n\r\nhalf",
    ];
    let cached = ", filters: [{cache: {}}]";
    for (answer, hedge, route) in [(CUT[0], "", cached), (CUT[1], "", cached), (CUT[0], HEDGED, "")] {
        for way in WAYS {
            let origin = Origin::dying_after(answer).await;
            let rules = format!("{hedge}circuit_breaker: {{min_requests: 2, error_ratio: 100%, open: 1h}}");
            let gateway = before(&[origin.address, origin.address], &rules, route).await;
            for _ in 0..2 {
                let mut client = Wire::connect(gateway.address()).await;
                client.send(format!("GET / HTTP/1.1\r\nHost: {way}\r\n\r\n")).await;
                let _ = soon("an answer or an end", client.answer()).await;
            }
            let line = gateway.says("a circuit breaker opened").await;
            assert!(line.contains("2 of 2 requests failed"), "{way} {hedge}{route}: {line}");
        }
    }
}

#[tokio::test]
async fn answers_that_come_before_the_request_is_whole_say_nothing_of_how_quick_an_upstream_is() {
    for way in WAYS {
        let origin = Origin::new(|mut wire| async move {
            while let Ok(head) = wire.head().await {
                if head.target() != "/early" {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                wire.send(OK).await;
            }
        })
        .await;
        let rules = "concurrency: {in_flight: 50, queue: 50, max_wait: 10s, adaptive: {min: 1, window: 1ms}}";
        let gateway = before(&[origin.address], rules, "").await;
        // More than end a window.
        for _ in 0..20 {
            let mut client = Wire::connect(gateway.address()).await;
            let head = format!("POST /early HTTP/1.1\r\nHost: {way}\r\nContent-Length: 10\r\n\r\n");
            client.send(format!("{head}half")).await;
            let answer = soon("an answer", client.answer()).await.expect("an answer");
            assert_eq!(answer.status, 200, "{way}");
        }
        // Were there answers in no time, each window would halve the limit and add its root: it would stay at 4.
        let limit = "tollhouse_upstream_concurrency_limit{upstream=\"origin\"}";
        tokio::time::timeout(Duration::from_secs(30), async {
            while gateway.number(limit).await < 8 {
                for answer in join_all((0..16).map(|_| ask(&gateway, way, "GET /"))).await {
                    assert_eq!(answer.status, 200, "{way}");
                }
            }
        })
        .await
        .expect("more places");
    }
}
