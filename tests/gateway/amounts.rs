//! Quotas, waits and requests under way, over sockets: what restarts, upgrades and clients that leave do to them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::harness::{Gateway, Origin, Wire, get, refusing, request, soon, until};

/// Ten a day, kept in this file.
fn daily(file: &Path) -> String {
    format!(
        "server: {{quotas: \"{}\", drain: 2s}}\n\
         routes: [{{name: all, filters: [{{quota: {{per: ip, limit: 10/day}}, name: daily}}], respond: {{}}}}]\n",
        file.display()
    )
}

/// What is left of the day after one more request.
async fn left(gateway: &Gateway) -> u64 {
    let answer = get(gateway.address(), "/").await;
    let field = answer.field("ratelimit").and_then(|field| field.strip_prefix("\"daily\";r="));
    let (left, _) = field.and_then(|field| field.split_once(";t=")).expect("where the client stands");
    left.parse().expect("a number")
}

/// Units that the file knows of.
fn written(file: &Path) -> i64 {
    let Ok(connection) = rusqlite::Connection::open(file) else { return 0 };
    connection.query_row("SELECT sum(used) FROM used", [], |row| row.get(0)).unwrap_or(0)
}

#[tokio::test]
async fn what_was_written_down_survives_a_kill_and_an_orderly_end_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state/quotas.sqlite");
    let mut first = Gateway::start(&daily(&file)).await;
    assert!(!file.exists(), "nothing was used");
    assert_eq!((left(&first).await, left(&first).await), (9, 8));
    until("the write", || (written(&file) == 2).then_some(())).await;
    first.signal("KILL");
    first.ended().await;
    let mut second = Gateway::start(&daily(&file)).await;
    assert_eq!(left(&second).await, 7);
    second.signal("TERM");
    second.ended().await;
    assert_eq!(written(&file), 3);
    let third = Gateway::start(&daily(&file)).await;
    assert_eq!(left(&third).await, 6);
}

#[tokio::test]
async fn an_upgrade_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("quotas.sqlite");
    let mut gateway = Gateway::start(&daily(&file)).await;
    assert_eq!(left(&gateway).await, 9);
    assert_eq!(gateway.upgrade().await.0, Some(0));
    assert_eq!(left(&gateway).await, 8);
    gateway.ended().await;
    until("both writes", || (written(&file) == 2).then_some(())).await;
}

#[tokio::test]
async fn a_file_that_is_damaged_keeps_nobody_from_serving() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("quotas.sqlite");
    std::fs::write(&file, "no database").expect("written");
    let gateway = Gateway::start(&daily(&file)).await;
    assert_eq!(left(&gateway).await, 9);
    gateway.says("was put aside").await;
    until("a new file", || (written(&file) == 1).then_some(())).await;
}

#[tokio::test]
async fn a_call_that_is_refused_uses_nothing_up_though_its_answer_begins_with_200() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("quotas.sqlite");
    let mut gateway = Gateway::start(&format!(
        "server: {{quotas: \"{}\", drain: 2s}}\n\
         routes:\n- name: all\n  filters: [{{quota: {{per: ip, limit: 10/day}}}}, {{rate_limit: {{per: ip, limit: 1/h}}}}]\n\
         \x20 respond: {{}}\n",
        file.display()
    ))
    .await;
    let fields = "Content-Type: application/grpc\r\nContent-Length: 0\r\n";
    for nth in 0..10 {
        let answer = request(gateway.address(), "POST /", fields).await;
        // gRPC over HTTP/2, Responses: how a call ended is said by `grpc-status`. 14 is UNAVAILABLE.
        let status = (nth > 0).then_some("14");
        assert_eq!((answer.status, answer.field("grpc-status")), (200, status), "{answer:?}");
    }
    gateway.signal("TERM");
    gateway.ended().await;
    assert_eq!(written(&file), 1);
}

/// Three ways to answer or not, before all of which this quota and these filters stand.
fn counted(addresses: [SocketAddr; 3], quota: &str, rest: &str) -> String {
    let mut text = format!("chains: {{fair: [{{quota: {quota}, name: fair}}{rest}]}}\n");
    let names = ["gone", "failing", "here"];
    text.push_str("upstreams:\n");
    for (name, address) in names.iter().zip(addresses) {
        text.push_str(&format!(
            "- {{name: {name}, backends: [{{address: \"{address}\"}}], hedge: {{after: 1m}}}}\n"
        ));
    }
    text.push_str("routes:\n");
    for name in names {
        text.push_str(&format!(
            "- {{name: {name}, match: {{paths: [\"/{name}/*\"]}}, filters: [{{chain: fair}}], upstream: {name}}}\n"
        ));
    }
    text
}

