//! Clients that use the time up that there is for all of a request: who is to blame then.

use std::time::Duration;

use serde_json::Value;

use super::{REQUEST, WAYS, large, with_breaker};
use crate::harness::{Gateway, Origin, Wire, get, soon, until};

/// Answers what has no body, and of all else takes no more than the head.
async fn taking_no_body() -> Origin {
    Origin::new(|mut wire| async move {
        while let Ok(head) = wire.head().await {
            if head.field("content-length").is_some() {
                std::future::pending::<()>().await;
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await
}

/// Sends a byte of a body, and after a while more of it than buffers on the way hold, but not all.
async fn flooded(gateway: &Gateway, after: Duration) {
    let mut client = Wire::connect(gateway.address()).await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\na").await;
    tokio::time::sleep(after).await;
    // The answer comes when the time is over, whether all of this was taken or not.
    soon("its end", client.send(vec![b'a'; 40_000_000])).await;
    let _ = soon("an answer or an end", client.answer()).await;
}

#[tokio::test]
async fn no_backend_is_blamed_for_a_flood_just_before_the_total_is_over() {
    // Only the direct way has a write of so much under way when its time is over.
    for way in &WAYS[..3] {
        let origin = taking_no_body().await;
        let rules = ("timeouts: {total: 3s}, ", "error_ratio: 1%");
        let gateway = with_breaker(&origin, rules, way).await;
        let late = || flooded(&gateway, Duration::from_millis(2400));
        tokio::join!(late(), late(), late());
        assert_eq!(get(gateway.address(), "/").await.status, 200, "{way}");
    }
}

#[tokio::test]
async fn a_backend_that_takes_nothing_for_most_of_the_total_is_blamed() {
    let origin = taking_no_body().await;
    let rules = ("timeouts: {total: 6s}, ", "error_ratio: 1%");
    let gateway = with_breaker(&origin, rules, "").await;
    tokio::join!(flooded(&gateway, Duration::ZERO), flooded(&gateway, Duration::ZERO));
    gateway.says("a circuit breaker opened").await;
}

#[tokio::test]
async fn no_upstream_is_blamed_behind_a_cache_or_a_hedge_for_clients_that_read_slowly() {
    // The last byte does not come, so that the time is over for who reads all else.
    let mut cut = large();
    cut.truncate(cut.len() - 1);
    let origin = Origin::answering(cut).await;
    for way in ["filters: [{cache: {}}], ", "hedge: {after: 10s}, "] {
        let backend = format!("{{address: \"{}\"}}", origin.address);
        let gateway = Gateway::counting_all(&format!(
            "upstreams: [{{name: origin, backends: [{backend}, {backend}], timeouts: {{total: 3s}},\
             circuit_breaker: {{min_requests: 2, open: 1h, error_ratio: 1%}}}}]\n\
             routes: [{{name: all, {way}upstream: origin}}]\n"
        ))
        .await;
        let late = async |path: &str| {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            client.head().await.expect("a head");
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(soon("the end", client.exactly(64 << 20)).await.is_err(), "{way}");
        };
        tokio::join!(late("/one"), late("/other"));
        let mut client = Wire::connect(gateway.address()).await;
        client.send(REQUEST).await;
        let head = client.head().await.expect("a head");
        assert!(head.line.contains(" 200 "), "{way}: {head:?}");
    }
}

/// Takes longer for what has a body than there is left of the time: to the head of its answer, or from there to its end.
async fn taking_its_time() -> Origin {
    Origin::new(|mut wire| async move {
        while let Ok(head) = wire.head().await {
            if wire.body(&head).await.is_err() {
                return;
            }
            if head.target() == "/head" {
                tokio::time::sleep(Duration::from_millis(2500)).await;
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
            if head.target() == "/rest" {
                tokio::time::sleep(Duration::from_millis(2500)).await;
            }
            wire.send("cd").await;
        }
    })
    .await
}

#[tokio::test]
async fn neither_backends_nor_breakers_nor_ramps_are_told_of_what_slow_uploads_left_to_a_hedge() {
    let origin = taking_its_time().await;
    let backend = format!("{{address: \"{}\"}}", origin.address);
    let ways = ["", "direct: false, "];
    for (way, path) in ways.into_iter().flat_map(|way| ["/head", "/rest"].map(|path| (way, path))) {
        // From the first step on, all is for the new variant.
        let gateway = Gateway::administered(&format!(
            "upstreams:\n\
             - {{name: old, backends: [{backend}]}}\n\
             - {{name: new, backends: [{backend}, {backend}], hedge: {{after: 10s}}, \
             circuit_breaker: {{min_requests: 2, open: 1h, error_ratio: 1%}}}}\n\
             routes: [{{name: all, {way}filters: [buffer: {{}}], timeouts: {{total: 4s}}, \
             split: {{to: {{old: 100, new: 0}}, ramp: {{from: old, to: new, over: 100d, steps: 1, \
             abort_if: {{error_ratio: 10%, min_requests: 2, window: 1h}}}}}}}}]\n"
        ))
        .await;
        let late = async || {
            let mut client = Wire::connect(gateway.address()).await;
            client.send(format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")).await;
            tokio::time::sleep(Duration::from_millis(2800)).await;
            client.send("b").await;
            let _ = soon("an answer or an end", client.answer()).await;
        };
        tokio::join!(late(), late(), late());
        // Who is to know of a request does before its line is there.
        let lines = until("all lines", || Some(gateway.log()).filter(|log| log.len() == 3)).await;
        let asked = |line: &Value| line["attempts"] == 1 && line["variant"] == "new";
        assert!(lines.iter().all(asked), "{way}{path}: {lines:?}");
        let shown = gateway.ask_admin("GET /api/upstreams/new", "").await.json();
        assert_eq!(shown["circuit_breaker"]["state"], "closed", "{way}{path}: {shown}");
        let backends = shown["backends"].as_array().expect("a list");
        assert!(backends.iter().all(|backend| backend["failures"] == 0), "{way}{path}: {shown}");
        let release = gateway.ask_admin("GET /api/releases", "").await.json()["releases"][0].clone();
        let (state, errors) = (&release["state"], &release["new"]["errors"]);
        assert_eq!((state, errors), (&"done".into(), &0.into()), "{way}{path}: {release}");
    }
}