#[tokio::test]
async fn what_is_fetched_for_a_cache_or_hedged_counts_only_if_it_was_sent() {
    let (gone, origin) = (refusing().await, Origin::echo().await);
    let failing = Origin::answering("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
    let addresses = [gone, failing.address, origin.address];
    for rest in [", {cache: {}}", ""] {
        let gateway = Gateway::start(&counted(addresses, "{per: ip, limit: 5/day}", rest)).await;
        for path in 0..12 {
            let status = get(gateway.address(), &format!("/gone/{path}")).await.status;
            assert!(matches!(status, 502 | 503), "{status}{rest}");
        }
        // This was sent, whatever came of it.
        assert_eq!(get(gateway.address(), "/failing/0").await.status, 500);
        for path in 1..4 {
            assert_eq!(get(gateway.address(), &format!("/here/{path}")).await.status, 200, "{path}{rest}");
        }
        // What was not sent is given back a moment after it was answered.
        soon("the fifth", async { while get(gateway.address(), "/here/4").await.status != 200 {} }).await;
        assert_eq!(get(gateway.address(), "/here/5").await.status, 429, "{rest}");
    }
}

#[tokio::test]
async fn a_plan_on_both_sides_of_a_cache_counts_a_request_once() {
    let origin = Origin::echo().await;
    let limits = "{plan_limits: {default: free}}";
    let gateway = Gateway::start(&format!(
        "plans: {{free: {{limits: [{{name: hourly, limit: 4/h}}]}}}}\n\
         upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes: [{{name: all, filters: [{limits}, {{cache: {{}}}}, {limits}], upstream: origin}}]\n",
        origin.address
    ))
    .await;
    let mut statuses = Vec::new();
    for path in 0..5 {
        statuses.push(get(gateway.address(), &format!("/{path}")).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 429]);
}

#[tokio::test]
async fn what_was_sent_counts_though_the_next_backend_cannot_be_connected_to() {
    for rest in [", {cache: {}}", ""] {
        let (dying, gone) = (Origin::dying_after(b"").await, refusing().await);
        let backends = format!("[{{address: \"{}\"}}, {{address: \"{gone}\"}}]", dying.address);
        let rules = "hedge: {after: 1m}, retries: {conditions: [connect, reset]}";
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, backends: {backends}, {rules}}}]\n\
             routes: [{{name: all, filters: [{{quota: {{per: ip, limit: 3/day}}}}{rest}], upstream: origin}}]\n"
        ))
        .await;
        for path in 0..3 {
            let status = get(gateway.address(), &format!("/{path}")).await.status;
            assert!(matches!(status, 502 | 503), "{status}{rest}");
        }
        gateway.log_line(|line| line["path"] == "/2").await;
        assert_eq!(get(gateway.address(), "/3").await.status, 429, "{rest}");
    }
}

/// One request under way at a time, and these further routes.
fn held(origin: &Origin, more: &str) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
         routes:\n- {{name: all, filters: [{{concurrency: {{per: ip, limit: 1}}}}], upstream: origin}}\n{more}",
        origin.address
    )
}

#[tokio::test]
async fn a_client_that_goes_away_is_no_longer_under_way() {
    let (origin, mut events) = Origin::silent().await;
    let gateway = Gateway::start(&held(&origin, "")).await;
    let mut first = Wire::connect(gateway.address()).await;
    first.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
    assert_eq!(soon("the request", events.recv()).await, Some("asked"));
    let refused = get(gateway.address(), "/").await;
    assert_eq!((refused.status, refused.field("retry-after")), (429, Some("1")));
    assert!(refused.text().contains("urn:tollhouse:problem:too-many-in-flight"));
    drop(first);
    assert_eq!(soon("the end", events.recv()).await, Some("closed"));
    gateway.log_line(|line| line["status"] == 499).await;
    // Its place is given back a moment after its line was written.
    soon("the next request", async {
        let mut next = Wire::connect(gateway.address()).await;
        loop {
            next.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
            tokio::select! {
                event = events.recv() => break assert_eq!(event, Some("asked")),
                refused = next.answer() => assert_eq!(refused.expect("an answer").status, 429),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_websocket_is_under_way_until_it_is_closed_and_over_a_reload() {
    let (origin, mut taken) = Origin::handing_over().await;
    let gateway = Gateway::start(&held(&origin, "")).await;
    let mut client = Wire::connect(gateway.address()).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    let mut server = soon("a connection", taken.recv()).await.expect("a connection");
    server.head().await.expect("a request");
    server
        .send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )
        .await;
    assert!(!client.some().await.is_empty());
    assert_eq!(get(gateway.address(), "/").await.status, 429);
    let more = "- {name: new, match: {paths: [/new]}, respond: {}}\n";
    std::fs::write(gateway.file(), gateway.text(&held(&origin, more))).expect("written");
    soon("the new document", async {
        while get(gateway.address(), "/new").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(get(gateway.address(), "/").await.status, 429);
    drop(client);
    drop(server);
    gateway.log_line(|line| line["path"] == "/" && line["status"] == 101).await;
    let again = tokio::spawn({
        let address = gateway.address();
        async move { get(address, "/").await.status }
    });
    let mut server = soon("a connection", taken.recv()).await.expect("a connection");
    server.head().await.expect("a request");
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(again.await.expect("no panic"), 204);
}

#[tokio::test]
async fn who_waited_passes_and_the_log_tells_how_long() {
    let gateway = Gateway::start(
        "routes: [{name: all, filters: [{rate_limit: {per: ip, limit: 10/s, burst: 1, \
         over: {delay: 10s, queue: 5}}}], respond: {}}]\n",
    )
    .await;
    for _ in 0..3 {
        assert_eq!(request(gateway.address(), "GET /", "").await.status, 200);
    }
    let line = gateway.log_line(|line| line["throttled_ms"].is_f64()).await;
    assert!(
        line["throttled_ms"].as_f64() > Some(0.0)
            && line["elapsed_ms"].as_f64() >= line["throttled_ms"].as_f64()
    );
}

#[tokio::test]
async fn who_goes_away_while_it_waits_gives_its_place_up_at_once() {
    let gateway = Gateway::start(
        "routes: [{name: all, filters: [{rate_limit: {per: ip, limit: 1/min, burst: 1, \
         over: {delay: 1m, queue: 1}}}], respond: {}}]\n",
    )
    .await;
    // Of two, one finds the only place and the other is refused; gives the one that waits.
    let pair = async || {
        let mut wires = [Wire::connect(gateway.address()).await, Wire::connect(gateway.address()).await];
        for wire in &mut wires {
            wire.send("GET / HTTP/1.1\r\nHost: example.test\r\n\r\n").await;
        }
        let [one, other] = &mut wires;
        let (refused, waits) = tokio::select! {
            answer = one.answer() => (answer, 1),
            answer = other.answer() => (answer, 0),
        };
        assert_eq!(refused.expect("an answer").status, 429);
        wires.into_iter().nth(waits).expect("one of two")
    };
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    let waits = pair().await;
    drop(waits);
    let line = gateway.log_line(|line| line["status"] == 499).await;
    assert_eq!(line["error"], "client-closed");
    let mut next = pair().await;
    let answered = tokio::time::timeout(Duration::from_millis(50), next.answer()).await;
    assert!(answered.is_err(), "there was no place");
}

#[tokio::test]
async fn what_was_sent_counts_whatever_comes_back() {
    let failing = Origin::answering("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n").await;
    for direct in [true, false] {
        let gateway = Gateway::start(&format!(
            "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, filters: [{{quota: {{per: ip, limit: 2/day}}}}], upstream: origin, direct: {direct}}}]\n",
            failing.address
        ))
        .await;
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(get(gateway.address(), "/").await.status);
        }
        assert_eq!(statuses, [500, 500, 429], "{direct}");
    }
}

#[tokio::test]
async fn signals_that_come_while_the_end_is_written_down_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("quotas.sqlite");
    let mut gateway = Gateway::start(&daily(&file)).await;
    assert_eq!(left(&gateway).await, 9);
    until("the write", || (written(&file) == 1).then_some(())).await;
    // The end takes as long as it is waited for who holds the file.
    let other = rusqlite::Connection::open(&file).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    assert_eq!(left(&gateway).await, 8);
    let told_again = async {
        loop {
            // One of these comes when nothing is left to do but to write.
            gateway.signal("TERM");
            if let Ok(ended) = tokio::time::timeout(Duration::from_millis(5), gateway.ended()).await {
                return ended;
            }
        }
    };
    let ended = soon("the end", told_again).await;
    assert_eq!((ended.code(), gateway.said("stopping before anything was served")), (Some(0), 0));
    assert_eq!(gateway.log().len(), 2);
}
